"""What a stage trains on, step by step: examples drawn without end, or a plan over sources on disk.

    Stage ──open_feed──> Feed: packs(step, rank, workers) ──read──> [Features of one forward pass]

A sample that can't be decoded after all (a picture cut short behind a good header) is left out, counted and named; the
rest of its step goes on. A drawn one that is larger than the stage takes is counted and named, too, and drawn again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from pumice.config import Recipe, Stage
from pumice.data.drawn import RenderedFeed
from pumice.data.index import Index, Progress, build_index, faults, split
from pumice.data.mixing import MixedFeed, split_stage
from pumice.data.plan import Plan, heldout_plan, plan
from pumice.data.pool import Where
from pumice.data.reading import ReadingSource
from pumice.data.render.registry import DRAWN
from pumice.data.sources import Source, find_source, open_source
from pumice.data.stream import StreamPlan
from pumice.encode import Processor, encode
from pumice.templates import get_template
from pumice.types import Features, PumiceError, Sample


class Feed(Protocol):
    """Samples of a stage by number. ``processor`` is the stage's; ``skipped`` says what couldn't be decoded, or was too
    large and drawn again.
    """

    @property
    def processor(self) -> Processor: ...
    @property
    def steps(self) -> int: ...
    @property
    def skipped(self) -> list[str]: ...
    def packs(self, step: int, rank: int, size: int) -> list[list[int]]: ...
    def seen(self, step: int) -> int: ...
    def sample(self, number: int) -> Sample: ...
    def read(self, numbers: Sequence[int]) -> list[Features]: ...
    def name(self, number: int) -> str: ...
    def heldout(self) -> Feed | None: ...
    def state(self, step: int) -> dict[str, Any]:
        """What a checkpoint keeps so that the feed goes on from a step; nothing where numbers alone say it."""
        ...

    def restore(self, step: int, state: Mapping[str, Any]) -> None: ...
    @property
    def unusable(self) -> list[str]:
        """Samples left out before they were laid out into a step: all workers find the same."""
        ...


MOST = 256
"""Samples that are measured at an evaluation, of a source its held-out share up to so many."""


@dataclass
class PlannedFeed:
    """Samples of sources in the order of a plan."""

    plan: Plan | StreamPlan
    sources: dict[str, Source]
    processor: Processor
    view_cost: float = 0.0
    held: Plan | None = None
    skipped: list[str] = field(default_factory=list)

    @property
    def steps(self) -> int:
        return self.plan.steps

    def heldout(self) -> Feed | None:
        return PlannedFeed(self.held, self.sources, self.processor, self.view_cost) if self.held else None

    def packs(self, step: int, rank: int, size: int) -> list[list[int]]:
        return self.plan.packs(step, rank, size, self.view_cost)

    def seen(self, step: int) -> int:
        return int(self.plan.before(step))

    def state(self, step: int) -> dict[str, Any]:
        return self.plan.state(step) if isinstance(self.plan, StreamPlan) else {}

    def restore(self, step: int, state: Mapping[str, Any]) -> None:
        if isinstance(self.plan, StreamPlan) and state:
            self.plan.restore(step, state)

    @property
    def unusable(self) -> list[str]:
        return self.plan.skipped if isinstance(self.plan, StreamPlan) else []

    def name(self, number: int) -> str:
        return f"{self.plan.names[self.plan.source[number]]}-{self.plan.row[number]}"

    def tokens(self, number: int) -> int:
        return int(self.plan.tokens[number])

    def sample(self, number: int) -> Sample:
        """One of the plan's samples.

        Raises:
            PumiceError: its record or media can't be read.
        """
        return self.sources[self.plan.names[self.plan.source[number]]].sample(int(self.plan.row[number]))

    def read(self, numbers: Sequence[int]) -> list[Features]:
        found = []
        for number in numbers:
            source = self.plan.names[self.plan.source[number]]
            try:
                found.append(replace(encode(self.sample(number), self.processor), source=source))
            except PumiceError as error:
                self.skipped.append(f"{self.name(number)}: {error}")
        return found


def stage_processor(processor: Processor, stage: Stage) -> Processor:
    """The model's processor with what the stage changes of it."""
    changed = {name: getattr(stage, name) for name in ("several", "video") if getattr(stage, name) is not None}
    return replace(
        processor,
        template=get_template(stage.template) if stage.template else processor.template,
        policy=stage.layout or processor.policy,
        max_tokens=min(stage.max_tokens or processor.max_tokens, processor.max_tokens),
        cut=stage.over_length == "cut",
        **changed,
    )


