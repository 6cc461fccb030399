"""A report as one static page: scores, costs, differences, the worst samples and what changed, provenance.

Report + provenance ──> to_html (no scripts, nothing from elsewhere)
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from pumice.eval import cost
from pumice.eval.metrics.strings import character_error_rate
from pumice.eval.report import baseline
from pumice.eval.report.summary import HEAD, caption, cells

if TYPE_CHECKING:
    from PIL import Image

    from pumice.eval.report.baseline import Contrast
    from pumice.eval.suite.scoring import Report, Result, Row

WORST = 4
"""Samples of each task on the page."""
CHANGED = 4
"""Samples of each task that changed for the worse, and as many for the better."""

STYLE = """
:root { color-scheme: light dark; --rule: #8884; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; } .wide { overflow-x: auto; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--rule); text-align: right; white-space: nowrap; }
th:first-child, td:first-child, .text { text-align: left; }
tr.group { font-weight: 600; }
tbody + tbody tr:first-child td { border-top: 2px solid var(--rule); }
.facts td { white-space: normal; text-align: left; overflow-wrap: anywhere; vertical-align: top; }
.facts td:first-child { white-space: nowrap; }
meter { width: 6rem; }
code, pre { overflow-wrap: anywhere; white-space: pre-wrap; }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); gap: 1rem; }
figure { margin: 0; } figure img { max-width: 100%; border: 1px solid var(--rule); }
figcaption { font-size: .85rem; overflow-wrap: anywhere; white-space: pre-wrap; }
.truth { color: #1a7f37; } .answer { color: #c0362c; }
@media (prefers-color-scheme: dark) { .truth { color: #57c878; } .answer { color: #ff8078; } }
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def to_html(report: Report, about: dict[str, Any]) -> str:
    """The page, in light or dark as the reader's system is."""
    parts = [
        f"<h1>Embedded table: {escape(about['model'])}</h1><pre>$ {escape(about['command'])}</pre>",
        f"<p>{escape(caption(about))}</p>",
        _scores(report),
    ]
    if report.cost:
        parts.append(f"<h2>Cost</h2>{facts(cost.lines(report.cost))}")
    if report.against:
        parts.append(_against(report, report.against))
    parts.append("<h2>Worst answers</h2>")
    for row in report.rows:
        samples = [_sample(report, result) for result in worst(report, row.name)]
        parts.append(f"<h3>{escape(row.name)}</h3>{_grid(samples) if samples else '<p>No wrong answer.</p>'}")
    parts.append(f"<h2>Provenance</h2>{provenance_table(about)}")
    return page(f"Pumice: {about['model']}", STYLE, "\n".join(parts))


def page(title: str, style: str, body: str) -> str:
    """A whole page that loads nothing and runs nothing."""
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{escape(title)}</title><style>{style}</style>\n{body}</html>\n"
    )


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and values as a table of two columns."""
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in pairs)
    return f'<table class="facts">{rows}</table>'


def table(head: Sequence[str], bodies: Sequence[Sequence[Sequence[str]]], left: Sequence[str] = ()) -> str:
    """A table of HTML cells; ``bodies`` are apart by a thick line, the second one bold. ``left`` names text columns."""
    sides = ['class="text"' if name in left else "" for name in head]
    top = "".join(f'<th scope="col" {side}>{escape(name)}</th>' for name, side in zip(head, sides, strict=True))
    shown = ""
    for number, body in enumerate(bodies):
        rows = "".join(
            f'<tr class="{"group" if number else ""}">'
            + "".join(f"<td {side}>{cell}</td>" for cell, side in zip(row, sides, strict=True))
            + "</tr>\n"
            for row in body
        )
        shown += f"<tbody>{rows}</tbody>"
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead>{shown}</table></div>'


def _scores(report: Report) -> str:
    bodies = [[_score_cells(row) for row in rows] for rows in (report.rows, report.groups)]
    return table((*HEAD[:4], "", *HEAD[4:]), bodies, ("task", "metric", "also"))


def _score_cells(row: Row) -> list[str]:
    texts = [escape(text) for text in cells(row)]
    bar = "" if row.metric == "CER" else f'<meter min="0" max="1" value="{row.score:.4f}"></meter>'
    return [*texts[:4], bar, *texts[4:]]


def _against(report: Report, against: Contrast) -> str:
    """Differences, then what changed of each task: first for the worse, then for the better."""
    bodies = [
        [[escape(text) for text in baseline.cells(row)] for row in rows] for rows in (against.rows, against.groups)
    ]
    parts = [f"<h2>{escape(baseline.title(against))}</h2>{table(baseline.HEAD, bodies)}<p>{escape(baseline.NOTE)}</p>"]
    for row in report.rows:
        for name, places in (("right before, wrong now", against.lost), ("wrong before, right now", against.won)):
            mine = [place for place in places if report.results[place].item.task == row.name]
            if mine:
                shown = [_sample(report, report.results[i], against.earlier.answers[i]) for i in mine[:CHANGED]]
                some = f"{len(mine)}" + f", {len(shown)} of them here" * (len(shown) < len(mine))
                parts.append(f"<h3>{escape(row.name)}: {name} ({some})</h3>{_grid(shown)}")
    return "\n".join(parts)


def worst(report: Report, task: str, count: int = WORST) -> list[Result]:
    """The task's wrong answers, the furthest from the truth first; those that are missing count as wrong."""
    mine = [result for result in report.results if result.item.task == task]
    wrong = [result for result in mine if result.skipped or not baseline.right(result.score, task)]
    return sorted(wrong, key=lambda r: -character_error_rate(r.answer, r.item.truth))[:count]


def _grid(samples: Sequence[str]) -> str:
    return f'<div class="samples">{"".join(samples)}</div>'


def _sample(report: Report, result: Result, before: str | None = None) -> str:
    """A picture with question, truth and answer, and what was answered over another picture or ``before``."""
    item = result.item
    picture = thumbnail(report.suite.open(item.picture))
    right = not result.skipped and baseline.right(result.score, item.task)
    colour = "truth" if right else "answer"
    said = result.answer or (f"(no answer: {result.skipped})" if result.skipped else "(nothing)")
    notes = [("before", before), ("over another picture", result.blind_answer if before is None else None)]
    beside = "".join(f"\n{name}: {escape(text or '(nothing)')}" for name, text in notes if text is not None)
    return (
        f'<figure><img src="data:image/jpeg;base64,{picture}" alt="{escape(item.picture)}" loading="lazy">'
        f'<figcaption>{escape(item.question)}\ntruth: <span class="truth">{escape(item.truth)}</span>\n'
        f'answer: <span class="{colour}">{escape(said)}</span>{beside}</figcaption></figure>\n'
    )


def thumbnail(image: Image.Image) -> str:
    """A small JPEG in base64: a page of all tasks stays under a megabyte or so."""
    buffer = io.BytesIO()
    image.thumbnail((336, 336))
    image.save(buffer, "JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()


def provenance_table(about: dict[str, Any]) -> str:
    """What there is to know, a row each; what is nested a row for each part."""
    rows: list[tuple[str, str]] = []
    for name, value in about.items():
        if isinstance(value, dict):
            rows += [(f"{name}: {key}", _text(part)) for key, part in value.items()]
        elif value is not None:
            rows.append((name, _text(value)))
    return facts(rows)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
