"""Lines of a receipt: a text at the left, maybe one at the right, or a rule; drawn from the top of a sheet.

Row* that fit ──draw──> Sheet
"""

from __future__ import annotations

from dataclasses import dataclass

from pumice.data.render import ink, sheet
from pumice.data.render.ink import Font
from pumice.data.render.sheet import Sheet


@dataclass(frozen=True)
class Row:
    """One line: text at the left (or as aligned), maybe more at the right; or a rule when there is no text."""

    left: str
    right: str = ""
    font: Font | None = None
    align: sheet.Align = "left"
    look: str = "plain"
    gap: int = 3


def height(row: Row) -> int:
    """Pixels of the row without the gap before it; bars and boxes have padding."""
    if row.font is None:
        return 3
    return ink.height(row.font) + (6 if row.look in ("bar", "box") else 0)


def width(row: Row) -> int:
    """Pixels that the row needs at least, with space between its two texts."""
    if row.font is None:
        return 0
    between = 10 if row.left and row.right else 0
    pad = 10 if row.look in ("bar", "box") else 0
    return ink.width(row.font, row.left) + ink.width(row.font, row.right) + between + pad


def draw(page: Sheet, rows: list[Row], margin: int) -> None:
    """Draw the rows from the top, with some of the spare height shared out between them."""
    spare = page.height - 2 * margin - sum(height(row) + row.gap for row in rows)
    stretch = page.rng.uniform(0, 1) * min(spare / (len(rows) + 1), 9)
    y = margin + page.rng.uniform(0, max(0.0, spare - stretch * len(rows)))
    prices = max((ink.width(row.font, row.left) for row in rows if row.font and row.look == "columns"), default=0)
    for row in rows:
        y += row.gap + stretch
        _draw_row(page, row, margin, round(y), prices)
        y += height(row)


def _draw_row(page: Sheet, row: Row, margin: int, y: int, prices: int) -> None:
    left, right = margin, page.width - margin
    if row.font is None:
        return _draw_rule(page, row.look, left, right, y)
    fill = page.theme.ink
    if row.look in ("bar", "box"):
        edge = (left, y, right - 1, y + height(row) - 1)
        page.draw.rectangle(edge, fill=page.theme.ink if row.look == "bar" else None, outline=page.theme.ink)
        fill = page.theme.paper if row.look == "bar" else fill
        left, right, y = left + 5, right - 5, y + 3
    if row.look == "columns":
        page.put(left, y, row.left, row.font, fill)
        return page.put(left + prices + 10, y, row.right, row.font, fill, join=True)
    if row.left:
        x = {"left": left, "centre": (left + right) / 2, "right": right}[row.align]
        page.put(x, y, row.left, row.font, fill, row.align)
    if row.right:
        page.put(right, y, row.right, row.font, fill, "right", join=bool(row.left))
    if row.look == "leader":
        base = y + ink.height(row.font) * 3 // 4
        end = right - ink.width(row.font, row.right) - 4
        for x in range(left + ink.width(row.font, row.left) + 4, end, 4):
            page.draw.point((x, base), page.theme.ink)
    return None


def _draw_rule(page: Sheet, look: str, left: int, right: int, y: int) -> None:
    pen, colour = page.draw, page.theme.rule
    if look in ("line", "double"):
        pen.line((left, y, right, y), colour)
    if look == "double":
        pen.line((left, y + 2, right, y + 2), colour)
    step, dash = {"dash": (7, 4), "dots": (4, 1)}.get(look, (right, 0))
    for x in range(left, right - dash, step):
        if dash:
            pen.line((x, y + 1, x + dash, y + 1), colour)
