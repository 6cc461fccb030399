"""Lines, boxes, hatching and text with smooth edges, and the card that stands for a picture.

    result pixels ──x FINE──> Pillow sheet ──scaled down──> image

Everything is drawn at twice its size, since Pillow's lines have no smooth edges.
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

FINE = 2
"""Drawn pixels a pixel of the result."""
WIDTH = 1360
"""Width of the result in pixels."""

INK, GREY, RULE, PAPER = (34, 40, 49), (112, 120, 130), (214, 218, 222), (255, 255, 255)
PICTURE_TOP, PICTURE_BOTTOM, LIGHT = (58, 124, 148), (150, 196, 178), (214, 232, 228)
Box = tuple[float, float, float, float]
Point = tuple[float, float]
Colour = tuple[int, int, int]


class Pen:
    """Draws in result pixels on a sheet of twice the size."""

    def __init__(self, height: int) -> None:
        self.sheet = Image.new("RGB", (WIDTH * FINE, height * FINE), PAPER)
        self.draw = ImageDraw.Draw(self.sheet)

    def box(self, box: Box, fill: Colour | None = None, line: Colour | None = None, width: float = 1.0) -> None:
        self.draw.rectangle([n * FINE for n in box], fill, line, round(width * FINE))

    def line(self, ends: Box, colour: Colour, width: float = 1.0) -> None:
        self.draw.line([n * FINE for n in ends], colour, round(width * FINE))

    def text(
        self, at: tuple[float, float], text: str, size: int = 20, colour: Colour = INK, anchor: str = "la"
    ) -> None:
        self.draw.text((at[0] * FINE, at[1] * FINE), text, colour, _font(size), anchor)

    def width(self, text: str, size: int = 20) -> float:
        return _font(size).getlength(text) / FINE

    def reduced(self) -> Image.Image:
        """The sheet at the size of the result."""
        return self.sheet.resize((WIDTH, self.sheet.height // FINE), Image.Resampling.LANCZOS)

    def paste(self, image: Image.Image, at: Point) -> None:
        self.sheet.paste(image, (round(at[0] * FINE), round(at[1] * FINE)))

    def hatch(self, box: Box, ground: Colour, stroke: Colour) -> None:
        """Diagonal strokes over a box: an area that is not picture."""
        size = round((box[2] - box[0]) * FINE), round((box[3] - box[1]) * FINE)
        if min(size) < 1:
            return
        area = Image.new("RGB", size, ground)
        draw = ImageDraw.Draw(area)
        for x in range(-size[1], size[0], 9 * FINE):
            draw.line((x, size[1], x + size[1], 0), stroke, FINE)
        self.paste(area, box[:2])


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * FINE)


def card(shape: Point, size: Point, part: Sequence[float] = (0.0, 0.0, 1.0, 1.0)) -> Image.Image:
    """What stands for a picture of ``shape`` (w, h): a gradient, diagonals and a circle, so that squashing shows.

    ``part`` (left, top, right, bottom), in shares of the whole, is squashed to ``size`` result pixels.
    """
    scale = 1600 / max(shape)
    w, h = max(60, round(shape[0] * scale)), max(60, round(shape[1] * scale))
    shade = Image.linear_gradient("L").resize((w, h))
    whole = Image.composite(Image.new("RGB", (w, h), PICTURE_BOTTOM), Image.new("RGB", (w, h), PICTURE_TOP), shade)
    pen = ImageDraw.Draw(whole)
    pen.line((0, 0, w, h), LIGHT, 4)
    pen.line((0, h, w, 0), LIGHT, 4)
    radius = min(w, h) * 0.4
    pen.ellipse((w / 2 - radius, h / 2 - radius, w / 2 + radius, h / 2 + radius), None, PAPER, 9)
    target = (max(1, round(size[0] * FINE)), max(1, round(size[1] * FINE)))
    box = (part[0] * w, part[1] * h, part[2] * w, part[3] * h)
    return whole.resize(target, Image.Resampling.LANCZOS, box)
