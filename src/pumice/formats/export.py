"""Writing a checkpoint in a published form, from the files of one in any form.

    folder ──describe, read_folder──> weights by own names ──to_form──> safetensors + config, tokenizer, processor
                                                   └─ original to hf: export_hf ─┘

It works on files, not on an opened model, which lacks what nothing needs (blocks after the last used, final norms): a
checkpoint that goes out and comes back is the same to the bit.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from pumice.formats.adapters import Whole, is_partial, merged
from pumice.formats.config_original import ORIGINAL_CLASSES
from pumice.formats.describe import Description, describe
from pumice.formats.export_files import pinpoints, write_json
from pumice.formats.export_hf import convert, hf_type, write_beside
from pumice.formats.folders import new_folder
from pumice.formats.keys import left_out, to_form
from pumice.formats.opening import own_names
from pumice.formats.published import HUB_TOWERS
from pumice.formats.section import Section, read_section
from pumice.formats.shards import read_folder
from pumice.model.backbones import BESIDE
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


def export(
    source: Path,
    out: Path,
    to: Target,
    tower: Path | None = None,
    template: str | None = None,
    base: Path | None = None,
) -> None:
    """Write the checkpoint in ``source`` to the new folder ``out`` in another form, or in its own again.

    ``tower`` is the folder of the tower where the checkpoint has none. ``template`` is a name of
    pumice.templates.TEMPLATES for an original that becomes llava-hf's, instead of that of its language model. A LoRA
    adapter or a connector alone is folded into its ``base`` (`adapters.merged`).

    From original to hf, <image> gets an id of its own, and embeddings grow where they have no row for it
    (`export_hf.grow`); the way back cuts no rows off, because the tokenizer has ids for them. Grid pairs keep their
    numbers, which transformers reads the other way round: of two equally good grids (LLaVA-NeXT, both sides of a
    picture no longer than a tile's) it takes the one on its side. It also rounds before it un-pads, and LLaVA-NeXT cuts
    each of several pictures into tiles.

    Raises:
        PumiceError: an unknown form, ``out`` isn't empty, a model that the form has no place for (the key of its config
            is named), or what `describe` and `read_folder` raise.
    """
    if to not in get_args(Target):
        raise PumiceError(f"unknown form {to!r}; known: {', '.join(get_args(Target))}")
    parts = merged(source, base) if is_partial(source) else Whole(source, source, {})
    section, description = read_section(parts.config / "config.json"), describe(parts.config)
    kind = hf_type(section, description) if (to, description.form) == ("hf", "original") else None
    if template and kind is None:
        raise PumiceError(f"{source}: keeps its own chat format in the {to} form; a template is for an original to hf")
    found = parts.weights or own_names(read_folder(source), source)
    weights = _with_tower(found, description, tower)
    depth = description.sizes.connector.depth
    if kind:
        made = convert(parts.tokens, section, kind, description, weights)
        with new_folder(out) as scratch:
            write_beside(parts.tokens, scratch, kind, description, made, template)
            _save({_name(name, to, depth): value for name, value in made.weights.items()}, scratch)
        return
    config = _config(section, description, to)
    with new_folder(out) as scratch:
        if to == "original" and description.form != "original":
            config["mm_vision_tower"] = _original_tower(scratch, out, description, weights)
        write_json(scratch / "config.json", config)
        _save({_name(name, to, depth): value for name, value in weights.items()}, scratch)
        for folder in (parts.config, parts.tokens):  # an adapter may bring a tokenizer, but no processor
            _carry(folder, scratch, to)


def _save(weights: Mapping[str, Tensor], folder: Path) -> None:
    from huggingface_hub import save_torch_state_dict

    save_torch_state_dict(dict(weights), folder, max_shard_size="5GB", metadata={"format": "pt"})


def _name(own: str, to: Target, depth: int) -> str:
    """A weight's name in a form. The originals number the layers of a connector that has several."""
    first = "connector.layers.0."
    if to == "original" and depth > 1 and own.startswith(first):
        return "model.mm_projector.0." + own.removeprefix(first)
    return to_form(own, to)


def _with_tower(weights: dict[str, Tensor], description: Description, folder: Path | None) -> dict[str, Tensor]:
    if any(name.startswith("tower.") for name in weights):
        return weights
    if folder is None:
        raise PumiceError("the checkpoint has no tower; pass its folder as tower=")
    found = {name.removeprefix("vision_model."): value for name, value in read_folder(folder).items()}
    kept = {name: value for name, value in found.items() if not left_out(name) and not name.startswith(BESIDE)}
    used, blocks = description.sizes.tower.used, "encoder.layers."
    if description.sizes.tower.kind == "siglip":  # the originals delete what follows the last block that they use
        kept = {n: v for n, v in kept.items() if not n.startswith(blocks) or int(n.split(".")[2]) < used}
    return weights | {f"tower.model.{name}": value for name, value in kept.items()}


def _config(section: Section, description: Description, to: Target) -> dict[str, Any]:
    values = dict(section.values)
    if to == description.form:
        return values
    kind = description.lm.model_type
    if kind not in LM_TYPES:
        raise PumiceError(f"the original form has no place for a language model of type {kind}")
    if description.sizes.tower.taken > 1 or description.sizes.tower.layers - description.layers[-1] not in (0, 1):
        raise PumiceError(f"the original form has no place for features of blocks {list(description.layers)}")
    fields = {key: value for key, value in values["text_config"].items() if key != "architectures"}
    # SGLang chooses its class by the name of the originals' class.
    names = [name for name, lm in ORIGINAL_CLASSES.items() if lm == kind]
    fields |= {"architectures": names} if names else {}
    # Some files say it outside of text_config alone.
    fields["tie_word_embeddings"] = bool(description.lm.tie_word_embeddings)
    return {**fields, "model_type": LM_TYPES[kind], **_original_layout(description)}


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
        fields["image_grid_pinpoints"] = pinpoints(description)
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
    write_json(scratch / TOWER / "config.json", fields)
    prefix = "tower.model."
    _save({n.removeprefix(prefix): v for n, v in weights.items() if n.startswith(prefix)}, scratch / TOWER)
    return str((out / TOWER).resolve())


def _carry(source: Path, scratch: Path, to: Target) -> None:
    """Copy tokenizer and generation settings, and what only llava-hf's form has."""
    for pattern in (*CARRIED, *(CARRIED_HF if to == "hf" else ())):
        for path in source.glob(pattern):
            shutil.copyfile(path, scratch / path.name)
