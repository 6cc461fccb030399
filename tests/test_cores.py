"""How many threads a worker gets."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pumice.cores import threads_of, usable_cores


def test_a_process_counts_the_cores_that_it_may_run_on():
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("no affinity here")
    first = min(os.sched_getaffinity(0))
    code = (
        f"import os; os.sched_setaffinity(0, {{{first}}}); from pumice.cores import usable_cores; print(usable_cores())"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "1\n"


@pytest.mark.parametrize(
    ("named", "workers", "threads"), [("3", 1, 3), ("3", 2, 3), ("", 1, 8), ("0", 3, 2), ("x", 99, 1)]
)
def test_threads_are_what_the_user_says_or_a_share_of_the_cores(monkeypatch, named, workers, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", named)
    monkeypatch.setattr("pumice.cores.usable_cores", lambda: 8)
    assert threads_of(workers) == threads
    assert usable_cores() >= 1
