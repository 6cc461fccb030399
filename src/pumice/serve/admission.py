"""What every request passes, before and after the application: the one place where strangers are held off.

head ──host, key, rate──> body, bounded as it comes in ──> application, until it ends, its time is over or the client
leaves ──> answer with an id and safe headers, one line of log without a word of what was asked or answered
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from pumice.serve.errors import ApiError, from_error, invalid
from pumice.serve.keys import Caller, Keys
from pumice.serve.log import Log
from pumice.serve.metrics import Metrics
from pumice.serve.settings import ServeSettings

GUARDED = ("/v1/", "/tokenize")
CLIENT_GONE = 499  # as nginx counts; nobody receives it
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
LINGER = 5.0  # seconds in which the rest of a refused body is read, so that the client sees why


@dataclass
class Note:
    """What is known of a request while it is answered; ``figures`` go into its line of log, ``ending`` ends with it."""

    id: str
    began: float = field(default_factory=time.perf_counter)
    caller: Caller = field(default_factory=Caller)
    figures: dict[str, Any] = field(default_factory=dict)
    ending: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)


class ClientLeftError(Exception):
    """The client has left."""


class Admission:
    """An ASGI application around the real one. ``paths`` are those that have a name in logs and metrics."""

    def __init__(self, app: Any, settings: ServeSettings, keys: Keys, metrics: Metrics, log: Log) -> None:
        self.app, self.settings, self.keys, self.metrics, self.log = app, settings, keys, metrics, log
        self.paths: frozenset[str] = frozenset()
        self.draining = False
        self.held = self.working = self.answering = 0

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get("x-request-id", "")
        note = Note(given if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", given) else f"req_{secrets.token_hex(12)}")
        scope["note"] = note
        sender = _Sender(send, note.id)
        self.working += 1
        self.metrics.working.set(self.working)
        try:
            await self._serve(scope, headers, receive, sender, note)
        except ClientLeftError:
            sender.status = sender.status or CLIENT_GONE
            note.figures["gone"] = True
        except Exception as error:
            if not isinstance(error, ApiError):
                self.log.failure(note.id, error)
            await sender.fail(from_error(error))
        finally:
            note.ending.close()
            self.working -= 1
            self.metrics.working.set(self.working)
            self._note(scope, note, sender.status)

    def _note(self, scope: dict[str, Any], note: Note, status: int) -> None:
        path = scope["path"] if scope["path"] in self.paths else "other"
        seconds = time.perf_counter() - note.began
        self.metrics.requests.labels(path, str(status)).inc()
        self.metrics.seconds.labels(path).observe(seconds)
        method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST") else "other"
        self.log.request(
            id=note.id, method=method, path=path, status=status, ms=round(seconds * 1000, 1),
            client=(scope.get("client") or ("",))[0], key=note.caller.name, **note.figures,
        )  # fmt: skip

    async def _serve(self, scope: Any, headers: dict[str, str], receive: Any, sender: _Sender, note: Note) -> None:
        self._check_host(headers.get("host", ""))
        if not scope["path"].startswith(GUARDED):
            await self._answer(scope, b"", receive, sender)
            return
        try:
            if self.draining:
                raise ApiError(503, "draining", "the server is stopping; ask again", retry_after=5)
            self._count(note.ending)
            if self.working > self.settings.requests:
                raise ApiError(429, "queue_full", "too many requests at work; try again in a moment", retry_after=2)
            note.caller = self.keys.find(headers.get("authorization"))
            note.caller.count()
            note.ending.enter_context(note.caller.enter())
            body = await self._body(scope["method"], headers, receive, note.ending)
        except ApiError as error:
            if error.status != 408:
                await _discard(receive, 2 * self.settings.max_body)
            raise
        await self._answer(scope, body, receive, sender)

    def _count(self, ending: contextlib.ExitStack) -> None:
        """A request that the end of the server waits for."""
        self.answering += 1

        def end() -> None:
            self.answering -= 1

        ending.callback(end)

    def _check_host(self, host: str) -> None:
        """A page of another site that has its name point here (DNS rebinding) is told apart by the name."""
        name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
        if self.settings.hosts and name.lower().strip("[]") not in self.settings.hosts:
            raise invalid("this server doesn't answer under this name; see --allowed-host", "host", "wrong_host")

    async def _body(self, method: str, headers: dict[str, str], receive: Any, ending: contextlib.ExitStack) -> bytes:
        """The request's body, counted in ``held`` until the request ends."""
        if method != "POST":
            return b""
        # Other sites' pages can send text/plain without asking, application/json they can't.
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "content_type", "expected content-type: application/json")
        if headers.get("content-encoding", "identity") != "identity":
            raise ApiError(415, "content_type", "expected a body that isn't compressed")
        length = headers.get("content-length", "0")
        self._check_size(int(length) if length.isdigit() else 0, 0)
        chunks: list[bytes] = []
        size = 0
        ending.callback(lambda: self._hold(-size))
        try:
            async with asyncio.timeout(self.settings.body_seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientLeftError
                    chunk, more = message.get("body", b""), message.get("more_body", False)
                    size += len(chunk)
                    self._hold(len(chunk))
                    self._check_size(size, size)
                    chunks.append(chunk)
        except TimeoutError:
            seconds = self.settings.body_seconds
            raise ApiError(408, "body_timeout", f"the body didn't arrive in {seconds:g} seconds") from None
        return b"".join(chunks)

    def _hold(self, size: int) -> None:
        self.held += size
        self.metrics.bytes.set(self.held)

    def _check_size(self, size: int, counted: int) -> None:
        """Of a body of ``size`` bytes, so many of which are counted in ``held``."""
        if size > self.settings.max_body:
            raise ApiError(413, "body_too_large", f"a body of more than {self.settings.max_body:,} bytes")
        if self.held + size - counted > self.settings.max_bodies:
            raise ApiError(429, "too_many_bytes", "too many large requests at once; try again", retry_after=2)

    async def _answer(self, scope: Any, body: bytes, receive: Any, sender: _Sender) -> None:
        """Run the application until it ends, the client leaves or the deadline is over."""
        parts = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def again() -> dict[str, Any]:
            for part in parts:
                return part
            await asyncio.Event().wait()  # that the client leaves is seen here, not in the application
            raise AssertionError

        work = asyncio.ensure_future(self.app(scope, again, sender))
        left = asyncio.ensure_future(_left(receive))
        try:
            done, _ = await asyncio.wait({work, left}, timeout=self.settings.deadline, return_when="FIRST_COMPLETED")
            if work in done:
                work.result()
            elif left in done:
                raise ClientLeftError
            else:
                seconds = self.settings.deadline
                raise ApiError(504, "deadline_exceeded", f"the answer took more than {seconds:g} seconds")
        finally:
            for task in (work, left):
                task.cancel()
            await asyncio.gather(work, left, return_exceptions=True)


class _Sender:
    """Sends an answer with the headers that all have, and knows how far it is."""

    def __init__(self, send: Any, request: str) -> None:
        self._send, self._request = send, request
        self.status = 0
        self.streaming = self.ended = False

    async def __call__(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = list(message.get("headers", ()))
            self.streaming = any(n == b"content-type" and v.startswith(b"text/event-stream") for n, v in headers)
            names = {name for name, _ in headers}
            added = HEADERS | {"x-request-id": self._request, "cache-control": "no-store"}
            headers += [(n.encode(), v.encode()) for n, v in added.items() if n.encode() not in names]
            message = {**message, "headers": headers}
        elif not message.get("more_body", False):
            self.ended = True
        await self._send(message)

    async def fail(self, error: ApiError) -> None:
        """Say what went wrong: as the answer, or as the last event of a stream that has begun."""
        body = json.dumps(error.to_json(), ensure_ascii=False).encode()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(1):  # a client that doesn't read isn't waited for
                if not self.status:
                    head = {"content-type": "application/json", "content-length": str(len(body)), **error.headers()}
                    raw = [(name.encode(), value.encode()) for name, value in head.items()]
                    await self({"type": "http.response.start", "status": error.status, "headers": raw})
                    await self({"type": "http.response.body", "body": body})
                elif self.streaming and not self.ended:
                    await self({"type": "http.response.body", "body": b"data: " + body + b"\n\n"})


async def _left(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _discard(receive: Any, most: int) -> None:
    """Read on for a while: a connection that is closed on a client that still sends loses the answer."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER):
            while most > 0:
                message = await receive()
                most -= len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
