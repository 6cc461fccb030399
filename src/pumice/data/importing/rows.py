"""Rows of files by number, for the converters of published forms.

file.json | file.jsonl ──> JsonRows: row(i) ──> a dict         a.parquet | folder of them ──ParquetRows──> the same
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from pumice.data.records import Records
from pumice.types import PumiceError

LARGEST = 1 << 30
"""Bytes of the largest JSON file that is read whole, for an object with the records inside of it."""


class Rows(Protocol):
    """Rows by number."""

    @property
    def files(self) -> Sequence[Path]: ...
    def __len__(self) -> int: ...
    def row(self, number: int) -> dict[str, Any]: ...


def embedded_bytes(image: Any) -> bytes:
    """The file in a cell of a column of pictures, {bytes, path} or the bytes.

    Raises:
        PumiceError: there is none.
    """
    data = image.get("bytes") if isinstance(image, dict) else image
    if not isinstance(data, bytes) or not data:
        raise PumiceError("no embedded picture")
    return data


def is_there(path: Path) -> bool:
    """Whether a record's picture is a file; a name that no file system takes is none."""
    try:
        return path.is_file()
    except OSError:
        return False


class JsonRows:
    """Records of JSON files one after the other; ``key`` names where an object keeps them ({"data": [...]})."""

    def __init__(self, files: Sequence[Path], key: str = "") -> None:
        self.files = list(files)
        self.parts: list[Sequence[dict[str, Any]] | Records] = [
            _inside(file, key) if key else Records(file) for file in files
        ]
        self.starts = [sum(len(part) for part in self.parts[:i]) for i in range(len(self.parts))]

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def row(self, number: int) -> dict[str, Any]:
        which = bisect_right(self.starts, number) - 1
        return self.parts[which][number - self.starts[which]]


def _inside(file: Path, key: str) -> list[dict[str, Any]]:
    if file.stat().st_size > LARGEST:
        raise PumiceError(f"{file}: more than {LARGEST >> 20} MiB, the limit for an object with the records in it")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))[key]
        if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError):
        raise PumiceError(f'{file}: expected {{"{key}": [{{...}}, ...]}}') from None
    return found
