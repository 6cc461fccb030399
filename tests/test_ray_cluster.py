"""Work on a local Ray cluster: results, errors, workers that are killed, sizes of clusters."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from pumice.ray_cluster import Workers
from pumice.ray_workers import Share, shares
from pumice.types import PumiceError


def machine(cores: int, gpus: int = 0, alive: bool = True) -> dict[str, Any]:
    return {"Alive": alive, "Resources": {"CPU": float(cores), **({"GPU": float(gpus)} if gpus else {})}}


@pytest.mark.parametrize(
    ("nodes", "count", "share"),
    [
        ([machine(8)], None, Share(1, 8)),
        ([machine(8)], 4, Share(4, 2)),
        ([machine(8)], 5, Share(5, 1)),
        ([machine(3), machine(3)], 3, Share(3, 1)),  # of two cores each only two would find a place
        ([machine(16), machine(4)], None, Share(2, 8)),
        ([machine(16), machine(0), machine(4, alive=False)], None, Share(1, 16)),
        ([machine(32, 4), machine(32, 4)], None, Share(8, 8, 1)),
        ([machine(32, 4)], 2, Share(2, 16, 1)),
    ],
)
def test_cores_and_gpus_are_shared_out(nodes, count, share):
    assert shares(nodes, count) == share


def test_workers_of_one_core_each_take_no_gpu():
    nodes = [machine(32, 4), machine(8), machine(4, alive=False)]
    assert shares(nodes, None, single=True) == Share(40, 1)
    assert shares(nodes, 7, single=True) == Share(7, 1)
    with pytest.raises(PumiceError, match="41 workers; the cluster has 40 cores"):
        shares(nodes, 41, single=True)


@pytest.mark.parametrize(
    ("nodes", "count", "words"),
    [
        ([machine(2)], 3, "3 workers; the cluster has 2 cores"),
        ([machine(32, 2)], 3, "3 workers; the cluster has 2 GPUs"),
        ([], None, "1 workers; the cluster has 0 cores"),
    ],
)
def test_a_cluster_that_is_too_small_says_so(nodes, count, words):
    with pytest.raises(PumiceError, match=words):
        shares(nodes, count)


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PumiceError, match=r"needs ray: pip install 'pumice\[ray\]'"):
        Workers(lambda: lambda item: item)


def killer(folder: str, poison: int = -1) -> Any:
    """Work that ends its process at an item: at ``poison`` always, at another one if it is the first to try."""

    def make() -> Any:
        def work(item: int) -> tuple[int, int]:
            first = Path(folder, str(item))
            if item == poison or (item in (5, 11) and not first.exists()):
                first.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.01)
            return item, os.getpid()

        return work

    return make


def test_results_come_in_order_or_as_they_are_made(local_ray):
    def make():
        return lambda item: time.sleep(0.3 if item == 0 else 0) or item * item

    with Workers(make, 2) as workers:
        ordered = list(workers.map(range(12)))
        loose = list(workers.map(iter(range(12)), ordered=False))
        assert list(workers.map([])) == []
        head = list(itertools.islice(workers.map(itertools.count()), 3))  # items needn't end
    assert ordered == [(item, item * item) for item in range(12)]
    assert sorted(loose) == ordered
    assert loose != ordered
    assert head == ordered[:3]
    assert local_ray.is_initialized()  # a cluster that was joined before is left alone


def test_killed_workers_lose_no_item(local_ray, tmp_path):
    with Workers(killer(str(tmp_path)), 2, slots=3) as workers:
        found = list(workers.map(range(20)))
    assert [(number, end[0]) for number, end in found] == [(item, item) for item in range(20)]
    assert len({end[1] for _, end in found}) >= 2  # a worker that is killed early may have ended nothing
    assert {path.name for path in tmp_path.iterdir()} == {"5", "11"}  # both were killed


def test_an_item_that_always_ends_its_worker_fails_alone(local_ray, tmp_path):
    with Workers(killer(str(tmp_path), poison=3), 1, slots=4) as workers:
        found = dict(workers.map(range(8)))
    assert "its worker ended, 3 times" in str(found.pop(3))
    assert {number: end[0] for number, end in found.items()} == {item: item for item in range(8) if item != 3}


def test_workers_that_always_end_are_given_up(local_ray):
    def make():
        return lambda item: os.kill(os.getpid(), signal.SIGKILL)

    with Workers(make, 1) as workers:
        ends = [end for _, end in workers.map(range(6))]
    assert all(isinstance(end, PumiceError) for end in ends)
    assert "again and again" in str(ends[-1])


def test_errors_of_the_work_are_its_items(local_ray):
    def make():
        def work(item):
            if item == 1:
                raise PumiceError("one: expected two")
            return {}[item]

        return work

    with Workers(make, 1) as workers:
        first, second, third = (str(end) for _, end in workers.map([1, 2, (x for x in ())]))
    assert first == "one: expected two"
    assert second == "KeyError: 2"
    assert "generator" in third  # it can't be sent


def test_what_cannot_be_made_is_said_at_once(local_ray):
    def make():
        raise PumiceError("no such model")

    with pytest.raises(PumiceError, match=r"^no such model$"):
        Workers(make, 2)


def test_a_large_argument_is_sent_once(local_ray):
    with Workers(lambda: lambda item, data: (item, len(data)), 1) as workers:
        data, ends = workers.put(b"x" * 3_000_000), []
        for item in range(3):
            workers.submit(ends.append, item, data)
        while len(ends) < 3:
            time.sleep(0.01)
    assert sorted(ends) == [(0, 3_000_000), (1, 3_000_000), (2, 3_000_000)]


@pytest.mark.slow
def test_a_cluster_of_its_own_ends_with_it_and_with_its_owner(tmp_path):
    """Also when the owner is killed: then two agents of Ray's stay until they miss its server, about a minute."""
    psutil = pytest.importorskip("psutil")
    pytest.importorskip("ray")
    script = tmp_path / "own.py"
    script.write_text(
        textwrap.dedent("""
        import os, signal, sys
        import psutil
        from pumice.ray_cluster import Workers

        with Workers(lambda: lambda item: item + 1, 1) as workers:
            assert list(workers.map([1])) == [(0, 2)]
            print(*[child.pid for child in psutil.Process().children(recursive=True)], flush=True)
            if sys.argv[1] == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
        """)
    )
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    for how, code, left in (("ended", 0, 0), ("killed", -signal.SIGKILL, 2)):
        done = subprocess.run(
            [sys.executable, str(script), how], capture_output=True, text=True, env=environment, check=False
        )
        assert done.returncode == code, done.stderr[-2000:]
        pids = [int(pid) for pid in done.stdout.split()]
        assert len(pids) > 2
        deadline = time.monotonic() + 60
        while sum(map(psutil.pid_exists, pids)) > left:
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_one_line(tmp_path):
    pytest.importorskip("ray")
    psutil = pytest.importorskip("psutil")
    if any(process.info["name"] == "gcs_server" for process in psutil.process_iter(["name"])):
        pytest.skip('"auto" would find the cluster that runs on this machine')
    code = "from pumice.ray_cluster import Workers\nWorkers(lambda: print, 1)"
    environment = {**os.environ, "RAY_ADDRESS": "auto", "RAY_TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
    )
    assert "PumiceError: Ray: no cluster at RAY_ADDRESS=auto" in done.stderr
