"""Rows of parquet and JSON files by number, for the converters of published forms.

a.parquet | folder of them ──> Rows: row(i) ──> a dict         file.json | file.jsonl ──> the same
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


class ParquetRows:
    """Rows of parquet files in the order of their names. The row group last read stays in memory.

    Raises:
        PumiceError: one isn't parquet, or lacks one of ``columns``; all but these aren't read.
    """

    def __init__(self, files: Sequence[Path], columns: Sequence[str], optional: Sequence[str] = ()) -> None:
        self.files, self.columns = list(files), (*columns, *optional)
        self.groups: list[tuple[Path, int, int]] = []  # file, row group, rows before it
        self.count = 0
        for file in self.files:
            opened = _open(file)
            lacking = set(columns) - set(opened.schema_arrow.names)
            if lacking:
                has = ", ".join(opened.schema_arrow.names)[:160]
                raise PumiceError(f"{file}: no column {', '.join(sorted(lacking))}; it has {has}")
            for group in range(opened.metadata.num_row_groups):
                self.groups.append((file, group, self.count))
                self.count += opened.metadata.row_group(group).num_rows
        self._held: tuple[int, list[dict[str, Any]]] | None = None

    def __len__(self) -> int:
        return self.count

    def row(self, number: int) -> dict[str, Any]:
        from pyarrow import ArrowException

        which = bisect_right(self.groups, number, key=lambda group: group[2]) - 1
        file, group, before = self.groups[which]
        if self._held is None or self._held[0] != which:
            opened = _open(file)
            there = [name for name in self.columns if name in opened.schema_arrow.names]
            try:
                self._held = (which, opened.read_row_group(group, there).to_pylist())
            except (OSError, ArrowException) as error:
                raise _no_parquet(file, error) from None
        return self._held[1][number - before]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": None}


def _open(file: Path) -> Any:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(file)
    except (OSError, ArrowException) as error:
        raise _no_parquet(file, error) from None


def _no_parquet(file: Path, error: Exception) -> PumiceError:
    return PumiceError(f"{file}: not readable as parquet ({' '.join(str(error).split())[:160]})")


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
