"""A JSON schema that is asked for at once: one prompt, and an answer that is the object.

schema ──form──> Prompt ──> {"shop": "Kiosk", "items": [...]} ──read_object──> values
"""

from __future__ import annotations

import json
from typing import Any

from pumice.engine.request import Grammar
from pumice.read.ask import Answer, Prompt, Settled, Steps
from pumice.read.confidence import confidences
from pumice.read.references import resolve
from pumice.types import PumiceError

SCHEMA_PROMPT = "Write this as JSON with texts as printed, in this form: "


class Whole:
    """A JSON schema that every page's answer has to fit.

    Raises:
        PumiceError: it isn't a schema of an object, or jsonschema isn't installed.
    """

    def __init__(self, schema: dict[str, Any], name: str) -> None:
        self._validator = validator(schema, name)
        page, _ = resolve(schema, schema)
        self.columns: list[Steps] = [(field,) for field in page.get("properties", {})]
        grammar = Grammar("json_schema", json.dumps(schema, ensure_ascii=False))
        self.prompts = [Prompt(form_prompt(page), (), grammar)]

    def settle(self, prompt: Prompt, answer: Answer) -> Settled:
        """The answer's fields; an error if it was cut or isn't a JSON object."""
        return settle_object(prompt, answer)

    def check(self, values: dict[str, Any]) -> str:
        return check(self._validator, values)


def form_prompt(schema: dict[str, Any]) -> str:
    """The prompt for an object that fits a schema."""
    return SCHEMA_PROMPT + json.dumps(form(schema), ensure_ascii=False)


def settle_object(prompt: Prompt, answer: Answer) -> Settled:
    """What an answer in JSON says: all fields of its object, or, for a prompt about one field, that one."""
    if answer.finish != "stop":
        return Settled({}, {}, f"the answer ended early ({answer.finish})")
    try:
        values = json.loads(answer.text, parse_constant=_refuse)
        json.dumps(values, allow_nan=False)  # 1e999 is read as infinity
    except (ValueError, RecursionError) as error:
        return Settled({}, {}, f"the answer isn't JSON ({' '.join(str(error).split())}): {answer.text[:80]!r}")
    if not isinstance(values, dict):
        return Settled({}, {}, f"the answer is {type(values).__name__}; expected an object: {answer.text[:80]!r}")
    before = prompt.at[:-1]
    if prompt.at and prompt.at[-1] not in values:
        return Settled({}, {}, f"the answer has no {prompt.at[-1]!r}: {answer.text[:80]!r}")
    prefix = "".join(f"{step}." for step in before)
    sure = {prefix + name: value for name, value in confidences(answer.text, answer.tokens, answer.logprob).items()}
    return Settled({(*before, name): value for name, value in values.items()}, sure)


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


def validator(schema: dict[str, Any], name: str) -> Any:
    """What checks values against a schema of an object.

    Raises:
        PumiceError: it isn't one, or jsonschema isn't installed.
    """
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


def check(validator: Any, values: dict[str, Any]) -> str:
    """The first thing about values that doesn't fit a schema; "" if there is none."""
    wrong = next(iter(validator.iter_errors(values)), None)
    if wrong is None:
        return ""
    return f"the answer doesn't fit the schema: {wrong.json_path}: {' '.join(wrong.message.split())[:200]}"


def _refuse(name: str) -> None:
    raise ValueError(f"{name} isn't a number of JSON's")
