"""Low-rank training of the language model and the tower through peft: LoRA, DoRA, also over weights in 4 bits.

module ──nf4──> ──insert──> W (frozen) + alpha / r * B A (trained) ──updates──> adapter, delta
                                                                   ──folded──> plain weights, for a while
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pumice.config import LoraConfig
from pumice.formats.lora import Update
from pumice.types import PumiceError

IN_BLOCK = re.compile(r"\.\d+\.")
"""What the names of layers inside of a block have, and those of embeddings and heads don't."""


def add_lora(module: nn.Module, config: LoraConfig, seed: int, device: torch.device | None = None) -> None:
    """Insert trainable low-rank matrices beside every linear layer of the blocks and freeze the rest of the module.

    ``module`` is transformers': a language model, or the backbone of a tower. Weights that go into 4 bits are on
    ``device`` then, by default where they were.

    Raises:
        PumiceError: peft, or for 4 bits bitsandbytes, is not installed.
    """
    try:
        import peft
    except ImportError:
        raise PumiceError("low-rank training needs peft: pip install 'pumice[train]'") from None
    module.requires_grad_(False)
    targets = [n for n, layer in module.named_modules() if isinstance(layer, nn.Linear) and IN_BLOCK.search(n)]
    if config.quantize:
        _quantise(module, targets, device)
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=targets,
        lora_dropout=0.0,
        use_dora=config.kind == "dora",
    )
    peft.inject_adapter_in_model(settings, module)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if ".lora_" in name:
                parameter.data = parameter.data.float()  # peft gives them the dtype of the weights beside them
            if ".lora_A." in name:  # peft draws from the global generator; ours is a function of the seed
                drawn = torch.empty(parameter.shape).normal_(0.0, parameter.shape[1] ** -0.5, generator=generator)
                parameter.copy_(drawn)
    if config.kind == "lora" and not config.quantize:
        for layer in _layers(module).values():
            layer.forward = MethodType(_fused, layer)


def _fused(self: Any, x: Tensor) -> Tensor:
    """What peft computes, x (..., in) to (..., out), in fewer calls: a small model on a GPU waits for them."""
    plain = self.base_layer(x)
    inner = F.linear(x, self.lora_A["default"].weight).flatten(0, -2)
    b = self.lora_B["default"].weight
    return torch.addmm(plain.flatten(0, -2), inner, b.t(), alpha=self.scaling["default"]).view_as(plain)


@torch.no_grad()
def narrow(module: nn.Module, dtype: torch.dtype) -> None:
    """Hold a frozen module's weights in ``dtype``, in place; low-rank matrices stay fp32.

    Its matrix products round them so anyway; between them activations then take half the room.
    """
    for name, parameter in module.named_parameters():
        if ".lora_" not in name and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def _quantise(module: nn.Module, names: Sequence[str], device: torch.device | None) -> None:
    """Put linear layers into bitsandbytes' 4-bit floats (Dettmers et al. 2023), in place."""
    try:
        from bitsandbytes.nn import modules as bits
    except ImportError:
        raise PumiceError(
            "quantize = nf4 needs bitsandbytes: pip install bitsandbytes, or leave quantize out of the recipe"
        ) from None
    for name in names:
        plain: Any = module.get_submodule(name)
        sizes = (plain.in_features, plain.out_features, plain.bias is not None)
        packed = bits.Linear4bit(*sizes, quant_type="nf4", device="meta")
        packed.weight = bits.Params4bit(plain.weight.detach(), False, quant_type="nf4")  # type: ignore[call-arg]
        packed.bias = plain.bias
        _put(module, name, packed.to(device or plain.weight.device))
    module.is_loaded_in_4bit = True  # type: ignore[assignment]  # without it, peft takes them for plain layers


def has_lora(module: nn.Module) -> bool:
    """Whether low-rank matrices are in place."""
    return any(".lora_A." in name for name, _ in module.named_parameters())


