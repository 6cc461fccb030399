"""What is drawn, as Samples: a pure function of (seed, split, index).

index ──mixture──> kind ──of registry.PLAIN──> Rendered ─┐
                        └──of registry.KINDS──> Example ─┴──> Sample (pictures or a video, question, answer, ...)
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import cache

from pumice.data.render import kinds
from pumice.data.render.answers import Exchange
from pumice.data.render.film import film
from pumice.data.render.fonts import Split
from pumice.data.render.kinds import Example
from pumice.data.render.page import Rendered, text_of
from pumice.data.render.registry import PLAIN, Style, is_plain, kind_in_stage
from pumice.types import Media, PumiceError, Sample, Turn
from pumice.vision.media import Limits
from pumice.vision.video import open_video

__all__ = ["Renderer", "draw", "lacking", "render", "renderer", "text_of", "to_sample"]

Renderer = Callable[[random.Random, Split], Rendered]


@cache
def renderer(kind: str) -> Renderer:
    """The renderer of a plain kind of pages.

    Raises:
        PumiceError: unknown kind, or its packages are missing.
    """
    if kind not in PLAIN:
        raise PumiceError(f"unknown kind of picture {kind!r}; known: {', '.join(PLAIN)}")
    return kinds.load(PLAIN[kind])  # type: ignore[return-value]  # those of PLAIN make pages


def render(mixture: Mapping[str, float], seed: int, split: Split, index: int) -> Rendered:
    """Page number ``index`` of a mixture {plain kind: weight}."""
    kind, rng = _choose(mixture, seed, split, index)
    return renderer(kind)(rng, split)


def draw(mixture: Mapping[str, float], seed: int, split: Split, index: int, answers: Style | None = None) -> Example:
    """Example number ``index`` of a mixture {kind: weight}, where names mean what they do in a stage with ``answers``.

    Raises:
        PumiceError: unknown kind, or what it is drawn with is missing; kind, number and seed are named.
    """
    kind, rng = _choose(mixture, seed, split, index)
    try:
        if is_plain(kind, answers):
            return _plain(renderer(kind)(rng, split))
        return kinds.draw(kind, seed, split, index, answers or "papers")
    except PumiceError as error:
        raise PumiceError(f"{kind} {index} of seed {seed}: {error}") from None


def _choose(mixture: Mapping[str, float], seed: int, split: Split, index: int) -> tuple[str, random.Random]:
    """(the kind of an example of a mixture, the generator that a plain one goes on with)."""
    rng = random.Random(f"{seed}-{split}-{index}")
    names = sorted(mixture)
    return rng.choices(names, [mixture[name] for name in names])[0], rng


def _plain(page: Rendered) -> Example:
    """The page with all of its questions as they are."""
    exchanges = tuple(Exchange(q.text, q.answer, q.task, "plain") for q in page.questions)
    return kinds.of_page(page.kind, page, exchanges)


def lacking(kind: str, answers: Style | None = None) -> str:
    """What a kind, as a stage with ``answers`` means it, lacks on this machine and how to get it, or nothing."""
    return kinds.lacks(kind_in_stage(kind, answers))


def to_sample(drawn: Rendered | Example, id: str = "") -> Sample:
    """A conversation about all that was drawn, its questions in order; a picture without questions stands alone.

    A video is an MP4 in memory, as `pumice data render` writes it.
    """
    example = drawn if isinstance(drawn, Example) else _plain(drawn)
    media = _media(example)
    if not example.exchanges:
        return Sample((Turn("user", media),), id=id, source=example.kind)
    turns: list[Turn] = []
    for position, exchange in enumerate(example.exchanges):
        turns.append(Turn("user", (exchange.question,) if position else (*media, exchange.question)))
        turns.append(Turn("assistant", (exchange.answer,)))
    return Sample(tuple(turns), id=id, source=example.kind, reading=example.reading)


def _media(example: Example) -> tuple[Media, ...]:
    """The pictures of an example, or its video."""
    if example.fps:
        return (open_video(example.kind, film(example.frames, example.fps), Limits()),)
    shown = {"glyphs": example.glyphs, "things": example.things}
    return tuple(Media(frame, frame.size, name=example.kind, **shown) for frame in example.frames)
