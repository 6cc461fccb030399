"""The page of ``pumice eval --frontier``: scatter plots as inline SVG, and a table.

[Point] ──Axis (linear or logarithmic) each way──> scatter ──> to_html (no scripts, nothing from elsewhere)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from pumice.eval.report.frontier import AXES, HEAD, Point, best, cells, remarks
from pumice.eval.report.page import STYLE, page, table
from pumice.train.page import COLOURS

LARGE, SMALL = (520, 340), (250, 190)
"""Width and height of a plot of the mean, and of a group."""
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 12, 40
CHARACTER = 6.4
"""Width of a character of a label, about."""
PLOTS = """
body { max-width: 74rem; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; }
.plots figcaption { font-weight: 600; font-size: .95rem; }
svg { display: block; max-width: 100%; height: auto; }
svg text { font: 11px system-ui, sans-serif; fill: currentColor; }
svg .axis { stroke: currentColor; opacity: .5; fill: none; }
svg .rule { stroke: currentColor; opacity: .12; }
svg .frontier { stroke: currentColor; opacity: .6; fill: none; stroke-dasharray: 5 4; }
"""
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Axis:
    """From values to pixels: ``low`` lies at ``start``, ``high`` at ``end``."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """Where a value lies, in pixels."""
        low, high, here = (math.log(v) if self.logarithmic else v for v in (self.low, self.high, value))
        return round(self.start + (here - low) / (high - low) * (self.end - self.start), 1)

    def ticks(self, most: int) -> list[float]:
        """At most ``most`` round values between the ends; of a logarithmic axis two at least."""
        if self.logarithmic:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for steps in ((1, 2, 5), (1, 3), (1,)):
                found = [s * 10.0**d for d in decades for s in steps if self.low <= s * 10.0**d <= self.high]
                if len(found) <= most:
                    break
            return found if len(found) > 1 else [self.low, self.high]
        step = round_up((self.high - self.low) / most)
        first = math.ceil(self.low / step - 1e-9)
        return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


def round_up(value: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(s * power for s in (1, 2, 5, 10) if s * power >= value * (1 - 1e-9))


def price_axis(values: Sequence[float], start: float, end: float) -> Axis:
    """From about 0, or logarithmic where the dearest is more than eight times the cheapest."""
    low, high = min(values), max(values)
    if low > 0 and high > 8 * low:
        return Axis(low / 1.3, high * 1.3, start, end, logarithmic=True)
    most = high * 1.08 or 1.0
    return Axis(-0.03 * most, most, start, end)  # a little room, or a price of 0 lies on the axis


def score_axis(points: Sequence[Point], group: str | None, start: float, end: float) -> Axis:
    """Per cent from the lowest to the highest end of an interval."""
    low = 100 * min(point.score(group)[1] for point in points)
    high = 100 * max(point.score(group)[2] for point in points)
    room = max(0.06 * (high - low), 0.5)
    return Axis(max(0.0, low - room), min(100.0, high + room), start, end)


def scatter(points: Sequence[Point], axis: str, group: str | None, size: tuple[int, int]) -> str:
    """Scores with their intervals against a price, as SVG; the frontier is dashed, runs below it are hollow."""
    width, height = size
    large, floor, edge = size == LARGE, height - BOTTOM, width - RIGHT
    across = price_axis([point.price(axis) for point in points], LEFT, edge)
    up = score_axis(points, group, floor, TOP)
    leaders = best(points, axis, group)
    spots = {point.letter: (across.at(point.price(axis)), up.at(100 * point.score(group)[0])) for point in points}
    drawn = [_frame(across, up, axis, size), _staircase([spots[point.letter] for point in leaders], edge)]
    taken: list[Box] = [(x - 6, y - 6, x + 6, y + 6) for x, y in spots.values()]
    for number, point in enumerate(points):
        (x, y), (_, low, high) = spots[point.letter], point.score(group)
        colour = COLOURS[number % len(COLOURS)]
        fill = colour if point in leaders else "Canvas"
        said = f"{point.letter} {point.name}: {100 * point.score(group)[0]:.1f}% at {point.price(axis):.4g} {axis}"
        drawn.append(
            f'<g><title>{escape(said)}</title><path d="M{x},{up.at(100 * low)}V{up.at(100 * high)}" stroke="{colour}" '
            f'opacity=".5"/><circle cx="{x}" cy="{y}" r="4.5" style="fill:{fill}" stroke="{colour}" '
            'stroke-width="2"/></g>'
        )
        drawn.append(_label(f"{point.letter} {point.name}" if large else point.letter, (x, y), taken, size))
    name = f"{group or 'mean of the groups'} against {axis}"
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="{escape(name)}">'
        f"{''.join(drawn)}</svg>"
    )


def _frame(across: Axis, up: Axis, axis: str, size: tuple[int, int]) -> str:
    """Axes with their ticks and names."""
    width, height = size
    floor, edge, large = height - BOTTOM, width - RIGHT, size == LARGE
    drawn = [f'<path class="axis" d="M{LEFT},{TOP}V{floor}H{edge}"/>']
    for tick in up.ticks(6 if large else 4):
        y = up.at(tick)
        drawn.append(f'<path class="rule" d="M{LEFT},{y}H{edge}"/>')
        drawn.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{tick:g}%</text>')
    for tick in across.ticks(8 if large else 4):
        x = across.at(tick)
        drawn.append(f'<path class="axis" d="M{x},{floor}v4"/>')
        drawn.append(f'<text x="{x}" y="{floor + 16}" text-anchor="middle">{tick:.4g}</text>')
    name = axis + ", logarithmic" * across.logarithmic
    middle = (LEFT + edge) / 2
    return "".join(drawn) + f'<text x="{middle}" y="{height - 6}" text-anchor="middle">{name}</text>'


def _staircase(spots: Sequence[tuple[float, float]], edge: float) -> str:
    """The best quality that can be had up to each price."""
    steps = "".join(f"H{x}V{y}" for x, y in spots[1:])
    return f'<path class="frontier" d="M{spots[0][0]},{spots[0][1]}{steps}H{edge}"/>'


def _label(text: str, spot: tuple[float, float], taken: list[Box], size: tuple[int, int]) -> str:
    """A name beside its point: the first place that is free of other names and points, of eight; else the first."""
    (x, y), wide = spot, CHARACTER * len(text)
    places = [(x + 9, y - 3), (x + 9, y + 13), (x - 9 - wide, y - 3), (x - 9 - wide, y + 13)]
    places += [(x + 9, y - 17), (x - 9 - wide, y - 17), (x + 9, y + 27), (x - 9 - wide, y + 27)]
    boxes = [(left, base - 10, left + wide, base + 3) for left, base in places]
    inside = [b for b in boxes if b[0] >= LEFT and b[2] <= size[0] and b[1] >= 0 and b[3] <= size[1] - BOTTOM]
    chosen = next((b for b in inside if not any(_touch(b, other) for other in taken)), (inside or boxes)[0])
    taken.append(chosen)
    return f'<text x="{chosen[0]:.1f}" y="{chosen[3] - 3:.1f}">{escape(text)}</text>'


def _touch(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def to_html(points: Sequence[Point]) -> str:
    """One page: the mean against both prices, the runs, and each group in small."""
    parts = ["<h1>Quality against cost</h1>", _figures(points, None, LARGE)]
    rows = [[escape(text) for text in cells(point, points)] for point in points]
    parts.append(table(HEAD, [rows], ("run", "frontier")))
    parts += [f"<p>{escape(remark)}</p>" for remark in remarks(points)]
    parts.append(
        "<p>Dashed: the frontier, the best quality that each price buys. Hollow: another run is as good for less, or "
        "better for the same. Upright lines: 95% intervals; frontiers within them may be chance.</p>"
    )
    for axis in AXES:
        plots = "".join(_figure(points, axis, group, SMALL) for group in points[0].groups)
        parts.append(f'<h2>Groups against {axis}</h2><div class="plots">{plots}</div>')
    return page("Pumice: quality against cost", STYLE + PLOTS, "\n".join(parts))


def _figures(points: Sequence[Point], group: str | None, size: tuple[int, int]) -> str:
    return f'<div class="plots">{"".join(_figure(points, axis, group, size) for axis in AXES)}</div>'


def _figure(points: Sequence[Point], axis: str, group: str | None, size: tuple[int, int]) -> str:
    caption = escape(group) if group else f"quality against {axis}"
    return f"<figure><figcaption>{caption}</figcaption>{scatter(points, axis, group, size)}</figure>"
