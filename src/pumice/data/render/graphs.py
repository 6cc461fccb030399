"""Charts of several series: grouped and stacked bars, lines, areas and scatter plots, with their data as a table.

rng, split ──> Numbers of 2 to 4 series ──marks inside of axes──> Sheet ──> questions, some of which need sums ──>
Rendered
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from pumice.data.render import absent, facts, ink, plots, records, sheet
from pumice.data.render.facts import Numbers
from pumice.data.render.fonts import Split, pick_font
from pumice.data.render.ink import Font
from pumice.data.render.page import Colour, Question, Rendered
from pumice.data.render.sheet import Sheet, ask

SIZES = ((336, 336), (448, 336), (448, 448), (560, 448))
SORTS = ("grouped", "stacked", "lines", "scatter")
MARKS: dict[Split, tuple[str, ...]] = {"train": ("dot", "square", "cross"), "heldout": ("ring", "diamond")}
BARS: dict[Split, tuple[str, ...]] = {"train": ("plain", "outlined"), "heldout": ("hatched",)}
GAP = 0.06
"""Share of the axis by which values must differ to be compared."""

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Graph:
    """What is drawn: ``labels`` says whether values are printed at their marks."""

    sort: str
    numbers: Numbers
    labels: bool
    mark: str
    bars: str
    colours: tuple[Colour, ...]

    @property
    def top(self) -> float:
        """The largest value on the axis."""
        rows = self.numbers.values
        return max(sum(row) for row in rows) if self.sort == "stacked" else max(max(row) for row in rows)


def render(rng: random.Random, split: Split) -> Rendered:
    """One graph with questions, and where values are printed its data."""
    return describe(rng, split)[1]


def describe(rng: random.Random, split: Split) -> tuple[Graph, Rendered]:
    """The graph of ``render`` with its numbers."""
    rng = sheet.stream(rng, f"graph {split}")
    while True:
        graph = _graph(rng, split)
        page = Sheet(rng.choice(SIZES), sheet.pick_theme(rng, 0.05), rng)
        if graph and _draw(page, split, graph):
            questions = _questions(rng, graph)
            if len(questions) >= 3:
                break
    closed = page.finish("graph", sheet.choose(rng, questions, rng.randint(4, 8)))
    numbers = graph.numbers
    table = [
        (label, *(numbers.show(i, j) for j in range(len(numbers.columns)))) for i, label in enumerate(numbers.labels)
    ]
    whole = [records.table_text(rng, "chart", (numbers.key.capitalize(), *numbers.columns), table)]
    missing = absent.in_table(rng, split, numbers.key, numbers.labels, numbers.columns)
    return graph, records.more(rng, closed, whole if graph.labels else [], missing, 0.5, 900)


def _graph(rng: random.Random, split: Split) -> Graph | None:
    """Numbers of one magnitude for a sort of graph, or None when those drawn would make a poor one."""
    sort = rng.choice(SORTS)
    series = 2 if sort == "scatter" else rng.choice((2, 2, 3, 4))
    rows = rng.randint(5, 9) if sort == "scatter" else rng.randint(3, 6)
    numbers = (facts.real if rng.random() < 0.4 else facts.made)(rng, split, rows, series)
    if len(numbers.columns) < series or len(numbers.labels) < 3:
        return None
    every = [value for row in numbers.values for value in row]
    tops = [max(row[j] for row in numbers.values) for j in range(series)]
    if min(every) < 0 or min(tops) <= 0 or (sort != "scatter" and max(tops) > 8 * min(tops)):
        return None
    if sort == "lines" and numbers.key not in ("year", "month", "day", "season"):
        return None
    colours = tuple(rng.sample(plots.COLOURS, len(plots.COLOURS)))
    labels = sort != "scatter" and rng.random() < 0.5
    return Graph(sort, numbers, labels, rng.choice(MARKS[split]), rng.choice(BARS[split]), colours)


def _draw(page: Sheet, split: Split, graph: Graph) -> bool:
    """Title, legend, axes and marks; False where a text doesn't fit."""
    rng, margin, numbers = page.rng, page.rng.randint(8, 14), graph.numbers
    font = pick_font(rng, split, rng.randint(11, 14))
    head = pick_font(rng, split, rng.randint(14, 18), "bold")
    left, top, right, bottom = margin, margin, page.width - margin, page.height - margin
    if ink.width(head, numbers.title) > right - left:
        return False
    page.put(page.width / 2, top, numbers.title, head, align="centre")
    top += ink.height(head) + 8
    if graph.sort == "scatter":
        return _scatter(page, graph, font, (left, top, right, bottom))
    legend = _legend(page, numbers.columns, font, graph.colours, (left, top, right))
    if not legend:
        return False
    top = legend + (ink.height(font) + 4 if graph.labels else 6)
    marks = plots.ticks(graph.top, 5)
    texts = [plain(mark) for mark in marks]
    left += max(ink.width(font, text) for text in texts) + 6
    bottom -= ink.height(font) + 8
    slot = (right - left) / len(numbers.labels)
    if max(ink.width(font, label) for label in numbers.labels) + 4 > slot or bottom - top < 90:
        return False
    box = (left, top, right, bottom)
    _axis(page, font, box, [bottom - (bottom - top) * mark / marks[-1] for mark in marks], texts)
    for i, label in enumerate(numbers.labels):
        page.put(left + slot * (i + 0.5), bottom + 5, label, font, align="centre", join=i > 0)
    return {"grouped": _grouped, "stacked": _stacked, "lines": _lines}[graph.sort](page, graph, font, box, marks[-1])


