"""What came of a benchmark's tasks: scores and counts out of lmms-eval's results, reasons where there are none.

lmms-eval's results, answers ──scores_of, count_answers──> Outcome ──line, beside──> the terminal
an error ──failure──> Outcome
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pumice.eval.metrics.yesno import choice_letter, mme_answer
from pumice.eval.public.benchmarks import Benchmark
from pumice.eval.public.papers import published

DEAD = "[LMMS_EVAL_REQUEST_FAILED"
"""How lmms-eval's HTTP models begin the answer to a request that failed."""


@dataclass(frozen=True)
class Outcome:
    """What came of a task: done, failed, unreachable (its data), judge (there is none) or missing (from lmms-eval).

    ``counts`` are of answers: failed, empty, unparsed (neither letter nor yes or no), cut, replayed, greedy.
    """

    benchmark: str
    task: str
    status: str
    scores: dict[str, float] = field(default_factory=dict)
    n: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    note: str = ""


def failure(benchmark: Benchmark, task: str, error: BaseException) -> Outcome:
    """A task that raised: its data can't be reached, a package is missing, or whatever it was."""
    while hasattr(error, "last_attempt"):  # tenacity hides what happened
        error = error.last_attempt.exception()  # pyright: ignore[reportAttributeAccessIssue]
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    frames = [frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)]
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing:
        return Outcome(benchmark.key, task, "failed", note=f"needs the Python package {missing}")
    if "download" in frames or "get_task_dict" in frames:
        how = f"; get them with: hf download {benchmark.data} --repo-type dataset" if benchmark.data else ""
        where = "" if benchmark.data else ", or the task's own file is wrong"
        return Outcome(benchmark.key, task, "unreachable", note=f"its data can't be reached{where} ({reason}){how}")
    return Outcome(benchmark.key, task, "failed", note=reason)


def count_answers(samples: Sequence[Mapping[str, Any]], answers: str) -> dict[str, int]:
    """Answers that are empty, that a server failed to give, and that are neither letter nor yes or no."""
    texts = [_text(sample["filtered_resps"]) for sample in samples]
    counts = {"empty": sum(not text for text in texts)}
    dead = sum(text.startswith(DEAD) for text in texts)
    if dead:
        counts["failed"] = dead
    if answers == "letter":
        counts["unparsed"] = sum(choice_letter(text) is None for text in texts)
    elif answers == "yes-no":
        counts["unparsed"] = sum(mme_answer(text) == "other" for text in texts)
    return counts


def _text(responses: Any) -> str:
    while isinstance(responses, list) and responses:
        responses = responses[0]
    return responses.strip() if isinstance(responses, str) else ""


def scores_of(results: Mapping[str, Any], task: str, metrics: Sequence[str]) -> dict[str, float]:
    """The metrics of a task; of a group without a score of its own those of its tasks."""
    found: dict[str, float] = {}
    tables = {name: values for name, values in results["results"].items() if values}
    own = {task: tables[task]} if task in tables else tables
    for name, values in (own if _numbers(own.get(task, {}), metrics) else tables).items():
        for metric, value in _numbers(values, metrics).items():
            found[metric if name == task else f"{name}/{metric}"] = value
    return found


def _numbers(values: Mapping[str, Any], metrics: Sequence[str]) -> dict[str, float]:
    numbers = {}
    for key, value in values.items():
        name, _, what = key.partition(",")
        plain = isinstance(value, int | float) and not isinstance(value, bool)
        if plain and what and "_stderr" not in name and (not metrics or name in metrics):
            numbers[name] = float(value)
    return numbers


def line(outcome: Outcome) -> str:
    """An outcome in a line."""
    scores = "  ".join(f"{name} {value:.4g}" for name, value in outcome.scores.items())
    counts = ", ".join(f"{value} {name}" for name, value in outcome.counts.items() if value)
    parts = [f"{outcome.benchmark:<16} {outcome.task:<24} {outcome.status:<11}", scores]
    parts += [f"n={outcome.n}" if outcome.n else "", f"({counts})" if counts else "", outcome.note]
    return "  ".join(part for part in parts if part)


def beside(outcomes: Sequence[Outcome]) -> list[str]:
    """The papers' figures of what has a score, in lines; prompts and judges may differ from theirs."""
    found = []
    for key in dict.fromkeys(outcome.benchmark for outcome in outcomes if outcome.scores):
        known = published(key)
        figures = ", ".join(f"{row.model} {row.figure:g}{f' ({row.part})' if row.part else ''}" for row in known)
        if figures:
            found.append(f"published, {key}: {figures}")
    return found
