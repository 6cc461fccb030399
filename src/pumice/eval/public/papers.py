"""Figures that the line's papers and model cards publish, to print beside a run's own.

    papers.toml ──> published("docvqa") ──> [Published(model, figure, part, source), ...]

They are as printed: prompts, splits and judges of a source may differ from those of a run here.
"""

from __future__ import annotations

import math
import tomllib
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from pumice.eval.public.benchmarks import table


@dataclass(frozen=True)
class Published:
    """One figure. ``part`` is the split or category where a benchmark has several, such as "val" or "perception".

    Figures are per cent, but sums of points for MME, and 1 to 5 for VideoChatGPT and VideoDetailCaption.
    """

    model: str
    figure: float
    part: str
    source: str


def published(benchmark: str) -> tuple[Published, ...]:
    """The published figures of a benchmark, by its key or name in benchmarks.toml; none for one without figures."""
    keys = {one.name: key for key, one in table().benchmarks.items()}
    return figures().get(keys.get(benchmark, benchmark), ())


@cache
def figures() -> dict[str, tuple[Published, ...]]:
    """All figures of papers.toml by benchmark key, sources in the order of the file.

    Raises:
        ValueError: a row that hasn't a figure, or nan, a column.
    """
    data = tomllib.loads(files("pumice.eval.public").joinpath("papers.toml").read_text(encoding="utf-8"))
    found: dict[str, list[Published]] = defaultdict(list)
    for one in data["tables"]:
        columns = [column.partition("/") for column in one["columns"]]
        for model, row in one["rows"].items():
            for (key, _, part), figure in zip(columns, row, strict=True):
                if not math.isnan(figure):
                    found[key].append(Published(model, float(figure), part, one["source"]))
    return {key: tuple(rows) for key, rows in found.items()}
