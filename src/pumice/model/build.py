"""Assembling a model from a recipe's [model] table: pretrained tower and language model, a fresh connector.

ModelConfig ──parts, folders──> tower + connector + lm ──> AssistantModel, Processor
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pumice.chat import check_marks
from pumice.config import CheckpointConfig, ModelConfig, TowerConfig
from pumice.encode import Processor
from pumice.formats.hub import find_folder
from pumice.model import openelm  # noqa: F401 (registers OpenELM with transformers)
from pumice.model.assistant import AssistantModel
from pumice.model.connectors import CONNECTORS, init_connector
from pumice.model.towers import Tower, tower_class
from pumice.pocket.parts import PARTS, get_part
from pumice.templates import get_template
from pumice.types import PumiceError


def locate(source: str, file: str = "config.json") -> Path:
    """The folder of a pretrained part, of a model that the user has, or of a hub's model in the local cache.

    Nothing is fetched from a hub. ``file`` must lie in a folder of the user's.

    Raises:
        PumiceError: none of them.
    """
    if source in PARTS:
        return get_part(source)
    folder = find_folder(source, file)
    if folder is None:
        raise PumiceError(f"{source!r} is neither a pretrained part ({', '.join(PARTS)}) nor a folder with a {file}")
    return folder


def load_tower(config: TowerConfig) -> Tower:
    """The pretrained tower of a recipe."""
    return tower_class(config.type).from_folder(locate(config.source), config.tile, config.layers)


def auto_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the hardware multiplies it fast, else fp32 (without AVX-512 BF16 or AMX it is far slower)."""
    if device.type == "cpu":
        return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32
    return torch.bfloat16


def cast(model: AssistantModel, dtype: torch.dtype) -> AssistantModel:
    """The model in ``dtype``, in place; what its language model computes once, such as rotary frequencies, stays fp32.

    In bf16 a frequency would be off by up to 1/256, which is several radians between tokens that are a thousand apart.
    """
    computed = {name: value for name, value in model.lm.named_buffers() if value.is_floating_point()}
    model.to(dtype)
    for name, value in computed.items():
        path, _, leaf = name.rpartition(".")
        model.lm.get_submodule(path)._buffers[leaf] = value
    return model


def build_model(config: ModelConfig | CheckpointConfig, seed: int = 0) -> AssistantModel:
    """The assistant in fp32 as training begins: a checkpoint's, or pretrained parts, seeded connector and newline."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    if isinstance(config, CheckpointConfig):
        from pumice.formats.whole import open_model  # whose modules need this one

        return open_model(config)
    logging.disable_progress_bar()  # loading takes a second; the bars would stand among the answers
    tower = load_tower(config.tower)
    lm: Any = AutoModelForCausalLM.from_pretrained(locate(config.lm), dtype=torch.float32)
    connector = CONNECTORS[config.connector.type](
        tower.width, lm.config.hidden_size, config.connector.shuffle, config.connector.depth, config.connector.norm
    )
    scale = float(lm.get_input_embeddings().weight.detach().std())
    init_connector(connector, scale, seed)
    model = AssistantModel(tower, connector, lm)
    with torch.no_grad():
        model.newline.normal_(0.0, scale, generator=torch.Generator().manual_seed(seed))
    side = tower.side // config.connector.shuffle
    if (config.layout.tile, config.layout.side) != (tower.tile, side):
        raise PumiceError(
            f"the layout has tiles of {config.layout.tile} px and {config.layout.side} tokens a side, "
            f"tower and connector give {tower.tile} px and {side}"
        )
    return model


def build_processor(config: ModelConfig | CheckpointConfig) -> Processor:
    """Tokenizer, template, layout and pixel statistics of a model."""
    from transformers import AutoConfig, AutoTokenizer

    if isinstance(config, CheckpointConfig):
        from pumice.formats.whole import open_processor

        return open_processor(config)
    folder = locate(config.lm)
    pixels = tower_class(config.tower.type).pixels
    tokenizer = AutoTokenizer.from_pretrained(locate(config.tokenizer, "tokenizer*") if config.tokenizer else folder)
    template = get_template(config.template)
    check_marks(template, tokenizer)
    return Processor(
        tokenizer=tokenizer,
        template=template,
        policy=config.layout,
        mean=pixels.mean,
        std=pixels.std,
        max_tokens=AutoConfig.from_pretrained(folder).max_position_embeddings,
        several=config.several,
        video=config.video,
    )
