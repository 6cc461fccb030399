"""Processes that open strangers' files, from the server's side.

    bytes ──open──> [Media]      Media ──tiles──> (N, 3, S, S)      page ──preview──> a small picture
    picture, page ──lines──> [(box, text)]

Each task has its time, after which its process is killed; a process that dies fails its own task alone, and a new one
takes its place. They are forked from one that has everything imported, so that a new one costs milliseconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pumice.encode import Processor
from pumice.reader.lines import Line
from pumice.serve import decode_worker
from pumice.serve.errors import ApiError, invalid
from pumice.serve.fork_server import ForkServer
from pumice.serve.settings import ServeSettings
from pumice.types import Layout, Media

TASKS = 500  # after which a process makes room for a new one: decoders of damaged files may leak
MAX_ANSWER = 2**31 - 1
LOST = "reading this file was given up: it took too long, too much memory, or ended the process that read it"


class LostError(Exception):
    """The process ended before it answered."""


class _Seat:
    """A place for one process, which is started when there is a task."""

    def __init__(self, fork_server: ForkServer, settings: bytes) -> None:
        self.fork_server, self.settings = fork_server, settings
        self.connection: Connection | None = None
        self.pid = 0
        self.tasks = 0
        self._lock = threading.Lock()
        self._job: object = None

    def exchange(self, job: object, task: bytes, data: bytes) -> tuple[dict[str, Any], bytes]:
        """Do one task; blocks. Raises LostError when the process ends first."""
        with self._lock:
            self._job = job
        try:
            return self._exchange(task, data)
        finally:
            with self._lock:
                self._job = None

    def _exchange(self, task: bytes, data: bytes) -> tuple[dict[str, Any], bytes]:
        # An idle process says nothing: what can be read is its end.
        if self.connection is not None and (self.tasks >= TASKS or self.connection.poll()):
            self.end()
        self.start()
        assert self.connection is not None
        self.tasks += 1
        try:
            self.connection.send_bytes(task)
            self.connection.send_bytes(data)
            answer = json.loads(self.connection.recv_bytes(MAX_ANSWER))
            return answer, self.connection.recv_bytes(MAX_ANSWER) if "shape" in answer else b""
        except (EOFError, OSError, ValueError):
            self.end()
            raise LostError from None

    def start(self) -> None:
        """Have a process."""
        if self.connection is None:
            self.connection, self.pid = self.fork_server.new()
            self.connection.send_bytes(self.settings)
            self.tasks = 0

    def give_up(self, job: object) -> None:
        """Kill the process while it does this job; one that has gone on to another is left alone."""
        with self._lock:
            if self._job is job:
                self.kill()

    def kill(self) -> None:
        """Whoever waits for the process sees that it is lost. What it has started is killed as well."""
        pid = self.pid
        if pid:
            for end in (os.killpg, os.kill):  # before it leads its group there is only itself
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    end(pid, signal.SIGKILL)

    def end(self) -> None:
        """Kill and forget."""
        self.kill()
        self.pid = 0
        if self.connection is not None:
            self.connection.close()
            self.connection = None


class DecodePool:
    """``workers`` seats; tasks wait in line for one. With ``reader`` they also recognise text. Use within one event
    loop.
    """

    def __init__(self, processors: dict[str, Processor], settings: ServeSettings, reader: bool = False) -> None:
        told = decode_worker.settings_json(processors, settings.media, settings.worker_memory, reader)
        self.settings = settings
        self.lost = 0
        self.waiting = 0
        self._fork_server = ForkServer()
        self._seats = [_Seat(self._fork_server, told) for _ in range(settings.workers)]
        self._idle: asyncio.Queue[_Seat] = asyncio.Queue()
        for seat in self._seats:
            self._idle.put_nowait(seat)
        self._threads = ThreadPoolExecutor(settings.workers, "decode")

    async def start(self) -> None:
        """Have every process running, so that the first request doesn't wait for imports."""
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.run_in_executor(self._threads, seat.start) for seat in self._seats))

    def pids(self) -> list[int]:
        """Ids of the processes that are running."""
        return [seat.pid for seat in self._seats if seat.pid]

    async def open(self, data: bytes, wanted: str | None, where: str) -> list[Media]:
        """Media of a file's bytes (of a PDF one a page), from headers. ``wanted`` is the kind that it must be.

        Raises:
            ApiError: 400, it can't be read within the limits; 429, too many wait.
        """
        answer, _ = await self._run({"task": "open", "wanted": wanted}, data, where)
        return [Media(data, **_checked(fields)) for fields in answer["media"]]

    async def tiles(self, model: str, media: Media, layout: Layout, several: bool, where: str) -> Tensor:
        """Pixels (layout.views, 3, S, S) float32 of one picture, page or video.

        Raises:
            ApiError: as `open`.
        """
        task = {"task": "tiles", "model": model, "media": decode_worker.described(media), "several": several}
        answer, pixels = await self._run(task, media.reference, where)
        shape = (layout.views, 3, layout.tile, layout.tile)
        if answer.get("shape") != list(shape) or len(pixels) != 4 * math.prod(shape):
            raise invalid(LOST, where, "media_unreadable")
        return torch.from_numpy(np.frombuffer(bytearray(pixels), np.float32).reshape(shape))

    async def preview(self, media: Media, where: str) -> str:
        """A small picture of a PDF's page, as a data: URI.

        Raises:
            ApiError: as `open`.
        """
        task = {"task": "preview", "media": decode_worker.described(media)}
        answer, _ = await self._run(task, media.reference, where)
        return str(answer["preview"])

    async def lines(self, media: Media, where: str) -> list[Line]:
        """The recognised lines of a picture or page.

        Raises:
            ApiError: as `open`.
        """
        answer, _ = await self._run({"task": "lines", "media": decode_worker.described(media)}, media.reference, where)
        return [(tuple(map(float, box)), str(text)) for box, text in answer["lines"]]  # pyright: ignore[reportReturnType]

    async def _run(self, task: dict[str, Any], data: bytes, where: str) -> tuple[dict[str, Any], bytes]:
        if self.waiting >= self.settings.worker_queue:
            raise ApiError(429, "queue_full", "too many files wait to be read; try again in a moment", retry_after=1)
        self.waiting += 1
        try:
            seat = await self._idle.get()
        finally:
            self.waiting -= 1
        try:
            answer, pixels = await self._exchange(seat, json.dumps(task).encode(), data)
        except LostError:
            self.lost += 1
            raise invalid(LOST, where, "media_unreadable") from None
        if "error" in answer:
            raise invalid(str(answer["error"]), where, "media_unreadable")
        return answer, pixels

    async def _exchange(self, seat: _Seat, task: bytes, data: bytes) -> tuple[dict[str, Any], bytes]:
        """The seat is free again once its thread is done, also where nobody waits for the answer any more."""
        loop, job = asyncio.get_running_loop(), object()
        alarm = loop.call_later(self.settings.media.patience + 5, seat.give_up, job)
        work = loop.run_in_executor(self._threads, seat.exchange, job, task, data)

        def release(_: Any) -> None:
            alarm.cancel()
            self._idle.put_nowait(seat)

        work.add_done_callback(release)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            work.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody else looks at it
            seat.give_up(job)
            raise

    async def close(self) -> None:
        """Kill all of them."""
        for seat in self._seats:
            seat.kill()
        await asyncio.to_thread(self._threads.shutdown, True)
        for seat in self._seats:
            seat.end()
        self._fork_server.close()


def _checked(fields: dict[str, Any]) -> dict[str, Any]:
    """What a process says of a file is believed only as far as its form goes."""
    w, h = fields["size"]
    kind = {"image": "image", "video": "video", "page": "page"}[fields["kind"]]
    return {
        "kind": kind,
        "size": (int(w), int(h)),
        "frames": int(fields["frames"]),
        "fps": float(fields["fps"]),
        "page": int(fields["page"]),
    }
