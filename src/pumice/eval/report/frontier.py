"""Quality against cost: which of several runs nobody beats at their price.

runs' JSON files ──read_points──> [Point] ──best──> table, JSON, and a page of scatter plots (`frontier_page`)
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pumice.eval.cost import Cost, basis
from pumice.eval.report.baseline import read_run
from pumice.plan.report import binary, scaled
from pumice.types import PumiceError

Score = tuple[float, float, float]
"""A score with its interval: value, low, high; from 0 to 1."""
AXES = {"ms to first token": "first_ms", "visual tokens": "visual_tokens"}
"""Costs that quality is drawn against, and their fields of `Cost`."""
SHORT = {"ms to first token": "time", "visual tokens": "tokens"}
"""The same axes in a word, for the table's column of the frontiers that a run is on."""


@dataclass(frozen=True)
class Point:
    """A run: its letter on the page, name, quality (mean of its groups), the groups' scores, and what it costs.

    ``unasked`` are groups that some of the runs beside it were asked and others not; they count in no quality.
    """

    letter: str
    name: str
    quality: Score
    groups: dict[str, Score]
    cost: Cost
    unasked: tuple[str, ...] = ()

    def price(self, axis: str) -> float:
        """The cost on one of AXES."""
        return float(getattr(self.cost, AXES[axis]))

    def score(self, group: str | None) -> Score:
        """A group's score; None for the mean of them."""
        return self.quality if group is None else self.groups[group]


def read_points(paths: Sequence[Path]) -> list[Point]:
    """The runs in files that ``pumice eval --json`` wrote.

    Raises:
        PumiceError: fewer than two files, one that isn't a run's, has no cost or no groups, or was asked other items
            than the first; or no group that all were asked.
    """
    if len(paths) < 2:
        raise PumiceError(f"--frontier {paths[0] if paths else ''}: expected the files of two runs or more")
    bodies = [read_run(path) for path in paths]
    items = [body["about"].get("items_sha256") for body in bodies]
    for path, body, found in zip(paths, bodies, items, strict=True):
        if not body.get("cost"):
            raise PumiceError(f"{path}: a run without costs; evaluate again: pumice eval MODEL --cost --json {path}")
        if found != items[0]:
            raise PumiceError(
                f"{path}: items {found}, those of {paths[0]} are {items[0]}; expected the same: evaluate all runs with "
                "the same --tasks and -n"
            )
    names = unique([Path(body["about"]["model"]).name for body in bodies], [path.stem for path in paths])
    scores = [_scores(body) for body in bodies]
    asked, partly = _shared(paths, scores)
    points = []
    for name, body, found, path in zip(names, bodies, scores, paths, strict=True):
        groups = {group: score for group, score in found.items() if score and group in asked}
        try:
            cost = Cost(**body["cost"])
        except TypeError:
            raise PumiceError(f"{path}: costs of another version of Pumice; evaluate again with --cost") from None
        points.append(Point(letters(len(points)), name, mean(list(groups.values())), groups, cost, partly))
    return points


def _shared(paths: Sequence[Path], scores: Sequence[dict[str, Score | None]]) -> tuple[list[str], tuple[str, ...]]:
    """The groups that every run was asked, and those that some were asked and others not."""
    for path, found in zip(paths, scores, strict=True):
        if not any(found.values()):
            raise PumiceError(f"{path}: no task with right and wrong answers; expected a run of more tasks than 'read'")
        if list(found) != list(scores[0]):
            here, there = ", ".join(found), ", ".join(scores[0])
            raise PumiceError(f"{path}: groups {here}, those of {paths[0]} are {there}; expected runs of one version")
    asked = [name for name in scores[0] if all(found[name] for found in scores)]
    if not asked:
        raise PumiceError(f"{paths[0]}: no group that every one of the runs was asked; expected runs of the same tasks")
    return asked, tuple(name for name in scores[0] if name not in asked and any(found[name] for found in scores))


def _scores(body: dict[str, Any]) -> dict[str, Score | None]:
    """Scores by group, where high is good; None for a group of which nothing could be asked."""
    return {
        row["name"]: (row["score"], *(row["interval"] or [row["score"]] * 2)) if row["n"] else None
        for row in body["groups"] or body["rows"]  # of a few tasks there may be no whole group
        if "CER" not in row["metric"]
    }


