"""`pumice train`: a recipe's stages one after the other, resumable, on one or several workers.

recipe.toml ──> runs/NAME/ recipe.toml · log.jsonl · starts.jsonl · checkpoints/ · what each stage made (product.py)
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from pumice.config import ModelConfig, Recipe, Stage, load_recipe, resolved
from pumice.cores import threads_of, usable_cores
from pumice.data.drawn import check_drawn
from pumice.data.feed import Feed, check_sources, open_feed
from pumice.encode import Processor
from pumice.folder_lock import alone
from pumice.model.build import auto_dtype, build_model, build_processor
from pumice.plan.recipe import sizes_of
from pumice.pocket.parts import cache_dir
from pumice.train.checkpoint import checkpoints, has_low_rank, load_training_state, newest, read_state
from pumice.train.dense import DenseHead
from pumice.train.flops import batch_flops
from pumice.train.loop import Run, run_stage
from pumice.train.lowrank import narrow
from pumice.train.metrics import Cost, peak_flops
from pumice.train.objectives import Learner
from pumice.train.parallel import World, join_world, leave_world, main_first
from pumice.train.product import MODEL, check_product, product, write_weights
from pumice.train.provenance import note
from pumice.train.saver import Saver
from pumice.train.shard import shard
from pumice.train.start import need_lora, prepare
from pumice.train.trackers import open_trackers
from pumice.train.view import Printer, Reports
from pumice.types import PumiceError

AGAIN_SECONDS = 5.0
"""A signal so soon after the first is the same one: terminals and SLURM send it to torchrun and to its workers."""


def main(
    recipe_path: str,
    overrides: Sequence[str],
    out: Path,
    workers: int,
    data: Path | None = None,
    loaders: int | None = None,
    track: Sequence[str] = (),
) -> None:
    """Train a recipe into ``out``, or continue the run that is there. ``data`` is the folder of its sources.

    ``loaders`` processes a worker read ahead; by default as many as `reading_ahead` says. ``track`` names trackers.

    Raises:
        PumiceError: a faulty recipe, another run is writing ``out``, or it holds a run of another model, seed or start,
            or checkpoints without a recipe.
    """
    recipe = load_recipe(recipe_path, list(overrides))
    if workers > 1 and "WORLD_SIZE" not in os.environ:
        _spawn(workers)
        return
    torch.set_num_threads(threads_of(workers))
    world = join_world()
    with alone(out) if world.main else nullcontext():
        train(recipe, out, world, data_root(data), loaders, track)
    leave_world(world)


def _spawn(workers: int) -> None:
    """Start this same command under torchrun."""
    # fmt: off
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}",
        "-m", "pumice.cli", *sys.argv[1:],
    ]
    # fmt: on
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": str(threads_of(workers))})
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())  # or the workers would go on alone
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        code = process.wait()
    if code:
        raise PumiceError(
            f"training stopped with exit code {code}; the same command continues from the last checkpoint"
        )


def make_learner(recipe: Recipe, seed: int) -> Learner:
    """Model, reading head and tokenizer of a recipe, untrained."""
    model = build_model(recipe.model, seed)
    head = DenseHead(model.tower.hidden, model.lm.config.vocab_size)
    with torch.no_grad():
        head.linear.weight.normal_(0.0, 0.02, generator=torch.Generator().manual_seed(seed))
        head.linear.bias.zero_()
    learner = Learner(model, head, build_processor(recipe.model).tokenizer)
    if any(stage.keep_weight for stage in recipe.stages):
        learner.teacher = deepcopy(model.tower).requires_grad_(False).eval()
    return learner


def train(
    recipe: Recipe,
    out: Path,
    world: World,
    data: Path = Path("data"),
    loaders: int | None = None,
    track: Sequence[str] = (),
) -> Learner:
    """All stages of a recipe, from wherever ``out`` stands."""
    check_drawn(recipe)
    _claim(recipe, out, world)
    learner, found, state = _begin(recipe, out, world)
    first = [stage.name for stage in recipe.stages].index(state["stage"])
    check_sources(recipe, recipe.stages[first:], data)
    processor, dtype = build_processor(recipe.model), precision(recipe, world.device)
    if recipe.parallel == "shard" and world.size > 1:
        _share_out(recipe, learner, world, dtype)
    elif world.device.type == "cuda" and _frozen(recipe):
        narrow(learner.model.lm, dtype)
    if recipe.compile:
        learner.model.compile_blocks()
    printer = Printer(out, live=None if world.main else False)  # one bar, however many workers
    reports = Reports(printer, open_trackers(track, out, resolved(recipe)) if world.main else [])
    run = Run(learner, processor, recipe.seed, out, world, reports, dtype, saves=state["saves"], tick=reports.step)
    run.loaders = reading_ahead(world) if loaders is None else loaders
    run.peak, run.cost = peak_flops(world), cost_of(recipe)
    run.saver = Saver(recipe.keep_checkpoints, recipe.save_checkpoints == "background")
    _stop_on_signals(run)
    view_cost = learner.model.tower.side**2 * _size(learner.model.tower) / _size(learner.model.lm)
    with (out / "log.jsonl").open("a") if world.main else nullcontext() as run.log, closing(reports):
        for position, stage in enumerate(recipe.stages[first:], first):
            begin = state["step"] if position == first else 0
            need_lora(recipe, learner, position)
            feed = open_stage(recipe, stage, processor, data, world, view_cost)
            if stage.patience and feed.heldout() is None:
                raise PumiceError(
                    f"stage {stage.name!r}: patience waits for a held-out loss, and no sample is held out"
                )

            def keep(position: int = position) -> None:
                if world.main:
                    made = _gathered(recipe, out) if learner.sharded else learner
                    write_weights(recipe, position, made, processor, out)

            run.keep = keep
            feed.restore(begin, state.get("feed", {}) if begin else {})
            if begin < feed.steps:
                run_stage(run, stage, feed, begin, found if begin else None)
            if run.stopped:
                return learner
            if not stage.patience:
                keep()
    return learner


def _frozen(recipe: Recipe) -> bool:
    """Whether the language model's own weights never train, and aren't what the run writes."""
    low_rank = [stage.lora for stage in recipe.stages if stage.lr.get("lm")]
    return all(config and not config.quantize for config in low_rank) and product(recipe, recipe.stages) != MODEL


def reading_ahead(world: World) -> int:
    """Processes that read ahead for a worker: beside a GPU its share of the cores less its own, up to 16."""
    if world.device.type != "cuda":
        return 0
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(16, usable_cores() // beside - 1))


def _begin(recipe: Recipe, out: Path, world: World) -> tuple[Learner, Path | None, dict[str, Any]]:
    """(the learner as the run in ``out`` has it, that run's newest checkpoint if there is one, its state)."""
    learner = make_learner(recipe, recipe.seed)
    stages = {stage.name: stage for stage in recipe.stages}
    found = newest(out / "checkpoints", world)
    state = read_state(found) if found else {"stage": recipe.stages[0].name, "step": 0, "saves": 0}
    if state["stage"] not in stages:
        raise PumiceError(f"{found}: its stage {state['stage']!r} is not in the recipe ({', '.join(stages)})")
    first = list(stages).index(state["stage"])
    low_rank = found is not None and has_low_rank(found)  # also where slices were cut before the stage that trains it
    prepare(recipe, learner, len(recipe.stages) - 1 if low_rank else first, world.device)
    if found:
        load_training_state(found, learner)
    if world.main:
        check_product(recipe, learner)
    learner.to(world.device)
    return learner, found, state


def _share_out(recipe: Recipe, learner: Learner, world: World, dtype: torch.dtype) -> None:
    """Cut the weights into slices, once all that any stage trains low-rank is in place."""
    if recipe.compile:
        raise PumiceError("compile = true doesn't go with parallel = shard: leave one of them out")
    if any(stage.patience for stage in recipe.stages):
        raise PumiceError("patience keeps the best weights; parallel = shard can't write them between steps")
    for position in range(len(recipe.stages)):
        need_lora(recipe, learner, position)
    shard(learner, world, dtype)


def cost_of(recipe: Recipe) -> Cost:
    """FLOPs of a batch of a stage; 0 where the sizes of the recipe's parts aren't known."""
    try:
        sizes = sizes_of(recipe, recipe.name)
    except PumiceError:
        return lambda stage, batch: 0.0
    layers = recipe.model.tower.layers if isinstance(recipe.model, ModelConfig) else ()
    first = layers[0] if layers else 0
    return lambda stage, batch: batch_flops(sizes, stage, batch, first)


def _size(module: torch.nn.Module) -> int:
    """Weights of a module: each multiplies once a token or patch."""
    return sum(parameter.numel() for parameter in module.parameters())


def data_root(named: Path | None = None) -> Path:
    """The folder that a recipe's sources are relative to: as named, else ``PUMICE_DATA``, else ``data``."""
    return named or Path(os.environ.get("PUMICE_DATA", "data")).expanduser()


def open_stage(
    recipe: Recipe, stage: Stage, processor: Processor, data: Path, world: World, view_cost: float = 0.0
) -> Feed:
    """A stage's feed; the first worker indexes what isn't indexed yet, the others read it from the cache.

    ``view_cost`` is what a view costs in tokens of the language model: workers get shares of nearly equal cost.
    """

    def tell(name: str, done: int, total: int) -> None:
        print(f"{stage.name}: indexing {name} {done}/{total}", flush=True)

    def warn(text: str) -> None:
        if world.main:
            print(f"{stage.name}: {text}; `pumice data index` lists them", file=sys.stderr, flush=True)

    with main_first(world):
        cores = max(1, usable_cores() // (1 if world.main else world.size))
        told = tell if world.main else None
        return open_feed(recipe, stage, processor, data, cache_dir() / "index", cores, told, view_cost, warn)


def precision(recipe: Recipe, device: torch.device) -> torch.dtype:
    """The dtype of matrix products in training."""
    named = {"fp32": torch.float32, "bf16": torch.bfloat16}
    return named.get(recipe.precision) or auto_dtype(device)


def _gathered(recipe: Recipe, out: Path) -> Learner:
    """The learner with whole weights, from the checkpoint that a stage ends with."""
    learner = make_learner(recipe, recipe.seed)
    prepare(recipe, learner, len(recipe.stages) - 1, torch.device("cpu"))
    load_training_state(checkpoints(out / "checkpoints")[-1], learner)
    return learner


def _claim(recipe: Recipe, out: Path, world: World) -> None:
    """Write the resolved recipe into a new run folder, or refuse a folder that belongs to another model."""
    out.mkdir(parents=True, exist_ok=True)  # on every node: each worker has a log there
    if not world.main:
        return
    path = out / "recipe.toml"
    if path.exists():
        before = load_recipe(path)
        same = ("model", "seed", "start", "start_modules", "start_folded")
        other = [name for name in same if getattr(before, name) != getattr(recipe, name)]
        if other:
            raise PumiceError(f"{out} holds a run of another {', '.join(other)} (see {path}); choose another --out")
    elif checkpoints(out / "checkpoints"):
        raise PumiceError(f"{out} holds checkpoints, but no recipe.toml that says what made them; choose another --out")
    path.write_text(resolved(recipe))
    note(out, recipe, world.size)


def _stop_on_signals(run: Run) -> None:
    """SIGTERM and Ctrl-C end the run after the current step, with a checkpoint; once more later, at once."""
    asked: list[float] = []

    def ask(*_: Any) -> None:
        asked.append(time.monotonic())
        if asked[-1] - asked[0] > AGAIN_SECONDS:
            raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, ask)
    run.stop = lambda: bool(asked)
