"""Walls of text: lines that fill the whole picture, so that nearly every patch carries characters to learn.

words, names, numbers ──> lines of one font and size each ──> Rendered with "read" questions on sparse pages
"""

from __future__ import annotations

import random
from collections.abc import Callable

from pumice.data.render import values
from pumice.data.render.fonts import Split, pick_font
from pumice.data.render.page import Colour, Page, Question, Rendered

READ = (
    "Read the text.",
    "What does it say?",
    "What is written here?",
    "Transcribe the text.",
    "Read this out.",
)


def phrase(rng: random.Random, split: Split) -> str:
    """A word, name, number, price, date or code: a third of the mass on digits, which are the hardest to read."""
    roll = rng.random()
    if roll < 0.36:
        word = values.word(rng, split)
        return rng.choice((word, word, word.capitalize(), word.upper()))
    if roll < 0.44:
        return values.person(rng, split)
    if roll < 0.50:
        return values.city(rng, split)
    if roll < 0.56:
        return values.shop(rng, split)
    if roll < 0.62:
        return values.date(rng, split)
    if roll < 0.70:
        return values.code(rng, split)
    if roll < 0.74:
        return values.phone(rng, split)
    if roll < 0.84:
        return f"{rng.choice(('', '', '$', 'EUR ', '-', '+'))}{rng.randint(0, 99999) / 100:.2f}"
    if roll < 0.93:
        return str(rng.randint(0, 10 ** rng.randint(1, 6)))
    return "".join(chr(rng.randint(33, 126)) for _ in range(rng.randint(2, 6)))


def ink_and_paper(rng: random.Random) -> tuple[Colour, Colour]:
    """Two colours with enough contrast to read: mostly dark on light, one in eight the other way round."""
    light, dark = rng.randint(225, 255), rng.randint(0, 70)
    shade = rng.choice(((255, 255, 255), (255, 255, 255), (light, light, light), _tint(rng, 205, 255)))
    ink = rng.choice(((0, 0, 0), (dark, dark, dark), _tint(rng, 0, 110)))
    return (shade, ink) if rng.random() < 0.125 else (ink, shade)


def _tint(rng: random.Random, low: int, high: int) -> Colour:
    return rng.randint(low, high), rng.randint(low, high), rng.randint(low, high)


def render_wall(rng: random.Random, split: Split, size: tuple[int, int] = (224, 224)) -> Rendered:
    """A picture full of text, edge to edge; for teaching the tower to read, not for questions."""
    ink, paper = ink_and_paper(rng)
    page = Page(size, paper, rng)
    y = float(rng.randint(-2, 8))
    px = _size(rng)
    font = pick_font(rng, split, px)
    while y < size[1] - 8:
        if rng.random() < 0.35:
            px = _size(rng)
            font = pick_font(rng, split, px)
        page.text((float(rng.randint(-4, 12)), y), _fill(rng, split, font.getlength, size[0]), font, ink)
        y += px * rng.uniform(1.02, 1.45)
    return page.finish("wall", [])


def render_lines(rng: random.Random, split: Split, size: tuple[int, int] = (224, 224)) -> Rendered:
    """One to four short lines anywhere on the page, to be read out."""
    ink, paper = ink_and_paper(rng)
    page = Page(size, paper, rng)
    px = rng.randint(15, 21)
    font = pick_font(rng, split, px)
    count = rng.choice((1, 1, 1, 2, 2, 3, 4))
    pitch = px * rng.uniform(1.15, 1.6)
    y = rng.uniform(4, max(5.0, size[1] - count * pitch - 6))
    left = rng.uniform(4, 40)
    lines = []
    for _ in range(count):
        line = _fit(rng, split, font.getlength, size[0] - left - 4)
        x = left if rng.random() < 0.6 else rng.uniform(4, max(5.0, size[0] - font.getlength(line) - 4))
        page.text((x, y), line, font, ink)
        lines.append(line)
        y += pitch
    return page.finish("lines", [Question(rng.choice(READ), "\n".join(lines), "read")])


def _size(rng: random.Random) -> int:
    """Pixel sizes: most of the mass on 13-21, where documents at this resolution live."""
    return rng.randint(13, 21) if rng.random() < 0.8 else rng.choice((10, 11, 12, 22, 24, 28, 32))


def _fill(rng: random.Random, split: Split, measure: Callable[[str], float], width: float) -> str:
    """Phrases until the line runs over the right border."""
    line = phrase(rng, split)
    while measure(line) < width:
        line += " " * rng.choice((1, 1, 1, 1, 2, 3)) + phrase(rng, split)
    return line


def _fit(rng: random.Random, split: Split, measure: Callable[[str], float], width: float) -> str:
    """Phrases as long as they fit."""
    line = phrase(rng, split)
    for _ in range(8):
        if measure(line) <= width:
            break
        line = phrase(rng, split)
    while rng.random() < 0.6:
        longer = f"{line} {phrase(rng, split)}"
        if measure(longer) > width:
            break
        line = longer
    while measure(line) > width:
        line = line[:-1].rstrip()
    return line
