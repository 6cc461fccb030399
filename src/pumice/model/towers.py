"""Vision towers: tiles to patch features.

    tiles (N, 3, S, S) ──blocks──> (N, 1 + patches, C) a chosen block ──norm, drop CLS──> (N, patches, blocks * C)

A tower is a transformers backbone with a fixed tile size; the recipe names its type exactly. Pixel mean and std belong
to the tower, because its weights expect them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pumice.types import PumiceError


@dataclass(frozen=True)
class Pixels:
    """Normalisation that a tower was trained with: (pixel / 255 - mean) / std per channel."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


IMAGENET = Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Dinov2Tower(nn.Module):
    """DINOv2 at one tile size: patch features after the final norm (Oquab et al. 2023).

    ``layers`` are the blocks whose features are put side by side, counted from 1; the default is the last alone. An
    early block beside the last gives fine strokes a short way to the connector, and can be trained without the others.
    ``hidden`` is a block's C, ``width`` the channels of the output.
    """

    pixels = IMAGENET

    def __init__(self, config: dict[str, Any], tile: int, layers: tuple[int, ...] = ()) -> None:
        super().__init__()
        from transformers import Dinov2Config, Dinov2Model

        # The table of positions is made for the tile once, not interpolated at every call.
        self.config = Dinov2Config(**{**config, "image_size": tile})
        self.config._attn_implementation = "sdpa"
        self.model = Dinov2Model(self.config)
        self.tile, self.patch, self.hidden = tile, config.get("patch_size", 14), self.config.hidden_size
        self.layers = layers or (self.config.num_hidden_layers,)
        if sorted(set(self.layers)) != list(self.layers) or self.layers[-1] > self.config.num_hidden_layers:
            raise PumiceError(
                f"tower layers {list(self.layers)}: expected rising numbers up to {self.config.num_hidden_layers}"
            )

    @property
    def width(self) -> int:
        """Channels of the features: those of every chosen block."""
        return self.hidden * len(self.layers)

    @property
    def side(self) -> int:
        """Patches per side of a tile."""
        return self.tile // self.patch

    def forward(self, tiles: Tensor) -> Tensor:
        """(N, 3, S, S) to (N, side^2, width)."""
        return self._features(tiles, self.layers)

    def first(self, tiles: Tensor) -> Tensor:
        """Features (N, side^2, hidden) of the first of the chosen blocks; those after it don't run."""
        return self._features(tiles, self.layers[:1])

    def _features(self, tiles: Tensor, layers: tuple[int, ...]) -> Tensor:
        hidden = self.model.embeddings(tiles)
        found = []
        for number, block in enumerate(self.model.encoder.layer[: layers[-1]], 1):
            hidden = block(hidden)
            if number in layers:
                found.append(self.model.layernorm(hidden)[:, 1:])
        return torch.cat(found, dim=-1)

    @classmethod
    def from_folder(cls, folder: Path, tile: int, layers: tuple[int, ...] = ()) -> Dinov2Tower:
        """The pretrained tower with its positions interpolated (bicubic, as DINOv2 does) to ``tile`` pixels."""
        from transformers import Dinov2Model

        source = Dinov2Model.from_pretrained(folder)
        tower = cls(source.config.to_diff_dict(), tile, layers)
        state = source.state_dict()
        with torch.no_grad():
            sized = torch.zeros(1, 1 + tower.side**2, tower.hidden)
            state["embeddings.position_embeddings"] = source.embeddings.interpolate_pos_encoding(sized, tile, tile)
        tower.model.load_state_dict(state)
        return tower


TOWERS: dict[str, type[Dinov2Tower]] = {"dinov2": Dinov2Tower}


def tower_class(name: str) -> type[Dinov2Tower]:
    """The tower of an exact type name.

    Raises:
        PumiceError: no such tower.
    """
    if name not in TOWERS:
        raise PumiceError(f"unknown tower type {name!r}; known: {', '.join(TOWERS)}")
    return TOWERS[name]
