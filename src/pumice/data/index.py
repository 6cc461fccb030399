"""A source indexed once: what every sample costs and which can't be used, before a step is taken.

    Source ──open headers, lay out──> Parts (tokens, views, supervised, problem) ──> Index

Rows are laid out by the same code as in training, without decoding a pixel, so that the numbers are exact. Parts of
another file, tokenizer or layout are never mistaken for these: the folder's name holds a digest of them all.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np

from pumice.data.parts import Made, Parts, kept_in, plain, to_parquet
from pumice.data.pool import Where
from pumice.data.sources import Source, stamp
from pumice.encode import Processor, lay_out
from pumice.types import Media, PumiceError, Sample

PART = 2048
"""Rows of a part: about a second of work."""
VERSION = 2
COLUMNS = {"row": "i8", "tokens": "i4", "views": "i4", "media": "i4", "supervised": "i4", "content": "u8"}
UNREADABLE = "unreadable"
MARKERS = ("<image>", "<video>")

Progress = Callable[[str, int, int], None]
"""Told of an index in the making: (source, rows done, rows in all)."""

Problem = str
"""Why a row is left out: "unreadable" (record or media), "no loss", "too long", or "" where it isn't."""


class Row(NamedTuple):
    """What is known of one sample. ``content`` is a hash of its text and of its media's names and sizes, wherever they
    lie: equal ones are duplicates.
    """

    row: int
    tokens: int = 0
    views: int = 0
    media: int = 0
    supervised: int = 0
    content: int = 0
    literal: bool = False
    problem: Problem = ""
    detail: str = ""


@dataclass(frozen=True)
class Index:
    """Columns over a source's rows, in order: int arrays by the names of COLUMNS, and why rows are left out."""

    name: str
    columns: dict[str, np.ndarray]
    literal: np.ndarray
    problem: np.ndarray
    detail: list[str]

    def __len__(self) -> int:
        return len(self.problem)

    @property
    def usable(self) -> np.ndarray:
        """Numbers of the rows that can be trained on."""
        return np.flatnonzero(self.problem == "")

    @property
    def duplicates(self) -> int:
        """Usable rows that say the same about the same media as an earlier one."""
        content = self.columns["content"][self.usable]
        return len(content) - len(np.unique(content))


def faults(index: Index) -> str:
    """How many rows can't be trained on and the first reason of each kind, as a line; empty where all can."""
    kinds = sorted(set(index.problem.tolist()) - {""})
    if not kinds:
        return ""
    first = [f"{kind}: {index.detail[np.flatnonzero(index.problem == kind)[0]]}" for kind in kinds]
    missing = len(index) - len(index.usable)
    return f"{index.name}: {missing:,} of {len(index):,} samples can't be used ({'; '.join(first)})"


def split(index: Index, share: float) -> tuple[Index, Index]:
    """(what is trained on, what is held out). Samples with the same content stay on one side, whatever their number."""
    held = index.columns["content"] % np.uint64(10_000) < np.uint64(round(share * 10_000))

    def without(rows: np.ndarray, why: str) -> Index:
        return replace(index, problem=np.where(rows & (index.problem == ""), why, index.problem))

    return without(held, "held out"), without(~held, "trained on")


def measure(source: Source, row: int, processor: Processor) -> Row:
    """Index one row: the sample is laid out as training will do it."""
    try:
        sample = source.sample(row)
        pieces = list(lay_out(sample, processor))
    except PumiceError as error:
        return Row(row, problem=UNREADABLE, detail=plain(str(error)[:400]))
    tokens = sum(len(piece.ids) for piece in pieces)
    found = Row(
        row,
        tokens,
        views=sum(piece.layout.views for piece in pieces if piece.layout),
        media=len(sample.media),
        supervised=sum(len(piece.ids) for piece in pieces if piece.span.loss),
        content=_content(sample),
        literal=_has_literal(sample),
    )
    if tokens > processor.max_tokens:
        detail = f"{sample.id}: {tokens} tokens, the limit is {processor.max_tokens}"
        return found._replace(problem="too long", detail=plain(detail))
    if not found.supervised:
        return found._replace(problem="no loss", detail=plain(f"{sample.id}: no answer, or none within the limit"))
    return found


def _has_literal(sample: Sample) -> bool:
    return any(
        mark in part for turn in sample.turns for part in turn.content if isinstance(part, str) for mark in MARKERS
    )


def _content(sample: Sample) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for turn in sample.turns:
        for part in turn.content:
            named = f"{PurePath(part.name).name} {part.size}" if isinstance(part, Media) else part
            if isinstance(part, Media) and isinstance(part.reference, bytes):
                digest.update(part.reference)
            digest.update(f"{turn.role}\0{named}\0".encode(errors="replace"))
    return int.from_bytes(digest.digest(), "little")


def index_folder(source: Source, name: str, processor: Processor, cache: Path) -> Path:
    """Where the index of a source lies: its name ends in a digest of all that its numbers depend on."""
    backend = getattr(processor.tokenizer, "backend_tokenizer", None)
    said = backend.to_str() if backend is not None else repr(sorted(processor.tokenizer.get_vocab().items()))
    policies = (processor.policy, processor.several, processor.video, processor.template)
    policies += (processor.max_tokens, processor.cut, len(source))
    return kept_in(cache, name, f"{VERSION} {stamp(source)} {policies!r} {hashlib.sha256(said.encode()).hexdigest()}")


def build_index(
    source: Source,
    name: str,
    processor: Processor,
    cache: Path,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
    where: Where = "here",
    again: bool = False,
) -> Index:
    """The index of a source, from ``cache`` as far as it is there. ``progress`` is told (rows done, rows in all).

    With ``again``, parts with rows that couldn't be read are made anew: pictures may have been put in place since.

    Raises:
        PumiceError: the cache can't be written, or there is no Ray cluster. A faulty row is no error: it is in the
            index with its problem.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the processes are the parallelism
    parts = Parts(index_folder(source, name, processor, cache), len(source), PART, ".parquet")
    if again:
        for path in filter(Path.is_file, parts.paths):
            if (_read(name, [path]).problem == UNREADABLE).any():
                path.unlink()
    return _read(name, parts.make(_Measurer(source, processor), workers, where, progress))


@dataclass(frozen=True)
class _Measurer:
    """Makes the parts."""

    source: Source
    processor: Processor

    def __call__(self, start: int, stop: int) -> Made:
        rows = (measure(self.source, row, self.processor) for row in range(start, stop))
        return Made(to_parquet([row._asdict() for row in rows], _schema()))


def _schema() -> Any:
    import pyarrow as arrow

    kinds = {"i8": arrow.int64(), "i4": arrow.int32(), "u8": arrow.uint64()}
    fields = [(name, kinds[kind]) for name, kind in COLUMNS.items()]
    return arrow.schema([*fields, ("literal", arrow.bool_()), ("problem", arrow.string()), ("detail", arrow.string())])


def _read(name: str, parts: Sequence[Path]) -> Index:
    from pyarrow.parquet import read_table

    tables = [read_table(path) for path in parts]

    def column(key: str, kind: Any) -> np.ndarray:
        values = [np.asarray(table.column(key).to_numpy(), dtype=kind) for table in tables]
        return np.concatenate(values) if values else np.zeros(0, dtype=kind)

    return Index(
        name,
        {key: column(key, kind) for key, kind in COLUMNS.items()},
        column("literal", bool),
        column("problem", "U12"),
        [text for table in tables for text in table.column("detail").to_pylist()],
    )
