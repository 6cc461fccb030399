"""The run: every page of every file is asked about, several at a time, and becomes a record.

    files ──open_pages──> pages ──journal?──> known answers ─────────────────────┐
                             └──asker, as many as it takes at once──> Answer ──> journal ──settle──> record, in order

What fails becomes a record with an "error"; nothing that one file holds ends the run.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from pumice.read.ask import Answer, Ask, Prompt
from pumice.read.askers import Asker
from pumice.read.journal import Journal, Output, entry_key
from pumice.read.pages import Page, open_pages
from pumice.types import PumiceError

AHEAD = 2
"""Requests for each of a batch that wait for their turn, so that a batch is always full."""


@dataclass
class Tally:
    """What a run did: files, records and how many of those failed; answers asked for and found in the journal."""

    files: int = 0
    records: int = 0
    failed: int = 0
    asked: int = 0
    found: int = 0
    seconds: float = 0.0
    errors: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "seconds": round(self.seconds, 2)}


Progress = Callable[[Tally], object]
MOST_ERRORS = 20
"""That a Tally names; the records have them all."""


@dataclass(eq=False)
class _Pending:
    """A record in the making: its page, or the error of opening the file, and the answers so far."""

    file: str
    page: Page | None
    error: str = ""
    missing: int = 0
    answers: dict[str, Answer | PumiceError] = field(default_factory=dict)


class Run:
    """One run over files. ``batch`` is how many answers the asker makes at once."""

    def __init__(self, ask: Ask, asker: Asker, journal: Journal, output: Output, batch: int, max_tokens: int) -> None:
        self.ask, self.asker, self.journal, self.output = ask, asker, journal, output
        self.room, self.max_tokens = AHEAD * batch, max_tokens
        self.tally = Tally()
        self._order: deque[_Pending] = deque()
        self._waiting: dict[str, list[tuple[_Pending, str]]] = defaultdict(list)  # by key: equal files are asked once
        self._ends: SimpleQueue[tuple[str, Answer | PumiceError]] = SimpleQueue()

    def over(self, files: Sequence[str], progress: Progress = lambda tally: None) -> Tally:
        """Read the files. Records come out in their order.

        Raises:
            PumiceError: journal or output can't be written.
        """
        began = time.monotonic()
        for pending in self._pendings(files):
            self._order.append(pending)
            if pending.page is not None:
                self._start(pending, pending.page)
            self._take(block=False)
            self._write(began, progress)
        while self._order:
            self._take(block=bool(self._waiting))
            self._write(began, progress)
        return self.tally

    def _pendings(self, files: Sequence[str]) -> Iterator[_Pending]:
        for file in files:
            try:
                pages = open_pages(file)
            except (PumiceError, OSError) as error:
                yield _Pending(file, None, str(error))
            else:
                yield from (_Pending(file, page) for page in pages)
            self.tally.files += 1

    def _start(self, pending: _Pending, page: Page) -> None:
        """Look a page's answers up, or ask for them."""
        for prompt in self.ask.prompts:
            key = entry_key(page, prompt, self.ask, self.max_tokens, self.asker.digest)
            known = self.journal.get(key)
            if known is not None:
                pending.answers[prompt.text] = known
                self.tally.found += 1
                continue
            pending.missing += 1
            asked = key in self._waiting
            self._waiting[key].append((pending, prompt.text))
            if not asked:
                self._request(page, prompt, key)
            while len(self._waiting) >= self.room:
                self._take(block=True)

    def _request(self, page: Page, prompt: Prompt, key: str) -> None:
        self.output.publish()  # what was known is written: from here on it takes time
        self.tally.asked += 1
        try:
            self.asker.ask(page.media, prompt.text, lambda end: self._ends.put((key, end)))
        except PumiceError as error:
            self._ends.put((key, error))

    def _take(self, block: bool) -> None:
        """Take in the answers that there are; with ``block`` wait for one."""
        while True:
            try:
                # In turns, or a waiting main thread wouldn't hear of Ctrl-C on some systems.
                key, end = self._ends.get(timeout=1.0) if block else self._ends.get_nowait()
            except Empty:
                if block:
                    continue
                return
            if isinstance(end, Answer):
                self.journal.add(key, end)
            for pending, prompt in self._waiting.pop(key):
                pending.answers[prompt] = end
                pending.missing -= 1
            block = False

    def _write(self, began: float, progress: Progress) -> None:
        """Write the records that are whole and have none before them."""
        while self._order and not self._order[0].missing:
            record = self._record(self._order.popleft())
            self.output.write(record)
            self.tally.records += 1
            if "error" in record:
                self.tally.failed += 1
                place = record["file"] + (f" page {record['page']}" if "page" in record else "")
                if len(self.tally.errors) < MOST_ERRORS:
                    self.tally.errors.append(f"{place}: {record['error']}")
        self.tally.seconds = time.monotonic() - began
        progress(self.tally)

    def _record(self, pending: _Pending) -> dict[str, Any]:
        """{"file", "page" of a PDF, "values", "confidence", "error" if anything failed}."""
        record: dict[str, Any] = {"file": pending.file}
        if pending.page is None:
            return {**record, "error": _without(pending.error, pending.file)}
        if pending.page.number is not None:
            record["page"] = pending.page.number
        values: dict[str, Any] = {}
        confidence: dict[str, float] = {}
        errors: Counter[str] = Counter()
        for prompt in self.ask.prompts:
            answer = pending.answers[prompt.text]
            if isinstance(answer, PumiceError):
                errors[_without(str(answer), pending.page.media.name)] += 1
                continue
            settled = self.ask.settle(prompt, answer)
            values |= settled.values
            confidence |= settled.confidence
            errors.update([settled.error] if settled.error else [])
        record |= {"values": values, "confidence": confidence}
        return record | ({"error": "; ".join(errors)} if errors else {})


def _without(error: str, name: str) -> str:
    """An error's line without the file's name before it, which the record has."""
    return error.removeprefix(f"{name}: ") if name else error
