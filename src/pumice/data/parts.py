"""Long work over the rows of a source, in parts that are on disk whole or not at all.

rows ──cut into parts──> job(start, stop), in one of many processes ──bytes──> folder/0000002048.EXT

A killed run goes on with the parts that are missing. Who made a part doesn't change it, so that the result doesn't
depend on the number of workers.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pumice.data.pool import Where, map_over
from pumice.data.produce.shards import write_whole
from pumice.types import PumiceError

NOTES = ".notes.json"


class Made(NamedTuple):
    """The bytes of a part, and counts to be added up over all parts."""

    data: bytes
    notes: dict[str, int] = {}  # noqa: RUF012 (never changed)


Job = Callable[[int, int], Made]
"""Makes the part with rows ``start`` to ``stop``. It is sent to other processes: it must be picklable."""
Progress = Callable[[int, int], None]
"""Told of (rows done, rows in all)."""


@dataclass(frozen=True)
class Parts:
    """Files of ``size`` rows each in ``folder``, ``count`` rows in all."""

    folder: Path
    count: int
    size: int
    ending: str

    @property
    def paths(self) -> list[Path]:
        """All of them in order, whether they are there or not."""
        return [self._path(start) for start in range(0, self.count, self.size)]

    def make(self, job: Job, workers: int = 1, where: Where = "here", progress: Progress | None = None) -> list[Path]:
        """Make the parts that are missing; gives all of them in order. ``progress`` hears nothing where none are.

        Raises:
            PumiceError: what the job raises, the folder can't be written, or there is no Ray cluster to be had.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PumiceError(f"{self.folder}: can't be written ({error.strerror or error})") from None
        missing = [start for start in range(0, self.count, self.size) if not self._path(start).is_file()]
        done = self.count - sum(self._rows(start) for start in missing)
        spans = [(start, start + self._rows(start)) for start in missing]
        if progress and spans:
            progress(done, self.count)
        for number, made in map_over(partial(_Part, job), spans, workers, where):
            start = missing[number]
            if made.notes:
                write_whole(self._path(start).with_suffix(NOTES), json.dumps(made.notes).encode())
            write_whole(self._path(start), made.data)
            done += self._rows(start)
            if progress:
                progress(done, self.count)
        return self.paths

    def notes(self) -> Counter[str]:
        """The counts of all parts together."""
        total = Counter[str]()
        for path in self.paths:
            beside = path.with_suffix(NOTES)
            total.update(json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {})
        return total

    def _rows(self, start: int) -> int:
        return min(self.size, self.count - start)

    def _path(self, start: int) -> Path:
        return self.folder / f"{start:010d}{self.ending}"


def to_parquet(rows: Sequence[Mapping[str, Any]], schema: Any) -> bytes:
    """Rows of a schema as the bytes of a parquet file."""
    import pyarrow as arrow
    from pyarrow.parquet import write_table

    buffer = io.BytesIO()
    write_table(arrow.Table.from_pylist(list(rows), schema), buffer)
    return buffer.getvalue()


def plain(text: str) -> str:
    """A text that parquet takes: half of a surrogate pair, which JSON may hold, is written out."""
    return text.encode(errors="backslashreplace").decode()


def kept_in(cache: Path, name: str, depends: str) -> Path:
    """A folder of parts in a cache: its name ends in a digest of what they depend on."""
    return cache / f"{name}-{hashlib.sha256(depends.encode()).hexdigest()[:16]}"


@dataclass(frozen=True)
class _Part:
    """Makes a part of its first and last row, for `map_over`."""

    job: Job

    def __call__(self, span: tuple[int, int]) -> Made:
        return self.job(*span)
