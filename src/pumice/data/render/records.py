"""Receipts, forms, tables and charts with two more sorts of questions: all of it as data, and what isn't there.

describe ──> what the page says, Rendered ──whole + absent──> Rendered with more questions
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace

from pumice.data.render import absent, charts, forms, receipts, tables
from pumice.data.render.fonts import Split
from pumice.data.render.page import Question, Rendered
from pumice.data.render.sheet import ask

RECEIPT_SCHEMA = '{"shop": "", "date": "", "items": [{"name": "", "price": ""}], "total": ""}'
"""What receipts are written down as; all values are texts as printed."""

WHOLE = 0.4
"""Share of the pages that are asked for in full, as data."""
LIMIT = 600
"""Characters of the longest page that is."""


def receipt(rng: random.Random, split: Split) -> Rendered:
    """A receipt of `receipts`, some as JSON of RECEIPT_SCHEMA."""
    bill, page = receipts.describe(rng, split)
    return more(rng, page, [receipt_json(bill)], absent.on_receipt(rng, split, bill))


def receipt_json(bill: receipts.Bill) -> Question:
    """The whole receipt, in one form."""
    truth = {
        "shop": bill.shop,
        "date": bill.date,
        "items": [{"name": name, "price": price} for name, price in bill.items],
        "total": bill.total,
    }
    text = f"Write the receipt as JSON with texts as printed, in this form: {RECEIPT_SCHEMA}"
    return Question(text, json.dumps(truth, ensure_ascii=False), "receipt_json")


def form(rng: random.Random, split: Split) -> Rendered:
    """A form of `forms`, some as JSON from its labels to its values."""
    fields, page = forms.describe(rng, split)
    truth = {field.label: field.value for field in fields}
    whole = ask(
        rng,
        "form_json",
        "Write the form as JSON with its labels as keys.|Turn the form into JSON; the keys are its labels.",
        json.dumps(truth, ensure_ascii=False),
    )
    return more(rng, page, [whole] if len(truth) == len(fields) else [], absent.on_form(rng, fields))


def table(rng: random.Random, split: Split) -> Rendered:
    """A table of `tables`, some as Markdown, CSV or JSON."""
    grid, page = tables.describe(rng, split)
    missing = absent.in_table(rng, split, grid.key, [row[0] for row in grid.rows], grid.header[1:])
    return more(rng, page, [table_text(rng, "table", grid.header, grid.rows)], missing)


def chart(rng: random.Random, split: Split) -> Rendered:
    """A chart of `charts`, some with printed values as a table."""
    drawn, page = charts.describe(rng, split)
    numbers = drawn.numbers
    whole = []
    if drawn.labels:
        measure = numbers.columns[0] if drawn.measured else "Value"
        rows = [(label, drawn.show(i)) for i, label in enumerate(numbers.labels)]
        whole = [table_text(rng, "chart", (numbers.key.capitalize(), measure), rows)]
    return more(rng, page, whole, absent.in_chart(rng, split, numbers.key, numbers.labels))


def table_text(rng: random.Random, thing: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Question:
    """A table as Markdown, CSV or a list of JSON objects."""
    form = rng.choice(("Markdown", "Markdown", "CSV", "JSON"))
    if form == "Markdown":
        lines = [header, ["---"] * len(header), *rows]
        text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    elif form == "CSV":
        text = "\n".join(",".join(_quoted(cell) for cell in line) for line in (header, *rows))
    else:
        text = json.dumps([dict(zip(header, row, strict=True)) for row in rows], ensure_ascii=False)
    wording = "Write the {t} as {f}.|Turn the {t} into {f}.|Give the data of the {t} as {f}."
    return ask(rng, f"{thing}_data", wording, text, t=thing, f=form)


def _quoted(cell: str) -> str:
    return '"{}"'.format(cell.replace('"', '""')) if any(mark in cell for mark in ',"\n') else cell


def more(
    rng: random.Random,
    page: Rendered,
    whole: Sequence[Question],
    missing: Sequence[Question],
    share: float = WHOLE,
    limit: int = LIMIT,
) -> Rendered:
    """The page with more questions among its own: ``share`` of those about all of it, if their answers are no longer
    than ``limit`` characters, and some that it doesn't answer.
    """
    extra = [question for question in whole if rng.random() < share and len(question.answer) <= limit]
    extra += absent.some(rng, missing)
    questions = list(page.questions)
    for question in extra:
        questions.insert(rng.randint(0, len(questions)), question)
    return replace(page, questions=tuple(questions))
