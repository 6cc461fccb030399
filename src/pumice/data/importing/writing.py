"""Records written in a form that training reads, whatever form they came in.

    Entries: entry(row) ──part by part──> OUT/NAME.jsonl, whose pictures stay where they are
                                     └──> OUT/NAME/*.parquet, where they are embedded

Either is LLaVA's form. Which one follows from where the pictures are: files are named, bytes are embedded.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Protocol

from pumice.data.conversations import MARKER
from pumice.data.parts import Job, Made, Parts, Progress, Where
from pumice.data.produce.records import Record
from pumice.data.produce.shards import ParquetShard, settle, write_whole
from pumice.types import Media, PumiceError, Sample
from pumice.vision.media import SIGNATURES

PART = 1024
"""Records of a part, and of a parquet file."""
LEFT_OUT = "left out: "
"""How counts of records that aren't written begin."""


class Entry(NamedTuple):
    """A record: what it says, with LLaVA's keys, and its pictures as paths or bytes in the order of their markers."""

    said: dict[str, Any]
    media: Sequence[str | bytes]


class Entries(Protocol):
    """Records to be written, by number. ``media`` is the folder that their paths are relative to; None where pictures
    are embedded. ``settings`` say what the records depend on: parts of others are never mistaken for theirs.
    """

    @property
    def media(self) -> Path | None: ...
    @property
    def settings(self) -> str: ...
    def __len__(self) -> int: ...
    def entry(self, row: int, counts: Counter[str]) -> Entry | None:
        """A record; None where it is left out, with the reason in ``counts``, which anything else may be counted in."""
        ...


@dataclass(frozen=True)
class Written:
    """What was written, for a recipe: its form, where it is, and where its pictures are; and what was counted."""

    format: str
    path: Path
    media: Path | None
    counts: dict[str, int] = field(default_factory=dict)

    def lines(self, name: str, more: Sequence[str] = ()) -> str:
        """The section of a recipe that names it."""
        media = [f"media = {json.dumps(str(self.media))}"] if self.media else []
        said = [f'format = "{self.format}"', f"path = {json.dumps(str(self.path))}", *media, *more]
        return "\n".join([f"[data.{name}]", *said]) + "\n"


def write_entries(
    entries: Entries, out: Path, name: str, workers: int = 1, where: Where = "here", progress: Progress | None = None
) -> Written:
    """Write all entries to ``out``; goes on where it was stopped.

    Raises:
        PumiceError: it can't be written, or is there from before.
    """
    target = Target(out, name, len(entries), entries.media, PART)
    target.claim(entries.settings)
    return target.write(_Writer(entries), workers, where, progress)


@dataclass(frozen=True)
class Target:
    """Where ``count`` records go: OUT/NAME.jsonl where ``media`` is the folder of their pictures, or, where it is None,
    OUT/NAME/*.parquet. A part has ``size`` of them.
    """

    out: Path
    name: str
    count: int
    media: Path | None
    size: int

    @property
    def path(self) -> Path:
        """The file or folder of the result."""
        return self.out / (self.name if self.media is None else f"{self.name}.jsonl")

    @property
    def parts(self) -> Parts:
        """The result in parts: of parquet they stay, of JSONL they are put together at the end."""
        if self.media is None:
            return Parts(self.path, self.count, self.size, ".parquet")
        return Parts(self.out / f".{self.name}.parts", self.count, self.size, ".jsonl")

    def check(self) -> None:
        """Raises PumiceError where there is such a result already."""
        if self.media is not None and self.path.exists():
            raise PumiceError(f"{self.path}: there is such a file; remove it or choose another --out")

    def claim(self, settings: str) -> None:
        """Raises PumiceError where there are parts of other data, or made with other settings."""
        self.check()
        path, digest = self.parts.folder / ".made-of", hashlib.sha256(settings.encode(errors="backslashreplace"))
        if not any(part.is_file() for part in self.parts.paths):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, digest.hexdigest().encode())
        elif not path.is_file() or path.read_text() != digest.hexdigest():
            raise PumiceError(
                f"{self.parts.folder}: begun from other data or with other settings; remove it or choose another --out"
            )

    def write(self, job: Job, workers: int = 1, where: Where = "here", progress: Progress | None = None) -> Written:
        """Have the missing parts made, and put them together.

        Raises:
            PumiceError: as `write_entries`.
        """
        self.check()
        paths = self.parts.make(job, workers, where, progress)
        counts = dict(self.parts.notes())
        if self.media is None:
            return Written("parquet", self.path.resolve(), None, counts)
        join(paths, self.path)
        shutil.rmtree(self.parts.folder)
        return Written("llava", self.path.resolve(), self.media, counts)


