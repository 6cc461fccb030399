"""Fonts for rendered pages: installed families, split so that held-out pages use families never trained on.

fc-list ──> faces of the families named here ──pick_font──> a FreeType font at a pixel size
"""

from __future__ import annotations

import random
import subprocess
from functools import cache, lru_cache
from typing import Literal

from PIL import ImageFont

from pumice.types import PumiceError

Split = Literal["train", "heldout"]

# Families with a full Latin alphabet, by look. All are packages of Debian (packages.txt): sans, serif, mono, informal.
TRAIN = """
    DejaVu Sans, Liberation Sans, Liberation Sans Narrow, Arimo, Carlito, Lato, Open Sans, Noto Sans, Noto Sans
    Display, Inter, Karla, Cabin, Clear Sans, Cantarell, FreeSans, Nimbus Sans, Nimbus Sans Narrow, Gillius ADF,
    B612, Andika, Dosis, Quicksand, Roboto, Roboto Condensed, Go, Garuda, Loma, Manrope, Jura, Tuffy, Ikarius ADF
    Std, Linux Biolinum O, URW Gothic, Sora, Open Sans Condensed, Universalis ADF Std, Verana Sans, M PLUS 1,
    Sawasdee, DejaVu Serif, Liberation Serif, Caladea, FreeSerif, Nimbus Roman, Gentium, Charis SIL, GFS Didot, GFS
    Artemisia, Linux Libertine O, Noto Serif, Cardo, C059, P052, Tinos, Vollkorn, Baskervald ADF Std, Norasi, TeX
    Gyre Pagella, TeX Gyre Bonum, Old Standard TT, Romande ADF Std, DejaVu Sans Mono, Liberation Mono, FreeMono,
    Inconsolata, JetBrains Mono, Hack, Cousine, Noto Sans Mono, Anonymous Pro, Agave, League Mono, OCR B, mononoki,
    Courier Prime Code, Tlwg Typewriter, Comic Neue, Domestic Manners, Averia Sans GWF, Averia Serif GWF
"""
HELDOUT = """
    Gillius ADF No2, PT Sans, Play, Libris ADF Std, TeX Gyre Heros, Switzera ADF, Doulos SIL, PT Serif, TeX Gyre
    Termes, Fanwood Text, GFS Neohellenic, Linden Hill, Tribun ADF Std, Nimbus Mono PS, Fira Code, Go Mono, PT Mono,
    TeX Gyre Schola
"""


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.replace("\n", " ").split(","))


FACES = 8192
"""Fonts at one size that a process remembers with their drawn characters: nearly all that the renderers ask for, in
about 0.5 GB. With a sixteenth of them the same characters were drawn again and again."""

FAMILIES: dict[Split, tuple[str, ...]] = {"train": _names(TRAIN), "heldout": _names(HELDOUT)}

# Weights and slants that a document would use; hairline and black faces don't survive 13 px.
STYLES = {"Regular", "Book", "Roman", "Medium", "Bold", "Italic", "Oblique", "SemiBold", "Semibold", "DemiBold"}


@cache
def faces(split: Split) -> tuple[tuple[str, str, str], ...]:
    """(family, style, path) of every usable installed face of the split, in a stable order.

    Raises:
        PumiceError: fontconfig is missing or too few of the families are installed.
    """
    try:
        listing = subprocess.run(
            ["fc-list", "--format", "%{family[0]}\t%{style[0]}\t%{file}\t%{variable}\n"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise PumiceError(f"rendering pages needs fontconfig (apt-get install fontconfig): {error}") from None
    wanted = set(FAMILIES[split])
    found = set()
    for line in listing.splitlines():
        fields = line.replace("\\", "").split("\t")
        if len(fields) != 4:  # a few bitmap fonts have line breaks in their names
            continue
        family, style, path, variable = fields
        if family in wanted and style in STYLES and path.endswith((".ttf", ".otf")) and variable != "True":
            found.add((family, style, path))
    # One file a (family, style): distributions ship the same face as otf and ttf.
    unique = {(family, style): (family, style, path) for family, style, path in sorted(found)}
    if len({family for family, _ in unique}) < 5:
        raise PumiceError(
            f"only {len(unique)} fonts of the {split} split are installed; expected dozens: "
            "install the packages of pumice/data/render/packages.txt"
        )
    return tuple(unique[key] for key in sorted(unique))


@lru_cache(maxsize=FACES)
def load_font(path: str, px: int) -> ImageFont.FreeTypeFont:
    """A font at ``px`` pixels per em, shared between pages (measurements are remembered on it)."""
    return ImageFont.truetype(path, px, layout_engine=ImageFont.Layout.BASIC)


@cache
def _families(split: Split, style: str | None) -> dict[str, list[str]]:
    table: dict[str, list[str]] = {}
    for family, face_style, path in faces(split):
        bold = "Bold" in face_style or "Demi" in face_style
        if style is None or (style == "bold") == bold:
            table.setdefault(family, []).append(path)
    return table


def pick_font(rng: random.Random, split: Split, px: int, style: str | None = None) -> ImageFont.FreeTypeFont:
    """A random face at ``px`` pixels: family first, then face. ``style`` is None, "bold" or "regular"."""
    table = _families(split, style)
    family = rng.choice(sorted(table))
    return load_font(rng.choice(table[family]), px)
