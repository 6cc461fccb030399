"""One writer to a folder: who comes second is told, and a lock doesn't outlive its process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_recipes import RECIPES, stand_in

from pumice.config import load_recipe
from pumice.folder_lock import alone
from pumice.train import run
from pumice.types import PumiceError

HOLD = """
import pathlib, sys
from pumice.folder_lock import alone
with alone(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    input()
"""


@contextmanager
def held(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process holds the folder."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_second_is_told_until_the_first_is_gone(tmp_path):
    with held(tmp_path / "out") as other:
        with pytest.raises(PumiceError, match="out: another run is writing it; wait for its end or choose another"):
            alone(tmp_path / "out").__enter__()
        other.send_signal(signal.SIGKILL)
        other.wait()
        with alone(tmp_path / "out"):
            pass


def test_a_forked_process_does_not_keep_the_lock(tmp_path):
    """A loader that outlives a killed run must not keep its folder."""
    forked = multiprocessing.get_context("fork")
    wait = forked.Event()
    with alone(tmp_path):
        child = forked.Process(target=wait.wait)
        child.start()
    try:
        with held(tmp_path):  # the child lives, and has the file open
            assert child.is_alive()
    finally:
        wait.set()
        child.join()


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(PumiceError, match="can't be written"):
        alone(tmp_path / "file" / "out").__enter__()


def test_two_trainings_do_not_write_one_folder(tmp_path):
    recipe = str(RECIPES / "elva-160m.toml")
    overrides = [*stand_in(load_recipe(recipe), tmp_path), "stages.align=false"]
    with held(tmp_path / "run"), pytest.raises(PumiceError, match="another run is writing it"):
        run.main(recipe, overrides, tmp_path / "run", 1, tmp_path / "data")
    assert os.listdir(tmp_path / "run") == [".lock"]  # noqa: PTH208
    run.main(recipe, overrides, tmp_path / "run", 1, tmp_path / "data")
    assert (tmp_path / "run" / "model").is_dir()
