"""Keys and values of the sequences being answered, preallocated and grouped by kv head.

layer ──attend(q, k, v of the new tokens)──> stores them in each sequence's slot, attends over all it holds
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from pumice.model.attention import attend_packed


class KVCache:
    """Room for ``slots`` sequences of up to ``capacity`` tokens.

    Keys and values are (layers, slots, kv heads, capacity, d). ``lengths`` (slots,) counts the tokens held. A prefill
    brings whole documents (``starts`` set), a decode step brings one token for each of ``active`` slots.
    """

    def __init__(
        self, layers: int, slots: int, heads: int, capacity: int, width: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (layers, slots, heads, capacity, width)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths = [0] * slots
        self.capacity = capacity
        self._starts: list[int] | None = None
        self._active: list[int] = list(range(slots))

    def begin_prefill(self, starts: list[int]) -> None:
        """The next forward brings documents 0..D-1 of a packed batch into slots 0..D-1."""
        self._starts = starts

    def begin_decode(self, active: list[int]) -> None:
        """The next forward brings one token for each of these slots, in this order."""
        self._starts, self._active = None, active

    def advance(self) -> None:
        """Count the tokens of the forward that has just run (every layer stores at the same place)."""
        if self._starts is not None:
            self.lengths = [b - a for a, b in pairwise(self._starts)]
        else:
            for slot in self._active:
                self.lengths[slot] += 1

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """q (heads, T, d), k and v (kv, T, d) of the new tokens to their attention output (heads, T, d)."""
        if self._starts is not None:
            for slot, (a, b) in enumerate(pairwise(self._starts)):
                self.keys[layer, slot, :, : b - a] = k[:, a:b]
                self.values[layer, slot, :, : b - a] = v[:, a:b]
            return attend_packed(q, k, v, self._starts, scale)
        slots = torch.tensor(self._active, device=q.device)
        places = torch.tensor([self.lengths[slot] for slot in self._active], device=q.device)
        self.keys[layer, slots, :, places] = k.transpose(0, 1)
        self.values[layer, slots, :, places] = v.transpose(0, 1)
        longest = max(self.lengths[slot] for slot in self._active) + 1
        keys, values = self.keys[layer, slots, :, :longest], self.values[layer, slots, :, :longest]
        seen = torch.arange(longest, device=q.device) <= places[:, None]
        # One query a sequence: the queries that share a kv head become its rows, so nothing is repeated.
        n, kv = len(self._active), k.shape[0]
        grouped = q.transpose(0, 1).reshape(n, kv, -1, q.shape[-1])
        out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=seen[:, None, None, :], scale=scale)
        return out.reshape(n, q.shape[0], q.shape[-1]).transpose(0, 1)
