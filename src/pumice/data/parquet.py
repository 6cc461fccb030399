"""Rows of parquet files by number, whatever writes them.

a.parquet | a folder's ──> ParquetRows: row(i) ──> a dict, file_of(i) ──> the file that it is in
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pumice.types import PumiceError


class ParquetRows:
    """Rows of parquet files in the order given. The row group last read stays in memory.

    Only ``columns`` and, where a file has them, ``optional`` ones are read; without either all of them.

    Raises:
        PumiceError: one isn't parquet or lacks one of ``columns``, or pyarrow isn't installed.
    """

    def __init__(self, files: Sequence[Path], columns: Sequence[str] = (), optional: Sequence[str] = ()) -> None:
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
        """A row as a dict by column.

        Raises:
            PumiceError: its part of the file can't be read.
        """
        which = self._group(number)
        file, group, before = self.groups[which]
        if self._held is None or self._held[0] != which:
            self._held = (which, self._read(file, group))
        return self._held[1][number - before]

    def file_of(self, number: int) -> Path:
        """The file that a row is in."""
        return self.groups[self._group(number)][0]

    def _group(self, number: int) -> int:
        return bisect_right(self.groups, number, key=lambda group: group[2]) - 1

    def _read(self, file: Path, group: int) -> list[dict[str, Any]]:
        from pyarrow import ArrowException

        opened = _open(file)
        there = [name for name in self.columns or opened.schema_arrow.names if name in opened.schema_arrow.names]
        try:
            return opened.read_row_group(group, there).to_pylist()
        except (OSError, ArrowException) as error:
            raise _no_parquet(file, error) from None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": None}


def columns_of(file: Path) -> list[str]:
    """Names of a file's columns.

    Raises:
        PumiceError: it isn't parquet, or pyarrow isn't installed.
    """
    return _open(file).schema_arrow.names


def _open(file: Path) -> Any:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise PumiceError("reading parquet needs pyarrow: pip install 'pumice[train]'") from None
    try:
        return ParquetFile(file)
    except (OSError, ArrowException) as error:
        raise _no_parquet(file, error) from None


def _no_parquet(file: Path, error: Exception) -> PumiceError:
    return PumiceError(f"{file}: not readable as parquet ({' '.join(str(error).split())[:160]})")
