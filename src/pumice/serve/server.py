"""Run a server until it is told to stop, and let it finish what it has begun.

SIGTERM ──> new requests get 503, /ready as well ──> running answers end, or ``drain`` seconds are over ──> exit

There are only so many connections: one on which a request's head doesn't come is closed, and where the system can, one
whose client takes nothing of what is sent.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from types import FrameType
from typing import cast

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from pumice.serve.admission import Admission
from pumice.serve.settings import ServeSettings
from pumice.types import PumiceError


class Connection(H11Protocol):
    """uvicorn's, which waits for a request's head without end; this one as long as for the body."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        """Count from its first byte, or for the first one from the connection's beginning."""
        if self.conn.their_state is not h11.IDLE:
            self._forget_head()
        elif self._late is None:
            admission = cast(Admission, self.config.app)
            self._late = self.loop.call_later(admission.settings.body_seconds, self.transport.close)

    def _forget_head(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


class Server(uvicorn.Server):
    """uvicorn, which goes on listening while running answers end: who asks meanwhile is told to ask again, and a
    balancer in front sees at /ready that this server stops.
    """

    def __init__(
        self,
        admission: Admission,
        settings: ServeSettings,
        host: str,
        port: int,
        listening: Callable[[], None] = lambda: None,
    ) -> None:
        self.admission, self.drain, self.until, self.listening = admission, settings.drain, 0.0, listening
        super().__init__(
            uvicorn.Config(
                admission,
                host=host,
                port=port,
                loop="asyncio",
                http=Connection,
                ws="none",
                lifespan="on",
                log_config=None,
                log_level="warning",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                limit_concurrency=2 * settings.requests,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=1,  # for what is still running after the drain
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn, and say so once requests are answered."""
        await super().startup(sockets)
        if self.started:
            self.listening()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM, SIGINT; a second one ends the drain."""
        again = self.admission.draining
        super().handle_exit(sig, frame)
        self.should_exit = again
        self.stop()

    def stop(self) -> None:
        """As SIGTERM, from another thread."""
        self.until = self.until or time.monotonic() + self.drain
        self.admission.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Whether to close now; uvicorn asks ten times a second."""
        over = self.admission.draining and (not self.admission.answering or time.monotonic() > self.until)
        return await super().on_tick(counter) or over


def listen(host: str, port: int) -> socket.socket:
    """A socket at an address; it refuses connections until the server listens.

    Raises:
        PumiceError: the address is taken, or isn't this machine's.
    """
    if not 0 <= port < 2**16:  # the system would take its last 16 bits
        raise PumiceError(f"port {port}; expected at most 65535")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        raise PumiceError(f"{host}:{port}: {error.strerror or error}; choose another --host or --port") from None
    made.setblocking(False)
    return made


def serve(server: Server, listening: socket.socket) -> None:
    """Serve until a signal, or `Server.stop`."""
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # connections inherit it
        wait = server.admission.settings.body_seconds
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * wait))
    asyncio.run(server.serve([listening]))
