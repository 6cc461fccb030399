"""Writing a checkpoint in a published form, from the files of one in any form.

    folder ──describe, read_folder──> weights by own names ──to_form──> safetensors + config, tokenizer, processor

It works on files, not on an opened model, which lacks what nothing needs (blocks after the last used, final norms): a
checkpoint that goes out and comes back is the same to the bit.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from pumice.formats.describe import Description, describe
from pumice.formats.keys import to_form
from pumice.formats.opening import own_names
from pumice.formats.published import HUB_TOWERS
from pumice.formats.section import read_section
from pumice.formats.shards import read_folder
from pumice.types import PumiceError

Target = Literal["hf", "original"]
CARRIED = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "generation_config.json",
)
"""Files that every form shares."""
CARRIED_HF = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "chat_template.*")
TOWER = "vision_tower"
"""Folder in which an original's tower lies where no published one has its sizes."""
LM_TYPES = {"llama": "llava_llama", "mistral": "llava_mistral", "qwen2": "llava_qwen", "phi3": "llava_phi3"}


def export(source: Path, out: Path, to: Target, tower: Path | None = None) -> None:
    """Write the checkpoint in ``source`` to the new folder ``out`` in another form, or in its own again.

    ``tower`` is the folder of the tower where the checkpoint has none.

    Raises:
        PumiceError: an unknown form, ``out`` isn't empty, a model that the form has no place for, or what `describe`
            and `read_folder` raise.
    """
    if to not in get_args(Target):
        raise PumiceError(f"unknown form {to!r}; known: {', '.join(get_args(Target))}")
    if out.exists() and any(out.iterdir()):
        raise PumiceError(f"{out}: not empty; nothing is written over")
    description = describe(source)
    weights = _with_tower(own_names(read_folder(source), source), description, tower)
    config = _config(source, description, to)
    scratch = out.with_name(f".tmp-{out.name}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        if to == "original" and description.form != "original":
            config["mm_vision_tower"] = _original_tower(scratch, out, description, weights)
        (scratch / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        _save({to_form(name, to): value for name, value in weights.items()}, scratch)
        _carry(source, scratch, to)
        if out.exists():
            out.rmdir()
        scratch.rename(out)
    except OSError as error:
        raise PumiceError(f"{out}: not written ({error})") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _save(weights: Mapping[str, Tensor], folder: Path) -> None:
    from huggingface_hub import save_torch_state_dict

    save_torch_state_dict(dict(weights), folder, max_shard_size="5GB", metadata={"format": "pt"})


def _with_tower(weights: dict[str, Tensor], description: Description, folder: Path | None) -> dict[str, Tensor]:
    if any(name.startswith("tower.") for name in weights):
        return weights
    if folder is None:
        raise PumiceError("the checkpoint has no tower; pass its folder as tower=")
    found = {name.removeprefix("vision_model."): value for name, value in read_folder(folder).items()}
    return weights | {f"tower.model.{name}": value for name, value in found.items()}


def _config(source: Path, description: Description, to: Target) -> dict[str, Any]:
    values = dict(read_section(source / "config.json").values)
    if to == description.form:
        return values
    if to == "hf":
        raise PumiceError(
            "an original checkpoint can't be written as llava-hf's yet: that form needs token ids of its own for "
            "<image> and grown embeddings"
        )
    kind = description.lm.model_type
    if kind not in LM_TYPES:
        raise PumiceError(f"the original form has no place for a language model of type {kind}")
    if description.sizes.tower.taken > 1 or description.sizes.tower.layers - description.layers[-1] not in (0, 1):
        raise PumiceError(f"the original form has no place for features of blocks {list(description.layers)}")
    return {**values["text_config"], "model_type": LM_TYPES[kind], **_original_layout(description)}


def _original_layout(description: Description) -> dict[str, Any]:
    """How an original's config says what a Policy says."""
    policy = description.policy
    aspect = {"pad": "pad", "crop": "square", "square": "square", "anyres": "anyres"}[policy.mode]
    fields: dict[str, Any] = {
        "image_aspect_ratio": f"anyres_max_{policy.max_tiles}" if policy.max_tiles else aspect,
        "mm_patch_merge_type": "spatial_unpad" if policy.unpad else "flat",
        "mm_projector_type": f"mlp{description.sizes.connector.depth}x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_hidden_size": description.sizes.tower.width,
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
    }
    if policy.grids:
        # The same pairs that transformers reads as (height, width) are (width, height) there.
        fields["image_grid_pinpoints"] = [[a * policy.tile, b * policy.tile] for a, b in policy.grids]
    video = description.sizes.video
    if video is not None and not description.sizes.pool_first:
        fields |= {"mm_newline_position": video.newline, "mm_spatial_pool_mode": video.pool}
    return fields


def _original_tower(scratch: Path, out: Path, description: Description, weights: Mapping[str, Tensor]) -> str:
    """What `mm_vision_tower` says: a tower of the hub, or a folder beside the weights that is written here."""
    sizes = description.sizes.tower
    # llava-hf's SigLIP is stored without its last block, which the originals delete after loading.
    deleted = sizes.kind == "siglip" and description.layers[-1] == sizes.layers
    for name, known in HUB_TOWERS.items():
        same = (known.kind, known.width, known.ffn, known.tile, known.patch, known.layers - deleted)
        if same == (sizes.kind, sizes.width, sizes.ffn, sizes.tile, sizes.patch, sizes.layers):
            return name
    (scratch / TOWER).mkdir()
    fields = {**description.tower, "num_hidden_layers": sizes.layers + deleted}
    (scratch / TOWER / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    prefix = "tower.model."
    _save({n.removeprefix(prefix): v for n, v in weights.items() if n.startswith(prefix)}, scratch / TOWER)
    return str((out / TOWER).resolve())


def _carry(source: Path, scratch: Path, to: Target) -> None:
    """Copy tokenizer and generation settings, and what only llava-hf's form has."""
    for pattern in (*CARRIED, *(CARRIED_HF if to == "hf" else ())):
        for path in source.glob(pattern):
            shutil.copyfile(path, scratch / path.name)
