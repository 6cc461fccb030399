"""Learning curves of training runs as a picture, and what they took.

    python scripts/plot_run.py runs/pocket docs/figures/pocket-curves.png

Several runs, one begun from the other's weights, may be given in their order. One panel a stage: held-out accuracies of
each loss term where they were measured, and the training figures behind them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

TERMS = {"read": "characters of each patch", "align": "LM tokens under each visual token", "answer": "answer tokens"}
COLOURS = {"read": "tab:blue", "align": "tab:orange", "answer": "tab:green"}


def read_stages(run: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows of each stage in the order of their steps.

    A resumed run repeats the steps since its last checkpoint: the later row of a step counts.
    """
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    table = {(row["stage"], row["step"]): row for row in rows}
    stages: dict[str, list[dict[str, Any]]] = {row["stage"]: [] for row in rows}
    for stage, step in sorted(table):
        stages[stage].append(table[stage, step])
    for found in stages.values():
        count_pictures(found)
    return stages


def count_pictures(rows: list[dict[str, Any]]) -> None:
    """Put the pictures that a stage has really had into its rows: a log counts as if its batch had never changed."""
    done = seen = 0
    for row in rows:
        batch = round(row["pictures_s"] * row["step_s"])
        seen += batch * (row["step"] - done)
        done, row["pictures"] = row["step"], seen


def print_totals(run: Path, stage: str, rows: list[dict[str, Any]]) -> None:
    """Pictures and wall time of a stage; time between the last checkpoint and a stop is not in it."""
    steps = [row["step"] for row in rows]
    counts = [after - before for before, after in zip([0, *steps], steps, strict=False)]
    counts[0] = min(counts[0], counts[-1])  # a log may begin after the first step
    hours = sum(row["step_s"] * count for row, count in zip(rows, counts, strict=True)) / 3600
    held = {key: value for row in rows for key, value in row.items() if key.startswith("heldout_")}
    print(f"{run.name} {stage}: {rows[-1]['pictures']} pictures, {hours:.2f} h of wall time, at the end {held}")


def print_heldout(rows: list[dict[str, Any]]) -> None:
    """Held-out accuracies wherever they were measured."""
    for row in rows:
        held = {term: row[key] for term in TERMS if (key := f"heldout_{term}_accuracy") in row}
        if held:
            print(f"    {row['pictures']} pictures: {held}")


def main() -> None:
    """Read the runs' logs, print their totals and write the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("figure", type=Path)
    parser.add_argument("--heldout", action="store_true", help="print all held-out accuracies too")
    options = parser.parse_args()
    found = [(run, stage, rows) for run in options.runs for stage, rows in read_stages(run).items()]
    figure, panels = plt.subplots(1, len(found), figsize=(5 * len(found), 3.6), sharey=True, squeeze=False)
    for panel, (run, stage, here) in zip(panels[0], found, strict=True):
        print_totals(run, stage, here)
        if options.heldout:
            print_heldout(here)
        for term, label in TERMS.items():
            seen = [(row["pictures"], row[f"{term}_accuracy"]) for row in here if f"{term}_accuracy" in row]
            held = [(row["pictures"], row[key]) for row in here if (key := f"heldout_{term}_accuracy") in row]
            if seen:
                panel.plot(*zip(*seen, strict=True), color=COLOURS[term], alpha=0.35, linewidth=1)
            if held:
                panel.plot(*zip(*held, strict=True), "o-", color=COLOURS[term], markersize=3, label=label)
        panel.set_title(stage)
        panel.set_xlabel("pictures")
        panel.grid(alpha=0.3)
        panel.legend(loc="lower right", fontsize=7)
    panels[0][0].set_ylabel("accuracy, teacher-forced (line: training, dots: held out)", fontsize=8)
    figure.tight_layout()
    options.figure.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.figure, dpi=110)


if __name__ == "__main__":
    main()
