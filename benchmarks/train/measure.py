"""What all contenders share: their setting, the optimiser's, and the measure of an update.

[Features] of an update ──Contender.update──> loss, rows ──run──> Update (CPU seconds, wall seconds)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from benchmarks.train.device import synchronize
from benchmarks.train.shapes import Shape
from pumice.types import Features

RATE, BETAS, EPS, CLIP = 1e-5, (0.9, 0.999), 1e-8, 1.0
"""AdamW of all contenders: constant rate, no weight decay, gradients clipped to a norm of CLIP."""


@dataclass(frozen=True)
class Setting:
    """``batch`` samples of a padded forward pass, ``pack_tokens`` tokens of a packed one.

    Weights are fp32 on ``device``, matrix products in ``dtype`` (autocast). Samples lie in the CPU's memory; each
    contender takes them to the device where a user's loop would, which is timed.
    """

    shape: Shape
    folder: Path
    batch: int
    pack_tokens: int
    frozen: bool
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True)
class Update:
    """One optimiser step: mean loss of its supervised tokens, rows that went through the language model, seconds."""

    loss: float
    rows: int
    cpu: float
    wall: float


class Contender(Protocol):
    """Runs updates one after another; the first one's loss is that of the untouched weights."""

    def run(self, updates: Sequence[Sequence[Features]]) -> list[Update]: ...


def timed(
    update: Callable[[Sequence[Features]], tuple[float, int]],
    updates: Sequence[Sequence[Features]],
    device: torch.device,
) -> list[Update]:
    """Run ``update``, which gives loss and rows, over all updates."""
    done = []
    for documents in updates:
        cpu, wall = clock(device)
        loss, rows = update(documents)
        cpu_after, wall_after = clock(device)
        done.append(Update(loss, rows, cpu_after - cpu, wall_after - wall))
    return done


def clock(device: torch.device) -> tuple[float, float]:
    """(CPU seconds of the process, wall seconds) when the device has done what it was given."""
    synchronize(device)
    return time.process_time(), time.perf_counter()
