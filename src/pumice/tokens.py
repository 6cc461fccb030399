"""Texts to token ids, span by span, as they are in one string.

text, the token before it ──Joints──> ids
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from typing import Any

from pumice.types import IMAGE, PumiceError

TOKENIZING = threading.Lock()
"""transformers' fast tokenizers keep ``split_special_tokens`` in themselves from the call's beginning to its end."""


def tokenize(tokenizer: Any, text: str, markup: bool) -> list[int]:
    """Ids of one span's text. Without ``markup``, a special token in the text is split into ordinary ones.

    Raises:
        PumiceError: the text isn't Unicode (JSON allows lone surrogates).
    """
    try:
        with TOKENIZING:
            return tokenizer(text, add_special_tokens=False, split_special_tokens=not markup).input_ids
    except (TypeError, UnicodeEncodeError):
        shown = text[:60].encode("ascii", "backslashreplace").decode()
        raise PumiceError(f"a text that isn't Unicode, such as half of a surrogate pair: {shown}") from None


_LEAD = "\ue000"  # for private use: it merges with nothing that follows


@dataclass(frozen=True)
class Joints:
    """What makes a text's ids depend on what is before it, so that spans get the ids that they have in one string.

    ``lead`` are the ids of _LEAD if the tokenizer puts a blank before a text, as Llama's kind does, [] if it puts none.
    ``again``: it does so after a mark, too (`legacy` in transformers). ``marks`` are its added tokens, at which it cuts
    a string; ``special`` those of them that stay text where somebody types them, with that text; ``swallowing`` those
    that swallow the white space after them (Phi-3's).
    """

    lead: list[int]
    again: bool
    marks: frozenset[int]
    special: dict[int, str]
    swallowing: frozenset[int]

    def ids(self, tokenizer: Any, text: str, markup: bool, last: int | None) -> list[int]:
        """Ids of a text after the token ``last``: IMAGE for a picture, None where it is a text of its own."""
        text = text.lstrip() if last in self.swallowing else text
        ids = self._ids(tokenizer, text, markup, last)
        if not markup and not self.special.keys().isdisjoint(ids):
            # Unigram takes the text of a special token for a word. What somebody types is cut behind its first letter.
            cut = "|".join(f"(?<={re.escape(mark[0])})(?={re.escape(mark[1:])})" for mark in self.special.values())
            ids = []
            for part in re.split(cut, text):
                ids += self._ids(tokenizer, part, markup, ids[-1] if ids else last)
        return ids

    def _ids(self, tokenizer: Any, text: str, markup: bool, last: int | None) -> list[int]:
        if last is None or not self.lead or (self.again and (last == IMAGE or last in self.marks)):
            return tokenize(tokenizer, text, markup)
        whole = tokenize(tokenizer, _LEAD + text, markup)
        went_on = whole[: len(self.lead)] == self.lead
        return whole[len(self.lead) :] if went_on else tokenize(tokenizer, text, markup)


def joints(tokenizer: Any) -> Joints:
    """The tokenizer's Joints, found out by tokenising a letter in different places."""
    added = tokenizer.added_tokens_decoder
    lead, first = (tokenize(tokenizer, text, markup=False) for text in (_LEAD, "a"))
    blank = tokenize(tokenizer, _LEAD + "a", markup=False) != lead + first
    mark = next((token.content for token in added.values()), "")
    again = tokenize(tokenizer, mark + "a", markup=True)[1:] == first
    return Joints(
        lead=lead if blank else [],
        again=again,
        marks=frozenset(added),
        special={number: token.content for number, token in added.items() if token.special},
        swallowing=frozenset(number for number, token in added.items() if token.rstrip),
    )
