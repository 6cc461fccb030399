"""Work spread over a Ray cluster: a process a worker, which makes what it works with once and then takes items.

make ──in each worker──> work        args ──submit──> waiting ──a worker with a free slot──> work(*args) ──> done
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Any

from pumice.ray_workers import Work, join, one_line, shares, spawner
from pumice.types import PumiceError

TRIES = 3
"""How often an item may be with a worker that ends: from the second time on alone, so that the others aren't blamed."""
DEATHS = 10
"""Workers that may end one after the other without a single result; then no more are started."""

Done = Callable[[Any], None]


@dataclass(eq=False)
class _Job:
    args: tuple[Any, ...]
    done: Done
    near: object = None
    deaths: int = 0


@dataclass(eq=False)
class _Seat:
    """A worker. ``alone`` while it has an item that an earlier worker ended with; ``near`` is its last item's."""

    actor: Any
    ready: bool = False
    alone: bool = False
    near: object = None
    running: int = 0


class Workers:
    """``count`` workers on a Ray cluster, each with ``slots`` items at a time. Use it in a ``with`` statement.

    ``make`` is called once in each worker and gives the function that does the work; with several slots that is called
    from several threads. An item whose worker ends (killed, out of memory, its machine lost) is done by another one.
    ``count`` None is a worker for each GPU, or where there are none for each machine; cores are shared out evenly.
    With ``single`` a worker has one core and no GPU, and ``count`` None is a worker for each core.

    Raises:
        PumiceError: Ray isn't installed or can't be reached, the cluster is too small, or what ``make`` raises.
    """

    def __init__(
        self, make: Callable[[], Work], count: int | None = None, slots: int = 1, single: bool = False
    ) -> None:
        self._ray, self._began = join(count)
        try:
            share = shares(self._ray.nodes(), count, single)
        except PumiceError:
            self._leave()
            raise
        self.count, self.slots = share.count, slots
        self._spawn = spawner(self._ray, make, share, slots)
        self._waiting: deque[_Job] = deque()
        self._suspects: deque[_Job] = deque()
        self._deaths = 0
        self._events: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._seats = [_Seat(self._spawn()) for _ in range(self.count)]
        self._thread = Thread(target=self._run, name="ray-workers", daemon=True)
        try:
            self._await_all()
        except BaseException:
            self._end()
            raise
        self._thread.start()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, done: Done, *args: Any, near: object = None) -> None:
        """Have ``work(*args)`` done; ``done`` gets its result, or a PumiceError, from another thread.

        Items that follow each other with an equal ``near`` go to one worker while it has room, so that it may use what
        it has of them. Arguments that are `put` are sent to each machine once.
        """
        job = _Job(args, done, near)
        self._events.put(lambda: self._waiting.append(job))

    def put(self, value: Any) -> Any:
        """What stands for a large value as an argument of `submit`; it lives as long as that is kept.

        Raises:
            PumiceError: it can't be sent.
        """
        try:
            return self._ray.put(value)
        except Exception as error:  # pickling has many
            raise PumiceError(f"Ray: {one_line(error)}") from None

    def map(self, items: Iterable[Any], ordered: bool = True) -> Iterator[tuple[int, Any]]:
        """(number, result or PumiceError) of ``work(item)`` for each item, in their order or as they come.

        Items are taken as results are, so that they may be endless.
        """
        ends: SimpleQueue[tuple[int, Any]] = SimpleQueue()
        held: dict[int, Any] = {}
        left, asked, given, most = iter(items), 0, 0, 2 * self.count * self.slots
        more = True
        while more or given < asked:
            while more and asked - given < most:
                try:
                    item = next(left)
                except StopIteration:
                    more = False
                    break
                self.submit(lambda end, number=asked: ends.put((number, end)), item)
                asked += 1
            if given == asked:
                continue
            number, end = ends.get()
            held[number] = end
            while held and (given in held or not ordered):
                number = given if ordered else next(iter(held))
                yield number, held.pop(number)
                given += 1

    def close(self) -> None:
        """End all workers; items that aren't done are forgotten."""
        if self._thread.is_alive():
            self._events.put(None)
            self._thread.join()
        self._end()

    def _end(self) -> None:
        for seat in self._seats:
            with contextlib.suppress(Exception):  # the cluster may be gone
                self._ray.kill(seat.actor)
        self._seats = []
        self._leave()

    def _leave(self) -> None:
        if self._began:
            self._ray.shutdown()
            self._began = False

    def _await_all(self) -> None:
        for seat in self._seats:
            try:
                error = self._ray.get(seat.actor.fault.remote())
            except self._ray.exceptions.RayError as lost:
                raise PumiceError(f"Ray: a worker ended while it started ({one_line(lost)})") from None
            if error:
                raise PumiceError(error)
            seat.ready = True

    # What follows runs in one thread, so that nothing of it needs a lock.

    def _run(self) -> None:
        while True:
            event = self._events.get()
            if event is None:
                return
            event()
            self._hand_out()

    def _hand_out(self) -> None:
        """Give waiting items to workers with room. Suspects get a worker for themselves."""
        free = [seat for seat in self._seats if seat.ready and not seat.alone]
        for seat in free:
            if self._suspects and not seat.running:
                seat.alone = True
                self._start(seat, self._suspects.popleft())
        while self._waiting:
            room = [seat for seat in free if not seat.alone and seat.running < self.slots]
            if not room:
                return
            job = self._waiting.popleft()
            known = [seat for seat in room if job.near is not None and seat.near == job.near]
            self._start(min(known or room, key=lambda seat: seat.running), job)

    def _start(self, seat: _Seat, job: _Job) -> None:
        seat.near = job.near
        try:
            future = seat.actor.do.remote(*job.args).future()
        except Exception as error:  # arguments that can't be sent
            seat.alone = False
            job.done(PumiceError(f"Ray: {one_line(error)}"))
            return
        seat.running += 1
        future.add_done_callback(lambda done: self._events.put(lambda: self._finish(seat, job, done)))

    def _finish(self, seat: _Seat, job: _Job, future: Any) -> None:
        seat.running -= 1
        seat.alone = False
        error = future.exception()
        if error is None:
            self._deaths = 0
            good, value = future.result()
            job.done(value if good else PumiceError(value))
            return
        if not isinstance(error, self._ray.exceptions.RayActorError):
            job.done(PumiceError(f"Ray: {one_line(error)}"))
            return
        self._replace(seat)
        job.deaths += 1
        if job.deaths >= TRIES:
            job.done(PumiceError(f"its worker ended, {job.deaths} times (out of memory?)"))
        else:
            self._suspects.append(job)
        if self._deaths >= DEATHS:
            self._give_up()

    def _replace(self, seat: _Seat) -> None:
        """A new worker for one that has ended; each of its items tells of that."""
        if seat not in self._seats:
            return
        self._deaths += 1
        new = _Seat(self._spawn())
        self._seats[self._seats.index(seat)] = new
        future = new.actor.fault.remote().future()
        future.add_done_callback(lambda done: self._events.put(lambda: self._welcome(new, done)))

    def _welcome(self, seat: _Seat, future: Any) -> None:
        """A new worker has started, or ended at once, or can't do what the first ones could."""
        if future.exception() is None and not future.result():
            seat.ready = True
        elif self._deaths < DEATHS:
            self._replace(seat)
        else:
            self._give_up()

    def _give_up(self) -> None:
        """Nothing but ended workers: what waits has failed."""
        for job in (*self._suspects, *self._waiting):
            job.done(PumiceError("Ray: workers end again and again; see the logs of its cluster"))
        self._suspects.clear()
        self._waiting.clear()
