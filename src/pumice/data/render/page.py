"""A page being drawn: an image, and where each character's ink is.

    Page(size) ──text(...)──> image + glyphs ──finish──> Rendered (image, glyphs, questions)

Everything random comes from the ``random.Random`` that the caller passes, so that a picture is a pure function
of its seed.
"""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from pumice.data.render.ink import ink
from pumice.types import Glyph, Named

Colour = tuple[int, int, int]
Line = tuple[tuple[float, float, float, float], str]
"""The box (x0, y0, x1, y1) of a line's ink in pixels, and its text."""


@dataclass(frozen=True)
class Question:
    """A question about a rendered picture, its only right answer, and the task that it counts for."""

    text: str
    answer: str
    task: str


@dataclass(frozen=True)
class Rendered:
    """A finished picture: RGB image, the characters drawn on it, questions with answers, what else it shows, and its
    lines of text in drawing order.
    """

    image: Image.Image
    glyphs: tuple[Glyph, ...]
    questions: tuple[Question, ...]
    kind: str
    things: tuple[Named, ...] = ()
    lines: tuple[Line, ...] = ()


def text_of(glyphs: Sequence[Glyph]) -> str:
    """What is drawn, in drawing order: words by the gaps between glyphs, a new line where they move down or back."""
    written, last = "", None
    for glyph in glyphs:
        if last is not None:
            height = max(last.y1 - last.y0, glyph.y1 - glyph.y0, 8.0)
            if abs((glyph.y0 + glyph.y1) - (last.y0 + last.y1)) / 2 > 0.8 * height or glyph.x0 < last.x0:
                written += "\n"
            elif glyph.x0 - last.x1 > 0.25 * height:
                written += " "
        written += glyph.char
        last = glyph
    return written


class Page:
    """A sheet of ``size`` (width, height) pixels. ``draw`` is PIL's drawing context for lines and shapes."""

    def __init__(self, size: tuple[int, int], paper: Colour, rng: random.Random) -> None:
        self.image = Image.new("RGB", size, paper)
        self.draw = ImageDraw.Draw(self.image)
        self.glyphs: list[Glyph] = []
        self.written: list[Line] = []
        self.rng = rng

    def text(
        self, xy: tuple[float, float], string: str, font: ImageFont.FreeTypeFont, fill: Colour
    ) -> tuple[float, float, float, float]:
        """Draw one line with its top left at ``xy`` and record the ink box of each character.

        Returns the box (x0, y0, x1, y1) of the line's ink in pixels. Spaces leave no glyph; a blank line is an error.
        """
        glyphs = ink(font).draw(self.image, round(xy[0]), round(xy[1]), string, fill)
        self.glyphs += glyphs
        _, left, top, right, bottom = zip(*glyphs, strict=True)
        box = min(left), min(top), max(right), max(bottom)
        self.written.append((box, string))
        return box

    def finish(self, kind: str, questions: list[Question], wear: float = 0.5) -> Rendered:
        """Wear the picture mildly with probability ``wear`` (noise, blur or JPEG) and close the page."""
        image = self.image
        if self.rng.random() < wear:
            image = _wear(image, self.rng)
        return Rendered(image, tuple(self.glyphs), tuple(questions), kind, lines=tuple(self.written))


def _wear(image: Image.Image, rng: random.Random) -> Image.Image:
    """One of: sensor noise, a slight blur, JPEG artefacts. Mild enough that 12 px text stays legible."""
    how = rng.random()
    if how < 0.4:
        noise = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(2, 10), (image.height, image.width, 1))
        pixels = np.asarray(image, dtype=np.float32) + noise.astype(np.float32)
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    if how < 0.7:
        return image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.6)))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=rng.randint(45, 90))
    return Image.open(buffer).convert("RGB")
