"""The training loop: a stage of a recipe, from step to step.

    index ──render, encode, pack──> Batch ──objective──> terms ──global normaliser──> backward, sum, clip, AdamW

Sample ``index`` of a stage is a pure function of the recipe's seed; worker r of w takes every w-th sample of a step, so
neither the number of workers nor an interruption changes what is learned.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch

from pumice.config import Stage
from pumice.data.batch import pack
from pumice.data.render.fonts import Split
from pumice.data.render.page import Rendered
from pumice.data.source import render, to_sample
from pumice.encode import Processor, encode
from pumice.train.checkpoint import load_optimizer, save_checkpoint
from pumice.train.objectives import OBJECTIVES, Learner, Term
from pumice.train.optim import factor, freeze, make_optimizer
from pumice.train.parallel import World, any_worker, sum_counts, sum_gradients
from pumice.types import Batch, PumiceError
from pumice.vision.layout import layout


@dataclass
class Run:
    """What all stages of a run share. ``report`` gets each logged row; ``stop`` is asked after every step.

    Matrix products run in ``dtype`` (autocast); weights, moments and losses stay fp32.
    """

    learner: Learner
    processor: Processor
    seed: int
    out: Path
    world: World
    report: Callable[[Stage, dict[str, Any]], None]
    dtype: torch.dtype = torch.float32
    saves: int = 0
    log: TextIO | None = None
    stop: Callable[[], bool] = field(default=lambda: False)
    stopped: bool = False


def make_batch(run: Run, stage: Stage, step: int, split: Split = "train") -> Batch:
    """This worker's share of a step."""
    documents = []
    for slot in range(run.world.rank, stage.batch, run.world.size):
        index = step * stage.batch + slot
        documents.append(encode(to_sample(_draw(run, stage, index, split), f"{stage.name}-{index}"), run.processor))
    return pack(documents).to(run.learner.device)


def _draw(run: Run, stage: Stage, index: int, split: Split) -> Rendered:
    """Picture ``index`` of the stage; one with more views than the stage takes gives way to the next draw."""
    for attempt in range(100):
        rendered = render(stage.data, run.seed, split, index + attempt * 1_000_000_007)
        if layout(rendered.image.size, run.processor.policy).views <= stage.max_views:
            return rendered
    raise PumiceError(f"stage {stage.name!r}: 100 pictures in a row have more than {stage.max_views} views")


def run_stage(run: Run, stage: Stage, start: int = 0, checkpoint: Path | None = None) -> None:
    """Train one stage from step ``start``; with ``checkpoint`` the optimiser continues from it.

    Raises:
        PumiceError: the loss is no longer finite (the stage and step are named; that step changes nothing).
    """
    learner = run.learner
    learner.dense_weight, learner.align_weight = stage.dense_weight, stage.align_weight
    trainable = freeze(learner, stage)
    optimizer = make_optimizer(trainable, stage)
    if checkpoint is not None:
        load_optimizer(checkpoint, optimizer, trainable)
    meter, saved = Meter(), time.monotonic()
    for step in range(start, stage.steps):
        began = time.monotonic()
        batch = make_batch(run, stage, step)
        meter.waited += time.monotonic() - began
        terms = train_step(run, stage, step, batch, optimizer, trainable)
        meter.add(terms, batch)
        done = step + 1
        if done % stage.log_every == 0 or done == stage.steps:
            _log(run, stage, step, meter.row() | _heldout(run, stage, done))
            meter = Meter()
        run.stopped = any_worker(run.stop(), run.world)
        if time.monotonic() - saved > stage.checkpoint_minutes * 60 or done == stage.steps or run.stopped:
            saved = time.monotonic()
            _save(run, stage, done, optimizer, trainable)
        if run.stopped:
            return


