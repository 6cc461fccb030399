"""A worker's share of every step, read and packed ahead of the step that needs it.

Feed ──step_batches──> [Batch] of one step            in this process, or
steps ──`loaders` processes, in order──> Step, Step, … while the model computes
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from pumice.data.batch import pack
from pumice.data.feed import Feed
from pumice.types import IGNORE, Batch, PumiceError

AHEAD = 2
"""Steps that each loader has ready."""

Finish = Callable[[Batch], Batch]
"""What is done to every batch where it is read."""


@dataclass(frozen=True)
class Step:
    """A worker's share of a step, a batch a forward pass; ``skipped`` says what couldn't be decoded."""

    batches: list[Batch]
    skipped: list[str]


def step_batches(
    feed: Feed, step: int, rank: int, size: int, even: bool = False, finish: Finish | None = None
) -> list[Batch]:
    """A worker's share of a step, a batch a forward pass.

    With ``even`` all workers get the same number of them: those with fewer make them up with samples without loss.
    """
    read = [feed.read(numbers) for numbers in feed.packs(step, rank, size)]
    batches = [pack(documents) for documents in read if documents]
    if even:
        most = max(len(feed.packs(step, other, size)) for other in range(size))
        spare = batches[0] if batches else _spare(feed, step, size)
        if len(batches) < most and spare is not None:
            none = ((),) * len(spare.layouts)
            idle = replace(spare, labels=torch.full_like(spare.labels, IGNORE), glyphs=none, things=none)
            batches += [idle] * (most - len(batches))
    return [finish(batch) for batch in batches] if finish else batches


def _spare(feed: Feed, step: int, size: int) -> Batch | None:
    """The first sample of a step that can be decoded; None where none can, which all workers find."""
    before = len(feed.skipped)
    try:
        for rank in range(size):
            for number in (number for numbers in feed.packs(step, rank, size) for number in numbers):
                if read := feed.read([number]):
                    return pack(read)
        return None
    finally:
        del feed.skipped[before:]  # whose share they are in counts them


class _Steps(Dataset[Step]):
    def __init__(self, feed: Feed, rank: int, size: int, even: bool, finish: Finish | None) -> None:
        self.feed, self.share = feed, (rank, size, even, finish)

    def __getitem__(self, step: int) -> Step:
        before = len(self.feed.skipped)
        batches = step_batches(self.feed, step, *self.share)
        return Step(batches, self.feed.skipped[before:])


def steps_of(
    feed: Feed,
    steps: Sequence[int],
    rank: int,
    size: int,
    even: bool = False,
    loaders: int = 0,
    finish: Finish | None = None,
) -> Iterator[list[Batch]]:
    """The worker's batches of each of ``steps`` in order, the same with any number of ``loaders``.

    What couldn't be decoded is added to ``feed.skipped`` when its step is given out.

    Raises:
        PumiceError: a loader died (out of memory, or killed), or what reading raises.
    """
    source = _Steps(feed, rank, size, even, finish)
    if not loaders:
        for step in steps:
            yield step_batches(feed, step, rank, size, even, finish)
        return
    # Forked, because a feed holds what spawning would copy (plans of millions of rows).
    loader = DataLoader(
        source,
        sampler=steps,
        batch_size=None,
        num_workers=loaders,
        prefetch_factor=AHEAD,
        collate_fn=_as_it_is,
        worker_init_fn=_begin,
        multiprocessing_context="fork",
    )
    try:
        for step in loader:
            feed.skipped.extend(step.skipped)
            yield step.batches
    except PumiceError as error:  # behind the loader's traceback
        raise PumiceError(str(error).rpartition("PumiceError: ")[2].strip()) from None
    except RuntimeError as error:
        if "exited unexpectedly" not in str(error):
            raise
        raise PumiceError(
            f"a loader process died ({' '.join(str(error).split())[:160]}): out of memory? try fewer with --loaders"
        ) from None


def _as_it_is(step: Any) -> Any:
    return step


def _begin(_: int) -> None:
    """fsspec's own thread doesn't survive a fork; a file system that was open begins anew. Training goes before."""
    os.nice(5)
    if "fsspec.asyn" in sys.modules:
        sys.modules["fsspec.asyn"].reset_lock()
