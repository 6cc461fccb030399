"""Which mean of checkpoints scores best: the greedy soup (Wortsman et al. 2022), and the way from one to another.

    members ──score of a mean──> greedy: who is in it  ─┐
    A, B    ──scores along (1 - a) A + a B──> sweep    ─┴─> table, JSON, drawing, the chosen mean on disk

Both ask a function of the weights for scores; here it writes the mean to a scratch folder, opens it and asks it the
embedded tasks. Whoever is chosen by some tasks should be reported by others.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

import pumice
from pumice.eval.report.summary import progress_bar
from pumice.eval.suite.embedded import evaluate
from pumice.eval.suite.items import check_tasks
from pumice.eval.suite.scoring import Report
from pumice.formats.members import KINDS, Member, Module
from pumice.formats.soup import write_mean
from pumice.types import PumiceError

if TYPE_CHECKING:
    from pumice.assistant import Assistant

Weights = Sequence[float]
"""One a member, with a sum of 1."""


# procedures


@dataclass(frozen=True)
class Tried:
    """A member in the order of own scores, the score of the mean with it, and whether it stays."""

    member: int
    own: float
    soup: float
    kept: bool


@dataclass(frozen=True)
class Point:
    """A place on the way from A (a = 0) to B (a = 1), and its scores: of two groups of tasks, one each."""

    a: float
    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Of the scores."""
        return sum(self.scores) / len(self.scores)


def greedy(count: int, score: Callable[[Weights], float]) -> list[Tried]:
    """The greedy soup of ``count`` members, best own score first (of equal ones the earlier).

    The best one is in it. Each of the others joins if the score of the uniform mean then isn't lower than before.
    """
    own = [score(uniform([member], count)) for member in range(count)]
    tried: list[Tried] = []
    for member in sorted(range(count), key=lambda member: -own[member]):
        kept = [one.member for one in tried if one.kept]
        before = max((one.soup for one in tried if one.kept), default=-math.inf)
        soup = score(uniform([*kept, member], count)) if kept else own[member]
        tried.append(Tried(member, own[member], soup, soup >= before))
    return tried


def uniform(members: Sequence[int], count: int) -> list[float]:
    """Equal weights of some members of ``count``, 0 for the others."""
    return [1 / len(members) if member in members else 0.0 for member in range(count)]


def sweep(points: Sequence[float], score: Callable[[Weights], tuple[float, ...]]) -> list[Point]:
    """The scores of (1 - a) A + a B at each point a from 0 to 1."""
    return [Point(a, score([1 - a, a])) for a in points]


def best(points: Sequence[Point]) -> Point:
    """The point with the highest mean of its scores; of equal ones the first."""
    return max(points, key=lambda point: point.mean)


# scores


@contextmanager
def opened(members: Sequence[Member], weights: Weights, module: Module) -> Iterator[Assistant]:
    """The assistant that a mean of members is; it lies in a scratch folder meanwhile.

    Raises:
        PumiceError: as `write_mean` and `pumice.load`.
    """
    with tempfile.TemporaryDirectory(prefix="pumice-merge-") as folder:
        write_mean(members, weights, Path(folder) / "mean", module)
        yield pumice.load(str(Path(folder) / "mean"))


def scorer(
    members: Sequence[Member], module: Module, groups: Sequence[Sequence[str]], n: int
) -> Callable[[Weights], tuple[float, ...]]:
    """A function from weights to the score of each group of tasks, with ``n`` questions a task.

    Raises:
        PumiceError: a tower alone, which can't answer, or an unknown task.
    """
    if members[0].kind == "tower":
        raise PumiceError(f"{members[0].source} is {KINDS['tower']} alone and can't answer; expected assistants")
    asked = [check_tasks(group) for group in groups]
    every = check_tasks([task for group in asked for task in group])

    def score(weights: Weights) -> tuple[float, ...]:
        Console(stderr=True, soft_wrap=True).print(Text(f"scoring {spoken(members, weights)}"))
        with opened(members, weights, module) as assistant, progress_bar() as step:
            report = evaluate(assistant, every, n, blind=False, progress=step)
        return tuple(goodness(report, group) for group in asked)

    return score


def goodness(report: Report, tasks: Sequence[str]) -> float:
    """The mean of some tasks' scores, from 0 to 1, high is good: of an error rate what is left to 1."""
    rows = [report[task] for task in tasks]
    return sum(max(0.0, 1 - row.score) if row.metric == "CER" else row.score for row in rows) / len(rows)


