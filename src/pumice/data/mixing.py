"""Rendered pictures and samples of sources in one stage.

    weights ──split_stage──> two stages, each with its part of the batch ──> MixedFeed

Every step has the same number of each: their share of the weights, rounded to whole samples of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pumice.config import Stage
from pumice.data.render.registry import DRAWN
from pumice.encode import Processor
from pumice.types import Features, Sample

if TYPE_CHECKING:
    from pumice.data.feed import Feed


def split_stage(stage: Stage) -> tuple[Stage, Stage]:
    """The stage of the rendered kinds and that of the sources; at least one sample a step is of each."""
    drawn = {name: weight for name, weight in stage.data.items() if name in DRAWN}
    stored = {name: weight for name, weight in stage.data.items() if name not in DRAWN}
    share = sum(drawn.values()) / sum(stage.data.values())
    part = min(max(round(stage.batch * share), 1), stage.batch - 1)
    return replace(stage, data=drawn, batch=part), replace(stage, data=stored, batch=stage.batch - part)


@dataclass
class MixedFeed:
    """Two feeds side by side: samples of ``stored`` have even numbers, those of ``drawn`` odd ones."""

    drawn: Feed
    stored: Feed
    pack_tokens: int = 0

    @property
    def processor(self) -> Processor:
        return self.stored.processor

    @property
    def steps(self) -> int:
        return max(self.drawn.steps, self.stored.steps)

    @property
    def skipped(self) -> list[str]:
        return self.stored.skipped

    def packs(self, step: int, rank: int, size: int) -> list[list[int]]:
        found = []
        for feed, odd in ((self.stored, 0), (self.drawn, 1)):
            if step < feed.steps:
                # The last worker begins with the drawn ones, so that a small batch reaches all workers.
                place = size - 1 - rank if odd else rank
                found += [[2 * number + odd for number in numbers] for numbers in feed.packs(step, place, size)]
        if self.pack_tokens or len(found) < 2:
            return found
        return [[number for numbers in found for number in numbers]]

    def seen(self, step: int) -> int:
        return sum(feed.seen(min(step, feed.steps)) for feed in (self.drawn, self.stored))

    def name(self, number: int) -> str:
        feed = self._of(number)
        return feed.name(number // 2)

    def sample(self, number: int) -> Sample:
        return self._of(number).sample(number // 2)

    def read(self, numbers: Sequence[int]) -> list[Features]:
        found = []
        for feed, odd in ((self.stored, 0), (self.drawn, 1)):
            found += feed.read([number // 2 for number in numbers if number % 2 == odd])
        return found

    def heldout(self) -> Feed | None:
        drawn, stored = self.drawn.heldout(), self.stored.heldout()
        if drawn is None or stored is None:
            return drawn or stored
        return MixedFeed(drawn, stored, self.pack_tokens)

    def state(self, step: int) -> dict[str, Any]:
        return self.stored.state(step)

    def restore(self, step: int, state: Mapping[str, Any]) -> None:
        self.stored.restore(step, state)

    @property
    def unusable(self) -> list[str]:
        return self.stored.unusable

    def _of(self, number: int) -> Feed:
        return self.drawn if number % 2 else self.stored
