"""POST /v1/responses, as far as one question and its answer go: nothing is stored and there are no tools."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from pumice.engine.request import Outcome, Token
from pumice.serve.answers import Answers, Event
from pumice.serve.chat import sse, token_json
from pumice.serve.errors import ApiError, from_error, invalid
from pumice.serve.schemas import ResponseRequest

FIELDS = {
    "messages": "input",
    "response_format": "text.format",
    "text.format.json_schema.schema": "text.format.schema",
}
"""Fields of chat completions, as responses call them."""


@contextlib.contextmanager
def own_names() -> Iterator[None]:
    """Errors inside name a response's fields."""
    try:
        yield
    except ApiError as error:
        error.param = error.param and FIELDS.get(error.param, error.param)
        raise


def messages_of(ask: ResponseRequest) -> list[Any]:
    """The messages of a response's input and instructions.

    Raises:
        ApiError: 400, the input is neither text nor a list.
    """
    given = [{"role": "user", "content": ask.input}] if isinstance(ask.input, str) else ask.input
    if not isinstance(given, list):
        raise invalid("expected a text or a list of messages", "input")
    return given


class ResponseAnswer:
    """One response's JSON and events."""

    def __init__(self, answers: Answers, ask: ResponseRequest, logprobs: bool) -> None:
        self.answers, self.ask, self.logprobs = answers, ask, logprobs
        self.id, self.item = f"resp_{secrets.token_hex(12)}", f"msg_{secrets.token_hex(12)}"
        self.created = int(time.time())
        self.number = 0
        self.tokens: list[Token] = []

    async def whole(self, events: AsyncIterator[Event]) -> dict[str, Any]:
        """The response once all of it is there."""
        async for _, event in events:
            if not isinstance(event, Outcome):
                self.tokens += event.tokens
        return self._response(self.answers.outcomes[0])

    async def stream(self, events: AsyncIterator[Event]) -> AsyncIterator[bytes]:
        """OpenAI's events of a response with one message."""
        place = {"item_id": self.item, "output_index": 0, "content_index": 0}
        try:
            yield self._event("response.created", response=self._response(None))
            yield self._event("response.in_progress", response=self._response(None))
            yield self._event("response.output_item.added", output_index=0, item=self._message("in_progress", None))
            yield self._event("response.content_part.added", **place, part=self._part(""))
            async for _, event in events:
                if not isinstance(event, Outcome):
                    self.tokens += event.tokens
                    if event.text:
                        new = [token_json(token) for token in event.tokens] if self.logprobs else []
                        yield self._event("response.output_text.delta", **place, delta=event.text, logprobs=new)
            outcome = self.answers.outcomes[0]
            part = self._part(outcome.text)
            yield self._event("response.output_text.done", **place, text=outcome.text, logprobs=part["logprobs"])
            yield self._event("response.content_part.done", **place, part=part)
            status = self._status(outcome)
            yield self._event("response.output_item.done", output_index=0, item=self._message(status, outcome))
            yield self._event(f"response.{status}", response=self._response(outcome))
        except ApiError as error:
            said = from_error(error)
            yield self._event("error", code=said.code, message=said.message, param=said.param)

    def _event(self, kind: str, **fields: Any) -> bytes:
        self.number += 1
        return sse({"type": kind, "sequence_number": self.number - 1, **fields}, kind)

    def _status(self, outcome: Outcome) -> str:
        return "completed" if outcome.finish == "stop" else "incomplete"

    def _part(self, text: str) -> dict[str, Any]:
        logprobs = [token_json(token) for token in self.tokens] if self.logprobs else []
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def _message(self, status: str, outcome: Outcome | None) -> dict[str, Any]:
        content = [] if outcome is None else [self._part(outcome.text)]
        return {"id": self.item, "type": "message", "role": "assistant", "status": status, "content": content}

    def _response(self, outcome: Outcome | None) -> dict[str, Any]:
        ask, status = self.ask, "in_progress" if outcome is None else self._status(outcome)
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": ask.instructions,
            "max_output_tokens": ask.max_output_tokens,
            "metadata": {},
            "model": self.answers.prompt.model.name,
            **({"reader": True} if self.answers.prompt.model.reader else {}),
            "output": [] if outcome is None else [self._message(status, outcome)],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": ask.temperature or 0.0,
            "text": ask.text or {"format": {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "top_p": 1.0 if ask.top_p is None else ask.top_p,
            "truncation": "disabled",
            "usage": None if outcome is None else self._usage(),
        }

    def _usage(self) -> dict[str, Any]:
        usage = self.answers.usage()
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {
                "cached_tokens": usage["cached_tokens"],
                "visual_tokens": usage["visual_tokens"],
            },
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["prompt_tokens"] + usage["completion_tokens"],
        }
