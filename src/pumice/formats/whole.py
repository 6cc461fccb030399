"""A whole checkpoint as the model that a run begins with.

CheckpointConfig ──folder, or a hub's name──> any form that `pumice.load` opens ──> AssistantModel, Processor
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from pumice.chat import check_marks
from pumice.config import CheckpointConfig
from pumice.encode import Processor
from pumice.formats import own
from pumice.formats.adapters import is_partial
from pumice.formats.describe import describe
from pumice.formats.hub import checkpoint_folder
from pumice.formats.opening import build, make_processor, own_names
from pumice.formats.shards import read_folder
from pumice.model.assistant import AssistantModel
from pumice.templates import get_template
from pumice.types import PumiceError


def open_model(config: CheckpointConfig) -> AssistantModel:
    """The model in fp32. Its weights lie in memory: a file that is replaced while a run lasts changes nothing.

    Raises:
        PumiceError: no checkpoint, only a part of one, or weights that don't fit its config.
    """
    folder, dtype = _folder(config), torch.float32
    if own.is_own(folder):
        model = own.open_own(folder, dtype, torch.device("cpu")).model
    else:
        tower = Path(config.tower).expanduser() if config.tower else None
        model = build(describe(folder), own_names(read_folder(folder, dtype), folder), dtype, tower, folder)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model.requires_grad_(True)


def open_processor(config: CheckpointConfig) -> Processor:
    """Tokenizer, chat template, layouts and pixel statistics; no weight is read.

    Raises:
        PumiceError: no checkpoint, no tokenizer, or no chat template.
    """
    folder = _folder(config)
    if not own.is_own(folder):
        return make_processor(folder, describe(folder), config.template)
    processor = own.open_processor(folder)
    if config.template is None:
        return processor
    template = get_template(config.template)
    check_marks(template, processor.tokenizer)
    return replace(processor, template=template)


def _folder(config: CheckpointConfig) -> Path:
    folder = checkpoint_folder(config.checkpoint)
    if is_partial(folder):
        raise PumiceError(f"{folder}: only a part of a model; write it whole first (pumice export --merge)")
    return folder
