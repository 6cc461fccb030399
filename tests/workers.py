"""Workers of a run as forked processes: modules are loaded once, so that a test starts four of them in a moment.

run(tmp_path, "out", 4, overrides) ──fork, with what torchrun sets──> {(stage, step): loss over all workers}
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from test_recipes import RECIPES

LOADED = [
    "pumice.train.run",
    "pandas",
    "pyarrow.dataset",
    "transformers.models.clip.modeling_clip",
    "transformers.models.llama.modeling_llama",
]
Losses = dict[tuple[str, int], float]


@dataclass(frozen=True)
class Trouble:
    """What befalls the workers: SIGTERM or a disk without room after a step (of all stages), slow flushes, no share."""

    stop_after: int = 0
    full_after: int = 0
    full_worker: int = 0
    flush_seconds: float = 0.0
    apart: bool = False


def start(
    tmp_path: Path, out: str, size: int, overrides: Sequence[str], trouble: Trouble = Trouble()
) -> list[BaseProcess]:
    """Workers that train elva-160m's recipe into tmp_path / out; each loss goes into tmp_path / out.jsonl."""
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = [(rank, size, port, tmp_path, out, list(overrides), trouble) for rank in range(size)]
    processes = [context.Process(target=work, args=arguments) for arguments in given]
    for process in processes:
        process.start()
    return processes


def wait(processes: Sequence[BaseProcess], seconds: float = 120) -> list[int | None]:
    """Exit codes; when one fails the others are killed soon after, as torchrun does."""
    until = time.monotonic() + seconds
    while any(process.exitcode is None for process in processes):
        if any(process.exitcode for process in processes):
            until = min(until, time.monotonic() + 5)
        if time.monotonic() > until:
            kill(processes)
        time.sleep(0.02)
    return [process.exitcode for process in processes]


def kill(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        process.kill()
        process.join()


def run(tmp_path: Path, out: str, size: int, overrides: Sequence[str], trouble: Trouble = Trouble()) -> Losses:
    """Train to the end; the losses so far."""
    codes = wait(start(tmp_path, out, size, overrides, trouble))
    assert codes == [0] * size, error(tmp_path, out)
    return losses(tmp_path, out)


def losses(tmp_path: Path, out: str) -> Losses:
    """Loss over all workers by stage and step; of a step that was done twice the last."""
    rows = [json.loads(line) for line in (tmp_path / f"{out}.jsonl").read_text().splitlines()]
    return {(row["stage"], row["step"]): row["loss"] for row in rows}


def error(tmp_path: Path, out: str, rank: int = 0) -> str:
    """What a worker died of."""
    path = tmp_path / f"{out}-error-{rank}.txt"
    return path.read_text() if path.is_file() else "no error"


def work(rank: int, size: int, port: int, tmp_path: Path, out: str, overrides: list[str], trouble: Trouble) -> None:
    """One worker."""
    import torch

    from pumice.config import load_recipe
    from pumice.train.parallel import join_world, leave_world
    from pumice.train.run import train

    torch.set_num_threads(1)
    settings = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in settings.items()})
    watch(rank, tmp_path / f"{out}.jsonl", trouble)
    try:
        world = join_world()
        recipe = load_recipe(RECIPES / "elva-160m.toml", overrides)
        train(recipe, tmp_path / (f"{out}-{rank}" if trouble.apart else out), world, tmp_path / "data")
        leave_world(world)
    except BaseException as error:
        (tmp_path / f"{out}-error-{rank}.txt").write_text(f"{type(error).__name__}: {error}")
        raise


def watch(rank: int, path: Path, trouble: Trouble) -> None:
    """Write down what each step gives in full precision, and make trouble."""
    import resource

    import torch

    from pumice.train import checkpoint_slices, loop
    from pumice.train.parallel import sum_counts

    steps, flush, train_step = 0, os.fsync, loop.train_step
    zero = torch.zeros((), dtype=torch.float64)

    def watched(run, stage, feed, step, *rest):
        nonlocal steps
        found = train_step(run, stage, feed, step, *rest)
        mine = [sum((getattr(term, what).detach().double() for term in found[0]), zero) for what in ("total", "count")]
        total, count = sum_counts(mine, run.world)
        if rank == 0:
            with path.open("a") as file:
                file.write(json.dumps({"stage": stage.name, "step": step, "loss": total / count}) + "\n")
        steps += 1
        if steps == trouble.stop_after:
            for _ in range(2):  # as a worker gets it from SLURM, and from torchrun, which SLURM has told too
                os.kill(os.getpid(), signal.SIGTERM)
        if steps == trouble.full_after and rank == trouble.full_worker:
            run.saver.wait()  # what was begun before is good
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        return found

    def slow(handle: int) -> None:
        time.sleep(trouble.flush_seconds)
        flush(handle)

    checkpoint_slices.FILE_BYTES = 2**16  # several files a worker
    loop.train_step = watched
    os.fsync = slow
