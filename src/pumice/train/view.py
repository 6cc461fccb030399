"""What a person sees while a run trains: a line a logged row, a bar with time left, and the run's page.

row ──Printer──> line · bar (on a terminal) · index.html (once a minute)
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pumice.config import Stage
from pumice.train.page import write_page
from pumice.train.trackers import Tracker

PAGE_SECONDS = 60.0


class Reports:
    """Gives each row to the printer and to the trackers."""

    def __init__(self, printer: Printer, trackers: Sequence[Tracker] = ()) -> None:
        self.printer, self.trackers = printer, trackers

    def __call__(self, stage: Stage, row: dict[str, Any], steps: int) -> None:
        self.printer(stage, row, steps)
        figures = {key: value for key, value in row.items() if isinstance(value, int | float) and key != "step"}
        for tracker in self.trackers:
            tracker.log(stage.name, row["step"], figures)

    def step(self, stage: Stage, done: int, steps: int) -> None:
        self.printer.step(stage, done, steps)

    def close(self) -> None:
        self.printer.close()
        for tracker in self.trackers:
            tracker.close()


class Printer:
    """One line a logged row: progress, losses, throughput and time left; once a minute the run's page.

    On a terminal a bar under the lines moves with every step.
    """

    def __init__(self, run: Path | None = None, live: bool | None = None) -> None:
        self.run, self.written = run, -math.inf
        self.live = sys.stdout.isatty() if live is None else live
        self.bar: Progress | None = None
        self.task: Any = None
        self.stage = ""

    def __call__(self, stage: Stage, row: dict[str, Any], steps: int) -> None:
        if self.bar is not None:
            self.bar.console.print(self.line(stage, row, steps), highlight=False, markup=False, soft_wrap=True)
        else:
            print(self.line(stage, row, steps), flush=True)
        if self.run is not None and (time.monotonic() - self.written > PAGE_SECONDS or row["step"] == steps):
            self.written = time.monotonic()
            write_page(self.run)

    def step(self, stage: Stage, done: int, steps: int) -> None:
        """Move the bar."""
        if not self.live:
            return
        if self.bar is None:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, transient=True, speed_estimate_period=600.0)
            self.bar.start()
        if self.stage != stage.name:
            if self.task is not None:
                self.bar.remove_task(self.task)
            self.task, self.stage = self.bar.add_task(stage.name, total=steps, completed=done), stage.name
        self.bar.update(self.task, completed=done)

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def line(self, stage: Stage, row: dict[str, Any], steps: int) -> str:
        left = (steps - row["step"]) * row["step_s"]
        losses = "  ".join(f"{key} {value}" for key, value in row.items() if key.endswith(("_loss", "_accuracy")))
        skipped = f"  left out {row['skipped']}" if row.get("skipped") else ""
        mfu = f"  MFU {row['mfu']:.0%}" if "mfu" in row else ""
        days, rest = divmod(int(left), 86_400)
        clock = (f"{days} d " if days else "") + time.strftime("%H:%M:%S", time.gmtime(rest))
        return (
            f"{stage.name} {row['step']}/{steps}  {losses}  {row['pictures_s']} pictures/s  {row['tokens_s']} tokens/s"
            f"{mfu}  data {row['wait']:.0%}{skipped}  left {clock}"
        )
