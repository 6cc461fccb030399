"""Checkpoints: in the background, shared out, on any number of workers, and whatever happens in between."""

from __future__ import annotations

import re
import shutil
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_recipes import RECIPES, stand_in
from workers import Losses, Trouble, error, kill, run, start, wait

from pumice.config import load_recipe
from pumice.formats.shards import read_folder
from pumice.train import checkpoint
from pumice.train.parallel import World
from pumice.train.saver import Saver
from pumice.types import PumiceError

BACKGROUND = 'save_checkpoints="background"'


def state(step: int) -> dict:
    return {"stage": "answer", "step": step, "saves": step, "workers": 1}


def save(saver: Saver, folder: Path, step: int, value: float | None = None) -> torch.Tensor:
    weight = torch.full((3, 2), float(step) if value is None else value)
    saver.save(folder, World(), {"w": weight, "exp_avg/w": weight / 2, "step/w": torch.tensor(1.0)}, state(step))
    return weight


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("keep", [1, 3])
@pytest.mark.parametrize("background", [False, True])
def test_the_newest_few_are_kept(tmp_path, keep, background):
    saver = Saver(keep, background)
    for step in range(1, 6):
        save(saver, tmp_path, step)
    saver.wait()
    assert names(tmp_path) == [f"answer-{step:08d}" for step in range(6 - keep, 6)]
    assert checkpoint.newest(tmp_path, World()) == tmp_path / "answer-00000005"


@pytest.fixture
def gate(monkeypatch) -> threading.Event:
    """Nothing is written before it is open."""
    gate, clear = threading.Event(), checkpoint.clear
    monkeypatch.setattr(checkpoint, "clear", lambda scratch: (gate.wait(30), clear(scratch)))
    return gate


def test_training_goes_on_while_the_weights_of_the_save_are_written(tmp_path, gate):
    saver = Saver(2, background=True)
    weight = save(saver, tmp_path, 1)
    weight.fill_(9.0)  # the next step
    assert checkpoint.checkpoints(tmp_path) == []
    opener = threading.Timer(0.2, gate.set)
    opener.start()
    save(saver, tmp_path, 2)  # waits for the first
    assert names(tmp_path)[-1] == "answer-00000001"
    saver.wait()
    stored = [load_file(tmp_path / f"answer-0000000{step}" / "model.safetensors")["w"] for step in (1, 2)]
    assert [value.unique().tolist() for value in stored] == [[1.0], [2.0]]


def test_without_a_thread_the_save_is_done_when_it_returns(tmp_path):
    save(Saver(2), tmp_path, 1)
    assert names(tmp_path) == ["answer-00000001"]


def test_an_error_of_the_thread_is_raised_by_what_comes_next(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    saver = Saver(2, background=True)
    save(saver, tmp_path, 1)
    saver.wait()
    good = names(tmp_path)
    monkeypatch.setattr(checkpoint, "save_file", full)
    for raised in (lambda: save(saver, tmp_path, 3), saver.wait):
        save(saver, tmp_path, 2)
        until = time.monotonic() + 30
        while not saver.failed:  # what the loop asks after every step
            assert time.monotonic() < until
            time.sleep(0.01)
        with pytest.raises(PumiceError, match=r"answer-00000002: .*No space left on device.*last good one is kept"):
            raised()
        assert not saver.failed
    assert names(tmp_path) == good


def test_a_checkpoint_with_a_lost_or_broken_file_says_so(tmp_path):
    save(Saver(), tmp_path, 1)
    found = tmp_path / "answer-00000001"
    assert checkpoint.shapes(found) == {"w": (3, 2), "exp_avg/w": (3, 2), "step/w": ()}
    whole = (found / "optimizer.safetensors").read_bytes()
    (found / "optimizer.safetensors").write_bytes(whole[:-1])
    with pytest.raises(PumiceError, match=r"answer-00000001: not readable .*remove it to go on from an older one"):
        checkpoint.shapes(found)
    (found / "optimizer.safetensors").unlink()
    with pytest.raises(PumiceError, match=r"answer-00000001: lacks optimizer\.safetensors; remove it"):
        checkpoint.shapes(found)


# with workers


@dataclass
class Runs:
    """Runs of one recipe beside each other; uninterrupted ones are done once."""

    folder: Path
    overrides: list[str]
    whole: dict[tuple[int, str], Losses] = field(default_factory=dict)

    def undisturbed(self, size: int, kind: str) -> tuple[Losses, dict[str, torch.Tensor]]:
        """(losses, trained weights) of so many workers."""
        name = f"{kind}-{size}"
        if (size, kind) not in self.whole:
            self.whole[size, kind] = run(self.folder, name, size, [*self.overrides, f'parallel="{kind}"'])
        return self.whole[size, kind], self.weights(name)

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return read_folder(self.folder / name / "model")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    """Four steps of three samples, so that of four workers one has none; all modules train."""
    folder = tmp_path_factory.mktemp("runs")
    overrides = stand_in(load_recipe(RECIPES / "elva-160m.toml"), folder)
    settings = ("warmup=1", "lr.tower=1e-3", "data={mix_665k=2}", "checkpoint_minutes=0.00001")  # every step
    return Runs(folder, [*overrides, *(f"stages.instruct.{setting}" for setting in settings), "stages.align=false"])


def same(found: Losses, wanted: Losses, within: float) -> bool:
    return found.keys() == wanted.keys() and all(abs(found[key] - wanted[key]) <= within for key in wanted)


def close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], within: float) -> bool:
    near = (torch.allclose(found[name], wanted[name], rtol=0, atol=within) for name in wanted)
    return found.keys() == wanted.keys() and all(near)


