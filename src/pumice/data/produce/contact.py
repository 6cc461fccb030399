"""Contact sheets: examples of one kind with what is asked about them, to be looked at before anything is trained.

Example* ──> cells (pictures or frames in a row, questions and answers below) ──> one picture
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from functools import cache

from PIL import Image, ImageDraw, ImageFont

from pumice.data.render.kinds import Example
from pumice.data.render.script_fonts import face_for

CELL = 440
"""Width of a cell in pixels."""
TALL = 440
"""Most pixels of a picture's height."""
COLUMNS = 4
FRAMES = 4
"""Frames of a video that are shown."""
PX = 13
LINES = 18
"""Most lines of text below a picture."""
GAP = 8


def contact_sheet(examples: Sequence[Example]) -> Image.Image:
    """All examples on one RGB picture, COLUMNS in a row."""
    cells = [_cell(example) for example in examples]
    rows = [cells[at : at + COLUMNS] for at in range(0, len(cells), COLUMNS)]
    columns = min(COLUMNS, len(cells))
    height = sum(max(cell.height for cell in row) + GAP for row in rows) + GAP
    sheet = Image.new("RGB", (columns * (CELL + GAP) + GAP, height), (210, 210, 210))
    y = GAP
    for row in rows:
        for column, cell in enumerate(row):
            sheet.paste(cell, (GAP + column * (CELL + GAP), y))
        y += max(cell.height for cell in row) + GAP
    return sheet


def _cell(example: Example) -> Image.Image:
    strip = _strip(example)
    lines = _lines(example)
    cell = Image.new("RGB", (CELL, (strip.height if strip else 0) + GAP + (PX + 4) * len(lines) + GAP), "white")
    if strip:
        cell.paste(strip, ((CELL - strip.width) // 2, 0))
    top = (strip.height if strip else 0) + GAP
    for i, (text, colour) in enumerate(lines):
        write(cell, (GAP, top + i * (PX + 4)), text, colour)
    return cell


def _strip(example: Example) -> Image.Image | None:
    """The pictures, or some frames, side by side in the width of a cell."""
    frames = list(example.frames)
    if not frames:
        return None
    if example.fps and len(frames) > FRAMES:
        frames = [frames[(len(frames) - 1) * i // (FRAMES - 1)] for i in range(FRAMES)]
    wide = sum(frame.width for frame in frames) + 4 * (len(frames) - 1)
    high = max(frame.height for frame in frames)
    strip = Image.new("RGB", (wide, high), (160, 160, 160))
    x = 0
    for frame in frames:
        strip.paste(frame, (x, 0))
        x += frame.width + 4
    scale = min(CELL / wide, TALL / high, 1.5)
    return strip.resize((max(1, round(wide * scale)), max(1, round(high * scale))), Image.Resampling.LANCZOS)


def _lines(example: Example) -> list[tuple[str, tuple[int, int, int]]]:
    """Questions in blue, answers in black, wrapped and cut."""
    out: list[tuple[str, tuple[int, int, int]]] = []
    for exchange in example.exchanges:
        for text, colour in ((exchange.question, (30, 70, 170)), (f"> {exchange.answer}", (0, 0, 0))):
            for line in text.split("\n"):
                # A Chinese character is as wide as two Latin ones.
                wide = CELL // PX if re.search(r"[\u3000-\uffff]", line) else 62
                out += [(part, colour) for part in textwrap.wrap(line, wide) or [""]]
    return [*out[: LINES - 1], ("...", (120, 120, 120))] if len(out) > LINES else out


def write(image: Image.Image, xy: tuple[int, int], text: str, colour: tuple[int, int, int]) -> None:
    """One line, each run of it in a font that has its characters."""
    draw, (x, y) = ImageDraw.Draw(image), xy
    for run in re.findall(r"[\u0000-\u2fff]+|[\u3000-\uffff]+", text):
        font = _font(face_for(run[0]) if run[0] >= "\u3000" else "")
        draw.text((x, y), run, colour, font)
        x += round(font.getlength(run))


@cache
def _font(path: str) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.truetype(path, PX) if path else ImageFont.load_default(PX)