def mean(scores: Sequence[Score]) -> Score:
    """The mean of scores with an interval, as if they were independent: half widths add up as squares."""
    value, n = sum(score[0] for score in scores) / len(scores), len(scores)
    down = math.sqrt(sum((score[0] - score[1]) ** 2 for score in scores)) / n
    up = math.sqrt(sum((score[2] - score[0]) ** 2 for score in scores)) / n
    return value, max(0.0, value - down), min(1.0, value + up)


def unique(names: Sequence[str], files: Sequence[str]) -> list[str]:
    """Names; where two are the same, with the files' names."""
    return [f"{name} ({file})" if names.count(name) > 1 else name for name, file in zip(names, files, strict=True)]


def letters(number: int) -> str:
    """A to Z, then A1 and so on."""
    return chr(ord("A") + number % 26) + (str(number // 26) if number >= 26 else "")


def best(points: Sequence[Point], axis: str, group: str | None = None) -> list[Point]:
    """The Pareto frontier by rising price: no other run is as good for less, or better for the same.

    Of runs with the same score and price all are on it.
    """
    where = [(point.price(axis), point.score(group)[0]) for point in points]
    found = [
        point
        for point, (price, score) in zip(points, where, strict=True)
        if not any(p <= price and s >= score and (p, s) != (price, score) for p, s in where)
    ]
    return sorted(found, key=lambda point: (point.price(axis), point.letter))


def main(paths: Sequence[Path], json_path: Path | None = None, html: Path | None = None) -> None:
    """Print the table of runs, and write JSON and a page.

    Raises:
        PumiceError: as `read_points`.
    """
    points = read_points(paths)
    print_table(points)
    if json_path:
        json_path.write_text(to_json(points), encoding="utf-8")
    if html:
        from pumice.eval.report.frontier_page import to_html

        html.write_text(to_html(points), encoding="utf-8")


HEAD = (
    "", "run", "quality %", "95%", "first token ms", "visual tokens", "tokens/s", "pictures/s", "eight at a time",
    "memory", "FLOPs", "frontier",
)  # fmt: skip


def cells(point: Point, points: Sequence[Point]) -> tuple[str, ...]:
    """A run's texts under HEAD."""
    cost, (value, low, high) = point.cost, point.quality
    memory = cost.gpu_memory or cost.memory
    leads = [short for axis, short in SHORT.items() if point in best(points, axis)]
    return (
        point.letter, point.name, f"{100 * value:.1f}", f"{100 * low:.1f}-{100 * high:.1f}", f"{cost.first_ms:.0f}",
        f"{cost.visual_tokens:.0f}", "" if cost.tokens_per_s is None else f"{cost.tokens_per_s:.1f}",
        f"{cost.pictures_per_s_1:.2f}", f"{cost.pictures_per_s_8:.2f}",
        binary(memory) if memory else "",
        "" if cost.flops is None else scaled(cost.flops, ""), ", ".join(leads),
    )  # fmt: skip


def print_table(points: Sequence[Point]) -> None:
    """The runs on standard output, and what their times hold for."""
    table = Table(caption=Text("\n".join(remarks(points))), caption_justify="left")
    for name in HEAD:
        table.add_column(name, justify="left" if name in ("", "run", "frontier") else "right")
    for point in points:
        table.add_row(*map(Text, cells(point, points)))
    console = Console()
    if not console.is_terminal:
        console.width = 180
    console.print(table, highlight=False)


def remarks(points: Sequence[Point]) -> list[str]:
    """How to read the numbers; first of all, if times were taken in different places."""
    groups = list(points[0].groups)
    said = [f"Quality: mean of {', '.join(groups)}; its interval takes them as independent of each other."]
    if points[0].unasked:
        said.append(f"Left out, since not every run was asked: {', '.join(points[0].unasked)}.")
    places = dict.fromkeys(basis(point.cost) for point in points)
    if len(places) == 1:
        return [*said, f"Costs: {next(iter(places))}."]
    each = "; ".join(f"{point.letter}: {basis(point.cost)}" for point in points)
    return [f"Times don't compare, they were measured in different ways. {each}.", *said]


def to_json(points: Sequence[Point]) -> str:
    """The runs, and for the mean and every group the letters of the frontier on both axes."""
    groups: list[str | None] = [None, *points[0].groups]
    frontiers = {
        axis: {group or "mean": [point.letter for point in best(points, axis, group)] for group in groups}
        for axis in AXES
    }
    body = {"runs": [asdict(point) for point in points], "frontiers": frontiers, "remarks": remarks(points)}
    return json.dumps(body, indent=1, ensure_ascii=False) + "\n"
