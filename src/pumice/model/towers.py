"""Vision towers: tiles to patch features.

    tiles (N, 3, S, S) ──embed, blocks──> (N, CLS, registers + patches, C) after each chosen block
                       ──final norm (DINO), patches alone──> (N, side^2, C) ──side by side──> (N, side^2, blocks * C)

A tower is a transformers backbone with a fixed tile size; the recipe names its type exactly. Pixel mean and std belong
to the tower, because its weights expect them. What the chosen blocks don't need isn't built: later blocks, pooling
heads, and a final norm that the features don't pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from pumice.model import backbones
from pumice.types import PumiceError


@dataclass(frozen=True)
class Pixels:
    """Normalisation that a tower was trained with: (pixel / 255 - mean) / std per channel."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


IMAGENET = Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI = Pixels((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = Pixels((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Tower(nn.Module):
    """A backbone at one tile size. Subclasses say in a few lines which one.

    Args:
        config: fields of the backbone's own (vision) config.
        tile: side S of the tiles in pixels. A last partial patch isn't seen (SigLIP: 384 = 27 * 14 + 6).
        layers: blocks whose features are put side by side, counted from 1; by default the last alone. LLaVA's
            ``hidden_states[-2]`` of CLIP's 24 blocks is (23,). An early block beside the last gives fine strokes a
            short way to the connector, and can be trained without the others.
        state: the backbone's weights by transformers' names, with or without a leading ``vision_model.``; taken over,
            not copied. Left out of it is what `from_folder` leaves out. Positions are interpolated once when the tile
            has another number of patches, else they stay as they are. Without ``state`` the weights are random.

    Raises:
        PumiceError: blocks that the config doesn't have; in ``state``, weights that are missing, of another shape, or
            not part of such a backbone.
    """

    types: ClassVar[tuple[str, ...]]
    """``model_type`` of the folders that hold such a tower."""
    architecture: ClassVar[str]
    """Name of transformers' class."""
    pixels: ClassVar[Pixels]
    blocks: ClassVar[str]
    """Where the backbone keeps its blocks."""
    norm: ClassVar[str]
    """Where it keeps its final norm."""
    normed: ClassVar[bool]
    """Whether the features pass the final norm: those of DINO do, LLaVA's of CLIP and SigLIP don't."""
    positions: ClassVar[str | None]
    """Name of the learned position table."""
    prefix: int
    """Tokens before the patches: CLS, registers."""
    settings: ClassVar[dict[str, Any]] = {}
    """Fields of the config that a tower sets itself."""

    def __init__(
        self,
        config: Mapping[str, Any],
        tile: int,
        layers: tuple[int, ...] = (),
        state: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        model_class = _transformers(self.architecture)
        self.config = backbones.settle(model_class, config, layers, {"image_size": tile, **self.settings})
        self.layers = layers or (self.config.num_hidden_layers,)
        self.tile, self.patch, self.hidden = tile, self.config.patch_size, self.config.hidden_size
        if tile < self.patch:
            raise PumiceError(f"tower: tiles of {tile} pixels, expected at least one patch of {self.patch}")
        self.model: Any = model_class(self.config) if state is None else self._load(self.config, self._fitted(state))
        if not self.normed:
            setattr(self.model, self.norm, nn.Identity())
        self.train()  # as any new module is; transformers leaves loaded ones in eval mode
        self._prepare()

    @property
    def width(self) -> int:
        """Channels of the features: those of every chosen block. ``hidden`` is a block's C."""
        return self.hidden * len(self.layers)

    @property
    def side(self) -> int:
        """Patches per side of a tile."""
        return self.tile // self.patch

    @property
    def stack(self) -> Any:
        """The backbone's blocks."""
        return self.model.get_submodule(self.blocks)

    def forward(self, tiles: Tensor) -> Tensor:
        """(N, 3, S, S) in the weights' dtype to (N, side^2, width).

        Raises:
            PumiceError: tiles of another size.
        """
        return self._features(tiles, self.layers)

    def first(self, tiles: Tensor) -> Tensor:
        """Features (N, side^2, hidden) of the first of the chosen blocks; those after it don't run."""
        return self._features(tiles, self.layers[:1])

    def _features(self, tiles: Tensor, layers: tuple[int, ...]) -> Tensor:
        if tiles.shape[1:] != (3, self.tile, self.tile):
            expected = f"(N, 3, {self.tile}, {self.tile})"
            raise PumiceError(f"tower: tiles of shape {tuple(tiles.shape)}, expected {expected}")
        if not len(tiles):  # a batch of text alone; transformers' attention fails on it
            return tiles.new_zeros(0, self.side**2, self.hidden * len(layers))
        hidden, inputs, found = self._embed(tiles), self._block_inputs(), []
        norm = self.model.get_submodule(self.norm)
        for number, block in enumerate(self.stack[: layers[-1]], 1):
            hidden = block(hidden, attention_mask=None, **inputs)
            if number in layers:
                found.append(norm(hidden)[:, self.prefix :])
        return torch.cat(found, dim=-1)

    def _prepare(self) -> None:
        """What a tower makes once, from its config."""

    def _embed(self, tiles: Tensor) -> Tensor:
        """What goes into the first block, (N, prefix + side^2, C)."""
        return self.model.embeddings(tiles)

    def _block_inputs(self) -> dict[str, Any]:
        """What every block gets beside the tokens."""
        return {}

    @classmethod
    def from_folder(cls, folder: Path, tile: int, layers: tuple[int, ...] = ()) -> Self:
        """The pretrained tower of a folder in transformers' format, in fp32; positions fitted to ``tile`` pixels.

        The folder may hold the whole of CLIP or SigLIP. Left out are the text side, pooling and classification heads,
        blocks after the last of ``layers``, and a final norm that the features don't pass; any other weight that the
        backbone doesn't have is an error, and so is one that it lacks.

        Raises:
            PumiceError: no such folder, a model of another type, or weights that don't fit its config.
        """
        found = backbones.model_type(folder)
        if found not in cls.types:
            right = next((name for name, tower in TOWERS.items() if found in tower.types), None)
            advice = f'set the tower\'s type to "{right}"' if right else f"known towers: {', '.join(TOWERS)}"
            raise PumiceError(f"{folder}: a model of type {found!r}, expected {' or '.join(cls.types)}; {advice}")
        model_class = _transformers(cls.architecture)
        with backbones.quiet():  # it would warn that a whole CLIP isn't its vision model
            fields = model_class.config_class.from_pretrained(folder).to_dict()
        source = cls._load(backbones.settle(model_class, fields, layers, cls.settings), folder)
        return cls(fields, tile, layers, source.state_dict())

    @classmethod
    def _load(cls, config: Any, source: Path | Mapping[str, Tensor]) -> Any:
        unused = () if cls.normed else (cls.norm,)
        return backbones.load(_transformers(cls.architecture), config, cls.blocks, unused, source)

    def _fitted(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights without a leading ``vision_model.``, with the position table that the tile needs."""
        fitted = {name.removeprefix("vision_model."): value for name, value in state.items()}
        if self.positions in fitted:
            fitted[self.positions] = backbones.resize_positions(fitted[self.positions], self.prefix, self.side)
        return fitted


class ClipTower(Tower):
    """CLIP (Radford et al. 2021): the tower of LLaVA-1.5 and LLaVA-NeXT (ViT-L/14 at 336 px, block 23 of 24) and of
    ELVA (ViT-B/32 at 224 px, block 11 of 12)."""

    types = ("clip_vision_model", "clip")
    architecture = "CLIPVisionModel"
    pixels = OPENAI
    blocks, norm, normed = "encoder.layers", "post_layernorm", False
    positions, prefix = "embeddings.position_embedding.weight", 1

    def _embed(self, tiles: Tensor) -> Tensor:
        return self.model.pre_layrnorm(self.model.embeddings(tiles))


class SiglipTower(Tower):
    """SigLIP (Zhai et al. 2023), and SigLIP 2 at a fixed resolution, whose config type is the same: the tower of
    LLaVA-OneVision (SO400M/14 at 384 px, block 26 of 27)."""

    types = ("siglip_vision_model", "siglip")
    architecture = "SiglipVisionModel"
    pixels = HALF
    blocks, norm, normed = "encoder.layers", "post_layernorm", False
    positions, prefix = "embeddings.position_embedding.weight", 0
    settings: ClassVar = {"vision_use_head": False}


class Dinov2Tower(Tower):
    """DINOv2 (Oquab et al. 2023): patch features after the final norm, whichever the block."""

    types = ("dinov2",)
    architecture = "Dinov2Model"
    pixels = IMAGENET
    blocks, norm, normed = "encoder.layer", "layernorm", True
    positions, prefix = "embeddings.position_embeddings", 1


class Dinov3Tower(Tower):
    """DINOv3 ViT (Siméoni et al. 2025) after the final norm, without CLS and registers. Positions are rotary.

    The pixel statistics are those of the weights trained on web pictures; the satellite ones have others.
    """

    types = ("dinov3_vit",)
    architecture = "DINOv3ViTModel"
    pixels = IMAGENET
    blocks, norm, normed = "model.layer", "norm", True
    positions = None
    # Pretraining shifts and scales the coordinates at random; here training and use see the same positions.
    settings: ClassVar = {"pos_embed_shift": None, "pos_embed_jitter": None, "pos_embed_rescale": None}

    def _prepare(self) -> None:
        self.prefix = 1 + self.config.num_register_tokens
        # Made once, in fp32: a tower cast to bf16 would round the frequencies before the angles are taken.
        cos, sin = self.model.rope_embeddings(torch.zeros(1, 3, self.tile, self.tile))
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def _block_inputs(self) -> dict[str, Any]:
        return {"position_embeddings": (self.cos, self.sin)}


TOWERS: dict[str, type[Tower]] = {
    "dinov2": Dinov2Tower,
    "dinov3": Dinov3Tower,
    "clip": ClipTower,
    "siglip": SiglipTower,
}


def tower_class(name: str) -> type[Tower]:
    """The tower of an exact type name.

    Raises:
        PumiceError: no such tower.
    """
    if name not in TOWERS:
        raise PumiceError(f"unknown tower type {name!r}; known: {', '.join(TOWERS)}")
    return TOWERS[name]


def _transformers(name: str) -> Any:
    import transformers  # takes a second, which commands without a model don't spend

    return getattr(transformers, name)
