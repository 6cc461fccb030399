"""Near-duplicates inside of data, and what of it stands in test sets: which samples, beside which, and which to drop.

    sources ──sign──> Signatures ──near──> same pictures, duplicates ──┐
    tests ────sign──> Signatures ──near, n-grams──> contaminated ──────┴──> Findings ──> report, list of what to drop

A duplicate says nearly the same about the same pictures as an earlier sample. The same picture with another question
is counted and stays: the published mixtures ask many questions about each picture. A sample is contaminated where it
shows a picture of a test set, whatever it says, or repeats an item's words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pumice.data.care.categories import Balance
from pumice.data.care.near import near_between, near_pairs
from pumice.data.care.overlap import Index, build_index, find_hits, judge
from pumice.data.care.personal import Scrubber
from pumice.data.care.pictures import NEAR
from pumice.data.care.signatures import Signatures, said, sign
from pumice.data.care.texts import NEAR_TEXT
from pumice.data.pool import Where
from pumice.data.sources import Source
from pumice.types import PumiceError

Why = str
DUPLICATE, PICTURE, TEXT = "duplicate", "test picture", "test text"
"""Why a sample is dropped."""


class Place(NamedTuple):
    """A sample: its source's name and its row there."""

    source: str
    row: int


class Pair(NamedTuple):
    """A sample, why it is dropped, and what it is a copy of: an earlier sample or a test set's."""

    mine: Place
    why: Why
    other: Place


@dataclass
class Findings:
    """All that was found. ``pictures`` counts those that samples show, ``distinct`` how many different ones these are;
    ``again`` samples show nothing that wasn't shown before but say something else. ``common`` n-grams were too common.
    """

    signatures: dict[str, Signatures]
    tests: dict[str, Signatures]
    pairs: list[Pair] = field(default_factory=list)
    pictures: int = 0
    distinct: int = 0
    again: int = 0
    common: int = 0

    @property
    def samples(self) -> int:
        return sum(map(len, self.signatures.values()))

    def dropped(self) -> dict[Place, Pair]:
        """The samples to drop, in order, each with the first reason."""
        found: dict[Place, Pair] = {}
        for pair in self.pairs:
            found.setdefault(pair.mine, pair)
        return found

    def by_reason(self) -> Counter[Why]:
        """Samples to drop by their first reason."""
        return Counter(pair.why for pair in self.dropped().values())

    def balance(self) -> Balance:
        return Balance(sum((one.counts() for one in self.signatures.values()), Counter()))

    def personal(self) -> Counter[str]:
        return sum((one.personal() for one in self.signatures.values()), Counter())

    def source(self, place: Place) -> Source:
        """The source of a place, a test set's or the data's own."""
        return (self.signatures.get(place.source) or self.tests[place.source]).source


Told = Callable[[str, int, int], None]
"""Told of the work: (what, rows done, rows in all)."""


@dataclass(frozen=True)
class Work:
    """How long work is done: parts are kept in ``cache``."""

    cache: Path
    workers: int = 1
    where: Where = "here"
    told: Told = lambda what, done, total: None


def check(
    sources: Mapping[str, Source], tests: Mapping[str, Source], work: Work, scrubber: Scrubber | None = None
) -> Findings:
    """Look at all samples of the sources, and compare them with each other and with the test sets.

    Raises:
        PumiceError: the cache can't be written, or there is no Ray cluster. A faulty sample is no error.
    """
    signatures = {name: _sign(source, name, work, scrubber) for name, source in sources.items()}
    tests = {name if name not in sources else f"{name} (test)": source for name, source in tests.items()}
    seen = {name: _sign(source, name, work, None) for name, source in tests.items()}
    findings = Findings(signatures, seen)
    mine, theirs = _Shown(signatures), _Shown(seen)
    if tests:
        findings.pairs += _test_pictures(mine, theirs)
        findings.pairs += _test_texts(findings, work)
    groups = _groups(mine.prints)
    findings.pictures, findings.distinct = len(groups), len(np.unique(groups))
    pairs, findings.again = _duplicates(mine, groups)
    findings.pairs += pairs
    return findings


def _sign(source: Source, name: str, work: Work, scrubber: Scrubber | None) -> Signatures:
    return sign(source, name, work.cache, scrubber, work.workers, work.where, _telling(work, name))


class _Shown:
    """The signatures of several sources one after the other: rows are numbered through."""

    def __init__(self, signatures: Mapping[str, Signatures]) -> None:
        self.names = list(signatures)
        self.starts = np.cumsum([0, *map(len, signatures.values())])
        every = list(signatures.values())
        self.text = np.concatenate([one.text for one in every] or [np.zeros(0, np.uint64)])
        self.prints = np.concatenate([one.prints for one in every] or [np.zeros((0, 1), np.uint64)])
        owners = [one.owner + start for one, start in zip(every, self.starts, strict=False)]
        self.owner = np.concatenate([*owners, np.zeros(0, np.int64)]).astype(np.int64)
        readable = [np.array([not why for why in one.column("problem")], dtype=bool) for one in every]
        self.readable = np.concatenate([*readable, np.zeros(0, bool)])

    def place(self, row: int) -> Place:
        which = int(np.searchsorted(self.starts, row, side="right")) - 1
        return Place(self.names[which], int(row - self.starts[which]))


