"""Sources of samples on disk, in the forms that LLaVA's data is published in.

    DataConfig ──open_source──> Source: len(source), source.sample(row) ──> Sample (media opened, nothing decoded)

A record that isn't what the form says is an error that names it; nothing is mended in silence, nothing swapped for
another sample.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pumice.config import SAMPLING, DataConfig
from pumice.data.conversations import Opener, conversation, named
from pumice.data.parquet import ParquetRows
from pumice.data.records import Records
from pumice.data.sampling import choose, file_rng
from pumice.data.stores import Store, open_store
from pumice.data.webdataset import WebDatasetSource
from pumice.messages import to_sample
from pumice.types import PumiceError, Sample, Turn
from pumice.vision.kinds import open_media

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".tif", ".tiff", ".bmp")


class Source(Protocol):
    """Samples by number. ``files`` are those whose change makes an index of the source stale; ``settings`` say what
    else it depends on: which samples were chosen, and where their media lie.
    """

    @property
    def files(self) -> list[Path]: ...
    @property
    def settings(self) -> str: ...
    def __len__(self) -> int: ...
    def sample(self, row: int) -> Sample: ...


def open_source(name: str, config: DataConfig, root: Path, seed: int = 0) -> Source:
    """The source that a recipe names, under the data root.

    Raises:
        PumiceError: it isn't there (with where it is published), or isn't of its form.
    """
    path = find_source(name, config, root)
    return FORMATS[config.format](name, path, open_store(config.media, root), config.sampling, seed)


def find_source(name: str, config: DataConfig, root: Path) -> Path:
    """The file or folder of a source.

    Raises:
        PumiceError: it isn't there.
    """
    path = root / Path(config.path).expanduser()
    if not path.exists():
        hint = f"; it is published at {config.url}" if config.url else ""
        raise PumiceError(f"[data.{name}]: {path} doesn't exist{hint} (--data or PUMICE_DATA is the data root)")
    return path


@dataclass
class _Part:
    """One file of a source and its chosen rows."""

    records: Records
    rows: np.ndarray


class RecordSource:
    """JSON or JSONL files of records, each chosen from as its sampling says."""

    def __init__(
        self, name: str, parts: Sequence[_Part], read: Callable[[dict[str, Any], Opener, str], Sample], media: Store
    ) -> None:
        self.name, self.parts, self.read, self.media = name, parts, read, media
        self.ends = np.cumsum([len(part.rows) for part in parts])
        self.settings = f"{media.place} {_digest(*(part.rows for part in parts))}"

    @property
    def files(self) -> list[Path]:
        return [part.records.path for part in self.parts]

    def __len__(self) -> int:
        return int(self.ends[-1])

    def sample(self, row: int) -> Sample:
        which = int(np.searchsorted(self.ends, row, side="right"))
        part = self.parts[which]
        number = int(part.rows[row - (self.ends[which - 1] if which else 0)])
        where = f"{self.name}-{number}" if len(self.parts) == 1 else f"{self.name}-{part.records.path.stem}-{number}"
        try:
            return self.read(part.records[number], self.open, where)
        except PumiceError as error:
            raise PumiceError(f"{part.records.path}, record {number}: {error}") from None

    def open(self, reference: Any) -> Any:
        return open_media(self.media.fetch(named(reference)))


def _llava(name: str, path: Path, media: Store, sampling: str, seed: int) -> RecordSource:
    """A JSON or JSONL file, a brace list of them, or a YAML mixture."""
    listed = _mixture(path) if path.suffix in (".yaml", ".yml") else [(path, sampling)]
    parts = []
    for file, chosen in listed:
        records = Records(file)
        parts.append(_Part(records, choose(len(records), chosen, file_rng(seed, file))))
    return RecordSource(name, parts, conversation, media)


def _mixture(path: Path) -> list[tuple[Path, str]]:
    """(file, sampling) pairs of a LLaVA-NeXT mixture; relative paths are relative to the YAML file."""
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        listed = data["datasets"]
        pairs = [(path.parent / entry["json_path"], entry.get("sampling_strategy", "all")) for entry in listed]
        if not pairs:
            raise TypeError("none")
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        wanted = "expected datasets: a list of {json_path, sampling_strategy}"
        raise PumiceError(f"{path}: {wanted} ({' '.join(repr(error).split())[:120]})") from None
    missing = [str(file) for file, _ in pairs if not file.is_file()]
    if missing:
        raise PumiceError(f"{path}: {len(missing)} of its {len(pairs)} files don't exist: {', '.join(missing[:8])}")
    strange = [how for _, how in pairs if not SAMPLING.fullmatch(str(how))]
    if strange:
        raise PumiceError(
            f"{path}: sampling_strategy {strange[0]!r}; expected all, first:N, end:N or random:N, N or N%"
        )
    return pairs


def _messages(name: str, path: Path, media: Store, sampling: str, seed: int) -> RecordSource:
    """OpenAI-style messages, one object a line: {"messages": [...]}."""
    records = Records(path)
    part = _Part(records, choose(len(records), sampling, file_rng(seed, path)))
    return RecordSource(name, [part], lambda record, opener, where: _from_messages(record, media, where), media)


def _from_messages(record: dict[str, Any], media: Store, where: str) -> Sample:
    messages = record.get("messages")
    if not isinstance(messages, list):
        raise PumiceError(f"messages is {type(messages).__name__}, expected a list")
    sample = to_sample([_rooted(message, media) for message in messages])
    return Sample(sample.turns, id=str(record.get("id", where)), source=str(record.get("source", "")))


def _rooted(message: Any, media: Store) -> Any:
    """The message with its media fetched from the store."""
    if not isinstance(message, dict) or not isinstance(message.get("content"), list):
        return message
    parts = []
    for part in message["content"]:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("image", "video", "pdf") and isinstance(part.get(kind), str) and part[kind][:5] != "data:":
            part = {**part, kind: media.fetch(part[kind])}
        parts.append(part)
    return {**message, "content": parts}


class CaptionSource:
    """A folder of pictures, each with its caption in a .txt file of the same name beside it."""

    def __init__(self, name: str, path: Path, media: Store, sampling: str, seed: int) -> None:
        self.name, self.path = name, path
        found = sorted(file for file in path.rglob("*.txt") if file.is_file())
        if not found:
            raise PumiceError(f"[data.{name}]: {path} holds no .txt file; expected a caption beside every picture")
        self.captions = [found[i] for i in choose(len(found), sampling, file_rng(seed, path))]
        self.settings = ""  # its files are those that were chosen

    @property
    def files(self) -> list[Path]:
        return self.captions

    def __len__(self) -> int:
        return len(self.captions)

    def sample(self, row: int) -> Sample:
        file = self.captions[row]
        pictures = [file.with_suffix(kind) for kind in PICTURES if file.with_suffix(kind).is_file()]
        if len(pictures) != 1:
            raise PumiceError(f"{file}: {len(pictures)} pictures of that name beside it, expected one")
        try:
            caption = file.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise PumiceError(f"{file}: {error}") from None
        if not caption:
            raise PumiceError(f"{file}: an empty caption")
        turns = (Turn("user", tuple(open_media(pictures[0]))), Turn("assistant", (caption,)))
        return Sample(turns, id=f"{self.name}-{file.stem}")


class ParquetSource:
    """LLaVA's conversations with embedded pictures: columns id, image or images ({bytes, path}), conversations.

    A file, or a folder of them.
    """

    def __init__(self, name: str, path: Path, media: Store, sampling: str, seed: int) -> None:
        self.name, self.media = name, media
        self.files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
        if not self.files:
            raise PumiceError(f"[data.{name}]: {path} holds no .parquet file")
        self.table = ParquetRows(self.files)
        self.rows = choose(len(self.table), sampling, file_rng(seed, path))
        self.settings = f"{media.place} {_digest(self.rows)}"

    def __len__(self) -> int:
        return len(self.rows)

    def sample(self, row: int) -> Sample:
        number = int(self.rows[row])
        record = {key: value for key, value in self.table.row(number).items() if value is not None}
        try:
            return conversation(record, self._open, f"{self.name}-{number}")
        except PumiceError as error:
            raise PumiceError(f"{self.table.file_of(number)}, row {number}: {error}") from None

    def _open(self, reference: Any) -> Any:
        embedded = reference.get("bytes") if isinstance(reference, dict) else None
        if embedded:
            return open_media(embedded)
        path = reference.get("path") if isinstance(reference, dict) else reference
        if not isinstance(path, str):
            raise PumiceError("a picture with neither bytes nor a path")
        return open_media(self.media.fetch(path))


FORMATS: dict[str, Callable[[str, Path, Store, str, int], Source]] = {
    "llava": _llava,
    "messages": _messages,
    "captions": CaptionSource,
    "parquet": ParquetSource,
    "webdataset": WebDatasetSource,
}
"""Readers by the name of the form in a recipe; another form is one function or class of this signature."""


def _digest(*chosen: np.ndarray) -> int:
    """A number for the chosen rows of files in order."""
    return zlib.crc32(np.concatenate([rows.astype(np.int64) for rows in chosen]).tobytes())


def stamp(source: Source) -> str:
    """What changes with the source's settings, and when one of its files does: names, sizes and times of writing."""
    return hashlib.sha256(f"{states(source.files)} {source.settings}".encode(errors="backslashreplace")).hexdigest()


def states(files: Sequence[Path]) -> str:
    """Names, sizes and times of writing of files."""
    return ";".join(f"{file}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files)
