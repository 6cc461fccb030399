"""The bodies of requests, as OpenAI's clients send them.

bytes ──read_body──> ChatRequest, ResponseRequest, CountRequest ──> Sampling

A field that isn't known and would change the answer is refused by name. One that says nothing (null, empty, or its
neutral value) passes, since clients fill in what they don't use.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema

from pumice.engine.request import Grammar, Sampling
from pumice.engine.sampler import MAX_STOP_LENGTH
from pumice.serve.errors import ApiError, clean, invalid
from pumice.serve.parts import is_nothing
from pumice.serve.settings import ServeSettings

HARMLESS = ("user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
            "parallel_tool_calls")  # fmt: skip
"""What changes nothing about an answer of this server."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "store": (False,),
    "background": (False,),
    "tool_choice": ("none", "auto"),
    "truncation": ("disabled",),
    "modalities": (["text"],),
}
MAX_TOP = 20
SEEDS = 2**63

MESSAGE = {
    "type": "object",
    "properties": {
        "role": {"type": "string", "enum": ["system", "developer", "user", "assistant"]},
        "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]},
    },
    "required": ["role", "content"],
}
Messages = Annotated[list[Any], WithJsonSchema({"type": "array", "items": MESSAGE, "minItems": 1})]
Input = Annotated[Any, WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": MESSAGE}]})]


class Body(BaseModel):
    """A JSON object whose unknown fields are looked at by hand."""

    model_config = ConfigDict(extra="allow", strict=True, json_schema_extra={"additionalProperties": False})


class StreamOptions(Body):
    """What a stream has beside its pieces."""

    include_usage: bool | None = None


class Chosen(Body):
    """How tokens are chosen: what chat completions and responses have in common."""

    model: str
    stream: bool | None = None
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=0, lt=2**31)
    min_p: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    repetition_penalty: float | None = Field(None, gt=0, le=10, allow_inf_nan=False)
    seed: int | None = Field(None, ge=-SEEDS, lt=SEEDS)
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP)


class ChatRequest(Chosen):
    """POST /v1/chat/completions."""

    messages: Messages
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1, lt=2**31)
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31)
    n: int | None = Field(None, ge=1, le=128)
    stop: str | list[str] | None = None
    logprobs: bool | None = None
    response_format: dict[str, Any] | None = None


class ResponseRequest(Chosen):
    """POST /v1/responses."""

    input: Input
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1, lt=2**31)
    text: dict[str, Any] | None = None
    include: list[str] | None = None


class CountRequest(Body):
    """POST /tokenize."""

    model: str
    messages: Messages


class PreviewRequest(Body):
    """POST /v1/previews."""

    messages: Messages


class EvidenceRequest(CountRequest):
    """POST /v1/evidence."""

    answer: str


B = TypeVar("B", bound=Body)


def read_body(body: bytes, kind: type[B]) -> B:
    """A request's body.

    Raises:
        ApiError: 400, naming the first field that is wrong, unknown or not supported.
    """
    try:
        read = kind.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        first = max(found, key=lambda one: len(one["loc"]))  # of alternatives, the one that got furthest
        if first["type"] == "json_invalid":
            raise invalid(f"the body isn't JSON: {clean(first['msg'])}", None, "invalid_json") from None
        raise invalid(clean(first["msg"]), _path(first["loc"])) from None
    except RecursionError:
        raise invalid("the body is nested too deeply", None, "invalid_json") from None
    _refuse_extra(read, "")
    return read


def _path(places: tuple[int | str, ...]) -> str | None:
    """("stop", "list[str]", 0) to "stop[0]"; pydantic's names of alternatives aren't fields."""
    text = ""
    for place in places:
        if isinstance(place, int):
            text += f"[{place}]"
        elif not text:
            text = clean(place)
        elif place.isidentifier() and place != "str":
            text += f".{place}"
    return text or None


def _refuse_extra(body: Body, where: str) -> None:
    for name, value in (body.model_extra or {}).items():
        neutral = any(type(value) in (type(one), int, float) and value == one for one in NEUTRAL.get(name, ()))
        if name in HARMLESS or is_nothing(value) or neutral:
            continue
        known = name in NEUTRAL or name in ("tools", "functions", "logit_bias", "prediction", "audio", "reasoning",
                                            "reasoning_effort", "previous_response_id", "conversation")  # fmt: skip
        code = "unsupported_parameter" if known else "unknown_parameter"
        what = "isn't supported" if known else "isn't known"
        raise invalid(f"{what}, and would change the answer; leave it out", where + clean(name), code)
    for name, value in body:
        if isinstance(value, Body):
            _refuse_extra(value, f"{where}{name}.")


