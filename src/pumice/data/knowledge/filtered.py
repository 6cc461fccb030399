"""Captions and instructions that exist already, through the filters of new ones: text alone, Chinese, any language.

Source ──Filtered: every answer must pass──> entries ──> OUT/NAME.jsonl | OUT/NAME/*.parquet
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from pumice.data.care.clean import Cleaned
from pumice.data.importing.writing import LEFT_OUT, Entry
from pumice.data.knowledge.filters import Filters
from pumice.types import PumiceError


@dataclass
class Filtered(Cleaned):
    """A source's samples all of whose answers pass."""

    filters: Filters = Filters()  # noqa: RUF009 (it is frozen)

    @property
    def settings(self) -> str:
        """The source and the filters."""
        tests = self.filters.tests and self.filters.tests.digest
        return f"{super().settings} {self.filters.words} {self.filters.languages} {tests}"

    def entry(self, row: int, counts: Counter[str]) -> Entry | None:
        """A row of the source as a record."""
        try:
            turns = self.source.sample(row).turns
        except PumiceError:
            counts[f"{LEFT_OUT}unreadable"] += 1
            return None
        answers = ["".join(map(str, turn.content)) for turn in turns if turn.role == "assistant"]
        faults = [self.filters.fault(answer) for answer in answers]
        fault = next(filter(None, faults), "" if answers else "no answer")
        if fault:
            counts[LEFT_OUT + fault] += 1
            return None
        return super().entry(row, counts)
