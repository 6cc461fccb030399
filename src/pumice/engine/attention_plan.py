"""What a pass attends to, as the tables that the kernels read.

spans, each a path of segments ──plan_pass──> chunks of keys, tasks (tile of queries x chunks), slots of their parts

Sequences that share a segment attend to it in the same tasks, so that its keys are read once for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from pumice.engine.kernels import KINDS, BatchStruct
from pumice.engine.segments import Segment, Span
from pumice.types import PumiceError

CHUNK = 512  # keys of a chunk, as in attention.h; cut at fixed places, so that sums don't depend on who else is there
TILE, LONG_TILE = 24, 48  # queries that a task takes at once; one of a long span
SHORT = 16  # spans of up to so many tokens share tasks; a longer one makes its own
SEGMENT = np.dtype([("places", "<i8"), ("stride", "<i8"), ("kind", "<i4"), ("start", "<i4")])


@dataclass
class Pass:
    """The tables, and the structure that points at them."""

    struct: BatchStruct
    kept: list[object]


@dataclass
class Tables:
    """Tables being filled: a row of ``tasks`` and ``chunks`` is a structure of types.h."""

    chunks: list[tuple[int, int, int, int]] = field(default_factory=list)
    tasks: list[tuple[int, int, int, int, int, int]] = field(default_factory=list)
    task_rows: list[int] = field(default_factory=list)
    slot_count: int = 0

    def add(self, rows: Sequence[int], first: int, count: int, slots: list[list[int]], long: bool) -> None:
        """A task of ``rows`` over chunks first:first + count; every row gets a slot for its part."""
        self.tasks.append((len(self.task_rows), len(rows), first, count, self.slot_count, int(long)))
        self.task_rows.extend(rows)
        for row in rows:
            slots[row].append(self.slot_count)
            self.slot_count += 1


def _cuts(segment: int, length: int, own: bool) -> list[tuple[int, int, int, int]]:
    return [(segment, a, min(a + CHUNK, length), int(own)) for a in range(0, length, CHUNK)]


class Places:
    """Where segments' keys and values lie: a table of addresses for each, kept while it doesn't move."""

    def __init__(self, layers: int) -> None:
        self._layers = layers
        self._known: WeakKeyDictionary[Segment, tuple[int, np.ndarray]] = WeakKeyDictionary()

    def of(self, segment: Segment) -> tuple[int, int, int, int]:
        """Address of its table, elements from head to head, kind, first position."""
        sample = segment.keys[0]
        known = self._known.get(segment)
        if known is None or known[0] != sample.data_ptr():
            known = (sample.data_ptr(), self._table(segment))
            self._known[segment] = known
        return known[1].ctypes.data, sample.stride(0), KINDS[sample.dtype], segment.start

    def _table(self, segment: Segment) -> np.ndarray:
        held = [*segment.keys, *segment.values]
        stride = held[0].stride()
        if any(t.stride() != stride or t.dtype != held[0].dtype for t in held) or stride[1:] != (held[0].shape[2], 1):
            raise PumiceError(f"keys and values of a segment must lie alike, token by token; found strides {stride}")
        return np.array([t.data_ptr() for t in held], dtype=np.int64)


def plan_pass(
    spans: Sequence[Span], positions: Tensor, shared_heads: int, places: Places, cosine: Tensor, sine: Tensor
) -> Pass:
    """Tables for the tokens of ``spans``, which follow each other from row 0; ``shared_heads`` queries a kv head.

    Raises:
        PumiceError: a segment is full.
    """
    rows = spans[-1].last
    indices: dict[Segment, int] = {}
    for span in spans:
        for segment in span.path:
            indices.setdefault(segment, len(indices))
    segment_of, place = np.empty(rows, np.int32), np.empty(rows, np.int32)
    for span in spans:
        own, new = span.path[-1], span.last - span.first
        if own.length + new > own.capacity:
            raise PumiceError(f"a segment of {own.capacity} tokens can't hold {own.length + new}")
        segment_of[span.first : span.last] = indices[own]
        place[span.first : span.last] = range(own.length, own.length + new)
    tables, slots = Tables(), [[] for _ in range(rows)]
    tile = max(1, TILE // shared_heads)
    _plan_short([s for s in spans if s.last - s.first <= SHORT], indices, tables, slots, tile)
    for span in spans:
        if span.last - span.first > SHORT:
            _plan_long(span, indices, tables, slots, max(1, LONG_TILE // shared_heads))
    where = np.array([places.of(segment) for segment in indices], dtype=np.int64)
    held = np.empty(len(indices), SEGMENT)
    held["places"], held["stride"], held["kind"], held["start"] = where.T
    starts = np.cumsum([0, *map(len, slots)], dtype=np.int32)
    arrays = [
        positions.to(torch.int32).numpy(), segment_of, place, held,
        np.array(tables.tasks, np.int32), np.array(tables.chunks, np.int32), np.array(tables.task_rows, np.int32),
        starts, np.array([slot for row in slots for slot in row], np.int32),
    ]  # fmt: skip
    at = [array.ctypes.data for array in arrays]
    struct = BatchStruct(
        rows, len(tables.tasks), tables.slot_count, 0, *at[:3], cosine.data_ptr(), sine.data_ptr(), *at[3:]
    )
    return Pass(struct, [arrays, cosine, sine])


def _plan_short(
    spans: Sequence[Span], indices: dict[Segment, int], tables: Tables, slots: list[list[int]], tile: int
) -> None:
    """A task for every chunk; spans share those of segments that they have in common, from the first segment on."""
    for depth in range(max((len(span.path) for span in spans), default=0)):
        together: dict[tuple[Segment, bool], list[int]] = {}
        for span in spans:
            if depth < len(span.path):
                last = depth == len(span.path) - 1
                together.setdefault((span.path[depth], last), []).extend(range(span.first, span.last))
        for (segment, own), rows in together.items():
            length = segment.length + len(rows) if own else segment.length
            for chunk in _cuts(indices[segment], length, own):
                tables.chunks.append(chunk)
                for first in range(0, len(rows), tile):
                    tables.add(rows[first : first + tile], len(tables.chunks) - 1, 1, slots, False)


def _plan_long(span: Span, indices: dict[Segment, int], tables: Tables, slots: list[list[int]], tile: int) -> None:
    """Tasks that go through the whole path, a tile of queries each."""
    own = span.path[-1]
    before = [chunk for s in span.path[:-1] for chunk in _cuts(indices[s], s.length, False)]
    first_chunk = len(tables.chunks)
    tables.chunks.extend(before + _cuts(indices[own], own.length + span.last - span.first, True))
    for first in range(span.first, span.last, tile):
        last = min(first + tile, span.last)
        reach = own.length + last - span.first
        tables.add(range(first, last), first_chunk, len(before) + -(-reach // CHUNK), slots, True)
