"""Run a server until it is told to stop, and let it finish what it has begun.

SIGTERM ──> no new requests (503) ──> running answers end, or ``drain`` seconds are over ──> exit
"""

from __future__ import annotations

import asyncio
import socket
from types import FrameType

import uvicorn

from pumice.serve.gate import Gate
from pumice.serve.settings import ServeSettings
from pumice.types import PumiceError


class Server(uvicorn.Server):
    """uvicorn, telling the gate at once that the server is stopping."""

    def __init__(self, gate: Gate, settings: ServeSettings, host: str, port: int) -> None:
        self.gate = gate
        super().__init__(
            uvicorn.Config(
                gate,
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
                timeout_graceful_shutdown=max(1, round(settings.drain)),
            )
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM, SIGINT."""
        self.gate.draining = True
        super().handle_exit(sig, frame)

    def stop(self) -> None:
        """As SIGTERM, from another thread."""
        self.gate.draining = True
        self.should_exit = True


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
