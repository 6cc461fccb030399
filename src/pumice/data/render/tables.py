"""Small tables with a header: real numbers, made-up numbers, and lists of orders, people, goods and departures.

rng, split ──> Grid (strings) ──> a font in which all columns fit ──> Sheet ──> Rendered
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from pumice.data.render import facts, ink, sheet, values
from pumice.data.render.fonts import Split, pick_font
from pumice.data.render.ink import Font
from pumice.data.render.page import Question, Rendered
from pumice.data.render.sheet import Sheet, ask


@dataclass(frozen=True)
class Grid:
    """A table as printed. ``key`` says what a row is; the first column holds the row labels. ``numeric`` by column."""

    title: str
    key: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[bool, ...]


@dataclass(frozen=True)
class Look:
    """One look: lines between rows (h) and columns (v), a box around; head: bold, fill, line or plain; stripes."""

    lines: str = ""
    box: bool = False
    head: str = "line"
    stripes: str = ""
    caption: str = "top"
    align: str = "right"


LOOKS: dict[Split, tuple[Look, ...]] = {
    "train": (
        Look("hv", True, "bold"),
        Look("h", False, "line"),
        Look("", False, "line"),
        Look("", False, "fill", "rows"),
        Look("", True, "fill"),
        Look("h", True, "bold", align="left"),
        Look("hv", True, "fill", align="centre"),
        Look("", False, "bold", "rows", align="left"),
        Look("", False, "plain"),
    ),
    "heldout": (
        Look("v", False, "line", caption="bottom"),
        Look("v", True, "bold", "rows"),
        Look("", False, "fill", "columns", align="left"),
        Look("h", True, "line", "columns", align="centre"),
        Look("", True, "line", caption="bottom", align="centre"),
    ),
}

Draw = Callable[[random.Random, Split], str]


def _number(low: int, high: int) -> Draw:
    return lambda rng, split: str(rng.randint(low, high))


def _pattern(*patterns: str) -> Draw:
    return lambda rng, split: values.stamp(rng, rng.choice(patterns))


def _money(rng: random.Random, split: Split) -> str:
    return values.Money().show(values.cents(rng, 100, 50_000))


def _time(rng: random.Random, split: Split) -> str:
    return f"{rng.randint(0, 23):02}:{rng.randrange(0, 60, 5):02}"


def _day(rng: random.Random, split: Split) -> str:
    return values.date(rng, split, rng.choice(("{d:02}.{m:02}.{yy:02}", "{y}-{m:02}-{d:02}", "{mon} {d}, {y}")))


def _first(rng: random.Random, split: Split) -> str:
    return rng.choice(values.vocabulary("first", split))


def _last(rng: random.Random, split: Split) -> str:
    return rng.choice(values.vocabulary("last", split))


Column = tuple[str, Draw]
LISTS: tuple[tuple[str, str, Draw, tuple[Column, ...]], ...] = (
    (
        "product",
        "Price list,Stock,Menu,Inventory",
        values.product,
        (("Price", _money), ("Qty", _number(1, 400)), ("Code", _pattern("?##", "#-##")), ("Sold", _number(0, 999))),
    ),
    (
        "name",
        "Staff,Team,Members,Results",
        _first,
        (
            ("City", values.city),
            ("Age", _number(18, 80)),
            ("Room", _pattern("###", "?##")),
            ("Score", _number(0, 100)),
            ("Ext.", _pattern("###", "####")),
            ("Since", _day),
        ),
    ),
    (
        "flight",
        "Departures,Flights,Arrivals",
        _pattern("?? ###", "??####", "?# ###"),
        (("To", values.city), ("Time", _time), ("Gate", _pattern("?#", "##")), ("Seats", _number(0, 300))),
    ),
    (
        "order",
        "Orders,Invoices,Payments",
        lambda rng, split: values.code(rng, split, rng.choice(("####", "?-###", "#####"))),
        (("Client", _last), ("Date", _day), ("Amount", _money), ("Items", _number(1, 60))),
    ),
    (
        "city",
        "Offices,Weather,Branches",
        values.city,
        (("Manager", _last), ("Temp", _number(-15, 41)), ("Rain", _number(0, 90)), ("Staff", _number(2, 250))),
    ),
)


def render(rng: random.Random, split: Split) -> Rendered:
    """One table of 2 to 4 columns and 2 to 7 rows (more on larger pages)."""
    return describe(rng, split)[1]


def describe(rng: random.Random, split: Split) -> tuple[Grid, Rendered]:
    """The table of ``render`` with its cells, to ask for all of them at once or for one that isn't there."""
    rng = sheet.stream(rng, f"table {split}")
    size = (224, 224) if rng.random() < 0.8 else rng.choice(((448, 224), (448, 448), (224, 336), (336, 336)))
    look = rng.choice(LOOKS[split])
    margin = rng.randint(6, 11)
    most, columns = 7 if size[1] < 300 else 12, (3, 4, 1 if size[0] < 300 else 4)
    while True:
        grid = _grid(rng, split, rng.randint(2, most), rng.choices((1, 2, 3), columns)[0])
        if placed := _fit(rng, split, grid, (size[0] - 2 * margin, size[1] - 2 * margin)):
            break
    page = Sheet(size, sheet.pick_theme(rng), rng)
    _draw(page, grid, look, *placed, margin)
    return grid, page.close("table", _questions(rng, grid))


