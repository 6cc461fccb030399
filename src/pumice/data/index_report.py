"""An index as a person reads it: what can be trained on, what can't and why, and the worst of it.

{name: Index} ──summary──> plain numbers and examples ──print_report──> tables
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pumice.data.index import Index

EXAMPLES = 3
"""Rows shown of each kind of problem, and of the longest samples."""


def summary(index: Index) -> dict[str, Any]:
    """Counts, sizes and examples of one source. Tokens are those of usable rows, the longest first among examples."""
    usable = index.usable
    tokens, columns = index.columns["tokens"][usable], index.columns
    problems = {}
    for kind in sorted(set(index.problem.tolist()) - {""}):
        rows = np.flatnonzero(index.problem == kind)
        problems[kind] = {"rows": len(rows), "examples": [index.detail[row] for row in rows[:EXAMPLES]]}
    return {
        "source": index.name,
        "rows": len(index),
        "usable": len(usable),
        "duplicates": index.duplicates,
        "literal_markers": int(index.literal[usable].sum()),
        "tokens": _sizes(tokens),
        "views": int(columns["views"][usable].sum()),
        "media": int(columns["media"][usable].sum()),
        "supervised": int(columns["supervised"][usable].sum()),
        "longest": [int(row) for row in usable[np.argsort(-tokens, kind="stable")[:EXAMPLES]]],
        "problems": problems,
    }


def _sizes(tokens: np.ndarray) -> dict[str, float]:
    if not len(tokens):
        return {"total": 0}
    found = {f"p{q}": float(np.percentile(tokens, q)) for q in (5, 50, 95)}
    return {"total": int(tokens.sum()), "mean": round(float(tokens.mean()), 1), **found, "max": int(tokens.max())}


def print_report(indexes: Mapping[str, Index]) -> None:
    """Summaries of several sources."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    for one in map(summary, indexes.values()):
        table = Table(
            title=f"{one['source']}: {one['usable']:,} of {one['rows']:,} samples can be used", show_header=False
        )
        sizes = one["tokens"]
        if one["usable"]:
            spread = f"{sizes['p5']:,.0f} / {sizes['p50']:,.0f} / {sizes['p95']:,.0f} / {sizes['max']:,}"
            table.add_row("tokens", f"{sizes['total']:,}, {sizes['mean']:,} a sample; 5% / 50% / 95% / most: {spread}")
            table.add_row("supervised", f"{one['supervised'] / sizes['total']:.1%} of the tokens")
            table.add_row("media", f"{one['media']:,} in {one['views']:,} views")
            table.add_row("longest", f"rows {', '.join(map(str, one['longest']))}")
        if one["duplicates"]:
            table.add_row(
                "duplicates", f"{one['duplicates']:,} say what an earlier one says of the same media; all are kept"
            )
        if one["literal_markers"]:
            table.add_row(
                "literal markers", f"{one['literal_markers']:,} have <image> or <video> in their text, as text"
            )
        for kind, problem in one["problems"].items():
            table.add_row(f"left out: {kind}", f"{problem['rows']:,}")
            for text in problem["examples"]:
                table.add_row("", escape(text))
        console.print(table)
