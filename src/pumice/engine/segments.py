"""Keys and values of sequences, in segments that sequences share.

    picture and instructions ── Segment ──┬── Segment: first question, its answer
                                          └── Segment: second question, its answer

A sequence is a path of segments. New tokens go to the last one, which is the sequence's own; those before it may belong
to many sequences, and one pass attends to a shared segment with all their queries at once. Attention over a path is put
together from attention over its segments: each gives an output and the logarithm of its sum of exponentials.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pumice.model.attention import Kind, attend
from pumice.types import PumiceError


@dataclass(eq=False)
class Segment:
    """Room for the keys and values of consecutive tokens, from position ``start`` on; ``length`` of them are there.

    ``keys`` and ``values`` have a tensor (kv, capacity, d) a layer. They may be views of a longer one, that of a prefix
    cut in two, so that heads lie further apart than their tokens need; between passes they may move elsewhere.
    """

    keys: list[Tensor]
    values: list[Tensor]
    start: int
    length: int = 0

    @property
    def capacity(self) -> int:
        return self.keys[0].shape[1]

    @property
    def end(self) -> int:
        """The position after its last token."""
        return self.start + self.length


@dataclass(frozen=True)
class Span:
    """New tokens ``first:last`` of a pass, of a sequence that is ``path``; they are appended to its last segment."""

    first: int
    last: int
    path: tuple[Segment, ...]


class Decoder(Protocol):
    """A language model's blocks over new tokens of any number of sequences.

    Whoever calls `forward` counts the new tokens afterwards (``segment.length += last - first``).
    """

    def forward(self, embedded: Tensor, positions: Tensor, spans: Sequence[Span]) -> Tensor:
        """Embeddings (T, H) at ``positions`` (T,) to last hidden states (T, H), after the final norm."""
        ...

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of last hidden states (..., H)."""
        ...


def store(layer: int, k: Tensor, v: Tensor, spans: Sequence[Span]) -> None:
    """Put new keys and values (kv, T, d) where their spans' last segments have room.

    Raises:
        PumiceError: a segment is full.
    """
    for span in spans:
        own = span.path[-1]
        end = own.length + span.last - span.first
        if end > own.capacity:
            raise PumiceError(f"a segment of {own.capacity} tokens can't hold {end}")
        own.keys[layer][:, own.length : end] = k[:, span.first : span.last]
        own.values[layer][:, own.length : end] = v[:, span.first : span.last]


def attend_paths(layer: int, q: Tensor, k: Tensor, v: Tensor, spans: Sequence[Span], kind: Kind) -> Tensor:
    """Store the new keys and values and attend: q (heads, T, d), k and v (kv, T, d) to (heads, T, d).

    A token sees all of its path up to itself.
    """
    store(layer, k, v, spans)
    return torch.cat([_over_path(layer, q[:, span.first : span.last], span, kind) for span in spans], dim=1)


def _over_path(layer: int, q: Tensor, span: Span, kind: Kind) -> Tensor:
    """One span's attention by putting its path's segments one behind the other."""
    new = span.last - span.first
    held = [s for s in span.path[:-1] if s.length]
    own = span.path[-1]
    keys = [s.keys[layer][:, : s.length] for s in held] + [own.keys[layer][:, : own.length + new]]
    values = [s.values[layer][:, : s.length] for s in held] + [own.values[layer][:, : own.length + new]]
    if len(keys) == 1:
        return attend(q, keys[0], values[0], kind)
    return attend(q, torch.cat(keys, dim=1), torch.cat(values, dim=1), kind)
