"""Receipts, forms and charts as lines of text alone, in arrangements drawn at random: to learn what a line is by what
it says.

rng, split ──> what a page says ──Manner──> blocks of rows, in any order ──> lines with boxes, no picture

The renderers' layouts of training are few, and a small language model learns them: that goods come before the total,
that a value follows its label. Here nearly nothing is fixed. Labels stand before, after, above or under their values,
prices likewise beside goods, and blocks in any order; so that what is drawn elsewhere in a way of its own is probably
among them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from PIL import Image

from pumice.data.render import absent, charts, forms, plots, receipts, records, sheet
from pumice.data.render.fonts import Split
from pumice.data.render.form_fields import KINDS
from pumice.data.render.page import Question, Rendered
from pumice.reader.lines import Line

Cell = tuple[str, float, float]
"""A text, the place of one of its points as a share of the page's width, and which: 0 is its left edge, 1 its right."""
Row = tuple[float, tuple[Cell, ...]]
"""Room above it in heights of a line, and its cells from left to right."""

_T = TypeVar("_T")

LEFT, MIDDLE, RIGHT = (0.0, 0.0), (0.5, 0.5), (1.0, 1.0)
CHAR = 0.52
"""Width of a character in heights of a line."""
MOST_GOODS, MOST_FIELDS = 9, 9
WHOLE, LONGEST = 0.85, 800
"""Share of the receipts that are asked for in full, and the most characters of such an answer."""
MISSING = (0, 1, 1, 2)
"""How many questions a page is asked that it doesn't answer. Without as many, the answer to them is soon forgotten."""
_FEET = ("Thank you!", "Paid by card", "Paid in cash", "Visa", "See you soon", "Card payment", "Served by 04", "Copy")


@dataclass(frozen=True)
class Manner:
    """How two texts stand that belong together: in a row, in a column, or in one line, and which is the first.

    ``mark`` follows the label, ``at`` are the places of the two in a row, ``inside`` is the room between them in a
    column and ``above`` that before them, both in heights of a line.
    """

    how: Literal["row", "column", "line"]
    label_first: bool
    mark: str
    at: tuple[tuple[float, float], tuple[float, float]]
    inside: float
    above: float

    def rows(self, label: str, value: str) -> list[Row]:
        """The rows of a label and its value."""
        one, two = (label + self.mark, value) if self.label_first else (value, label + self.mark)
        if self.how == "line":
            return [(self.above, ((f"{one} {two}", *self.at[0]),))]
        if self.how == "row":
            return [(self.above, ((one, *self.at[0]), (two, *self.at[1])))]
        return [(self.above, ((one, *self.at[0]),)), (self.inside, ((two, *self.at[0]),))]


def draw_manner(rng: random.Random, marks: Sequence[str], last: float = 0.4) -> Manner:
    """A manner; in the share ``last`` the label is the second."""
    how: Literal["row", "column", "line"] = rng.choices(("row", "column", "line"), (5, 3, 1))[0]  # type: ignore[assignment]
    column = rng.uniform(0.25, 0.6)
    beside = rng.choice(
        ((LEFT, RIGHT), (LEFT, RIGHT), (LEFT, LEFT), (LEFT, (column, 0.0)), ((column, 1.0), (column, 0.0)))
    )
    under = rng.choice((LEFT, LEFT, LEFT, MIDDLE, RIGHT))
    inside, above = rng.uniform(0.1, 0.5), rng.uniform(0.1, 1.2)
    if how == "column" and rng.random() < 0.85:  # or nothing but the words would say what belongs together
        above = inside + rng.uniform(0.5, 1.6)
    at = beside if how == "row" else (under, under)
    first = rng.random() >= last
    return Manner(how, first, rng.choice(marks) if first or rng.random() < 0.2 else "", at, inside, above)


