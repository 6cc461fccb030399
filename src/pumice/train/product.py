"""What a run leaves at the end of a stage, as `pumice.load` takes it.

pretrained parts, trained       ──> delta.safetensors
a checkpoint, trained low-rank  ──> adapter/ over it, as peft has it
all of a language model, trained ──> model/
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from pumice.config import ModelConfig, Recipe, Stage, digest
from pumice.encode import Processor
from pumice.formats.export_adapter import check_base, write_adapter
from pumice.formats.hub import checkpoint_folder
from pumice.formats.own import save_model
from pumice.formats.runs import ADAPTER, DELTA
from pumice.model.build import load_tower
from pumice.model.weights import lm_pairs, pack_delta, read_delta, save_delta
from pumice.train.lowrank import folded, has_lora, lora_pairs, updates
from pumice.train.objectives import Learner
from pumice.train.start import begun_from, delta_file

MODEL = "model"
Product = Literal["delta.safetensors", "model", "adapter"]


def product(recipe: Recipe, stages: Sequence[Stage]) -> Product:
    """What ``stages`` of a recipe make.

    An adapter stands over the checkpoint that all of the recipe began from. DoRA's update isn't of low rank, so that
    over pretrained parts it makes a whole model.
    """
    if begun_from(recipe) is None:
        dora = any(stage.lora and stage.lora.kind == "dora" for stage in stages)
        return MODEL if dora or _whole(stages) else DELTA
    low_rank = any(stage.low_rank for stage in recipe.stages)
    kept = {"tower", "lm"} <= set(recipe.start_modules)
    return ADAPTER if low_rank and kept and not _whole(recipe.stages) else MODEL


def _whole(stages: Sequence[Stage]) -> bool:
    return any(stage.lr.get("lm") and stage.lora is None for stage in stages)


def write_weights(recipe: Recipe, position: int, learner: Learner, processor: Processor, out: Path) -> None:
    """What stage ``position`` made, in the place of what an earlier one did."""
    stages = recipe.stages[: position + 1]
    kind = product(recipe, stages)
    if kind == ADAPTER:
        _replace(out / ADAPTER, lambda folder: export_adapter(recipe, learner, folder))
    elif kind == MODEL:
        with folded(learner.model):
            _replace(out / MODEL, lambda folder: save_model(learner.model, processor, folder))
    else:
        export_delta(recipe, learner, out / DELTA, stages[-1].name)
    for other in {DELTA, MODEL, ADAPTER} - {kind}:
        if (out / other).is_dir():
            shutil.rmtree(out / other)
        else:
            (out / other).unlink(missing_ok=True)


def _replace(folder: Path, write: Callable[[Path], None]) -> None:
    scratch = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(scratch, ignore_errors=True)
    write(scratch)
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)


def export_delta(recipe: Recipe, learner: Learner, path: Path, note: str) -> None:
    """Write what was trained over pretrained parts as a small file that `pumice.load` takes."""
    assert isinstance(recipe.model, ModelConfig)
    lm, begun = learner.model.lm, delta_file(recipe.start)
    pairs = lora_pairs(lm)
    if begun and recipe.start_folded and "lm" in recipe.start_modules and pairs:
        pairs = beside(lm_pairs(read_delta(begun)[0]), pairs)
    with folded(learner.model.tower):
        packed = pack_delta(learner.model, load_tower(recipe.model.tower), pairs, learner.head)
    if begun and "lm" in recipe.start_modules and not has_lora(lm):  # as it was
        packed |= {name: value for name, value in read_delta(begun)[0].items() if name.startswith("lm.")}
    save_delta(packed, path, {"recipe": recipe.name, "digest": digest(recipe), "stage": note})


def beside(
    first: Mapping[str, tuple[Tensor, Tensor]], second: Mapping[str, tuple[Tensor, Tensor]]
) -> dict[str, tuple[Tensor, Tensor]]:
    """The sum of two low-rank updates, {module path: (a (r, in), b (out, r))}, as one of both ranks together."""
    joined = {**first, **second}
    for path in first.keys() & second.keys():
        (a, b), (more_a, more_b) = first[path], second[path]
        joined[path] = torch.cat([a.float(), more_a.float()]), torch.cat([b.float(), more_b.float()], dim=1)
    return joined


def export_adapter(recipe: Recipe, learner: Learner, out: Path) -> None:
    """Write what was trained over a checkpoint to the new folder ``out``.

    Beside low-rank updates it has, whole, the connector, the newline, and the tower if all of it trains.
    """
    found = {f"lm.{path}": update for path, update in updates(learner.model.lm).items()}
    found |= {f"tower.{path}": update for path, update in updates(learner.model.tower).items()}
    parts = ["connector", "newline"]
    if any(stage.lr.get("tower") and not stage.tower_lora for stage in recipe.stages):
        parts.append("tower")
    state = learner.model.state_dict()
    whole = {name: value for name, value in state.items() if name.partition(".")[0] in parts}
    begun = begun_from(recipe)
    assert begun is not None
    folder = checkpoint_folder(begun)
    named = str(folder.resolve()) if Path(begun).expanduser().is_dir() else begun
    write_adapter(found, whole, folder, named, out)


def check_product(recipe: Recipe, learner: Learner) -> None:
    """Whether what the run will make can be written, before it trains for days.

    Raises:
        PumiceError: low-rank matrices beside weights that the checkpoint leaves out.
    """
    begun = begun_from(recipe)
    if begun is not None and product(recipe, recipe.stages) == ADAPTER:
        layers = [f"{name}.{path}" for name in ("lm", "tower") for path in updates(getattr(learner.model, name))]
        check_base(layers, checkpoint_folder(begun))
