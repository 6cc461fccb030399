"""`pumice train`: a recipe's stages one after the other, resumable, on one or several workers.

recipe.toml ──> runs/NAME/ recipe.toml · log.jsonl · checkpoints/ · delta.safetensors (at the end of every stage)
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pumice.config import Recipe, Stage, digest, load_recipe, resolved
from pumice.data.feed import Feed, open_feed
from pumice.encode import Processor
from pumice.formats.own import save_model
from pumice.model.build import auto_dtype, build_model, build_processor, load_tower
from pumice.model.weights import pack_delta, save_delta
from pumice.pocket.parts import cache_dir
from pumice.train.checkpoint import checkpoints, has_low_rank, load_training_state, read_state
from pumice.train.dense import DenseHead
from pumice.train.loop import Run, run_stage
from pumice.train.lora import add_lora, has_lora, lora_pairs
from pumice.train.metrics import Printer
from pumice.train.objectives import Learner
from pumice.train.parallel import World, join_world, leave_world, main_first
from pumice.train.shard import shard
from pumice.train.start import begin_from
from pumice.types import PumiceError


def main(recipe_path: str, overrides: Sequence[str], out: Path, workers: int, data: Path | None = None) -> None:
    """Train a recipe into ``out``, or continue the run that is there. ``data`` is the folder of its sources.

    Raises:
        PumiceError: a faulty recipe, or ``out`` holds a run of another recipe.
    """
    recipe = load_recipe(recipe_path, list(overrides))
    if workers > 1 and "WORLD_SIZE" not in os.environ:
        _spawn(workers)
        return
    # One thread a worker: two single-threaded workers beat one with two threads when the machine is shared.
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // max(1, workers)))
    world = join_world()
    train(recipe, out, world, data_root(data))
    leave_world(world)


def _spawn(workers: int) -> None:
    """Start this same command under torchrun."""
    # fmt: off
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}",
        "-m", "pumice.cli", *sys.argv[1:],
    ]
    # fmt: on
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
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
    return Learner(model, head, build_processor(recipe.model).tokenizer)


def train(recipe: Recipe, out: Path, world: World, data: Path = Path("data")) -> Learner:
    """All stages of a recipe, from wherever ``out`` stands."""
    _claim(recipe, out, world)
    learner = make_learner(recipe, recipe.seed)
    learner.model.to(world.device)
    learner.head.to(world.device)
    stages = {stage.name: stage for stage in recipe.stages}
    found = checkpoints(out / "checkpoints")
    state = read_state(found[-1]) if found else {"stage": recipe.stages[0].name, "step": 0, "saves": 0}
    if state["stage"] not in stages:
        raise PumiceError(f"{found[-1]}: its stage {state['stage']!r} is not in the recipe ({', '.join(stages)})")
    first = list(stages).index(state["stage"])
    if found:
        # A run that began from a delta has low-rank matrices before the stage that trains them.
        _need_lora(recipe, learner, len(recipe.stages) - 1 if has_low_rank(found[-1]) else first)
        load_training_state(found[-1], learner)
    elif recipe.start != "parts":
        _need_lora(recipe, learner, len(recipe.stages) - 1)
        begin_from(recipe.start, learner, recipe.start_modules)
    processor, dtype = build_processor(recipe.model), precision(recipe, world.device)
    if recipe.parallel == "shard" and world.size > 1:
        if any(stage.patience for stage in recipe.stages):
            raise PumiceError("patience keeps the best weights; parallel = shard can't write them between steps")
        for position in range(len(recipe.stages)):
            _need_lora(recipe, learner, position)  # slices are cut once: what trains low-rank must be there
        shard(learner, world, dtype)
    run = Run(learner, processor, recipe.seed, out, world, Printer(out), dtype, saves=state["saves"])
    _stop_on_signals(run)
    view_cost = learner.model.tower.side**2 * _size(learner.model.tower) / _size(learner.model.lm)
    with (out / f"log-{world.rank}.jsonl").open("a") as log:
        run.log = log
        for position, stage in enumerate(recipe.stages[first:], first):
            begin = state["step"] if position == first else 0
            _need_lora(recipe, learner, position)
            feed = open_stage(recipe, stage, processor, data, world, view_cost)

            def keep(position: int = position) -> None:
                if world.main:
                    made = _gathered(recipe, out) if learner.sharded else learner
                    write_weights(recipe, position, made, processor, out)

            run.keep = keep
            if begin < feed.steps:
                run_stage(run, stage, feed, begin, found[-1] if found and begin else None)
            if run.stopped:
                return learner
            if not stage.patience:
                keep()
    return learner


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

    with main_first(world):
        cores = max(1, (os.cpu_count() or 1) // (1 if world.main else world.size))
        told = tell if world.main else None
        return open_feed(recipe, stage, processor, data, cache_dir() / "index", cores, told, view_cost)


def precision(recipe: Recipe, device: torch.device) -> torch.dtype:
    """The dtype of matrix products in training."""
    named = {"fp32": torch.float32, "bf16": torch.bfloat16}
    return named.get(recipe.precision) or auto_dtype(device)


def _need_lora(recipe: Recipe, learner: Learner, position: int) -> None:
    """Insert the low-rank matrices when a stage up to ``position`` asks for them; they stay for later stages."""
    configs = [stage.lora for stage in recipe.stages[: position + 1] if stage.lora is not None]
    if configs and not has_lora(learner.model.lm):
        add_lora(learner.model.lm, configs[-1], recipe.seed)


def _gathered(recipe: Recipe, out: Path) -> Learner:
    """The learner with whole weights, from the checkpoint that a stage ends with."""
    learner = make_learner(recipe, recipe.seed)
    _need_lora(recipe, learner, len(recipe.stages) - 1)
    load_training_state(checkpoints(out / "checkpoints")[-1], learner)
    return learner


def write_weights(recipe: Recipe, position: int, learner: Learner, processor: Processor, out: Path) -> None:
    """What stage ``position`` made, as `pumice.load` takes it: a delta, or where the whole language model trains a
    whole model.
    """
    stages = recipe.stages[: position + 1]
    if any(stage.lr.get("lm") and stage.lora is None for stage in stages):
        scratch = out / "model.new"
        shutil.rmtree(scratch, ignore_errors=True)
        save_model(learner.model, processor, scratch)
        shutil.rmtree(out / "model", ignore_errors=True)
        scratch.rename(out / "model")
        (out / "delta.safetensors").unlink(missing_ok=True)  # of an earlier stage
    else:
        export_delta(recipe, learner, out / "delta.safetensors", stages[-1].name)


def export_delta(recipe: Recipe, learner: Learner, path: Path, note: str) -> None:
    """Write what was trained as a small file that `pumice.load` takes."""
    packed = pack_delta(learner.model, load_tower(recipe.model.tower), lora_pairs(learner.model.lm), learner.head)
    save_delta(packed, path, {"recipe": recipe.name, "digest": digest(recipe), "stage": note})


def _claim(recipe: Recipe, out: Path, world: World) -> None:
    """Write the resolved recipe into a new run folder, or refuse a folder that belongs to another model."""
    if not world.main:
        return
    out.mkdir(parents=True, exist_ok=True)
    path = out / "recipe.toml"
    if path.exists():
        before = load_recipe(path)
        if before.model != recipe.model or before.seed != recipe.seed:
            raise PumiceError(f"{out} holds a run of another model or seed (see {path}); choose another --out")
    path.write_text(resolved(recipe))


def _stop_on_signals(run: Run) -> None:
    """SIGTERM and Ctrl-C end the run after the current step, with a checkpoint."""
    asked: list[int] = []

    def ask(number: int, _: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, ask)
    run.stop = lambda: bool(asked)