def plain(value: float) -> str:
    """A tick's text."""
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:.0f}"


def _legend(
    page: Sheet, names: Sequence[str], font: Font, colours: Sequence[Colour], room: tuple[int, int, int]
) -> int:
    """One line of names with their colours; returns where it ends, 0 where it is too wide."""
    left, y, right = room
    side = ink.height(font) - 3
    if sum(ink.width(font, name) + side + 20 for name in names) > right - left:
        return 0
    x = left
    for i, (name, colour) in enumerate(zip(names, colours, strict=False)):
        page.draw.rectangle((x, y + 1, x + side, y + 1 + side), fill=colour)
        page.put(x + side + 5, y, name, font, join=i > 0)
        x += side + 20 + ink.width(font, name)
    return y + ink.height(font) + 6


def _axis(page: Sheet, font: Font, box: Box, at: Sequence[float], texts: Sequence[str]) -> None:
    """The upright axis with its grid."""
    left, _, right, bottom = box
    faint = sheet.mix(page.theme.paper, page.theme.ink, 0.16)
    for place, text in zip(at, texts, strict=True):
        page.draw.line((left, place, right, place), faint)
        page.put(left - 4, place - ink.height(font) / 2, text, font, align="right")
    page.draw.line((left, bottom, right, bottom), page.theme.ink)


def _bar(page: Sheet, graph: Graph, box: Box, colour: Colour) -> None:
    left, top, right, bottom = box
    if graph.bars == "hatched":
        page.draw.rectangle(box, fill=sheet.mix(page.theme.paper, colour, 0.4), outline=colour)
        for y in range(top + 3, bottom, 4):
            page.draw.line((left, y, right, y), colour)
        return
    page.draw.rectangle(box, fill=colour, outline=page.theme.ink if graph.bars == "outlined" else None)


def _grouped(page: Sheet, graph: Graph, font: Font, box: Box, most: float) -> bool:
    left, top, right, bottom = box
    slot = (right - left) / len(graph.numbers.labels)
    wide = slot * 0.8 / len(graph.numbers.columns)
    if graph.labels and max(ink.width(font, text) for text in _printed(graph)) > wide - 1:
        return False
    for i, row in enumerate(graph.numbers.values):
        for j, value in enumerate(row):
            x = left + slot * (i + 0.1) + j * wide
            y = bottom - (bottom - top) * value / most
            _bar(page, graph, (round(x), round(y), round(x + wide) - 2, bottom), graph.colours[j])
            if graph.labels:
                text = graph.numbers.show(i, j)
                page.put(x + wide / 2, y - ink.height(font) - 2, text, font, align="centre")
    return True


