"""What an engine may take, and what it says of itself."""

from __future__ import annotations

from dataclasses import dataclass

from pumice.types import PumiceError

LOOKUP = 8
"""Tokens to guess where the text of pictures stands in the prompt (docs/engine.md has the measurement)."""
MOST_LOOKUP = 15
"""With the token before them what decoders take as a short span."""


class Full(PumiceError):  # noqa: N818 (a state, as queue.Full)
    """The queue is full: the request may be made again later."""


@dataclass(frozen=True)
class Settings:
    """What an engine may take.

    memory_mib, pictures_mib  of keys and values; of visual tokens remembered
    batch                     sequences that run at once
    chunk, views              tokens of prompts that a pass reads; tiles that go through the tower before it
    queue                     requests that wait
    readers, decoded_mib      threads that decode pictures; pixels that wait for their turn
    weights                   of the language model: "fp32", "bf16", "int8" or "int4"; "" is the model's own. What the
                              tower gets beside these: `engine.decoders.make_tower`
    lookup                    tokens up to which guesses fill a pass, beside one (`engine.lookup`); 0: no guesses

    Raises:
        PumiceError: a number that is less than 1, or a look-up of less than 0 or more than MOST_LOOKUP.
    """

    memory_mib: float = 2048
    batch: int = 32
    chunk: int = 512
    queue: int = 256
    weights: str = ""
    pictures_mib: float = 256
    views: int = 16
    readers: int = 2
    decoded_mib: float = 256
    lookup: int = 0

    def __post_init__(self) -> None:
        for name in ("batch", "chunk", "queue", "views", "readers"):
            if getattr(self, name) < 1:
                raise PumiceError(f"the engine's {name} is {getattr(self, name)}; expected at least 1")
        if not 0 <= self.lookup <= MOST_LOOKUP:
            raise PumiceError(f"the engine's lookup is {self.lookup}; expected 0 (none) to {MOST_LOOKUP} tokens")


@dataclass(frozen=True)
class Stats:
    """What an engine does and has done.

    running, waiting                requests
    tokens_held, tokens_budget      in memory: running sequences and what is remembered; the most
    pictures, picture_hits, picture_misses   remembered; asked for and known or being made; new
    prompt_tokens, cached_tokens    of admitted requests; those of them that were known
    generated_tokens, passes
    guessed_tokens, right_tokens    by look-up, and those of them that were right
    finished, cancelled, failed     requests by their end
    """

    running: int
    waiting: int
    tokens_held: int
    tokens_budget: int
    pictures: int
    picture_hits: int
    picture_misses: int
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    passes: int
    guessed_tokens: int
    right_tokens: int
    finished: int
    cancelled: int
    failed: int