def spoken(members: Sequence[Member], weights: Weights) -> str:
    """A mean in words: the members that count, with their weights."""
    pairs = [(weight, member.source) for weight, member in zip(weights, members, strict=True) if weight > 0]
    return " + ".join(source if weight == 1 else f"{weight:.3g} {source}" for weight, source in pairs)


# commands


def main_greedy(
    members: Sequence[Member], module: Module, tasks: Sequence[str], n: int, out: Path | None, as_json: bool
) -> None:
    """Print the greedy soup of members that fit together, and write it where ``out`` is given.

    Raises:
        PumiceError: as `scorer` and `write_mean`.
    """
    score = scorer(members, module, [tasks], n)
    tried = greedy(len(members), lambda weights: score(weights)[0])
    names = [members[one.member].source for one in tried]
    if as_json:
        rows = [{**asdict(one), "member": name} for one, name in zip(tried, names, strict=True)]
        print(json.dumps({"tasks": list(check_tasks(tasks)), "n": n, "members": rows}))
    else:
        rows = [(name, one.own, one.soup, "yes" if one.kept else "no") for one, name in zip(tried, names, strict=True)]
        _print(("member", "own %", "soup %", "kept"), rows)
    if out is not None:
        write_mean(members, uniform([one.member for one in tried if one.kept], len(members)), out, module)


def main_sweep(
    members: Sequence[Member],
    module: Module,
    groups: tuple[Sequence[str], Sequence[str]],
    points: Sequence[float],
    n: int,
    out: Path | None,
    as_json: bool,
    plot: Path | None,
) -> None:
    """Print the scores on the way from the first of two members to the second; draw it and write the best if asked.

    Raises:
        PumiceError: as `scorer` and `write_mean`, or no matplotlib for the drawing.
    """
    score = scorer(members, module, groups, n)
    if plot is not None:
        _figure()  # an hour of questions shouldn't end in a missing package
    found = sweep(points, score)
    names = ("+".join(groups[0]), "+".join(groups[1]))
    if as_json:
        print(json.dumps(_sweep_json(members, names, n, found)))
    else:
        rows = [(f"{p.a:g}" + " *" * (p is best(found)), *p.scores, p.mean) for p in found]
        _print(("a", f"{names[0]} %", f"{names[1]} %", "mean %"), rows)
    if plot is not None:
        draw(found, names, (members[0].source, members[1].source), plot)
    if out is not None:
        write_mean(members, [1 - best(found).a, best(found).a], out, module)


def _sweep_json(members: Sequence[Member], names: tuple[str, str], n: int, found: Sequence[Point]) -> dict[str, Any]:
    return {
        "from": members[0].source,
        "to": members[1].source,
        "tasks": names[0],
        "against": names[1],
        "n": n,
        "best": best(found).a,
        "points": [
            {"a": point.a, "tasks": point.scores[0], "against": point.scores[1], "mean": point.mean} for point in found
        ],
    }


def _print(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table on standard output; scores in per cent."""
    table = Table()
    for name in head:
        table.add_column(name, justify="right" if name.endswith("%") else "left")
    for row in rows:
        table.add_row(*(Text(f"{100 * cell:.1f}" if isinstance(cell, float) else str(cell)) for cell in row))
    Console().print(table)


def draw(points: Sequence[Point], names: tuple[str, str], ends: tuple[str, str], path: Path) -> None:
    """Both scores and their mean from one end to the other, as PNG or SVG by the ending of ``path``.

    Raises:
        PumiceError: matplotlib is missing, or the file can't be written.
    """
    figure = _figure()
    axes = figure.add_subplot()
    across = [point.a for point in points]
    for number, name in enumerate(names):
        axes.plot(across, [100 * point.scores[number] for point in points], marker="o", label=name)
    axes.plot(across, [100 * point.mean for point in points], marker="s", linestyle="--", color="grey", label="mean")
    axes.set_xlabel(f"a in (1 - a) {Path(ends[0]).name} + a {Path(ends[1]).name}", parse_math=False)
    axes.set_ylabel("score %")
    figure.legend(loc="outside upper center", ncols=3)
    try:
        figure.savefig(path)
    except OSError as error:
        raise PumiceError(f"{path}: not written ({error})") from None


def _figure() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise PumiceError("a drawing needs matplotlib: pip install 'pumice[train]'") from None
    return Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
