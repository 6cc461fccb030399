"""A stage's whole course before its first step: which samples, in which order, in which step, on which worker.

    {name: Index}, Stage, seed ──plan──> Plan (source, row, tokens, views of every sample; where each step begins)
    Plan, step, workers ──packs──> a worker's samples, in forward passes that fit ``pack_tokens``

All of it is a pure function of its arguments: what a step learns doesn't depend on the number of workers, and a run
goes on from the number of its step.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pumice.config import Stage
from pumice.data.index import Index
from pumice.types import PumiceError


@dataclass(frozen=True)
class Plan:
    """Columns over the samples of a stage in the order of training, and ``starts`` (steps + 1) of the steps.

    ``source`` is a number in ``names``; ``row`` the source's own.
    """

    names: tuple[str, ...]
    source: np.ndarray
    row: np.ndarray
    tokens: np.ndarray
    views: np.ndarray
    supervised: np.ndarray
    starts: np.ndarray
    pack_tokens: int = 0

    @property
    def steps(self) -> int:
        return len(self.starts) - 1

    def before(self, step: int) -> int:
        """Samples before a step."""
        return int(self.starts[step])

    def of(self, step: int) -> np.ndarray:
        """Numbers of the samples of a step."""
        return np.arange(self.starts[step], self.starts[step + 1])

    def packs(self, step: int, rank: int, size: int, view_cost: float = 0.0) -> list[list[int]]:
        """A worker's share of a step as forward passes; none where there are fewer samples than workers.

        ``view_cost`` is what a view costs beside the tokens, in tokens: workers get shares of nearly equal cost.
        """
        samples = self.of(step)
        cost = self.tokens[samples] + view_cost * self.views[samples]
        mine = [int(samples[i]) for i in shares(cost.tolist(), size)[rank]]
        fits = best_fit([int(self.tokens[i]) for i in mine], self.pack_tokens)
        return [[mine[i] for i in pack] for pack in fits]


def plan(indexes: Mapping[str, Index], stage: Stage, seed: int) -> Plan:
    """The plan of a stage over indexed sources.

    Raises:
        PumiceError: a source without a usable sample, or a sample of more tokens than a step or a pack takes.
    """
    names = tuple(name for name in sorted(stage.data) if stage.data[name] > 0)
    for name in names:
        if not len(indexes[name].usable):
            found = indexes[name]
            raise PumiceError(f"[data.{name}]: none of its {len(found)} samples can be used; see pumice data index")
    rng = np.random.default_rng([seed, zlib.crc32(stage.name.encode())])
    usable = [indexes[name].usable for name in names]
    amounts = [stage.data[name] for name in names]
    if not stage.steps:
        source, row = _passes(usable, amounts, rng)
        tokens = _column(indexes, names, "tokens", source, row)
        starts = _starts(tokens, stage)
    else:
        source, row, tokens, starts = _mixture(indexes, names, usable, amounts, stage, rng)
    if not len(tokens):
        raise PumiceError(
            f"stage {stage.name!r}: its passes over {', '.join(names)} take no sample; raise them in data"
        )
    views = _column(indexes, names, "views", source, row)
    supervised = _column(indexes, names, "supervised", source, row)
    longest = int(tokens.max())
    for what, limit in (("batch_tokens", stage.batch_tokens), ("pack_tokens", stage.pack_tokens)):
        if limit and longest > limit:
            raise PumiceError(
                f"stage {stage.name!r}: a sample of {longest} tokens; {what} is {limit}: raise it, or lower max_tokens"
            )
    return Plan(names, source, row, tokens, views, supervised, starts, stage.pack_tokens)


def heldout_plan(indexes: Mapping[str, Index], stage: Stage, seed: int, most: int) -> Plan | None:
    """One pass over held-out samples, ``most`` of all sources at most; None where there is none."""
    filled = {name: index for name, index in indexes.items() if len(index.usable)}
    if not filled:
        return None
    count = sum(len(index.usable) for index in filled.values())
    amounts = {name: min(1.0, most / count) for name in filled}
    tokens = {"batch_tokens": stage.batch_tokens} if stage.batch_tokens else {"batch": stage.batch}
    once = replace(stage, data=amounts, steps=0, **tokens)  # type: ignore[arg-type]
    return plan(filled, once, seed)


def _column(
    indexes: Mapping[str, Index], names: Sequence[str], key: str, source: np.ndarray, row: np.ndarray
) -> np.ndarray:
    values = np.zeros(len(row), dtype=np.int64)
    for number, name in enumerate(names):
        chosen = source == number
        values[chosen] = indexes[name].columns[key][row[chosen]]
    return values


def _passes(usable: Sequence[np.ndarray], amounts: Sequence[float], rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """(source, row): every source as often as its amount says, all in one random order."""
    source, row = [], []
    for number, (rows, amount) in enumerate(zip(usable, amounts, strict=True)):
        part = round((amount - int(amount)) * len(rows))
        taken = np.concatenate([np.tile(rows, int(amount)), rng.choice(rows, part, replace=False)])
        source.append(np.full(len(taken), number))
        row.append(taken)
    order = rng.permutation(sum(len(rows) for rows in row))
    return np.concatenate(source)[order], np.concatenate(row)[order]


def _mixture(
    indexes: Mapping[str, Index],
    names: Sequence[str],
    usable: Sequence[np.ndarray],
    weights: Sequence[float],
    stage: Stage,
    rng: np.random.Generator,
) -> tuple[np.ndarray, ...]:
    """(source, row, tokens, starts) of ``stage.steps`` steps: sources drawn by weight, each in passes of its own."""
    share = np.array(weights) / sum(weights)
    means = [float(indexes[name].columns["tokens"][rows].mean()) for name, rows in zip(names, usable, strict=True)]
    # By tokens, somewhat more samples than the mean asks for; when they don't suffice, twice as many.
    count = stage.steps * stage.batch or int(stage.steps * stage.batch_tokens / float(share @ means) * 1.1) + 16
    state = rng.bit_generator.state
    while True:
        rng.bit_generator.state = state
        source = rng.choice(len(names), size=count, p=share)
        row = np.zeros(count, dtype=np.int64)
        for number, rows in enumerate(usable):
            places = np.flatnonzero(source == number)
            passes = -(-len(places) // len(rows))
            drawn = [rng.permutation(rows) for _ in range(passes)]
            row[places] = np.concatenate([*drawn, rows[:0]])[: len(places)]
        tokens = _column(indexes, names, "tokens", source, row)
        starts = _starts(tokens, stage)
        if len(starts) > stage.steps:
            starts = starts[: stage.steps + 1]
            return source[: starts[-1]], row[: starts[-1]], tokens[: starts[-1]], starts
        count *= 2


def _starts(tokens: np.ndarray, stage: Stage) -> np.ndarray:
    """Where each step begins, and the end of the last one, which may be smaller."""
    if stage.batch:
        return np.append(np.arange(0, len(tokens), stage.batch), len(tokens))
    ends = np.cumsum(tokens)
    starts = [0]
    while starts[-1] < len(tokens):
        before = ends[starts[-1] - 1] if starts[-1] else 0
        starts.append(max(int(np.searchsorted(ends, before + stage.batch_tokens, side="right")), starts[-1] + 1))
    return np.array(starts)


def shares(costs: Sequence[float], workers: int) -> list[list[int]]:
    """Numbers of the samples of each worker, in order: the dearest first, each to the worker with the least so far."""
    totals = [0.0] * workers
    mine: list[list[int]] = [[] for _ in range(workers)]
    for i in sorted(range(len(costs)), key=lambda i: -costs[i]):
        least = min(range(workers), key=totals.__getitem__)
        totals[least] += costs[i]
        mine[least].append(i)
    return [sorted(numbers) for numbers in mine]


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Numbers of the samples of each pack: longest first, each where the least room is left. 0 is room without end."""
    if not capacity:
        return [list(range(len(lengths)))] if lengths else []
    packs: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fits = [p for p, left in enumerate(room) if left >= lengths[i]]
        if not fits:
            packs.append([])
            room.append(capacity)
            fits = [len(packs) - 1]
        best = min(fits, key=room.__getitem__)
        packs[best].append(i)
        room[best] -= lengths[i]
    return [sorted(pack) for pack in packs]
