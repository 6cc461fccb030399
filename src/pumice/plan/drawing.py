"""The tiling as a picture: what is seen, what is cut, what is dropped, and what it costs beside it.

[Costs] ──panel each──> overview + canvas of tiles + frames, numbers ──> PIL image
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from pumice.plan.costs import Costs, filled
from pumice.plan.devices import Device, fits, predict
from pumice.plan.pen import FINE, GREY, INK, PAPER, PICTURE_TOP, RULE, WIDTH, Box, Pen, Point, card
from pumice.plan.report import binary, caption, grid, scaled, seconds, weights
from pumice.types import Layout

HEIGHT, FOOT, MARGIN = 620, 96, 44
"""Height of a panel, of the legend at the foot; margin."""
STAGE = (800, 376)
"""Room for the tiles; below it four lines of text."""

CANVAS, SPENT, DROPPED = (255, 243, 224), (240, 170, 84), (200, 205, 211)
NEWLINE = (120, 88, 166)


def draw(plans: Sequence[Costs], device: Device) -> Image.Image:
    """One panel a model, one under the other: RGB, 1360 pixels wide."""
    image = Image.new("RGB", (WIDTH, HEIGHT * len(plans) + FOOT), PAPER)
    for number, plan in enumerate(plans):
        pen = Pen(HEIGHT)
        pen.text((MARGIN, 34), plan.model.name, 34)
        pen.text((MARGIN, 78), subtitle(plan), 20, GREY)
        _stage(pen, plan, 128)
        _numbers(pen, plan, device, 40)
        pen.line((MARGIN, HEIGHT - 1, WIDTH - MARGIN, HEIGHT - 1), RULE)
        image.paste(pen.reduced(), (0, number * HEIGHT))
    pen = Pen(FOOT)
    _foot(pen, device)
    image.paste(pen.reduced(), (0, HEIGHT * len(plans)))
    return image


def subtitle(plan: Costs) -> str:
    """The picture and its tiles in a line."""
    parts = []
    if placed := plan.layout:
        parts.append(f"{placed.size[0]}x{placed.size[1]} px on {grid(plan)}")
        parts.append(f"{filled(placed):.0%} of the map is picture")
    if plan.video:
        parts.append(f"{plan.video.frames} frames of {plan.model.tower.tile} px")
    return ", ".join(parts)


def _stage(pen: Pen, plan: Costs, top: float) -> None:
    """Overview, canvas and frames from left to right, all at one scale, each with its tokens below."""
    placed, tile, gap = plan.layout, plan.model.policy.tile, 46.0
    across = (placed.cols + placed.overview) * tile if placed else 0
    across += tile * 1.25 if plan.video else 0
    gaps = gap * ((placed is not None and placed.overview) + (placed is not None and plan.video is not None))
    tall = max(placed.rows if placed else 1, 1.4 if plan.video else 1) * tile  # a stack of frames rises by 0.2
    scale = min((STAGE[0] - gaps - 20) / across, STAGE[1] / tall)
    side, x = tile * scale, float(MARGIN)
    middle = top + STAGE[1] / 2
    if placed and placed.overview:
        box = (x, middle - side / 2, x + side, middle + side / 2)
        pen.paste(card(placed.size, (side, side)), box[:2])
        pen.box(box, line=INK, width=2)
        _under(pen, box, [f"{placed.side}x{placed.side}", f"= {placed.side**2}", "overview"])
        pen.text((x + side + gap / 2, middle), "+", 30, GREY, "mm")
        x += side + gap
    if placed:
        height, width = placed.rows * side, placed.cols * side
        _canvas(pen, placed, (x, middle - height / 2, x + width, middle + height / 2), scale)
        x += width + (20 if placed.newline else 0)
    if plan.video:
        if placed:
            pen.text((x + gap / 2, middle), "+", 30, GREY, "mm")
            x += gap
        _frames(pen, plan.video, (x, middle - side / 2, x + side, middle + side / 2))


def _under(pen: Pen, box: Box, lines: list[str]) -> None:
    """Lines below a box: on one line where they fit, one under the other elsewhere."""
    joined = " ".join(lines[:-1])
    shown = [joined, lines[-1]] if pen.width(joined, 18) <= max(box[2] - box[0], 90) else lines
    for number, line in enumerate(shown):
        last = number == len(shown) - 1
        pen.text(((box[0] + box[2]) / 2, box[3] + 10 + 23 * number), line, 18, GREY if last else INK, "ma")


def _canvas(pen: Pen, placed: Layout, box: Box, scale: float) -> None:
    """The tiles with the picture on them, the tokens that are kept, and their numbers."""
    x0, y0, x1, y1 = box
    pen.hatch(box, CANVAS, SPENT)
    # Where the picture sticks out of the canvas, only the part inside is drawn.
    (w, h), (left, top) = placed.resized, placed.offset
    part = (
        max(-left, 0),
        max(-top, 0),
        min(w, placed.cols * placed.tile - left),
        min(h, placed.rows * placed.tile - top),
    )
    shown = card(
        placed.size,
        ((part[2] - part[0]) * scale, (part[3] - part[1]) * scale),
        [n / m for n, m in zip(part, (w, h, w, h), strict=True)],
    )
    pen.paste(shown, (x0 + max(left, 0) * scale, y0 + max(top, 0) * scale))
    cell = placed.tile * scale / placed.side
    up, down, west, east = (n * cell for n in placed.keep)
    for dropped in ((x0, y0, x1, y0 + up), (x0, y0 + down, x1, y1), (x0, y0, x0 + west, y1), (x0 + east, y0, x1, y1)):
        pen.hatch(dropped, PAPER, DROPPED)
    _cells(pen, (x0 + west, y0 + up, x0 + east, y0 + down), cell)
    side = placed.tile * scale
    for col in range(placed.cols + 1):
        pen.line((x0 + col * side, y0, x0 + col * side, y1), INK, 2)
    for row in range(placed.rows + 1):
        pen.line((x0, y0 + row * side, x1, y0 + row * side), INK, 2)
    for col in range(placed.cols):
        for row in range(placed.rows):
            _count(pen, placed, (col, row), (x0, y0), side)
    if placed.newline:
        pen.box((x1 + 8, y0 + up, x1 + 8 + max(4.0, min(cell, 10.0)), y0 + down), NEWLINE)
    _under(pen, box, [*map_lines(placed), "tiles"])


def _cells(pen: Pen, box: Box, cell: float) -> None:
    """A thin line between tokens, where they are large enough to be told apart."""
    wide, high = box[2] - box[0], box[3] - box[1]
    if cell < 6 or min(wide, high) < cell:
        return
    veil = Image.new("L", (round(wide * FINE), round(high * FINE)))
    ink = ImageDraw.Draw(veil)
    for n in range(1, round(wide / cell)):
        ink.line((n * cell * FINE, 0, n * cell * FINE, veil.height), 70)
    for n in range(1, round(high / cell)):
        ink.line((0, n * cell * FINE, veil.width, n * cell * FINE), 70)
    pen.sheet.paste(PAPER, (round(box[0] * FINE), round(box[1] * FINE)), veil)


def tile_part(placed: Layout, col: int, row: int) -> tuple[int, int, int, int]:
    """The tokens (top, bottom, left, right) of a tile that un-padding keeps, in the map of all tiles; may be empty."""
    P, (up, down, west, east) = placed.side, placed.keep
    top, left = max(up, row * P), max(west, col * P)
    return top, max(top, min(down, (row + 1) * P)), left, max(left, min(east, (col + 1) * P))


def _count(pen: Pen, placed: Layout, tile: tuple[int, int], origin: Point, side: float) -> None:
    """A tile's kept tokens (before the map is scaled) on a white plate in the middle of what is kept."""
    top, bottom, left, right = tile_part(placed, *tile)
    tokens = (bottom - top) * (right - left)
    size = 20 if side >= 90 else 15
    half = pen.width(f"{tokens}", size) / 2 + 7
    if side < 2 * half + 6 or not tokens:
        return
    cell = side / placed.side
    x, y = origin[0] + (left + right) / 2 * cell, origin[1] + (top + bottom) / 2 * cell
    high = size * 0.75
    plate = [(x - half) * FINE, (y - high) * FINE, (x + half) * FINE, (y + high) * FINE]
    pen.draw.rounded_rectangle(plate, 6 * FINE, PAPER)
    pen.text((x, y), f"{tokens}", size, INK, "mm")


