"""A run that is killed at any moment, inside of a save too, learns what an undisturbed one learns."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from test_recipes import RECIPES, stand_in

from pumice.config import load_recipe
from pumice.formats.shards import read_folder


@pytest.mark.slow
def test_killed_again_and_again_a_run_ends_as_if_nothing_had_been(tmp_path):
    path = RECIPES / "elva-160m.toml"
    overrides = stand_in(load_recipe(path), tmp_path)
    overrides += [f"stages.{s}.{k}" for s in ("align", "instruct") for k in ("batch=1", "warmup=1", "log_every=1")]
    overrides += ["stages.align.data={blip_558k=3}", "stages.instruct.data={mix_665k=3}"]
    overrides += [f"stages.{s}.checkpoint_minutes=0.00001" for s in ("align", "instruct")]  # every step
    command = [sys.executable, "-m", "pumice.cli", "train", str(path), *overrides, "--data", str(tmp_path / "data")]
    subprocess.run([*command, "--out", str(tmp_path / "whole")], check=True, capture_output=True)
    out, rng, kills = tmp_path / "killed", random.Random(3), 0
    command += ["--out", str(out)]
    while True:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        seen = len(list((out / "checkpoints").glob("*"))) if out.is_dir() else 0
        begun = time.monotonic()
        while kills < 3 and process.poll() is None and time.monotonic() - begun < 60:
            if (out / "checkpoints").is_dir() and (any((out / "checkpoints").glob("[a-z]*")) or seen):
                time.sleep(rng.uniform(0.0, 0.4))  # somewhere among the steps and their saves
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.01)
        code = process.wait()
        if code == 0:
            break
        assert code == -signal.SIGKILL, process.stderr.read()[-2000:]  # type: ignore[union-attr]
    assert kills == 3
    wanted, found = (read_folder(tmp_path / run / "model") for run in ("whole", "killed"))
    assert [name for name, value in wanted.items() if not torch.equal(found[name], value)] == []
    steps = {(r["stage"], r["step"]): r["answer_loss"] for r in _rows(out)}
    assert steps == {(r["stage"], r["step"]): r["answer_loss"] for r in _rows(tmp_path / "whole")}


def _rows(out) -> list[dict]:
    found = []
    for line in (out / "log.jsonl").read_text().splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:  # half a row, from a kill
            continue
    return found
