"""Text in the wild: signs on textured walls, and notes in fonts like handwriting.

rng, split ──words──> board or sheet ──perspective──> background ──degrade──> Posed
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from pumice.data.render import degrade, script_fonts, sheet, values, writing
from pumice.data.render.fonts import Split, pick_font
from pumice.data.render.page import Colour
from pumice.data.render.scenes import Posed
from pumice.data.render.sheet import ask, mix

SIZES = ((336, 336), (448, 336), (448, 448), (336, 448))
READ = "What does the sign say?|Read the sign.|What is written on the sign?|Which text is on the sign?"
NOTE = "What does the note say?|Read the note.|Transcribe the handwriting.|Write down the note."


@dataclass(frozen=True)
class Look:
    """A board: its form (plate, round, arrow, banner) and its edge (none, line, double)."""

    form: str
    edge: str


LOOKS: dict[Split, tuple[Look, ...]] = {
    "train": (Look("plate", "none"), Look("plate", "line"), Look("banner", "none"), Look("arrow", "line")),
    "heldout": (Look("plate", "double"), Look("banner", "line"), Look("arrow", "none")),
}
PAIRS: tuple[tuple[Colour, Colour], ...] = (
    ((20, 60, 150), (255, 255, 255)), ((0, 110, 60), (255, 255, 255)), ((190, 20, 30), (255, 255, 255)),
    ((250, 205, 20), (10, 10, 10)), ((245, 245, 240), (20, 20, 20)), ((30, 30, 34), (250, 240, 200)),
    ((235, 235, 235), (180, 20, 30)), ((110, 60, 20), (250, 240, 220)),
)  # fmt: skip
"""Colours of board and letters."""
SAYINGS = (
    "OPEN|CLOSED|EXIT|NO ENTRY|NO PARKING|PUSH|PULL|SALE|PRIVATE|WET PAINT|KEEP LEFT|ONE WAY|STOP|SLOW|DANGER|TICKETS|"
    "TAXI|TOILETS|PLATFORM|FOR RENT|FOR SALE|PLEASE KNOCK|STAFF ONLY|WELCOME|CAUTION|FIRE EXIT|RECEPTION|BUS STOP"
)


def sign(rng: random.Random, split: Split) -> Posed:
    """One board with one to three short lines."""
    rng = sheet.stream(rng, f"sign {split}")
    size, look = rng.choice(SIZES), rng.choice(LOOKS[split])
    lines = _said(rng, split)
    board, ink = rng.choice(PAIRS)
    wide = round(size[0] * rng.uniform(0.65, 0.95))
    font = _widest(rng, split, lines, round(wide * (0.62 if look.form == "arrow" else 0.86)))
    pitch = font.size * 1.35
    high = min(round(pitch * len(lines) + font.size * 0.8), size[1])
    plate = _board(rng, (wide, high), look, board, ink)
    draw = ImageDraw.Draw(plate)
    for i, line in enumerate(lines):
        x = wide * (0.44 if look.form == "arrow" else 0.5) - font.getlength(line) / 2
        draw.text((x, (high - pitch * len(lines)) / 2 + i * pitch), line, ink, font)
    image = _placed(rng, plate, size)
    text = "\n".join(lines)
    asked = [ask(rng, "read_sign", READ, text)]
    if len(lines) > 1:
        place, line = rng.choice((("first", lines[0]), ("last", lines[-1])))
        asked.append(ask(rng, "read_line", "What does the {p} line of the sign say?", line, p=place))
    return Posed((image,), tuple((question, None) for question in asked), reading=text)


def _said(rng: random.Random, split: Split) -> list[str]:
    """What a sign says: a word, a place with a distance, a shop, a house number, opening hours."""
    roll = rng.random()
    if roll < 0.3:
        saying = values.within(rng, split, lambda r: r.choice(SAYINGS.split("|")))
        return [saying, *([f"{rng.randint(1, 99)} {rng.choice(('km', 'm', 'min'))}"] if rng.random() < 0.4 else [])]
    if roll < 0.55:
        return [values.city(rng, split), *([f"{rng.randint(1, 300)} km"] if rng.random() < 0.6 else [])]
    if roll < 0.75:
        return [values.shop(rng, split), *([values.phone(rng, split)] if rng.random() < 0.4 else [])]
    if roll < 0.9:
        return [f"{rng.randint(1, 250)}", values.word(rng, split)]
    opens = f"{rng.randint(6, 11)}:00 - {rng.randint(15, 22)}:{rng.choice(('00', '30'))}"
    return [rng.choice(("OPEN", "HOURS")), rng.choice(("Mon - Fri", "Mon - Sat", "Daily")), opens]


def _widest(rng: random.Random, split: Split, lines: list[str], room: int) -> ImageFont.FreeTypeFont:
    """A font in which the longest line just fits, of at most 64 pixels and at least 14."""
    face = rng.getrandbits(32)
    for px in range(64, 14, -4):
        font = pick_font(random.Random(face), split, px, "bold")
        if max(font.getlength(line) for line in lines) <= room:
            return font
    return pick_font(random.Random(face), split, 14, "bold")


def _board(rng: random.Random, size: tuple[int, int], look: Look, board: Colour, ink: Colour) -> Image.Image:
    """The empty board, weathered a little."""
    plate = degrade.paper(rng, size, board)
    draw, (w, h) = ImageDraw.Draw(plate), size
    if look.edge != "none":
        draw.rectangle((4, 4, w - 5, h - 5), outline=ink, width=3)
    if look.edge == "double":
        draw.rectangle((10, 10, w - 11, h - 11), outline=ink)
    if look.form == "arrow":
        x, y, s = w * 0.86, h / 2, min(h * 0.3, w * 0.1)
        shaft = [(x - s, y - s * 0.35), (x, y - s * 0.35), (x, y - s), (x + s, y)]
        draw.polygon([*shaft, *((px, h - py) for px, py in reversed(shaft))], ink)
    elif look.form == "banner":
        band = max(3, h // 14)
        for top in (0, h - band):
            draw.rectangle((0, top, w, top + band), mix(board, ink, 0.5))
    return plate


def _placed(rng: random.Random, front: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Something flat somewhere on a background, a little tilted, then weathered."""
    left, top = (rng.randint(0, max(0, whole - part)) for whole, part in zip(size, front.size, strict=True))
    corners = tuple((x + left, y + top) for x, y in degrade.tilt(rng, front.size, 0.06))
    return degrade.degrade(rng, degrade.lay(front, degrade.background(rng, size), corners), 14)


