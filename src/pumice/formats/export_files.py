"""What lies beside the weights in a folder of llava-hf's form, for a checkpoint that came without it.

tokenizer ──<image>, <video>, <pad>──> tokenizer with ids for them ─┐
Template ──to_jinja──> chat_template.jinja                          ├──> the files that transformers' processors read
Description ──> preprocessor_config, processor_config, generation ──┘
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pumice.chat import own_start
from pumice.encode import tokenize
from pumice.formats.describe import Description
from pumice.formats.jinja import to_jinja
from pumice.formats.section import read_section
from pumice.templates import Template
from pumice.types import PumiceError

IMAGE, VIDEO, PAD = "<image>", "<video>", "<pad>"
CLASSES = {"llava": "Llava", "llava_next": "LlavaNext", "llava_onevision": "LlavaOnevision"}
"""Beginning of the names of transformers' classes, by ``model_type``."""


def add_tokens(tokenizer: Any, kind: str) -> dict[str, int]:
    """Give the tokenizer what a model of the type ``kind`` needs and it lacks, in place: {token: id} of what it needs.

    A tokenizer that has a padding token keeps it.

    Raises:
        PumiceError: a token that the tokenizer splits all the same.
    """
    from tokenizers import AddedToken

    wanted = [IMAGE, VIDEO] if kind == "llava_onevision" else [IMAGE]
    if tokenizer.pad_token is None:
        wanted.append(PAD)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in wanted], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = PAD
    _prefix_each_text(tokenizer)
    # As llava-hf's: answers of a batch begin at the same place. Only what a tokenizer was made with is saved.
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"
    for token in wanted:
        if len(tokenize(tokenizer, token, markup=True)) != 1:
            raise PumiceError(f"the tokenizer has no place for {token} as one token")
    return {token: tokenizer.convert_tokens_to_ids(token) for token in (*wanted, tokenizer.pad_token)}


def _prefix_each_text(tokenizer: Any) -> None:
    """Let a sentencepiece tokenizer put its "▁" before each text between special tokens, not before the first alone.

    Originals call the tokenizer for each text between pictures, so that the model learned a "▁" after every picture.
    transformers' processors call it once, with <image> in the text.
    """
    from tokenizers.pre_tokenizers import Metaspace

    cutter = tokenizer.backend_tokenizer.pre_tokenizer
    if isinstance(cutter, Metaspace) and cutter.prepend_scheme == "first":
        everywhere = Metaspace(replacement=cutter.replacement, prepend_scheme="always", split=cutter.split)
        tokenizer.backend_tokenizer.pre_tokenizer = everywhere


def chat_source(template: Template, tokenizer: Any) -> str:
    """The Jinja text of a template. What the tokenizer puts before a text by itself isn't in it: transformers'
    processors tokenise the rendered text with the tokenizer's special tokens.

    Raises:
        PumiceError: the tokenizer puts something there that the template doesn't begin with.
    """
    own = own_start(tokenizer)
    start = own if template.start is None else template.start
    if own not in ("", start):
        raise PumiceError(
            f"template {template.name!r} begins with {start!r}, but the tokenizer puts {own!r} before every text: "
            "choose the template of the language model's family"
        )
    return to_jinja(template, "" if own else start, IMAGE, VIDEO)


