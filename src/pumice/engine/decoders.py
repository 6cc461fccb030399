"""Which decoder and tower a model gets: compiled kernels where they know it, else transformers' own layers."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import cast, get_args

import torch
from torch import Tensor, nn

from pumice.engine.compiled import compiled_decoder
from pumice.engine.kernels import Kernels, load_kernels
from pumice.engine.packed_weights import Arena, Packed, Weights, arena_size, pack
from pumice.engine.plain import PlainDecoder
from pumice.engine.segments import Decoder
from pumice.model.assistant import AssistantModel
from pumice.types import PumiceError


def make_decoder(model: AssistantModel, weights: str) -> Decoder:
    """The fastest decoder that the model has; with ``weights`` "" for those that it has as they are.

    Raises:
        PumiceError: weights that it can't have.
    """
    if weights not in ("", *get_args(Weights)):
        raise PumiceError(f"weights {weights!r}; expected one of {', '.join(get_args(Weights))}")
    own = {torch.float32: "fp32", torch.bfloat16: "bf16"}.get(model.newline.dtype, "")
    decoder = compiled_decoder(model, cast(Weights, weights or own)) if weights or own else None
    if decoder is None and weights not in ("", own):
        raise PumiceError(
            f"weights {weights!r} need a CPU, a language model of Llama's kind and Pumice's compiled kernels; "
            f"this model answers with its own ({own or model.newline.dtype})"
        )
    return decoder or PlainDecoder(model)


def make_tower(model: AssistantModel, weights: str) -> Callable[[Tensor], Tensor]:
    """The model's tower, for ``weights`` that `make_decoder` took.

    With other weights than fp32 on a CPU, its linear maps are multiplied in 13 and 14 bits (panels.h): for the same
    parameters, without a copy. With int4 they are copies of 6 bits, multiplied with features of 8.
    """
    kernels = load_kernels()
    if kernels is None or weights in ("", "fp32") or model.device.type != "cpu":
        return model.tower
    return _with_products(model.tower, kernels, weights == "int4")


class IntegerLinear(nn.Module):
    """A linear map multiplied as integers: its own weights as panels, or ``few`` bits of them."""

    def __init__(self, linear: nn.Linear, kernels: Kernels, few: bool) -> None:
        super().__init__()
        kind = "int6" if few else KIND_NAMES[linear.weight.dtype]
        self._matrix = pack(linear, kind, Arena(arena_size([linear], kind) if few else 0, kernels))
        self._kernels, self._panels = kernels, not few

    def forward(self, x: Tensor) -> Tensor:
        """x (..., cols) to (..., rows), as nn.Linear."""
        flat = x.reshape(-1, x.shape[-1]).float().contiguous()
        return self._kernels.linear(self._matrix.struct, flat, self._panels).view(*x.shape[:-1], -1).to(x.dtype)


KIND_NAMES: dict[torch.dtype, Packed] = {torch.float32: "fp32", torch.bfloat16: "bf16"}


def _with_products(module: nn.Module, kernels: Kernels, few: bool) -> nn.Module:
    """The same module, which stays as it is, but for its linear maps."""
    if type(module) is nn.Linear and module.weight.dtype in KIND_NAMES:
        return IntegerLinear(module, kernels, few)
    made = copy(module)
    made._modules = {name: child and _with_products(child, kernels, few) for name, child in module._modules.items()}
    return made