def _stacked(page: Sheet, graph: Graph, font: Font, box: Box, most: float) -> bool:
    left, top, right, bottom = box
    slot = (right - left) / len(graph.numbers.labels)
    wide = slot * 0.62
    for i, row in enumerate(graph.numbers.values):
        x, y = left + (i + 0.5) * slot - wide / 2, float(bottom)
        for j, value in enumerate(row):
            high = (bottom - top) * value / most
            text = graph.numbers.show(i, j)
            if graph.labels and (high < ink.height(font) + 4 or ink.width(font, text) > wide - 4):
                return False
            _bar(page, graph, (round(x), round(y - high), round(x + wide), round(y)), graph.colours[j])
            if graph.labels:
                light = sum(graph.colours[j]) > 400 or graph.bars == "hatched"
                fill = (0, 0, 0) if light else (255, 255, 255)
                page.put(x + wide / 2, y - high / 2 - ink.height(font) / 2, text, font, fill, "centre")
            y -= high
    return True


def _lines(page: Sheet, graph: Graph, font: Font, box: Box, most: float) -> bool:
    left, top, right, bottom = box
    slot = (right - left) / len(graph.numbers.labels)
    if graph.labels:
        return False  # the labels of several lines would run into each other
    for j, colour in enumerate(graph.colours[: len(graph.numbers.columns)]):
        points = [
            (left + slot * (i + 0.5), bottom - (bottom - top) * row[j] / most)
            for i, row in enumerate(graph.numbers.values)
        ]
        page.draw.line(points, colour, 2)
        for point in points:
            _mark(page, graph.mark, point, colour)
    return True


def _mark(page: Sheet, kind: str, at: tuple[float, float], colour: Colour) -> None:
    x, y = at
    if kind == "dot":
        page.draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
    elif kind == "ring":
        page.draw.ellipse((x - 4, y - 4, x + 4, y + 4), outline=colour, fill=page.theme.paper, width=2)
    elif kind == "square":
        page.draw.rectangle((x - 3, y - 3, x + 3, y + 3), fill=colour)
    elif kind == "diamond":
        page.draw.polygon([(x, y - 5), (x + 5, y), (x, y + 5), (x - 5, y)], fill=colour)
    else:
        page.draw.line((x - 4, y - 4, x + 4, y + 4), colour, 2)
        page.draw.line((x - 4, y + 4, x + 4, y - 4), colour, 2)


def _scatter(page: Sheet, graph: Graph, font: Font, room: Box) -> bool:
    """Points named at their right or left; False where names would touch."""
    left, top, right, bottom = room
    numbers, high = graph.numbers, ink.height(font)
    across, up = (plots.ticks(max(row[j] for row in numbers.values), 4) for j in range(2))
    page.put(left, top, numbers.columns[1], font, page.theme.accent)
    top += high + 8
    left += max(ink.width(font, plain(mark)) for mark in up) + 6
    bottom -= 2 * high + 12
    box = (left, top, right - 16, bottom)
    _axis(page, font, box, [bottom - (bottom - top) * mark / up[-1] for mark in up], [plain(mark) for mark in up])
    for i, mark in enumerate(across):
        page.put(left + (box[2] - left) * mark / across[-1], bottom + 4, plain(mark), font, align="centre", join=i > 0)
    page.put(box[2], bottom + high + 9, numbers.columns[0], font, page.theme.accent, "right")
    page.draw.line((left, top, left, bottom), page.theme.ink)
    taken: list[tuple[float, float, float, float]] = []
    for label, (a, b) in zip(numbers.labels, numbers.values, strict=True):
        x, y = left + (box[2] - left) * a / across[-1], bottom - (bottom - top) * b / up[-1]
        wide = ink.width(font, label)
        start = x + 7 if x + 7 + wide < right else x - 7 - wide
        area = (min(start, x - 5), y - high / 2 - 2, max(start + wide, x + 5), y + high / 2 + 2)
        clash = any(area[0] < o[2] and o[0] < area[2] and area[1] < o[3] and o[1] < area[3] for o in taken)
        if clash or start < left + 2 or area[1] < top or area[3] > bottom:
            return False
        taken.append(area)
        _mark(page, graph.mark, (x, y), graph.colours[0])
        page.put(start, y - high / 2, label, font)
    return True


