"""A tower's own config to its sizes, for towers that are built for one assistant.

    {"model_type": "dinov2", "hidden_size": 384, ...} ──tower_sizes──> Tower ──at_blocks──> the Tower as it is built

Such a tower has only the blocks in use and no pooling head; CLIP's and SigLIP's features don't pass the final norm,
which isn't built either.
"""

from __future__ import annotations

from dataclasses import replace

from pumice.formats.config_hf import TOWER_DEFAULTS, tower_counts
from pumice.formats.section import Section
from pumice.formats.sizes import Tower, TowerKind


def tower_sizes(kind: TowerKind, section: Section) -> Tower:
    """The whole tower of a config; ``tile`` is that of CLIP's or SigLIP's config, of DINO's one patch.

    Raises:
        PumiceError: a config of another type, or a value that isn't possible or isn't counted; its key is named.
    """
    read = {"clip": _llava_tower, "siglip": _llava_tower, "dinov2": _dinov2, "dinov3": _dinov3}[kind]
    return read(section)


def at_blocks(tower: Tower, tile: int, blocks: tuple[int, ...]) -> Tower:
    """The tower with tiles of ``tile`` pixels that ends with the last of ``blocks``, counted from 1."""
    return replace(tower, tile=tile, layers=blocks[-1], used=blocks[-1], taken=len(blocks))


def _llava_tower(section: Section) -> Tower:
    """CLIP or SigLIP, as a config of the vision model or of the whole."""
    kind = section.choice("model_type", ("clip", "siglip", *TOWER_DEFAULTS))
    named = kind if kind in TOWER_DEFAULTS else f"{kind}_vision_model"
    inner = section.inner("vision_config", section.values)
    width, ffn, layers, tile, patch = tower_counts(inner, named)
    short = "clip" if named == "clip_vision_model" else "siglip"
    return Tower(short, width, layers, ffn, tile, patch, layers, final_norm=False)


def _dinov2(section: Section) -> Tower:
    section.choice("model_type", ("dinov2",))
    section.only("use_swiglu_ffn", False)
    width, layers = section.count("hidden_size", 768), section.count("num_hidden_layers", 12)
    ffn, patch = width * section.count("mlp_ratio", 4), section.count("patch_size", 14)
    return Tower("dinov2", width, layers, ffn, patch, patch, layers)


def _dinov3(section: Section) -> Tower:
    section.choice("model_type", ("dinov3_vit",))
    section.only("use_gated_mlp", False)
    section.only("key_bias", False)
    width, layers = section.count("hidden_size", 384), section.count("num_hidden_layers", 12)
    ffn, patch = section.count("intermediate_size", 1536), section.count("patch_size", 16)
    registers = section.count("num_register_tokens") if section.values.get("num_register_tokens") else 0
    return Tower("dinov3", width, layers, ffn, patch, patch, layers, registers=registers)
