"""Low-rank training of the language model through peft, and folding the result back into plain weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pumice.config import LoraConfig
from pumice.types import PumiceError

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TARGETS += ["qkv_proj", "out_proj", "proj_1", "proj_2", "gate_up_proj"]  # joined in OpenELM and Phi-3


def add_lora(lm: nn.Module, config: LoraConfig, seed: int) -> None:
    """Insert trainable low-rank matrices beside every linear layer of the decoder and freeze the rest of it.

    Raises:
        PumiceError: peft is not installed.
    """
    try:
        import peft
    except ImportError:
        raise PumiceError("low-rank training needs peft: pip install 'pumice[train]'") from None
    lm.requires_grad_(False)
    settings = peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=TARGETS, lora_dropout=0.0)
    peft.inject_adapter_in_model(settings, lm)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if ".lora_A." in name:  # peft draws from the global generator; ours is a function of the seed
                parameter.normal_(0.0, parameter.shape[1] ** -0.5, generator=generator)


def has_lora(lm: nn.Module) -> bool:
    """Whether low-rank matrices are in place."""
    return any(".lora_A." in name for name, _ in lm.named_parameters())


@torch.no_grad()
def set_lora_pairs(lm: nn.Module, pairs: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Put low-rank pairs, as `lora_pairs` gives them, into matrices of the same rank.

    Raises:
        PumiceError: another set of modules, or another rank.
    """
    layers: dict[str, Any] = {path: module for path, module in lm.named_modules() if hasattr(module, "lora_A")}
    if layers.keys() != pairs.keys():
        raise PumiceError(f"low-rank pairs of {len(pairs)} modules, expected those of {len(layers)}")
    for path, (a, b) in pairs.items():
        target_a, target_b = layers[path].lora_A["default"].weight, layers[path].lora_B["default"].weight
        if target_a.shape != a.shape or target_b.shape != b.shape:
            raise PumiceError(f"{path}: low-rank pairs of rank {a.shape[0]}, expected {target_a.shape[0]}")
        target_a.copy_(a)
        target_b.copy_(b.float() / layers[path].scaling["default"])


def lora_pairs(lm: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """{module path: (a (r, in), b (out, r))} with the scaling folded into b, so that the update is b @ a."""
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for path, module in lm.named_modules():
        layer: Any = module
        if hasattr(layer, "lora_A") and "default" in layer.lora_A:
            a, b = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
            pairs[path] = (a, b * layer.scaling["default"])
    return pairs
