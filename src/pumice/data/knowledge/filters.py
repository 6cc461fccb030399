"""Which captions and answers are worth training on: their length, repetition, language, test sets' words, agreement.

text ──Filters.fault──> "" or the name of the filter that drops it         texts about one picture ──agreement──> 0..1
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pumice.data.care.overlap import Index
from pumice.data.care.texts import grams, word_hashes, words
from pumice.types import PumiceError

GRAM = 5
REPEATED = 0.15
"""Share of words in 5-grams that came before, above which a text repeats itself: the bound of Gopher's filter for
duplicate 5-grams (arXiv 2112.11446, Table A1), which counts characters."""
STUTTER = 4
"""Times that a word follows itself in a text that is stuck."""


@dataclass(frozen=True)
class Filters:
    """Bounds of a text worth keeping.

    words      fewest and most; a Chinese, Japanese or Korean character is one
    languages  codes such as en or zh that it may be in; any where none are named
    tests      n-grams of test sets, none of which it may have
    agreement  least mean agreement with the other texts about the same picture, where there are several
    """

    words: tuple[int, int] = (5, 1000)
    languages: tuple[str, ...] = ()
    tests: Index | None = None
    agreement: float = 0.2

    def fault(self, text: str, whole: bool = True) -> str:
        """Name of the filter that drops a text, "" if none does. ``whole`` is False where its end was cut off."""
        hashes = word_hashes(text)
        if not whole:
            return "cut"
        if not self.words[0] <= len(hashes) <= self.words[1]:
            return "length"
        if repetition(hashes) > REPEATED or _stutters(hashes):
            return "repetition"
        if self.languages and language(text) not in self.languages:
            return "language"
        if self.tests is not None and len(self.tests.shared(hashes)):
            return "test text"
        return ""


def repetition(hashes: np.ndarray) -> float:
    """Share of a text's words (W,) that lie in a 5-gram which came before."""
    found = grams(hashes, GRAM)
    if not len(found):
        return 0.0
    _, first = np.unique(found, return_index=True)
    again = np.setdiff1d(np.arange(len(found)), first)
    inside = np.zeros(len(hashes), dtype=bool)
    for offset in range(GRAM):
        inside[again + offset] = True
    return float(inside.mean())


def _stutters(hashes: np.ndarray) -> bool:
    run = np.ones(max(0, len(hashes) - STUTTER + 1), dtype=bool)
    for offset in range(1, STUTTER):
        run &= hashes[: len(run)] == hashes[offset : offset + len(run)]
    return bool(run.any())


def agreement(texts: Sequence[str]) -> list[float]:
    """Mean F1 of each text's distinct words with those of every other one; 1 for a single text."""
    sets = [Counter(set(words(text))) for text in texts]
    found = []
    for i, mine in enumerate(sets):
        others = [_f1(mine, theirs) for j, theirs in enumerate(sets) if j != i]
        found.append(sum(others) / len(others) if others else 1.0)
    return found


def _f1(one: Counter[str], other: Counter[str]) -> float:
    total = one.total() + other.total()
    return 2 * (one & other).total() / total if total else 0.0


def language(text: str) -> str:
    """ISO 639-1 code of a text's language, as py3langid tells it; without names, numbers and the like it is a guess.

    Raises:
        PumiceError: py3langid isn't installed.
    """
    return _identifier().classify(text)[0]


def _identifier() -> Any:
    try:
        import py3langid
    except ModuleNotFoundError:
        raise PumiceError("telling languages needs py3langid: pip install 'pumice[care]'") from None
    return py3langid


def check_languages(codes: str) -> tuple[str, ...]:
    """Codes of a list with commas.

    Raises:
        PumiceError: one isn't two letters.
    """
    found = tuple(code.strip() for code in codes.split(",") if code.strip())
    for code in found:
        if not re.fullmatch("[a-z]{2}", code):
            raise PumiceError(f"--language {code}: expected codes of two letters with commas, such as en,zh")
    return found