def map_lines(placed: Layout) -> list[str]:
    """How the tiles' tokens add up: ["81x54 scaled to 80x53", "+ 53 newlines", "= 4293"]."""
    (h, w), (up, down, west, east) = placed.map, placed.keep
    rest = placed.tokens - placed.overview * placed.side**2
    lines = [f"{w}x{h}" if (h, w) == (down - up, east - west) else f"{east - west}x{down - up} scaled to {w}x{h}"]
    if newlines := rest - h * w:
        lines.append(f"+ {newlines} newline{'s' * (newlines > 1)}")
    return [*lines, f"= {rest}"]


def _frames(pen: Pen, video: Layout, box: Box) -> None:
    """A stack of frames."""
    x0, y0, x1, y1 = box
    step = (x1 - x0) * 0.05
    frame = card((16, 9), (x1 - x0, y1 - y0))
    for back in (4, 3, 2, 1, 0):
        moved = (x0 + back * step, y0 - back * step, x1 + back * step, y1 - back * step)
        pen.paste(frame, moved[:2])
        pen.box(moved, line=INK, width=2)
    square = video.frames * video.map[0] * video.map[1]
    extra = video.tokens - square
    newlines = [f"+ {extra} newline{'s' * (extra > 1)}"] if extra else []
    sides = f"{video.frames}x{video.map[1]}x{video.map[0]}"
    _under(pen, box, [sides, *newlines, f"= {video.tokens}", "frames, pooled" if video.stride > 1 else "frames"])


