"""Run a server until it is told to stop, and let it finish what it has begun.

SIGTERM ──> new requests get 503, /ready as well ──> running answers end, or ``drain`` seconds are over ──> exit
"""

from __future__ import annotations

import asyncio
import socket
import time
from types import FrameType

import uvicorn

from pumice.serve.admission import Admission
from pumice.serve.settings import ServeSettings
from pumice.types import PumiceError


class Server(uvicorn.Server):
    """uvicorn, which goes on listening while running answers end: who asks meanwhile is told to ask again, and a
    balancer in front sees at /ready that this server stops.
    """

    def __init__(self, admission: Admission, settings: ServeSettings, host: str, port: int) -> None:
        self.admission, self.drain, self.until = admission, settings.drain, 0.0
        super().__init__(
            uvicorn.Config(
                admission,
                host=host,
                port=port,
                loop="asyncio",
                http="h11",
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
    asyncio.run(server.serve([listening]))
