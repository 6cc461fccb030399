"""Pages of text before a background, as SynthDoG makes them: a reading task in four languages.

    rng, split ──blocks of sentences in a grid──> page ──paper, perspective──> background ──degrade──> Rendered

Sizes and shares are SynthDoG's (Donut, arXiv 2111.15664), whose text is Wikipedia's; here it is made of word lists.
Donut's target is all text in reading order, and so is the answer here.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from pumice.data.render import degrade, script_fonts, sheet, writing
from pumice.data.render.fonts import Split, pick_font
from pumice.data.render.scenes import Posed

SHORT_SIDE = (720, 1024)
PAPERS = ((250, 250, 248), (246, 240, 226), (236, 236, 238), (240, 246, 240))
ROWS, COLUMNS = 10, 3
READ = (
    "Read all the text in the picture.|Write down the text of this page.|Transcribe the page.|"
    "What does the page say? Give all of its text."
)
FIRST = "What does the first line say?|Read the first line."
MATERIAL = {"zh": "chinese-fonts", "ja": "japanese-fonts", "ko": "korean-fonts"}
LEAST_PX = 14
"""Smallest text in pixels of the page."""


@dataclass(frozen=True)
class Block:
    """A paragraph: its lines and where they go, the left top corner and the pitch in pixels."""

    lines: tuple[str, ...]
    left: float
    top: float
    pitch: float


def english(rng: random.Random, split: Split) -> Posed:
    """A page of English."""
    return render(rng, "en", split)


def chinese(rng: random.Random, split: Split) -> Posed:
    """A page of Chinese."""
    return render(rng, "zh", split)


def japanese(rng: random.Random, split: Split) -> Posed:
    """A page of Japanese."""
    return render(rng, "ja", split)


def korean(rng: random.Random, split: Split) -> Posed:
    """A page of Korean."""
    return render(rng, "ko", split)


def render(rng: random.Random, language: str, split: Split) -> Posed:
    """A picture of a page with its text as the answer.

    Raises:
        PumiceError: no font of the language is installed.
    """
    rng = sheet.stream(rng, f"synthdog {language} {split}")
    short = rng.randint(*SHORT_SIDE)
    long = round(short * rng.uniform(1, 2))
    size = (long, short) if rng.random() < 0.5 else (short, long)
    full = rng.random() < 0.5
    page_size = size if full else _sheet_size(rng, size)
    px = max(LEAST_PX, round(min(page_size) * rng.uniform(0.0334, 0.1)))
    font = _font(rng, language, split, px)
    blocks = _blocks(rng, language, split, page_size, font, px)
    page = degrade.paper(
        rng, page_size, rng.choice(((250, 250, 248), (246, 240, 226), (236, 236, 238), (240, 246, 240)))
    )
    _write(rng, page, blocks, font)
    ground = degrade.background(rng, size)
    corners = degrade.tilt(rng, page_size, 0.0 if full and rng.random() < 0.4 else 0.04)
    left, top = (size[0] - page_size[0]) // 2, (size[1] - page_size[1]) // 2
    image = degrade.lay(page, ground, tuple((x + left, y + top) for x, y in corners))
    image = degrade.degrade(rng, image, px)
    text = "\n".join(line for block in blocks for line in block.lines)
    asked = [sheet.ask(rng, "read_page", READ, text)]
    if len(blocks) > 1 and rng.random() < 0.3:
        asked.append(sheet.ask(rng, "read_line", FIRST, blocks[0].lines[0]))
    return Posed((image,), tuple((question, None) for question in asked), reading=text)


def _sheet_size(rng: random.Random, size: tuple[int, int]) -> tuple[int, int]:
    """A page that leaves some of the background free."""
    return round(size[0] * rng.uniform(0.6, 0.95)), round(size[1] * rng.uniform(0.6, 0.95))


def _font(rng: random.Random, language: str, split: Split, px: int) -> ImageFont.FreeTypeFont:
    return pick_font(rng, split, px) if language == "en" else script_fonts.pick(rng, MATERIAL[language], split, px)


def _blocks(
    rng: random.Random, language: str, split: Split, size: tuple[int, int], font: ImageFont.FreeTypeFont, px: int
) -> list[Block]:
    """Paragraphs in up to ROWS x COLUMNS cells, some of which stay empty; one at least."""
    margin = [rng.uniform(0.02, 0.1) * side for side in size]
    columns = rng.randint(1, max(1, min(COLUMNS, int((size[0] - 2 * margin[0]) / (9 * px)))))
    wide = (size[0] - 2 * margin[0]) / columns
    pitch = px * rng.uniform(1.2, 1.6)
    fill = rng.uniform(0.5, 1)
    out: list[Block] = []
    for column in range(columns):
        top, left = margin[1], margin[0] + column * wide
        for _ in range(ROWS):
            room = int((size[1] - margin[1] - top) / pitch)
            if room < 1:
                break
            if rng.random() < fill or not out:
                lines = _wrapped(rng, language, split, font, wide - px, min(room, rng.randint(1, 5)))
                out.append(Block(tuple(lines), left, top, pitch))
                top += len(lines) * pitch
            top += pitch * rng.uniform(0.4, 1.2)
    return out


def _wrapped(
    rng: random.Random, language: str, split: Split, font: ImageFont.FreeTypeFont, width: float, most: int
) -> list[str]:
    """Up to ``most`` lines of sentences that the font covers, broken at blanks, in Chinese and Japanese anywhere."""
    blank = "" if language in ("zh", "ja") else " "
    lines: list[str] = []
    while len(lines) < most and (not lines or rng.random() < 0.6):
        text = _covered(lambda: writing.sentence(rng, language, split), font)
        lines += writing.wrap(text.split() if blank else list(text), blank, font, width)
    return lines[:most]


def _covered(make: Callable[[], str], font: ImageFont.FreeTypeFont) -> str:
    """The first text that the font has all characters of, or the last without those that it lacks."""
    text = make()
    for _ in range(8):
        if script_fonts.covers(font, text):
            return text
        text = make()
    return "".join(char for char in text if script_fonts.covers(font, char)) or "1"


def _write(rng: random.Random, page: Image.Image, blocks: list[Block], font: ImageFont.FreeTypeFont) -> None:
    """All blocks in one dark ink."""
    grey = rng.randint(0, 64)
    fill = (grey, grey, grey) if rng.random() < 0.8 else (rng.randint(0, 64), rng.randint(0, 64), rng.randint(40, 120))
    draw = ImageDraw.Draw(page)
    for block in blocks:
        for i, line in enumerate(block.lines):
            draw.text((block.left, block.top + i * block.pitch), line, fill, font)
