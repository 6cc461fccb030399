"""Models of a hub that lie in its cache on this machine. Nothing is fetched."""

from __future__ import annotations

import re
from pathlib import Path

from pumice.types import PumiceError

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
"""A model of a hub: its owner and its name."""


def find_folder(source: str, file: str = "config.json") -> Path | None:
    """The folder ``source`` if a ``file`` lies in it, or that of a hub's model in the cache; None if it is neither.

    Raises:
        PumiceError: the name of a hub's model that isn't in the cache.
    """
    folder = Path(source).expanduser()
    if any(folder.glob(file)):
        return folder
    return cached(source) if HUB_ID.fullmatch(source) and not folder.exists() else None


def checkpoint_folder(source: str) -> Path:
    """The folder of a checkpoint that a recipe or a command names.

    Raises:
        PumiceError: none is found.
    """
    folder = find_folder(source)
    if folder is None:
        raise PumiceError(
            f"{source!r}: no checkpoint; expected a folder with a config.json, or the name of a hub's model in the "
            "cache on this machine"
        )
    return folder


def cached(source: str) -> Path:
    """The folder of a hub's model in the cache.

    Raises:
        PumiceError: it isn't there.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, local_files_only=True))
    except (LocalEntryNotFoundError, OSError):
        raise PumiceError(
            f"{source!r} is neither a folder nor in the hub's cache on this machine, and nothing is fetched here: "
            f"run `hf download {source}` where there is a network, or name a folder that holds it"
        ) from None
