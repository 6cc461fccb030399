"""How a report is shown: a table in the terminal, JSON with every answer, and one HTML page with the worst samples.

Report + provenance (what was run, on what) ──> print_table · to_json · to_html
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from pumice.eval.metrics import character_error_rate

if TYPE_CHECKING:
    from PIL import Image

    from pumice.eval.embedded import Report, Result, Row

WORST = 4
"""Samples of each task on the HTML page."""


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int], None]]:
    """A bar with the rate and the time left, on standard error; yields a function to call with (done, in all).

    Where standard error is a file, a line every half minute stands for the bar.
    """
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(), TimeRemainingColumn(elapsed_when_finished=True), console=console,
        disable=not console.is_terminal,
    )  # fmt: skip
    began = said = time.monotonic()
    with bar:
        task = bar.add_task("rendering", total=None, rate="")

        def step(done: int, total: int) -> None:
            nonlocal said
            now = time.monotonic()
            rate = done / max(now - began, 1e-9)
            bar.update(task, completed=done, total=total, description="asking", rate=f"{rate:.1f} questions/s")
            if not console.is_terminal and (now - said > 30 or done == total):
                said = now
                left = (total - done) / rate if rate else 0.0
                console.print(f"{done}/{total} questions, {rate:.1f} a second, {left:.0f} s left", highlight=False)

        yield step


def provenance(model: str, report: Report) -> dict[str, Any]:
    """What was run and on what: command line, versions, machine, hashes of the items and of the weights."""
    results = report.results
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "model": model,
        "weights_sha256": weights_sha256(model),
        "items_sha256": report.suite.sha256,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **_versions("pumice", "torch", "transformers", "pillow")},
        "machine": platform.platform(),
        "seconds": round(report.seconds, 1),
        "visual_tokens_mean": statistics.fmean(r.visual_tokens for r in results),
        "tokens_mean": statistics.fmean(r.tokens for r in results),
        "ms_median": statistics.median(r.ms for r in results),
    }


def _versions(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


def weights_sha256(model: str) -> str | None:
    """sha256 in hex over the names and bytes of the safetensors files of "pocket" or of a run's folder; None without.

    The pretrained parts below a run's weights aren't in it: pocket/parts.py pins them by their own hashes.
    """
    folder = Path(__file__).parents[1] / "pocket" / "weights" if model == "pocket" else Path(model)
    files = sorted(folder.glob("*.safetensors"))
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


def print_table(report: Report, about: dict[str, Any]) -> None:
    """The table on standard output, the command line above and what it was run on below."""
    # As Text, or rich would take brackets in a command or a path for its markup.
    title, caption = Text(f"$ {about['command']}"), Text(_caption(about))
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
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


def _caption(about: dict[str, Any]) -> str:
    weights = (about["weights_sha256"] or "unknown")[:12]
    return (
        f"{about['model']}, weights {weights}, items {about['items_sha256'][:12]}, {about['seconds']} s, "
        f"{about['visual_tokens_mean']:.0f} visual tokens a question, {about['ms_median']:.0f} ms (median).\n"
        "blind: the same questions over shuffled pictures. constant: the best single answer to all of a task."
    )


def to_json(report: Report, about: dict[str, Any]) -> str:
    """Everything but the pictures, which their seeds give again."""
    body = {
        "about": about,
        "rows": [asdict(row) for row in report.rows],
        "groups": [asdict(row) for row in report.groups],
        "items": [asdict(result) for result in report.results],
    }
    return json.dumps(body, indent=1, ensure_ascii=False) + "\n"


def worst(report: Report, task: str, count: int = WORST) -> list[Result]:
    """The task's wrong answers, the furthest from the truth first."""
    wrong = [r for r in report.results if r.item.task == task and (r.score > 0 if task == "read" else r.score == 0)]
    return sorted(wrong, key=lambda r: -character_error_rate(r.answer, r.item.truth))[:count]


STYLE = """
:root { color-scheme: light dark; --rule: #8884; --bar: #3b82c4; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; } .wide { overflow-x: auto; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--rule); text-align: right; white-space: nowrap; }
td:is(:first-child, :nth-child(3), :last-child), th:is(:first-child, :nth-child(3), :last-child) { text-align: left; }
tr.group { font-weight: 600; }
meter { width: 6rem; }
code, pre { overflow-wrap: anywhere; white-space: pre-wrap; }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); gap: 1rem; }
figure { margin: 0; } figure img { max-width: 100%; border: 1px solid var(--rule); }
figcaption { font-size: .85rem; overflow-wrap: anywhere; white-space: pre-wrap; }
.truth { color: #1a7f37; } .answer { color: #c0362c; }
@media (prefers-color-scheme: dark) { .truth { color: #57c878; } .answer { color: #ff8078; } }
"""


def to_html(report: Report, about: dict[str, Any]) -> str:
    """One page without anything from elsewhere: the table, and each task's worst samples with their pictures."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in (*HEAD[:4], "", *HEAD[4:]))
    body = "".join(_table_row(row, "") for row in report.rows)
    body += "".join(_table_row(row, "group") for row in report.groups)
    parts = [
        '<!doctype html>\n<html lang="en"><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Pumice: {escape(about['model'])}</title><style>{STYLE}</style>",
        f"<h1>Embedded table: {escape(about['model'])}</h1><pre>$ {escape(about['command'])}</pre>",
        f"<p>{escape(_caption(about))}</p>",
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>',
    ]
    for row in report.rows:
        samples = "".join(_sample(report, result) for result in worst(report, row.name))
        parts.append(f"<h2>{escape(row.name)}</h2>")
        parts.append(f'<div class="samples">{samples}</div>' if samples else "<p>No wrong answer.</p>")
    details = escape(json.dumps(about, indent=1, ensure_ascii=False))
    parts.append(f"<h2>Provenance</h2><pre>{details}</pre></html>\n")
    return "\n".join(parts)


def _table_row(row: Row, style: str) -> str:
    texts = [f"<td>{escape(text)}</td>" for text in cells(row)]
    bar = "" if row.metric == "CER" else f'<meter min="0" max="1" value="{row.score:.4f}"></meter>'
    texts.insert(4, f"<td>{bar}</td>")
    return f'<tr class="{style}">{"".join(texts)}</tr>\n'


def _sample(report: Report, result: Result) -> str:
    item = result.item
    picture = _thumbnail(report.suite.open(item.picture))
    blind = result.blind_answer
    shuffled = "" if blind is None else f"\nover another picture: {escape(blind or '(nothing)')}"
    return (
        f'<figure><img src="data:image/jpeg;base64,{picture}" alt="{escape(item.picture)}" loading="lazy">'
        f'<figcaption>{escape(item.question)}\n<span class="truth">{escape(item.truth)}</span>\n'
        f'<span class="answer">{escape(result.answer or "(nothing)")}</span>{shuffled}</figcaption></figure>\n'
    )


def _thumbnail(image: Image.Image) -> str:
    """A small JPEG in base64: a page of all tasks stays under a megabyte or so."""
    buffer = io.BytesIO()
    image.thumbnail((336, 336))
    image.save(buffer, "JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()
