"""config.json of a checkpoint in llava-hf's form to sizes.

{"model_type", "vision_config", "text_config", ...} ──defaults of its type──> Model
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pumice.formats.section import MEANS, MOST, Section, grids, language_model, max_tiles
from pumice.formats.sizes import Connector, Model, Tower
from pumice.types import MOST_LAYERS
from pumice.vision.frames import NEXT_VIDEO, ONEVISION_VIDEO, VideoPolicy
from pumice.vision.layout import NEXT_CLIP, ONEVISION, Policy

TOWER_KEYS = ("hidden_size", "intermediate_size", "num_hidden_layers", "image_size", "patch_size")
TOWER_DEFAULTS: dict[str, tuple[int, ...]] = {
    "clip_vision_model": (768, 3072, 12, 224, 32),
    "siglip_vision_model": (768, 3072, 12, 224, 16),
}
"""transformers' defaults of each type of tower, in the order of TOWER_KEYS."""
TOWER_MOST = {"num_hidden_layers": MOST_LAYERS, "image_size": 1 << 14, "patch_size": 1 << 14}
"""Bounds below that of other counts: the positions of a tower are a table of (tile / patch)^2 rows."""

CLIP_L = {
    "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "image_size": 336, "patch_size": 14,
}  # fmt: skip
SIGLIP_SO = {
    "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26,
    "image_size": 384, "patch_size": 14, "vision_use_head": False,
}  # fmt: skip
HF_TYPES: dict[str, tuple[dict[str, Any], str]] = {
    "llava": (CLIP_L, "llama"),
    "llava_next": (CLIP_L, "llama"),
    "llava_next_video": (CLIP_L, "llama"),
    "llava_onevision": (SIGLIP_SO, "qwen2"),
}
"""Types of llava-hf's form: what stands for a tower's config that the file leaves out, and the type of LM."""

STRATEGIES = {"clip_vision_model": "default", "siglip_vision_model": "full"}
"""`vision_feature_select_strategy` (default drops the first vector, full keeps all) with which the map is a square."""


def read_hf(name: str, section: Section, kind: str) -> Model:
    """The sizes of a checkpoint of one of HF_TYPES.

    Raises:
        PumiceError: a value that isn't possible or isn't supported; the message names its key.
    """
    section.choice("projector_hidden_act", ("gelu",), "gelu")
    default_tower, default_lm = HF_TYPES[kind]
    tower = _tower(section, section.inner("vision_config", default_tower), kind)
    text = section.inner("text_config", {})
    if "tie_word_embeddings" in section.values:  # of the whole model; the inner config's own goes before it
        text = Section(text.where, {"tie_word_embeddings": section.values["tie_word_embeddings"], **text.values})
    bias = section.values.get("multimodal_projector_bias", True) is True
    return Model(
        name, tower, Connector(bias=bias), language_model(text, default_lm), _policy(section, tower, kind),
        newline=kind != "llava", video=_video(section, tower, kind), pool_first=kind == "llava_next_video",
    )  # fmt: skip


def vision_sizes(vision: Section, default: str) -> tuple[str, tuple[int, int, int, int, int]]:
    """(type, sizes in the order of TOWER_KEYS) of a tower's config; ``default`` is the type where it says none."""
    kind = vision.choice("model_type", tuple(TOWER_DEFAULTS), default)
    return kind, tower_counts(vision, kind)


def tower_counts(vision: Section, kind: str) -> tuple[int, int, int, int, int]:
    """Sizes in the order of TOWER_KEYS of a tower's config, of a known type."""
    width, ffn, layers, tile, patch = (
        vision.count(key, default, TOWER_MOST.get(key, MOST))
        for key, default in zip(TOWER_KEYS, TOWER_DEFAULTS[kind], strict=True)
    )
    return width, ffn, layers, tile, patch


def _tower(section: Section, vision: Section, kind: str) -> Tower:
    tower_type, (width, ffn, layers, tile, patch) = vision_sizes(vision, HF_TYPES[kind][0]["model_type"])
    layer, strategy = (-1, "full") if kind == "llava_onevision" else (-2, "default")
    chosen = section.values.get("vision_feature_layer", layer)
    entries = chosen if isinstance(chosen, list) else [chosen]
    # Entry k of transformers' hidden states is what block k gives, entry 0 the embeddings.
    if not entries or any(type(k) is not int or not -layers <= k <= layers or k == 0 for k in entries):
        raise section.error(
            "vision_feature_layer", f"expected blocks of the tower's {layers}: 1 and up, or -1 and down"
        )
    if section.values.get("vision_feature_select_strategy", strategy) != STRATEGIES[tower_type]:
        raise section.error("vision_feature_select_strategy", f"expected {STRATEGIES[tower_type]} for {tower_type}")
    used = max(k if k > 0 else layers + 1 + k for k in entries)
    if tower_type == "clip_vision_model":
        return Tower("clip", width, layers, ffn, tile, patch, used, len(entries))
    head = vision.values.get("vision_use_head", True) is True
    return Tower("siglip", width, layers, ffn, tile, patch, used, len(entries), head)


def _policy(section: Section, tower: Tower, kind: str) -> Policy:
    if kind == "llava":
        return Policy("pad", tower.tile, tower.side, fill=MEANS[tower.kind])
    onevision = kind == "llava_onevision"
    pairs = section.values.get("image_grid_pinpoints")
    chosen = (ONEVISION if onevision else NEXT_CLIP).grids if pairs is None else grids(section, pairs, tower.tile)
    most = max_tiles(section, "vision_aspect_ratio", "anyres_max_9") if onevision else 0
    # transformers reads the pairs as (height, width), and rounds before it un-pads.
    return Policy(
        "anyres", tower.tile, tower.side, chosen, newline=True, unpad=True, max_tiles=most, rounding="round7",
        grid_order="hw",
    )  # fmt: skip


def _video(section: Section, tower: Tower, kind: str) -> VideoPolicy | None:
    if kind == "llava_onevision":
        return replace(ONEVISION_VIDEO, tile=tower.tile, side=tower.side)
    if kind != "llava_next_video":
        return None
    mode = section.choice("spatial_pool_mode", ("average", "max"), "average")
    stride = section.count("spatial_pool_stride", 2)
    return replace(NEXT_VIDEO, tile=tower.tile, side=tower.side, pool=mode, stride=stride)
