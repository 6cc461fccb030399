"""One writer to a folder."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pumice.types import PumiceError

LOCK = ".lock"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, which ends with this process, whatever ends it; the folder is made where it isn't there.

    The lock is a process's own: those that it forks don't hold it, so that none of them can keep a folder that nobody
    writes any more.

    Raises:
        PumiceError: another process holds it, or the folder can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("w")
    except OSError as error:
        raise PumiceError(f"{folder}: can't be written ({error.strerror or error})") from None
    with lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            wait = "wait for its end or choose another --out"
            raise PumiceError(f"{folder}: another run is writing it; {wait}") from None
        yield
