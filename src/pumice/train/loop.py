"""The training loop: a stage of a recipe, from step to step.

    Feed ──read, pack──> [Batch] ──objective──> terms ──global normaliser──> backward, sum, clip, AdamW

What a step learns is a pure function of the recipe: neither the number of workers, nor how a step is cut into forward
passes, nor an interruption changes it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch

from pumice.config import Stage
from pumice.data.feed import Feed
from pumice.data.loading import steps_of
from pumice.data.parts import plain
from pumice.encode import Processor
from pumice.train.checkpoint import load_optimizer, optimizer_state, read_state, training_state
from pumice.train.metrics import Cost, Meter, peak_memory
from pumice.train.objectives import OBJECTIVES, TERMS, Learner, Term, term_counts
from pumice.train.optim import Optimizer, average, averaged, factor, freeze, make_optimizer, recompute, swap_averages
from pumice.train.parallel import World, any_worker, gather, sum_counts, sum_gradients
from pumice.train.saver import Saver
from pumice.train.shard import clip_gradients
from pumice.types import Batch, PumiceError


@dataclass
class Run:
    """What all stages of a run share. ``report`` gets each logged row; ``stop`` is asked after every step; ``keep``
    writes the weights away when a stage with ``patience`` has its best.

    Matrix products run in ``dtype`` (autocast); weights, moments and losses stay fp32. ``loaders`` processes read
    ahead. ``cost`` are FLOPs, ``peak`` those that all devices can do in a second, ``tick`` is told of every step.
    """

    learner: Learner
    processor: Processor
    seed: int
    out: Path
    world: World
    report: Callable[[Stage, dict[str, Any], int], None]
    dtype: torch.dtype = torch.float32
    loaders: int = 0
    peak: float = 0.0
    cost: Cost = field(default=lambda stage, batch: 0.0)
    tick: Callable[[Stage, int, int], None] = field(default=lambda stage, done, steps: None)
    saves: int = 0
    saver: Saver = field(default_factory=Saver)
    log: TextIO | None = None
    stop: Callable[[], bool] = field(default=lambda: False)
    stopped: bool = False
    keep: Callable[[], None] = field(default=lambda: None)


@dataclass
class Watch:
    """What checkpoints say of a stage beside weights and moments: its lowest held-out loss, the evaluations since, and
    how many samples were ``skipped`` and ``unusable`` before this process began.
    """

    best: float | None = None
    waited: int = 0
    skipped: int = 0
    unusable: int = 0

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Watch:
        """Go on from a checkpoint's state."""
        return cls(**{key: state[key] for key in vars(cls()) if key in state})

    def left_out(self, feed: Feed, world: World) -> dict[str, int]:
        """Samples left out since the stage began, of all workers, who must all ask."""
        skipped = self.skipped + sum(gather(len(feed.skipped), world))
        return {"skipped": skipped, "unusable": self.unusable + len(feed.unusable)}

    def over(self, loss: float, patience: int, keep: Callable[[], None]) -> bool:
        """Note a loss, keep the weights if it is the lowest; whether ``patience`` evaluations went by without one."""
        self.waited += 1
        if self.best is None or loss < self.best:
            self.best, self.waited = loss, 0
            keep()
        return self.waited >= patience


def batches_of(run: Run, stage: Stage, feed: Feed, steps: range, loaders: int = 0) -> Iterator[list[Batch]]:
    """This worker's share of each step, a batch a forward pass, with its targets and where the learner is."""
    world, learner = run.world, run.learner
    label = learner.labeller(stage.objective).label
    for batches in steps_of(feed, steps, world.rank, world.size, learner.sharded, loaders, label):
        yield [batch.to(learner.device) for batch in batches]


