"""Checkpoints without pickle: safetensors and JSON in a folder that appears whole or not at all.

    runs/NAME/checkpoints/read-00000300/ model.safetensors (all that ever trained) · optimizer.safetensors · state.json

A save writes a scratch folder, flushes it to disk and renames it; the newest two are kept. A scratch folder left by a
killed process is ignored and removed at the next save.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pumice.train.objectives import Learner
from pumice.train.parallel import put, sharded, whole
from pumice.types import PumiceError

KEEP = 2


def training_state(learner: Learner) -> dict[str, Tensor]:
    """Every tensor that a stage may have changed: all but the frozen weights of a low-rank language model."""
    state: dict[str, Tensor] = {f"head.{name}": value for name, value in learner.head.state_dict().items()}
    low_rank = any(".lora_A." in name for name, _ in learner.model.lm.named_parameters())
    tied = learner.model.lm.config.tie_word_embeddings
    for name, value in learner.model.state_dict().items():
        if name.startswith("lm.") and (".lora_" not in name if low_rank else not lm_trained(learner)):
            continue
        if name == "lm.lm_head.weight" and tied:  # the same memory as the embedding, which safetensors refuses
            continue
        state[name] = value
    return {name: whole(value).contiguous() for name, value in state.items()}


def optimizer_state(optimizer: torch.optim.Optimizer, names: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """AdamW's moments and step counts by "kind/parameter"."""
    return {
        f"{key}/{name}": whole(torch.as_tensor(value)).contiguous()
        for name, parameter in names.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def lm_trained(learner: Learner) -> bool:
    """Whether the language model's own weights train (no low-rank update in between)."""
    return any(parameter.requires_grad for parameter in learner.model.lm.parameters())


def save_checkpoint(
    folder: Path, tensors: dict[str, Tensor], moments: dict[str, Tensor], state: dict[str, Any]
) -> Path:
    """Write one checkpoint of `training_state` and `optimizer_state`; returns its folder.

    ``state`` needs "stage", "step" (steps done) and "saves".

    Raises:
        PumiceError: it can't be written (a full disk); the older ones are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(".tmp-*"):
        shutil.rmtree(stale, ignore_errors=True)
    scratch = folder / f".tmp-{os.getpid()}"
    final = folder / f"{state['stage']}-{state['step']:08d}"
    try:
        _write(scratch, tensors, moments, state)
        shutil.rmtree(final, ignore_errors=True)
        scratch.rename(final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise PumiceError(f"{final}: checkpoint not written ({error}); the last good one is kept") from None
    for old in checkpoints(folder)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def _write(scratch: Path, tensors: dict[str, Tensor], moments: dict[str, Tensor], state: dict[str, Any]) -> None:
    """All files of a checkpoint, flushed to the disk."""
    scratch.mkdir()
    save_file(tensors, scratch / "model.safetensors")
    save_file(moments, scratch / "optimizer.safetensors")
    (scratch / "state.json").write_text(json.dumps(state, indent=1))
    for path in [*scratch.iterdir(), scratch]:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [path.parent for path in folder.glob("*/state.json") if not path.parent.name.startswith(".tmp-")]
    return sorted(found, key=lambda path: json.loads((path / "state.json").read_text())["saves"])


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The state.json of a checkpoint."""
    return json.loads((checkpoint / "state.json").read_text())


def has_low_rank(checkpoint: Path) -> bool:
    """Whether the checkpoint has low-rank matrices of the language model."""
    with safe_open(checkpoint / "model.safetensors", framework="pt") as file:
        return any(".lora_" in name for name in file.keys())  # noqa: SIM118 (not a dict)


def load_training_state(checkpoint: Path, learner: Learner) -> None:
    """Put a checkpoint's tensors into the learner.

    Raises:
        PumiceError: a tensor is unknown or of another shape; all are listed.
    """
    tensors = load_file(checkpoint / "model.safetensors")
    targets = learner.model.state_dict() | {f"head.{k}": v for k, v in learner.head.state_dict().items()}
    wrong = [name for name, value in tensors.items() if name not in targets or targets[name].shape != value.shape]
    if wrong:
        raise PumiceError(
            f"{checkpoint}: doesn't fit this recipe's model: {', '.join(wrong[:8])} ({len(wrong)} tensors)"
        )
    with torch.no_grad():
        for name, value in tensors.items():
            put(targets[name], value)


def load_optimizer(checkpoint: Path, optimizer: torch.optim.Optimizer, names: dict[str, nn.Parameter]) -> None:
    """Restore AdamW's moments and step counts by parameter name."""
    moments = load_file(checkpoint / "optimizer.safetensors")
    for key, value in moments.items():
        kind, _, name = key.partition("/")
        if name not in names:
            raise PumiceError(f"{checkpoint}: optimizer state of unknown parameter {name}")
        parameter = names[name]
        if sharded(parameter) and value.dim():
            moment = torch.zeros_like(parameter)
            put(moment, value)
            optimizer.state[parameter][kind] = moment
        else:
            optimizer.state[parameter][kind] = value.to(parameter.device)
