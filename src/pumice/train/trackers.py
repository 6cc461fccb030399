"""A run's figures in TensorBoard, trackio or Weights & Biases, beside its own log.

row ──Tracker──> the service's own form: curves by stage and step. A resumed run goes on in the same place.
"""

from __future__ import annotations

import hashlib
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pumice.types import PumiceError

TRACKERS = ("tensorboard", "trackio", "wandb")


class Tracker(Protocol):
    """Takes rows of a stage in the order of their steps."""

    def log(self, stage: str, step: int, figures: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


def open_trackers(names: Sequence[str], run: Path, recipe: str) -> list[Tracker]:
    """The named trackers for the run in a folder; ``recipe`` is its resolved text.

    Raises:
        PumiceError: an unknown name, or one that isn't installed.
    """
    kinds = {"tensorboard": TensorBoard, "trackio": Trackio, "wandb": WeightsAndBiases}
    unknown = [name for name in names if name not in kinds]
    if unknown:
        raise PumiceError(f"unknown tracker {unknown[0]!r}; known: {', '.join(TRACKERS)}")
    try:
        return [kinds[name](run, recipe) for name in names]
    except ImportError as error:
        raise PumiceError(
            f"--track {','.join(names)}: {error.name} is missing; install it by name, or pip install 'pumice[track]'"
        ) from None


class TensorBoard:
    """Event files in ``run``/tensorboard; stages are names' first part."""

    def __init__(self, run: Path, recipe: str) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self.writer = SummaryWriter(str(run / "tensorboard"))
        self.writer.add_text("recipe", "\n".join(f"    {line}" for line in recipe.splitlines()))

    def log(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        for key, value in figures.items():
            self.writer.add_scalar(f"{stage}/{key}", value, step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class Hosted:
    """What wandb and trackio share: a project of runs, rows of figures. Each row carries its stage's step."""

    module: Any

    def log(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        self.module.log({f"{stage}/{key}": value for key, value in {**figures, "step": step}.items()})

    def close(self) -> None:
        self.module.finish()


class Trackio(Hosted):
    """trackio's local database; WANDB_PROJECT names the project here too."""

    def __init__(self, run: Path, recipe: str) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        self.module = trackio
        project = os.environ.get("WANDB_PROJECT", "pumice")
        trackio.init(project=project, name=run.name, config=tomllib.loads(recipe), resume="allow")


class WeightsAndBiases(Hosted):
    """Weights & Biases; WANDB_MODE=offline keeps the run in its folder."""

    def __init__(self, run: Path, recipe: str) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        self.module = wandb
        project = os.environ.get("WANDB_PROJECT", "pumice")
        key = f"{run.name}-{hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:8]}"
        wandb.init(project=project, name=run.name, id=key, dir=str(run), config=tomllib.loads(recipe), resume="allow")
