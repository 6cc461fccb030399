"""A copy of data without what is to be dropped, and without personal data if that is wanted.

    Source + list of `pumice data check --write-clean` ──Cleaned──> entries ──> OUT/NAME.jsonl | OUT/NAME/*.parquet

Every source comes out in LLaVA's form, whatever it was read from. Where its pictures are files, these stay where they
are and the copy is text alone.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pumice.data.care.personal import Scrubber
from pumice.data.importing.writing import LEFT_OUT, Entry, sample_entry
from pumice.data.sources import CaptionSource, RecordSource, Source, stamp
from pumice.data.stores import Folder
from pumice.types import PumiceError, Sample, Turn


@dataclass
class Cleaned:
    """A source's samples but for ``dropped`` rows, with stand-ins for personal data where ``scrubber`` finds some."""

    source: Source
    dropped: dict[int, str]
    scrubber: Scrubber | None

    @property
    def media(self) -> Path | None:
        """The folder of the source's pictures; None where they aren't files of their own."""
        if isinstance(self.source, CaptionSource):
            return self.source.path.resolve()
        if isinstance(self.source, RecordSource) and isinstance(self.source.media, Folder):
            return self.source.media.path.resolve()
        return None

    @property
    def settings(self) -> str:
        """The source, what is dropped, and whose phone numbers are looked for."""
        looked = self.scrubber and (self.scrubber.region or "any")
        return f"{stamp(self.source)} {sorted(self.dropped.items())} {looked}"

    def __len__(self) -> int:
        return len(self.source)

    def entry(self, row: int, counts: Counter[str]) -> Entry | None:
        """A row of the source as a record."""
        if row in self.dropped:
            counts[LEFT_OUT + self.dropped[row]] += 1
            return None
        try:
            sample = self.source.sample(row)
            return sample_entry(self._scrubbed(sample, counts) if self.scrubber else sample, self.media)
        except (PumiceError, OSError):
            counts[f"{LEFT_OUT}unreadable"] += 1
            return None

    def _scrubbed(self, sample: Sample, counts: Counter[str]) -> Sample:
        before = counts.total()
        turns = tuple(
            Turn(turn.role, tuple(self._text(part, counts) if isinstance(part, str) else part for part in turn.content))
            for turn in sample.turns
        )
        changed = replace(sample, turns=turns, reading=self._text(sample.reading, counts))
        counts["samples with personal data"] += counts.total() > before
        return changed

    def _text(self, text: str, counts: Counter[str]) -> str:
        assert self.scrubber is not None
        text, found = self.scrubber.scrub(text)
        counts.update({f"replaced: {kind}": count for kind, count in found.items()})
        return text


def read_drops(path: Path, sources: Sequence[str]) -> dict[str, dict[int, str]]:
    """{source: {row: why}} of a list that a check wrote.

    Raises:
        PumiceError: it can't be read, isn't such a list, or names a source that isn't there.
    """
    dropped: dict[str, dict[int, str]] = {name: {} for name in sources}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PumiceError(f"{path}: {error}") from None
    for number, line in enumerate(lines, 1):
        source, row, why = _drop(line, f"{path}, line {number}")
        if source not in dropped:
            raise PumiceError(f"{path}, line {number}: source {source}; this data is {', '.join(sources)}")
        dropped[source][row] = why
    return dropped


def _drop(line: str, where: str) -> tuple[str, int, str]:
    try:
        said: dict[str, Any] = json.loads(line)
        source, row, why = said["source"], said["row"], said["why"]
        if not (isinstance(source, str) and type(row) is int and isinstance(why, str)):
            raise TypeError
    except (ValueError, TypeError, KeyError):
        raise PumiceError(f"{where}: expected {{source, row, why}} as pumice data check --write-clean writes") from None
    return source, row, why
