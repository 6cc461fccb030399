"""Models that are compared: sizes are real, weights are random, nothing is fetched.

Shape ──write──> folder in llava-hf's form ──open_theirs──> transformers' class
                                           ──open_ours────> Pumice's Learner and sizes
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.train.samples import MOST_TOKENS
from pumice.formats.describe import Description, describe
from pumice.formats.opening import build, own_names
from pumice.formats.shards import read_folder
from pumice.train.dense import DenseHead
from pumice.train.objectives import Learner

LOUDER = 2.0
"""Factor on all matrices: freshly made models are nearly uniform, and would hide a wrong mask or order in the loss."""


@dataclass(frozen=True)
class Shape:
    """``kind`` is the prefix of transformers' class; the tables are fields of its configs.

    Samples are cut at ``most_tokens``, which a picture of the most tiles must leave room under.
    """

    kind: str
    tower: Mapping[str, Any]
    lm: Mapping[str, Any]
    rest: Mapping[str, Any] = field(default_factory=dict)
    most_tokens: int = MOST_TOKENS

    @property
    def image_token(self) -> int:
        """The last id of the vocabulary stands for a visual token in transformers' input; no text has it."""
        return self.lm["vocab_size"] - 1


def grids(tile: int, sizes: tuple[tuple[int, int], ...]) -> list[list[int]]:
    """(rows, cols) to the pixels that transformers' configs have."""
    return [[tile * rows, tile * cols] for rows, cols in sizes]


SIGLIP_B = {
    "model_type": "siglip_vision_model", "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "image_size": 224, "patch_size": 16, "vision_use_head": False,
}  # fmt: skip
CLIP_B = {
    "model_type": "clip_vision_model", "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "image_size": 224, "patch_size": 32,
}  # fmt: skip
SIGLIP_SO = {
    "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26,
    "num_attention_heads": 16, "image_size": 384, "patch_size": 14, "vision_use_head": False,
}  # fmt: skip
SMOLLM2 = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192,
    "rope_theta": 100000.0, "tie_word_embeddings": True,
}  # fmt: skip
LLAMA_160M = {
    "model_type": "llama", "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "vocab_size": 32000, "max_position_embeddings": 2048, "tie_word_embeddings": False,
}  # fmt: skip
QWEN2_05B = {
    "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
    "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 32768,
    "rope_theta": 1000000.0, "tie_word_embeddings": True,
}  # fmt: skip
TINY = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
TINY_LM = {
    **TINY, "model_type": "llama", "num_hidden_layers": 2, "num_key_value_heads": 2, "vocab_size": 320,
    "max_position_embeddings": 4096, "initializer_range": 0.1, "tie_word_embeddings": True,
}  # fmt: skip
SECOND_LAST = {"vision_feature_layer": -2, "vision_feature_select_strategy": "default"}
LAST = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}
FOUR = ((1, 1), (1, 2), (2, 1), (2, 2))

SHAPES = {
    # One view a picture, 196 tokens: nanoVLM-222M's tower and language model, without its joining of tokens.
    "160m": Shape("Llava", SIGLIP_B, SMOLLM2, LAST),
    # ELVA's tower, block and language model; its tiles up to 2 x 2 instead of 12, with the newlines of transformers.
    "elva-160m": Shape(
        "LlavaOnevision", CLIP_B, LLAMA_160M, {**SECOND_LAST, "image_grid_pinpoints": grids(224, FOUR)}
    ),
    # LLaVA-OneVision-0.5B as published: of the tower's 27 blocks the last is left out, so that -1 is the second-last's.
    # 729 tokens a tile; tiles up to 2 x 2 instead of 6 x 6, so that a picture has at most 3,699 tokens. For a GPU.
    "onevision-0.5b": Shape(
        "LlavaOnevision", SIGLIP_SO, QWEN2_05B, {**LAST, "image_grid_pinpoints": grids(384, FOUR)}, most_tokens=4096
    ),
    "tiny": Shape(
        "LlavaOnevision",
        {**TINY, "model_type": "siglip_vision_model", "num_hidden_layers": 2, "image_size": 28, "patch_size": 14,
         "vision_use_head": False},
        TINY_LM,
        {**LAST, "image_grid_pinpoints": grids(28, FOUR)},
    ),
    "tiny-qwen2": Shape(
        "LlavaOnevision",
        {**SIGLIP_SO, **TINY, "num_hidden_layers": 2, "image_size": 33, "patch_size": 14},
        {**QWEN2_05B, **TINY, "num_hidden_layers": 2, "num_key_value_heads": 2, "vocab_size": 320},
        {**LAST, "image_grid_pinpoints": grids(33, FOUR)},
        most_tokens=256,
    ),
    "tiny-clip": Shape(
        "Llava",
        {**TINY, "model_type": "clip_vision_model", "num_hidden_layers": 3, "image_size": 28, "patch_size": 14},
        {**TINY_LM, "tie_word_embeddings": False},
        SECOND_LAST,
    ),
}  # fmt: skip


def _class(shape: Shape, suffix: str) -> Any:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return getattr(transformers, shape.kind + suffix)


def write(shape: Shape, folder: Path, seed: int = 0) -> None:
    """Random weights of a shape and their config."""
    torch.manual_seed(seed)
    side = shape.tower["image_size"] // shape.tower["patch_size"]
    config = _class(shape, "Config")(
        vision_config=dict(shape.tower), text_config=dict(shape.lm), image_token_index=shape.image_token,
        image_seq_length=side**2, tie_word_embeddings=shape.lm["tie_word_embeddings"], **shape.rest,
    )  # fmt: skip
    model = _class(shape, "ForConditionalGeneration")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(LOUDER)
    model.save_pretrained(folder)


def open_theirs(shape: Shape, folder: Path) -> Any:
    """transformers' model of a folder, fp32, in training mode."""
    return _class(shape, "ForConditionalGeneration").from_pretrained(folder, dtype=torch.float32).train()


def open_ours(folder: Path) -> tuple[Learner, Description]:
    """Pumice's model of the same folder, fp32, and what the folder says of it."""
    description = describe(folder)
    model = build(description, own_names(read_folder(folder), folder), torch.float32, None, folder)
    head = DenseHead(model.tower.hidden, model.lm.config.vocab_size)
    return Learner(model, head, tokenizer=None), description
