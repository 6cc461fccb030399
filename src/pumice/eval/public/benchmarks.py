"""The benchmarks of the papers as data: which tasks ask them, how they are scored, what they need.

"llava15", "docvqa", "docvqa_test" ──resolve──> [(Benchmark, tasks)]
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib.resources import files
from typing import Any

from pumice.types import PumiceError

JUDGES = ("no", "fallback", "yes")
ANSWERS = ("text", "letter", "yes-no")
JUDGE_KEY = "OPENAI_API_KEY"


@dataclass(frozen=True)
class Benchmark:
    """One benchmark; benchmarks.toml says what the fields mean.

    Of a task that is named by itself, and isn't what its benchmark runs, ``metrics`` is empty: all that it has count.
    """

    key: str
    name: str
    tasks: tuple[str, ...]
    metrics: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    without_judge: str = ""
    judge: str = "no"
    judge_key: str = JUDGE_KEY
    judge_path: str = ""
    suffix: str = ""
    max_new_tokens: int = 0
    answers: str = "text"
    data: str = ""
    needs: tuple[str, ...] = ()
    remark: str = ""

    def runs(self, environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
        """The tasks to run: another one where there is no judge, and none where nothing can be scored without it."""
        if self.judge == "no" or environment.get(self.judge_key):
            return self.tasks
        return (self.without_judge,) if self.without_judge else ()

    def judge_url(self, address: str) -> str:
        """The judge's address as the tasks want it: lmms-eval's tasks don't agree whether it names the call as well."""
        return address.rstrip("/").removesuffix("/chat/completions").rstrip("/") + self.judge_path


@dataclass(frozen=True)
class Table:
    """Benchmarks by key, and suites: lists of keys."""

    benchmarks: dict[str, Benchmark]
    suites: dict[str, tuple[str, ...]]

    def of_task(self, task: str) -> Benchmark | None:
        """The benchmark that a task belongs to."""
        for benchmark in self.benchmarks.values():
            if task in (*benchmark.tasks, *benchmark.also, benchmark.without_judge):
                return benchmark
        return None


@cache
def table() -> Table:
    """The table of benchmarks.toml."""
    return parse(tomllib.loads(files("pumice.eval.public").joinpath("benchmarks.toml").read_text(encoding="utf-8")))


def parse(data: Mapping[str, Any]) -> Table:
    """A table out of TOML's data.

    Raises:
        PumiceError: an unknown field or value, a task of two benchmarks, or a suite with an unknown benchmark.
    """
    known = {field.name for field in fields(Benchmark)} - {"key"}
    benchmarks: dict[str, Benchmark] = {}
    for key, given in data["benchmarks"].items():
        if set(given) - known:
            raise PumiceError(f"benchmark {key}: no field {', '.join(set(given) - known)}; expected {', '.join(known)}")
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in given.items()
        }
        made = Benchmark(key, **values)
        if made.judge not in JUDGES or made.answers not in ANSWERS:
            raise PumiceError(f"benchmark {key}: judge is one of {', '.join(JUDGES)}, answers of {', '.join(ANSWERS)}")
        benchmarks[key] = made
    owned = [task for one in benchmarks.values() for task in (*one.tasks, *one.also, one.without_judge) if task]
    twice = {task for task in owned if owned.count(task) > 1}
    if twice:
        raise PumiceError(f"tasks of two benchmarks: {', '.join(sorted(twice))}")
    suites = {name: tuple(keys) for name, keys in data["suites"].items()}
    for name, keys in suites.items():
        unknown = [key for key in keys if key not in benchmarks]
        if unknown:
            raise PumiceError(f"suite {name}: no benchmark {', '.join(unknown)}")
    return Table(benchmarks, suites)


def resolve(names: Sequence[str], known_tasks: Collection[str] = ()) -> list[Benchmark]:
    """The benchmarks that suites, benchmarks and tasks name, each once and in order.

    A task that isn't in the table, or isn't what its benchmark runs, becomes a benchmark of its own; ``known_tasks``
    are those of lmms-eval.

    Raises:
        PumiceError: an unknown name; the message has the nearest one.
    """
    held, found = table(), {}
    for name in names:
        for key in held.suites.get(name, (name,)):
            made = held.benchmarks.get(key) or _single(key, known_tasks)
            found.setdefault(made.key, made)
    return list(found.values())


def _single(task: str, known_tasks: Collection[str]) -> Benchmark:
    held = table()
    owner = held.of_task(task)
    if owner is None and task not in known_tasks:
        choices = [*held.suites, *held.benchmarks, *known_tasks]
        near = difflib.get_close_matches(task, choices, 1)
        hint = f"did you mean {near[0]}?" if near else f"suites: {', '.join(held.suites)}"
        raise PumiceError(f"no suite, benchmark or task {task!r}; {hint} (benchmarks: {', '.join(held.benchmarks)})")
    if owner is None:
        return Benchmark(task, task, (task,))
    asks_judge = task != owner.without_judge
    metrics = () if task in owner.also else owner.metrics
    return replace(
        owner, key=task, name=f"{owner.name} ({task})", tasks=(task,), also=(), without_judge="", metrics=metrics,
        judge=owner.judge if asks_judge else "no", suffix="", max_new_tokens=0,
    )  # fmt: skip
