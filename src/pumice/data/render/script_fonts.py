"""Fonts of scripts other than Latin, and fonts like handwriting: Debian's, found where they are installed.

fc-list ──families by script and split──> font_files ──pick──> a font that covers a text
"""

from __future__ import annotations

import random
import subprocess
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from PIL import ImageFont

from pumice.data.render.fonts import Split, load_font
from pumice.types import PumiceError


@dataclass(frozen=True)
class Script:
    """Families by split; the Debian ``packages`` have one of each split at least."""

    title: str
    train: tuple[str, ...]
    heldout: tuple[str, ...]
    packages: tuple[str, ...]


SCRIPTS: dict[str, Script] = {
    "chinese-fonts": Script(
        "Chinese",
        ("Droid Sans Fallback", "WenQuanYi Micro Hei", "AR PL UMing CN", "Noto Sans CJK SC"),
        ("WenQuanYi Zen Hei", "AR PL UKai CN", "Noto Serif CJK SC"),
        ("fonts-wqy-microhei", "fonts-wqy-zenhei"),
    ),
    "japanese-fonts": Script(
        "Japanese",
        ("VL Gothic", "VL PGothic", "Sawarabi Mincho", "IPAMincho", "Noto Sans CJK JP"),
        ("Sawarabi Gothic", "IPAGothic", "Noto Serif CJK JP"),
        ("fonts-vlgothic", "fonts-sawarabi-gothic"),
    ),
    "korean-fonts": Script(
        "Korean",
        ("UnDotum", "UnBatang", "UnGungseo", "NanumGothic", "Noto Sans CJK KR"),
        ("UnGraphic", "LexiGulim", "NanumMyeongjo", "Noto Serif CJK KR"),
        ("fonts-unfonts-core",),
    ),
    "handwriting-fonts": Script(
        "handwriting",
        ("DkgHandwriting", "Purisa", "Domestic Manners", "Comic Neue", "YOzA"),
        ("Rufscript", "Humor Sans", "Chancery Uralic"),
        ("fonts-dkg-handwriting", "fonts-tlwg-purisa-ttf", "fonts-dustin", "fonts-rufscript", "fonts-humor-sans"),
    ),
}
"""By the name of their material; a family of one split is never drawn in the other."""
STYLES = {"Regular", "regular", "Roman", "Medium", "Bold", "Italic"}


@cache
def _installed() -> dict[str, tuple[str, ...]]:
    """Files by family, of upright faces first."""
    try:
        told = subprocess.run(
            ["fc-list", "--format", "%{family[0]}\t%{style[0]}\t%{file}\n"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return {}
    found: dict[str, dict[str, str]] = {}
    for line in sorted(told.splitlines()):
        family, _, rest = line.partition("\t")
        style, _, path = rest.partition("\t")
        if style in STYLES and path.endswith((".ttf", ".otf", ".ttc")):
            found.setdefault(family, {}).setdefault(style, path)
    return {family: tuple(dict.fromkeys(faces.values())) for family, faces in found.items()}


@cache
def font_files(material: str, split: Split) -> tuple[str, ...]:
    """The installed font files of a script for a split; none where there are none."""
    script = SCRIPTS[material]
    families = script.train if split == "train" else script.heldout
    return tuple(path for family in families for path in _installed().get(family, ()))


def missing(material: str) -> str:
    """What to install where a split of a script has no font, or nothing."""
    script = SCRIPTS[material]
    if all(font_files(material, split) for split in ("train", "heldout")):
        return ""
    return f"no {script.title} font: apt-get install {' '.join(script.packages)}"


def pick(rng: random.Random, material: str, split: Split, px: int) -> ImageFont.FreeTypeFont:
    """A font of a script at ``px`` pixels an em.

    Raises:
        PumiceError: none is installed.
    """
    files = font_files(material, split)
    if not files:
        raise PumiceError(missing(material))
    return load_font(rng.choice(files), px)


@cache
def _blank(path: str) -> frozenset[bytes]:
    """What the font draws for characters that it doesn't have."""
    return frozenset(_drawn(path, char) for char in ("\uffff", "\U0010fffe", "\ue0ff"))


def _drawn(path: str, char: str) -> bytes:
    mask: Any = load_font(path, 24).getmask(char)
    return bytes(mask)


@lru_cache(maxsize=65536)
def _has(path: str, char: str) -> bool:
    drawn = _drawn(path, char)
    return any(drawn) and drawn not in _blank(path)


def covers(font: ImageFont.FreeTypeFont, text: str) -> bool:
    """Whether the font has every character of a text but its blanks."""
    return all(char.isspace() or _has(str(font.path), char) for char in text)


@cache
def face_for(char: str) -> str:
    """A font file for a character outside of Latin, of any script and split; nothing where none has it."""
    every = (path for material in SCRIPTS for split in ("train", "heldout") for path in font_files(material, split))
    return next((path for path in every if _has(path, char)), "")
