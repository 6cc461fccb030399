"""Items worked on by processes here, or by the workers of a Ray cluster.

    make ──once in each process──> work        items ──whoever is free──> work(item) ──> (number, result)

What is made once is what all items share: a source, a plan, a tokenizer. A cluster's workers are kept for one piece of
work after the other.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pumice.types import PumiceError

if TYPE_CHECKING:
    from pumice.ray_cluster import Workers

Item = TypeVar("Item")
Result = TypeVar("Result")
Make = Callable[[], Callable[[Item], Result]]
"""Gives the function that does the work; it may raise a PumiceError."""

AHEAD = 3
"""Items a process that are handed out or wait to be taken: of large results no more lie in memory."""


class RayPool:
    """``count`` workers of a Ray cluster, or one for each of its cores. They start with the first items that there are
    and end with the ``with`` statement that this is used in. A worker that dies is replaced, and its item done again.
    """

    def __init__(self, count: int | None = None) -> None:
        self.count = count
        self._workers: Workers | None = None

    def __enter__(self) -> RayPool:
        return self

    def __exit__(self, *_: object) -> None:
        if self._workers is not None:
            self._workers.close()
            self._workers = None

    def map(self, make: Make[Item, Result], items: Sequence[Item], ordered: bool) -> Iterator[tuple[int, Result]]:
        """As `map_over`.

        Raises:
            PumiceError: no Ray, no cluster, one that is too small, or what the work raises.
        """
        if not items:
            return
        if self._workers is None:
            from pumice.ray_cluster import Workers

            self._workers = Workers(_Bench, self.count, single=True)
        made = self._workers.put(make)
        for number, end in self._workers.map(((made, item) for item in items), ordered):
            if isinstance(end, PumiceError):
                raise end
            yield number, end


class _Bench:
    """What a worker of a cluster has at hand: what the items of the current work share."""

    def __init__(self) -> None:
        self._made: Any = None
        self._work: Any = None

    def __call__(self, job: tuple[Any, Any]) -> Any:
        made, item = job
        if self._made is None or made != self._made:
            import ray

            make: Any = ray.get(made)
            self._work, self._made = make(), made
        return self._work(item)


Where = Literal["here", "ray"] | RayPool
"""Processes here, a cluster's for this one piece of work, or those of a pool."""


def map_over(
    make: Make[Item, Result],
    items: Sequence[Item],
    workers: int = 1,
    where: Where = "here",
    *,
    ordered: bool = False,
    fresh: bool = False,
) -> Iterator[tuple[int, Result]]:
    """(number, result) of every item, as they come or in their order. With "ray", 0 workers are one a core.

    Processes here are forks where the system has these, so that nothing is copied; ``fresh`` ones share nothing with
    this process, whose threads or browser a fork would break, and ``make`` must be picklable.

    Raises:
        PumiceError: what the work raises, a process here that died, or as `RayPool.map`.
    """
    if isinstance(where, RayPool):
        yield from where.map(make, items, ordered)
    elif where == "ray":
        with RayPool(workers or None) as pool:
            yield from pool.map(make, items, ordered)
    elif min(workers, len(items)) > 1:
        yield from _in_processes(make, items, min(workers, len(items)), ordered, "spawn" if fresh else None)
    elif items:
        work = make()
        yield from ((number, work(item)) for number, item in enumerate(items))


def _in_processes(
    make: Make[Item, Result], items: Sequence[Item], workers: int, ordered: bool, start: str | None
) -> Iterator[tuple[int, Result]]:
    context = multiprocessing.get_context(start)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_hold, initargs=(make,))
    going: dict[Future[Result], int] = {}
    try:
        for number, item in enumerate(items):
            going[pool.submit(_held_work, item)] = number
            if len(going) > AHEAD * workers:
                yield _taken(going, ordered)
        while going:
            yield _taken(going, ordered)
    except BrokenProcessPool:
        raise PumiceError(
            "a process died, of too little memory perhaps; the same command goes on (--workers fewer)"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _taken(going: dict[Future[Result], int], ordered: bool) -> tuple[int, Result]:
    """The first of those that go on, or the first to be done."""
    done = next(iter(going if ordered else wait(going, return_when=FIRST_COMPLETED).done))
    return going.pop(done), done.result()


_make: Make[Any, Any] | None = None
_work: Callable[[Any], Any] | None = None
"""What this process does, if it is one of several."""


def _hold(make: Make[Any, Any]) -> None:
    global _make
    _make = make


def _held_work(item: Any) -> Any:
    global _work
    if _work is None:  # not made by `_hold`, whose errors a pool takes for deaths
        assert _make is not None
        _work = _make()
    return _work(item)
