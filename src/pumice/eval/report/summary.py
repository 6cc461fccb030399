"""How a report is shown: a table in the terminal, and JSON with every answer. The page is in `page`.

Report + provenance (what was run, on what) ──> print_table · to_json
"""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from pumice.eval import cost
from pumice.eval.report import baseline
from pumice.pocket.parts import READER, WEIGHTS

if TYPE_CHECKING:
    from pumice.eval.suite.scoring import Report, Row

WINDOW = 90.0
"""Seconds that a rate is measured over."""


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int], None]]:
    """A bar with the rate and the time left, on standard error; yields a function to call with (done, in all).

    The rate is that of the last minute or two, so that answers from a journal don't count for long. Where standard
    error is a file, a line every half minute stands for the bar.
    """
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(), TimeRemainingColumn(elapsed_when_finished=True), console=console,
        disable=not console.is_terminal,
    )  # fmt: skip
    said = time.monotonic()
    marks = deque([(said, 0)], 64)
    with bar:
        task = bar.add_task("rendering", total=None, rate="")

        def step(done: int, total: int) -> None:
            nonlocal said
            now = time.monotonic()
            since = next((one for one in marks if now - one[0] < WINDOW), marks[-1])
            rate = (done - since[1]) / max(now - since[0], 1e-9)
            marks.append((now, done))
            bar.update(task, completed=done, total=total, description="asking", rate=f"{rate:.1f} questions/s")
            if not console.is_terminal and (now - said > 30 or done == total):
                said = now
                left = (total - done) / rate if rate else 0.0
                console.print(f"{done}/{total} questions, {rate:.1f} a second, {left:.0f} s left", highlight=False)

        yield step


def provenance(model: str, report: Report, assistant: object = None) -> dict[str, Any]:
    """`run_facts`, and of a report the hash of its items and the means of its costs."""
    results = report.results
    return {
        **run_facts(model, assistant),
        "items_sha256": report.suite.sha256,
        "seconds": round(report.seconds, 1),
        "visual_tokens_mean": statistics.fmean(r.visual_tokens for r in results),
        "tokens_mean": statistics.fmean(r.tokens for r in results),
        "ms_median": statistics.median(r.ms for r in results),
    }


def run_facts(model: str, assistant: object = None) -> dict[str, Any]:
    """What was run and on what: command line, versions, machine, hash of the weights.

    A pipeline isn't a folder with weights: its own ``provenance`` says what it is ("description", "versions", ...).
    """
    pipeline = dict(getattr(assistant, "provenance", None) or {})
    reader = getattr(assistant, "reader", None) is not None
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "model": model,
        "weights_sha256": None if pipeline else weights_sha256(model, reader),
        "pipeline": pipeline or None,
        "reader": reader,
        "decoded_with": getattr(assistant, "weights", "") or None,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **versions("pumice", "torch", "transformers", "pillow")},
        "machine": platform.platform(),
        **cost.machine(assistant),
    }


def versions(*names: str) -> dict[str, str]:
    """The installed versions of packages."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


def weights_sha256(model: str, reader: bool = False) -> str | None:
    """sha256 in hex over the names and bytes of the safetensors files of "pocket" or of a run's folder; None without.

    The pretrained parts below a run's weights aren't in it: pocket/parts.py pins them by their own hashes. Pocket
    beside a ``reader`` has a second file.
    """
    folder = Path(model)
    # A run that trained the whole language model keeps its weights one folder down.
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("model/*.safetensors"))
    if model == "pocket":
        files = [WEIGHTS, READER] if reader else [WEIGHTS]
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest() if files else None


HEAD = ("task", "n", "metric", "score %", "95%", "blind %", "constant %", "chance %", "also")


def cells(row: Row) -> tuple[str, ...]:
    """A row's texts under HEAD; all scores in per cent."""
    spread = f"{_percent(row.interval[0])}-{_percent(row.interval[1])}" if row.interval else ""
    also = ", ".join(f"{name} {_percent(value)}" for name, value in row.also.items())
    scores = (_percent(row.score), spread, _percent(row.blind), _percent(row.constant), _percent(row.chance), also)
    return (row.name, str(row.n), row.metric + " (low is good)" * (row.metric == "CER"), *scores)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def print_table(report: Report, about: dict[str, Any], with_cost: bool = False) -> None:
    """The table on standard output, the command line above and what it was run on below.

    Differences to a baseline are a table of their own; the line of costs is printed only ``with_cost``.
    """
    # As Text, or rich would take brackets in a command or a path for its markup.
    title, below = Text(f"$ {about['command']}"), Text(caption(about))
    table = Table(title=title, title_justify="left", caption=below, caption_justify="left")
    for name in HEAD:
        table.add_column(name, justify="left" if name in ("task", "metric", "also") else "right")
    for row in report.rows:
        table.add_row(*cells(row))
    table.add_section()
    for row in report.groups:
        table.add_row(*cells(row), style="bold")
    console = Console()
    if not console.is_terminal:  # a file or a pipe has no width: nothing needs to be folded there
        console.width = 140
    console.print(table, highlight=False)
    if with_cost and report.cost:
        console.print(Text(cost.sentence(report.cost)))
    if report.against:
        console.print(_differences(report.against))


def _differences(against: baseline.Contrast) -> Table:
    table = Table(
        title=Text(baseline.title(against)), title_justify="left", caption=Text(baseline.NOTE), caption_justify="left"
    )
    for name in baseline.HEAD:
        table.add_column(name, justify="left" if name == "task" else "right")
    for row in against.rows:
        table.add_row(*baseline.cells(row))
    table.add_section()
    for row in against.groups:
        table.add_row(*baseline.cells(row), style="bold")
    return table


def caption(about: dict[str, Any]) -> str:
    """What was run on what, and how to read the columns."""
    weights = f"weights {(about['weights_sha256'] or 'unknown')[:12]}"
    what = about["pipeline"]["description"] if about["pipeline"] else weights
    threads = f"{about['threads']} thread{'s' * (about['threads'] > 1)}"
    return (
        f"{about['model']}: {what}; items {about['items_sha256'][:12]}; {about['seconds']} s on {about['device']}, "
        f"{threads}; {about['visual_tokens_mean']:.0f} visual tokens a question, {about['ms_median']:.0f} ms (median "
        "in its batch).\n"
        "blind: the same questions over shuffled pictures. constant: the best single answer to all of a task."
    )


def to_json(report: Report, about: dict[str, Any]) -> str:
    """Everything but the pictures, which their seeds give again."""
    body = {
        "about": about,
        "rows": [asdict(row) for row in report.rows],
        "groups": [asdict(row) for row in report.groups],
        "cost": asdict(report.cost) if report.cost else None,
        "against": report.against.plain() if report.against else None,
        "items": [asdict(result) for result in report.results],
    }
    return json.dumps(body, indent=1, ensure_ascii=False) + "\n"