def _grid(rng: random.Random, split: Split, rows: int, columns: int) -> Grid:
    """Half numbers (real or made up), half lists of text."""
    if rng.random() < 0.55:
        table = facts.numbers(rng, split, rows, columns)
        body = tuple(
            (name, *(table.show(i, j) for j in range(len(table.columns)))) for i, name in enumerate(table.labels)
        )
        return Grid(
            table.title,
            table.key,
            (table.key.capitalize(), *table.columns),
            body,
            (False, *[True] * len(table.columns)),
        )
    key, titles, label, choices = rng.choice(LISTS)
    kept = rng.sample(choices, min(columns, len(choices)))
    names: dict[str, None] = {}
    while len(names) < rows:
        names[label(rng, split)] = None
    body = tuple((name, *(make(rng, split) for _, make in kept)) for name in names)
    numeric = tuple(all(re.fullmatch(r"-?\d+(\.\d+)?", cell) for cell in column) for column in zip(*body, strict=True))
    return Grid(
        rng.choice(titles.split(",")), key, (key.capitalize(), *(name for name, _ in kept)), body, (False, *numeric[1:])
    )


def _fit(
    rng: random.Random, split: Split, grid: Grid, inner: tuple[int, int]
) -> tuple[Font, Font, Font | None, list[int]] | None:
    """Fonts of body, header and title, and column widths in pixels, that fit into ``inner`` (w, h); or None."""
    px = rng.choices((12, 13, 14, 15, 16, 17, 18, 19), (2, 4, 4, 4, 4, 3, 2, 1))[0]
    bold, titled, face = rng.random() < 0.6, rng.random() < 0.6, rng.getrandbits(32)
    while px >= 12:
        rng = random.Random(face)  # the same families at every size
        body = pick_font(rng, split, px)
        head = pick_font(rng, split, px, "bold") if bold else body
        title = pick_font(rng, split, px + 2, "bold") if titled else None
        fonts = [head] + [body] * len(grid.rows)
        lines = (grid.header, *grid.rows)
        widths = [
            max(ink.width(f, c) for f, c in zip(fonts, column, strict=True)) for column in zip(*lines, strict=True)
        ]
        high = (len(lines)) * (max(ink.height(body), ink.height(head)) + 6) + (ink.height(title) + 10 if title else 0)
        wide = sum(widths) + 12 * len(widths)
        if high <= inner[1] and wide <= inner[0] and (title is None or ink.width(title, grid.title) <= inner[0]):
            return body, head, title, widths
        if title and ink.width(title, grid.title) > inner[0]:
            titled = False
        else:
            px = sheet.smaller(px, max(high / inner[1], wide / inner[0]), 1)
    return None


