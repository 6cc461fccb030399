"""What is asked of the engine and what comes back.

Sample + Sampling ──submit──> Ticket ──pieces, as they come──> Outcome
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Finish = Literal["stop", "length", "cancelled"]
GrammarKind = Literal["json_schema", "json", "regex", "choice"]


@dataclass(frozen=True)
class Grammar:
    """What an answer must look like. ``source`` is a JSON schema's text, a regular expression, or choices a line."""

    kind: GrammarKind
    source: str = ""


@dataclass(frozen=True)
class Sampling:
    """How an answer's tokens are chosen.

    ``temperature`` 0 is greedy. ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 leave everything in. The same ``seed`` gives
    the same answer, whatever else is being answered. ``stop`` texts end the answer and aren't part of it.
    With ``ignore_end`` the model's own end doesn't end it, as measurements want.
    ``logprobs`` is how many alternatives a token are reported, None for not even its own.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    grammar: Grammar | None = None
    ignore_end: bool = False


@dataclass(frozen=True)
class Token:
    """A generated token: its id, text, log-probability under the model, and the likeliest (text, log-probability)."""

    id: int
    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """Text that can be shown (half characters and what may become a stop text are held back), with new tokens."""

    text: str
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """A whole answer. ``cached_tokens`` of the ``prompt_tokens`` were known from earlier requests.

    ``logprob`` sums over the answer's tokens and its end. ``queue_ms``, ``first_ms`` and ``ms`` count from `submit` to
    admission, first token and end.
    """

    text: str
    ids: tuple[int, ...]
    finish: Finish
    logprob: float
    prompt_tokens: int
    visual_tokens: int
    cached_tokens: int
    queue_ms: float
    first_ms: float
    ms: float
