"""How charts are drawn: a title, then bars, rows, lines or slices in the room that is left.

Chart ──draw──> False when its texts can't fit, else ink on the Sheet: title, axes, ticks, marks, labels, legend
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from PIL import Image, ImageDraw

from pumice.data.render import ink, sheet
from pumice.data.render.facts import Numbers
from pumice.data.render.ink import Font
from pumice.data.render.page import Colour
from pumice.data.render.sheet import Sheet

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels."""

COLOURS: tuple[Colour, ...] = (
    (66, 114, 180),
    (222, 132, 54),
    (84, 160, 92),
    (196, 70, 74),
    (132, 104, 178),
    (140, 92, 72),
    (214, 124, 186),
    (120, 124, 130),
    (60, 176, 190),
    (188, 180, 60),
)


@dataclass(frozen=True)
class Look:
    """One look: sort (bars, rows, line, pie), style of the marks, frame (of axes, or where a pie has its legend)."""

    sort: str
    style: str
    frame: str
    title: str = "centre"


@dataclass(frozen=True)
class Chart:
    """A chart to draw. ``labels``: values are printed; ``caption``: the measure is printed; ``shares``: per cent."""

    numbers: Numbers
    look: Look
    font: Font
    head: Font
    title: str
    labels: bool
    caption: bool
    shares: tuple[int, ...]
    seed: int

    @property
    def highest(self) -> float:
        """The largest value of all series."""
        return max(value for row in self.numbers.values for value in row)

    @property
    def measured(self) -> bool:
        """Whether the picture says what is measured."""
        return self.caption or (bool(self.title) and self.numbers.columns[0] in self.title)

    def show(self, row: int) -> str:
        """The printed value of a row of the first series."""
        return f"{self.shares[row]}%" if self.shares else self.numbers.show(row, 0)

    def apart(self, a: float, b: float, gap: float) -> bool:
        """Whether two values can be told apart in the picture: the printed ones, or by height or angle."""
        if self.shares:
            whole = sum(row[0] for row in self.numbers.values)
            return abs(round(100 * a / whole) - round(100 * b / whole)) >= (2 if self.labels else 100 * gap)
        return a != b if self.labels else abs(a - b) >= gap * self.highest


def draw(page: Sheet, chart: Chart) -> bool:
    """Draw the whole chart; False when a text doesn't fit (the page is then to be thrown away)."""
    margin = page.rng.randint(6, 10)
    left, top, right, bottom = margin, margin, page.width - margin, page.height - margin
    if chart.title:
        if ink.width(chart.head, chart.title) > right - left:
            return False
        x = {"left": left, "centre": page.width / 2}[chart.look.title]
        page.put(x, top, chart.title, chart.head, page.theme.ink, chart.look.title)  # pyright: ignore[reportArgumentType]
        top += ink.height(chart.head) + 8
    if chart.caption:
        if ink.width(chart.font, chart.numbers.columns[0]) > right - left:
            return False
        page.put(left, top, chart.numbers.columns[0], chart.font, page.theme.accent)
        top += ink.height(chart.font) + 5
    plot = {"bars": _upright, "line": _upright, "rows": _rows, "pie": _pie}[chart.look.sort]
    colours = random.Random(chart.seed).sample(COLOURS, len(COLOURS))
    return plot(page, chart, (left, top, right, bottom), colours)


def ticks(highest: float, most: int) -> list[float]:
    """At most ``most`` + 1 round numbers from 0 to ``highest`` or more."""
    rough = highest / most
    unit = 10 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 2.5, 5, 10) if factor * unit >= rough * 0.999)
    return [step * i for i in range(math.ceil(highest / step - 1e-9) + 1)]


def _sparse_ticks(chart: Chart, room: int) -> tuple[list[float], list[str]]:
    """As many ticks, with their texts, as stand side by side in ``room`` pixels without touching, or none."""
    for most in (5, 4, 3, 2, 1):
        marks = ticks(chart.highest, most)
        texts = _tick_text(marks)
        if room / (len(marks) - 1) >= max(ink.width(chart.font, text) for text in texts) + 6:
            return marks, texts
    return [], []


