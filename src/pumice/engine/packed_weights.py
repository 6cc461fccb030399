"""A Llama-like language model's weights as the fast decoder wants them.

transformers module ──read_blocks──> Block a layer ──pack──> Matrix (the module's own memory, or smaller copies)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pumice.engine.kernels import KINDS, Kernels, Kind, MatrixStruct

Weights = Literal["fp32", "bf16", "int8", "int4"]
"""What a language model's may be."""
Packed = Literal["fp32", "bf16", "int8", "int4", "int6"]
"""What linear maps may be; int6 is a tower's beside int4."""
FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3")
ROTATIONS = ("default", "linear", "llama3", "yarn")  # whose angles don't depend on a sequence's length
LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
LARGE_PAGE = 2 << 20
GROUP = 32  # columns that share a scale in int4, and that activations are rounded together in


@dataclass(frozen=True)
class Block:
    """A layer: norms before attention and MLP, norms of heads (Qwen3), linear maps by name, what attention is."""

    before: Tensor
    after: Tensor
    q_norm: Tensor | None
    k_norm: Tensor | None
    linears: dict[str, nn.Linear]
    rope: bool
    window: int | None


def read_blocks(lm: Any) -> list[Block] | None:
    """The layers of a transformers causal LM, or None where it is of a kind that isn't known here."""
    import transformers

    if type(lm) not in [getattr(transformers, f"{family}ForCausalLM") for family in FAMILIES]:
        return None
    config = lm.config
    layers = list(lm.model.layers)
    width = layers[0].self_attn.head_dim
    turned = getattr(lm.model.rotary_emb, "rope_type", "default")
    if config.hidden_act != "silu" or width % 8 or turned not in ROTATIONS or lm.lm_head.bias is not None:
        return None
    blocks = [_read_block(layer, config) for layer in layers]
    plain = [linear for block in blocks for linear in block.linears.values()] + [lm.lm_head]
    usable = all(type(linear) is nn.Linear and linear.weight.dtype in KINDS for linear in plain)
    return blocks if usable and lm.lm_head.weight.device.type == "cpu" else None


def _read_block(layer: Any, config: Any) -> Block:
    attention, mlp = layer.self_attn, layer.mlp
    linears = {name: getattr(attention, f"{name}_proj") for name in LINEARS[:4]}
    linears |= {name: getattr(mlp, f"{name}_proj") for name in LINEARS[4:]}
    # Mistral's layers don't keep it: their forward takes it from the config.
    window = config.sliding_window if config.model_type == "mistral" else getattr(attention, "sliding_window", None)
    norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
    q_norm, k_norm = (None if norm is None else norm.weight.detach().float() for norm in norms)
    return Block(
        layer.input_layernorm.weight.detach().float(),
        layer.post_attention_layernorm.weight.detach().float(),
        q_norm,
        k_norm,
        linears,
        bool(getattr(attention, "use_rope", True)),
        window,
    )


@dataclass(frozen=True)
class Matrix:
    """Weights in a kind's layout (types.h), and the structure that points at them."""

    struct: MatrixStruct
    data: Tensor
    scales: Tensor | None
    bias: Tensor | None

    @property
    def bytes(self) -> int:
        """What one token has to read of it."""
        return sum(t.numel() * t.element_size() for t in (self.data, self.scales) if t is not None)


class Arena:
    """Memory for matrices, one behind the other as they are read, in large pages where the system gives them."""

    def __init__(self, size: int, kernels: Kernels) -> None:
        self._memory = torch.empty(size + LARGE_PAGE, dtype=torch.uint8)
        kernels.large_pages(self._memory)
        self._used = -self._memory.data_ptr() % LARGE_PAGE

    def keep(self, made: Tensor) -> Tensor:
        """A copy of ``made`` in the arena, or ``made`` itself where there is no more room."""
        size = made.numel() * made.element_size()
        if self._used + size > len(self._memory):
            return made.contiguous()
        place = self._memory[self._used : self._used + size].view(made.dtype).view(made.shape)
        self._used += size + -size % 64
        return place.copy_(made)


def arena_size(linears: list[nn.Linear], weights: Packed) -> int:
    """Bytes of all copies that `pack` makes of these."""
    bits = {"fp32": 0, "bf16": 16, "int8": 8.5, "int4": 5, "int6": 9}[weights]
    return sum(int(_padded(one.weight.detach().to("meta")).numel() * bits / 8) + 128 for one in linears)


