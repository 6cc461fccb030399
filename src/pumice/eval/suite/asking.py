"""Asking questions of whatever takes them: what an assistant can't be shown is skipped and counted, never a crash.

[(media, question)] ──ask──> [Reply | Skipped]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from pumice.types import PumiceError

LIMITS = {"lines": 64, "receipt_json": 384}
"""Tokens of the longest answer by kind of picture, where DEFAULT_LIMIT is too few: a receipt's JSON has up to 240."""
DEFAULT_LIMIT = 32

SHOWN = {"picture": "one picture", "pictures": "several pictures", "video": "a video", "nothing": "no picture"}
"""What a question may come with. An assistant that doesn't take all of it names what it takes in ``takes``."""


class Cause(StrEnum):
    """Why a question has no answer."""

    NOT_TAKEN = "not taken"
    """The model doesn't take what the question comes with, such as several pictures."""
    REFUSED = "refused"
    """The model takes such questions but not this one: it is too long, say."""
    NOTHING = "nothing"
    """There is nothing to ask: the question has no picture to shuffle."""


class Reply(Protocol):
    """What the assistant answers: text, generated and visual tokens, and the milliseconds that it took."""

    @property
    def text(self) -> str: ...
    @property
    def tokens(self) -> int: ...
    @property
    def visual_tokens(self) -> int: ...
    @property
    def ms(self) -> float: ...


class Answers(Protocol):
    """Anything that answers questions about a picture, or a list of them, or a video's bytes; greedily, or two runs
    differ. What doesn't take all of `asking.SHOWN` says what it takes in ``takes``.
    """

    def ask_many(self, pairs: list[tuple[Any, str]], /, *, max_tokens: int, batch: int) -> Sequence[Reply]: ...


@dataclass(frozen=True)
class Skipped:
    """In the place of a reply: the question wasn't answered; ``why``, in words and as a ``cause``."""

    why: str
    cause: Cause
    text: str = ""
    tokens: int = 0
    visual_tokens: int = 0
    ms: float = 0.0


def shown(media: Any) -> str:
    """Which of SHOWN a question's media are: a PIL picture, a list of them, or the bytes of a video."""
    if isinstance(media, bytes):
        return "video"
    if isinstance(media, list):
        return "pictures" if media else "nothing"
    return "picture"


def ask(assistant: Answers, questions: list[tuple[Any, str]], limit: int, batch: int) -> Sequence[Reply]:
    """Replies to (media, question) pairs, all of one of SHOWN. Where the assistant refuses (too many tokens, say), each
    question is asked alone, and those still refused are skipped.

    Raises:
        PumiceError: there are too few or too many answers.
    """
    if not questions:
        return []
    what, takes = shown(questions[0][0]), getattr(assistant, "takes", SHOWN)
    if what not in takes:
        return [Skipped(f"the model doesn't take {SHOWN[what]}", Cause.NOT_TAKEN)] * len(questions)
    try:
        replies = assistant.ask_many(questions, max_tokens=limit, batch=batch)
    except PumiceError as error:
        if len(questions) == 1:
            return [Skipped(str(error), Cause.REFUSED)]
        return [reply for question in questions for reply in ask(assistant, [question], limit, batch)]
    if len(replies) != len(questions):
        raise PumiceError(f"the assistant gave {len(replies)} answers to {len(questions)} questions")
    return replies