def rendered(stage: Stage) -> bool:
    """Whether a stage draws some of its samples."""
    return any(stage.data.get(kind) for kind in DRAWN)


def check_sources(recipe: Recipe, stages: Sequence[Stage], root: Path) -> None:
    """See that the sources of all stages are there, before the first one trains for days.

    Raises:
        PumiceError: one isn't.
    """
    for name in sorted({name for stage in stages for name in stage.data if name in recipe.data}):
        find_source(name, recipe.data[name], root)


def open_sources(recipe: Recipe, stage: Stage, processor: Processor, root: Path) -> dict[str, Source]:
    """The sources that a stage names.

    Raises:
        PumiceError: a source that isn't there or can't be read.
    """
    sources: dict[str, Source] = {}
    for name in sorted(name for name, amount in stage.data.items() if amount > 0):
        sources[name] = open_source(name, recipe.data[name], root, recipe.seed)
        if stage.rr:
            sources[name] = ReadingSource(sources[name], stage.rr, processor.tokenizer, recipe.seed)
    return sources


def open_indexes(
    recipe: Recipe,
    stage: Stage,
    processor: Processor,
    root: Path,
    cache: Path,
    workers: int,
    progress: Progress | None,
    where: Where = "here",
    again: bool = False,
) -> tuple[dict[str, Source], dict[str, Index]]:
    """The sources that a stage names, and their indexes, made where they aren't in the cache; ``again`` as in
    `build_index`.

    Raises:
        PumiceError: a source that isn't there or can't be read.
    """
    sources = open_sources(recipe, stage, processor, root)
    indexes: dict[str, Index] = {}
    for name in sources:
        tell = None if progress is None else (lambda done, total, name=name: progress(name, done, total))
        indexes[name] = build_index(sources[name], name, processor, cache, workers, tell, where, again)
    return sources, indexes


def open_feed(
    recipe: Recipe,
    stage: Stage,
    processor: Processor,
    root: Path,
    cache: Path,
    workers: int = 1,
    progress: Progress | None = None,
    view_cost: float = 0.0,
    warn: Callable[[str], None] = lambda text: None,
) -> Feed:
    """The feed of a stage; ``processor`` is the model's, ``view_cost`` what a view costs beside its tokens.

    ``warn`` is told of every source of which some samples can't be used; those are left out of the plan.

    Raises:
        PumiceError: what `open_indexes` and `plan` raise.
    """
    processor = stage_processor(processor, stage)
    if rendered(stage):
        if all(name in DRAWN for name in stage.data):
            return RenderedFeed(stage, processor, recipe.seed)
        drawn, stored = split_stage(stage)
        planned = open_feed(recipe, stored, processor, root, cache, workers, progress, view_cost, warn)
        return MixedFeed(
            RenderedFeed(drawn, processor, recipe.seed, skipped=planned.skipped), planned, stage.pack_tokens
        )
    if stage.stream:
        sources = open_sources(recipe, stage, processor, root)
        return PlannedFeed(StreamPlan(sources, stage, processor, recipe.seed), sources, processor, view_cost)
    sources, indexes = open_indexes(recipe, stage, processor, root, cache, workers, progress)
    for text in filter(None, map(faults, indexes.values())):
        warn(text)
    if not stage.heldout:
        return PlannedFeed(plan(indexes, stage, recipe.seed), sources, processor, view_cost)
    sides = {name: split(index, stage.heldout) for name, index in indexes.items()}
    planned = plan({name: trained for name, (trained, _) in sides.items()}, stage, recipe.seed)
    held = heldout_plan({name: held for name, (_, held) in sides.items()}, stage, recipe.seed, MOST)
    return PlannedFeed(planned, sources, processor, view_cost, held)