def receipt(rng: random.Random, split: Split) -> Rendered:
    """A receipt of the renderer's goods and sums; head, place, goods, sums and foot stand in any order."""
    rng = sheet.stream(rng, f"receipt lines {split}")
    bill = receipts.make_bill(rng, split, rng.randint(1, MOST_GOODS))
    plain, sums = rng.choice((LEFT, LEFT, MIDDLE, RIGHT)), draw_manner(rng, ("", "", "", ":"), 0.2)
    place: list[Row] = [(rng.uniform(0.1, 0.6), ((text, *plain),)) for text in (bill.city, bill.date_label + bill.date)]
    if rng.random() < 0.3:
        (_, (one,)), (_, (two,)) = rng.sample(place, 2)
        place = [(0.3, ((one[0], *LEFT), (two[0], *RIGHT)))]
    extras: list[Row] = [(rng.uniform(0.1, 0.6), ((f"{label} {value}", *plain),)) for label, value in bill.extras]
    blocks = {
        "shop": [(0.5, ((bill.shop, *plain),))],
        "place": _shuffled(rng, place + extras) if rng.random() < 0.3 else place + extras,
        "goods": _goods(rng, bill),
        "sums": [row for pair in (*bill.sums, (bill.total_label, bill.total)) for row in sums.rows(*pair)],
        "foot": [(0.5, ((rng.choice(_FEET), *plain),))] if rng.random() < 0.4 else [],
    }
    order = list(blocks) if rng.random() < 0.25 else _shuffled(rng, list(blocks))
    lines = _set(rng, [_apart(rng, blocks[name]) for name in order])
    asked = sheet.choose(rng, receipts.questions_on(rng, bill), rng.randint(3, 7))
    return _more(rng, "receipt", lines, asked, [records.receipt_json(bill)], absent.on_receipt(rng, split, bill))


def _goods(rng: random.Random, bill: receipts.Bill) -> list[Row]:
    """Rows of what was bought, some with numbers before them or pieces."""
    manner = draw_manner(rng, ("", "", "", "", " ...", " .......", " -"), 0.45)
    number = rng.choice(("", "", "", "{}. ", "{}) ", "{:02} ", "1 x "))
    return [
        row
        for place, (name, price) in enumerate(bill.items, 1)
        for row in manner.rows(number.format(place) + name, price)
    ]


def form(rng: random.Random, split: Split) -> Rendered:
    """A form of the renderer's fields, in one column or two, with a title or without."""
    rng = sheet.stream(rng, f"form lines {split}")
    fields: dict[str, forms.Field] = {}
    for kind in rng.sample(KINDS, rng.randint(2, MOST_FIELDS)):
        field = forms.Field(rng.choice(kind.labels.split("|")), kind.make(rng, split), kind)
        if all(field.value != other.value for other in fields.values()):
            fields[field.label] = field
    shown = list(fields.values())
    manner = draw_manner(rng, ("", "", "", ":", ":", " :", " -", " >", " =", ".", "*"))
    cells = [manner.rows(field.label, field.value) for field in shown]
    if manner.how == "column" and rng.random() < 0.25:
        cells = _in_pairs(cells)
    title: list[Row] = [(0.5, ((rng.choice(forms.TITLES), *rng.choice((LEFT, MIDDLE))),))] * (rng.random() < 0.7)
    foot: list[Row] = [(0.5, ((rng.choice(_FEET), *LEFT),))] * (rng.random() < 0.1)
    lines = _set(rng, [_apart(rng, block) for block in (title, [row for cell in cells for row in cell], foot)])
    asked = sheet.choose(rng, forms.questions_on(rng, shown), rng.randint(3, 8))
    return _more(rng, "form", lines, asked, [], absent.on_form(rng, shown))