@torch.no_grad()
def updates(module: nn.Module) -> dict[str, Update]:
    """The low-rank updates by the path of their layer."""
    found: dict[str, Update] = {}
    for path, layer in _layers(module).items():
        pieces = {f"lora_{x}.weight": getattr(layer, f"lora_{x}")["default"].weight.detach() for x in "AB"}
        if "default" in layer.lora_magnitude_vector:
            pieces["lora_magnitude_vector"] = layer.lora_magnitude_vector["default"].weight.detach()
        found[path] = Update(pieces, layer.r["default"], layer.lora_alpha["default"])
    return found


def lora_pairs(lm: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """{module path: (a (r, in), b (out, r))} with the scaling folded into b, so that the update is b @ a.

    Raises:
        PumiceError: DoRA's updates, which aren't of low rank.
    """
    found = updates(lm)
    if any(update.dora for update in found.values()):
        raise PumiceError("DoRA changes the lengths of rows too, which low-rank pairs can't say")
    scaled = {path: update.alpha / update.rank for path, update in found.items()}
    return {
        path: (update.pieces["lora_A.weight"], update.pieces["lora_B.weight"] * scaled[path])
        for path, update in found.items()
    }


@torch.no_grad()
def set_lora_pairs(lm: nn.Module, pairs: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Put low-rank pairs, as `lora_pairs` gives them, into matrices of the same rank.

    Raises:
        PumiceError: another set of modules, or another rank.
    """
    layers = _layers(lm)
    if layers.keys() != pairs.keys():
        raise PumiceError(f"low-rank pairs of {len(pairs)} modules, expected those of {len(layers)}")
    for path, (a, b) in pairs.items():
        target_a, target_b = layers[path].lora_A["default"].weight, layers[path].lora_B["default"].weight
        if target_a.shape != a.shape or target_b.shape != b.shape:
            raise PumiceError(f"{path}: low-rank pairs of rank {a.shape[0]}, expected {target_a.shape[0]}")
        target_a.copy_(a)
        target_b.copy_(b.float() / layers[path].scaling["default"])
    reset_lengths(lm)


@torch.no_grad()
def reset_lengths(module: nn.Module) -> None:
    """Let DoRA begin anew from the weights that are in place: each row's length is what it is, and changes nothing."""
    layers = _layers(module)
    for path, update in updates(module).items():
        if update.dora:
            lengths = torch.linalg.norm(update._replace(pieces=_pair(update)).folded(_weight(layers[path])), dim=1)
            update.pieces["lora_magnitude_vector"].copy_(lengths)


@contextmanager
def folded(module: nn.Module) -> Iterator[None]:
    """A block in which the module has plain linear layers, with the updates folded into their weights."""
    layers = _layers(module)
    found = updates(module)
    for path, layer in layers.items():
        _put(module, path, _plain(layer, found[path]))
    try:
        yield
    finally:
        for path, layer in layers.items():
            _put(module, path, layer)


@torch.no_grad()
def _plain(layer: Any, update: Update) -> nn.Linear:
    base = layer.get_base_layer()
    made = nn.Linear(base.in_features, base.out_features, base.bias is not None, device="meta")
    made.weight = nn.Parameter(update.folded(_weight(layer)), requires_grad=False)
    made.bias = base.bias
    return made


def _pair(update: Update) -> dict[str, Tensor]:
    return {kind: value for kind, value in update.pieces.items() if kind != "lora_magnitude_vector"}


def _weight(layer: Any) -> Tensor:
    """The frozen weight (out, in) of a layer, out of its 4 bits."""
    from peft.utils.integrations import dequantize_module_weight

    return dequantize_module_weight(layer.get_base_layer()).detach()


def _layers(module: nn.Module) -> dict[str, Any]:
    return {path: layer for path, layer in module.named_modules() if hasattr(layer, "lora_A")}


def _put(module: nn.Module, path: str, layer: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    setattr(module.get_submodule(parent), leaf, layer)
