"""Optimiser and schedule: one learning rate a module, zero is frozen.

Learner + Stage ──trainable──> {name: parameter} ──AdamW groups──> step with a factor of warm-up, plateau, decay
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from pumice.config import Stage
from pumice.train.lowrank import has_lora
from pumice.train.objectives import Learner
from pumice.train.parallel import sharded
from pumice.types import PumiceError


def modules_of(learner: Learner) -> dict[str, nn.Module | nn.Parameter]:
    """The modules that a recipe's ``lr`` table names."""
    model = learner.model
    return {
        "tower": model.tower,
        "connector": model.connector,
        "newline": model.newline,
        "lm": model.lm,
        "head": learner.head,
    }


def freeze(learner: Learner, stage: Stage) -> dict[str, nn.Parameter]:
    """Set requires_grad by the stage's learning rates; returns the trainable parameters by full name.

    Raises:
        PumiceError: nothing trains.
    """
    trainable: dict[str, nn.Parameter] = {}
    for name, module in modules_of(learner).items():
        on = stage.lr.get(name, 0.0) > 0
        low_rank = isinstance(module, nn.Module) and has_lora(module)
        learner.trained |= {name} if on else set()
        items = module.named_parameters() if isinstance(module, nn.Module) else [("", module)]
        for path, parameter in items:
            wanted = on and (".lora_" in path or not low_rank) and "mask_token" not in path
            parameter.requires_grad_(wanted)
            if wanted:
                trainable[f"{name}.{path}".rstrip(".")] = parameter
    if not trainable:
        raise PumiceError(f"stage {stage.name!r} trains nothing: every learning rate is 0")
    return trainable


def recompute(learner: Learner, on: bool) -> None:
    """Keep a language model's activations between blocks only, and compute the rest again in the backward pass."""
    lm = learner.model.lm
    if on:
        lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        lm.train()  # transformers recomputes in training mode only; none of these models has dropout by default
    elif lm.is_activation_checkpointing:
        lm.gradient_checkpointing_disable()


class Joint:
    """Several optimisers over disjoint parameters as one: shared state, all groups, one step."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts
        self.state = parts[0].state
        for part in parts[1:]:
            part.state = self.state

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)


Optimizer = torch.optim.Optimizer | Joint


def make_optimizer(trainable: dict[str, nn.Parameter], stage: Stage) -> Optimizer:
    """The stage's optimiser with a group a module, block and kind; weight decay on matrices only.

    Groups remember their ``peak`` rate.

    Raises:
        PumiceError: Muon over weights of which each worker holds a slice.
    """
    blocks = {module: depth(trainable, module) for module in stage.layer_decay}
    groups: dict[tuple[str, float, bool, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in trainable.items():
        module = name.partition(".")[0]
        rate = stage.lr[module]
        if module in blocks:
            rate *= stage.layer_decay[module] ** (blocks[module] + 1 - level(name, blocks[module]))
        muon = stage.optimizer == "muon" and orthogonal(name, parameter)
        if muon and sharded(parameter):
            raise PumiceError(f"stage {stage.name!r}: optimizer = muon doesn't go with parallel = shard")
        groups.setdefault((module, rate, parameter.dim() >= 2, sharded(parameter), muon), []).append(parameter)
    kinds: dict[bool, list[dict[str, Any]]] = {}
    for (_, rate, matrix, _, muon), parameters in groups.items():
        decay = stage.weight_decay if matrix else 0.0
        kinds.setdefault(muon, []).append({"params": parameters, "peak": rate, "lr": rate, "weight_decay": decay})
    parts: list[torch.optim.Optimizer] = []
    if False in kinds:
        parts.append(torch.optim.AdamW(kinds[False], betas=stage.betas, eps=stage.eps, fused=True))
    if True in kinds:
        parts.append(torch.optim.Muon(kinds[True], adjust_lr_fn="match_rms_adamw"))
    return parts[0] if len(parts) == 1 else Joint(*parts)


def depth(names: Iterable[str], module: str) -> int:
    """Number of blocks among the names of a module's parameters."""
    return 1 + max((_block(name) for name in names if name.partition(".")[0] == module), default=-1)


def level(name: str, blocks: int) -> int:
    """Where a parameter stands: 0 embeddings, 1 to ``blocks`` the blocks, then what follows them."""
    if _block(name) >= 0:
        return 1 + _block(name)
    return 0 if re.search(r"embed|register|cls_token|pre_lay", name) else blocks + 1


def _block(name: str) -> int:
    found = re.search(r"\.(\d+)\.", name)
    return int(found[1]) if found else -1


def orthogonal(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon takes a parameter: a matrix between hidden layers, not a table, a head or a low-rank factor."""
    module = name.partition(".")[0]
    inner = module == "connector" or _block(name) >= 0
    return parameter.dim() == 2 and inner and module != "head" and ".lora_" not in name


@torch.no_grad()
def average(optimizer: Optimizer, decay: float) -> None:
    """Move the averages of all weights towards the weights, after a step; the first one begins them.

    They lie beside the moments, so that checkpoints hold them.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if "average" in state:
                state["average"].lerp_(parameter.detach(), 1.0 - decay)
            else:
                state["average"] = parameter.detach().clone()


@torch.no_grad()
def swap_averages(optimizer: Optimizer) -> None:
    """Exchange weights and averages, where there are averages."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if "average" in state:
                kept = parameter.detach().clone()
                parameter.copy_(state["average"])
                state["average"].copy_(kept)


@contextmanager
def averaged(optimizer: Optimizer) -> Iterator[None]:
    """A block in which the weights are the averages, where a stage keeps them."""
    swap_averages(optimizer)
    try:
        yield
    finally:
        swap_averages(optimizer)


def factor(stage: Stage, step: int, steps: int) -> float:
    """Learning-rate factor at a step of ``steps``: linear warm-up, then the schedule down to ``floor``.

    wsd falls linearly over the last ``decay`` of the steps; cosine from the end of the warm-up on.
    """
    warmup = round(stage.warmup * steps) if stage.warmup < 1 else stage.warmup
    rise = min(1.0, (step + 1) / max(1, warmup))
    if stage.schedule == "cosine":
        along = max(0.0, step - warmup) / max(1, steps - warmup)
        return rise * (stage.floor + (1.0 - stage.floor) * (1.0 + math.cos(math.pi * along)) / 2.0)
    start = round(steps * (1.0 - stage.decay))
    fall = 1.0 if step < start else max(stage.floor, 1.0 - (step - start) / max(1, steps - start))
    return rise * fall
