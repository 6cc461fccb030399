"""An original checkpoint in llava-hf's form, which transformers, vLLM and SGLang open.

    Description ──hf_type──> llava | llava_next | llava_onevision, or refused with the field that no class reproduces
    weights by own names ──settle, grow──> weights that the class has, each of its shape ──to_form──> safetensors

Nothing is written before all of it has been checked against transformers' own class, built without memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pumice.formats.describe import Description
from pumice.formats.export_files import (
    CLASSES,
    IMAGE,
    VIDEO,
    add_tokens,
    pinpoints,
    strategy,
    write_files,
    write_json,
)
from pumice.formats.keys import left_out, to_own
from pumice.formats.opening import open_tokenizer, original_template, some
from pumice.formats.section import Section
from pumice.model.backbones import quiet
from pumice.templates import get_template
from pumice.types import PumiceError

ROWS = 64
"""Tables of embeddings grow to a multiple of it, as llava-hf's do."""
EMBEDDINGS, HEAD = "lm.model.embed_tokens.weight", "lm.lm_head.weight"
BLOCKS, NORM = "tower.model.encoder.layers.", "tower.model.post_layernorm."

SWITCHES: dict[str, tuple[tuple[Any, ...], str]] = {
    "mm_resampler_type": ((), "null: transformers' classes have no resampler"),
    "add_faster_video": ((False,), "false: transformers pools all frames alike"),
}
"""Keys that no class of transformers reproduces unless absent, null or one of these values; and what is expected."""

ROPE = {"rope_theta", "rope_scaling", "rope_parameters"}
"""Older and newer keys of a language model's rotary positions; which of them a file has, it keeps."""


class Converted(NamedTuple):
    """config.json's content, weights by own names, and the tokenizer with its new tokens."""

    config: dict[str, Any]
    weights: dict[str, Tensor]
    tokenizer: Any


def hf_type(section: Section, description: Description) -> str:
    """The ``model_type`` that stands for an original: llava with one view, llava_next with tiles, llava_onevision with
    tiles whose map is scaled down.

    Raises:
        PumiceError: no class of transformers gives the checkpoint's numbers; the key that it lacks is named.
    """
    for key, (allowed, expected) in SWITCHES.items():
        if section.values.get(key) not in (None, *allowed):
            raise section.error(key, f"expected {expected}")
    if description.lm.model_type == "openelm":
        raise section.error("model_type", "transformers has no OpenELM, so llava-hf's form has no place for it")
    if description.sizes.connector.depth != 2:
        raise section.error("mm_projector_type", "expected mlp2x_gelu: transformers' projector has two linear layers")
    policy = description.policy
    if policy.mode != "anyres":
        if policy.newline:
            raise section.error("mm_patch_merge_type", "expected flat: transformers' llava ends no view with a newline")
        return _without_video(section, description, "llava")
    if not (policy.newline and policy.unpad):
        raise section.error("mm_patch_merge_type", "expected spatial_unpad: transformers un-pads every map of tiles")
    if not policy.max_tiles:
        return _without_video(section, description, "llava_next")
    if description.sizes.tower.kind != "siglip":
        why = "transformers scales maps down in llava_onevision alone, which counts no tokens for a tower with CLS"
        raise section.error("image_aspect_ratio", f"expected anyres with CLIP: {why}")
    video = description.sizes.video
    for key, found, expected in (
        ("mm_newline_position", video and video.newline, "one_token"),
        ("mm_spatial_pool_mode", video and video.pool, "bilinear"),
    ):
        if found not in (None, expected):
            raise section.error(key, f"expected {expected}: transformers' llava_onevision knows no other for videos")
    return "llava_onevision"


def convert(
    source: Path, section: Section, kind: str, description: Description, weights: Mapping[str, Tensor]
) -> Converted:
    """Config, weights and tokenizer of a checkpoint as the class ``kind`` has them.

    Raises:
        PumiceError: weights that the class lacks or that it alone has, or of another shape: all of them are listed.
    """
    tokenizer = open_tokenizer(source)
    ids = add_tokens(tokenizer, kind)
    settled = settle(weights, kind, description)
    if EMBEDDINGS not in settled:
        raise PumiceError(f"{source}: no embeddings of words (model.embed_tokens.weight) among the weights")
    settled |= grow(settled, max(ids.values()) + 1)
    config = hf_config(section, kind, description, settled, ids, tokenizer.pad_token_id)
    check(config, settled, source)
    return Converted(config, settled, tokenizer)


def write_beside(
    source: Path, folder: Path, kind: str, description: Description, made: Converted, name: str | None
) -> None:
    """Write everything but the weights into ``folder``. ``name`` is of the conversation template, by default that of
    the language model.

    Raises:
        PumiceError: a template that isn't known or doesn't fit the tokenizer.
    """
    template = get_template(name) if name else original_template(description, made.tokenizer)
    write_json(folder / "config.json", made.config)
    write_files(source, folder, kind, description, template, made.tokenizer)


def settle(weights: Mapping[str, Tensor], kind: str, description: Description) -> dict[str, Tensor]:
    """The weights without a newline that the layout never uses, with the tower's final norm.

    Features don't pass that norm. A checkpoint may lack it, transformers' class has one: then it is neutral.
    """
    settled = {name: value for name, value in weights.items() if kind != "llava" or name != "newline"}
    for end, fill in (("weight", torch.ones), ("bias", torch.zeros)):
        settled.setdefault(NORM + end, fill(description.sizes.tower.width, dtype=settled[_any_block(settled)].dtype))
    return settled


