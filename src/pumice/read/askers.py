"""Who answers: here a model of our own through the engine, in `cluster` many of it, in `server` one behind OpenAI's
chat completions.

ask(media, prompt, done) ──at once──> ... ──from another thread──> done(Answer, or PumiceError)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import Lock
from typing import TYPE_CHECKING, Protocol

from pumice.read.ask import Answer, Box, Prompt
from pumice.types import Media, PumiceError, Sample

if TYPE_CHECKING:
    from pumice.assistant import Assistant
    from pumice.engine.request import Outcome, Piece

Done = Callable[[Answer | PumiceError], None]


class Asker(Protocol):
    """Answers prompts about media, ``batch`` at once; ``digest`` names all that an answer depends on besides."""

    digest: str
    batch: int

    def ask(self, media: Media, prompt: Prompt, done: Done) -> None: ...
    def find_boxes(self, media: Media, prompt: Prompt, answer: Answer, done: Done) -> None:
        """Find where in the medium an answer was read: it comes back with its boxes, the strongest first."""
        ...

    def close(self) -> None: ...


class EngineAsker:
    """An engine, ``batch`` answers at a time, for ``prompts``: an answer can't but fit its prompt's grammar.

    Raises:
        PumiceError: a grammar that can't be used.
    """

    def __init__(self, assistant: Assistant, max_tokens: int, batch: int, prompts: Sequence[Prompt]) -> None:
        import torch

        from pumice.engine.engine import Engine
        from pumice.engine.grammar import compile_grammar
        from pumice.engine.memory import token_bytes
        from pumice.engine.settings import Settings
        from pumice.journal import model_hash

        for prompt in prompts:  # or every page would fail
            if prompt.grammar is not None:
                compile_grammar(prompt.grammar, assistant.processor.tokenizer, assistant.processor.stop_ids)
        self.digest = model_hash(assistant)
        self.batch, self._assistant, self._max_tokens = batch, assistant, max_tokens
        self._one = Lock()
        # The assistant's own engine isn't made unless it answers something: it decodes no pages ahead.
        positions = assistant.model.lm.config.max_position_embeddings
        one = positions * token_bytes(assistant.model, torch.float32) / 2**20  # a prompt of any length always fits
        settings = Settings(max(Settings.memory_mib, math.ceil(one)), batch, queue=4 * batch)
        self._engine = Engine(assistant.model, assistant.processor, settings)

    def ask(self, media: Media, prompt: Prompt, done: Done) -> None:
        """Raises PumiceError when it can't be asked at all."""
        from pumice.engine.request import Sampling

        sampling = Sampling(self._max_tokens, logprobs=0, grammar=prompt.grammar)
        asked = self._assistant.prepared(_sample(media, prompt))
        self._engine.submit(asked, sampling, done=_Collected(done), strip=True)

    def find_boxes(self, media: Media, prompt: Prompt, answer: Answer, done: Done) -> None:
        """At once, in a forward pass of its own; one at a time, because each holds a prompt's attention."""
        with self._one:
            try:
                done(replace(answer, boxes=self._boxes(media, prompt, answer.text)))
            except PumiceError as error:  # the page can't be read, or prompt and answer are too long
                done(error)

    def _boxes(self, media: Media, prompt: Prompt, text: str) -> tuple[Box, ...]:
        from pumice.evidence import evidence

        if not text.strip():
            return ()
        return tuple(
            (tuple(round(edge, 4) for edge in region.box), round(region.weight, 4), region.frame)
            for region in evidence(self._assistant, _sample(media, prompt), text)
        )

    def close(self) -> None:
        self._engine.close(drain=False)


def _sample(media: Media, prompt: Prompt) -> Sample:
    from pumice.messages import question_messages, to_sample

    return to_sample(question_messages(media, prompt.text))


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
