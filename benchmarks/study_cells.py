"""The cells of `benchmarks.study`: what each changes of pocket, and the tasks that it is asked."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

FIELDS = ("city", "amount", "cell", "chart_value")
READING = ("read", "amount", "naming")
SHAPES = ("read", "city", "amount", "naming")
MEMBERS = 3
"""Runs of recipes/pocket-towers.toml, each from another seed, whose towers are asked alone and averaged."""
BUDGETS = {1: ((1, 1),), 2: ((1, 1), (1, 2), (2, 1)), 4: (), 9: ((3, 1), (1, 3), (2, 3), (3, 2), (3, 3))}
"""Grids by the most tiles of a picture; of 9, beside those of 4, which are pocket's own. Few of the suite's pictures
are larger than two tiles: more are put to use by pictures enlarged to twice their size."""


@dataclass(frozen=True)
class Cell:
    """One way to ask: ``tasks`` it is asked, and what it changes of pocket."""

    name: str
    lever: str
    label: str
    tasks: tuple[str, ...]
    tiles: int = 4
    stride: int = 1
    a: float = 1.0
    reads: bool = False
    scale: int = 1
    members: tuple[int, ...] = ()

    @property
    def changes(self) -> dict[str, Any]:
        """What it changes of pocket, by field: the cell's part of the keys of its answers."""
        plain = {field.name: field.default for field in fields(self)}
        kept = ("tiles", "stride", "a", "reads", "scale", "members")
        return {name: getattr(self, name) for name in kept if getattr(self, name) != plain[name]}


TRAINED = Cell("trained", "", "", (*FIELDS, "read", "naming"))
CELLS = (
    TRAINED,
    *(Cell(f"tiles-{n}", "tiles", f"at most {n}", (*FIELDS, "read"), tiles=n) for n in (1, 2)),
    *(Cell(f"twice-{n}", "tiles", f"at most {n}, twice the size", FIELDS, tiles=n, scale=2) for n in (4, 9)),
    *(Cell(f"tokens-{256 // s**2}", "tokens", f"{256 // s**2}, pooled", (*FIELDS, "read"), stride=s) for s in (2, 4)),
    *(Cell(f"tower-{a:g}", "tower", f"a = {a:g}", READING, a=a) for a in (0.0, 0.25, 0.5, 0.75)),
    *(Cell(f"seed-{i + 1}", "towers", f"seed {i + 1} alone", SHAPES, members=(i,)) for i in range(MEMBERS)),
    Cell("mean", "towers", "mean of the three", SHAPES, members=tuple(range(MEMBERS))),
    Cell("read-first", "turns", "read first", FIELDS, reads=True),
)