def _numbers(pen: Pen, plan: Costs, device: Device, top: float) -> None:
    """The costs, a line each."""
    times = predict(plan, device)
    left, right = 920, WIDTH - MARGIN
    pen.text((right, top - 8), f"{plan.tokens}", 46, INK, "ra")
    pen.text((left, top + 14), "visual tokens", 22, GREY)
    groups = (
        (
            ("views through the tower", f"{plan.views}"),
            ("tower", scaled(plan.tower_flops, "FLOPs")),
            ("prefill", scaled(plan.prefill_flops, "FLOPs")),
            ("each token after", scaled(plan.decode_flops, "FLOPs")),
        ),
        (
            ("parameters", weights(plan.parameters)),
            (f"weights, {plan.dtype}", binary(plan.weight_bytes)),
            ("KV cache of the tokens", binary(plan.kv_bytes)),
        ),
        (
            (f"predicted on {device.name}", "" if fits(plan, device) else "does not fit"),
            ("tower and connector", seconds(times.vision)),
            ("prefill", seconds(times.prefill)),
            ("each token after", seconds(times.decode)),
        ),
    )
    y = top + 62.0
    for group in groups:
        pen.line((left, y, right, y), RULE)
        y += 16
        for label, value in group:
            pen.text((left, y), label, 20, GREY)
            pen.text((right, y), value, 20, INK, "ra")
            y += 34
        y += 8


def _foot(pen: Pen, device: Device) -> None:
    """What the colours mean, and where the times come from."""
    x, y = float(MARGIN), 18.0
    for name in ("picture", "canvas among the tokens", "dropped", "newlines"):
        box = (x, y, x + 26, y + 20)
        if name == "picture":
            pen.box(box, PICTURE_TOP)
        elif name == "newlines":
            pen.box((x + 9, y, x + 17, y + 20), NEWLINE)
        else:
            pen.hatch(box, *((CANVAS, SPENT) if name == "canvas among the tokens" else (PAPER, DROPPED)))
            pen.box(box, line=RULE)
        pen.text((x + 36, y), name, 18, GREY)
        x += 36 + pen.width(name, 18) + 34
    pen.text((MARGIN, 50), caption(device).splitlines()[0], 18, GREY)
