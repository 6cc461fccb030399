"""Tables with merged cells: column groups with a common head, row groups, subtotals and a total; as HTML too.

rng, split ──> Cross (groups of columns x groups of rows, whole numbers) ──cells──> Sheet ──questions──> Rendered
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from html import escape

from pumice.data.render import facts, ink, records, sheet, values
from pumice.data.render.absent import ABSENT
from pumice.data.render.fonts import Split, pick_font
from pumice.data.render.ink import Font
from pumice.data.render.page import Question, Rendered
from pumice.data.render.sheet import Sheet, ask

SIZES = ((336, 336), (448, 336), (448, 448), (560, 448), (672, 448))
HTML = "Write the table as HTML with its merged cells.|Turn the table into HTML; keep rowspan and colspan."


@dataclass(frozen=True)
class Look:
    """Rules (all, rows, groups, none), fill of heads and of totals, and where merged labels stand in their cell."""

    rules: str
    head: str
    totals: str
    label: str = "top"


LOOKS: dict[Split, tuple[Look, ...]] = {
    "train": (
        Look("all", "fill", "bold"),
        Look("all", "tint", "tint"),
        Look("rows", "fill", "tint", "middle"),
        Look("groups", "line", "bold"),
        Look("groups", "tint", "bold", "middle"),
    ),
    "heldout": (
        Look("all", "line", "tint", "middle"),
        Look("rows", "tint", "bold"),
        Look("none", "fill", "tint"),
    ),
}


@dataclass(frozen=True)
class Cell:
    """A text over some rows and columns of the grid. ``head`` is a label, ``total`` a sum."""

    row: int
    column: int
    text: str
    rows: int = 1
    columns: int = 1
    head: bool = False
    total: bool = False


@dataclass(frozen=True)
class Cross:
    """``columns`` and ``rows`` are (group, members); ``values[row][column]`` are of the members in order."""

    title: str
    columns: tuple[tuple[str, tuple[str, ...]], ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    values: tuple[tuple[int, ...], ...]
    row_total: bool
    column_total: bool

    @property
    def across(self) -> list[tuple[str, str]]:
        """(group, member) of every column of values."""
        return [(group, member) for group, members in self.columns for member in members]

    @property
    def down(self) -> list[tuple[str, str]]:
        """(group, member) of every row of values."""
        return [(group, member) for group, members in self.rows for member in members]


def render(rng: random.Random, split: Split) -> Rendered:
    """One table with questions, on most of them its HTML."""
    return describe(rng, split)[1]


def describe(rng: random.Random, split: Split) -> tuple[Cross, Rendered]:
    """The table of ``render`` with what it says."""
    rng = sheet.stream(rng, f"span {split}")
    look = rng.choice(LOOKS[split])
    while True:
        size = rng.choice(SIZES)
        cross = _cross(rng, split)
        page = Sheet(size, sheet.pick_theme(rng), rng)
        if _draw(page, split, cross, look):
            break
    closed = page.close("span", _questions(rng, cross))
    whole = [ask(rng, "table_html", HTML, html(cross))]
    return cross, records.more(rng, closed, whole, _absent(rng, split, cross), 0.5, 2000)


def _cross(rng: random.Random, split: Split) -> Cross:
    """Groups and numbers; a table of one group of rows has no column of groups."""
    measures = rng.sample(facts.MEASURES.split(","), 3)
    periods = rng.choice((("Q1", "Q2"), ("2023", "2024"), ("Men", "Women"), ("Old", "New"), ("Jan", "Feb", "Mar")))
    columns = tuple((measure, periods) for measure in measures[: rng.choice((2, 2, 3))])
    names: dict[str, None] = {}
    make = rng.choice((values.city, values.product, values.word))
    while len(names) < 9:
        name = make(rng, split)
        if len(name) <= 12:
            names[name] = None
    left, heads = list(names), [values.word(rng, split) for _ in range(3)]
    if len(set(heads)) < 3 or set(heads) & set(left):
        heads = ["North", "South", "East"]
    groups = []
    for group in heads[: rng.choice((1, 2, 2, 3))]:
        members = rng.randint(2, 3)
        groups.append((group, tuple(left[:members])))
        left = left[members:]
    top = rng.choice((30, 99, 500, 2000))
    width = len(columns) * len(periods)
    numbers = tuple(tuple(rng.randint(1, top) for _ in range(width)) for _, members in groups for _ in members)
    title = rng.choice(("", f"{measures[0]} and {measures[1].lower()}", values.shop(rng, split)))
    return Cross(title, columns, tuple(groups), numbers, rng.random() < 0.4, rng.random() < 0.6)


def cells(cross: Cross) -> list[Cell]:
    """All cells in reading order."""
    grouped = len(cross.rows) > 1
    lead = 1 + grouped
    out = [Cell(0, 0, "", 2, lead, head=True)]
    at = lead
    for group, members in cross.columns:
        out.append(Cell(0, at, group, 1, len(members), head=True))
        at += len(members)
    if cross.row_total:
        out.append(Cell(0, at, "Total", 2, 1, head=True, total=True))
    out += [Cell(1, lead + i, member, head=True) for i, (_, member) in enumerate(cross.across)]
    row = 2
    for group, members in cross.rows:
        for i, member in enumerate(members):
            if grouped and i == 0:
                out.append(Cell(row, 0, group, len(members), head=True))
            out.append(Cell(row, lead - 1, member, head=True))
            line = cross.values[row - 2]
            out += [Cell(row, lead + j, str(value)) for j, value in enumerate(line)]
            if cross.row_total:
                out.append(Cell(row, lead + len(line), str(sum(line)), total=True))
            row += 1
    if cross.column_total:
        sums = [sum(column) for column in zip(*cross.values, strict=True)]
        sums += [sum(sums)] if cross.row_total else []
        out.append(Cell(row, 0, "Total", 1, lead, head=True, total=True))
        out += [Cell(row, lead + j, str(value), total=True) for j, value in enumerate(sums)]
    return out


def html(cross: Cross) -> str:
    """The table as HTML without styles."""
    lines: dict[int, str] = {}
    for cell in cells(cross):
        spans = f' rowspan="{cell.rows}"' * (cell.rows > 1) + f' colspan="{cell.columns}"' * (cell.columns > 1)
        tag = "th" if cell.head else "td"
        lines[cell.row] = lines.get(cell.row, "") + f"<{tag}{spans}>{escape(cell.text)}</{tag}>"
    return f"<table>{''.join(f'<tr>{lines[row]}</tr>' for row in sorted(lines))}</table>"


def _draw(page: Sheet, split: Split, cross: Cross, look: Look) -> bool:
    """Draw the table; False where it doesn't fit."""
    rng, margin = page.rng, page.rng.randint(8, 16)
    font = pick_font(rng, split, rng.randint(12, 16), "regular")
    bold = pick_font(rng, split, rng.randint(12, 15), "bold")
    placed = cells(cross)
    widths = [24] * (1 + max(cell.column + cell.columns - 1 for cell in placed))
    for cell in sorted(placed, key=lambda cell: cell.columns):
        need = ink.width(_face(cell, look, font, bold), cell.text) + 14
        lacking = need - sum(widths[cell.column : cell.column + cell.columns])
        for column in range(cell.column, cell.column + cell.columns):
            widths[column] += max(0, -(-lacking // cell.columns))
    row = max(ink.height(font), ink.height(bold)) + rng.randint(7, 13)
    above = ink.height(bold) + 10 if cross.title else 0
    count = 1 + max(cell.row + cell.rows - 1 for cell in placed)
    spare = (page.width - 2 * margin - sum(widths), page.height - 2 * margin - above - row * count)
    if min(spare) < 0 or (cross.title and ink.width(bold, cross.title) > page.width - 2 * margin):
        return False
    left, top = margin + rng.randint(0, spare[0]), margin + rng.randint(0, spare[1])
    if cross.title:
        page.put(min(left, page.width - margin - ink.width(bold, cross.title)), top, cross.title, bold)
        top += above
    edges = [left + sum(widths[:i]) for i in range(len(widths) + 1)]
    started = -1
    for cell in placed:
        box = (edges[cell.column], top + cell.row * row, edges[cell.column + cell.columns], 0)
        _cell(page, cell, (*box[:3], box[1] + cell.rows * row), look, (font, bold), join=cell.row == started)
        started = cell.row if cell.text else started
    return True


def _face(cell: Cell, look: Look, font: Font, bold: Font) -> Font:
    return bold if (cell.head and cell.row < 2) or (cell.total and look.totals == "bold") else font


def _cell(
    page: Sheet, cell: Cell, box: tuple[int, int, int, int], look: Look, fonts: tuple[Font, Font], join: bool
) -> None:
    """One cell: its fill, its rules, its text."""
    theme, (left, top, right, bottom) = page.theme, box
    head, colour = cell.head and cell.row < 2, theme.ink
    if head and look.head == "fill":
        page.draw.rectangle((left, top, right, bottom), fill=theme.accent)
        colour = theme.paper
    elif (head and look.head == "tint") or (cell.total and look.totals == "tint"):
        page.draw.rectangle((left, top, right, bottom), fill=theme.tint)
    if look.rules == "all":
        page.draw.rectangle((left, top, right, bottom), outline=theme.rule)
    elif look.rules == "rows" or (look.rules == "groups" and cell.head and cell.column == 0) or cell.row == 1:
        page.draw.line((left, bottom, right, bottom), theme.rule)
    if not cell.text:
        return
    font = _face(cell, look, *fonts)
    middle = look.label == "middle" or cell.rows == 1 or head
    y = (top + bottom - ink.height(font)) / 2 if middle else top + 5
    if cell.head and cell.row >= 2:
        page.put(left + 6, y, cell.text, font, colour, join=join)
    elif cell.head:
        page.put((left + right) / 2, y, cell.text, font, colour, "centre", join=join)
    else:
        page.put(right - 7, y, cell.text, font, colour, "right", join=join)


def _questions(rng: random.Random, cross: Cross) -> list[Question]:
    """Single values, sums that are printed, sums that aren't, and what is largest."""
    out = []
    across, down = cross.across, cross.down
    for _ in range(6):
        i, j = rng.randrange(len(down)), rng.randrange(len(across))
        (group, member), (_, name) = across[j], down[i]
        text = "What is the {g} of {n} for {m}?|{g} of {n} for {m}?|How much {g} does {n} have for {m}?"
        out.append(ask(rng, "span_cell", text, str(cross.values[i][j]), g=group, n=name, m=member))
    j = rng.randrange(len(across))
    column = [row[j] for row in cross.values]
    names = {"g": across[j][0], "m": across[j][1]}
    task = "total" if cross.column_total else "sum"
    text = "What is the total {g} for {m}?|What is the sum of {g} for {m}?"
    out.append(ask(rng, task, text, str(sum(column)), **names))
    if column.count(max(column)) == 1:
        best = down[column.index(max(column))][1]
        out.append(ask(rng, "extreme", "Which row has the highest {g} for {m}?|Highest {g} for {m}?", best, **names))
    i = rng.randrange(len(down))
    text = "What is the sum of all values of {n}?|What do the values of {n} add up to?"
    out.append(ask(rng, "total" if cross.row_total else "sum", text, str(sum(cross.values[i])), n=down[i][1]))
    if len(cross.rows) > 1:
        group, name = rng.choice(down)
        out.append(ask(rng, "group", "Which group is {n} in?|To which group does {n} belong?", group, n=name))
        group, members = rng.choice(cross.rows)
        text = "How many rows does the group {g} have?|How many entries are in {g}?"
        out.append(ask(rng, "count", text, str(len(members)), g=group))
    return out


def _absent(rng: random.Random, split: Split, cross: Cross) -> list[Question]:
    """A row that isn't there."""
    name, (group, member) = values.word(rng, split), rng.choice(cross.across)
    if name in {row for pair in cross.down for row in pair}:
        return []
    return [ask(rng, "absent", "What is the {g} of {n} for {m}?", ABSENT, g=group, n=name, m=member)]
