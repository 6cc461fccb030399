"""Optimiser and schedule: one learning rate a module, zero is frozen.

Learner + Stage ──trainable──> {name: parameter} ──AdamW groups──> step with a factor of warm-up, plateau, decay
"""

from __future__ import annotations

import math

import torch
from torch import nn

from pumice.config import Stage
from pumice.train.lora import has_lora
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
        low_rank = name == "lm" and isinstance(module, nn.Module) and has_lora(module)
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


def make_optimizer(trainable: dict[str, nn.Parameter], stage: Stage) -> torch.optim.AdamW:
    """AdamW with a group a module and kind; weight decay on matrices only. Groups remember their ``peak`` rate."""
    groups: dict[tuple[str, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in trainable.items():
        groups.setdefault((name.split(".")[0], parameter.dim() >= 2, sharded(parameter)), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "peak": stage.lr[module],
                "lr": stage.lr[module],
                "weight_decay": stage.weight_decay if matrix else 0.0,
            }
            for (module, matrix, _), parameters in groups.items()
        ],
        betas=stage.betas,
        eps=stage.eps,
        fused=True,
    )


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