def chart(rng: random.Random, split: Split) -> Rendered:
    """A chart with printed values: its labels with their values, a title or none, and often an axis.

    Half of its questions are for the highest and lowest and for comparisons: a small language model, which reads the
    values, doesn't see which of them is the largest before it has been taught.
    """
    rng = sheet.stream(rng, f"chart lines {split}")
    drawn = None
    while drawn is None or not drawn.labels:
        drawn = charts.make_chart(rng, split, rng.choice(((224, 224), (448, 224))), rng.choice(charts.LOOKS[split]))
    pairs = [(label, drawn.show(i)) for i, label in enumerate(drawn.numbers.labels)]
    heads = (drawn.title, drawn.numbers.columns[0] if drawn.caption else "")
    lead: list[Row] = [(0.5, ((text, *LEFT),)) for text in heads if text]
    block = _in_a_row(pairs) if rng.random() < 0.4 else _list(rng, pairs)
    axis: list[Row] = []
    if not drawn.shares and rng.random() < 0.5:
        ticks = [f"{tick:g}" for tick in plots.ticks(drawn.highest, rng.randint(3, 6))]
        rising: list[Row] = [(0.8, ((tick, *LEFT),)) for tick in reversed(ticks)]
        axis = rising if rng.random() < 0.6 else [(0.8, tuple((t, k / len(ticks), 0.0) for k, t in enumerate(ticks)))]
    order = [lead, axis, block] if rng.random() < 0.6 else [lead, block, axis]
    asked = charts.questions_on(rng, drawn)
    compared = [question for question in asked if question.task in ("chart_extreme", "chart_compare")]
    others = [question for question in asked if question not in compared and question.task != "read"]
    chosen = sheet.choose(rng, compared, rng.randint(3, 7)) + sheet.choose(rng, others, rng.randint(1, 3))
    missing = absent.in_chart(rng, split, drawn.numbers.key, drawn.numbers.labels) if rng.random() < 0.4 else []
    return _more(rng, "chart", _set(rng, [_apart(rng, rows) for rows in order]), chosen, [], missing)


def _in_a_row(pairs: Sequence[tuple[str, str]]) -> list[Row]:
    """Pairs beside each other, as `lines.charted` writes them."""
    return [(0.5, tuple((f"{label}: {value}", k / len(pairs), 0.0) for k, (label, value) in enumerate(pairs)))]


def _list(rng: random.Random, pairs: Sequence[tuple[str, str]]) -> list[Row]:
    """A pair below the other, in a manner."""
    manner = draw_manner(rng, ("", "", "", ":"), 0.15)
    return [row for pair in pairs for row in manner.rows(*pair)]


def _in_pairs(cells: Sequence[list[Row]]) -> list[list[Row]]:
    """Cells of a column in two columns: a row of labels stands above or under a row of values."""
    found: list[list[Row]] = []
    for place in range(0, len(cells), 2):
        beside = cells[place : place + 2]
        rows = zip(*beside, strict=True)
        found.append([(row[0][0], tuple((c[0], k * 0.52, 0.0) for k, (_, (c,)) in enumerate(row))) for row in rows])
    return found


def _more(
    rng: random.Random,
    kind: str,
    lines: Sequence[Line],
    asked: Sequence[Question],
    whole: Sequence[Question],
    missing: Sequence[Question],
) -> Rendered:
    """The lines with their questions in any order, as a page that shows nothing."""
    extra = [question for question in whole if rng.random() < WHOLE and len(question.answer) <= LONGEST]
    extra += rng.sample(missing, min(len(missing), rng.choice(MISSING)))
    blank = Image.new("RGB", (224, 224), "white")
    return Rendered(blank, (), tuple(_shuffled(rng, [*asked, *extra])), kind, lines=tuple(lines))


def _apart(rng: random.Random, rows: Sequence[Row]) -> list[Row]:
    """A block of rows with more room above it, or with none."""
    more = rng.choice((0.0, rng.uniform(0.2, 0.8), rng.uniform(0.8, 2.5)))
    return [(above + more * (not place), cells) for place, (above, cells) in enumerate(rows)]


def _set(rng: random.Random, blocks: Sequence[Sequence[Row]]) -> list[Line]:
    """The rows' cells with their boxes in pixels, on a page as wide as its widest row."""
    height = rng.uniform(9, 18)
    rows = [row for block in blocks for row in block]

    def wide(text: str) -> float:
        return CHAR * height * len(text)

    needed = max(sum(wide(text) for text, _, _ in cells) + 1.5 * height * (len(cells) - 1) for _, cells in rows)
    width, top, found = max(needed, rng.uniform(200, 420)), rng.uniform(4, 30), list[Line]()
    between = rng.uniform(0.3, 1.2) * height  # what stands nearer than about half a line is recognised as one
    for above, cells in rows:
        top += above * height
        free = 0.0
        for text, edge, which in cells:
            left = max(edge * width - which * wide(text), free)
            found.append(((left, top, left + wide(text), top + height), text))
            free = left + wide(text) + between
        top += height
    return found


def _shuffled(rng: random.Random, items: Sequence[_T]) -> list[_T]:
    return rng.sample(list(items), len(items))