def _tick_text(values: list[float]) -> list[str]:
    step = values[1]
    digits = next(d for d in range(6) if abs(step - round(step, d)) < 1e-9)
    return [f"{value:.{digits}f}" for value in values]


def _legend(page: Sheet, names: Sequence[str], font: Font, box: Box, colours: Sequence[Colour]) -> int:
    """Coloured squares with names in one or more columns of ``box``; returns its height in pixels (0: can't fit)."""
    high, square = ink.height(font) + 4, max(8, ink.height(font) - 6)
    cell = max(ink.width(font, name) for name in names) + square + 14
    columns = min(len(names), (box[2] - box[0]) // cell)
    if columns == 0 or -(-len(names) // columns) * high > box[3] - box[1]:
        return 0
    if len(names) > columns:
        columns = min(columns, 2)
    for i, name in enumerate(names):
        x, y = box[0] + (i % columns) * cell, box[1] + (i // columns) * high
        page.draw.rectangle((x, y + 3, x + square, y + 3 + square), fill=colours[i])
        page.put(x + square + 5, y, name, font)
    return -(-len(names) // columns) * high


def _upright(page: Sheet, chart: Chart, box: Box, colours: Sequence[Colour]) -> bool:
    """Vertical bars or a line over categories, one or two series."""
    table, font, high = chart.numbers, chart.font, ink.height(chart.font)
    left, top, right, bottom = box
    if len(table.columns) > 1:
        used = _legend(page, table.columns, font, (left, top, right, top + 2 * high + 10), colours)
        if not used:
            return False
        top += used + 4
    marks = ticks(chart.highest * (1.1 if chart.labels else 1), max(2, min(6, (bottom - top) // (2 * high))))
    texts = _tick_text(marks)
    axis = not chart.labels or page.rng.random() < 0.5
    left += max(ink.width(font, text) for text in texts) + 6 if axis else 2
    top += high + 4 if chart.labels else high // 2
    bottom -= high + 6
    slot = (right - left) / len(table.labels)
    widest = max(ink.width(font, label) for label in table.labels)
    values = max(ink.width(font, chart.show(i)) for i in range(len(table.labels))) if chart.labels else 0
    if max(widest, values) + 4 > slot or bottom - top < 60:
        return False
    span = bottom - top
    _frame(page, chart, (left, top, right, bottom), [bottom - span * m / marks[-1] for m in marks], upright=True)
    for text, mark in zip(texts, marks, strict=True) if axis else ():
        page.put(left - 5, bottom - span * mark / marks[-1] - high / 2, text, font, align="right")
    centres = [left + slot * (i + 0.5) for i in range(len(table.labels))]
    for i, (label, x) in enumerate(zip(table.labels, centres, strict=True)):
        page.put(x, bottom + 5, label, font, align="centre", join=i > 0)
    tops = [[bottom - span * value / marks[-1] for value in row] for row in table.values]
    if chart.look.sort == "line":
        _strokes(page, chart, centres, tops, colours)
    else:
        _columns(page, chart, centres, tops, (slot * page.rng.uniform(0.5, 0.85), bottom), colours)
    if chart.labels:
        _point_labels(page, chart, centres, [heights[0] for heights in tops], bottom)
    return True


def _point_labels(page: Sheet, chart: Chart, xs: list[float], ys: list[float], ground: int) -> None:
    """Values above bars and points; under the valleys of a line, where the line would cross them."""
    high, line = ink.height(chart.font), chart.look.sort == "line"
    gap = 5 if chart.look.style in ("dots", "squares", "stems") else 3
    for i, (x, y) in enumerate(zip(xs, ys, strict=True)):
        beside = ys[max(i - 1, 0) : i] + ys[i + 1 : i + 2]
        valley = line and all(other < y - 2 for other in beside) and y + gap + high + 3 < ground
        top, text = round(y + gap if valley else y - gap - high), chart.show(i)
        if line:  # clear the strokes of steep lines behind the text
            half = ink.width(chart.font, text) / 2
            page.draw.rectangle((x - half - 1, top, x + half + 1, top + high - 1), fill=page.theme.paper)
        page.put(x, top, text, chart.font, align="centre")


def _columns(
    page: Sheet,
    chart: Chart,
    centres: list[float],
    tops: list[list[float]],
    bar: tuple[float, int],
    colours: Sequence[Colour],
) -> None:
    """Bars of ``bar`` = (width of a group, y of the ground) pixels."""
    wide = bar[0] / len(tops[0])
    for i, (x, heights) in enumerate(zip(centres, tops, strict=True)):
        for j, y in enumerate(heights):
            at = x - bar[0] / 2 + j * wide
            colour = colours[i % len(colours)] if chart.look.style == "many" and len(heights) == 1 else colours[j]
            _bar(page, chart.look.style, (round(at), round(y), round(at + wide) - 1, bar[1]), colour, upright=True)


def _bar(page: Sheet, style: str, box: Box, colour: Colour, upright: bool) -> None:
    """One bar, from the ground to its value."""
    draw = page.draw
    left, top, right, bottom = box
    if style == "stems":
        x, y = (left + right) // 2, (top + bottom) // 2
        draw.line((x, bottom, x, top) if upright else (left, y, right, y), colour, 3)
        x, y = (x, top) if upright else (right, y)
        return draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)
    if style == "hatched":
        draw.rectangle(box, fill=sheet.mix(page.theme.paper, colour, 0.35), outline=colour, width=2)
        for at in range(top + 4, bottom, 5) if upright else range(left + 4, right, 5):
            draw.line((left, at, right, at) if upright else (at, top, at, bottom), colour)
        return None
    return draw.rectangle(box, fill=colour, outline=page.theme.ink if style == "outlined" else None)


def _strokes(page: Sheet, chart: Chart, xs: list[float], tops: list[list[float]], colours: Sequence[Colour]) -> None:
    """One line a series, with its marks."""
    for j in range(len(tops[0])):
        points = [(x, heights[j]) for x, heights in zip(xs, tops, strict=True)]
        path = points
        if chart.look.style == "steps":
            path = [p for a, b in pairwise(points) for p in (a, (b[0], a[1]))] + [points[-1]]
        page.draw.line(path, colours[j], 2)
        for x, y in points:
            if chart.look.style == "squares":
                page.draw.rectangle((x - 3, y - 3, x + 3, y + 3), fill=colours[j])
            elif chart.look.style != "plain":
                page.draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colours[j])


def _frame(page: Sheet, chart: Chart, box: Box, at: list[float], upright: bool) -> None:
    """Axes, grid or box around the plot; ``at`` are the pixels of the ticks along the axis of values."""
    left, top, right, bottom = box
    draw, theme, frame = page.draw, page.theme, chart.look.frame
    for place in at:
        if frame == "grid":
            faint = sheet.mix(theme.paper, theme.ink, 0.16)
            draw.line((left, place, right, place) if upright else (place, top, place, bottom), faint)
        elif frame != "base":
            draw.line((left - 3, place, left, place) if upright else (place, bottom, place, bottom + 3), theme.ink)
    if frame == "box":
        draw.rectangle((left, top, right, bottom), outline=theme.rule)
    draw.line((left, bottom, right, bottom) if upright else (left, top, left, bottom), theme.ink)
    if frame == "axes":
        draw.line((left, top, left, bottom) if upright else (left, bottom, right, bottom), theme.ink)


def _rows(page: Sheet, chart: Chart, box: Box, colours: Sequence[Colour]) -> bool:
    """Horizontal bars with the categories at the left."""
    table, font, high = chart.numbers, chart.font, ink.height(chart.font)
    left, top, right, bottom = box
    left += max(ink.width(font, label) for label in table.labels) + 6
    values = max(ink.width(font, chart.show(i)) for i in range(len(table.labels))) if chart.labels else 0
    right -= values + 8 if chart.labels else 4
    axis = not chart.labels or page.rng.random() < 0.4
    bottom -= high + 6 if axis else 0
    slot = (bottom - top) / len(table.labels)
    if slot < high + 1 or right - left < 70:
        return False
    marks, texts = _sparse_ticks(chart, right - left)
    if not marks:
        return False
    right -= ink.width(font, texts[-1]) // 2 if axis else 0
    span = right - left
    _frame(
        page,
        chart,
        (left, top, right, bottom),
        [left + span * m / marks[-1] for m in marks] if axis else [],
        upright=False,
    )
    thick = min(slot * page.rng.uniform(0.5, 0.8), 40)
    for i, label in enumerate(table.labels):
        middle, end = top + slot * (i + 0.5), left + span * table.values[i][0] / marks[-1]
        colour = colours[i % len(colours)] if chart.look.style == "many" else colours[0]
        _bar(
            page,
            chart.look.style,
            (left, round(middle - thick / 2), round(end), round(middle + thick / 2)),
            colour,
            upright=False,
        )
        page.put(left - 5, middle - high / 2, label, font, align="right")
        if chart.labels:
            page.put(end + 6, middle - high / 2, chart.show(i), font, join=True)
    for text, mark in zip(texts, marks, strict=True) if axis else ():
        page.put(left + span * mark / marks[-1], bottom + 5, text, font, align="centre", join=mark > 0)
    return True


def _pie(page: Sheet, chart: Chart, box: Box, colours: Sequence[Colour]) -> bool:
    """A pie or ring, its legend below, above or at the right, with shares in the legend or on the slices."""
    table, font, high = chart.numbers, chart.font, ink.height(chart.font)
    left, top, right, bottom = box
    inside = chart.labels and min(chart.shares) >= 10 and chart.look.style != "ring" and page.rng.random() < 0.6
    names = [
        f"{label} {chart.show(i)}" if chart.labels and not inside else label for i, label in enumerate(table.labels)
    ]
    if chart.look.frame == "right" and page.width > 300:
        wide = max(ink.width(font, name) for name in names) + 40
        area = (right - wide, top + 8, right, bottom)
        room = (left, top, right - wide - 8, bottom)
    else:
        cell = max(ink.width(font, name) for name in names) + max(8, high - 6) + 14
        columns = max(1, min(2, (right - left) // cell)) if len(names) > (right - left) // cell else len(names)
        used = -(-len(names) // columns) * (high + 4) + 4
        above = chart.look.frame == "above"
        area = (left, top, right, top + used) if above else (left, bottom - used, right, bottom)
        room = (left, top + used + 4, right, bottom) if above else (left, top, right, bottom - used - 4)
    side = min(room[2] - room[0], room[3] - room[1])
    if side < 70 or not _legend(page, names, font, area, colours):
        return False
    x, y, radius = (room[0] + room[2]) / 2, (room[1] + room[3]) / 2, side / 2 - 1
    _slices(page, chart, (x, y, radius), colours, inside)
    return True


def _slices(
    page: Sheet, chart: Chart, circle: tuple[float, float, float], colours: Sequence[Colour], inside: bool
) -> None:
    """The slices of a pie clockwise from the top, drawn at four times the size so that their edges are smooth."""
    x, y, radius = circle
    big = Image.new("RGB", (round(radius * 8) + 8, round(radius * 8) + 8), page.theme.paper)
    pen, box = ImageDraw.Draw(big), (4, 4, radius * 8 + 3, radius * 8 + 3)
    whole, angle, edge = sum(row[0] for row in chart.numbers.values), -90.0, page.theme.paper
    centres = []
    for i, row in enumerate(chart.numbers.values):
        turn = 360 * row[0] / whole
        pen.pieslice(
            box, angle, angle + turn, colours[i], page.theme.ink if chart.look.style == "outlined" else edge, 4
        )
        centres.append(math.radians(angle + turn / 2))
        angle += turn
    if chart.look.style == "ring":
        pen.ellipse([v + d * radius * 2.2 for v, d in zip(box, (1, 1, -1, -1), strict=True)], page.theme.paper)
    page.image.paste(
        big.resize((big.width // 4, big.height // 4), Image.Resampling.BOX),
        (round(x - radius) - 1, round(y - radius) - 1),
    )
    for i, turn in enumerate(centres) if inside else ():
        high, fill = ink.height(chart.font), (255, 255, 255) if sum(colours[i]) < 420 else (0, 0, 0)
        at = (x + 0.66 * radius * math.cos(turn), y + 0.66 * radius * math.sin(turn) - high / 2)
        page.put(*at, chart.show(i), chart.font, fill, "centre")
