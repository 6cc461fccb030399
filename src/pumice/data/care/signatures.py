"""What is kept of every sample: enough to find its near-duplicates and to count its kind, a few dozen bytes each.

Source ──Signer, part by part──> parquet ──read──> Signatures: hashes of texts and pictures, visual input, category ...
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pumice.data.care.categories import category, response, visual_input
from pumice.data.care.personal import Scrubber
from pumice.data.care.pictures import NUMBERS, prints
from pumice.data.care.texts import simhash, word_hashes
from pumice.data.parts import Made, Parts, Progress, kept_in, plain, to_parquet
from pumice.data.pool import Where
from pumice.data.sources import RecordSource, Source, stamp
from pumice.types import PumiceError, Sample

PART = 1024
VERSION = 1


def said(sample: Sample) -> str:
    """All that user and assistant say in a sample; what the system says is a frame that many samples share."""
    parts = (part for turn in sample.turns if turn.role != "system" for part in turn.content)
    return "\n".join(part for part in parts if isinstance(part, str))


@dataclass
class Signer:
    """Makes parts of a source's signatures; with ``scrubber`` personal data is counted as well."""

    source: Source
    name: str
    scrubber: Scrubber | None = None

    def __call__(self, start: int, stop: int) -> Made:
        """Rows ``start`` to ``stop`` as a parquet file."""
        return Made(to_parquet([self.sign(row) for row in range(start, stop)], _schema()))

    def sign(self, row: int) -> dict[str, Any]:
        """One row; a sample that can't be read has its problem alone."""
        try:
            sample = self.source.sample(row)
            seen = [one for media in sample.media for one in prints(media)]
        except PumiceError as error:
            return {"id": "", "problem": plain(str(error)[:400])}
        text = said(sample)
        hashes = word_hashes(text)
        return {
            "id": plain(sample.id),
            "text": simhash(hashes),
            "words": len(hashes),
            "prints": [number for one in seen for number in one],
            "visual": visual_input(sample),
            "category": category(sample, origin(self.source, row, self.name)),
            "response": response(sample),
            "personal": json.dumps(self.scrubber.scrub(text)[1]) if self.scrubber else "",
            "problem": "",
        }


def origin(source: Source, row: int, name: str) -> str:
    """Name of the file that a row is from, where a source has several; else the source's own."""
    if not isinstance(source, RecordSource) or len(source.parts) == 1:
        return name
    return source.parts[int(np.searchsorted(source.ends, row, side="right"))].records.path.stem


def _schema() -> Any:
    import pyarrow as arrow

    texts = ("id", "visual", "category", "response", "personal", "problem")
    numbers = [("text", arrow.uint64()), ("words", arrow.int32()), ("prints", arrow.list_(arrow.uint64()))]
    return arrow.schema([(name, arrow.string()) for name in texts] + numbers)


@dataclass(frozen=True)
class Signatures:
    """Signatures of one source's rows, in order.

    text (N,) uint64 of the readable ones, 0 of others; prints (P, 5) uint64 of all pictures, and owner (P,) int64, the
    row that shows each.
    """

    name: str
    source: Source
    table: Any
    text: np.ndarray
    prints: np.ndarray
    owner: np.ndarray

    def __len__(self) -> int:
        return len(self.text)

    def column(self, name: str) -> list[str]:
        """A column of texts."""
        return self.table.column(name).to_pylist()

    def counts(self) -> Counter[tuple[str, str, str]]:
        """How many readable samples there are of each (visual input, category, response)."""
        rows = zip(*(self.column(name) for name in ("visual", "category", "response", "problem")), strict=True)
        return Counter((visual, kind, how) for visual, kind, how, problem in rows if not problem)

    def personal(self) -> Counter[str]:
        """How much personal data there is of each kind, where it was looked for."""
        total = Counter[str]()
        for counts in self.column("personal"):
            total.update(json.loads(counts) if counts else {})
        return total

    def problems(self) -> list[tuple[int, str]]:
        """(row, why) of those that can't be read."""
        return [(row, why) for row, why in enumerate(self.column("problem")) if why]


def sign(
    source: Source,
    name: str,
    cache: Path,
    scrubber: Scrubber | None = None,
    workers: int = 1,
    where: Where = "here",
    progress: Progress | None = None,
) -> Signatures:
    """The signatures of a source, from ``cache`` as far as they are there.

    Raises:
        PumiceError: the cache can't be written. A faulty sample is no error.
    """
    parts = Parts(signatures_folder(source, name, cache, scrubber), len(source), PART, ".parquet")
    return _read(name, source, parts.make(Signer(source, name, scrubber), workers, where, progress))


def signatures_folder(source: Source, name: str, cache: Path, scrubber: Scrubber | None) -> Path:
    """Where a source's signatures are kept."""
    files = ";".join(str(file.resolve()) for file in source.files)
    looked = scrubber and (scrubber.region or "any")
    return kept_in(cache, name, f"{VERSION} {stamp(source)} {files} {len(source)} {looked}")


def _read(name: str, source: Source, paths: Sequence[Path]) -> Signatures:
    import pyarrow as arrow
    from pyarrow.parquet import read_table

    table = arrow.concat_tables([read_table(path) for path in paths]) if paths else _schema().empty_table()
    table = table.combine_chunks()
    lists = table.column("prints").fill_null([]).combine_chunks()
    lengths = np.asarray(lists.value_lengths()) // NUMBERS
    flat = np.asarray(lists.flatten(), dtype=np.uint64).reshape(-1, NUMBERS)
    text = np.asarray(table.column("text").fill_null(0).to_numpy(), dtype=np.uint64)
    return Signatures(name, source, table, text, flat, np.repeat(np.arange(len(lengths)), lengths))
