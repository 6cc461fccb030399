"""Tiny random backbones of transformers, one a tower type, and the features that a tower must give of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

TILE, PATCH, BLOCKS = 70, 14, 3
VISION = {
    "hidden_size": 32,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 2,
    "image_size": TILE,
    "patch_size": PATCH,
}


@dataclass(frozen=True)
class Case:
    """A tower's type, transformers' model of it, and what its features are: stated anew, not read from the tower."""

    model: str
    fields: dict[str, Any]
    prefix: int
    norm: str | None = None


WIDE = {**VISION, "intermediate_size": 48}
CASES = {
    "clip": Case("CLIPVisionModel", WIDE, 1),
    "siglip": Case("SiglipVisionModel", WIDE, 0),
    "dinov2": Case("Dinov2Model", {**VISION, "mlp_ratio": 2}, 1, "layernorm"),
    "dinov3": Case("DINOv3ViTModel", {**WIDE, "num_register_tokens": 4}, 5, "norm"),
}
every_tower = pytest.mark.parametrize("name", CASES)


def random_model(model_class: Any, config: Any) -> Any:
    """A model in eval mode whose every weight is random: no norm, bias or position is at its neutral start."""
    torch.manual_seed(0)
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def reference(name: str) -> Any:
    model_class = getattr(transformers, CASES[name].model)
    return random_model(model_class, model_class.config_class(**CASES[name].fields))


def noise(tile: int = TILE, count: int = 2) -> Tensor:
    return torch.randn(count, 3, tile, tile, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def expected(name: str, model: Any, tiles: Tensor, layers: tuple[int, ...], **inputs: Any) -> Tensor:
    """Patch features of transformers' hidden states, block k's being hidden_states[k]."""
    states = model(pixel_values=tiles, output_hidden_states=True, **inputs).hidden_states
    assert len(states) == BLOCKS + 1
    norm = getattr(model, CASES[name].norm or "", torch.nn.Identity())
    return torch.cat([norm(states[k])[:, CASES[name].prefix :] for k in layers], dim=-1)
