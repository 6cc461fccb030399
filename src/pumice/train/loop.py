"""The training loop: a stage of a recipe, from step to step.

    Feed ──read, pack──> [Batch] ──objective──> terms ──global normaliser──> backward, sum, clip, AdamW

What a step learns is a pure function of the recipe: neither the number of workers, nor how a step is cut into forward
passes, nor an interruption changes it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

import torch

from pumice.config import Stage
from pumice.data.batch import pack
from pumice.data.feed import Feed
from pumice.encode import Processor
from pumice.train.checkpoint import load_optimizer, optimizer_state, save_checkpoint, training_state
from pumice.train.metrics import Meter
from pumice.train.objectives import OBJECTIVES, TERMS, Learner, Term, term_counts
from pumice.train.optim import factor, freeze, make_optimizer, recompute
from pumice.train.parallel import World, any_worker, sum_counts, sum_gradients
from pumice.train.shard import clip_gradients
from pumice.types import IGNORE, Batch, PumiceError


@dataclass
class Run:
    """What all stages of a run share. ``report`` gets each logged row; ``stop`` is asked after every step; ``keep``
    writes the weights away when a stage with ``patience`` has its best.

    Matrix products run in ``dtype`` (autocast); weights, moments and losses stay fp32.
    """

    learner: Learner
    processor: Processor
    seed: int
    out: Path
    world: World
    report: Callable[[Stage, dict[str, Any], int], None]
    dtype: torch.dtype = torch.float32
    saves: int = 0
    log: TextIO | None = None
    stop: Callable[[], bool] = field(default=lambda: False)
    stopped: bool = False
    keep: Callable[[], None] = field(default=lambda: None)


@dataclass
class Watch:
    """The lowest held-out loss so far, kept in a file so that a resumed run knows it."""

    path: Path
    best: float = math.inf
    waited: int = 0

    def __post_init__(self) -> None:
        if self.path.is_file():
            self.best, self.waited = json.loads(self.path.read_text())

    def over(self, loss: float, patience: int, keep: Callable[[], None]) -> bool:
        """Note a loss, keep the weights if it is the lowest; whether ``patience`` evaluations went by without one."""
        self.waited += 1
        if loss < self.best:
            self.best, self.waited = loss, 0
            keep()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps([self.best, self.waited]))
        return self.waited >= patience


def make_batches(run: Run, feed: Feed, step: int) -> list[Batch]:
    """This worker's share of a step, a batch a forward pass."""
    rank, size = run.world.rank, run.world.size
    read = [feed.read(numbers) for numbers in feed.packs(step, rank, size)]
    batches = [pack(documents) for documents in read if documents]
    if run.learner.sharded:
        # Each pass needs all workers: those with fewer make them up with samples that carry no loss.
        most = max(len(feed.packs(step, other, size)) for other in range(size))
        if len(batches) < most:
            numbers = (packs[0][:1] for r in range(size) if (packs := feed.packs(step, r, size)))
            spare = batches[0] if batches else pack(feed.read(next(numbers)))
            idle = replace(spare, labels=torch.full_like(spare.labels, IGNORE), glyphs=((),) * len(spare.layouts))
            batches += [idle] * (most - len(batches))
    return [batch.to(run.learner.device) for batch in batches]


def run_stage(run: Run, stage: Stage, feed: Feed, start: int = 0, checkpoint: Path | None = None) -> None:
    """Train one stage from step ``start``; with ``checkpoint`` the optimiser continues from it.

    Raises:
        PumiceError: the loss is no longer finite (the stage, step and samples are named; that step changes nothing).
    """
    learner = run.learner
    learner.dense_weight, learner.align_weight = stage.dense_weight, stage.align_weight
    trainable = freeze(learner, stage)
    recompute(learner, stage.gradient_checkpointing)
    optimizer = make_optimizer(trainable, stage)
    if checkpoint is not None:
        load_optimizer(checkpoint, optimizer, trainable)
    meter, saved, watch = Meter(), time.monotonic(), Watch(run.out / f"best-{stage.name}.json")
    for step in range(start, feed.steps):
        began = time.monotonic()
        batches = make_batches(run, feed, step)
        meter.waited += time.monotonic() - began
        terms, norm = train_step(run, stage, feed, step, batches, optimizer, trainable)
        meter.add(terms, batches, norm)
        done = step + 1
        figures = _heldout(run, stage, feed, done)
        if done % stage.log_every == 0 or done == feed.steps or figures:
            _log(run, stage, feed, done, meter.row() | figures)
            meter = Meter()
        if stage.patience and figures and watch.over(figures["heldout"], stage.patience, run.keep):
            _save(run, stage, feed.steps, optimizer, trainable)  # as done: the same command doesn't begin it again
            return
        run.stopped = any_worker(run.stop(), run.world)
        if time.monotonic() - saved > stage.checkpoint_minutes * 60 or done == feed.steps or run.stopped:
            saved = time.monotonic()
            _save(run, stage, done, optimizer, trainable)
        if run.stopped:
            return


