"""A JSON schema that is asked for field by field, as people ask: what is the total, which shop?

    properties ──resolve (references, null)──> plain field ──question, its own grammar──> Prompt ──> text ──> value
                                               object of fields ──> its fields in turn
                                               anything else ──> Prompt for this field as JSON

The engine reads a page once for all questions about it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from pumice.engine.request import Grammar
from pumice.read import printed
from pumice.read.ask import MISSING, Answer, Prompt, Settled, Steps
from pumice.read.confidence import label
from pumice.read.references import DEEP, UNITED, resolve
from pumice.read.whole import check, form_prompt, settle_object, validator
from pumice.types import PumiceError

MOST = 500
"""Fields: an object that refers to itself twice has a thousand of them in so many objects."""
WORDY = 8
"""Words of a description that can stand in a question."""
_TEXT = {"pattern", "minLength", "maxLength", "format"}


@dataclass(frozen=True)
class Field:
    """One field: its prompt, and how the answer's text becomes its value; None where the answer is JSON.

    ``null`` and ``optional`` say what an answer such as "none" means.
    """

    prompt: Prompt
    read: Callable[[str], Any] | None
    null: bool
    optional: bool


class Fields:
    """A JSON schema whose fields are asked for one by one.

    Raises:
        PumiceError: it isn't a schema of an object, it names no fields, or jsonschema isn't installed.
    """

    def __init__(self, schema: dict[str, Any], name: str) -> None:
        self._validator = validator(schema, name)
        found = list(islice(_fields(resolve(schema, schema)[0], schema, (), ""), MOST + 1))
        if len(found) > MOST:
            raise PumiceError(f"{name}: more than {MOST} fields to ask for, references followed; see --whole")
        if not found:
            raise PumiceError(f"{name}: it names no properties that could be asked for one by one; see --whole")
        self._fields = {field.prompt: field for field in found}
        self.prompts = list(self._fields)
        self.columns = [prompt.at for prompt in self.prompts]

    def settle(self, prompt: Prompt, answer: Answer) -> Settled:
        """The field's value, or what is wrong with its answer."""
        field, name = self._fields[prompt], label(prompt.at)
        if field.read is None:
            settled = settle_object(prompt, answer)
            return Settled(settled.values, settled.confidence, settled.error and f"{name}: {settled.error}")
        if answer.finish != "stop":
            return Settled({}, {}, f"{name}: the answer ended early ({answer.finish})")
        known = {} if answer.confidence is None else {name: answer.confidence}
        absent = (field.null or field.optional) and printed.is_absent(answer.text)
        try:
            if not (absent and field.read is str):  # "none" may be one of the choices
                return Settled({prompt.at: field.read(answer.text.strip())}, known)
        except PumiceError as error:
            if not absent:
                return Settled({}, {}, f"{name}: {error}")
        return Settled({prompt.at: None}, known) if field.null else Settled({prompt.at: MISSING}, {})

    def check(self, values: dict[str, Any]) -> str:
        return check(self._validator, values)


def _fields(schema: dict[str, Any], root: dict[str, Any], at: Steps, of: str) -> Iterator[Field]:
    """Fields of an object's schema at ``at``, which is "the shop" to a question, or "" for the page itself."""
    required = schema.get("required", [])
    for name, given in schema.get("properties", {}).items():
        field, null = resolve(given, root)
        noun = _noun(name, field)
        if _inner(field) and len(at) < DEEP:
            yield from _fields(field, root, (*at, name), f" of the {noun}{of}")
            continue
        optional = name not in required
        plain = _plain(field, null, optional)
        if plain is None:
            yield Field(_as_json(name, given, field, root, at), None, null, optional)
        else:
            grammar, read = plain
            yield Field(Prompt(_question(name, field, noun, of), (*at, name), grammar), read, null, optional)


def _inner(field: dict[str, Any]) -> bool:
    """Whether it is an object whose fields are all that it is made of."""
    return bool(field.get("properties")) and not any(key in field for key in (*UNITED, "if", "patternProperties"))


