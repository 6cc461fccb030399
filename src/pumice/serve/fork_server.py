"""New processes in milliseconds: forked from one that has everything imported and does nothing else.

    server ──one end of a pair of sockets──> fork server ──fork──> process that opens files ──> its number

Unlike multiprocessing's fork server it runs nothing of the server's own main module, and unpickles nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection

NUMBER = struct.Struct("=q")


class ForkServer:
    """The server's side. It may be used from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def new(self) -> tuple[Connection, int]:
        """A connection to a new process that opens files, and its number."""
        with self._lock:
            try:
                return self._new()
            except OSError:  # it was killed
                self._end()
                return self._new()

    def _new(self) -> tuple[Connection, int]:
        if self._socket is None:
            self._start()
        assert self._socket is not None
        ours, theirs = socket.socketpair()
        with ours, theirs:
            socket.send_fds(self._socket, [b"1"], [theirs.fileno()])
            number = self._socket.recv(NUMBER.size)
            if len(number) < NUMBER.size:
                raise ConnectionResetError
            return Connection(ours.detach()), NUMBER.unpack(number)[0]

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            # -P: the folder in which the server was started isn't searched for modules
            command = [sys.executable, "-P", "-m", "pumice.serve.fork_server", str(theirs.fileno())]
            self._process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the server alone
            )
        self._socket = ours

    def _end(self) -> None:
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._socket = self._process = None

    def close(self) -> None:
        """End it; the processes that came from it live on."""
        with self._lock:
            self._end()


def main(number: int) -> None:
    """The fork server itself: fork for every socket that comes, until the server is no more."""
    from pumice.serve import decode_worker

    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # systemd tells all of a service: it ends when the server has
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    with socket.socket(fileno=number) as server:
        while True:
            message, fds, _, _ = socket.recv_fds(server, 1, 1)
            if not message or not fds:
                return
            pid = os.fork()
            if not pid:
                server.close()
                _become(decode_worker.main, fds[0])
            os.close(fds[0])
            with contextlib.suppress(OSError):
                server.sendall(NUMBER.pack(pid))


def _become(work: Callable[[Connection], None], fd: int) -> None:
    """In the child: work, and end without a step back into the parent's code."""
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        work(Connection(fd))
        code = 0
    finally:
        os._exit(code)


if __name__ == "__main__":
    main(int(sys.argv[1]))
