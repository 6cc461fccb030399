"""Sharing weights out: the same losses and weights as whole ones, and checkpoints that any number of workers reads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_recipes import RECIPES, stand_in

from pumice.config import load_recipe
from pumice.train.parallel import World
from pumice.train.run import train

WORKER = """
import json, sys
from pathlib import Path
from pumice.config import load_recipe
from pumice.train.parallel import join_world, leave_world
from pumice.train.run import train
import torch
torch.set_num_threads(1)
world = join_world()
overrides = json.loads(Path(sys.argv[2]).read_text())
train(load_recipe(sys.argv[1], overrides), Path(sys.argv[3]), world, Path(sys.argv[4]))
leave_world(world)
"""


def run(tmp_path: Path, name: str, overrides: list[str], out: str, workers: int) -> list[dict]:
    (tmp_path / "worker.py").write_text(WORKER)
    (tmp_path / "overrides.json").write_text(json.dumps(overrides))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
    given = [
        str(RECIPES / f"{name}.toml"),
        str(tmp_path / "overrides.json"),
        str(tmp_path / out),
        str(tmp_path / "data"),
    ]
    done = subprocess.run([*command, str(tmp_path / "worker.py"), *given], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in (tmp_path / out / "log.jsonl").read_text().splitlines()]


@pytest.fixture
def overrides(tmp_path) -> list[str]:
    """NeXT's recipe over pictures and text alone, four samples a step, so that two workers differ in passes."""
    found = stand_in(load_recipe(RECIPES / "elva-160m.toml"), tmp_path)
    stages = ("align", "instruct")
    found += [f"stages.{stage}.{setting}" for stage in stages for setting in ("batch=3", "log_every=1", "warmup=1")]
    return [*found, "stages.align.lr.tower=1e-3", "stages.instruct.lr.tower=1e-3"]


def weights(tmp_path: Path, out: str) -> dict[str, torch.Tensor]:
    from pumice.formats.shards import read_folder

    return read_folder(tmp_path / out / "model")


def close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.allclose(found[k], wanted[k], atol=3e-5) for k in wanted)


@pytest.mark.slow
def test_shared_out_weights_learn_what_whole_ones_learn(tmp_path, overrides):
    alone = load_recipe(RECIPES / "elva-160m.toml", overrides)
    train(alone, tmp_path / "alone", World(), tmp_path / "data")
    shared = run(tmp_path, "elva-160m", [*overrides, 'parallel="shard"'], "shared", 2)
    rows = [json.loads(line) for line in (tmp_path / "alone" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in shared] == [row["step"] for row in rows]
    for ours, theirs in zip(shared, rows, strict=True):
        assert ours["norm"] == pytest.approx(theirs["norm"], abs=2e-4)  # of all gradients, whoever holds them
    assert close(weights(tmp_path, "shared"), weights(tmp_path, "alone"))


@pytest.mark.slow
def test_a_shared_out_run_goes_on_whole_and_the_other_way_round(tmp_path, overrides):
    """Stage 1 on two workers with slices, stage 2 on one; and the other way round: both are the uninterrupted run."""
    whole = load_recipe(RECIPES / "elva-160m.toml", overrides)
    train(whole, tmp_path / "whole", World(), tmp_path / "data")
    first = [*overrides, "stages.instruct=false"]
    run(tmp_path, "elva-160m", [*first, 'parallel="shard"'], "mixed", 2)
    train(whole, tmp_path / "mixed", World(), tmp_path / "data")
    assert close(weights(tmp_path, "mixed"), weights(tmp_path, "whole"))
    train(load_recipe(RECIPES / "elva-160m.toml", first), tmp_path / "other", World(), tmp_path / "data")
    run(tmp_path, "elva-160m", [*overrides, 'parallel="shard"'], "other", 2)
    assert close(weights(tmp_path, "other"), weights(tmp_path, "whole"))