def _test_pictures(mine: _Shown, theirs: _Shown) -> list[Pair]:
    near = near_between(mine.prints, theirs.prints, NEAR)
    rows = sorted({(int(mine.owner[i]), int(theirs.owner[j])) for i, j in near})
    return [Pair(mine.place(row), PICTURE, theirs.place(other)) for row, other in rows]


def test_index(tests: Mapping[str, Source]) -> Index:
    """The n-grams of all test sets' items, in order."""
    return build_index(_text(source, row) for source in tests.values() for row in range(len(source)))


def _test_texts(findings: Findings, work: Work) -> list[Pair]:
    tests = [Place(name, row) for name, one in findings.tests.items() for row in range(len(one))]
    index = test_index({name: one.source for name, one in findings.tests.items()})
    if not index.grams:
        return []
    hits = [
        find_hits(one.source, name, index, work.cache, work.workers, work.where, _telling(work, f"{name}, texts"))
        for name, one in findings.signatures.items()
    ]
    overlaps = judge(hits, index)
    findings.common = overlaps.common
    return [
        Pair(Place(name, row), TEXT, tests[item])
        for name, pairs in zip(findings.signatures, overlaps.pairs, strict=True)
        for row, item in pairs
    ]


def _telling(work: Work, what: str) -> Callable[[int, int], None]:
    return lambda done, total: work.told(what, done, total)


def _text(source: Source, row: int) -> str:
    try:
        return said(source.sample(row))
    except PumiceError:
        return ""


def _groups(prints: np.ndarray) -> np.ndarray:
    """A number for each picture, the same for near ones and for those that are near to these: the first one's place."""
    pairs = near_pairs(prints, NEAR)
    groups = np.arange(len(prints))
    while len(pairs):
        lowest = np.minimum(groups[pairs[:, 0]], groups[pairs[:, 1]])
        before = groups.copy()
        np.minimum.at(groups, pairs[:, 0], lowest)
        np.minimum.at(groups, pairs[:, 1], lowest)
        groups = groups[groups]
        if (groups == before).all():
            break
    return groups


def _duplicates(mine: _Shown, groups: np.ndarray) -> tuple[list[Pair], int]:
    """(pairs of a sample and the earlier one that stays, samples that say something else about the same pictures)."""
    shown = _shown_keys(mine, groups)
    rows = np.flatnonzero(mine.readable & ((mine.text != 0) | (shown != 0)))
    # Looked up by both at once: many samples may say the same about different pictures.
    near = near_pairs(np.stack([mine.text[rows] ^ shown[rows], shown[rows]], 1), (NEAR_TEXT, 0))
    near = near[np.lexsort((near[:, 0], near[:, 1]))]
    same = mine.text[rows[near[:, 0]]] == mine.text[rows[near[:, 1]]]
    beside: dict[int, int] = {}  # what is dropped, and what stays in its place
    ordered: list[list[int]] = near.tolist()
    for (first, second), equal in zip(ordered, same.tolist(), strict=True):
        if equal or first not in beside:  # what is only near to a dropped one needn't be near to what stays
            beside.setdefault(second, beside.get(first, first))
    pairs = [Pair(mine.place(rows[second]), DUPLICATE, mine.place(rows[first])) for second, first in beside.items()]
    with_pictures = shown[rows][shown[rows] != 0]
    more = len(with_pictures) - len(np.unique(with_pictures))
    return pairs, more - sum(1 for second in beside if shown[rows[second]])


def _shown_keys(mine: _Shown, groups: np.ndarray) -> np.ndarray:
    """(N,) uint64: a hash of the pictures that a sample shows, in order; 0 without any."""
    keys = np.zeros(len(mine.text), dtype=np.uint64)
    # Pictures of a sample stand together, so that its key is made in turns: the first of all, then the second ...
    starts = np.flatnonzero(np.diff(mine.owner, prepend=-1))
    place = np.arange(len(groups)) - np.repeat(starts, np.diff(np.append(starts, len(groups))))
    for turn in range(int(place.max(initial=-1)) + 1):
        here = place == turn
        owners = mine.owner[here]
        keys[owners] = (keys[owners] + groups[here].astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    return keys


def drop_lines(findings: Findings) -> list[dict[str, object]]:
    """What is dropped as records: {source, row, id, why, of: {source, row, id}}."""
    ids = {name: one.column("id") for name, one in (findings.tests | findings.signatures).items()}

    def named(place: Place) -> dict[str, object]:
        return {**place._asdict(), "id": ids[place.source][place.row]}

    return [{**named(pair.mine), "why": pair.why, "of": named(pair.other)} for pair in findings.dropped().values()]


def sources_of(pairs: Sequence[Pair]) -> Counter[str]:
    """How many samples stand in each test set."""
    return Counter(name for name, _ in {(pair.other.source, pair.mine) for pair in pairs if pair.why != DUPLICATE})