def pack(linear: nn.Linear, weights: Packed, arena: Arena) -> Matrix:
    """A linear map for the kernels; "fp32" keeps what the module has, without a copy where it lies in order."""
    weight = linear.weight.detach()
    bias = None if linear.bias is None else linear.bias.detach().float().contiguous()
    scales: Tensor | None = None
    if weights in PACKERS:
        packer, kind = PACKERS[weights]
        made, scales = packer(weight.float())
        data, scales = arena.keep(made), arena.keep(scales)
    else:
        wanted = weight.bfloat16() if weights == "bf16" or weight.dtype == torch.float16 else weight
        data = wanted.contiguous() if wanted is weight else arena.keep(wanted)
        kind = KINDS[data.dtype]
    struct = MatrixStruct(
        data.data_ptr(),
        None if scales is None else scales.data_ptr(),
        None if bias is None else bias.data_ptr(),
        *weight.shape,
        kind,
    )
    return Matrix(struct, data, scales, bias)


def _padded(weight: Tensor) -> Tensor:
    rows, cols = weight.shape
    return nn.functional.pad(weight, (0, -cols % GROUP, 0, -rows % 16))


def round_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (rows, cols) as int8 and fp16 scales (rows, cols / 32); cols a multiple of 32."""
    groups = weight.unflatten(1, (-1, GROUP))
    scales = (groups.abs().amax(2, keepdim=True) / 127).half()
    numbers = (groups / _not_zero(scales)).round().clamp(-127, 127)
    return numbers.flatten(1).to(torch.int8), scales.squeeze(2)


def round_steps(weight: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Weights (rows, cols), 0 to ``most``, and fp16 (rows, cols / 32, 2): what a step is worth, and what 0 stands for.

    Of some ranges up to that from the least weight to the largest, each group takes the one with the least error.
    cols is a multiple of 32.
    """
    groups = weight.unflatten(1, (-1, GROUP))
    low, high = groups.amin(2, keepdim=True), groups.amax(2, keepdim=True)
    numbers, scales, best = (
        torch.zeros_like(groups),
        torch.zeros(*groups.shape[:2], 2).half(),
        torch.full_like(low, torch.inf),
    )
    for below, above in ((1.0, 1.0), (0.93, 0.93), (0.86, 0.86), (1.0, 0.9), (0.9, 1.0)):
        least = (low * below).half()
        scale = ((high * above - least) / most).half()
        rounded = ((groups - least) / _not_zero(scale)).round().clamp(0, most)
        error = (rounded * scale + least - groups).square().sum(2, keepdim=True)
        better = error < best
        numbers, best = torch.where(better, rounded, numbers), torch.where(better, error, best)
        scales = torch.where(better, torch.cat([scale, least], 2), scales)
    return numbers.flatten(1).to(torch.uint8), scales


def _not_zero(scales: Tensor) -> Tensor:
    return torch.where(scales == 0, 1.0, scales.float())


def pack_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (rows, cols) fp32 in the layout of types.h, and their scales."""
    numbers, scales = round_int8(_padded(weight))
    rows, cols = numbers.shape
    made = numbers.view(rows // 8, 8, cols // 2, 2).transpose(1, 2).contiguous()
    return made, scales.view(rows // 8, 8, -1).transpose(1, 2).contiguous()


def pack_int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (rows, cols) fp32 in the layout of types.h, and their scales."""
    numbers, scales = round_steps(_padded(weight), 15)
    rows, cols = numbers.shape
    halves = numbers.view(rows // 8, 8, cols // 8, 2, 4)
    both = halves[:, :, :, 0] | halves[:, :, :, 1] << 4
    return both.transpose(1, 2).contiguous(), _steps(scales)


def pack_int6(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (rows, cols) fp32 in the layout of types.h, and their scales."""
    numbers, scales = round_steps(_padded(weight), 63)
    rows, cols = numbers.shape
    return numbers.view(rows // 8, 8, cols // 4, 4).transpose(1, 2).contiguous(), _steps(scales)


def _steps(scales: Tensor) -> Tensor:
    return scales.view(len(scales) // 8, 8, -1, 2).permute(0, 2, 3, 1).contiguous()


PACKERS = {"int8": (pack_int8, Kind.INT8), "int4": (pack_int4, Kind.INT4), "int6": (pack_int6, Kind.INT6)}


class Rotation:
    """Cosines and sines (positions, d / 2) of a model's rotary embedding, made as far as they are needed."""

    def __init__(self, embedding: Any, width: int, most: int) -> None:
        self._embedding, self._width, self._most = embedding, width, most
        self.cosine = self.sine = torch.zeros(0, width // 2)

    def upto(self, count: int) -> None:
        """Make sure of positions 0:count."""
        if count <= len(self.cosine):
            return
        size = max(count, min(self._most, max(1024, 2 * len(self.cosine))))
        cosine, sine = self._embedding(torch.zeros(1), torch.arange(size)[None])
        half = self._width // 2
        self.cosine, self.sine = cosine[0, :, :half].contiguous(), sine[0, :, :half].contiguous()
