"""Where the pictures and videos of a source lie: a folder, a tar, a zip, an LMDB, or an address that fsspec opens.

    media = "images" | "images.tar" | "images.zip" | "images.lmdb" | "s3://bucket/images"
    open_store(media) ──fetch("coco/1.jpg")──> Path, or the file's bytes

A store is opened anew in every process that reads it.
"""

from __future__ import annotations

import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from pumice.types import PumiceError
from pumice.vision.media import Limits

Span = tuple[int, int]
"""Offset and size of a file inside of a tar."""


class Store(Protocol):
    """Files by the names that records give them. ``place`` says which these are, and of an archive when it changed."""

    @property
    def place(self) -> str: ...
    def fetch(self, name: str) -> Path | bytes: ...


def open_store(place: str, root: Path) -> Store:
    """The store of a recipe's ``media``; relative ones lie below ``root``.

    Raises:
        PumiceError: an archive that isn't there or can't be read.
    """
    if "://" in place:
        return Remote(place.rstrip("/"))
    path = root / Path(place).expanduser()
    for ending, kind in ARCHIVES.items():
        if path.name.endswith(ending):
            if not path.exists():
                raise PumiceError(f"{path}: no such archive of media")
            return kind(path)
    return Folder(path)


class Folder:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.place = str(path)

    def fetch(self, name: str) -> Path:
        return self.path / name


class _Opened:
    """A file that each process opens for itself, when it first needs it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.place = f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}"
        self._held: tuple[int, Any] | None = None

    def held(self) -> Any:
        if self._held is None or self._held[0] != os.getpid():
            self._held = (os.getpid(), self.open())
        return self._held[1]

    def open(self) -> Any:
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": None}

    def checked(self, size: int, name: str) -> None:
        """Refuse a file that is larger than a picture or video may be, before it is read."""
        if size > Limits().max_bytes:
            raise PumiceError(f"{self.path}, {name}: {size} bytes, the limit is {Limits().max_bytes}")


class Tar(_Opened):
    """An uncompressed tar, read at the offsets of its members."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.members = dict(tar_members(path))

    def open(self) -> int:
        return os.open(self.path, os.O_RDONLY)

    def fetch(self, name: str) -> bytes:
        span = self.members.get(name) or self.members.get(f"./{name}")
        if span is None:
            raise PumiceError(f"{self.path}: no member {name}")
        self.checked(span[1], name)
        return os.pread(self.held(), span[1], span[0])


def tar_members(path: Path) -> Iterator[tuple[str, Span]]:
    """(name, (offset, size)) of the files in an uncompressed tar.

    Raises:
        PumiceError: damaged, cut short, or compressed, which allows no reading in the middle.
    """
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isfile():
                    if member.offset_data + member.size > size:
                        raise PumiceError(f"{path}: cut short in {member.name}")
                    yield member.name, (member.offset_data, member.size)
    except (tarfile.TarError, OSError) as error:
        raise PumiceError(f"{path}: not an uncompressed tar ({error})") from None


class Zip(_Opened):
    def open(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, OSError) as error:
            raise PumiceError(f"{self.path}: not a zip ({error})") from None

    def fetch(self, name: str) -> bytes:
        try:
            member = self.held().getinfo(name)
            self.checked(member.file_size, name)
            return self.held().read(member)
        except KeyError:
            raise PumiceError(f"{self.path}: no member {name}") from None
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError) as error:
            raise PumiceError(f"{self.path}, {name}: damaged ({error})") from None
        except (OSError, ValueError, NotImplementedError, RuntimeError) as error:
            raise PumiceError(f"{self.path}, {name}: {error}") from None


_ENVIRONMENTS: dict[tuple[int, str], Any] = {}
"""LMDBs by process and path: one may be open in a process once only, and two sources may share it."""


class Lmdb(_Opened):
    """ELVA's: the relative path in UTF-8 to the file's bytes."""

    def open(self) -> Any:
        try:
            import lmdb
        except ImportError:
            raise PumiceError(f"{self.path}: reading an LMDB needs lmdb: pip install lmdb") from None
        key = (os.getpid(), str(self.path.resolve()))
        try:
            if key not in _ENVIRONMENTS:
                _ENVIRONMENTS[key] = lmdb.open(
                    key[1], readonly=True, lock=False, readahead=False, subdir=self.path.is_dir()
                )
        except lmdb.Error as error:
            raise PumiceError(f"{self.path}: not an LMDB ({error})") from None
        return _ENVIRONMENTS[key]

    def fetch(self, name: str) -> bytes:
        with self.held().begin(buffers=True) as transaction:
            found = transaction.get(name.encode(errors="replace")) if name else None  # an empty key is an error there
            if found is None:
                raise PumiceError(f"{self.path}: no key {name}")
            self.checked(len(found), name)
            return bytes(found)


class Remote:
    """An address such as s3://bucket/folder; the file system's own package must be installed (s3fs, gcsfs)."""

    def __init__(self, address: str) -> None:
        self.address = self.place = address

    def fetch(self, name: str) -> bytes:
        import fsspec

        where, limit = f"{self.address}/{name}", Limits().max_bytes
        try:
            with fsspec.open(where, "rb") as file:
                found: bytes = file.read(limit + 1)  # type: ignore[union-attr]
        except ImportError as error:
            raise PumiceError(f"{where}: {error}") from None
        except Exception as error:  # every file system has errors of its own
            raise PumiceError(f"{where}: not readable ({' '.join(str(error).split())[:160]})") from None
        if len(found) > limit:
            raise PumiceError(f"{where}: more than {limit} bytes, the limit")
        return found


ARCHIVES: dict[str, type[Tar] | type[Zip] | type[Lmdb]] = {".tar": Tar, ".zip": Zip, ".lmdb": Lmdb}
"""Stores by the end of a file's name; its content is checked when it is opened."""
