"""What a run says of itself: sums between two logged rows, and the line that a person reads.

terms and batches of each step ──Meter──> row (losses, accuracies, throughput, waiting) ──> JSONL, one line
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pumice.config import Stage
from pumice.train.objectives import Term
from pumice.train.page import write_page
from pumice.types import Batch

PAGE_SECONDS = 60.0


@dataclass
class Meter:
    """Sums since the last logged row."""

    began: float = field(default_factory=time.monotonic)
    waited: float = 0.0
    pictures: int = 0
    tokens: int = 0
    supervised: int = 0
    steps: int = 0
    norm: float = 0.0
    sums: dict[str, list[float]] = field(default_factory=dict)

    def add(self, terms: Sequence[Term], batches: Sequence[Batch], norm: float = 0.0) -> None:
        """One step: its terms, batches, and the gradient's norm before clipping."""
        self.steps += 1
        self.norm += norm
        for batch in batches:
            self.pictures += len(batch.layouts)
            self.tokens += len(batch.ids)
            self.supervised += batch.supervised
        for term in terms:
            sums = self.sums.setdefault(term.name, [0.0, 0.0, 0.0, 0.0])
            for i, value in enumerate((float(term.total), float(term.count), term.right, term.items)):
                sums[i] += value

    def row(self) -> dict[str, Any]:
        """Loss and accuracy a term (of this worker's samples), throughput of this worker, share of waiting for data."""
        seconds = time.monotonic() - self.began
        row: dict[str, Any] = {}
        for name, (total, count, right, items) in self.sums.items():
            row[f"{name}_loss"] = round(total / max(count, 1.0), 4)
            row[f"{name}_accuracy"] = round(right / max(items, 1.0), 4)
        row["pictures_s"] = round(self.pictures / seconds, 3)
        row["tokens_s"] = round(self.tokens / seconds, 1)
        row["wait"] = round(self.waited / seconds, 3)
        row["norm"] = round(self.norm / max(1, self.steps), 4)
        row["step_s"] = round(seconds / max(1, self.steps), 2)
        return row


class Printer:
    """One line a logged row: progress, losses, throughput and time left; and, once a minute, the run's page."""

    def __init__(self, run: Path | None = None) -> None:
        self.run, self.written = run, -math.inf

    def __call__(self, stage: Stage, row: dict[str, Any], steps: int) -> None:
        self.line(stage, row, steps)
        if self.run is not None and (time.monotonic() - self.written > PAGE_SECONDS or row["step"] == steps):
            self.written = time.monotonic()
            write_page(self.run)

    def line(self, stage: Stage, row: dict[str, Any], steps: int) -> None:
        left = (steps - row["step"]) * row["step_s"]
        losses = "  ".join(f"{key} {value}" for key, value in row.items() if key.endswith(("_loss", "_accuracy")))
        skipped = f"  left out {row['skipped']}" if row.get("skipped") else ""
        print(
            f"{stage.name} {row['step']}/{steps}  {losses}  {row['pictures_s']} pictures/s  {row['tokens_s']} tokens/s "
            f"a worker  data {row['wait']:.0%}{skipped}  left {time.strftime('%H:%M:%S', time.gmtime(left))}",
            flush=True,
        )
