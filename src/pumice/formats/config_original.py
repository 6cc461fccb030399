"""config.json of a checkpoint in the form of the original LLaVA repositories to sizes.

    {"mm_vision_tower", "mm_projector_type", "image_aspect_ratio", ...} ──> Model

Beside the keys of the language model such a file names the tower on the hub, and says how pictures are cut.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

from pumice.formats.config_hf import vision_sizes
from pumice.formats.published import HUB_TOWERS
from pumice.formats.section import MEANS, Section, grids, language_model, max_tiles, read_section
from pumice.formats.sizes import Connector, Model, Tower
from pumice.vision.frames import CHOICES, VideoPolicy
from pumice.vision.layout import ELVA, Policy

ORIGINAL_TYPES = {
    "llava_llama": "llama",
    "llava_mistral": "mistral",
    "llava_qwen": "qwen2",
    "llava_phi3": "phi3",
    "llava_openelm": "openelm",
}
"""`model_type`: type of language model."""

WHOLE = ("clip", "siglip")
"""`model_type` of folders that hold a text encoder beside the tower."""

ORIGINAL_CLASSES = {
    "LlavaLlamaForCausalLM": "llama",
    "LlavaMistralForCausalLM": "mistral",
    "LlavaQwenForCausalLM": "qwen2",
}
"""`architectures`, asked where `model_type` is a bare "llava", as in the published OneVision files."""


FIXED = {"mm_vision_select_layer": -2, "mm_vision_select_feature": "patch", "mm_use_im_start_end": False}
"""Keys with which another value gives other tokens, which aren't written here."""


def read_original(name: str, section: Section) -> Model:
    """The sizes of a checkpoint whose file has `mm_vision_tower`.

    Raises:
        PumiceError: a value that isn't possible or isn't supported; the message names its key.
    """
    for key, only in FIXED.items():
        if section.values.get(key) not in (None, only):
            raise section.error(key, f"expected {json.dumps(only)}, as all released models have")
    local = local_tower(section)
    tower = _local_sizes(local) if local else HUB_TOWERS[section.choice("mm_vision_tower", tuple(HUB_TOWERS))]
    policy = _policy(section, tower)
    return Model(
        name, tower, Connector(_depth(section)), language_model(section, _lm_type(section), own_type=False), policy,
        newline=policy.newline, video=_video(section, tower),
    )  # fmt: skip


def local_tower(section: Section) -> Section | None:
    """The vision config of a tower that `mm_vision_tower` names by its folder; None where it is a name of the hub.

    Raises:
        PumiceError: the folder's config can't be read.
    """
    path = Path(str(section.values["mm_vision_tower"])).expanduser() / "config.json"
    if not path.is_file():
        return None
    found = read_section(path)
    # Folders of whole CLIP and SigLIP models hold the tower's config inside.
    return found.inner("vision_config", {}) if found.values.get("model_type") in WHOLE else found


def _local_sizes(vision: Section) -> Tower:
    """LLaVA sees the block before the last of CLIP, and deletes the last of SigLIP: the same block."""
    kind, (width, ffn, layers, tile, patch) = vision_sizes(vision, "clip_vision_model")
    if kind == "clip_vision_model":
        return Tower("clip", width, layers, ffn, tile, patch, layers - 1)
    return Tower("siglip", width, layers, ffn, tile, patch, layers - 1, head=True)


def _lm_type(section: Section) -> str:
    kind = section.choice("model_type", (*ORIGINAL_TYPES, "llava"))
    if kind in ORIGINAL_TYPES:
        return ORIGINAL_TYPES[kind]
    classes = section.values.get("architectures")
    if not isinstance(classes, list) or len(classes) != 1 or classes[0] not in ORIGINAL_CLASSES:
        raise section.error("architectures", f"expected one of {', '.join(ORIGINAL_CLASSES)} beside model_type llava")
    return ORIGINAL_CLASSES[classes[0]]


def _depth(section: Section) -> int:
    """Linear layers of the connector."""
    kind = section.values.get("mm_projector_type", "linear")
    if kind == "linear":
        return 1
    found = re.fullmatch(r"mlp([1-9])x_gelu", kind) if isinstance(kind, str) else None
    if not found:
        raise section.error("mm_projector_type", "expected linear, or mlp2x_gelu with any number of layers")
    return int(found[1])


def _policy(section: Section, tower: Tower) -> Policy:
    merge = section.choice("mm_patch_merge_type", ("flat", "spatial", "spatial_unpad"), "flat")
    unpad = merge == "spatial_unpad"
    aspect = section.values.get("image_aspect_ratio", "square")
    if aspect == "pad":
        return Policy("pad", tower.tile, tower.side, newline=unpad, fill=MEANS[tower.kind])
    if aspect == "square":  # CLIP's own processor crops, SigLIP's squashes
        return Policy("crop" if tower.kind == "clip" else "square", tower.tile, tower.side, newline=unpad)
    most = max_tiles(section, "image_aspect_ratio")
    if merge == "flat":
        raise section.error(
            "mm_patch_merge_type", f"expected spatial or spatial_unpad beside {aspect}: tiles make a map"
        )
    chosen = grids(section, section.values.get("image_grid_pinpoints"), tower.tile)
    # ELVA's one change to the original's tiles is the colour of the canvas; its files show it by their grids alone.
    fill = ELVA.fill if chosen == ELVA.grids and not unpad else (0, 0, 0)
    # Only un-padded maps are scaled down, whatever the name says.
    most = most if unpad else 0
    return Policy("anyres", tower.tile, tower.side, chosen, newline=unpad, unpad=unpad, max_tiles=most, fill=fill)


def _video(section: Section, tower: Tower) -> VideoPolicy | None:
    """Only a file that says how frames are pooled or separated is of a model for videos."""
    if not {"mm_newline_position", "mm_spatial_pool_mode"} & section.values.keys():
        return None
    mode = section.choice("mm_spatial_pool_mode", CHOICES["pool"], "bilinear")
    newline = section.choice("mm_newline_position", CHOICES["newline"], "one_token")
    # The original code pools by 2, whatever `mm_spatial_pool_stride` says.
    policy = VideoPolicy.from_dict({"tile": tower.tile, "side": tower.side, "pool": mode, "newline": newline})
    forced, told = (section.values.get(key) is True for key in ("force_sample", "add_time_instruction"))
    return replace(policy, force_sample=forced, time_instruction=told)  # LLaVA-Video's
