"""The run: every page of every file is asked about, several at a time, and becomes a record.

    files ──open_pages──> pages ──journal?──> known answers ─────────────────────┐
                             └──asker, as many as it takes at once──> Answer ──> journal ──settle──> record, in order

What fails becomes a record with an "error"; nothing that one file holds ends the run.
"""

from __future__ import annotations

import re
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from pumice.read.ask import MISSING, Answer, Ask, Prompt, Settled, assemble
from pumice.read.askers import Asker, Done
from pumice.read.confidence import label
from pumice.read.journal import Journal, Output, entry_key
from pumice.read.pages import Page, open_pages
from pumice.types import Media, PumiceError

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
    """A record in the making: its page and the answers so far."""

    page: Page
    missing: int = 0
    answers: dict[Prompt, Answer | PumiceError] = field(default_factory=dict)


@dataclass(eq=False)
class _Asked:
    """A request on its way, and what waits for its answer: equal things are asked once."""

    media: Media
    prompt: Prompt
    known: Answer | None
    waiting: list[tuple[_Pending, Prompt]] = field(default_factory=list)


class Run:
    """One run over files; ``boxes`` says of each answer where it was read, ``reader`` of each record that the asker
    has a reader beside it.
    """

    def __init__(
        self,
        ask: Ask,
        asker: Asker,
        journal: Journal,
        output: Output,
        max_tokens: int,
        boxes: bool = False,
        reader: bool = False,
    ) -> None:
        self.ask, self.asker, self.journal, self.output = ask, asker, journal, output
        self.room, self.max_tokens, self.boxes, self.reader = AHEAD * asker.batch, max_tokens, boxes, reader
        self.tally = Tally()
        self._order: deque[_Pending] = deque()
        self._waiting: dict[str, _Asked] = {}  # by key
        self._ends: SimpleQueue[tuple[str, Answer | PumiceError]] = SimpleQueue()

    def over(self, files: Sequence[str], progress: Progress = lambda tally: None) -> Tally:
        """Read the files. Records come out in their order.

        Raises:
            PumiceError: journal or output can't be written.
        """
        began = time.monotonic()
        for page in self._pages(files):
            pending = _Pending(page)
            self._order.append(pending)
            if isinstance(page.media, Media):
                self._start(pending, page.media)
            self._take(block=False)
            self._write(began, progress)
        while self._order:
            self._take(block=bool(self._waiting))
            self._write(began, progress)
        return self.tally

    def _pages(self, files: Sequence[str]) -> Iterator[Page]:
        for file in files:
            try:
                pages = open_pages(file)
            except (PumiceError, OSError) as error:
                pages = [Page(file, None, PumiceError(str(error)), "")]
            yield from pages
            self.tally.files += 1

    def _start(self, pending: _Pending, media: Media) -> None:
        """Look a page's answers up, or ask for them."""
        for prompt in self.ask.prompts:
            key = entry_key(pending.page, prompt, self.max_tokens, self.asker.digest)
            known = self.journal.get(key)
            if known is not None and (known.boxes is not None or not self.boxes):
                pending.answers[prompt] = known
                self.tally.found += 1
                continue
            pending.missing += 1
            if key in self._waiting:
                self._waiting[key].waiting.append((pending, prompt))
                continue
            self._waiting[key] = _Asked(media, prompt, known, [(pending, prompt)])
            self._request(key, self._waiting[key])
            while len(self._waiting) >= self.room:
                self._take(block=True)

    def _request(self, key: str, asked: _Asked) -> None:
        self.output.publish()  # what was known is written: from here on it takes time
        if asked.known is not None:  # but for where it was read
            self.tally.found += 1
            self._ends.put((key, asked.known))
            return
        self.tally.asked += 1
        try:
            self.asker.ask(asked.media, asked.prompt, self._ender(key))
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
            block = False
            if isinstance(end, Answer):
                if self.boxes and end.boxes is None:
                    asked = self._waiting[key]
                    self.asker.find_boxes(asked.media, asked.prompt, end, self._ender(key))
                    continue
                self.journal.add(key, end)
            for pending, prompt in self._waiting.pop(key).waiting:
                pending.answers[prompt] = end
                pending.missing -= 1

    def _ender(self, key: str) -> Done:
        """Takes what ends a request, from any thread."""
        return lambda end: self._ends.put((key, end))

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
        """{"file", "page" of a PDF, "values", "confidence", "evidence" if wanted, "reader" beside one, "error" if
        anything failed}.
        """
        page = pending.page
        record: dict[str, Any] = {"file": page.file}
        if page.number is not None:
            record["page"] = page.number
        if isinstance(page.media, PumiceError):
            return {**record, "error": _without(str(page.media), page.file, page.number)}
        settled: list[Settled] = []
        evidence: dict[str, Any] = {}
        errors: Counter[str] = Counter()  # in order, each once
        for prompt in self.ask.prompts:
            answer = pending.answers[prompt]
            if isinstance(answer, PumiceError):
                errors[_without(str(answer), page.media.name, None)] += 1
                continue
            settled.append(self.ask.settle(prompt, answer))
            errors.update([settled[-1].error] if settled[-1].error else [])
            said = any(value is not None and value is not MISSING for value in settled[-1].values.values())
            if self.boxes and answer.boxes and said:
                evidence[label(prompt.at)] = [_box(*box) for box in answer.boxes]
        values = assemble(settled)
        wrong = "" if errors else self.ask.check(values)
        errors.update([wrong] if wrong else [])
        confidence = {name: sure for one in settled for name, sure in one.confidence.items()}
        record |= {"values": values, "confidence": confidence} | ({"evidence": evidence} if self.boxes else {})
        record |= {"reader": True} if self.reader else {}
        return record | ({"error": "; ".join(errors)} if errors else {})


def _box(box: tuple[float, ...], weight: float, frame: int | None) -> dict[str, Any]:
    return {"box": list(box), "weight": weight} | ({} if frame is None else {"frame": frame})


def _without(error: str, name: str, number: int | None) -> str:
    """An error's line without the names of file and page before it, which the record has."""
    error = error.removeprefix(f"{name}: ") if name else error
    if number is None:
        return error
    return re.sub(rf"^.{{0,4096}}? page {number} of [0-9]+: ", "", error, count=1)
