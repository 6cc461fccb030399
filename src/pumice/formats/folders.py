"""A folder that appears whole or not at all.

out ──new_folder──> scratch folder beside it, filled ──flushed to disk──> renamed to out
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from pumice.types import PumiceError


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A scratch folder to fill; it becomes ``out`` where nothing fails, else it and new folders above it are removed.

    Raises:
        PumiceError: ``out`` is a file or isn't empty, or the disk refuses (full, read-only); errors of filling pass.
    """
    out = out.expanduser().resolve()
    scratch = out.with_name(f".tmp-{os.getpid()}-{out.name}")
    above = [folder for folder in out.parents if not folder.exists()]
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise PumiceError(f"{out}: {'not empty' if out.is_dir() else 'a file'}; nothing is written over")
        scratch.mkdir(parents=True)
        yield scratch
        _flush(scratch)
        if out.exists():
            out.rmdir()
        scratch.rename(out)
    except BaseException as error:
        shutil.rmtree(scratch, ignore_errors=True)
        with suppress(OSError):
            for folder in above:
                folder.rmdir()
        if isinstance(error, OSError | SafetensorError):
            raise PumiceError(f"{out}: not written ({' '.join(str(error).split())})") from None
        raise


def _flush(folder: Path) -> None:
    """Bring all of a folder to the disk: a rename that outlives a power cut must not name files that didn't."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
