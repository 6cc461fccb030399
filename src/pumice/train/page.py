"""A run's folder as one page: curves of every stage, what it is doing now, its recipe.

log.jsonl, recipe.toml ──write_page──> index.html (no scripts, nothing from elsewhere)
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

PANELS = (
    ("loss", r".*_loss"),
    ("accuracy", r".*_accuracy"),
    ("loss by source", r"(heldout_)?loss:.*"),
    ("gradient norm", r"norm(:.*)?"),
    ("tokens a second", r"tokens_s"),
)
"""Panels and the names of the figures that they show."""
WIDTH, HEIGHT, LEFT, BOTTOM = 420, 220, 52, 24
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b")
STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }
figure { display: inline-block; margin: 0 1rem 1rem 0; width: 440px; vertical-align: top; }
figcaption { font-weight: 600; }
svg text { font: 11px system-ui, sans-serif; fill: currentColor; }
svg .axis { stroke: currentColor; opacity: .35; }
table { border-collapse: collapse; }
td { padding: .1rem .8rem .1rem 0; }
pre { overflow-x: auto; }
.key { display: inline-block; margin-right: 1rem; }
"""


def write_page(run: Path) -> Path:
    """Write ``run``/index.html from what the run has logged so far; the page appears whole."""
    rows = _rows(run / "log.jsonl")
    stages: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:  # a resumed run repeats steps: the later row counts
        stages.setdefault(row["stage"], {})[row["step"]] = row
    body = "".join(_stage(name, [seen[step] for step in sorted(seen)]) for name, seen in stages.items())
    recipe = (run / "recipe.toml").read_text(encoding="utf-8") if (run / "recipe.toml").is_file() else ""
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(run.name)}</title>'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<style>{STYLE}</style><h1>{escape(run.name)}</h1>{body or '<p>Nothing logged yet.</p>'}"
        f"<details><summary>Recipe</summary><pre>{escape(recipe)}</pre></details></html>\n"
    )
    scratch = run / ".index.html.tmp"
    scratch.write_text(page, encoding="utf-8")
    return scratch.replace(run / "index.html")


def _rows(log: Path) -> list[dict[str, Any]]:
    """The rows of a log; one that a killed process left half written is left out."""
    found = []
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def _stage(name: str, rows: list[dict[str, Any]]) -> str:
    last = rows[-1]
    shown = {key: value for key, value in last.items() if key != "stage"}
    cells = "".join(f"<tr><td>{escape(str(k))}</td><td>{escape(str(v))}</td></tr>" for k, v in shown.items())
    panels = "".join(panel(title, rows, names) for title, names in PANELS)
    return f"<h2>{escape(name)}</h2>{panels}<details><summary>Last row</summary><table>{cells}</table></details>"


def _held_last(key: str) -> tuple[bool, str]:
    """Held-out curves lie over the others."""
    return key.startswith("heldout"), key


def panel(title: str, rows: Sequence[dict[str, Any]], names: str) -> str:
    """Curves over steps of the figures whose names match; held-out ones have dots. "" where there is none."""
    keys = sorted({key for row in rows for key in row if re.fullmatch(names, key)}, key=_held_last)
    curves = {key: [(row["step"], float(row[key])) for row in rows if key in row] for key in keys}
    curves = {key: points for key, points in curves.items() if points}
    if not curves:
        return ""
    steps = [x for points in curves.values() for x, _ in points]
    values = [y for points in curves.values() for _, y in points]
    low, high = min(values), max(values)
    span, first, length = (high - low) or 1.0, min(steps), (max(steps) - min(steps)) or 1

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - first) / length * (WIDTH - LEFT - 8)
        return round(across, 1), round(8 + (high - y) / span * (HEIGHT - BOTTOM - 8), 1)

    drawn, keys_shown = [], []
    for colour, (key, points) in zip(COLOURS * len(curves), curves.items(), strict=False):
        spots = [place(x, y) for x, y in points]
        path = " ".join(f"{x},{y}" for x, y in spots)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        if key.startswith("heldout"):
            drawn += [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in spots]
        keys_shown.append(f'<span class="key" style="color:{colour}">{escape(key)} {points[-1][1]:g}</span>')
    floor = HEIGHT - BOTTOM
    axes = (
        f'<path class="axis" d="M{LEFT},8V{floor}H{WIDTH - 8}" fill="none"/>'
        f'<text x="{LEFT - 4}" y="14" text-anchor="end">{high:.3g}</text>'
        f'<text x="{LEFT - 4}" y="{floor}" text-anchor="end">{low:.3g}</text>'
        f'<text x="{LEFT}" y="{HEIGHT - 6}">{min(steps)}</text>'
        f'<text x="{WIDTH - 8}" y="{HEIGHT - 6}" text-anchor="end">step {max(steps)}</text>'
    )
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img">{axes}{"".join(drawn)}</svg>'
    return f"<figure><figcaption>{escape(title)}</figcaption>{svg}<br>{''.join(keys_shown)}</figure>"
