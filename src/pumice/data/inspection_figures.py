"""Pictures of a sample on the page of `pumice inspect`: their tiles as the tower gets them, and how the tokens add up.

Picture ──sheet of its views──> small WebP in an SVG, a line between tiles, a veil over what is dropped
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

from PIL import Image

from pumice.data.inspection import Picture
from pumice.plan.drawing import map_lines
from pumice.types import Layout

CANVAS, OVERVIEW, FRAME = 320, 140, 80
"""Largest width and height in pixels of a canvas of tiles, of an overview, and of a frame of a video."""
ACROSS, FRAMES = 8, 64
"""Frames of a video side by side, and in all; the rest is counted."""

_SIGNS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
"""Control characters as the signs that Unicode has for them."""


def safe(said: str) -> str:
    """A text for HTML."""
    return escape(said.translate(_SIGNS))


def figure(number: int, picture: Picture) -> str:
    """A picture's tiles with its overview beside them, or a video's frames; and how its tokens add up."""
    placed = picture.layout
    drawn = _frames(picture) if placed.frames else _tiles(picture)
    w, h = placed.size
    said = [f"{number + 1}: {picture.kind} of {w}x{h} px", *count_lines(placed)]
    name = f'<span class="name">{safe(picture.name)}</span>' if picture.name else ""
    return f"<figure>{drawn}<figcaption>{name}{'<br>'.join(map(safe, said))}</figcaption></figure>"


def count_lines(placed: Layout) -> list[str]:
    """Views of a layout and how its tokens add up, a line each."""
    views = f"{placed.views} view{'s' * (placed.views > 1)}"
    total = f"{placed.tokens:,} visual tokens"
    if placed.frames:
        fast = placed.frames - -(-placed.frames // placed.slow_every)
        lines = [
            f"{placed.frames} frames of {placed.tile} px: {views}",
            f"{placed.map[1]}x{placed.map[0]} tokens a frame",
        ]
        if placed.stride > 1:
            lines[-1] += f", {placed.pool} pooling of {placed.side}x{placed.side}"
        lines += [f"{fast} of the frames pooled twice as much"] * bool(fast)
        return [*lines, f"{total}, newlines included" if placed.newline or placed.ends else total]
    several = placed.cols * placed.rows > 1
    tiles = f"{placed.cols}x{placed.rows} tiles of {placed.tile} px" if several else f"one tile of {placed.tile} px"
    if not placed.overview:
        return [f"{tiles}: {views}", f"{' '.join(map_lines(placed))} visual tokens"]
    overview = f"overview {placed.side}x{placed.side} = {placed.side**2}"
    return [f"{tiles} and an overview: {views}", overview, f"tiles {' '.join(map_lines(placed))}", total]


def _tiles(picture: Picture) -> str:
    placed, views = picture.layout, picture.views
    S = placed.tile
    size = placed.cols * S, placed.rows * S
    tiles = views[placed.overview :]
    canvas = _sheet(tiles, placed.cols, S, size) if tiles else None
    drawn = _drawing(canvas, size, (placed.cols, placed.rows), CANVAS, _dropped(placed))
    if placed.overview:
        drawn = _drawing(views[0] if views else None, (S, S), (1, 1), OVERVIEW) + drawn
    return drawn


def _frames(picture: Picture) -> str:
    frames = picture.views[:FRAMES]
    count = min(picture.layout.frames, FRAMES)
    cols = min(ACROSS, count)
    rows = -(-count // cols)
    size = cols * FRAME, rows * FRAME
    small = [frame.resize((FRAME, FRAME), Image.Resampling.LANCZOS) for frame in frames]
    sheet = _sheet(small, cols, FRAME, size) if small else None
    times = picture.times
    said = f"<p>{times[0]:.2f} to {times[-1]:.2f} s" if times else "<p>"
    said += f", the first {count} of {picture.layout.frames}" * (count < picture.layout.frames)
    return _drawing(sheet, size, (cols, rows), max(size)) + f"{said}</p>"


def _sheet(views: Sequence[Image.Image], cols: int, side: int, size: tuple[int, int]) -> Image.Image:
    """Views of ``side`` pixels laid side by side, row by row."""
    sheet = Image.new("RGBA", size)  # places without a frame stay open
    for place, view in enumerate(views):
        sheet.paste(view, (place % cols * side, place // cols * side))
    return sheet


def _dropped(placed: Layout) -> str:
    """Path of what un-padding drops of the canvas: all of it, less what is kept."""
    up, down, west, east = (n * placed.tile / placed.side for n in placed.keep)
    w, h = placed.cols * placed.tile, placed.rows * placed.tile
    if (up, down, west, east) == (0, h, 0, w):
        return ""
    return f"M0 0H{w}V{h}H0ZM{west:g} {up:g}V{down:g}H{east:g}V{up:g}Z"


def _drawing(
    image: Image.Image | None, size: tuple[int, int], grid: tuple[int, int], most: int, dropped: str = ""
) -> str:
    """An SVG of at most ``most`` pixels a side: the image, a veil over ``dropped``, and a line between tiles."""
    (w, h), (cols, rows) = size, grid
    scale = min(1.0, most / max(size))
    wide, high = max(1, round(w * scale)), max(1, round(h * scale))
    inside = "" if image is None else f'<image href="{_data(image, (wide, high))}" width="{w}" height="{h}"/>'
    inside += f'<path class="dropped" d="{dropped}"/>' if dropped else ""
    for col in range(1, cols):
        inside += f'<line x1="{col * w / cols:g}" y1="0" x2="{col * w / cols:g}" y2="{h}"/>'
    for row in range(1, rows):
        inside += f'<line x1="0" y1="{row * h / rows:g}" x2="{w}" y2="{row * h / rows:g}"/>'
    return f'<svg viewBox="0 0 {w} {h}" width="{wide}" height="{high}" role="img">{inside}</svg>'


def _data(image: Image.Image, size: tuple[int, int]) -> str:
    """A small WebP as a data: URI."""
    buffer = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(buffer, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