def _draw(
    page: Sheet, grid: Grid, look: Look, body: Font, head: Font, title: Font | None, widths: list[int], margin: int
) -> None:
    """Title, header and rows; spare room goes partly into the columns and the rows."""
    rng, count = page.rng, len(grid.rows) + 1
    spare = page.width - 2 * margin - sum(widths) - 12 * len(widths)
    extra = int(rng.random() * spare / len(widths))
    widths = [width + 12 + extra for width in widths]
    row = max(ink.height(body), ink.height(head)) + 6
    above = ink.height(title) + 10 if title else 0
    row += int(rng.random() * min(14, (page.height - 2 * margin - above - row * count) / count))
    left = margin + rng.randint(0, max(0, page.width - 2 * margin - sum(widths)))
    top = margin + rng.randint(0, max(0, page.height - 2 * margin - above - row * count))
    if title and look.caption == "top":
        _caption(page, grid.title, title, left, sum(widths), top, margin)
        top += above
    _lines(page, look, left, top, widths, row, count)
    for i, cells in enumerate((grid.header, *grid.rows)):
        font = head if i == 0 else body
        fill = page.theme.paper if i == 0 and look.head == "fill" else page.theme.ink
        x, y = left, top + i * row + (row - ink.height(font)) // 2
        for j, (cell, width) in enumerate(zip(cells, widths, strict=True)):
            align = look.align if j and grid.numeric[j] else "left"
            at = {"left": x + 6, "centre": x + width / 2, "right": x + width - 6}[align]
            page.put(at, y, cell, font, fill, align, join=j > 0)  # pyright: ignore[reportArgumentType]
            x += width
    if title and look.caption == "bottom":
        _caption(page, grid.title, title, left, sum(widths), top + count * row + 8, margin)


def _caption(page: Sheet, text: str, font: Font, left: int, width: int, y: int, margin: int) -> None:
    """The title, in the middle of the table or at its left edge, moved if it would leave the page."""
    long = ink.width(font, text)
    x = left + (width - long) // 2 if page.rng.random() < 0.5 else left
    page.put(min(max(x, margin), page.width - margin - long), y, text, font, page.theme.accent)


def _lines(page: Sheet, look: Look, left: int, top: int, widths: list[int], row: int, count: int) -> None:
    """Rules, stripes and the box of a table whose cells are ``widths`` x ``row`` pixels."""
    draw, theme = page.draw, page.theme
    right, bottom = left + sum(widths), top + row * count
    edges = [left + sum(widths[:j]) for j in range(len(widths) + 1)]
    if look.stripes == "rows":
        for i in range(2, count, 2):
            draw.rectangle((left, top + i * row, right, top + (i + 1) * row), fill=theme.tint)
    if look.stripes == "columns":
        for j in range(1, len(widths), 2):
            draw.rectangle((edges[j], top, edges[j + 1], bottom), fill=theme.tint)
    if look.head == "fill":
        draw.rectangle((left, top, right, top + row), fill=theme.accent)
    if look.head in ("line", "bold") and "h" not in look.lines:
        draw.line((left, top + row, right, top + row), theme.ink)
    for i in range(1, count) if "h" in look.lines else ():
        draw.line((left, top + i * row, right, top + i * row), theme.rule)
    for x in edges[1:-1] if "v" in look.lines else ():
        draw.line((x, top, x, bottom), theme.rule)
    if look.box:
        draw.rectangle((left, top, right, bottom), outline=theme.rule)


def _questions(rng: random.Random, grid: Grid) -> list[Question]:
    """Cells by row and column, rows by a value, the number of rows, and the row with the largest number."""
    out = [
        ask(
            rng,
            "count",
            "How many {n} are listed?|How many {n}?|Count the {n}.",
            str(len(grid.rows)),
            n=sheet.plural(grid.key),
        )
    ]
    for j, name in enumerate(grid.header[1:], 1):
        column = [row[j] for row in grid.rows]
        for row in grid.rows:
            wording = "What is the {c} of {r}?|{c} of {r}?|{r}: {c}?|What {c} does {r} have?|Give the {c} of {r}."
            if name.isdigit():
                wording = "What is the value of {r} in {c}?|{r} in {c}?|Value of {r} for {c}?"
            out.append(ask(rng, "cell", wording, row[j], r=row[0], c=name))
            if column.count(row[j]) == 1 and rng.random() < 0.4:
                back = "Which {k} has {c} {v}?|{c} {v}: which {k}?|Which {k} has {v} for {c}?"
                out.append(ask(rng, "cell", back, row[0], k=grid.key, c=name, v=row[j]))
        if grid.numeric[j] and rng.random() < 0.35:
            out += _extreme(rng, grid, name, [float(cell) for cell in column])
    return out


def _extreme(rng: random.Random, grid: Grid, name: str, column: list[float]) -> list[Question]:
    word, best = rng.choice((("highest", max(column)), ("lowest", min(column))))
    if column.count(best) > 1:
        return []
    answer = grid.rows[column.index(best)][0]
    return [
        ask(
            rng,
            "extreme",
            "Which {k} has the {w} {c}?|{c}: which {k} is {w}?|Which {k} has {w} {c}?",
            answer,
            k=grid.key,
            w=word,
            c=name,
        )
    ]
