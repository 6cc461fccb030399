"""What is asked about every page: a JSON schema to fill in, or questions.

    schema ──form──> one Prompt        questions, a line each ──> a Prompt each
    Answer to a Prompt ──settle──> values by field, confidence by field, or what is wrong with it

A value's confidence is the mean probability of its tokens: exp(mean log-probability).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pumice.types import PumiceError

SCHEMA_PROMPT = "Write this as JSON with texts as printed, in this form: "


@dataclass(frozen=True)
class Answer:
    """A model's words. ``tokens`` are (the end of the text with it in characters, log-probability), where known;
    ``logprob`` is the mean over all, where known. ``finish`` is "stop" or what else ended it.
    """

    text: str
    finish: str
    tokens: tuple[tuple[int, float], ...] = ()
    logprob: float | None = None


@dataclass(frozen=True)
class Prompt:
    """One thing that is asked: ``field`` names it in the record, None where the answer is a JSON object of fields."""

    text: str
    field: str | None = None


@dataclass(frozen=True)
class Settled:
    """What an answer says: values and confidences by field, and the error where it isn't what was asked for."""

    values: dict[str, Any]
    confidence: dict[str, float]
    error: str = ""


class Questions:
    """Questions about every page; the answers are texts."""

    def __init__(self, questions: Sequence[str]) -> None:
        self.fields = list(dict.fromkeys(questions))
        self.prompts = [Prompt(question, question) for question in self.fields]
        self.schema: str | None = None

    def settle(self, prompt: Prompt, answer: Answer) -> Settled:
        """The answer's text. One that was cut at its limit is an error, with what there is of it."""
        field = prompt.field or prompt.text
        found = mean(logprob for _, logprob in answer.tokens)
        confidence = found if found is not None else sure(answer.logprob)
        error = "" if answer.finish == "stop" else f"{field!r}: the answer ended early ({answer.finish})"
        return Settled({field: answer.text.strip()}, {} if confidence is None else {field: confidence}, error)


class Schema:
    """A JSON schema that every page's answer has to fit.

    Raises:
        PumiceError: it isn't a schema of an object, or jsonschema isn't installed.
    """

    def __init__(self, schema: dict[str, Any], name: str) -> None:
        self.fields, self._validator = list(schema.get("properties", {})), _validator(schema, name)
        self.schema: str | None = json.dumps(schema, ensure_ascii=False)
        self.prompts = [Prompt(SCHEMA_PROMPT + json.dumps(form(schema), ensure_ascii=False))]

    def settle(self, prompt: Prompt, answer: Answer) -> Settled:
        """The answer's fields; an error if it was cut, isn't JSON, or doesn't fit the schema."""
        if answer.finish != "stop":
            return Settled({}, {}, f"the answer ended early ({answer.finish})")
        try:
            values = json.loads(answer.text, parse_constant=_refuse)
            json.dumps(values, allow_nan=False)  # 1e999 is read as infinity
        except (ValueError, RecursionError) as error:
            return Settled({}, {}, f"the answer isn't JSON ({' '.join(str(error).split())}): {answer.text[:80]!r}")
        if not isinstance(values, dict):
            return Settled({}, {}, f"the answer is {type(values).__name__}; expected an object: {answer.text[:80]!r}")
        wrong = next(iter(self._validator.iter_errors(values)), None)
        error = f"{wrong.json_path}: {' '.join(wrong.message.split())[:200]}" if wrong is not None else ""
        return Settled(values, confidences(answer), error and f"the answer doesn't fit the schema: {error}")


Ask = Questions | Schema


def read_questions(path: Path) -> Questions:
    """Questions of a text file, one a line; empty lines don't count.

    Raises:
        PumiceError: it can't be read, or holds none.
    """
    lines = [line.strip() for line in _read(path).splitlines() if line.strip()]
    if not lines:
        raise PumiceError(f"{path}: no question; expected one a line")
    return Questions(lines)


def read_schema(path: Path) -> Schema:
    """The JSON schema in a file.

    Raises:
        PumiceError: it can't be read, or isn't a schema of an object.
    """
    try:
        schema = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise PumiceError(f"{path}: not JSON ({' '.join(str(error).split())})") from None
    if not isinstance(schema, dict):
        raise PumiceError(f"{path}: {type(schema).__name__}; expected a JSON schema, {{'type': 'object', ...}}")
    return Schema(schema, str(path))


def form(schema: Any) -> Any:
    """An empty form as an example of what fits a schema: {"shop": "", "items": [{"name": ""}]}.

    Descriptions stand where texts will. References aren't followed.
    """
    if not isinstance(schema, dict):
        return ""
    kind = schema.get("type")
    kind = next((one for one in kind if one != "null"), "null") if isinstance(kind, list) else kind
    if "properties" in schema or kind == "object":
        return {name: form(field) for name, field in schema.get("properties", {}).items()}
    if kind == "array":
        return [form(schema.get("items"))]
    if isinstance(schema.get("enum"), list):
        return " or ".join(str(value) for value in schema["enum"])
    return schema.get("description", "")


def confidences(answer: Answer) -> dict[str, float]:
    """Confidence of each field of an answer that is a JSON object: of its tokens, or else of the whole answer."""
    found: dict[str, float] = {}
    for name, first, last in _spans(answer.text):
        begins, own = 0, []
        for ends, logprob in answer.tokens:
            if begins < last and ends > first:
                own.append(logprob)
            begins = ends
        confidence = mean(own) if own else sure(answer.logprob)
        if confidence is not None:
            found[name] = confidence
    return found


def mean(logprobs: Any) -> float | None:
    """exp(mean) of log-probabilities; None of none."""
    values = list(logprobs)
    return sure(math.fsum(values) / len(values)) if values else None


def sure(logprob: float | None) -> float | None:
    """exp of a log-probability, to four digits."""
    return None if logprob is None else round(math.exp(logprob), 4)


def _spans(text: str) -> list[tuple[str, int, int]]:
    """(name, first, last character + 1) of the values of a JSON object's fields; the text is valid."""
    decoder, spans = json.JSONDecoder(), []
    place = _skip(text, text.index("{") + 1)
    while text[place] != "}":
        name, place = decoder.raw_decode(text, place)
        first = _skip(text, _skip(text, place) + 1)  # behind the colon
        _, last = decoder.raw_decode(text, first)
        spans.append((name, first, last))
        place = _skip(text, last)
        place = _skip(text, place + 1) if text[place] == "," else place
    return spans


def _skip(text: str, place: int) -> int:
    while text[place] in " \t\r\n":
        place += 1
    return place


def _refuse(name: str) -> None:
    raise ValueError(f"{name} isn't a number of JSON's")


def _validator(schema: dict[str, Any], name: str) -> Any:
    try:
        from jsonschema import FormatChecker
        from jsonschema.exceptions import SchemaError
        from jsonschema.validators import Draft202012Validator, validator_for
        from referencing import Registry
    except ImportError:
        raise PumiceError("checking answers against a schema needs jsonschema: pip install 'pumice[read]'") from None
    kind = validator_for(schema, Draft202012Validator)
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        raise PumiceError(f"{name}: {error.json_path}: {' '.join(error.message.split())[:200]}") from None
    if schema.get("type", "object") != "object":
        raise PumiceError(f"{name}: a schema of {schema['type']!r}; expected 'object', whose fields become the record")
    return kind(schema, format_checker=FormatChecker(), registry=Registry())  # it fetches nothing


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise PumiceError(f"{path}: not UTF-8 text") from None
    except OSError as error:
        raise PumiceError(f"{path}: {error.strerror or error}") from None
