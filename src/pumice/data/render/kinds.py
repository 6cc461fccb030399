"""Examples of all kinds of `registry`: a pure function of name, seed, split, index.

    kind, seed, split, index ──maker──> Rendered | Posed ──dress──> Example (frames, exchanges, reading)

An example also depends on the style of its answers, and on the fonts and packages installed.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module

from PIL import Image

from pumice.data.render import script_fonts
from pumice.data.render.answers import Exchange, dress
from pumice.data.render.fonts import Split
from pumice.data.render.page import Rendered, text_of
from pumice.data.render.registry import KINDS as KINDS  # for those who draw
from pumice.data.render.registry import Kind, Style, kind_of
from pumice.data.render.scenes import Posed
from pumice.types import Glyph, Named, PumiceError

Maker = Callable[[random.Random, Split], Rendered | Posed]


@dataclass(frozen=True)
class Example:
    """Something to train on: RGB ``frames`` (pictures; with ``fps`` above 0 those of a video), what is asked about
    them, and of a single picture its text, and where its characters and other things are, as far as it is known.
    """

    kind: str
    frames: tuple[Image.Image, ...]
    fps: int
    exchanges: tuple[Exchange, ...]
    reading: str = ""
    glyphs: tuple[Glyph, ...] = ()
    things: tuple[Named, ...] = ()


@cache
def maker(name: str) -> Maker:
    """What draws a kind.

    Raises:
        PumiceError: unknown kind; the message lists them.
    """
    return load(kind_of(name))


def load(kind: Kind) -> Maker:
    """The function that draws a kind."""
    return getattr(import_module(f"pumice.data.render.{kind.module}"), kind.function)


def missing(name: str) -> str:
    """What a kind lacks on this machine and how to get it; nothing where it can be drawn.

    Raises:
        PumiceError: unknown kind.
    """
    return lacks(kind_of(name))


def lacks(kind: Kind) -> str:
    """As `missing`, of a kind that was looked up."""
    return NEEDS[kind.needs]() if kind.needs else ""


def _browser() -> str:
    from pumice.data.render import screens

    return screens.missing()


def _drawings() -> str:
    from pumice.data.render.assets import library

    try:
        library()
    except PumiceError as error:
        return str(error)
    return ""


NEEDS: dict[str, Callable[[], str]] = {
    "drawings": _drawings,
    "browser": _browser,
    **{material: partial(script_fonts.missing, material) for material in script_fonts.SCRIPTS},
}
"""What not every machine has: each says what to install, or nothing."""


def draw(name: str, seed: int, split: Split, index: int, style: Style = "papers") -> Example:
    """Example number ``index`` of a kind.

    Raises:
        PumiceError: unknown kind, or what it is drawn with is missing.
    """
    rng = random.Random(f"{name}-{seed}-{split}-{index}")
    made = maker(name)(rng, split)
    if isinstance(made, Posed):
        exchanges = dress(rng, [question for question, _ in made.asked], style)
        return Example(name, made.frames, made.fps, exchanges, made.reading)
    return of_page(name, made, dress(rng, made.questions, style))


def of_page(name: str, page: Rendered, exchanges: tuple[Exchange, ...]) -> Example:
    """The example that a page is with what is asked about it."""
    return Example(name, (page.image,), 0, exchanges, text_of(page.glyphs), page.glyphs, page.things)