def train_step(
    run: Run, stage: Stage, step: int, batch: Batch, optimizer: torch.optim.Optimizer, trainable: dict[str, Any]
) -> list[Term]:
    """Forward, backward and update; returns this worker's terms with their totals detached."""
    parameters = list(trainable.values())
    terms = _terms(run, stage, batch)
    counts = sum_counts([term.count for term in terms], run.world)
    loss = torch.stack([t.weight * t.total / max(c, 1.0) for t, c in zip(terms, counts, strict=True)]).sum()
    if not math.isfinite(loss.item()):
        first = step * stage.batch
        raise PumiceError(
            f"stage {stage.name!r}, step {step}: the loss is {loss.item()} on worker {run.world.rank}, among samples "
            f"{stage.name}-{first} to {stage.name}-{first + stage.batch - 1}; this step changed nothing, and the last "
            "checkpoint is good: lower the learning rate, or look at these samples"
        )
    loss.backward()
    sum_gradients(parameters, run.world)
    torch.nn.utils.clip_grad_norm_(parameters, stage.clip)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor(stage, step)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for term in terms:
        term.total = term.total.detach()
    return terms


def _terms(run: Run, stage: Stage, batch: Batch) -> list[Term]:
    """The objective's terms, with matrix products in the run's dtype."""
    with torch.autocast(run.learner.device.type, run.dtype, enabled=run.dtype != torch.float32):
        return OBJECTIVES[stage.objective](run.learner, batch)


@dataclass
class Meter:
    """Sums since the last logged row."""

    began: float = field(default_factory=time.monotonic)
    waited: float = 0.0
    pictures: int = 0
    tokens: int = 0
    supervised: int = 0
    steps: int = 0
    sums: dict[str, list[float]] = field(default_factory=dict)

    def add(self, terms: list[Term], batch: Batch) -> None:
        self.steps += 1
        self.pictures += len(batch.layouts)
        self.tokens += len(batch.ids)
        self.supervised += batch.supervised
        for term in terms:
            sums = self.sums.setdefault(term.name, [0.0, 0.0, 0.0, 0.0])
            for i, value in enumerate((float(term.total), float(term.count), term.right, term.items)):
                sums[i] += value

    def row(self) -> dict[str, Any]:
        """Loss and accuracy a term (of this worker's samples), throughput of this worker, share of waiting for data."""
        seconds = time.monotonic() - self.began
        row: dict[str, Any] = {}
        for name, (total, count, right, items) in self.sums.items():
            row[f"{name}_loss"] = round(total / max(count, 1.0), 4)
            row[f"{name}_accuracy"] = round(right / max(items, 1.0), 4)
        row["pictures_s"] = round(self.pictures / seconds, 3)
        row["tokens_s"] = round(self.tokens / seconds, 1)
        row["wait"] = round(self.waited / seconds, 3)
        row["step_s"] = round(seconds / max(1, self.steps), 2)
        return row


@torch.no_grad()
def _heldout(run: Run, stage: Stage, done: int) -> dict[str, Any]:
    """Teacher-forced figures on 32 held-out pictures every ``eval_every`` steps; all workers take part."""
    if not stage.eval_every or (done % stage.eval_every and done != stage.steps):
        return {}
    meter = Meter()
    for step in range(max(1, 32 // stage.batch)):
        batch = make_batch(run, stage, step, "heldout")
        meter.add(_terms(run, stage, batch), batch)
    return {f"heldout_{key}": value for key, value in meter.row().items() if key.endswith(("_loss", "_accuracy"))}


def _log(run: Run, stage: Stage, step: int, row: dict[str, Any]) -> None:
    row = {"stage": stage.name, "step": step + 1, "pictures": (step + 1) * stage.batch, **row}
    if run.log is not None:
        run.log.write(json.dumps(row) + "\n")
        run.log.flush()
    if run.world.main:
        run.report(stage, row)


def _save(run: Run, stage: Stage, done: int, optimizer: torch.optim.Optimizer, trainable: dict[str, Any]) -> None:
    """Workers hold the same weights and moments, so the first one saves for all."""
    run.saves += 1
    if run.world.main:
        state = {"stage": stage.name, "step": done, "saves": run.saves, "workers": run.world.size}
        save_checkpoint(run.out / "checkpoints", run.learner, optimizer, trainable, state)
