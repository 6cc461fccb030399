"""Attention over a flat stream of packed documents, registered with transformers as "pumice".

    q (1, heads, T, d), k, v (1, kv, T, d), starts (D+1,) ──per document causal attention──> (1, T, heads, d)

transformers' decoders call it with the keyword arguments that we give to the model: ``starts`` for packed documents,
or ``cache`` while decoding. Documents never see each other; nothing is padded.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

NAME = "pumice"


class LayerCache(Protocol):
    """What decoding needs of a cache: it stores new keys and values and attends over all that it holds."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor: ...


def attend_packed(q: Tensor, k: Tensor, v: Tensor, starts: list[int], scale: float) -> Tensor:
    """Causal attention in each document. q (heads, T, d), k and v (kv, T, d) to (heads, T, d)."""
    grouped = q.shape[0] != k.shape[0]
    parts = [
        F.scaled_dot_product_attention(
            q[None, :, a:b], k[None, :, a:b], v[None, :, a:b], is_causal=True, scale=scale, enable_gqa=grouped
        )[0]
        for a, b in pairwise(starts)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    starts: list[int] | None = None,
    cache: LayerCache | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = query[0], key[0], value[0]
    if cache is not None:
        out = cache.attend(int(module.layer_idx), q, k, v, scale)  # type: ignore[arg-type]
    else:
        out = attend_packed(q, k, v, starts or [0, q.shape[1]], scale)
    return out.transpose(0, 1)[None].contiguous(), None


def _no_mask(*_: Any, **__: Any) -> None:
    """Documents are told apart by ``starts``, so transformers needn't build a mask."""


AttentionInterface.register(NAME, _forward)
AttentionMaskInterface.register(NAME, _no_mask)
