"""A fast decoder for Llama-like language models on a CPU.

embeddings ──┬── few tokens a sequence, or integer weights ──> compiled blocks, which read a weight once ──┬──> hidden
             ├── long pieces of prompts, bf16 ──> compiled blocks, weights as panels of int16 (panels.h) ──┤
             └── long pieces of prompts, fp32 ──> torch's matrix products, compiled attention ─────────────┘

Decoding waits for memory, so what counts is how few bytes a token reads: weights may be bf16, int8 or int4 copies. A
token's numbers don't depend on what else a pass computes. The torch model stays the source of the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pumice.engine.attention_plan import SHORT, Pass, Places, plan_pass
from pumice.engine.kernels import Kernels, LayerStruct, ModelStruct, load_kernels
from pumice.engine.packed_weights import Arena, Block, Matrix, Rotation, Weights, arena_size, pack, read_blocks
from pumice.engine.segments import Decoder, Span
from pumice.model.assistant import AssistantModel


def compiled_decoder(model: AssistantModel, weights: Weights = "fp32") -> Decoder | None:
    """A decoder with the model's weights as they are ("fp32") or as bf16, int8 or int4 copies.

    None where the language model is of a kind that it doesn't know, where it isn't on a CPU, or where the package was
    built without a compiler: transformers' own layers answer then.
    """
    kernels, blocks = load_kernels(), read_blocks(model.lm)
    return None if kernels is None or blocks is None else CompiledDecoder(model, blocks, weights, kernels)


class CompiledDecoder:
    """Decoder (segments.py) over compiled kernels. ``bytes_per_token`` is what decoding reads of the weights.

    ``cache_dtype`` is what keys and values are best kept in; segments may be fp32, bf16 or fp16.
    """

    def __init__(self, model: AssistantModel, blocks: list[Block], weights: Weights, kernels: Kernels) -> None:
        lm: Any = model.lm
        config, attention = lm.config, lm.model.layers[0].self_attn
        self.weights, self._kernels, self._blocks = weights, kernels, blocks
        self._dtype = lm.lm_head.weight.dtype
        # torch's bf16 is the fastest where the processor has it, and many times slower than fp32 where it doesn't.
        self._panels = weights == "bf16" and not (self._dtype == torch.bfloat16 and has_bf16())
        self._norm = lm.model.norm.weight.detach().float()
        self._eps = float(config.rms_norm_eps)
        # The head decides between words that differ by little: four bits would be too few for it.
        head: Weights = "int8" if weights == "int4" else weights
        linears = [linear for block in blocks for linear in block.linears.values()]
        arena = Arena(arena_size(linears, weights) + arena_size([lm.lm_head], head), kernels)
        self._packed = [{name: pack(one, weights, arena) for name, one in b.linears.items()} for b in blocks]
        self._head = pack(lm.lm_head, head, arena)
        self._layers = (LayerStruct * len(blocks))(*map(_layer_struct, blocks, self._packed))
        heads, kv, width = config.num_attention_heads, config.num_key_value_heads, attention.head_dim
        self._shared = heads // kv
        inner = blocks[0].linears["gate"].out_features
        self._model = ModelStruct(
            self._layers, self._norm.data_ptr(), len(blocks), config.hidden_size, heads, kv, width, inner,
            self._eps, attention.scaling,
        )  # fmt: skip
        self._rotation = Rotation(lm.model.rotary_emb, width, config.max_position_embeddings)
        self._places = Places(len(blocks))
        self.cache_dtype = torch.float32 if weights == "fp32" else torch.float16
        every: list[Matrix] = [*(m for packed in self._packed for m in packed.values()), self._head]
        self.bytes_per_token = sum(matrix.bytes for matrix in every)

    @torch.inference_mode()
    def forward(self, embedded: Tensor, positions: Tensor, spans: Sequence[Span]) -> Tensor:
        """Embeddings (T, H) at ``positions`` (T,) to last hidden states (T, H), after the final norm.

        Raises:
            PumiceError: a segment is full.
        """
        self._rotation.upto(int(positions.max()) + 1)
        short = [span for span in spans if span.last - span.first <= SHORT]
        if self.weights in ("int8", "int4") or len(short) == len(spans):
            return self._compiled(embedded, positions, spans).to(embedded.dtype)
        out = torch.empty_like(embedded)
        if short:
            rows = torch.cat([torch.arange(span.first, span.last) for span in short])
            out[rows] = self._compiled(embedded[rows], positions[rows], _from_zero(short)).to(out.dtype)
        for span in spans:  # one after the other, so that a prompt's numbers don't depend on its neighbours
            if span.last - span.first > SHORT:
                part, alone = slice(span.first, span.last), _from_zero([span])
                if self._panels:
                    out[part] = self._compiled(embedded[part], positions[part], alone, panels=True).to(out.dtype)
                else:
                    out[part] = self._by_torch(embedded[part], positions[part], alone).to(out.dtype)
        return out

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of last hidden states (..., H)."""
        x = hidden.reshape(-1, hidden.shape[-1]).float().contiguous()
        return self._kernels.linear(self._head.struct, x).to(hidden.dtype).view(*hidden.shape[:-1], -1)

    def _plan(self, positions: Tensor, spans: Sequence[Span]) -> Pass:
        return plan_pass(spans, positions, self._shared, self._places, self._rotation.cosine, self._rotation.sine)

    def _compiled(self, embedded: Tensor, positions: Tensor, spans: Sequence[Span], panels: bool = False) -> Tensor:
        hidden = embedded.to(torch.float32, copy=True).contiguous()
        plan = self._plan(positions, spans)  # which owns what its structure points at
        self._kernels.forward(self._model, plan.struct, hidden, panels)
        return hidden

    def _by_torch(self, embedded: Tensor, positions: Tensor, spans: Sequence[Span]) -> Tensor:
        """Products by torch, in the module's type; they reach what the processor can where rows are many."""
        plan, x, dtype = self._plan(positions, spans), embedded.float(), self._dtype
        answer = self._model.heads * self._model.width
        for layer, block in enumerate(self._blocks):
            maps = block.linears
            n = F.rms_norm(x, x.shape[-1:], block.before, self._eps).to(dtype)
            qkv = torch.cat([maps["q"](n), maps["k"](n), maps["v"](n)], dim=1).float()
            self._kernels.attend(self._model, layer, plan.struct, qkv)
            x = x + maps["o"](qkv[:, :answer].to(dtype))
            n = F.rms_norm(x, x.shape[-1:], block.after, self._eps).to(dtype)
            x = x + maps["down"](F.silu(maps["gate"](n)) * maps["up"](n))
        return F.rms_norm(x, x.shape[-1:], self._norm, self._eps)


def has_bf16() -> bool:
    """Whether the processor multiplies bf16 numbers."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _from_zero(spans: Sequence[Span]) -> list[Span]:
    """The same spans, their tokens one behind the other from row 0."""
    moved, row = [], 0
    for span in spans:
        count = span.last - span.first
        moved.append(replace(span, first=row, last=row + count))
        row += count
    return moved


def _layer_struct(block: Block, packed: dict[str, Matrix]) -> LayerStruct:
    norms = [None if n is None else n.data_ptr() for n in (block.before, block.after, block.q_norm, block.k_norm)]
    matrices = [packed[name].struct for name in ("q", "k", "v", "o", "gate", "up", "down")]
    return LayerStruct(*norms, *matrices, int(block.rope), block.window or 0)
