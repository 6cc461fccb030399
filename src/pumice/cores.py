"""How many cores this process may use."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Cores that the process may run on, at least one: a container or ``taskset`` may leave it fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_of(workers: int) -> int:
    """Threads for each of some workers: as OMP_NUM_THREADS says, or else their share of the cores.

    More threads than cores are free wait for each other in nearly every operation, which takes many times as long as
    one thread: who shares a machine says how many are left for this.
    """
    named = os.environ.get("OMP_NUM_THREADS", "")
    return int(named) if named.isdigit() and int(named) else max(1, usable_cores() // max(1, workers))
