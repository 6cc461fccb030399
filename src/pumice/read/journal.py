"""Answers as they are made, so that a run that was killed goes on; records in the order of the files.

Answer ──add──> a line of the journal, on the disk before anything else happens
record ──write──> the output, begun anew by each run and filled from the journal first
"""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from pumice.journal import FileJournal, digest_of
from pumice.read.ask import Answer, Prompt, Steps
from pumice.read.confidence import label
from pumice.read.pages import Page
from pumice.types import PumiceError

FORM = 2
"""Raise it when what is kept of an answer changes."""
_RUNS = ("=", "+", "-", "@", "\t", "\r")
"""What spreadsheets take the beginning of a formula to be."""
_NUMBER = re.compile(r"[+-]?[0-9]+(?:[.,][0-9]+)*%?")


class Journal(FileJournal[Answer]):
    """Answers by key, in a file; as `FileJournal`."""

    def _fields(self, answer: Answer) -> Mapping[str, Any]:
        return vars(answer)

    def _opened(self, entry: dict[str, Any]) -> Answer:
        text, finish = entry["text"], entry["finish"]
        if not isinstance(text, str) or not isinstance(finish, str):
            raise TypeError
        tokens = tuple((int(end), float(logprob)) for end, logprob in entry["tokens"])
        boxes = entry["boxes"]
        if boxes is not None:
            boxes = tuple((tuple(map(float, box)), float(weight), frame) for box, weight, frame in boxes)
        return Answer(text, finish, tokens, entry["logprob"], boxes)


def entry_key(page: Page, prompt: Prompt, max_tokens: int, model: str) -> str:
    """sha256 over all that an answer depends on: the file's bytes, the page, what is asked, the model's own digest."""
    grammar = prompt.grammar and vars(prompt.grammar)
    parts = [FORM, page.digest, page.number, prompt.text, grammar, max_tokens, model]
    return digest_of(json.dumps(parts).encode())


class Output:
    """Records as JSON lines, or with ``columns`` as a table in CSV, to a file or, without a path, standard output.

    What is at the path stays until `publish`. A cell of the table that a spreadsheet would run has a ' before it.
    """

    def __init__(self, path: Path | None, columns: Sequence[Steps] | None = None) -> None:
        self.path, self._columns = path, columns or ()
        self._part = None if path is None else path.with_name(path.name + ".part")
        self._published = False
        self._file = sys.stdout if self._part is None else _open(self._part)
        self._table = None if columns is None else csv.writer(self._file)
        if self._table is not None:
            names = [label(steps) for steps in self._columns]
            heads = ["file", "page", *names, *(f"{name} (confidence)" for name in names), "error"]
            self._table.writerow(map(_cell, heads))

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a record, whole.

        Raises:
            PumiceError: the file can't be written, such as for want of space.
        """
        try:
            self._append(record)
            self._file.flush()
        except OSError as error:
            if self.path is None:  # a closed pipe is the command's matter
                raise
            raise PumiceError(f"{self.path}: can't be written ({error.strerror or error})") from None

    def _append(self, record: Mapping[str, Any]) -> None:
        if self._table is None:
            self._file.write(_unicode(json.dumps(record, ensure_ascii=False)) + "\n")
        else:
            values, confidence = record.get("values", {}), record.get("confidence", {})
            cells = [_value(values, steps) for steps in self._columns]
            sure = [confidence.get(label(steps)) for steps in self._columns]
            row = [record["file"], record.get("page"), *cells, *sure, record.get("error")]
            self._table.writerow(map(_cell, row))

    def publish(self) -> None:
        """Put the new file in the place of an earlier one; later records go on into it."""
        if self._part is not None and self.path is not None and not self._published:
            self._part.replace(self.path)
            self._published = True

    def close(self) -> None:
        """Write all out."""
        self.publish()
        if self._part is not None:
            os.fsync(self._file.fileno())
            self._file.close()


def _open(path: Path) -> TextIO:
    try:
        return path.open("w", encoding="utf-8", newline="")
    except OSError as error:
        raise PumiceError(f"{path}: can't be written ({error.strerror or error})") from None


def _unicode(text: str) -> str:
    r"""Names of files needn't be Unicode: a byte that isn't becomes \udcff, which JSON reads as Python's own form."""
    return text.encode(errors="backslashreplace").decode()


def _value(values: Any, steps: Steps) -> Any:
    for step in steps:
        values = values.get(step) if isinstance(values, dict) else None
    return values


def _cell(value: Any) -> str:
    text = "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = _unicode(text)
    return f"'{text}" if text.startswith(_RUNS) and not _NUMBER.fullmatch(text) else text
