"""Attention over a flat stream of packed documents, registered with transformers as "pumice".

    q (1, heads, T, d), k, v (1, kv, T, d), starts (D+1,) ──per document causal attention──> (1, T, heads, d)

transformers' decoders call it with the keyword arguments that we give to the model: ``starts`` for packed documents,
or ``cache`` while decoding. Documents never see each other; nothing is padded.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

NAME = "pumice"


class LayerCache(Protocol):
    """What decoding needs of a cache: it stores new keys and values and attends over all that it holds."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, kind: Kind) -> Tensor: ...


class Kind(NamedTuple):
    """What a layer's attention is beside causal: scores times ``scale``; a token sees itself and ``window`` - 1 before.

    ``softcap`` bounds scores to softcap * tanh(score / softcap) (Gemma 2).
    """

    scale: float
    window: int | None = None
    softcap: float | None = None


def attend_packed(q: Tensor, k: Tensor, v: Tensor, starts: list[int], kind: Kind) -> Tensor:
    """Causal attention in each document. q (heads, T, d), k and v (kv, T, d) to (heads, T, d)."""
    if q.is_cuda and kind.softcap is None and _varlen() is not None:
        # Rotary angles in fp32 leave q and k in fp32 under autocast, which casts for torch's own attention only.
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else q.dtype
        if dtype != torch.float32:
            return _attend_varlen(q.to(dtype), k.to(dtype), v.to(dtype), starts, kind)
    parts = [attend(q[:, a:b], k[:, a:b], v[:, a:b], kind) for a, b in pairwise(starts)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def attend(q: Tensor, k: Tensor, v: Tensor, kind: Kind) -> Tensor:
    """The last n of m tokens over all m: q (heads, n, d), k and v (kv, m, d) to (heads, n, d)."""
    new, held, grouped = q.shape[1], k.shape[1], q.shape[0] != k.shape[0]
    narrow = kind.window is not None and held > kind.window
    if new == held and not narrow and kind.softcap is None:
        return F.scaled_dot_product_attention(
            q[None], k[None], v[None], is_causal=True, scale=kind.scale, enable_gqa=grouped
        )[0]
    seen = torch.ones(new, held, dtype=torch.bool, device=q.device).tril(held - new)
    if narrow and kind.window is not None:
        seen = seen.triu(held - new - kind.window + 1)
    if kind.softcap is not None:
        return _capped(q, k, v, seen, kind)
    return F.scaled_dot_product_attention(
        q[None], k[None], v[None], attn_mask=seen, scale=kind.scale, enable_gqa=grouped
    )[0]


def _capped(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, kind: Kind) -> Tensor:
    """Attention with bounded scores, which torch's own has no argument for. seen (n, m) bool."""
    assert kind.softcap is not None
    shared = q.shape[0] // k.shape[0]
    keys, values = k.repeat_interleave(shared, 0), v.repeat_interleave(shared, 0)
    scores = torch.tanh(q @ keys.mT * (kind.scale / kind.softcap)) * kind.softcap
    return scores.masked_fill(~seen, float("-inf")).softmax(-1, dtype=torch.float32).to(q.dtype) @ values


@cache
def _varlen() -> Callable[..., Any] | None:
    """torch's variable-length attention where it has windows (2.11 on); later told of shared heads."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    known = inspect.signature(varlen_attn).parameters
    if "window_size" not in known:
        return None
    return varlen_attn if "enable_gqa" in known else lambda *args, enable_gqa, **kw: varlen_attn(*args, **kw)


@lru_cache(maxsize=4)
def _on_device(starts: tuple[int, ...], device: torch.device) -> Tensor:
    """(D+1,) int32, made once for all layers of a pass."""
    return torch.tensor(starts, dtype=torch.int32, device=device)


def _attend_varlen(q: Tensor, k: Tensor, v: Tensor, starts: list[int], kind: Kind) -> Tensor:
    """All documents in one call of Flash Attention's variable-length kernel (GPU, 16 bit)."""
    varlen_attn = _varlen()
    assert varlen_attn is not None
    ends = _on_device(tuple(starts), q.device)
    longest = max(b - a for a, b in pairwise(starts))
    window = (-1 if kind.window is None else kind.window - 1, 0)
    query, key, value = (part.transpose(0, 1).contiguous() for part in (q, k, v))
    out = varlen_attn(
        query, key, value, ends, ends, longest, longest, scale=kind.scale, window_size=window,
        enable_gqa=q.shape[0] != k.shape[0],
    )  # fmt: skip
    assert isinstance(out, Tensor)
    return out.transpose(0, 1)


@torch.compiler.disable  # documents differ in number and length from batch to batch; the rest of a block doesn't
def _forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    starts: list[int] | None = None,
    cache: LayerCache | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    kind = Kind(query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window, softcap)
    q, k, v = query[0], key[0], value[0]
    if cache is not None:
        out = cache.attend(int(module.layer_idx), q, k, v, kind)  # type: ignore[arg-type]
    else:
        out = attend_packed(q, k, v, starts or [0, q.shape[1]], kind)
    return out.transpose(0, 1)[None].contiguous(), None


def _no_mask(*_: Any, **__: Any) -> None:
    """Documents are told apart by ``starts``, so transformers needn't build a mask."""


AttentionInterface.register(NAME, _forward)
AttentionMaskInterface.register(NAME, _no_mask)
