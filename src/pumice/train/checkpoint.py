"""Checkpoints without pickle: safetensors and JSON in a folder that appears whole or not at all.

    runs/NAME/checkpoints/read-00000300/ model.safetensors (all that ever trained) · optimizer.safetensors · state.json
                                         of weights that are shared out, files of each worker's slices in their place

A save writes a scratch folder, flushes it to disk and renames it; the newest few are kept. A scratch folder left by a
killed process is ignored and removed at the next save. Both forms are read by torch.distributed.checkpoint, each worker
its own part, so a run goes on on any number of workers, whole or shared out.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from pumice.train.objectives import Learner
from pumice.train.optim import Optimizer
from pumice.train.parallel import World, sum_counts
from pumice.types import PumiceError

WHOLE = ("model.safetensors", "optimizer.safetensors")
"""Files of a checkpoint that one worker wrote for all."""


def training_state(learner: Learner) -> dict[str, Tensor]:
    """Every tensor that a stage may have changed: all but the frozen weights of a low-rank language model.

    They are the learner's own, and slices where it is shared out.
    """
    state: dict[str, Tensor] = {f"head.{name}": value for name, value in learner.head.state_dict().items()}
    low_rank = any(".lora_A." in name for name, _ in learner.model.lm.named_parameters())
    tied = learner.model.lm.config.tie_word_embeddings
    for name, value in learner.model.state_dict().items():
        if name.startswith("lm.") and (".lora_" not in name if low_rank else "lm" not in learner.trained):
            continue
        if name == "lm.lm_head.weight" and tied:  # the same memory as the embedding, which safetensors refuses
            continue
        state[name] = value
    return {name: value.contiguous() for name, value in state.items()}


def optimizer_state(optimizer: Optimizer, names: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """AdamW's moments and step counts by "kind/parameter"."""
    return {
        f"{key}/{name}": torch.as_tensor(value).contiguous()
        for name, parameter in names.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def write_whole(folder: Path, tensors: dict[str, Tensor], state: dict[str, Any], keep: int) -> None:
    """Write one checkpoint of `training_state` and `optimizer_state` together, none of them slices.

    ``state`` needs "stage", "step" (steps done) and "saves"; the newest ``keep`` checkpoints stay.

    Raises:
        PumiceError: it can't be written (a full disk); the older ones are untouched.
    """
    scratch = scratch_of(folder, state)
    try:
        clear(scratch)
        for file, moments in zip(WHOLE, (False, True), strict=True):
            save_file({name: value for name, value in tensors.items() if ("/" in name) == moments}, scratch / file)
            _flush(scratch / file)
        commit(scratch, state, keep)
    except (OSError, SafetensorError) as error:
        raise not_written(scratch, str(error)) from None


def scratch_of(folder: Path, state: dict[str, Any]) -> Path:
    """The folder that a save writes before it gets its name: the same on every worker."""
    return folder / f".tmp-{state['stage']}-{state['step']:08d}"


def clear(scratch: Path) -> None:
    """Make an empty scratch folder; those that killed processes left go."""
    scratch.mkdir(parents=True, exist_ok=True)
    for stale in scratch.parent.glob(".tmp-*"):
        if stale != scratch:
            shutil.rmtree(stale, ignore_errors=True)
    for stale in scratch.iterdir():
        stale.unlink()


def commit(scratch: Path, state: dict[str, Any], keep: int) -> None:
    """Make a checkpoint of a scratch folder whose files are written and flushed; all but the newest ``keep`` go."""
    state = state | {"files": sorted(path.name for path in scratch.iterdir())}
    (scratch / "state.json").write_text(json.dumps(state, indent=1))
    for path in (scratch / "state.json", scratch):
        _flush(path)
    final = scratch.with_name(scratch.name.removeprefix(".tmp-"))
    _remove(final)
    scratch.rename(final)
    _flush(final.parent)
    for old in checkpoints(final.parent)[:-keep]:
        _remove(old)


def not_written(scratch: Path, why: str) -> PumiceError:
    """The error of a save that failed, whose scratch folder goes."""
    shutil.rmtree(scratch, ignore_errors=True)
    final = scratch.with_name(scratch.name.removeprefix(".tmp-"))
    why = " ".join(why.split())[:300]
    return PumiceError(
        f"{final}: checkpoint not written ({why}); the last good one is kept, and the same command goes on from it"
    )


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint; a kill in between leaves a scratch folder, not half of a checkpoint."""
    doomed = checkpoint.with_name(f".tmp-old-{checkpoint.name}")
    with suppress(OSError):
        checkpoint.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [path.parent for path in folder.glob("*/state.json") if not path.parent.name.startswith(".tmp-")]
    return sorted(found, key=lambda path: json.loads((path / "state.json").read_text())["saves"])


def newest(folder: Path, world: World) -> Path | None:
    """The checkpoint that all workers go on from, if there is one.

    Raises:
        PumiceError: this worker finds another one than the others do.
    """
    found = checkpoints(folder)
    saves = read_state(found[-1])["saves"] if found else 0
    (total,) = sum_counts([torch.tensor(saves)], world)
    if total != saves * world.size:
        raise PumiceError(
            f"{folder}: worker {world.rank} finds {found[-1].name if found else 'no checkpoint'}, others another; "
            "expected a folder that all nodes share: choose another --out"
        )
    return found[-1] if found else None


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The state.json of a checkpoint."""
    return json.loads((checkpoint / "state.json").read_text())


def shapes(checkpoint: Path) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of a checkpoint, put together: weights by name, moments by "kind/parameter".

    Raises:
        PumiceError: a file is missing or damaged.
    """
    missing = [name for name in read_state(checkpoint).get("files", WHOLE) if not (checkpoint / name).is_file()]
    if missing:
        raise PumiceError(f"{checkpoint}: lacks {', '.join(missing[:8])}; remove it to go on from an older one")
    try:
        found = HuggingFaceStorageReader(str(checkpoint)).read_metadata().state_dict_metadata
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise _damaged(checkpoint, error) from None
    return {name: tuple(entry.size) for name, entry in found.items() if isinstance(entry, TensorStorageMetadata)}


def has_low_rank(checkpoint: Path) -> bool:
    """Whether the checkpoint has low-rank matrices of the language model."""
    return any(".lora_" in name for name in shapes(checkpoint) if "/" not in name)


def load_training_state(checkpoint: Path, learner: Learner) -> None:
    """Put a checkpoint's tensors into the learner; where it is shared out, each worker reads its slices.

    Raises:
        PumiceError: a file is missing or damaged; a tensor is unknown or of another shape, all are listed.
    """
    stored = {name: shape for name, shape in shapes(checkpoint).items() if "/" not in name}
    targets = learner.model.state_dict() | {f"head.{k}": v for k, v in learner.head.state_dict().items()}
    wrong = [name for name, shape in stored.items() if name not in targets or tuple(targets[name].shape) != shape]
    if wrong:
        raise PumiceError(
            f"{checkpoint}: doesn't fit this recipe's model: {', '.join(wrong[:8])} ({len(wrong)} tensors)"
        )
    _read(checkpoint, {name: targets[name] for name in stored})
    learner.trained |= {name.partition(".")[0] for name in stored}


def load_optimizer(checkpoint: Path, optimizer: Optimizer, names: dict[str, nn.Parameter]) -> None:
    """Restore AdamW's moments and step counts by parameter name.

    Raises:
        PumiceError: as `load_training_state`.
    """
    targets: dict[str, Tensor] = {}
    for key, shape in shapes(checkpoint).items():
        kind, slash, name = key.partition("/")
        if not slash:
            continue
        if name not in names or shape not in ((), tuple(names[name].shape)):
            raise PumiceError(f"{checkpoint}: optimizer state {key} {shape} of no parameter of this recipe's stage")
        parameter = names[name]
        moment = torch.zeros_like(parameter) if shape else torch.zeros((), device=parameter.device)
        targets[key] = optimizer.state[parameter][kind] = moment
    _read(checkpoint, targets)


@torch.no_grad()
def _read(checkpoint: Path, targets: dict[str, Tensor]) -> None:
    """Fill tensors, each whole or this worker's slice of it, in place. Workers don't wait for each other."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # so it calls reading for oneself
            load(
                dict(targets),
                storage_reader=HuggingFaceStorageReader(str(checkpoint)),
                planner=DefaultLoadPlanner(flatten_state_dict=False),
                no_dist=True,
            )
    except CheckpointException as error:
        raise _damaged(checkpoint, next(iter(error.failures.values()))[0]) from None


def _damaged(checkpoint: Path, error: BaseException) -> PumiceError:
    why = " ".join(str(error).split())[:200]
    return PumiceError(f"{checkpoint}: not readable ({why}); remove it to go on from an older one")
