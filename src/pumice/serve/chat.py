"""POST /v1/chat/completions: whole, or as a stream of server-sent events.

body ──read_body──> ChatRequest ──prepare──> Prompt ──Answers──> JSON, or events
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Iterable
from typing import Any

from pumice.engine.request import Outcome, Piece, Token
from pumice.serve.answers import Answers, Event
from pumice.serve.errors import ApiError, from_error

DONE = b"data: [DONE]\n\n"


def sse(data: dict[str, Any], event: str = "") -> bytes:
    """One server-sent event."""
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


def usage_json(usage: dict[str, int]) -> dict[str, Any]:
    """OpenAI's form of a request's tokens."""
    return {
        "prompt_tokens": usage["prompt_tokens"],
        "completion_tokens": usage["completion_tokens"],
        "total_tokens": usage["prompt_tokens"] + usage["completion_tokens"],
        "prompt_tokens_details": {
            "cached_tokens": usage["cached_tokens"],
            "visual_tokens": usage["visual_tokens"],
        },
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def token_json(token: Token) -> dict[str, Any]:
    """A token with its log-probability and alternatives."""
    top = [{"token": text, "logprob": logprob, "bytes": list(text.encode())} for text, logprob in token.top]
    return {
        "token": token.text,
        "logprob": token.logprob,
        "bytes": list(token.text.encode()),
        "top_logprobs": top,
    }


def logprobs_json(tokens: Iterable[Token]) -> dict[str, Any]:
    """The log-probabilities of some tokens."""
    return {"content": [token_json(token) for token in tokens], "refusal": None}


class ChatAnswer:
    """One chat completion's JSON; ``logprobs`` and ``usage`` say whether the client wants them."""

    def __init__(self, answers: Answers, logprobs: bool, usage: bool) -> None:
        self.answers, self.logprobs, self.with_usage = answers, logprobs, usage
        self.head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": answers.prompt.model.name,
            **({"reader": True} if answers.prompt.model.reader else {}),
        }

    async def whole(self, events: AsyncIterator[Event]) -> dict[str, Any]:
        """The completion once all of it is there."""
        tokens: list[list[Token]] = [[] for _ in range(self.answers.count)]
        async for index, event in events:
            if isinstance(event, Piece):
                tokens[index] += event.tokens
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": self.answers.outcomes[index].text, "refusal": None},
                "finish_reason": self.answers.outcomes[index].finish,
                "logprobs": logprobs_json(tokens[index]) if self.logprobs else None,
            }
            for index in range(self.answers.count)
        ]
        usage = usage_json(self.answers.usage())
        return {**self.head, "object": "chat.completion", "choices": choices, "usage": usage}

    async def stream(self, events: AsyncIterator[Event]) -> AsyncIterator[bytes]:
        """Server-sent events; an error after the first of them is the last one."""
        try:
            for index in range(self.answers.count):
                yield sse(self._chunk(index, {"role": "assistant", "content": ""}))
            async for index, event in events:
                if isinstance(event, Outcome):
                    yield sse(self._chunk(index, {}, finish=event.finish))
                elif event.text or (self.logprobs and event.tokens):
                    yield sse(self._chunk(index, {"content": event.text}, event.tokens if self.logprobs else None))
            if self.with_usage:
                yield sse({**self._empty(), "choices": [], "usage": usage_json(self.answers.usage())})
        except ApiError as error:
            yield sse(from_error(error).to_json())
            return
        yield DONE

    def _empty(self) -> dict[str, Any]:
        return {**self.head, "object": "chat.completion.chunk"}

    def _chunk(
        self, index: int, delta: dict[str, Any], tokens: tuple[Token, ...] | None = None, finish: str | None = None
    ) -> dict[str, Any]:
        logprobs = None if tokens is None else logprobs_json(tokens)
        choice = {"index": index, "delta": delta, "finish_reason": finish, "logprobs": logprobs}
        return {**self._empty(), "choices": [choice], **({"usage": None} if self.with_usage else {})}
