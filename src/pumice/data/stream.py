"""Samples of sources that weren't indexed: each is laid out when its turn comes, and waits in a window for its step.

    sources, by weight, in their own order ──measure──> window ──oldest first, then what fits──> step, step, …

The sequence is a pure function of sources, stage and seed, whatever the number of workers, each of which lays out all
samples' texts and headers (never their pixels). A checkpoint holds the window, so that a run goes on without reading
again what it has passed.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from pumice.config import Stage
from pumice.data.index import measure
from pumice.data.plan import best_fit, shares
from pumice.data.sources import Source
from pumice.encode import Processor
from pumice.types import PumiceError

BEHIND = 64
"""Steps that are remembered behind the newest one."""


@dataclass(frozen=True)
class Waiting:
    """A measured sample: its place in the sequence, its source's number and its row there, its size."""

    number: int
    source: int
    row: int
    tokens: int
    views: int


@dataclass
class StreamPlan:
    """The samples of each step, found as the steps come; a Plan to whoever reads it."""

    sources: Mapping[str, Source]
    stage: Stage
    processor: Processor
    seed: int
    names: tuple[str, ...] = ()
    source: dict[int, int] = field(default_factory=dict)
    row: dict[int, int] = field(default_factory=dict)
    tokens: dict[int, int] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    _steps: dict[int, list[Waiting]] = field(default_factory=dict)
    _starts: dict[int, int] = field(default_factory=lambda: {0: 0})
    _states: dict[int, dict[str, Any]] = field(default_factory=dict)
    _window: list[Waiting] = field(default_factory=list)
    _taken: list[int] = field(default_factory=list)
    _drawn: int = 0
    _next: int = 0

    def __post_init__(self) -> None:
        self.names = tuple(name for name in sorted(self.stage.data) if self.stage.data[name] > 0)
        self._taken = [0] * len(self.names)
        for name in self.names:
            if not len(self.sources[name]):
                raise PumiceError(f"[data.{name}]: no sample in it")
        weights = np.array([self.stage.data[name] for name in self.names])
        self._share = weights / weights.sum()

    @property
    def steps(self) -> int:
        return self.stage.steps

    def before(self, step: int) -> int:
        """Samples before a step."""
        self._reach(step)
        return self._starts[step]

    def packs(self, step: int, rank: int, size: int, view_cost: float = 0.0) -> list[list[int]]:
        """A worker's share of a step as forward passes, as `Plan.packs`."""
        self._reach(step + 1)
        samples = self._steps[step]
        mine = [samples[i] for i in shares([s.tokens + view_cost * s.views for s in samples], size)[rank]]
        fits = best_fit([sample.tokens for sample in mine], self.stage.pack_tokens)
        return [[mine[i].number for i in pack] for pack in fits]

    def state(self, step: int) -> dict[str, Any]:
        """What `restore` needs to go on from a step: where each source stands, and the window."""
        self._reach(step)
        return self._states.get(step) or self._snapshot()

    def restore(self, step: int, state: Mapping[str, Any]) -> None:
        """Go on from a step of an earlier process."""
        if list(state["names"]) != list(self.names):
            raise PumiceError(
                f"stage {self.stage.name!r}: the checkpoint's stream has the sources {', '.join(state['names'])}; the "
                f"recipe has {', '.join(self.names)}"
            )
        self._window = [Waiting(**sample) for sample in state["window"]]
        self._taken, self._drawn, self._next = list(state["taken"]), state["drawn"], step
        self._starts = {step: state["seen"]}
        for sample in self._window:
            self._note(sample)

    def _snapshot(self) -> dict[str, Any]:
        return {
            "names": list(self.names),
            "taken": list(self._taken),
            "drawn": self._drawn,
            "seen": self._starts[self._next],
            "window": [asdict(sample) for sample in self._window],
        }

    def _reach(self, step: int) -> None:
        """Find the samples of all steps before ``step``."""
        while self._next < step:
            self._states[self._next] = self._snapshot()
            while not self._enough():
                self._window.append(self._measured())
            chosen = self._fill()
            self._steps[self._next] = chosen
            self._starts[self._next + 1] = self._starts[self._next] + len(chosen)
            self._next += 1
            old = self._next - BEHIND
            for sample in self._steps.pop(old, []):
                del self.source[sample.number], self.row[sample.number], self.tokens[sample.number]
            for passed in (self._starts, self._states):
                passed.pop(old, None)

    def _enough(self) -> bool:
        """Whether the window is full, and holds a step."""
        waiting = len(self._window)
        whole = sum(sample.tokens for sample in self._window) >= self.stage.batch_tokens
        return waiting >= max(self.stage.stream, self.stage.batch) and whole

    def _fill(self) -> list[Waiting]:
        """Take a step's samples out of the window: the oldest, then others in random order as far as they fit."""
        rest = np.random.default_rng([self.seed, zlib.crc32(self.stage.name.encode()), 1, self._next])
        order = [self._window[0], *(self._window[1 + i] for i in rest.permutation(len(self._window) - 1))]
        chosen: list[Waiting] = []
        room = self.stage.batch_tokens
        for sample in order:
            if self.stage.batch and len(chosen) == self.stage.batch:
                break
            if self.stage.batch or sample.tokens <= room:
                chosen.append(sample)
                room -= sample.tokens
        taken = {sample.number for sample in chosen}
        self._window = [sample for sample in self._window if sample.number not in taken]
        return sorted(chosen, key=lambda sample: sample.number)

    def _measured(self) -> Waiting:
        """The next sample that can be trained on.

        Raises:
            PumiceError: a sample longer than a step or a pack; a source in which nothing can be used.
        """
        bad = 0
        while True:
            number, self._drawn = self._drawn, self._drawn + 1
            rng = np.random.default_rng([self.seed, zlib.crc32(self.stage.name.encode()), 0, number])
            which = int(rng.choice(len(self.names), p=self._share))
            name = self.names[which]
            row = self._taken[which] % len(self.sources[name])
            self._taken[which] += 1
            found = measure(self.sources[name], row, self.processor)
            if not found.problem:
                break
            self.skipped.append(f"{name}-{row}: {found.problem}: {found.detail}")
            bad += 1
            if bad > sum(len(source) for source in self.sources.values()):
                raise PumiceError(f"stage {self.stage.name!r}: no sample can be used; the last: {self.skipped[-1]}")
        for what, limit in (("batch_tokens", self.stage.batch_tokens), ("pack_tokens", self.stage.pack_tokens)):
            if limit and found.tokens > limit:
                said = f"{name}-{row} has {found.tokens} tokens; {what} is {limit}: raise it, or lower max_tokens"
                raise PumiceError(f"stage {self.stage.name!r}: {said}")
        sample = Waiting(number, which, row, found.tokens, found.views)
        self._note(sample)
        return sample

    def _note(self, sample: Waiting) -> None:
        """Make a sample findable by its number."""
        self.source[sample.number], self.row[sample.number] = sample.source, sample.row
        self.tokens[sample.number] = sample.tokens
