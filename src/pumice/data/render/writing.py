"""Sentences in English, Chinese, Japanese and Korean, out of word lists: text to be read, not to be understood.

rng, language, split ──words of Faker's lists, of one split──> one line or sentence
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache

from PIL import ImageFont

from pumice.data.render import values
from pumice.data.render.fonts import Split

LISTS: dict[str, tuple[tuple[str, str], ...]] = {
    "zh": (
        ("lorem.zh_CN", "word_list"), ("job.zh_CN", "jobs"), ("address.zh_CN", "cities countries provinces districts"),
        ("company.zh_CN", "company_prefixes"),
    ),
    "ja": (
        ("lorem.ja_JP", "word_list"), ("job.ja_JP", "jobs"), ("address.ja_JP", "countries prefectures cities towns"),
        ("company.ja_JP", "company_categories"),
    ),
    "ko": (
        ("job.ko_KR", "jobs"), ("address.ko_KR", "cities countries provinces boroughs road_names metropolitan_cities"),
        ("company.ko_KR", "company_name_words brand_suffixes catch_phrase_words"),
    ),
}  # fmt: skip
"""Faker's providers and their attributes, by language."""
HANGING = "，。、."  # noqa: RUF001 (Chinese text)
UNITS = {"zh": "元", "ja": "円", "ko": "원"}
NAMES = {"zh": "zh_CN", "ja": "ja_JP", "ko": "ko_KR"}


@cache
def words(language: str, split: Split) -> tuple[str, ...]:
    """Words of a language that belong to the split, sorted, without repeats."""
    found = {
        word
        for module, attributes in LISTS[language]
        for word in values.strings(module, *attributes.split())
        if isinstance(word, str) and 0 < len(word) <= 12 and not word.isascii()
    }
    return tuple(sorted(word for word in found if values.split_of(word) == split))


@cache
def _people(language: str, split: Split) -> tuple[str, ...]:
    last, first = (values.strings(f"person.{NAMES[language]}", key) for key in ("last_names", "first_names"))
    blank = " " if language == "ja" else ""
    rng = random.Random(f"people {language}")
    made = {f"{rng.choice(last)}{blank}{rng.choice(first)}" for _ in range(2000)}
    return tuple(sorted(name for name in made if values.split_of(name) == split))


def sentence(rng: random.Random, language: str, split: Split) -> str:
    """A sentence of 3 to 12 words with a number, a name or a date in some."""
    return _english(rng, split) if language == "en" else _asian(rng, language, split)


def wrap(pieces: Sequence[str], blank: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Lines of at most ``width`` pixels out of pieces with ``blank`` between them; a wider piece is left out.

    Marks of HANGING begin no line.
    """
    lines, line, used = [""], 0, 0.0
    gap = font.getlength(blank) if blank else 0.0
    for piece in pieces:
        long = font.getlength(piece)
        if long > width:
            continue
        if lines[line] and used + gap + long > width and piece not in HANGING:
            lines.append("")
            line, used = line + 1, 0.0
        lines[line] += blank * bool(lines[line]) + piece
        used += gap + long
    return [text.strip() for text in lines if text.strip()]


def _english(rng: random.Random, split: Split) -> str:
    common, rare = values.vocabulary("common", split), values.vocabulary("word", split)
    made = [rng.choice(common if rng.random() < 0.8 else rare).lower() for _ in range(rng.randint(3, 12))]
    extras: tuple[Callable[[random.Random, Split], str], ...] = (
        values.person, values.city, values.date, values.code, values.company,
        lambda r, _: f"{r.randint(1, 99999):,}", lambda r, _: f"{r.randint(1, 99)}%",
    )  # fmt: skip
    if rng.random() < 0.5:
        made.insert(rng.randint(1, len(made)), rng.choice(extras)(rng, split))
    if len(made) > 7:
        made[3] += ","
    text = " ".join(made)
    return text[0].upper() + text[1:] + rng.choice("....?!:")


def _asian(rng: random.Random, language: str, split: Split) -> str:
    pool, blank = words(language, split), " " if language == "ko" else ""
    made = [rng.choice(pool) for _ in range(rng.randint(2, 7))]
    roll = rng.random()
    if roll < 0.15:
        made.append(rng.choice(_people(language, split)))
    elif roll < 0.3:
        y, m, d = rng.randint(1990, 2031), rng.randint(1, 12), rng.randint(1, 28)
        made.append(f"{y}년 {m}월 {d}일" if language == "ko" else f"{y}年{m}月{d}日")
    elif roll < 0.45:
        made.append(f"{rng.randint(1, 99999):,}{UNITS[language]}")
    rng.shuffle(made)
    comma, stop = {"ko": (", ", "."), "zh": ("，", "。"), "ja": ("、", "。")}[language]  # noqa: RUF001
    text = blank.join(made[:3]) + (comma + blank.join(made[3:]) if len(made) > 3 else "")
    return text + (stop if rng.random() < 0.7 else "")