def run_stage(run: Run, stage: Stage, feed: Feed, start: int = 0, checkpoint: Path | None = None) -> None:
    """Train one stage from step ``start``; with ``checkpoint`` the optimiser continues from it.

    Raises:
        PumiceError: the loss is no longer finite (the stage, step and samples are named; that step changes nothing).
    """
    learner = run.learner
    learner.dense_weight, learner.align_weight = stage.dense_weight, stage.align_weight
    learner.keep_weight = stage.keep_weight
    trainable = freeze(learner, stage)
    recompute(learner, stage.gradient_checkpointing)
    optimizer = make_optimizer(trainable, stage)
    watch = Watch()
    if checkpoint is not None:
        watch = _go_on(stage, checkpoint, optimizer, trainable)
    meter, saved = Meter(), time.monotonic()
    reading = batches_of(run, stage, feed, range(start, feed.steps), run.loaders)
    for step in range(start, feed.steps):
        began = time.monotonic()
        batches = next(reading)
        meter.waited += time.monotonic() - began
        terms, norm, norms = train_step(run, stage, feed, step, batches, optimizer, trainable)
        meter.step(norm, norms)
        meter.add(terms, batches, sum(run.cost(stage, batch) for batch in batches))
        done = step + 1
        if stage.ema:
            average(optimizer, stage.ema)
            if done == feed.steps:  # what the last checkpoint holds, and what the next stage begins with
                swap_averages(optimizer)
        figures, over = _measure(run, stage, feed, done, optimizer, watch)
        if done % stage.log_every == 0 or done == feed.steps or figures:
            _log(run, stage, feed, done, meter, figures, watch)
            meter = Meter()
        run.tick(stage, done, feed.steps)
        if over:
            if stage.ema and done < feed.steps:
                swap_averages(optimizer)
            _save(run, stage, feed, feed.steps, optimizer, trainable, watch)  # as done, or the same command began again
            run.saver.wait()
            return
        run.stopped = any_worker(run.stop(), run.world)
        due = run.saver.failed or time.monotonic() - saved > stage.checkpoint_minutes * 60
        if any_worker(due, run.world) or done == feed.steps or run.stopped:
            saved = time.monotonic()
            _save(run, stage, feed, done, optimizer, trainable, watch)
        if run.stopped or done == feed.steps:
            run.saver.wait()
            return


def _go_on(stage: Stage, checkpoint: Path, optimizer: Optimizer, trainable: dict[str, Any]) -> Watch:
    """Restore the optimiser, and what is known of the stage.

    Raises:
        PumiceError: the checkpoint is another optimiser's, or can't be read.
    """
    state = read_state(checkpoint)
    before = state.get("optimizer", stage.optimizer)
    if before != stage.optimizer:
        raise PumiceError(
            f"{checkpoint}: made with optimizer = {before}, whose moments mean nothing to {stage.optimizer}; go on "
            "with the former, or choose another --out"
        )
    load_optimizer(checkpoint, optimizer, trainable)
    if state.get("averaged"):  # the stage had ended, and goes on for longer
        swap_averages(optimizer)
    return Watch.of(state)


def train_step(
    run: Run,
    stage: Stage,
    feed: Feed,
    step: int,
    batches: Sequence[Batch],
    optimizer: Optimizer,
    trainable: dict[str, Any],
) -> tuple[list[Term], float, dict[str, float]]:
    """Forward, backward and update.

    Returns this worker's terms with their totals detached, the gradient's norm before clipping, and each module's.
    """
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
            raise _not_finite(run, stage, feed, step, f"the loss is {loss.item()}")
        loss.backward()
        for term in terms:
            term.total = term.total.detach()
        done += terms
    sum_gradients(parameters, run.world)
    norm, norms = clip_gradients(trainable, stage.clip, run.world)
    if not math.isfinite(norm):
        raise _not_finite(run, stage, feed, step, f"the gradient's norm is {norm}")
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor(stage, step, feed.steps)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return done, norm, norms


def _sum(counted: Sequence[Sequence[Term]], name: str) -> torch.Tensor:
    """The count of the terms of a name over this worker's passes."""
    found = [term.count.detach().double().cpu() for terms in counted for term in terms if term.name == name]
    return torch.stack(found).sum() if found else torch.zeros((), dtype=torch.float64)


