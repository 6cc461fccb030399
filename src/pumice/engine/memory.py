"""Room for keys and values, counted in tokens.

    budget in bytes ──token_bytes of the model and dtype──> budget in tokens ──new, split, cut, free──> Segments

Every token of every segment is counted once: a segment that is split in two shares its storage, and where one of the
two goes before the other, the one that stays moves to storage of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pumice.engine.segments import Decoder, Segment
from pumice.model.assistant import AssistantModel


class Memory:
    """Segments for one model, of ``budget`` tokens in all; ``held`` of them are taken."""

    def __init__(self, model: AssistantModel, budget: int, dtype: torch.dtype) -> None:
        self.heads, self.width = _heads(model)
        self.dtype, self.device = dtype, model.device
        self.budget, self.held = budget, 0
        self._sharing: dict[Segment, set[Segment]] = {}  # of segments on common storage: all of them

    @property
    def free_tokens(self) -> int:
        """Tokens for which there is room."""
        return self.budget - self.held

    def new(self, tokens: int, start: int) -> Segment:
        """An empty segment. Whoever asks for it has seen to the room."""
        self.held += tokens
        return Segment(self._empty(tokens), self._empty(tokens), start)

    def _empty(self, tokens: int) -> list[Tensor]:
        return [torch.empty(kv, tokens, self.width, dtype=self.dtype, device=self.device) for kv in self.heads]

    def free(self, segment: Segment) -> None:
        """Give a segment's room back. What shares its storage moves, a layer at a time, so that the room is real."""
        self.held -= segment.capacity
        others = self._sharing.pop(segment, set()) - {segment}
        for other in others:
            del self._sharing[other]
        for tensors in ("keys", "values"):
            for layer in range(len(self.heads)):
                for other in others:
                    moved = getattr(other, tensors)
                    moved[layer] = moved[layer].clone(memory_format=torch.contiguous_format)
                getattr(segment, tensors)[layer] = self._nothing(layer)

    def _nothing(self, layer: int) -> Tensor:
        return torch.empty(self.heads[layer], 0, self.width, dtype=self.dtype, device=self.device)

    def split(self, segment: Segment, at: int) -> tuple[Segment, Segment]:
        """Two segments in the place of one: its first ``at`` tokens, and the rest. Nothing is copied."""
        upper, lower = (
            Segment(
                [t[:, first:last] for t in segment.keys],
                [t[:, first:last] for t in segment.values],
                segment.start + first,
                min(max(segment.length - first, 0), last - first),
            )
            for first, last in ((0, at), (at, segment.capacity))
        )
        group = self._sharing.pop(segment, {segment})
        group -= {segment}
        group |= {upper, lower}
        for member in group:
            self._sharing[member] = group
        return upper, lower

    def cut(self, segment: Segment, first: int, last: int) -> Segment:
        """A copy of the tokens ``first:last`` of a segment, in the place of the whole, which is freed."""
        if (first, last) == (0, segment.capacity):
            return segment
        kept = self.new(last - first, segment.start + first)
        for layer in range(len(self.heads)):
            kept.keys[layer].copy_(segment.keys[layer][:, first:last])
            kept.values[layer].copy_(segment.values[layer][:, first:last])
        kept.length = last - first
        self.free(segment)
        return kept


def token_bytes(model: AssistantModel, dtype: torch.dtype) -> int:
    """Bytes of a token's keys and values in all layers."""
    heads, width = _heads(model)
    return 2 * sum(heads) * width * dtype.itemsize


def cache_dtype(model: AssistantModel, decoder: Decoder) -> torch.dtype:
    """What a decoder keeps keys and values in: what it names, or the model's own."""
    return getattr(decoder, "cache_dtype", model.newline.dtype)


def _heads(model: AssistantModel) -> tuple[list[int], int]:
    """The kv heads of each layer, and their width."""
    config = model.lm.config
    heads = config.num_key_value_heads  # one number, or one a layer (OpenELM)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return [heads] * config.num_hidden_layers if isinstance(heads, int) else list(heads), width