def chat_sampling(ask: ChatRequest, settings: ServeSettings) -> Sampling:
    """How a chat completion's tokens are chosen.

    Raises:
        ApiError: 400, naming the field.
    """
    if ask.max_tokens is not None and ask.max_completion_tokens not in (None, ask.max_tokens):
        raise invalid("differs from max_tokens; say one of them", "max_completion_tokens")
    if (ask.n or 1) > settings.max_choices:
        raise invalid(f"{ask.n} choices; at most {settings.max_choices}", "n", "unsupported_value")
    if ask.top_logprobs and not ask.logprobs:
        raise invalid("needs logprobs: true", "top_logprobs")
    if ask.stream_options is not None and not ask.stream:
        raise invalid("is for stream: true", "stream_options")
    stop = (ask.stop,) if isinstance(ask.stop, str) else tuple(ask.stop or ())
    if len(stop) > settings.max_stops or any(not 0 < len(text) <= MAX_STOP_LENGTH for text in stop):
        raise invalid(f"expected at most {settings.max_stops} texts of 1 to {MAX_STOP_LENGTH} characters", "stop")
    longest = ask.max_completion_tokens or ask.max_tokens
    logprobs = (ask.top_logprobs or 0) if ask.logprobs else None
    return _sampling(ask, longest, stop, logprobs, _grammar(ask.response_format, "response_format"), settings)


def response_sampling(ask: ResponseRequest, settings: ServeSettings) -> Sampling:
    """As `chat_sampling`, of a response."""
    text = dict(ask.text or {})
    style = text.pop("format", None)
    for name, value in text.items():
        if not is_nothing(value) and (name, value) != ("verbosity", "medium"):
            raise invalid("isn't supported; leave it out", f"text.{clean(name)}", "unsupported_parameter")
    if style is not None and not isinstance(style, dict):
        raise invalid("expected an object", "text.format")
    included = set(ask.include or ())
    if included - {"message.output_text.logprobs"}:
        raise invalid("only message.output_text.logprobs", "include", "unsupported_value")
    logprobs = (ask.top_logprobs or 0) if included or ask.top_logprobs else None
    return _sampling(ask, ask.max_output_tokens, (), logprobs, _grammar(_nested(style), "text.format"), settings)


def _sampling(
    ask: Chosen, longest: int | None, stop: tuple[str, ...], logprobs: int | None, grammar: Grammar | None,
    settings: ServeSettings,
) -> Sampling:  # fmt: skip
    given = {name: getattr(ask, name) for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")}
    chosen = {name: value for name, value in given.items() if value is not None}
    longest = longest or settings.answer_tokens
    return Sampling(longest, **chosen, seed=ask.seed, stop=stop, logprobs=logprobs, grammar=grammar)


def _nested(style: dict[str, Any] | None) -> dict[str, Any] | None:
    """The form of chat completions for a response's format, which has the schema one level up."""
    if style is None or style.get("type") != "json_schema":
        return style
    return {"type": "json_schema", "json_schema": {key: value for key, value in style.items() if key != "type"}}


def _grammar(style: dict[str, Any] | None, where: str) -> Grammar | None:
    if style is None:
        return None
    kind = style.get("type")
    unknown = [key for key in style if key not in ("type", "json_schema") and not is_nothing(style[key])]
    if unknown:
        raise invalid("isn't known; leave it out", f"{where}.{clean(unknown[0])}", "unknown_parameter")
    if kind == "text":
        return None
    if kind == "json_object":
        return Grammar("json")
    if kind != "json_schema":
        raise invalid("expected text, json_object or json_schema", f"{where}.type", "unsupported_value")
    named = style.get("json_schema")
    schema = named.get("schema") if isinstance(named, dict) else None
    if not isinstance(schema, dict):
        raise invalid("expected a JSON schema, an object", f"{where}.json_schema.schema", "invalid_schema")
    return Grammar("json_schema", json.dumps(schema))


def context_error(tokens: int, longest: int, limit: int) -> ApiError:
    """The refusal of a prompt that doesn't fit, with its counts."""
    return invalid(
        f"the messages have {tokens} tokens and the answer up to {longest}; the model takes {limit} together: fewer or "
        "smaller pictures, a shorter text, or fewer tokens for the answer",
        "messages",
        "context_length_exceeded",
    )