def write_files(
    source: Path, folder: Path, kind: str, description: Description, template: Template, tokenizer: Any
) -> None:
    """Write tokenizer, chat template, settings of transformers' processors and of generation into ``folder``."""
    tokenizer.chat_template = chat_source(template, tokenizer)
    tokenizer.save_pretrained(folder)
    if not (folder / "chat_template.jinja").is_file():
        (folder / "chat_template.jinja").write_text(tokenizer.chat_template, encoding="utf-8")
    write_json(folder / "preprocessor_config.json", image_settings(kind, description))
    write_json(folder / "processor_config.json", processor_settings(kind, description))
    write_json(folder / "generation_config.json", generation_settings(source, description, template, tokenizer))
    if kind == "llava_onevision":
        video = {
            **_pixels(description),
            **_squashed(description),
            "video_processor_type": "LlavaOnevisionVideoProcessor",
        }
        write_json(folder / "video_preprocessor_config.json", {**video, "processor_class": "LlavaOnevisionProcessor"})


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write an object as published files have it."""
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def image_settings(kind: str, description: Description) -> dict[str, Any]:
    """preprocessor_config.json: the image processor that makes the same views as the description's policy."""
    policy, tile = description.policy, description.policy.tile
    name = CLASSES[kind]
    fields = {**_pixels(description), "image_processor_type": f"{name}ImageProcessor"}
    fields |= {"processor_class": f"{name}Processor", "do_pad": policy.mode in ("pad", "anyres")}
    if kind == "llava_onevision" or policy.mode == "square":
        fields |= _squashed(description)
    else:
        # With do_pad the square comes first, so that nothing is left to crop.
        fields |= {
            "size": {"shortest_edge": tile},
            "do_center_crop": True,
            "crop_size": {"height": tile, "width": tile},
        }
    if policy.grids:
        fields["image_grid_pinpoints"] = pinpoints(description)
    return fields


def processor_settings(kind: str, description: Description) -> dict[str, Any]:
    """processor_config.json: what the processor counts the tokens of a picture by."""
    fields: dict[str, Any] = {"processor_class": f"{CLASSES[kind]}Processor", "image_token": IMAGE}
    fields["vision_feature_select_strategy"] = strategy(description)
    if kind == "llava_onevision":
        fields |= {"video_token": VIDEO, "num_image_tokens": description.policy.side**2}
        return fields | {"vision_aspect_ratio": f"anyres_max_{description.policy.max_tiles}"}
    clip = description.sizes.tower.kind == "clip"
    return fields | {"patch_size": description.sizes.tower.patch, "num_additional_image_tokens": int(clip)}


def generation_settings(source: Path, description: Description, template: Template, tokenizer: Any) -> dict[str, Any]:
    """generation_config.json: the checkpoint's own, and the template's stop token among those that end an answer."""
    path, lm = source / "generation_config.json", description.lm
    values = dict(read_section(path).values) if path.is_file() else {"bos_token_id": lm.bos_token_id}
    ends = values.get("eos_token_id", lm.eos_token_id)
    ends = ends if isinstance(ends, list) else [ends] if ends is not None else []
    stop = tokenize(tokenizer, template.stop, markup=True)[-1]
    ends = list(dict.fromkeys((*ends, stop)))
    return values | {"eos_token_id": ends if len(ends) > 1 else ends[0], "pad_token_id": tokenizer.pad_token_id}


def strategy(description: Description) -> str:
    """`vision_feature_select_strategy`: default drops the first vector, which CLIP has and SigLIP hasn't."""
    return "default" if description.sizes.tower.kind == "clip" else "full"


def pinpoints(description: Description) -> list[list[int]]:
    """`image_grid_pinpoints` in pixels for the form that reads the pairs in the other order than the description.

    Originals read (width, height), transformers (height, width), and llava-hf's files have the originals' numbers. So
    have these while every shape is there both ways round, as in all published lists: then only two equally good grids
    change places. In other lists the pairs are turned round, because no grid may appear that the model never saw.
    """
    grids, tile = description.policy.grids, description.policy.tile
    both_ways = {(b, a) for a, b in grids} == set(grids)
    return [[a * tile, b * tile] if both_ways else [b * tile, a * tile] for a, b in grids]


def _pixels(description: Description) -> dict[str, Any]:
    return {
        "do_convert_rgb": True, "do_resize": True, "resample": 3, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": list(description.mean), "image_std": list(description.std),
    }  # fmt: skip


def _squashed(description: Description) -> dict[str, Any]:
    tile = description.policy.tile
    return {"size": {"height": tile, "width": tile}, "do_center_crop": False}
