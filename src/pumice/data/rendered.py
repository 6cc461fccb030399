"""Rendered pictures as Samples: a pure function of (seed, split, index).

index ──mixture──> kind ──renderer──> Rendered ──> Sample (picture, question, answer, question, answer, ...)
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module

from pumice.data.render.fonts import Split
from pumice.data.render.page import Rendered
from pumice.types import Glyph, Media, PumiceError, Sample, Turn

Renderer = Callable[[random.Random, Split], Rendered]

RENDERERS: dict[str, tuple[str, str]] = {
    "wall": ("lines", "render_wall"),
    "lines": ("lines", "render_lines"),
    "receipts": ("receipts", "render"),
    "forms": ("forms", "render"),
    "tables": ("tables", "render"),
    "charts": ("charts", "render"),
    "objects": ("objects", "render"),
}


@cache
def renderer(kind: str) -> Renderer:
    """The renderer of a kind of picture.

    Raises:
        PumiceError: unknown kind, or its packages are missing.
    """
    if kind not in RENDERERS:
        raise PumiceError(f"unknown kind of picture {kind!r}; known: {', '.join(RENDERERS)}")
    module, function = RENDERERS[kind]
    return getattr(import_module(f"pumice.data.render.{module}"), function)


def render(mixture: Mapping[str, float], seed: int, split: Split, index: int) -> Rendered:
    """Picture number ``index`` of a mixture {kind: weight}."""
    rng = random.Random(f"{seed}-{split}-{index}")
    kinds = sorted(mixture)
    kind = rng.choices(kinds, [mixture[kind] for kind in kinds])[0]
    return renderer(kind)(rng, split)


def to_sample(rendered: Rendered, id: str = "") -> Sample:
    """A conversation that asks all of a picture's questions in order; a picture without questions stands alone."""
    shown = {"glyphs": rendered.glyphs, "things": rendered.things}
    media = Media(rendered.image, rendered.image.size, name=rendered.kind, **shown)
    if not rendered.questions:
        return Sample((Turn("user", (media,)),), id=id, source=rendered.kind)
    turns: list[Turn] = []
    for position, question in enumerate(rendered.questions):
        turns.append(Turn("user", (question.text,) if position else (media, question.text)))
        turns.append(Turn("assistant", (question.answer,)))
    return Sample(tuple(turns), id=id, source=rendered.kind, reading=text_of(rendered.glyphs))


def text_of(glyphs: Sequence[Glyph]) -> str:
    """What is drawn, in drawing order: words by the gaps between glyphs, a new line where they move down or back."""
    written, last = "", None
    for glyph in glyphs:
        if last is not None:
            height = max(last.y1 - last.y0, glyph.y1 - glyph.y0, 8.0)
            if abs((glyph.y0 + glyph.y1) - (last.y0 + last.y1)) / 2 > 0.8 * height or glyph.x0 < last.x0:
                written += "\n"
            elif glyph.x0 - last.x1 > 0.25 * height:
                written += " "
        written += glyph.char
        last = glyph
    return written
