"""Data made and looked at on a local Ray cluster: the same files as without one, also when something is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import picture
from test_produce import TEXT, digests, small
from test_recipes import RECIPES, stand_in

from pumice.cli import main
from pumice.config import load_recipe
from pumice.data import index
from pumice.data.care import overlap, signatures
from pumice.data.importing import writing
from pumice.data.knowledge import caption
from pumice.data.produce import run
from pumice.data.produce.run import Tally, render_shards
from pumice.types import PumiceError

psutil = pytest.importorskip("psutil")
RAY = ["--engine", "ray", "--workers", "1"]


@pytest.fixture
def told(tmp_path) -> Path:
    """Twelve records with pictures; the last one's is missing, and the third says what the second does."""
    for i in range(11):
        picture(i, (60 + i, 48)).save(tmp_path / f"{i}.png")
    rows = [
        {"id": str(i), "image": f"{i}.png", "conversations": [
            {"from": "human", "value": f"<image>\nWhat lies in place {max(i, 2)} of the shelf?"},
            {"from": "gpt", "value": f"There are {max(i, 2)} boxes, and a letter to a{i}@example.org lies on top."},
        ]}
        for i in range(12)
    ]  # fmt: skip
    rows[2]["image"] = "1.png"
    rows[1]["conversations"] = rows[2]["conversations"]
    path = tmp_path / "told.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def workers() -> list:
    """This cluster's processes that work."""
    return [one for one in psutil.Process().children(recursive=True) if one.name().startswith("ray::_Worker")]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_killed_worker_changes_no_byte_of_a_shard(local_ray, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "CHUNK", 2)
    plan, killed = small(40, per_shard=15, names=("receipts",)), []

    def kill(tally: Tally) -> None:
        if tally.written == 4 and not killed:
            killed.append(workers()[0])
            killed[0].kill()

    tally = render_shards(plan, tmp_path / "ray", 2, progress=kill, where="ray")
    render_shards(plan, tmp_path / "here")
    assert killed
    assert not killed[0].is_running()
    assert (tally.written, sum(count for count, _ in tally.spent.values())) == (40, 40)
    assert len(digests(tmp_path / "here")) == 3
    assert digests(tmp_path / "ray") == digests(tmp_path / "here")


def test_a_stopped_run_goes_on_without_the_cluster(local_ray, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "CHUNK", 4)
    plan = small(24, per_shard=8, names=("receipts",))

    def stop(tally: Tally) -> None:
        if tally.written == 14:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render_shards(plan, tmp_path / "one", 1, progress=stop, where="ray")
    assert not psutil.wait_procs(workers(), 20)[1]  # they are ended
    assert render_shards(plan, tmp_path / "one").found == 8
    render_shards(plan, tmp_path / "two")
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_a_machine_that_draws_otherwise_is_refused(local_ray, tmp_path):
    plan = small(8, names=("receipts",))
    old = replace(plan, made_with={**plan.made_with, "pillow": "1.0"})
    with pytest.raises(PumiceError, match=r"has pillow '[0-9.]+', the run was begun with '1.0'"):
        render_shards(old, tmp_path / "out", 1, where="ray")
    assert digests(tmp_path / "out") == {}


def test_checks_and_copies_are_the_same(local_ray, told, tmp_path, monkeypatch, capsys):
    for module in (signatures, overlap, writing):
        monkeypatch.setattr(module, "PART", 5)
    found = {}
    for name, engine in (("here", ["--workers", "1"]), ("ray", RAY)):
        monkeypatch.setenv("PUMICE_CACHE", str(tmp_path / f"cache-{name}"))
        drop = tmp_path / f"{name}.drop"
        assert (
            main(["data", "check", str(told), "--against", str(told), "--write-clean", str(drop), "--json", *engine])
            == 0
        )
        report = json.loads(capsys.readouterr().out)
        for action in (["clean", "--scrub"], ["filter", "--min-words", "8"]):
            out = ["--out", str(tmp_path / name / action[0]), "--json"]
            assert main(["data", action[0], str(told), *action[1:], *out, *engine]) == 0
            (one,) = json.loads(capsys.readouterr().out).values()
            report[action[0]] = one["counts"]
        found[name] = report, drop.read_bytes(), files(tmp_path / name), files(tmp_path / f"cache-{name}")
    assert found["ray"] == found["here"]
    assert found["ray"][0]["clean"]["replaced: email"] == 11
    assert len(found["ray"][3]) == 9  # three parts of each source's signatures, and of n-grams


