"""Pictures alone, to be captioned or compared: a folder of them, a tar, or a parquet file with them embedded.

DIR | TAR | PARQUET (file or folder) ──open_pictures──> Source: sample(row) shows one picture, id is its name
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from pumice.data.importing.rows import embedded_bytes
from pumice.data.parquet import ParquetRows
from pumice.data.sources import PICTURES
from pumice.data.stores import Tar
from pumice.types import PumiceError, Sample, Turn
from pumice.vision.kinds import open_media


class Pictures(Protocol):
    """Pictures by number. ``media`` is what a recipe names for records to find them under their names, "" where they
    are embedded."""

    media: str

    @property
    def files(self) -> list[Path]: ...
    @property
    def settings(self) -> str: ...
    def __len__(self) -> int: ...
    def sample(self, row: int) -> Sample: ...
    def fetch(self, row: int) -> tuple[str, Any]:
        """(name, path or bytes) of one."""
        ...


class _Named:
    """What all kinds of pictures share."""

    @property
    def settings(self) -> str:
        return ""

    def fetch(self, row: int) -> tuple[str, Any]:
        raise NotImplementedError

    def sample(self, row: int) -> Sample:
        """The picture as the user's only turn.

        Raises:
            PumiceError: it can't be read.
        """
        name, reference = self.fetch(row)
        return Sample((Turn("user", tuple(open_media(reference))),), id=name)


class PictureSource(_Named):
    """All pictures below a folder, by their path in it."""

    def __init__(self, path: Path) -> None:
        self.path, self.media = path, str(path)
        files = (file for file in path.rglob("*") if file.suffix.lower() in PICTURES and file.is_file())
        self.names = sorted(str(file.relative_to(path)) for file in files)
        if not self.names:
            raise PumiceError(f"{path}: no picture in it; expected files that end in {', '.join(PICTURES)}")

    @property
    def files(self) -> list[Path]:
        return [self.path]

    @property
    def settings(self) -> str:
        """Names and sizes: a folder's own time doesn't tell of files further down."""
        return ";".join(f"{name}:{(self.path / name).stat().st_size}" for name in self.names)

    def __len__(self) -> int:
        return len(self.names)

    def fetch(self, row: int) -> tuple[str, Any]:
        return self.names[row], self.path / self.names[row]


class TarPictures(_Named):
    """All pictures in an uncompressed tar, by the names of its members."""

    def __init__(self, path: Path) -> None:
        self.tar, self.media = Tar(path), str(path)
        self.names = [name for name in self.tar.members if Path(name).suffix.lower() in PICTURES]
        if not self.names:
            raise PumiceError(f"{path}: no picture in it; expected members that end in {', '.join(PICTURES)}")

    @property
    def files(self) -> list[Path]:
        return [self.tar.path]

    def __len__(self) -> int:
        return len(self.names)

    def fetch(self, row: int) -> tuple[str, Any]:
        return self.names[row], self.tar.fetch(self.names[row])


class ParquetPictures(_Named):
    """The column ``image`` ({bytes, path} or bytes) of a parquet file or of a folder of them; ``id`` names them."""

    media = ""

    def __init__(self, path: Path) -> None:
        files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
        self.rows = ParquetRows(files, ("image",), ("id",))

    @property
    def files(self) -> list[Path]:
        return self.rows.files

    def __len__(self) -> int:
        return len(self.rows)

    def fetch(self, row: int) -> tuple[str, Any]:
        record = self.rows.row(row)
        return str(record.get("id") or row), embedded_bytes(record["image"])


def open_pictures(path: Path) -> Pictures:
    """The pictures of a folder, a tar, or parquet.

    Raises:
        PumiceError: it isn't there, isn't one of these, or holds no picture.
    """
    if not path.exists():
        raise PumiceError(f"{path}: no such file or folder")
    if path.suffix == ".parquet" or (path.is_dir() and any(path.rglob("*.parquet"))):
        return ParquetPictures(path)
    if path.is_dir():
        return PictureSource(path)
    if path.suffix == ".tar":
        return TarPictures(path)
    raise PumiceError(f"{path}: expected a folder of pictures, a .tar, or .parquet with a column image")
