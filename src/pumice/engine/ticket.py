"""A request that the engine has taken, and what it does with the tokens chosen for it.

Choice ──detokenise──> Piece ──> whoever iterates, or ``done`` ──stop token, stop text, grammar, length──> Outcome
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from pumice.engine.counting import Count
from pumice.engine.detokenise import Detokeniser, token_text
from pumice.engine.grammar import CompiledGrammar
from pumice.engine.jobs import Job
from pumice.engine.request import Finish, Outcome, Piece, Sampling, Token
from pumice.engine.sampler import Choice
from pumice.types import Features, PumiceError, Sample

if TYPE_CHECKING:
    from pumice.engine.engine import Engine

Done = Callable[[Piece | Outcome | PumiceError], None]
logger = logging.getLogger(__name__)


class Ticket:
    """A request's answer, as it is made. Iterating gives its pieces; several may wait for its `result`.

    Raises:
        PumiceError: (iterating, and `result`) its media can't be read, or the engine failed on it.
    """

    def __init__(self, engine: Engine, done: Done | None) -> None:
        self._engine, self._done = engine, done
        self._pieces: SimpleQueue[Piece | None] = SimpleQueue()
        self._end: Outcome | PumiceError | None = None
        self._over = threading.Event()

    def __iter__(self) -> Iterator[Piece]:
        while (piece := self._next()) is not None:
            yield piece
        self._pieces.put(None)  # for whoever else iterates
        if isinstance(self._end, PumiceError):
            raise self._end

    def result(self, timeout: float | None = None) -> Outcome:
        """The whole answer.

        Raises:
            TimeoutError: there was none after ``timeout`` seconds.
        """
        if self._engine.threaded:
            self._over.wait(timeout)
        limit = None if timeout is None else time.monotonic() + timeout
        while not self._engine.threaded and not self._over.is_set() and (limit is None or time.monotonic() < limit):
            self._engine.step()
        if self._end is None:
            raise TimeoutError(f"no answer after {timeout} seconds")
        if isinstance(self._end, PumiceError):
            raise self._end
        return self._end

    def cancel(self) -> None:
        """End it as soon as the pass that runs is over; its outcome is then what there is so far, "cancelled"."""
        self._engine.cancel(self)

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self._over.is_set()

    def _next(self) -> Piece | None:
        if self._engine.threaded:
            return self._pieces.get()
        while True:
            try:
                return self._pieces.get_nowait()
            except Empty:
                self._engine.step()

    def post(self, piece: Piece) -> None:
        """(The engine's.) Give a piece to whoever waits."""
        if self._done is None:
            self._pieces.put(piece)
        self._call(piece)

    def end(self, end: Outcome | PumiceError) -> None:
        """(The engine's.) Give the end."""
        self._end = end
        self._over.set()
        self._pieces.put(None)
        self._call(end)

    def _call(self, event: Piece | Outcome | PumiceError) -> None:
        if self._done is not None:
            try:
                self._done(event)
            except Exception:
                logger.exception("whoever waits for an answer failed to take it")


@dataclass(eq=False)
class Request:
    """A taken request: what was asked, where it stands, and the answer so far. Times are of `time.perf_counter`."""

    ticket: Ticket
    asked: Sample | Features | None  # until it runs
    sampling: Sampling
    space: str
    count: Count
    text: Detokeniser
    grammar: CompiledGrammar | None
    stop_ids: Sequence[int]
    began: float = field(default_factory=time.perf_counter)
    admitted: float | None = None
    first: float | None = None
    reading: bool = False  # whether its pictures are being decoded, or have been
    prepared: tuple[Features, list[bytes]] | PumiceError | None = None
    job: Job | None = None
    pieces: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    logprob: float = 0.0

    def take(self, choice: Choice, tokenizer: Any) -> Finish | None:
        """Go on by a token: post what can be shown, and say whether the answer ends."""
        self.first = self.first or time.perf_counter()
        self.logprob += choice.logprob
        if choice.id in self.stop_ids:
            return "stop"
        self.ids.append(choice.id)
        text = self.text.push(choice.id)
        tokens: tuple[Token, ...] = ()
        if self.sampling.logprobs is not None:
            top = tuple((token_text(tokenizer, token), logprob) for token, logprob in choice.top)
            tokens = (Token(choice.id, token_text(tokenizer, choice.id), choice.logprob, top),)
        self._post(text, tokens)
        if self.text.stopped or choice.last:
            return "stop"
        return "length" if len(self.ids) == self.sampling.max_tokens else None

    def end(self, finish: Finish) -> Outcome:
        """The answer, after posting the text that was held back."""
        self._post(self.text.finish())
        finish = "stop" if finish == "length" and self.text.cut else finish
        now = time.perf_counter()
        return Outcome(
            text="".join(self.pieces),
            ids=tuple(self.ids),
            finish=finish,
            logprob=self.logprob,
            prompt_tokens=self.count.prompt_tokens,
            visual_tokens=self.count.visual_tokens,
            cached_tokens=self.job.cached if self.job is not None else 0,
            queue_ms=1000 * ((self.admitted or now) - self.began),
            first_ms=1000 * ((self.first or now) - self.began),
            ms=1000 * (now - self.began),
        )

    def _post(self, text: str, tokens: tuple[Token, ...] = ()) -> None:
        if text or tokens:
            self.pieces.append(text)
            self.ticket.post(Piece(text, tokens))


def failure(error: BaseException) -> PumiceError:
    """What a request is told of an error that is the engine's."""
    if isinstance(error, PumiceError):
        return error
    return PumiceError(" ".join(f"the engine failed on this request: {type(error).__name__}: {error}".split())[:300])
