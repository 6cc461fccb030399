"""Where the records of a JSON file lie, so that any one of them is read without the others.

    file.json (an array) | file.jsonl ──scan──> spans (n, 2) of bytes ──Records[row]──> one object

Files of any size are scanned in bounded memory; a record is parsed again when it is asked for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pumice.types import PumiceError

CHUNK = 1 << 23
LONGEST = 1 << 28
"""Bytes of the longest record: a file that isn't an array of records ends there and not in the machine's memory."""
SPACE = " \t\r\n"


class Records:
    """The objects of a JSON array or of a JSONL file by number. Opened anew in every process that reads it.

    Raises:
        PumiceError: the file can't be read, or isn't of that form; the byte is named.
    """

    def __init__(self, path: Path, spans: np.ndarray | None = None) -> None:
        self.path = path
        self.spans = scan(path) if spans is None else spans
        self._file: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, row: int) -> dict[str, Any]:
        start, end = (int(x) for x in self.spans[row])
        if self._file is None or self._file[0] != os.getpid():
            self._file = (os.getpid(), os.open(self.path, os.O_RDONLY))
        try:
            record = json.loads(os.pread(self._file[1], end - start, start))
        except (OSError, ValueError, RecursionError) as error:
            raise PumiceError(f"{self.path}: record {row} at byte {start}: {error}") from None
        if not isinstance(record, dict):
            kind = type(record).__name__
            raise PumiceError(f"{self.path}: record {row} at byte {start}: {kind}, expected an object")
        return record

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "spans": self.spans, "_file": None}


def scan(path: Path) -> np.ndarray:
    """Byte spans (n, 2) int64 of a file's records: an array's elements, or the lines that aren't blank.

    Raises:
        PumiceError: unreadable, or neither form.
    """
    try:
        with path.open("rb") as file:
            first = file.read(4096).lstrip()[:1]
        found = list(_elements(path) if first == b"[" else _lines(path))
    except OSError as error:
        raise PumiceError(f"{path}: {error.strerror or error}") from None
    return np.array(found, dtype=np.int64).reshape(-1, 2)


def _lines(path: Path) -> Iterator[tuple[int, int]]:
    start = 0
    with path.open("rb") as file:
        while line := file.readline(LONGEST):
            if len(line) == LONGEST:
                raise PumiceError(f"{path}: a line of more than {LONGEST >> 20} MiB at byte {start}")
            if line.strip():
                yield start, start + len(line)
            start += len(line)


def _elements(path: Path) -> Iterator[tuple[int, int]]:
    """Elements of an array. Bytes are read as Latin-1, in which a place in the text is a place in the file."""
    decoder = json.JSONDecoder()
    with path.open("rb") as file:
        text, base, at = file.read(CHUNK).decode("latin-1"), 0, 0
        at = _skip(text, 0, SPACE) + 1  # the opening bracket
        while True:
            at = _skip(text, at, SPACE + ",")
            try:
                if text[at] == "]":
                    return
                end = decoder.raw_decode(text, at)[1]
                if end == len(text):  # a number may go on in the next chunk
                    raise IndexError
            except (IndexError, json.JSONDecodeError) as error:
                more = file.read(max(CHUNK, len(text) - at)).decode("latin-1")
                if not more or len(text) - at > LONGEST:
                    what = getattr(error, "msg", "the array doesn't end")
                    raise PumiceError(f"{path}: not a JSON array of records: byte {base + at}: {what}") from None
                text, base, at = text[at:] + more, base + at, 0
                continue
            yield base + at, base + end
            at = end


def _skip(text: str, at: int, characters: str) -> int:
    while at < len(text) and text[at] in characters:
        at += 1
    return at