def _printed(graph: Graph) -> list[str]:
    numbers = graph.numbers
    return [numbers.show(i, j) for i in range(len(numbers.labels)) for j in range(len(numbers.columns))]


def _questions(rng: random.Random, graph: Graph) -> list[Question]:
    """Values, comparisons, extremes; sums and differences where values are printed."""
    numbers, out = graph.numbers, []
    out.append(ask(rng, "chart_title", "What is the title of the chart?|Read the title.", numbers.title))
    key = sheet.plural(numbers.key)
    out.append(ask(rng, "chart_count", "How many {k} are shown?", str(len(numbers.labels)), k=key))
    if graph.sort != "scatter":
        named = ", ".join(numbers.columns)
        out.append(ask(rng, "chart_legend", "Which series does the legend name?|What does the legend list?", named))
    for j, name in enumerate(numbers.columns):
        column = [row[j] for row in numbers.values]
        out += _extremes(rng, graph, name, column)
        for i in rng.sample(range(len(column)), 2):
            if graph.labels:
                text = "What is the {c} of {r}?|{c} of {r}?|How much is the {c} of {r}?"
                out.append(ask(rng, "chart_value", text, numbers.show(i, j), c=name, r=numbers.labels[i]))
    if graph.labels:
        out += _worked(rng, graph)
    return out


def _extremes(rng: random.Random, graph: Graph, name: str, column: list[float]) -> list[Question]:
    order, out, key = sorted(range(len(column)), key=lambda i: column[i]), [], graph.numbers.key
    scale = max(column) if graph.sort == "scatter" else graph.top
    for word, best, second in (("highest", order[-1], order[-2]), ("lowest", order[0], order[1])):
        if abs(column[best] - column[second]) >= GAP * scale:
            text = "Which {k} has the {w} {c}?|{c}: which {k} is {w}?"
            out.append(ask(rng, "chart_extreme", text, graph.numbers.labels[best], k=key, w=word, c=name))
    a, b = rng.sample(range(len(column)), 2)
    if abs(column[a] - column[b]) >= GAP * scale:
        labels = graph.numbers.labels
        higher = labels[a if column[a] > column[b] else b]
        text = "Which is higher for {c}, {a} or {b}?"
        out.append(ask(rng, "chart_compare", text, higher, c=name, a=labels[a], b=labels[b]))
    return out


def _worked(rng: random.Random, graph: Graph) -> list[Question]:
    """Sums, differences and means of printed values, answered with the sum written out or alone."""
    numbers, out = graph.numbers, []
    i, (a, b) = rng.randrange(len(numbers.labels)), rng.sample(range(len(numbers.columns)), 2)
    first, second = numbers.values[i][a], numbers.values[i][b]
    digits = max(numbers.decimals[a], numbers.decimals[b])
    names = {"a": numbers.columns[a], "b": numbers.columns[b], "r": numbers.labels[i]}
    text = "What is the sum of {a} and {b} for {r}?|How much are {a} and {b} of {r} together?"
    out.append(ask(rng, "chart_sum", text, f"{first + second:.{digits}f}", **names))
    text = "What is the difference between {a} and {b} for {r}?|How far apart are {a} and {b} for {r}?"
    out.append(ask(rng, "chart_difference", text, f"{abs(first - second):.{digits}f}", **names))
    column = [numbers.show(row, a) for row in range(len(numbers.labels))]
    total = sum(map(float, column))
    steps = f"{' + '.join(column)} = {total:.{numbers.decimals[a]}f}"
    text = "What is the total {a} of all {k}? Show the sum.|Add up the {a} of all {k} and show how."
    out.append(ask(rng, "chart_total", text, f"{steps}", a=numbers.columns[a], k=sheet.plural(numbers.key)))
    return out
