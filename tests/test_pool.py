"""Items worked on by several processes: in order or as they come, lazily, and a death is an error of one line."""

from __future__ import annotations

import os
import time
from functools import partial

import pytest

from pumice.data.pool import AHEAD, map_over
from pumice.types import PumiceError


def made(base: int):
    """Work that adds; item 0 takes longest, 50 is a mistake, 60 ends its process. Nothing adds to less than 0."""
    if base < 0:
        raise PumiceError(f"{base}: expected 0 or more")

    def work(item: int) -> tuple[int, int]:
        if item == 50:
            raise PumiceError("50: expected less")
        if item == 60:
            os._exit(9)
        time.sleep(0.5 if item == 0 else 0)
        return base + item, os.getpid()

    return work


@pytest.mark.parametrize("fresh", [False, True])
def test_several_processes_do_each_item_once(fresh):
    found = list(map_over(partial(made, 10), range(8), 2, ordered=True, fresh=fresh))
    assert [(number, sum_) for number, (sum_, _) in found] == [(i, 10 + i) for i in range(8)]
    pids = {pid for _, (_, pid) in found}
    assert len(pids) == 2
    assert os.getpid() not in pids


def test_without_an_order_nobody_waits_for_the_slowest():
    loose = [number for number, _ in map_over(partial(made, 0), range(8), 2)]
    assert sorted(loose) == list(range(8))
    assert loose[0] != 0


def test_items_are_handed_out_as_results_are_taken():
    taken: list[int] = []

    class Items(list):
        def __iter__(self):
            for item in list.__iter__(self):
                taken.append(item)
                yield item

    results = map_over(partial(made, 0), Items(range(1, 40)), 2, ordered=True)
    next(results)
    assert len(taken) == 2 * AHEAD + 1
    results.close()  # type: ignore[attr-defined]


def test_one_process_is_this_one():
    assert list(map_over(partial(made, 1), [3], 4)) == [(0, (4, os.getpid()))]
    assert list(map_over(partial(made, 1), [], 4)) == []


def test_what_goes_wrong_is_one_line():
    with pytest.raises(PumiceError, match=r"^50: expected less$"):
        list(map_over(partial(made, 0), [1, 50, 2], 2))
    with pytest.raises(PumiceError, match=r"^-1: expected 0 or more$"):
        list(map_over(partial(made, -1), [1, 2], 2))
    with pytest.raises(PumiceError, match="a process died, of too little memory perhaps; the same command goes on"):
        list(map_over(partial(made, 0), [1, 60, 2], 2))
