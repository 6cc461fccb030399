"""Tokens to text as they come.

    id ──push──> window of the last tokens ──decode──> what is new and settled ──stop texts, blanks──> text to be shown

The pieces put together are `tokenizer.decode(ids, skip_special_tokens=True)`, cut where a stop text begins. Work per
token doesn't grow with the answer: a window that is decoded again begins a few tokens back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from pumice.tokens import tokenize

_AGAIN, _LONGEST = 5, 16
"""Tokens that a window keeps, and has at most. The last character that may be unfinished has no more than 3 bytes, and
one token more shields it from how the tokenizer treats the first one of a text."""
_UNFINISHED = "\ufffd"


class Detokeniser:
    """The text of one answer, token by token.

    Held back are bytes of a character that isn't whole, and what may become one of the ``stop`` texts; with ``strip``
    also white space, until something follows it, so that the pieces make the text stripped. Of tokenizers with a token
    for each byte, runs of those are held back to their end: one wrong byte spoils all of a run.
    """

    def __init__(
        self, tokenizer: Any, stop: Sequence[str] = (), stop_ids: Sequence[int] = (), strip: bool = False
    ) -> None:
        self.stopped = False
        self._tokenizer, self._stop_ids, self._strip = tokenizer, frozenset(stop_ids), strip
        self._marks = _marks(tokenizer)
        self._window: list[int] = []
        self._told = 0  # characters of the window's text that are settled
        self._stops = _Stops(stop)
        self._begun, self._blank = not strip, ""

    def push(self, token: int) -> str:
        """What may be shown after one more token, "" for nothing. After the answer's end tokens are passed over."""
        if self.stopped:
            return ""
        if token in self._stop_ids:
            self.stopped = True
            return ""
        if token in self._marks.special:
            return ""
        self._window.append(token)
        if token in self._marks.bytes:
            return ""
        return self._show(self._settled(last=False))

    def finish(self) -> str:
        """What was held back, when no token follows."""
        self.stopped = True
        if self._stops.found:
            return ""
        rest = self._show(self._settled(last=True))
        self._window, self._told = [], 0
        return rest if self._stops.found else rest + self._trim(self._stops.rest())

    @property
    def cut(self) -> bool:
        """Whether a stop text ended the answer; of held back text `finish` says so first."""
        return self._stops.found

    def _settled(self, last: bool) -> str:
        """New text of the window that no later token can change; with ``last`` all of it."""
        text = self._decode(self._window)
        end = len(text) - (text.endswith(_UNFINISHED) and not last)
        new, self._told = text[self._told : end], max(self._told, end)
        if len(self._window) > _LONGEST:
            unsettled = len(text) - self._told
            self._window = self._window[-_AGAIN:]
            self._told = len(self._decode(self._window)) - unsettled
        return new

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def _show(self, text: str) -> str:
        shown = self._trim(self._stops.pass_on(text))
        self.stopped = self.stopped or self._stops.found
        return shown

    def _trim(self, text: str) -> str:
        """Without the answer's leading white space, and with no trailing one as yet."""
        if not self._strip:
            return text
        text = self._blank + text if self._begun else text.lstrip()
        shown = text.rstrip()
        self._begun = self._begun or bool(shown)
        self._blank = text[len(shown) :]
        return shown


class _Stops:
    """Text that passes until the first stop text is whole; of two that end at once the longer counts."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.found = False
        self._stops, self._held = [stop for stop in stops if stop], ""

    def pass_on(self, text: str) -> str:
        """The text that isn't part of a stop text, whatever follows."""
        text, self._held = self._held + text, ""
        ends = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            self.found = True
            return text[: min(ends)[1]]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def rest(self) -> str:
        """What was held back."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of a text that begin a stop text."""
    sizes = range(min(len(stop) - 1, len(text)), 0, -1)
    return next((size for size in sizes if text.endswith(stop[:size])), 0)


@dataclass(frozen=True)
class _Marks:
    """Ids of a tokenizer's special tokens, which have no text, and of those that stand for a byte, such as <0x0A>; the
    ids of a letter.
    """

    special: frozenset[int]
    bytes: frozenset[int]
    letter: tuple[int, ...]


_known: WeakKeyDictionary[Any, _Marks] = WeakKeyDictionary()


def _marks(tokenizer: Any) -> _Marks:
    if tokenizer not in _known:
        special = (number for number, token in tokenizer.added_tokens_decoder.items() if token.special)
        vocabulary = tokenizer.get_vocab()
        single = (vocabulary.get(f"<0x{byte:02X}>") for byte in range(256))
        _known[tokenizer] = _Marks(
            frozenset(special),
            frozenset(number for number in single if number is not None),
            tuple(tokenize(tokenizer, "a", markup=False)),
        )
    return _known[tokenizer]


def token_text(tokenizer: Any, token: int) -> str:
    """A token's own text, with the blank that it begins with; of half a character U+FFFD, of a special token its name.

    Decoded alone, a token of Llama's kind loses its blank.
    """
    marks = _marks(tokenizer)
    if token in marks.special:
        return tokenizer.convert_ids_to_tokens(token)
    return tokenizer.decode([*marks.letter, token])[len(tokenizer.decode(list(marks.letter))) :]