def grow(weights: Mapping[str, Tensor], ids: int) -> dict[str, Tensor]:
    """Input and output embeddings with a row for each of ``ids`` tokens, where they have fewer.

    The tables end at a multiple of ROWS. Each new row is the mean of the old ones: it is the same each time, and as an
    output it is never the likeliest token. Tied embeddings have one table, which stays one.
    """
    grown = {}
    for name in (EMBEDDINGS, HEAD):
        table = weights.get(name)
        if table is not None and len(table) < ids:
            missing = -(-ids // ROWS) * ROWS - len(table)
            total = sum(part.double().sum(dim=0) for part in table.split(4096))  # in parts, to save memory
            mean = (torch.as_tensor(total) / len(table)).to(table.dtype)
            grown[name] = torch.cat([table, mean.expand(missing, -1)])
    return grown


def hf_config(
    section: Section,
    kind: str,
    description: Description,
    weights: Mapping[str, Tensor],
    ids: Mapping[str, int],
    padding: int,
) -> dict[str, Any]:
    """config.json. Sizes are those of the weights: rows of embeddings, blocks of the tower."""
    policy, tied = description.policy, bool(description.lm.tie_word_embeddings)
    blocks = 1 + max(int(name.removeprefix(BLOCKS).split(".")[0]) for name in weights if name.startswith(BLOCKS))
    config: dict[str, Any] = {
        "architectures": [f"{CLASSES[kind]}ForConditionalGeneration"],
        "model_type": kind,
        "image_token_index": ids[IMAGE],
        "pad_token_id": padding,
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "vision_feature_layer": description.layers[-1] - blocks - 1,  # the last block is -1
        "vision_feature_select_strategy": strategy(description),
        "tie_word_embeddings": tied,
        "torch_dtype": str(weights[EMBEDDINGS].dtype).removeprefix("torch."),
        "text_config": _text_config(section, description, len(weights[EMBEDDINGS])),
        "vision_config": _vision_config(description, blocks, any(n.startswith("tower.model.head.") for n in weights)),
    }
    if kind == "llava_onevision":
        config |= {"video_token_index": ids[VIDEO], "vision_aspect_ratio": f"anyres_max_{policy.max_tiles}"}
    else:
        config["image_seq_length"] = policy.side**2
    if policy.grids:
        config["image_grid_pinpoints"] = pinpoints(description)
    return config


def check(config: Mapping[str, Any], weights: Mapping[str, Tensor], where: Path) -> None:
    """Compare the weights with those of transformers' class of a config.

    Raises:
        PumiceError: weights that are missing, unknown or of another shape, or a config that the class refuses.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText

    fields = {key: value for key, value in config.items() if key != "model_type"}
    try:
        with quiet(), torch.device("meta"):
            model: Any = AutoModelForImageTextToText.from_config(AutoConfig.for_model(config["model_type"], **fields))
    except (ValueError, TypeError, KeyError) as error:
        raise PumiceError(f"{where}: transformers refuses the config: {' '.join(str(error).split())[:300]}") from None
    named = {
        to_own(name, "hf-modules"): value.shape for name, value in model.state_dict().items() if not left_out(name)
    }
    if config["tie_word_embeddings"] and HEAD not in weights:
        del named[HEAD]
    wrong = {
        "missing": sorted(str(name) for name in named.keys() - weights.keys()),
        "unknown": sorted(weights.keys() - named.keys()),
        "of another shape": sorted(n for n in weights.keys() & named.keys() if weights[n].shape != named[n]),
    }
    if any(wrong.values()):
        listed = "; ".join(f"{what}: {some(names)}" for what, names in wrong.items() if names)
        raise PumiceError(f"{where}: not the weights that transformers' {config['model_type']} has; {listed}")


def _without_video(section: Section, description: Description, kind: str) -> str:
    if description.sizes.video is not None:
        key = "mm_spatial_pool_mode" if "mm_spatial_pool_mode" in section.values else "mm_newline_position"
        why = "takes no videos, and its llava_next_video pools before the projector, not after it"
        raise section.error(key, f"expected it to be absent: transformers' {kind} {why}")
    return kind


def _any_block(weights: Mapping[str, Tensor]) -> str:
    found = next((name for name in weights if name.startswith(BLOCKS)), None)
    if found is None:
        raise PumiceError("the tower has no blocks (encoder.layers) among the weights")
    return found


def _text_config(section: Section, description: Description, rows: int) -> dict[str, Any]:
    """The original's own keys of the language model, as its file has them."""
    from transformers import AutoModelForCausalLM, PreTrainedConfig

    lm = description.lm
    shared = {field.name for field in fields(PreTrainedConfig)}
    own = ({field.name for field in fields(type(lm))} - shared) | ROPE
    name: Any = AutoModelForCausalLM._model_mapping[type(lm)]
    return {
        "architectures": [name.__name__],  # by which vLLM chooses the language model's class
        "model_type": lm.model_type,
        **{key: value for key, value in section.values.items() if key in own},
        "vocab_size": rows,
        "tie_word_embeddings": bool(lm.tie_word_embeddings),
    }


def _vision_config(description: Description, blocks: int, head: bool) -> dict[str, Any]:
    """Every key of the tower's config, so that nobody's defaults matter."""
    from transformers import AutoConfig, PreTrainedConfig

    kind = description.tower["model_type"]
    config: Any = AutoConfig.for_model(kind, **{k: v for k, v in description.tower.items() if k != "model_type"})
    shared = {field.name for field in fields(PreTrainedConfig)}
    values = {field.name: getattr(config, field.name) for field in fields(config) if field.name not in shared}
    values |= {"num_hidden_layers": blocks}
    return {"model_type": kind, **values, **({"vision_use_head": head} if "vision_use_head" in values else {})}