def test_an_index_is_the_same(local_ray, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(index, "PART", 2)
    path = RECIPES / "elva-160m.toml"
    given = ["data", "index", str(path), *stand_in(load_recipe(path), tmp_path), "--data", str(tmp_path / "data"),
             "--stage", "instruct", "--json"]  # fmt: skip
    found = []
    for name, engine in (("here", ["--workers", "1"]), ("ray", RAY)):
        monkeypatch.setenv("PUMICE_CACHE", str(tmp_path / f"cache-{name}"))
        assert main([*given, *engine]) == 0
        found.append((json.loads(capsys.readouterr().out), files(tmp_path / f"cache-{name}" / "index")))
    assert found[0] == found[1]
    assert len(found[0][1]) == 3
    assert main([*given, "--engine", "ray", "--workers", "64"]) == 0  # all of it is there: no cluster is asked


def test_captions_are_the_same(local_ray, bases, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(caption, "PART", 3)
    (tmp_path / "pictures").mkdir()
    for i in range(5):
        picture(i, (60 + i, 48)).save(tmp_path / "pictures" / f"{i}.png")
    command = ["data", "caption", str(tmp_path / "pictures"), "--model", str(bases("next")), "--max-tokens", "6",
               "--min-words", "1", "--json", "--out"]  # fmt: skip
    counts = []
    for name, engine in (("here", []), ("ray", RAY)):
        assert main([*command, str(tmp_path / name), *engine]) == 0
        counts.append(json.loads(capsys.readouterr().out)["pictures"]["counts"])
    assert counts[0] == counts[1]
    assert files(tmp_path / "here") == files(tmp_path / "ray")
    assert len((tmp_path / "ray" / "pictures.captions.jsonl").read_text().splitlines()) == 5


def test_too_many_workers_are_one_line(local_ray, told, tmp_path, capsys):
    given = ["data", "filter", str(told), "--out", str(tmp_path / "o"), "--engine", "ray", "--workers", "9"]
    assert main(given) == 2
    assert "Ray: 9 workers; the cluster has 2 cores" in capsys.readouterr().err


@pytest.mark.parametrize("action", ["render receipts --n 3", "clean {told} --scrub", "filter {told}", "check {told}"])
def test_without_ray_the_extra_is_named(action, told, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PUMICE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "ray", None)
    words = ["data", *action.format(told=told).split(), "--engine", "ray"]
    assert main(words if "check" in words else [*words, "--out", str(tmp_path / "o")]) == 2
    error = capsys.readouterr().err
    assert "needs ray: pip install 'pumice[ray]'" in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_a_killed_command_goes_on(local_ray, tmp_path):
    """kill -9 of the command while the cluster stays: its workers end with it."""
    command = [sys.executable, "-m", "pumice.cli", "data", "render", *TEXT, "--n", "260", "--shard-mib", "1", "--out"]
    environment = {**os.environ, "RAY_ADDRESS": local_ray.get_runtime_context().gcs_address}
    out = tmp_path / "ray"
    process = subprocess.Popen([*command, str(out), *RAY], env=environment, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(out.glob("shards/*.tar")):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    had = digests(out)
    subprocess.run([*command, str(out), *RAY], env=environment, check=True, capture_output=True)
    subprocess.run([*command, str(tmp_path / "here"), "--workers", "1"], check=True, capture_output=True)
    assert 0 < len(had) < len(digests(out))
    assert digests(out) == digests(tmp_path / "here")
