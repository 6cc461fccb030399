"""Keys and values of the sequences being answered, preallocated and grouped by kv head.

layer ──attend(q, k, v of the new tokens)──> stores them in each sequence's slot, attends over all it holds
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from pumice.model.attention import Kind, attend, attend_packed


class KVCache:
    """Room for ``slots`` sequences of up to ``capacity`` tokens.

    Keys and values are (slots, kv heads, capacity, d) for each layer; ``heads`` are the kv heads of each. ``lengths``
    (slots,) counts the tokens held. Every forward appends tokens to some of the slots: whole prompts, the rest of a
    prompt whose beginning is there, or one token each.
    """

    def __init__(
        self, slots: int, heads: Sequence[int], capacity: int, width: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shapes = [(slots, kv, capacity, width) for kv in heads]
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
        self.lengths = [0] * slots
        self.capacity = capacity
        self._slots: list[int] = []
        self._starts: list[int] = [0]

    def begin(self, slots: Sequence[int], starts: Sequence[int]) -> None:
        """The next forward appends tokens starts[i]:starts[i + 1] to slots[i]."""
        self._slots, self._starts = list(slots), list(starts)

    def advance(self) -> None:
        """Count the tokens of the forward that has just run (every layer stores at the same places)."""
        for slot, (a, b) in zip(self._slots, pairwise(self._starts), strict=True):
            self.lengths[slot] += b - a

    def copy(self, source: int, slot: int) -> None:
        """Make ``slot`` hold what ``source`` holds."""
        held = self.lengths[slot] = self.lengths[source]
        for held_by_layer in (*self.keys, *self.values):
            held_by_layer[slot, :, :held] = held_by_layer[source, :, :held]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, kind: Kind) -> Tensor:
        """q (heads, T, d), k and v (kv, T, d) of the new tokens to their attention output (heads, T, d)."""
        if self._starts == list(range(len(self._slots) + 1)) and kind.softcap is None:
            return self._one_each(layer, q, k, v, kind)
        spans = list(zip(self._slots, pairwise(self._starts), strict=True))
        for slot, (a, b) in spans:
            held = self.lengths[slot]
            self.keys[layer][slot, :, held : held + b - a] = k[:, a:b]
            self.values[layer][slot, :, held : held + b - a] = v[:, a:b]
        if not any(self.lengths[slot] for slot in self._slots):
            return attend_packed(q, k, v, self._starts, kind)
        return torch.cat([self._rest(layer, slot, q[:, a:b], kind) for slot, (a, b) in spans], dim=1)

    def _rest(self, layer: int, slot: int, q: Tensor, kind: Kind) -> Tensor:
        """Several new tokens of one slot, each attending to all before it."""
        held = self.lengths[slot] + q.shape[1]
        return attend(q, self.keys[layer][slot, :, :held], self.values[layer][slot, :, :held], kind)

    def _one_each(self, layer: int, q: Tensor, k: Tensor, v: Tensor, kind: Kind) -> Tensor:
        """One new token for each slot, all at once."""
        slots = torch.tensor(self._slots, device=q.device)
        places = torch.tensor([self.lengths[slot] for slot in self._slots], device=q.device)
        self.keys[layer][slots, :, places] = k.transpose(0, 1)
        self.values[layer][slots, :, places] = v.transpose(0, 1)
        longest = max(self.lengths[slot] for slot in self._slots) + 1
        keys, values = self.keys[layer][slots, :, :longest], self.values[layer][slots, :, :longest]
        order = torch.arange(longest, device=q.device)
        seen = order <= places[:, None]
        if kind.window is not None:
            seen &= order > places[:, None] - kind.window
        # One query a sequence: the queries that share a kv head become its rows, so nothing is repeated.
        n, kv = len(self._slots), k.shape[0]
        grouped = q.transpose(0, 1).reshape(n, kv, -1, q.shape[-1])
        out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=seen[:, None, None, :], scale=kind.scale)
        return out.reshape(n, q.shape[0], q.shape[-1]).transpose(0, 1)
