"""Learning curves of a training run as a picture.

    python scripts/plot_run.py runs/pocket docs/figures/pocket-curves.png

One panel a stage: held-out accuracies of each loss term where they were measured, and the training figures behind them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

TERMS = {"read": "characters of each patch", "align": "LM tokens under each visual token", "answer": "answer tokens"}
COLOURS = {"read": "tab:blue", "align": "tab:orange", "answer": "tab:green"}


def main() -> None:
    """Read the run's log and write the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("figure", type=Path)
    options = parser.parse_args()
    rows = [json.loads(line) for line in (options.run / "log-0.jsonl").read_text().splitlines()]
    # A resumed run repeats the steps since its last checkpoint: the later row of a step counts.
    table = {(row["stage"], row["step"]): row for row in rows}
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    figure, panels = plt.subplots(1, len(stages), figsize=(5 * len(stages), 3.6), sharey=True, squeeze=False)
    for panel, stage in zip(panels[0], stages, strict=True):
        here = sorted((row for (name, _), row in table.items() if name == stage), key=lambda row: row["step"])
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
