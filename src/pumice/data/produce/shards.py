"""Shards: tar in WebDataset's form, or parquet with embedded pictures. The same records give the same bytes.

Record* ──Shard.add──> NAME.tmp ──close──> NAME (renamed when whole)
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pumice.types import PumiceError

if TYPE_CHECKING:
    from pumice.data.produce.records import Record

ROWS = 64
"""Records of a row group of parquet: what a reader holds in memory."""


class Shard(Protocol):
    """A shard being written."""

    def add(self, record: Record) -> None: ...
    def close(self) -> None:
        """Write what is left; the file is whole then."""
        ...


class TarShard:
    """Files of one record share their name up to the first dot: 17.0.png, 17.1.png, 17.json."""

    def __init__(self, path: Path) -> None:
        self.tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 (closed by close)

    def add(self, record: Record) -> None:
        several = len(record.media) > 1
        for position, (ending, data) in enumerate(record.media):
            self._member(f"{record.key}.{position}.{ending}" if several else f"{record.key}.{ending}", data)
        self._member(f"{record.key}.json", json.dumps(record.said, ensure_ascii=False).encode())

    def _member(self, name: str, data: bytes) -> None:
        info = tarfile.TarInfo(name)  # with no owner and time 0, or two runs would differ
        info.size = len(data)
        self.tar.addfile(info, io.BytesIO(data))

    def close(self) -> None:
        self.tar.close()


class ParquetShard:
    """Columns of LLaVA's hub form; ``images`` holds the bytes of pictures or of one video.

    Raises:
        PumiceError: pyarrow is missing.
    """

    def __init__(self, path: Path) -> None:
        try:
            from pyarrow.parquet import ParquetWriter
        except ImportError:
            raise PumiceError("writing parquet needs pyarrow: pip install 'pumice[train]'") from None
        self.writer = ParquetWriter(path, _schema(), compression="zstd")
        self.rows: list[dict[str, Any]] = []

    def add(self, record: Record) -> None:
        named = [
            {"bytes": data, "path": f"{record.key}.{position}.{ending}"}
            for position, (ending, data) in enumerate(record.media)
        ]
        self.rows.append({**record.said, "images": named})
        if len(self.rows) == ROWS:
            self._write()

    def _write(self) -> None:
        import pyarrow as arrow

        if self.rows:
            self.writer.write_table(arrow.Table.from_pylist(self.rows, schema=_schema()))
            self.rows = []

    def close(self) -> None:
        self._write()
        self.writer.close()


def _schema() -> Any:
    import pyarrow as arrow

    text, texts = arrow.string(), arrow.list_(arrow.string())
    turn = arrow.struct([("from", text), ("value", text)])
    picture = arrow.struct([("bytes", arrow.binary()), ("path", text)])
    return arrow.schema(
        [
            ("id", text),
            ("images", arrow.list_(picture)),
            ("conversations", arrow.list_(turn)),
            ("data_source", text),
            ("category", text),
            ("tasks", texts),
            ("forms", texts),
            ("reading", text),
        ]
    )


FORMS: dict[str, tuple[str, Callable[[Path], Shard]]] = {
    "wds": ("tar", TarShard),
    "parquet": ("parquet", ParquetShard),
}
"""Forms of shards: the ending of their names and their writer."""


def settle(scratch: Path, path: Path) -> None:
    """Put a whole file in its place, in a way that a power cut doesn't undo."""
    with scratch.open("rb") as file:
        os.fsync(file.fileno())
    scratch.replace(path)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is there whole or not at all, also after a crash.

    Raises:
        PumiceError: it can't be written.
    """
    scratch = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        scratch.write_bytes(data)
        settle(scratch, path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise PumiceError(f"{path}: can't be written ({error.strerror or error})") from None


def sha256(path: Path) -> str:
    """The digest of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
