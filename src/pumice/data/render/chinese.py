"""Short Chinese lines and simple pages of keys and values, where a Chinese font is installed.

rng ──names, places, words, numbers──> Page with one line, or with rows of key and value ──> Posed
"""

from __future__ import annotations

import random
import re
import tomllib
from functools import cache
from pathlib import Path

from pumice.data.render.fonts import Split, load_font, pick_font
from pumice.data.render.ink import Font
from pumice.data.render.lines import ink_and_paper
from pumice.data.render.page import Colour, Page, Question
from pumice.data.render.scenes import SIZE, Posed
from pumice.types import PumiceError

FONTS = (
    ("fonts-droid-fallback", "truetype/droid/DroidSansFallbackFull.ttf"),
    ("fonts-wqy-microhei", "truetype/wqy/wqy-microhei.ttc"),
    ("fonts-wqy-zenhei", "truetype/wqy/wqy-zenhei.ttc"),
)
"""Debian packages and the font in each, under FOLDER; the first that is installed is used."""
FOLDER = Path("/usr/share/fonts")


@cache
def said() -> dict[str, list[str]]:
    """Names, places, words and questions of chinese.toml."""
    table = tomllib.loads(Path(__file__).with_name("chinese.toml").read_text(encoding="utf8"))
    return {name: value.split() if isinstance(value, str) else value for name, value in table.items()}


@cache
def font_path() -> Path | None:
    """The Chinese font to draw with, or None."""
    return next((FOLDER / path for _, path in FONTS if (FOLDER / path).exists()), None)


def missing() -> str:
    """What to install when there is no Chinese font, else nothing."""
    return "" if font_path() else f"no Chinese font: apt-get install {FONTS[0][0]}"


class Pen:
    """A Chinese font and one for digits and Latin letters, which not all Chinese fonts have, at one pixel size."""

    def __init__(self, rng: random.Random, split: Split, px: int) -> None:
        path = font_path()
        if path is None:
            raise PumiceError(f"Chinese pages can't be drawn: {missing()}")
        self.px = px
        self.chinese, self.latin = load_font(str(path), px), pick_font(rng, split, px, "regular")

    def runs(self, text: str) -> list[tuple[Font, str]]:
        """The text in pieces of one font each."""
        return [
            (self.latin if run.isascii() else self.chinese, run)
            for run in re.findall(r"[\x00-\x7f]+|[^\x00-\x7f]+", text)
        ]

    def width(self, text: str) -> float:
        """Pixels that the text takes."""
        return sum(font.getlength(run) for font, run in self.runs(text))

    def write(self, page: Page, x: float, y: float, text: str, fill: Colour) -> float:
        """Write with the top of the Chinese font's line at ``y`` and both fonts on one base line; returns the end."""
        for font, run in self.runs(text):
            if run.strip():
                page.text((x, y + self.chinese.getmetrics()[0] - font.getmetrics()[0]), run, font, fill)
            x += font.getlength(run)
        return x


def chinese_read(rng: random.Random, split: Split) -> Posed:
    """One line of 2 to 12 characters: words, a name with a place, a date, goods with a price."""
    text = phrase(rng)
    ink, paper = ink_and_paper(rng)
    page = Page(SIZE, paper, rng)
    pen = Pen(rng, split, rng.randint(17, min(30, 204 // len(text))))
    x, y = rng.uniform(4, max(5.0, SIZE[0] - pen.width(text) - 6)), rng.uniform(8, SIZE[1] - 44)
    pen.write(page, x, y, text, ink)
    question = Question(rng.choice(said()["read"]), text, "chinese_read")
    return Posed((page.finish("chinese", []).image,), ((question, None),))


def chinese_value(rng: random.Random, split: Split) -> Posed:
    """A title and 3 to 5 rows of a key and its value; the question gives the key."""
    fields = rng.sample(sorted(_fields(rng).items()), rng.randint(3, 5))
    ink, paper = ink_and_paper(rng)
    page = Page(SIZE, paper, rng)
    pen, title = Pen(rng, split, rng.randint(14, 16)), Pen(rng, split, rng.randint(20, 25))
    left, y = rng.randint(6, 16), rng.randint(8, 18)
    title.write(page, left, y, rng.choice(said()["titles"]), ink)
    column = left + 3 * pen.px if rng.random() < 0.4 else 0
    y += 34
    for key, value in fields:
        end = pen.write(page, left, y, key + ("" if column else said()["colon"][0]), ink)
        pen.write(page, column or end + 2, y, value, ink)
        y += rng.randint(28, 31)
    key, value = rng.choice(fields)
    text = rng.choice(said()["value"]).format(key=key)
    return Posed((page.finish("chinese", []).image,), ((Question(text, value, "chinese_value"), None),))


def phrase(rng: random.Random) -> str:
    """What one line says."""
    return rng.choice(
        (
            lambda: rng.choice(said()["words"]) + rng.choice(said()["words"]),
            lambda: rng.choice(said()["words"]),
            lambda: f"{rng.choice(said()['cities'])}{rng.choice(said()['words'])}",
            lambda: f"{person(rng)} {rng.choice(said()['cities'])}",
            lambda: f"{rng.randint(1995, 2031)}年{rng.randint(1, 12)}月{rng.randint(1, 28)}日",
            lambda: f"{rng.choice(said()['goods'])} {rng.randint(2, 300)}元",
        )
    )()


def person(rng: random.Random) -> str:
    """A surname and a given name."""
    return rng.choice(said()["last"]) + rng.choice(said()["first"])


def _fields(rng: random.Random) -> dict[str, str]:
    return {
        "姓名": person(rng),
        "城市": rng.choice(said()["cities"]),
        "日期": f"{rng.randint(1995, 2031)}年{rng.randint(1, 12)}月{rng.randint(1, 28)}日",
        "编号": "".join(rng.choices("0123456789", k=6)),
        "商品": rng.choice(said()["goods"]),
        "金额": f"{rng.randint(2, 3000)}元",
        "数量": str(rng.randint(1, 60)),
    }


MAKERS = {"chinese_read": chinese_read, "chinese_value": chinese_value}
"""What is drawn here, by the task that it asks."""
