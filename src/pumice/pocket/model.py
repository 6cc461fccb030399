"""Opening an assistant: pretrained parts, and the weights trained on top of them.

get_part(tower), get_part(lm) ──build──> + weights/pocket.safetensors ──apply_delta──> Assistant
                                         + weights/reader.safetensors, with a reader only
"""

from __future__ import annotations

from pathlib import Path

import torch

from pumice.assistant import Assistant
from pumice.config import CheckpointConfig, ModelConfig, load_recipe
from pumice.model.build import auto_dtype, build_model, build_processor, cast
from pumice.model.weights import apply_delta
from pumice.pocket.parts import READER, RECIPE, WEIGHTS
from pumice.reader import weights as reader_weights
from pumice.types import PumiceError


def load_assistant(
    config: ModelConfig | CheckpointConfig,
    weights: Path,
    dtype: torch.dtype | None,
    device: torch.device,
    name: str,
    update: Path | None = None,
) -> Assistant:
    """An assistant from pretrained parts and a delta; ``dtype`` None chooses what this hardware is fast at.

    ``update`` are the weights of the reader-assisted mode.
    """
    model = build_model(config)
    apply_delta(model, weights)
    if update is not None:
        reader_weights.add(model, update)
    return Assistant(cast(model, dtype or auto_dtype(device)).to(device), build_processor(config), name)


def load_pocket(dtype: torch.dtype | None, device: torch.device, reader: bool = False) -> Assistant:
    """The pocket model, with ``reader`` as it was trained to answer beside one.

    Raises:
        PumiceError: its weights are not in this installation, or its pretrained parts can't be obtained.
    """
    if not WEIGHTS.is_file():
        raise PumiceError(f"the pocket model's weights are missing from this installation: {WEIGHTS}")
    update = READER if reader and READER.is_file() else None
    return load_assistant(load_recipe(RECIPE).model, WEIGHTS, dtype, device, "pocket", update)
