"""Examples drawn as they are needed, as the feed of a stage.

number, seed, split ──draw──> Sample (text, a picture, several, or a video) ──fits the stage?──encode──> Features
                          └──────── too large: counted, and the next draw instead ────────┘
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from pumice.config import Recipe, Stage
from pumice.data.reading import read_first
from pumice.data.render.fonts import Split
from pumice.data.render.registry import DRAWN, Style
from pumice.data.rendered import draw, lacking, to_sample
from pumice.encode import Processor, encode, lay_out
from pumice.types import Features, PumiceError, Sample
from pumice.vision.layout import layout

if TYPE_CHECKING:
    from pumice.data.feed import Feed

TRIES, STRIDE = 100, 1_000_000_007
"""How often a sample that is too large is drawn again, and how far apart the numbers of these draws are."""
HELDOUT = 32
"""Samples that are measured at an evaluation."""


class Size(NamedTuple):
    """What a sample is laid out as: tokens, those of them that are visual or have loss, and views."""

    tokens: int
    visual: int
    supervised: int
    views: int


def size_of(sample: Sample, processor: Processor) -> Size:
    """The size of a sample, by its layout alone."""
    pieces = list(lay_out(sample, processor))
    seen = [piece.layout for piece in pieces if piece.layout is not None]
    return Size(
        sum(len(piece.ids) for piece in pieces),
        sum(placed.tokens for placed in seen),
        sum(len(piece.ids) for piece in pieces if piece.span.loss),
        sum(placed.views for placed in seen),
    )


@dataclass
class RenderedFeed:
    """Number ``i`` is a pure function of the stage, the seed, the split and ``i``.

    One with more tokens or views than the stage takes is listed in ``skipped``, and drawn again.
    """

    stage: Stage
    processor: Processor
    seed: int
    split: Split = "train"
    skipped: list[str] = field(default_factory=list)

    @property
    def steps(self) -> int:
        return self.stage.steps

    def packs(self, step: int, rank: int, size: int) -> list[list[int]]:
        numbers = list(range(step * self.stage.batch + rank, (step + 1) * self.stage.batch, size))
        most = pass_samples(self.stage, self.processor) or len(numbers)
        return [numbers[first : first + most] for first in range(0, len(numbers), most)] if numbers else []

    def seen(self, step: int) -> int:
        return step * self.stage.batch

    def name(self, number: int) -> str:
        return f"{self.stage.name}-{number}"

    def read(self, numbers: Sequence[int]) -> list[Features]:
        samples = [self.sample(number) for number in numbers]
        return [replace(encode(sample, self.processor), source=sample.source) for sample in samples]

    def sample(self, number: int) -> Sample:
        """The first draw for a number that the stage takes.

        Raises:
            PumiceError: it can't be drawn, or all of many draws are too large.
        """
        why = ""
        for attempt in range(TRIES):
            sample, views = self._draw(self.name(number), number + attempt * STRIDE)
            if not (why := self._too_large(sample, views)):
                return sample
            self.skipped.append(f"{self.name(number)}: {why}; drawn again")
        raise PumiceError(f"stage {self.stage.name!r}: {TRIES} draws in a row are too large, the last {why}")

    def heldout(self) -> Feed | None:
        stage = replace(self.stage, steps=max(1, HELDOUT // self.stage.batch))
        return RenderedFeed(stage, self.processor, self.seed, "heldout")

    def state(self, step: int) -> dict[str, Any]:
        return {}

    def restore(self, step: int, state: Mapping[str, Any]) -> None:
        return

    @property
    def unusable(self) -> list[str]:
        return []

    def _draw(self, name: str, index: int) -> tuple[Sample, int]:
        """(example number ``index``, views of its picture where the sample may go without it)."""
        stage = self.stage
        if stage.reader:
            from pumice.reader import teach

            page = teach.draw(stage.data, self.seed, self.split, index, stage.reader.arranged)
            return teach.teach(page, stage.reader, name), layout(page.image.size, self.processor.policy).views
        sample = to_sample(draw(stage.data, self.seed, self.split, index, stage.answers), name)
        return read_first(sample, stage.rr, self.processor.tokenizer, self.seed) if stage.rr else sample, 0

    def _too_large(self, sample: Sample, views: int) -> str:
        """What of a sample is more than the stage takes, or nothing."""
        size = size_of(sample, self.processor)
        views = max(views, size.views)
        if self.stage.max_views and views > self.stage.max_views:
            return f"{sample.source} with {views} views, at most {self.stage.max_views} are taken"
        if size.tokens > self.processor.max_tokens:
            return f"{sample.source} with {size.tokens} tokens, at most {self.processor.max_tokens} are taken"
        return ""


def pass_samples(stage: Stage, processor: Processor) -> int:
    """Drawn samples of one forward pass under the stage's ``pack_tokens``, however long they are; 0 is no limit."""
    return max(1, stage.pack_tokens // processor.max_tokens) if stage.pack_tokens else 0


def check_drawn(recipe: Recipe) -> None:
    """Draw each kind of each stage once, so that what is missing is known before the first step of the first stage.

    Raises:
        PumiceError: kinds that can't be drawn on this machine, with the stage that wants them and what to install.
    """
    wanted: dict[tuple[str, Style | None], Stage] = {}
    for stage in reversed(recipe.stages):
        wanted |= {(name, stage.answers): stage for name in stage.data if name in DRAWN}
    found = []
    for (name, answers), stage in wanted.items():
        lacks = lacking(name, answers)
        if not lacks:
            try:
                draw({name: 1.0}, recipe.seed, "train", 0, answers)
            except PumiceError as error:
                lacks = str(error)
        if lacks:
            found.append(f"stage {stage.name!r} can't draw {name}: {lacks}")
    if found:
        raise PumiceError("; ".join(sorted(found)) + "; install what is missing, or leave the kinds out")
