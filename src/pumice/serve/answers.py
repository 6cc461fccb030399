"""From a checked request to the pieces of its answers.

    messages, Sampling ──prepare──> Features ──Answers──> (choice, Piece | Outcome), ..., usage

Whoever makes Answers closes them: that cancels what is still being answered.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from pumice.assistant import Assistant
from pumice.encode import Processor
from pumice.engine.engine import Engine
from pumice.engine.grammar import compile_grammar
from pumice.engine.request import Outcome, Piece, Sampling
from pumice.engine.settings import Full
from pumice.engine.ticket import Ticket
from pumice.reader.reader import Reader
from pumice.serve.errors import ApiError, clean, from_error, invalid
from pumice.serve.media import Laid, Opened, Opener, longest_text
from pumice.serve.metrics import Metrics
from pumice.serve.parts import Said
from pumice.serve.schemas import context_error
from pumice.types import Features, PumiceError

Event = tuple[int, Piece | Outcome]


@dataclass(frozen=True)
class Served:
    """One model of a server. ``limit`` is what prompt and answer may have together, in tokens."""

    name: str
    processor: Processor
    engine: Engine
    limit: int
    characters: int
    created: int
    reader: Reader | None = None

    @classmethod
    def of(cls, name: str, assistant: Assistant, engine: Engine) -> Served:
        """A model with its engine; nothing is cut to fit when it serves."""
        processor = replace(assistant.processor, cut=False)
        limit = min(processor.max_tokens, assistant.model.lm.config.max_position_embeddings)
        return cls(name, processor, engine, limit, longest_text(processor), int(time.time()), assistant.reader)


@dataclass
class Prompt:
    """A request's messages, laid out. ``began`` is when the request did, in seconds of `time.perf_counter`."""

    model: Served
    opened: Opened
    laid: Laid
    space: str
    began: float = field(default_factory=time.perf_counter)


async def prepare(model: Served, said: Sequence[Said], opener: Opener, space: str) -> Prompt:
    """Open and lay out; no pixel is decoded.

    Raises:
        ApiError: 400.
    """
    began = time.perf_counter()
    opened = await opener.open_sample(said, space)
    if model.reader is not None:
        opened = await opener.with_text(opened, model.reader, space)
    return Prompt(model, opened, await opener.lay_out(opened.sample, model.processor, model.characters), space, began)


class Answers:
    """The answers to one prompt, ``count`` of them."""

    def __init__(self, prompt: Prompt, sampling: Sampling, count: int, opener: Opener, metrics: Metrics) -> None:
        self.prompt, self.sampling, self.count, self.opener, self.metrics = prompt, sampling, count, opener, metrics
        self.outcomes: dict[int, Outcome] = {}
        self._queue: asyncio.Queue[tuple[int, Piece | Outcome | PumiceError]] = asyncio.Queue()
        self._tickets: list[Ticket] = []
        self._held = 0
        self._closed = False

    async def start(self, threads: ThreadPoolExecutor) -> None:
        """Decode the pictures and hand the prompt to the engine.

        Raises:
            ApiError: 400, it is too long, a picture can't be decoded, or its sampling can't be; 429, the queue is full.
        """
        model, laid = self.prompt.model, self.prompt.laid
        if len(laid.ids) + self.sampling.max_tokens > model.limit:
            raise context_error(len(laid.ids), self.sampling.max_tokens, model.limit)
        await self.opener.room.take(laid.bytes)
        self._held = laid.bytes
        features = await self.opener.features(model.name, laid, self.prompt.opened, self.prompt.space)
        loop = asyncio.get_running_loop()
        submitted = loop.run_in_executor(threads, self._submit, features, loop)
        try:
            await asyncio.shield(submitted)
        except asyncio.CancelledError:
            submitted.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody else looks at it
            raise
        except Full:
            message = "the queue is full; try again in a moment"
            raise ApiError(429, "queue_full", message, retry_after=2) from None
        except PumiceError as error:
            raise from_error(error) from None

    def _submit(self, features: Features, loop: asyncio.AbstractEventLoop) -> None:
        self._check_grammar()
        for index in range(self.count):
            seed = self.sampling.seed
            own = self.sampling if seed is None or not index else replace(self.sampling, seed=seed + index)

            def done(event: Piece | Outcome | PumiceError, index: int = index) -> None:
                loop.call_soon_threadsafe(self._queue.put_nowait, (index, event))

            engine, space = self.prompt.model.engine, self.prompt.space
            ticket = engine.submit(features, own, space=space, done=done, strip=True)
            self._tickets.append(ticket)
            if self._closed:  # the client left meanwhile
                ticket.cancel()

    def _check_grammar(self) -> None:
        """Compile it first, so that what is wrong with it is said of its field; the engine finds it compiled."""
        if self.sampling.grammar is not None:
            processor = self.prompt.model.processor
            try:
                compile_grammar(self.sampling.grammar, processor.tokenizer, processor.stop_ids)
            except PumiceError as error:
                raise invalid(clean(str(error)), "response_format", "invalid_schema") from None

    async def events(self) -> AsyncGenerator[Event, None]:
        """Pieces of all answers as they come, and for each its Outcome at its end.

        Raises:
            ApiError: 500, the engine failed.
        """
        started: set[int] = set()
        while len(self.outcomes) < self.count:
            index, event = await self._queue.get()
            if isinstance(event, PumiceError):
                raise ApiError(500, "engine_error", from_error(event).message)
            if not started:
                self.metrics.first.labels(self.prompt.model.name).observe(time.perf_counter() - self.prompt.began)
            started.add(index)
            if len(started) == self.count:
                self._release()
            if isinstance(event, Outcome):
                if event.finish == "cancelled":
                    raise ApiError(503, "draining", "the server is stopping; ask again", retry_after=5)
                self.outcomes[index] = event
                self._count(event)
            yield index, event

    def _release(self) -> None:
        """The engine has read the pictures."""
        held, self._held = self._held, 0
        if held:
            self.opener.room.give(held)

    def close(self) -> None:
        """Stop what is still being answered; answers that have ended don't mind."""
        self._closed = True
        self._release()
        if len(self.outcomes) < self.count:
            for ticket in list(self._tickets):
                ticket.cancel()

    def _count(self, outcome: Outcome) -> None:
        name = self.prompt.model.name
        kinds = {
            "prompt": outcome.prompt_tokens,
            "visual": outcome.visual_tokens,
            "cached": outcome.cached_tokens,
            "generated": len(outcome.ids),
        }
        for kind, number in kinds.items():
            self.metrics.tokens.labels(name, kind).inc(number)
        if len(outcome.ids) > 1:
            mean = (outcome.ms - outcome.first_ms) / (len(outcome.ids) - 1) / 1000
            self.metrics.between.labels(name).observe(max(0.0, mean))

    def usage(self) -> dict[str, int]:
        """Tokens of the whole request, as the access log has them."""
        first = self.outcomes[0]
        return {
            "prompt_tokens": first.prompt_tokens,
            "visual_tokens": first.visual_tokens,
            "cached_tokens": first.cached_tokens,
            "completion_tokens": sum(len(outcome.ids) for outcome in self.outcomes.values()),
        }


def find_model(models: dict[str, Served], name: str) -> Served:
    """A model by its name.

    Raises:
        ApiError: 404, naming those that there are.
    """
    if name not in models:
        raise ApiError(404, "model_not_found", f"no such model; this server has {', '.join(models)}", "model")
    return models[name]