def train_step(
    run: Run,
    stage: Stage,
    feed: Feed,
    step: int,
    batches: Sequence[Batch],
    optimizer: torch.optim.Optimizer,
    trainable: dict[str, Any],
) -> tuple[list[Term], float]:
    """Forward, backward and update; (this worker's terms with their totals detached, the gradient's norm)."""
    parameters = list(trainable.values())
    done: list[Term] = []
    # The normaliser counts all workers and passes. A single pass tells its own counts; several are counted beforehand.
    first = _terms(run, stage, batches[0]) if len(batches) == 1 else None
    counted = [first] if first is not None else [term_counts(run.learner, stage.objective, b) for b in batches]
    counts = dict(zip(TERMS, sum_counts([_sum(counted, name) for name in TERMS], run.world), strict=True))
    for batch in batches:
        terms = first if first is not None else _terms(run, stage, batch)
        loss = torch.stack([term.weight * term.total / max(counts[term.name], 1.0) for term in terms]).sum()
        if not math.isfinite(loss.item()):
            raise _not_finite(run, stage, feed, step, loss.item())
        loss.backward()
        for term in terms:
            term.total = term.total.detach()
        done += terms
    sum_gradients(parameters, run.world)
    norm = clip_gradients(parameters, stage.clip, run.world)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor(stage, step, feed.steps)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return done, norm


def _sum(counted: Sequence[Sequence[Term]], name: str) -> torch.Tensor:
    """The count of the terms of a name over this worker's passes."""
    found = [term.count.detach().double().cpu() for terms in counted for term in terms if term.name == name]
    return torch.stack(found).sum() if found else torch.zeros((), dtype=torch.float64)


def _not_finite(run: Run, stage: Stage, feed: Feed, step: int, loss: float) -> PumiceError:
    """The error of a loss that isn't finite; the names of the step's samples are also written into the run's folder."""
    packs = feed.packs(step, run.world.rank, run.world.size)
    names = [feed.name(number) for numbers in packs for number in numbers]
    path = run.out / f"not-finite-{run.world.rank}.txt"
    run.out.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(names) + "\n", encoding="utf-8")
    shown = f"{names[0]} to {names[-1]}" if len(names) > 1 else names[0]
    return PumiceError(
        f"stage {stage.name!r}, step {step}: the loss is {loss} on worker {run.world.rank}, among samples {shown} (all "
        f"in {path}); this step changed nothing, and the last checkpoint is good: lower the learning rate, or look at "
        "these samples"
    )


def _terms(run: Run, stage: Stage, batch: Batch) -> list[Term]:
    """The objective's terms, with matrix products in the run's dtype."""
    with torch.autocast(run.learner.device.type, run.dtype, enabled=run.dtype != torch.float32):
        return OBJECTIVES[stage.objective](run.learner, batch)


@torch.no_grad()
def _heldout(run: Run, stage: Stage, feed: Feed, done: int) -> dict[str, Any]:
    """Teacher-forced figures on held-out samples every ``eval_every`` steps; all workers take part.

    The loss that ``patience`` looks at is that of all workers; the other figures are this worker's.
    """
    held = feed.heldout()
    if held is None or not stage.eval_every or (done % stage.eval_every and done != feed.steps):
        return {}
    meter = Meter()
    for step in range(held.steps):
        for batch in make_batches(run, held, step):
            meter.add(_terms(run, stage, batch), [batch])
    sums = meter.sums.get(stage.objective, [0.0, 0.0])
    total, count = sum_counts([torch.tensor(sums[0]), torch.tensor(sums[1])], run.world)
    figures = {f"heldout_{key}": value for key, value in meter.row().items() if key.endswith(("_loss", "_accuracy"))}
    return figures | {"heldout": round(total / max(count, 1.0), 5)}


def _log(run: Run, stage: Stage, feed: Feed, done: int, row: dict[str, Any]) -> None:
    row = {"stage": stage.name, "step": done, "pictures": feed.seen(done), **row}
    if feed.skipped:
        row["skipped"] = len(feed.skipped)
        path = run.out / f"skipped-{run.world.rank}.txt"
        path.write_text("\n".join(f"{stage.name}: {text}" for text in feed.skipped) + "\n", encoding="utf-8")
    if run.log is not None:
        run.log.write(json.dumps(row) + "\n")
        run.log.flush()
    if run.world.main:
        run.report(stage, row, feed.steps)


def _save(run: Run, stage: Stage, done: int, optimizer: torch.optim.Optimizer, trainable: dict[str, Any]) -> None:
    """Workers hold the same weights and moments, so the first one saves for all."""
    run.saves += 1
    state = {"stage": stage.name, "step": done, "saves": run.saves, "workers": run.world.size}
    tensors = training_state(run.learner), optimizer_state(optimizer, trainable)  # of slices: all workers gather
    if run.world.main:
        save_checkpoint(run.out / "checkpoints", *tensors, state)
