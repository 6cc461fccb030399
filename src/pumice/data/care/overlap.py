"""Texts of test sets that training data repeats: n-grams of words that both have.

test sets ──n-grams──> Index ──looked up for every training sample, part by part──> hits ──without common ones──> pairs

n is 13, and for shorter items all of their words if these are at least 8, as in GPT-3 (arXiv 2005.14165, Appendix C: 13
at most, 8 at least). As there, an n-gram that more than 10 samples share says nothing: it is a phrase of the format and
not a leaked item. Items of fewer than 8 words can't be told by their text; the picture tells them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pumice.data.care.signatures import said
from pumice.data.care.texts import grams, word_hashes
from pumice.data.parts import Made, Parts, Progress, kept_in, to_parquet
from pumice.data.pool import Where
from pumice.data.sources import Source, stamp
from pumice.types import PumiceError

LONGEST, SHORTEST = 13, 8
COMMON = 10
"""Samples, or test items, that may share an n-gram before it says nothing."""
PART = 4096


@dataclass(frozen=True)
class Index:
    """n-grams of test items: for each length the sorted grams (G,) uint64, and the items' numbers (G,) beside them."""

    grams: dict[int, tuple[np.ndarray, np.ndarray]]
    digest: str

    def shared(self, hashes: np.ndarray) -> np.ndarray:
        """The distinct n-grams of a text's words that some item has."""
        found = [np.zeros(0, dtype=np.uint64)]
        for n, (known, _) in self.grams.items():
            mine = np.unique(grams(hashes, n))
            places = np.minimum(np.searchsorted(known, mine), len(known) - 1)
            found.append(mine[known[places] == mine])
        return np.unique(np.concatenate(found))

    def items(self, gram: int) -> list[int]:
        """Numbers of the items that have an n-gram."""
        found: set[int] = set()
        for known, items in self.grams.values():
            begin, end = (
                np.searchsorted(known, np.uint64(gram), "left"),
                np.searchsorted(known, np.uint64(gram), "right"),
            )
            found |= set(items[begin:end].tolist())
        return sorted(found)


def build_index(texts: Iterable[str]) -> Index:
    """The index of test items, in order. n-grams that more than COMMON items have are left out."""
    by_length: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    digest = hashlib.sha256()
    for number, text in enumerate(texts):
        hashes = word_hashes(text)
        n = min(LONGEST, len(hashes))
        if n >= SHORTEST:
            mine = np.unique(grams(hashes, n))
            digest.update(mine.tobytes())
            by_length.setdefault(n, []).append((mine, np.full(len(mine), number)))
    made = {n: _sorted(pairs) for n, pairs in sorted(by_length.items())}
    return Index({n: one for n, one in made.items() if len(one[0])}, digest.hexdigest())


def _sorted(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    known, items = np.concatenate([a for a, _ in pairs]), np.concatenate([b for _, b in pairs])
    _, back, counts = np.unique(known, return_inverse=True, return_counts=True)
    rare = counts[back] <= COMMON
    known, items = known[rare], items[rare]
    order = np.argsort(known, kind="stable")
    return known[order], items[order]


@dataclass
class _Looker:
    """Makes the parts: (row, n-gram) of all hits."""

    source: Source
    index: Index

    def __call__(self, start: int, stop: int) -> Made:
        rows = []
        for row in range(start, stop):
            try:
                text = said(self.source.sample(row))
            except PumiceError:  # the signatures say so
                continue
            rows += [{"row": row, "gram": int(gram)} for gram in self.index.shared(word_hashes(text))]
        return Made(to_parquet(rows, _schema()))


def _schema() -> Any:
    import pyarrow as arrow

    return arrow.schema([("row", arrow.int64()), ("gram", arrow.uint64())])


@dataclass
class Hits:
    """(row, n-gram) pairs of one source."""

    rows: np.ndarray
    grams: np.ndarray


def find_hits(
    source: Source, name: str, index: Index, cache: Path, workers: int, where: Where, progress: Progress | None = None
) -> Hits:
    """Where a source's texts share n-grams with the test items, from ``cache`` as far as it is there."""
    from pyarrow.parquet import read_table

    text = f"{stamp(source)} {[str(file.resolve()) for file in source.files]} {len(source)} {index.digest}"
    folder = kept_in(cache, f"{name}-overlap", text)
    paths = Parts(folder, len(source), PART, ".parquet").make(_Looker(source, index), workers, where, progress)
    tables = [read_table(path) for path in paths]
    rows = [np.asarray(table.column("row").to_numpy(), dtype=np.int64) for table in tables]
    found = [np.asarray(table.column("gram").to_numpy(), dtype=np.uint64) for table in tables]
    return Hits(np.concatenate([*rows, np.zeros(0, np.int64)]), np.concatenate([*found, np.zeros(0, np.uint64)]))


@dataclass
class Overlaps:
    """Pairs (row of a source, test item), by source; ``common`` n-grams were too common to say anything."""

    pairs: list[list[tuple[int, int]]] = field(default_factory=list)
    common: int = 0


def judge(hits: Sequence[Hits], index: Index) -> Overlaps:
    """The pairs of sample and item that share an n-gram, of those that at most COMMON samples of all sources share."""
    if not hits:
        return Overlaps()
    distinct, counts = np.unique(np.concatenate([one.grams for one in hits]), return_counts=True)
    rare = distinct[counts <= COMMON]
    result = Overlaps([], int(len(distinct) - len(rare)))
    items = {int(gram): index.items(int(gram)) for gram in rare}
    for one in hits:
        kept = np.isin(one.grams, rare)
        pairs = {
            (int(row), item)
            for row, gram in zip(one.rows[kept], one.grams[kept], strict=True)
            for item in items[int(gram)]
        }
        result.pairs.append(sorted(pairs))
    return result
