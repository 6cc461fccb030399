"""Fast text: each character of a font is measured and rasterised once, then lines are put together from the pieces.

    font ──char──> Piece (mask, offset, advance) ──line──> pixels on an image + the ink box of every character

FreeType hints a glyph again at every call, which made measuring 70% of the time of a page. With the basic layout engine
advances are whole pixels, so that a line put together here equals PIL's own to one level of grey
(tests/test_render.py).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from PIL import Image, ImageFont

from pumice.data.render.fonts import FACES
from pumice.types import Glyph

Font = ImageFont.FreeTypeFont
KERNED = ("AV", "To", "P.", "Ya")


class Piece(NamedTuple):
    """One character: its mask (PIL's core image), where its ink begins, its size and its advance, in pixels."""

    mask: Any
    left: int
    top: int
    width: int
    height: int
    advance: float


class Ink:
    """The pieces of one font, made when first needed."""

    def __init__(self, font: Font) -> None:
        self.font = font
        self.pieces: dict[str, Piece] = {}
        self.pairs: dict[str, float] = {}
        # Few fonts have the old kerning table that the basic engine reads; the others skip measuring pairs.
        self.kerned = any(self._kern(pair) for pair in KERNED)
        boxes = [self.piece(char) for char in "Agjp|(yQ$,"]
        self.top = min(piece.top for piece in boxes)
        self.bottom = max(piece.top + piece.height for piece in boxes)

    def piece(self, char: str) -> Piece:
        """The character's piece, rasterised once."""
        if char not in self.pieces:
            mask, (left, top) = self.font.getmask2(char, "L")
            self.pieces[char] = Piece(mask, left, top, mask.size[0], mask.size[1], self.font.getlength(char))
        return self.pieces[char]

    def lefts(self, text: str) -> list[float]:
        """Where each character begins, and where the last ends, in pixels from the beginning of the line."""
        x, out = 0.0, [0.0]
        for i, char in enumerate(text):
            x += self.piece(char).advance + (self._kern(text[i : i + 2]) if self.kerned else 0.0)
            out.append(x)
        return out

    def _kern(self, pair: str) -> float:
        if len(pair) < 2:
            return 0.0
        if pair not in self.pairs:
            self.pairs[pair] = self.font.getlength(pair) - sum(self.piece(char).advance for char in pair)
        return self.pairs[pair]

    def draw(self, image: Image.Image, x: int, y: int, text: str, fill: tuple[int, int, int]) -> list[Glyph]:
        """Draw a line from (x, y), as ``ImageDraw.text`` does, and return its characters' ink boxes (no spaces)."""
        glyphs = []
        for char, left in zip(text, self.lefts(text), strict=False):
            piece = self.piece(char)
            if char.isspace() or not piece.width:
                continue
            x0, y0 = x + round(left) + piece.left, y + piece.top
            box = (x0, y0, x0 + piece.width, y0 + piece.height)
            image.im.paste(fill, box, piece.mask)
            glyphs.append(Glyph(char, *box))
        return glyphs


@lru_cache(maxsize=FACES)
def ink(font: Font) -> Ink:
    """The pieces of a font, shared between pages."""
    return Ink(font)


def height(font: Font) -> int:
    """Pixels of ink from the highest to the lowest point of a line."""
    return ink(font).bottom - ink(font).top


@lru_cache(maxsize=4096)
def width(font: Font, text: str) -> int:
    """Pixels that a line takes, its overhang on both sides included."""
    if not text:
        return 0
    pieces, lefts = ink(font), ink(font).lefts(text)
    last = pieces.piece(text[-1])
    return round(max(lefts[-1], lefts[-2] + last.left + last.width) - min(pieces.piece(text[0]).left, 0))