def _not_finite(run: Run, stage: Stage, feed: Feed, step: int, what: str) -> PumiceError:
    """The error of a step that isn't finite; the names of its samples are also written into the run's folder."""
    packs = feed.packs(step, run.world.rank, run.world.size)
    names = [feed.name(number) for numbers in packs for number in numbers]
    path = run.out / f"not-finite-{run.world.rank}.txt"
    run.out.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(names) + "\n", encoding="utf-8")
    shown = f"{names[0]} to {names[-1]}" if len(names) > 1 else "".join(names) or "of other workers"
    return PumiceError(
        f"stage {stage.name!r}, step {step}: {what} on worker {run.world.rank}, among samples {shown} (all "
        f"in {path}); this step changed nothing, and the last checkpoint is good: lower the learning rate, or look at "
        "these samples"
    )


def _terms(run: Run, stage: Stage, batch: Batch) -> list[Term]:
    """The objective's terms, with matrix products in the run's dtype."""
    with torch.autocast(run.learner.device.type, run.dtype, enabled=run.dtype != torch.float32):
        return OBJECTIVES[stage.objective](run.learner, batch)


def _measure(
    run: Run, stage: Stage, feed: Feed, done: int, optimizer: Optimizer, watch: Watch
) -> tuple[dict[str, Any], bool]:
    """(held-out figures, of the averages where the stage keeps them; whether its patience is over), where they are due.

    All workers take part.
    """
    due = stage.eval_every and (done % stage.eval_every == 0 or done == feed.steps)
    held = feed.heldout() if due else None
    if held is None:
        return {}, False
    with averaged(optimizer) if stage.ema and done < feed.steps else nullcontext():
        figures = _heldout(run, stage, held)
        if skipped := sum(gather(len(held.skipped), run.world)):
            figures["heldout_skipped"] = skipped
            _list(
                run.out / f"skipped-{run.world.rank}.txt", [f"{stage.name}, held out: {text}" for text in held.skipped]
            )
        return figures, bool(stage.patience) and watch.over(figures["heldout"], stage.patience, run.keep)


@torch.no_grad()
def _heldout(run: Run, stage: Stage, held: Feed) -> dict[str, Any]:
    """Teacher-forced figures on held-out samples."""
    meter = Meter()
    for batches in batches_of(run, stage, held, range(held.steps)):
        for batch in batches:
            meter.add(_terms(run, stage, batch), [batch])
    meter = meter.merge(run.world)
    figures = {f"heldout_{key}": value for key, value in meter.losses().items()}
    return figures | {"heldout": round(meter.loss(stage.objective), 5)}


def _log(run: Run, stage: Stage, feed: Feed, done: int, meter: Meter, figures: dict[str, Any], watch: Watch) -> None:
    """A row of the log, with the figures of all workers: the first one writes it and shows it."""
    row = {"stage": stage.name, "step": done, "pictures": feed.seen(done)}
    row |= meter.merge(run.world).row(run.peak) | {"memory_gib": peak_memory(run.world)} | figures
    row["lr"] = round(factor(stage, done - 1, feed.steps), 5)
    row |= {what: count for what, count in watch.left_out(feed, run.world).items() if count}
    _list(run.out / f"skipped-{run.world.rank}.txt", [f"{stage.name}: {text}" for text in feed.skipped])
    _list(run.out / f"unusable-{stage.name}.txt", feed.unusable if run.world.main else [])
    if run.log is not None:
        run.log.write(json.dumps(row) + "\n")
        run.log.flush()
    if run.world.main:
        run.report(stage, row, feed.steps)


def _list(path: Path, lines: Sequence[str]) -> None:
    """Add what was left out to a file, each once: a run that goes on passes some steps again."""
    if not lines:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    known = set(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else set()
    new = dict.fromkeys(line for line in map(plain, lines) if line not in known)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in new)


def _save(
    run: Run, stage: Stage, feed: Feed, done: int, optimizer: Optimizer, trainable: dict[str, Any], watch: Watch
) -> None:
    """Begin a checkpoint, all workers together; where the one before it failed, its error is raised."""
    run.saves += 1
    state = {"stage": stage.name, "step": done, "saves": run.saves, "workers": run.world.size}
    state |= {"optimizer": stage.optimizer, "averaged": stage.ema > 0 and done == feed.steps}
    state |= vars(watch) | watch.left_out(feed, run.world)
    state |= {"feed": kept} if (kept := feed.state(done)) else {}
    tensors = training_state(run.learner) | optimizer_state(optimizer, trainable)
    run.saver.save(run.out / "checkpoints", run.world, tensors, state)
