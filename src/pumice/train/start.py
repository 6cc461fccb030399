"""What a run begins from, beside its pretrained parts: other weights, and the low-rank matrices that it trains.

"pocket" | a run's delta.safetensors | a checkpoint's folder, or its name on a hub ──begin_from──> Learner
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from pumice.config import MODULES, CheckpointConfig, Recipe
from pumice.formats.opening import own_names
from pumice.formats.shards import read_folder
from pumice.model.build import locate
from pumice.model.weights import HEAD, apply_tensors, lm_pairs, read_delta
from pumice.pocket.parts import READER, WEIGHTS
from pumice.reader.weights import load
from pumice.train.lowrank import add_lora, has_lora, reset_lengths, set_lora_pairs
from pumice.train.objectives import Learner
from pumice.types import PumiceError


def prepare(recipe: Recipe, learner: Learner, position: int, device: torch.device) -> None:
    """Bring a new learner to where the stage at ``position`` begins: start weights, low-rank matrices up to it.

    Where the run begins from trained weights, the matrices of all stages are there from the first on.

    Raises:
        PumiceError: as `begin_from` and `add_lora`.
    """
    begun = begun_from(recipe)
    before = bool(begun) or recipe.start_folded
    if before and recipe.start != "parts":
        begin_from(recipe.start, learner, recipe.start_modules)  # before matrices: weights in 4 bits aren't written to
    need_lora(recipe, learner, len(recipe.stages) - 1 if begun or recipe.start != "parts" else position, device)
    if not before and recipe.start != "parts":
        begin_from(recipe.start, learner, recipe.start_modules)  # after: a delta has matrices itself


def need_lora(recipe: Recipe, learner: Learner, position: int, device: torch.device | None = None) -> None:
    """Insert the low-rank matrices that a stage up to ``position`` asks for; they stay for later stages."""
    backbones = {"lm": learner.model.lm, "tower": learner.model.tower.model}  # peft looks into models of transformers
    for stage in recipe.stages[: position + 1]:
        for name, config in stage.low_rank.items():
            if not has_lora(backbones[name]):
                add_lora(backbones[name], config, recipe.seed, device)
                if config.start:
                    begin_update(backbones[name], config.start)


def begin_update(lm: nn.Module, start: str) -> None:
    """Let new low-rank matrices of a language model begin as an update that `pumice.reader.weights` wrote.

    Raises:
        PumiceError: it isn't one, or is of another model or rank.
    """
    path = READER if start == "reader" else Path(start).expanduser()
    try:
        set_lora_pairs(lm, lm_pairs(load(path)))
    except PumiceError as error:
        raise PumiceError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None


def begin_from(start: str, learner: Learner, modules: Sequence[str] = MODULES) -> None:
    """Put the weights that a recipe's ``start`` names into the learner; ``modules`` not named begin anew.

    Raises:
        PumiceError: no such weights, or they don't fit the recipe's model.
    """
    path = delta_file(start)
    if path is not None:
        start_from(path, learner, modules)
    else:
        start_from_checkpoint(locate(start), learner, modules)


def delta_file(start: str) -> Path | None:
    """The delta that a recipe's ``start`` names; None where it names parts or a checkpoint."""
    path = WEIGHTS if start == "pocket" else Path(start).expanduser()
    return path if path.is_file() else None


def begun_from(recipe: Recipe) -> str | None:
    """The checkpoint whose weights a recipe's run begins with, as the recipe names it; None for parts and deltas."""
    if isinstance(recipe.model, CheckpointConfig):
        return recipe.model.checkpoint
    return None if recipe.start == "parts" or delta_file(recipe.start) else recipe.start


def start_from(path: Path, learner: Learner, modules: Sequence[str] = MODULES) -> None:
    """Begin from the named modules of a delta; of the language model, its low-rank matrices where there are any.

    Raises:
        PumiceError: not a delta, or it doesn't fit the recipe's model.
    """
    tensors, _ = read_delta(path)
    tensors = {name: value for name, value in tensors.items() if name.partition(".")[0] in modules}
    head = {name.removeprefix(HEAD): value for name, value in tensors.items() if name.startswith(HEAD)}
    low_rank = {name: value for name, value in tensors.items() if name.startswith("lm.") and has_lora(learner.model.lm)}
    rest = {name: value for name, value in tensors.items() if not name.startswith(HEAD) and name not in low_rank}
    apply_tensors(learner.model, rest)
    reset_lengths(learner.model.tower)
    if head:
        learner.head.load_state_dict(learner.head.state_dict() | head)
    if low_rank:
        set_lora_pairs(learner.model.lm, lm_pairs(low_rank))


@torch.no_grad()
def start_from_checkpoint(folder: Path, learner: Learner, modules: Sequence[str] = MODULES) -> None:
    """Begin from the named modules of a checkpoint in any published form, or in Pumice's own.

    Weights of the checkpoint that the model doesn't build (blocks after the last used) are left; where its vocabulary
    has more rows than the model's, the first ones count.

    Raises:
        PumiceError: low-rank matrices are in the way, or weights of the named modules that the checkpoint lacks or has
            in another shape: all are listed.
    """
    if "lm" in modules and has_lora(learner.model.lm):
        raise PumiceError(f"{folder}: whole language models can't go beside low-rank matrices; merge them first")
    found = own_names(read_folder(folder), folder)
    tied = learner.model.lm.config.tie_word_embeddings
    wanted = {
        name: value
        for name, value in learner.model.state_dict().items()
        if name.partition(".")[0] in modules and not (tied and name == "lm.lm_head.weight")
    }
    fitting = {name: _rows(found[name], value) for name, value in wanted.items() if name in found}
    wrong = [name for name, value in wanted.items() if name not in fitting or fitting[name].shape != value.shape]
    if wrong:
        listed = ", ".join(wrong[:8]) + (f" and {len(wrong) - 8} more" if len(wrong) > 8 else "")
        raise PumiceError(f"{folder}: lacks weights of the recipe's model, or has them in another shape: {listed}")
    for name, value in fitting.items():
        wanted[name].copy_(value)


def _rows(found: Tensor, wanted: Tensor) -> Tensor:
    """The first rows of a table that has more than are wanted."""
    longer = found.dim() == wanted.dim() == 2 and found.shape[0] > wanted.shape[0] and found.shape[1] == wanted.shape[1]
    return found[: wanted.shape[0]] if longer else found
