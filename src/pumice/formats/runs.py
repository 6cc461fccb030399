"""The folder of a training run: what it made, over the parts or the checkpoint that it began from.

recipe.toml + delta.safetensors ──pretrained parts──┐
recipe.toml + adapter/          ──checkpoint────────┴──> Assistant
"""

from __future__ import annotations

from pathlib import Path

import torch

from pumice.assistant import Assistant
from pumice.config import ModelConfig, load_recipe
from pumice.formats.adapters import open_partial
from pumice.model.build import build_processor
from pumice.pocket.model import load_assistant

RECIPE, DELTA, ADAPTER = "recipe.toml", "delta.safetensors", "adapter"


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run's recipe with a delta or an adapter. A whole model is a checkpoint, in ``model``."""
    return (folder / RECIPE).is_file() and ((folder / DELTA).is_file() or (folder / ADAPTER).is_dir())


def open_run(folder: Path, dtype: torch.dtype | None, device: torch.device, base: Path | None = None) -> Assistant:
    """The assistant that a run made; ``dtype`` None as in `pumice.load`, ``base`` where its checkpoint has moved.

    Raises:
        PumiceError: a faulty recipe, or parts, checkpoint or weights that are missing or don't fit.
    """
    model = load_recipe(folder / RECIPE).model
    if isinstance(model, ModelConfig) and (folder / DELTA).is_file():
        return load_assistant(model, folder / DELTA, dtype, device, str(folder))
    if isinstance(model, ModelConfig):  # its own layouts, over a checkpoint's weights
        assistant = open_partial(folder / ADAPTER, base, dtype, device)
        return Assistant(assistant.model, build_processor(model), str(folder))
    tower = Path(model.tower).expanduser() if model.tower else None
    assistant = open_partial(folder / ADAPTER, base, dtype, device, tower, model.template)
    return Assistant(assistant.model, assistant.processor, str(folder))