def join(paths: Sequence[Path], target: Path) -> None:
    """One file of several, there whole or not at all."""
    scratch = target.with_name(f"{target.name}.tmp")
    with scratch.open("wb") as file:
        for path in paths:
            with path.open("rb") as part:
                shutil.copyfileobj(part, file)
    settle(scratch, target)


@dataclass
class _Writer:
    """Makes the parts."""

    entries: Entries

    def __call__(self, start: int, stop: int) -> Made:
        counts = Counter[str]()
        kept: list[tuple[int, Entry]] = []
        for row in range(start, stop):
            entry = self.entries.entry(row, counts)
            if entry is not None and (self.entries.media is not None or _is_unicode(entry.said)):
                kept.append((row, entry))
            elif entry is not None:
                counts[f"{LEFT_OUT}not Unicode"] += 1
        return made_of(kept, counts, self.entries.media)


def _is_unicode(said: dict[str, Any]) -> bool:
    """Whether parquet takes the texts of a record; JSON may hold half of a surrogate pair."""
    try:
        return bool(json.dumps(said, ensure_ascii=False).encode())
    except UnicodeEncodeError:
        return False


def made_of(kept: Sequence[tuple[int, Entry]], counts: Counter[str], media: Path | None) -> Made:
    """A part of (row, entry) pairs: JSON lines where their pictures are files below ``media``, else parquet."""
    counts["written"] += len(kept)
    return Made(_parquet(kept) if media is None else _lines(kept), dict(counts))


def _lines(kept: Sequence[tuple[int, Entry]]) -> bytes:
    lines = []
    for _, entry in kept:
        media = {"image": entry.media[0] if len(entry.media) == 1 else list(entry.media)} if entry.media else {}
        lines.append(json.dumps({**entry.said, **media}, ensure_ascii=False) + "\n")
    return "".join(lines).encode(errors="backslashreplace")


def _parquet(kept: Sequence[tuple[int, Entry]]) -> bytes:
    with TemporaryDirectory() as scratch:
        path = Path(scratch) / "part.parquet"
        shard = ParquetShard(path)
        for row, entry in kept:
            media = tuple((_ending(data), data) for data in entry.media if isinstance(data, bytes))
            said = {"reading": "", **entry.said, "id": str(entry.said.get("id", row))}
            shard.add(Record(f"{row:08d}", media, said))
        shard.close()
        return path.read_bytes()


def _ending(data: bytes) -> str:
    """The ending of a file's name by its first bytes."""
    return next((kind.lower() for start, kind in SIGNATURES.items() if data.startswith(start)), "bin")


def conversation_of(exchanges: Sequence[tuple[str, str]], pictures: int) -> list[dict[str, str]]:
    """LLaVA's conversation of (question, answer) pairs about pictures that stand before the first question.

    Raises:
        PumiceError: there is no exchange, or a text holds the marker, which would stand for one more picture.
    """
    if not exchanges:
        raise PumiceError("no question or no answer")
    if pictures and any(MARKER in question for question, _ in exchanges):
        raise PumiceError(f"a question has {MARKER} in it, as text")
    turns = []
    for position, (question, answer) in enumerate(exchanges):
        marks = "" if position else f"{MARKER}\n" * pictures
        turns += [{"from": "human", "value": f"{marks}{question}"}, {"from": "gpt", "value": answer}]
    return turns


def sample_entry(sample: Sample, root: Path | None) -> Entry:
    """A Sample as a record that reads as this very sample. With ``root`` its media are named below that folder.

    Raises:
        PumiceError: that form can't say it: a text with the marker in it, or a picture that is neither file nor bytes.
    """
    media: list[str | bytes] = []
    turns = []
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    for turn in sample.turns:
        text = ""
        for part in turn.content:
            if isinstance(part, Media):
                media.append(_reference(part, root))
                text += f"{MARKER}\n"
            elif sample.media and turn.role == "user" and MARKER in part:
                raise PumiceError(f"a text has {MARKER} in it, as text")
            else:
                text += part
        turns.append({"from": names[turn.role], "value": text})
    said: dict[str, Any] = {"id": sample.id, "conversations": turns}
    said |= {"data_source": sample.source} if sample.source else {}
    return Entry(said | ({"reading": sample.reading} if sample.reading else {}), media)


def _reference(media: Media, root: Path | None) -> str | bytes:
    held = media.reference
    if isinstance(held, bytes) and root is None:
        return held
    if not isinstance(held, str | Path):
        raise PumiceError(f"{media.name}: a picture in memory; expected one in a file")
    path = Path(held).resolve()
    if root is None:
        return path.read_bytes()
    name = str(path.relative_to(root) if path.is_relative_to(root) else path)
    return f"{name}#{media.page + 1}" if media.kind == "page" else name