@pytest.mark.slow
def test_one_two_and_four_workers_have_the_same_losses(runs):
    alone, trained = runs.undisturbed(1, "replicate")
    assert len(alone) == 4
    assert alone["instruct", 3] < alone["instruct", 0]
    for size in (2, 4):
        for kind in ("replicate", "shard"):
            found, weights = runs.undisturbed(size, kind)
            assert same(found, alone, 1e-5), (kind, size, found, alone)
            assert close(weights, trained, 3e-5), (kind, size)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_workers_after_every_step(runs):
    given = [*runs.overrides, 'parallel="shard"']
    for size in (4, 2, 1):
        run(runs.folder, "mixed", size, given, Trouble(stop_after=1))
    kept = runs.folder / "mixed" / "checkpoints"
    files = {path.name: [file for file in names(path) if file != "state.json"] for path in kept.iterdir()}
    shards = files["instruct-00000002"]
    assert {name[:11] for name in shards} == {"shard-00001", "shard-00002"}
    assert len(shards) > 4
    assert all(name.endswith(".safetensors") for name in shards)
    assert files["instruct-00000003"] == ["model.safetensors", "optimizer.safetensors"]  # one shares nothing out
    found = run(runs.folder, "mixed", 2, given)
    alone, trained = runs.undisturbed(1, "replicate")
    assert same(found, alone, 1e-5)
    assert close(runs.weights("mixed"), trained, 3e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "kind", "within"), [(1, "replicate", 0.0), (2, "shard", 1e-6)])
def test_killed_inside_of_a_save_in_the_background_a_run_goes_on(runs, size, kind, within):
    whole, trained = runs.undisturbed(size, kind)
    name, given = f"killed-{kind}-{size}", [*runs.overrides, f'parallel="{kind}"', BACKGROUND]
    processes = start(runs.folder, name, size, given, Trouble(flush_seconds=0.3))
    folder, until = runs.folder / name / "checkpoints", time.monotonic() + 60
    while not (checkpoint.checkpoints(folder) and any(folder.glob(".tmp-*/*.safetensors"))):
        assert time.monotonic() < until
        assert all(process.exitcode is None for process in processes)
        time.sleep(0.005)
    kill(processes[::-1])
    assert any(folder.glob(".tmp-*"))  # or it was killed elsewhere
    before = checkpoint.read_state(checkpoint.checkpoints(folder)[-1])["step"]
    assert 0 < before < len(whole)
    assert same(run(runs.folder, name, size, given), whole, within)
    assert not any(folder.glob(".tmp-*"))
    assert close(runs.weights(name), trained, within)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "kind", "within"), [(1, "replicate", 0.0), (2, "shard", 1e-6)])
def test_a_full_disk_keeps_the_last_good_one_and_ends_the_run_with_the_error(runs, size, kind, within):
    name, given = f"full-{kind}-{size}", [*runs.overrides, f'parallel="{kind}"', BACKGROUND]
    codes = wait(start(runs.folder, name, size, given, Trouble(full_after=2, full_worker=size - 1)))
    assert any(codes)
    said = error(runs.folder, name)
    assert "instruct-00000002: checkpoint not written" in said
    assert "File too large" in said  # a limit on its files stands for a disk without room
    assert "the last good one is kept" in said
    if kind == "shard":
        assert "worker 1: " in said
        assert error(runs.folder, name, 1) == said
    assert names(runs.folder / name / "checkpoints") == ["instruct-00000001"]
    assert same(run(runs.folder, name, size, given), runs.undisturbed(size, kind)[0], within)


@pytest.mark.slow
def test_nodes_that_share_no_folder_are_told_so(runs):
    (runs.folder / "slices-1").mkdir()  # a disk of its own
    codes = wait(start(runs.folder, "slices", 2, [*runs.overrides, 'parallel="shard"'], Trouble(apart=True)))
    assert any(codes)
    said = error(runs.folder, "slices")
    assert re.search(r"shard-00002-model-00001-of-\d+\.safetensors of another worker isn't here", said)
    runs.undisturbed(1, "replicate")
    shutil.copytree(runs.folder / "replicate-1", runs.folder / "whole-0")
    codes = wait(start(runs.folder, "whole", 2, runs.overrides, Trouble(apart=True)))
    assert any(codes)
    said = [error(runs.folder, "whole", rank) for rank in (0, 1)]
    assert "worker 0 finds instruct-00000004, others another; expected a folder that all nodes share" in said[0]
    assert "worker 1 finds no checkpoint" in said[1]
