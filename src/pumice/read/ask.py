"""What is asked about every page: questions, or a JSON schema to fill in.

questions, a line each ──> a Prompt each        schema ──> a Prompt each field (`fields`), or one for all (`whole`)
Answer to a Prompt ──settle──> values by path, confidence by label, or what is wrong with it
all values of a page ──assemble──> record's values ──check──> what doesn't fit the schema
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pumice.read.confidence import mean, sure
from pumice.types import PumiceError

if TYPE_CHECKING:
    from pumice.engine.request import Grammar
    from pumice.read.fields import Fields
    from pumice.read.whole import Whole

Steps = tuple[str | int, ...]
"""Where a value is in a record: names of fields and places in lists."""

MISSING: Any = object()
"""A value that a page hasn't got: it stays out of the record, the objects around it don't."""

Box = tuple[tuple[float, ...], float, int | None]
"""((x0, y0, x1, y1) in fractions of width and height, weight, a video's frame): as `pumice.evidence.Region`."""


@dataclass(frozen=True)
class Answer:
    """A model's words. ``tokens`` are (the end of the text with it in characters, log-probability), where known;
    ``logprob`` is the mean over all, where known. ``finish`` is "stop" or what else ended it. ``boxes`` are where it
    was read, None where nobody looked.
    """

    text: str
    finish: str
    tokens: tuple[tuple[int, float], ...] = ()
    logprob: float | None = None
    boxes: tuple[Box, ...] | None = None

    @property
    def confidence(self) -> float | None:
        """The mean probability of its tokens, where known."""
        found = mean(logprob for _, logprob in self.tokens)
        return found if found is not None else sure(self.logprob)


@dataclass(frozen=True)
class Prompt:
    """One thing that is asked, and what its answer has to look like. ``at`` is where the answer belongs in the record,
    () for an object that is all of it.
    """

    text: str
    at: Steps = ()
    grammar: Grammar | None = None


@dataclass(frozen=True)
class Settled:
    """What an answer says: values by where they belong, confidences by label, and the error where it isn't what was
    asked for.
    """

    values: dict[Steps, Any]
    confidence: dict[str, float]
    error: str = ""


class Ask(Protocol):
    """What is asked about every page. ``columns`` are where a table's columns come from."""

    columns: list[Steps]
    prompts: list[Prompt]

    def settle(self, prompt: Prompt, answer: Answer) -> Settled: ...
    def check(self, values: dict[str, Any]) -> str:
        """What is wrong with a record whose answers were all right by themselves; "" if nothing is."""
        ...


class Questions:
    """Questions about every page; the answers are texts."""

    def __init__(self, questions: Sequence[str]) -> None:
        self.columns: list[Steps] = [(question,) for question in dict.fromkeys(questions)]
        self.prompts = [Prompt(str(at[0]), at) for at in self.columns]

    def settle(self, prompt: Prompt, answer: Answer) -> Settled:
        """The answer's text. One that was cut at its limit is an error, with what there is of it."""
        error = "" if answer.finish == "stop" else f"{prompt.text!r}: the answer ended early ({answer.finish})"
        known = answer.confidence
        return Settled({prompt.at: answer.text.strip()}, {} if known is None else {prompt.text: known}, error)

    def check(self, values: dict[str, Any]) -> str:
        return ""


def read_questions(path: Path) -> Questions:
    """Questions of a text file, one a line; empty lines don't count.

    Raises:
        PumiceError: it can't be read, or holds none.
    """
    lines = [line.strip() for line in _read(path).splitlines() if line.strip()]
    if not lines:
        raise PumiceError(f"{path}: no question; expected one a line")
    return Questions(lines)


def read_schema(path: Path, whole: bool) -> Fields | Whole:
    """The JSON schema in a file, to be asked for as a ``whole`` or field by field.

    Raises:
        PumiceError: it can't be read, or isn't a schema of an object.
    """
    from pumice.read.fields import Fields
    from pumice.read.whole import Whole

    try:
        schema = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise PumiceError(f"{path}: not JSON ({' '.join(str(error).split())})") from None
    if not isinstance(schema, dict):
        raise PumiceError(f"{path}: {type(schema).__name__}; expected a JSON schema, {{'type': 'object', ...}}")
    return Whole(schema, str(path)) if whole else Fields(schema, str(path))


def assemble(settled: Sequence[Settled]) -> dict[str, Any]:
    """The values of a page's answers as one object."""
    record: dict[str, Any] = {}
    for one in settled:
        for at, value in one.values.items():
            inner: Any = record
            for step in at[:-1]:
                inner = inner.setdefault(step, {})
            if value is not MISSING:
                inner[at[-1]] = value
    return record


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise PumiceError(f"{path}: not UTF-8 text") from None
    except OSError as error:
        raise PumiceError(f"{path}: {error.strerror or error}") from None
