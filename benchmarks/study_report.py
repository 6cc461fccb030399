"""study.json as tables and a plot: cells are compared on the items that all of a lever's have answered.

study.json ──row──> score, interval, costs by cell and task ──> Markdown, PNG
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import object_probe
from benchmarks.study_cells import CELLS, Cell
from pumice.eval.metrics.stats import wilson
from pumice.eval.metrics.strings import exact_match, pooled_error_rate, relaxed_match
from scripts.plot_run import read_stages

LEVERS = {
    "tiles": "Tiles",
    "tokens": "Tokens a tile",
    "tower": "Tower",
    "towers": "Towers averaged",
    "turns": "A reading turn first",
}
AS_TRAINED = {
    "tiles": "at most 4 (trained)",
    "tokens": "256 (trained)",
    "tower": "a = 1 (trained)",
    "towers": "as shipped",
    "turns": "question alone",
}
"""What the cell without a change is called beside the others of a lever."""


def load(out: Path) -> dict[str, Any]:
    """What ``out``/study.json has."""
    path = out / "study.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def row(answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A task's score: share right with Wilson's interval, or the character error rate of ``read``."""
    task, pairs = answers[0]["task"], [(one["text"], one["truth"]) for one in answers]
    cost = {"visual": [one["visual"] for one in answers], "first_ms": [one["first_ms"] for one in answers]}
    if task == "read":
        return {"task": task, "n": len(pairs), "score": pooled_error_rate(pairs), "interval": None} | cost
    match = relaxed_match if task == "chart_value" else exact_match
    right = sum(match(*pair) for pair in pairs)
    return {"task": task, "n": len(pairs), "score": right / len(pairs), "interval": wilson(right, len(pairs))} | cost


def compared(out: Path, lever: str) -> list[tuple[Cell, dict[str, dict[str, Any]]]]:
    """The cells of a lever, the one without a change among them, each with rows by task of the items that all have."""
    answers = load(out)["answers"]
    cells = [cell for cell in CELLS if cell.lever in ("", lever) and cell.name in answers]
    tasks = next(cell.tasks for cell in CELLS if cell.lever == lever)
    found = []
    for cell in sorted(cells, key=lambda cell: (cell.scale, cell.tiles, -cell.stride, cell.a, cell.reads)):
        rows = {}
        for task in (task for task in tasks if task in cell.tasks):
            n = min(sum(one["task"] == task for one in answers[other.name]) for other in cells if task in other.tasks)
            if n:
                rows[task] = row([one for one in answers[cell.name] if one["task"] == task][:n])
        found.append((cell, rows))
    return found


def cell_text(found: dict[str, Any] | None) -> str:
    """A score in per cent with its interval."""
    if found is None:
        return ""
    ends = found["interval"]
    spread = f" ({100 * ends[0]:.0f}-{100 * ends[1]:.0f})" if ends else ""
    return f"{100 * found['score']:.1f}{spread}"


def tables(out: Path) -> str:
    """Markdown: a table for each lever, the trained cell in each, and the probe."""
    parts = []
    for lever, title in LEVERS.items():
        if not any(cell.lever == lever and cell.name in load(out)["answers"] for cell in CELLS):
            continue
        tasks = next(cell.tasks for cell in CELLS if cell.lever == lever)
        head = ["", "n a task", *(f"{task} (CER %, low is good)" if task == "read" else f"{task} %" for task in tasks)]
        lines = [[*head, "visual tokens", "CPU ms to first text"], ["---"] * (len(head) + 2)]
        for cell, rows in compared(out, lever):
            ns = sorted({one["n"] for one in rows.values()})
            common = [rows[task] for task in tasks if task != "read" and task in rows]
            visual = statistics.mean(x for one in common for x in one["visual"])
            first = statistics.median(x for one in common for x in one["first_ms"])
            scores = [cell_text(rows.get(task)) for task in tasks]
            lines.append(
                [cell.label or AS_TRAINED[lever], "-".join(map(str, ns)), *scores, f"{visual:.0f}", f"{first:.0f}"]
            )
        parts.append(f"### {title}\n\n" + "\n".join(f"| {' | '.join(one)} |" for one in lines))
    shares = load(out).get("probe", {})
    if shares:
        blocks = object_probe.BLOCKS
        lines = [f"| a | {' | '.join(f'block {b} %' for b in blocks)} |", f"|{' --- |' * (len(blocks) + 1)}"]
        lines += [f"| {a} | {' | '.join(f'{100 * x:.0f}' for x in shares[a])} |" for a in sorted(shares, key=float)]
        parts.append("### Objects named by a linear probe\n\n" + "\n".join(lines))
    return "\n\n".join([*parts, trained_tokens()]) + "\n"


def trained_tokens() -> str:
    """Held-out accuracies of the runs with 64 and 256 tokens a tile, wherever they were measured, from their logs."""
    lines = ["| tokens a tile | stage | pages | held out, teacher-forced % |", "|---|---|---|---|"]
    for tokens in (64, 256):
        for stage, rows in read_stages(Path(f"docs/pocket-runs/tokens-{tokens}")).items():
            key = f"heldout_{stage}_accuracy"
            measured = [one for one in rows if key in one]
            lines += [f"| {tokens} | {stage} | {one['pictures']:,} | {100 * one[key]:.1f} |" for one in measured]
    return "### Tokens a tile, trained\n\n" + "\n".join(lines)


def plot(out: Path, path: Path) -> None:
    """Right answers over tiles' and tokens' costs, and along the line between the towers."""
    from matplotlib.figure import Figure

    shares = load(out).get("probe", {})
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    panels = figure.subplots(1, 3)
    for panel, lever in zip(panels, ("tiles", "tokens", "tower"), strict=True):
        cells = compared(out, lever)
        for task in dict.fromkeys(task for _, rows in cells for task in rows):
            mine = [(cell, rows[task]) for cell, rows in cells if task in rows]
            across = [cell.a if lever == "tower" else statistics.mean(one["visual"]) for cell, one in mine]
            good = [100 * (max(0.0, 1 - one["score"]) if task == "read" else one["score"]) for _, one in mine]
            panel.plot(across, good, marker="o", label="read (100 - CER)" if task == "read" else task)
        if lever == "tower" and shares:
            at = sorted(shares, key=float)
            panel.plot(
                [float(a) for a in at], [100 * shares[a][-1] for a in at], "k--", marker="s", label="probe, block 12"
            )
        panel.set_title(LEVERS[lever])
        panel.set_xlabel("a in (1 - a) DINOv2 + a trained" if lever == "tower" else "mean visual tokens of the task")
        panel.set_ylim(0, 102)
        panel.legend(fontsize=8)
    panels[0].set_ylabel("right %")
    figure.savefig(path, dpi=110)