def _plain(field: dict[str, Any], null: bool, optional: bool) -> tuple[Grammar | None, Callable[[str], Any]] | None:
    """The grammar of a plain field and what reads its answers; None for what has to be JSON."""
    none = null or optional
    kind, choices = field.get("type"), [field["const"]] if "const" in field else field.get("enum")
    if any(key in field for key in ("$ref", *UNITED)):
        return None
    if choices is not None:
        shown = [(value if isinstance(value, str) else json.dumps(value), value) for value in choices]
        if any(text != " ".join(text.split()) or not text for text, _ in shown):
            return None
        lines = [text for text, _ in shown] + ["none"] * none
        return Grammar("choice", "\n".join(lines)), lambda text: printed.as_choice(text, shown)
    if kind in ("number", "integer"):
        whole = kind == "integer"
        return _regex(printed.INTEGER if whole else printed.NUMBER, none), lambda text: printed.as_number(text, whole)
    if kind == "boolean":
        return Grammar("choice", "\n".join(["Yes", "No", "yes", "no", *["none"] * none])), printed.as_boolean
    if kind != "string" and (kind is not None or field.keys() & {"items", "prefixItems", "patternProperties"}):
        return None
    return _text(field, none)


def _text(field: dict[str, Any], none: bool) -> tuple[Grammar | None, Callable[[str], Any]] | None:
    """As `_plain`, of a text: as printed, in the form of a pattern, or a date."""
    if field.get("format") == "date":
        return None, printed.as_date
    if field.get("format") in ("time", "date-time", "duration") or {"pattern"} < field.keys() & _TEXT:
        return None  # JSON's own grammar knows them, and can hold them all
    pattern = field.get("pattern")
    return (_regex(_matched(pattern), none) if isinstance(pattern, str) else None), str


def _regex(source: str, none: bool) -> Grammar:
    return Grammar("regex", f"(?:{source})|none" if none else source)


def _matched(pattern: str) -> str:
    """A whole line's regular expression from a schema's pattern, which may match anywhere; it allows no more."""
    start, end = pattern.startswith("^"), pattern.endswith("$") and not pattern.endswith("\\$")
    body = pattern[start : len(pattern) - end]
    return f"{'' if start else '.*'}(?:{body}){'' if end else '.*'}"


def _as_json(name: str, given: Any, field: dict[str, Any], root: dict[str, Any], at: Steps) -> Prompt:
    """The prompt for one field as JSON, in an object that has only it: servers take no other."""
    kept = {key: root[key] for key in ("$schema", "$defs", "definitions") if key in root}
    alone = {"type": "object", "properties": {name: given}, "required": [name], "additionalProperties": False}
    text = form_prompt({"properties": {name: field}})
    asked = field.get("x-question")
    text = f"{asked} {text}" if isinstance(asked, str) else text
    return Prompt(text, (*at, name), Grammar("json_schema", json.dumps(kept | alone, ensure_ascii=False)))


def _question(name: str, field: dict[str, Any], noun: str, of: str) -> str:
    """ "x-question" as it is; a description that asks; or what the field's noun makes."""
    asked, described = field.get("x-question"), field.get("description")
    if isinstance(asked, str) and asked.strip():
        return asked.strip()
    if isinstance(described, str) and described.strip().endswith("?"):
        return described.strip()
    if field.get("type") == "boolean":
        verb, _, rest = noun.partition(" ")
        if verb == "has" and rest:
            return f"Is there {rest}{of}?"
        return f"Is {of.removeprefix(' of ') or 'it'} {rest if verb == 'is' and rest else noun}?"
    return f"What is the {noun}{of}?"


def _noun(name: str, field: dict[str, Any]) -> str:
    """What a field is called in a question: its title, its description if that is short, or its name's words."""
    title, described = field.get("title"), field.get("description")
    if isinstance(title, str) and title.strip():
        return _lowered(title)
    if isinstance(described, str) and 0 < len(described.split()) <= WORDY and not described.strip().endswith("?"):
        return _lowered(described)
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return _lowered(re.sub(r"[_\W]+", " ", words) or name)


def _lowered(text: str) -> str:
    """Words as they stand inside a sentence: no article, no full stop, small letters but where a word has only capitals
    or digits.
    """
    words = re.sub(r"^(the|an?)\s+", "", " ".join(text.split()).rstrip("."), flags=re.IGNORECASE).split()
    return " ".join(word if word.isupper() and len(word) > 1 else word.lower() for word in words)
