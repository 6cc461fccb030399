"""Documents to data over a local Ray cluster: the same records, also when workers or the whole run are killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import picture
from read_files import SHORT, make_files, records

from pumice.cli import main

psutil = pytest.importorskip("psutil")
RAY = ["--engine", "ray", "--workers", "2"]


@pytest.fixture(scope="module")
def model(bases) -> str:
    return str(bases("next"))


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """One for all tests: starting it takes seconds."""
    ray = pytest.importorskip("ray")
    ray.init("local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield ray
    ray.shutdown()


def test_a_cluster_makes_the_same_records(model, tmp_path, capsys):
    files = make_files(tmp_path)
    command = ["read", *files, "--ask", str(tmp_path / "questions.txt"), "--model", model, *SHORT, "--evidence",
               "--json", "--out"]  # fmt: skip
    main([*command, str(tmp_path / "own")])
    alone = json.loads(capsys.readouterr().out)
    main([*command, str(tmp_path / "ray"), *RAY])
    spread = json.loads(capsys.readouterr().out)
    found, expected = records(tmp_path / "ray"), records(tmp_path / "own")
    assert [record.get("values") for record in found] == [record.get("values") for record in expected]
    assert [record.get("error") for record in found] == [record.get("error") for record in expected]
    for one, other in zip(found, expected, strict=True):
        assert {k: len(v) for k, v in one.get("evidence", {}).items()} == {
            k: len(v) for k, v in other.get("evidence", {}).items()
        }
        assert one.get("confidence", {}) == pytest.approx(other.get("confidence", {}), abs=1e-3)
    assert (spread["asked"], spread["failed"]) == (alone["asked"], alone["failed"])
    # One journal for both ways: what one has answered, the other takes over.
    (tmp_path / "ray.journal").write_bytes((tmp_path / "own.journal").read_bytes())
    main([*command, str(tmp_path / "ray"), *RAY])
    assert json.loads(capsys.readouterr().out)["found"] == 10
    assert (tmp_path / "ray").read_bytes() == (tmp_path / "own").read_bytes()


def test_a_killed_worker_loses_nothing(model, tmp_path):
    files = []
    for number in range(16):
        files.append(str(tmp_path / f"{number}.png"))
        picture(number, (50 + number, 40)).save(files[-1])
    (tmp_path / "questions.txt").write_text("Which shop?\nWhat day?\n")
    command = ["read", *files, "--ask", str(tmp_path / "questions.txt"), "--model", model, "--max-tokens", "30",
               "--batch", "2", "--out"]  # fmt: skip
    journal, killed = tmp_path / "ray.journal", []

    def kill() -> None:
        """A worker, once some answers are there and many are not."""
        while not journal.exists() or journal.read_bytes().count(b"\n") < 4:
            time.sleep(0.002)
        workers = [one for one in psutil.Process().children(recursive=True) if one.name().startswith("ray::_Worker")]
        workers[0].kill()
        killed.append(journal.read_bytes().count(b"\n"))

    thread = threading.Thread(target=kill)
    thread.start()
    code = main([*command, str(tmp_path / "ray"), *RAY])
    thread.join()
    assert code == main([*command, str(tmp_path / "own")])
    assert killed[0] < 32
    assert len(journal.read_bytes().splitlines()) == 32  # none lost, none doubled
    found, expected = records(tmp_path / "ray"), records(tmp_path / "own")
    assert [record["values"] for record in found] == [record["values"] for record in expected]
    assert [record["file"] for record in found] == files


def test_a_model_that_cannot_be_opened_is_one_line(tmp_path, capsys):
    files = make_files(tmp_path)
    words = ["read", *files, "--ask", str(tmp_path / "questions.txt"), "--model", "no-such-model", *RAY]
    assert main(words) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on(model, tmp_path):
    """kill -9 of the command; the cluster that it started ends with it."""
    files = []
    for number in range(12):
        files.append(str(tmp_path / f"{number}.png"))
        picture(number, (50 + number, 40)).save(files[-1])
    (tmp_path / "questions.txt").write_text("Which shop?\nWhat day?\n")
    command = [sys.executable, "-m", "pumice.cli", "read", *files, "--ask", str(tmp_path / "questions.txt"),
               "--model", model, "--max-tokens", "40", "--batch", "2", "--out", str(tmp_path / "out")]  # fmt: skip
    journal = tmp_path / "out.journal"
    process = subprocess.Popen([*command, "--engine", "ray", "--workers", "1"], stderr=subprocess.DEVNULL)
    while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < 3):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = journal.read_bytes().count(b"\n")
    done = subprocess.run([*command, "--json"], capture_output=True, check=False)
    summary = json.loads(done.stdout)
    assert (summary["found"], summary["asked"]) == (kept, 24 - kept)
    assert [record["file"] for record in records(tmp_path / "out")] == files
