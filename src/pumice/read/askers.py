"""Who answers: here a model of our own through the engine, in `server` one behind OpenAI's chat completions.

ask(media, prompt, done) ──at once──> ... ──from another thread──> done(Answer, or PumiceError)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from pumice.read.ask import Answer
from pumice.types import Media, PumiceError

if TYPE_CHECKING:
    from pumice.assistant import Assistant
    from pumice.engine.request import Outcome, Piece

Done = Callable[[Answer | PumiceError], None]


class Asker(Protocol):
    """Answers one prompt about one medium; ``digest`` names all that an answer depends on besides."""

    digest: str

    def ask(self, media: Media, prompt: str, done: Done) -> None: ...
    def close(self) -> None: ...


class EngineAsker:
    """An assistant's own engine, ``batch`` answers at a time. With a ``schema`` answers can't but fit it."""

    def __init__(self, assistant: Assistant, max_tokens: int, batch: int, schema: str | None) -> None:
        from pumice.engine.engine import Engine
        from pumice.engine.request import Grammar, Sampling
        from pumice.engine.settings import Settings
        from pumice.eval.journal import model_hash

        self.digest = model_hash(assistant)
        grammar = Grammar("json_schema", schema) if schema is not None else None
        self._sampling = Sampling(max_tokens, logprobs=0, grammar=grammar)
        self._engine = Engine(assistant.model, assistant.processor, Settings(batch=batch, queue=4 * batch))

    def ask(self, media: Media, prompt: str, done: Done) -> None:
        """Raises PumiceError when it can't be asked at all."""
        from pumice.messages import question_messages, to_sample

        sample = to_sample(question_messages(media, prompt))
        self._engine.submit(sample, self._sampling, done=_Collected(done), strip=True)

    def close(self) -> None:
        self._engine.close(drain=False)


class _Collected:
    """Pieces of an answer, put together."""

    def __init__(self, done: Done) -> None:
        self._done, self._tokens, self._length = done, [], 0

    def __call__(self, event: Piece | Outcome | PumiceError) -> None:
        from pumice.engine.request import Outcome, Piece

        if isinstance(event, Piece):
            self._length += len(event.text)
            self._tokens += [(self._length, round(token.logprob, 4)) for token in event.tokens]
        elif isinstance(event, Outcome):
            mean = event.logprob / max(1, len(event.ids))
            self._done(Answer(event.text, event.finish, tuple(self._tokens), round(mean, 4)))
        else:
            self._done(event)
