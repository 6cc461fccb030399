"""What a request needs, from its layout alone: counted before a pixel is decoded, refused where it can never fit."""

from __future__ import annotations

from dataclasses import dataclass

from pumice.encode import Processor, lay_out
from pumice.types import Features, PumiceError, Sample


@dataclass(frozen=True)
class Count:
    """Tokens of a prompt, and how many of them stand for pictures and videos; tiles that go through the tower."""

    prompt_tokens: int
    visual_tokens: int
    views: int


def count_tokens(asked: Sample | Features, processor: Processor) -> Count:
    """Tokens of a prompt as it will be laid out.

    Raises:
        PumiceError: a text that isn't Unicode, or a picture whose layout can't be made.
    """
    if isinstance(asked, Features):
        tokens, layouts = len(asked), list(asked.layouts)
    else:
        pieces = list(lay_out(asked, processor, is_open(asked)))
        tokens = sum(len(piece.ids) for piece in pieces)
        layouts = [piece.layout for piece in pieces if piece.layout is not None]
    return Count(tokens, sum(placed.tokens for placed in layouts), sum(placed.views for placed in layouts))


def is_open(sample: Sample) -> bool:
    """Whether the answer to come needs a head; a conversation that ends in the assistant's words is gone on with."""
    return sample.turns[-1].role != "assistant"


def needed(prompt_tokens: int, max_tokens: int) -> int:
    """Tokens that a request takes of the memory: the last one of an answer isn't fed again."""
    return prompt_tokens - 1 + max_tokens


def check_model(count: Count, max_tokens: int, most: int, positions: int) -> None:
    """Refuse a prompt of more than ``most`` tokens, or with its answer of more than ``positions``.

    Raises:
        PumiceError: it is empty, or too long.
    """
    if not count.prompt_tokens:
        raise PumiceError("the prompt is empty")
    if count.prompt_tokens > most:
        raise PumiceError(f"{_said(count)}; the model takes {most}: fewer or smaller pictures, or a shorter text")
    if count.prompt_tokens + max_tokens > positions:
        raise PumiceError(
            f"{_said(count)}; with an answer of up to {max_tokens} that is more than the model's {positions} positions"
        )


def check_memory(count: Count, max_tokens: int, budget: int, mib: float) -> None:
    """Refuse what needs more than all of the memory, ``budget`` tokens in ``mib`` MiB.

    Raises:
        PumiceError: it does.
    """
    if needed(count.prompt_tokens, max_tokens) > budget:
        raise PumiceError(
            f"{_said(count)}; with an answer of up to {max_tokens} that is more than the {budget} tokens for which "
            f"there is memory ({mib:g} MiB)"
        )


def _said(count: Count) -> str:
    visual = f", {count.visual_tokens} of them visual" if count.visual_tokens else ""
    return f"the prompt has {count.prompt_tokens} tokens{visual}"