def note(rng: random.Random, split: Split) -> Posed:
    """A handwritten note of one to five lines, on plain or ruled paper."""
    rng = sheet.stream(rng, f"note {split}")
    size = rng.choice(SIZES)
    px = rng.randint(20, 30)
    font = script_fonts.pick(rng, "handwriting-fonts", split, px)
    pitch, top, left = round(px * rng.uniform(1.4, 1.7)), rng.randint(12, 30), rng.randint(12, 24)
    lines = _note_lines(rng, split, font, round(size[0] * 0.86))[: (size[1] - top) // pitch]
    page = degrade.paper(rng, size, rng.choice(((252, 252, 250), (250, 246, 230), (240, 244, 250))))
    draw = ImageDraw.Draw(page)
    if rng.random() < 0.5:
        for y in range(top + px + 4, size[1], pitch):
            draw.line((0, y, size[0], y), (170, 190, 220))
    ink = rng.choice(((20, 30, 110), (15, 15, 20), (40, 40, 60), (120, 20, 30)))
    for i, line in enumerate(lines):
        draw.text((left + rng.uniform(-3, 3), top + i * pitch + rng.uniform(-2, 2)), line, ink, font)
    image = page.rotate(rng.uniform(-3, 3), Image.Resampling.BICUBIC, fillcolor=page.getpixel((3, 3)))
    text = "\n".join(lines)
    asked = [ask(rng, "read_note", NOTE, text)]
    if len(lines) > 1:
        asked.append(ask(rng, "read_line", "What does the first line say?|Read the first line.", lines[0]))
    return Posed((degrade.degrade(rng, image, px // 2),), tuple((q, None) for q in asked), reading=text)


def _note_lines(rng: random.Random, split: Split, font: ImageFont.FreeTypeFont, room: int) -> list[str]:
    """A list of things to buy, a message with a name, or a sentence."""
    made: list[str] = []
    while not (kept := [line for line in made if font.getlength(line) <= room and script_fonts.covers(font, line)]):
        made = _note_words(rng, split, font, room)
    return kept


def _note_words(rng: random.Random, split: Split, font: ImageFont.FreeTypeFont, room: int) -> list[str]:
    kind = rng.choice(("list", "message", "text"))
    if kind == "list":
        return [f"- {values.product(rng, split)}" for _ in range(rng.randint(2, 5))]
    if kind == "message":
        made = [f"Call {values.person(rng, split)}", values.phone(rng, split), values.date(rng, split)]
        return made[: rng.randint(1, 3)]
    return writing.wrap(writing.sentence(rng, "en", split).split(), " ", font, room)
