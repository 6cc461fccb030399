"""Texts as hashes: their word n-grams, which another text may share, and one number that near texts share.

text ──words (a Chinese, Japanese or Korean character is one)──> hashes (W,) ──n at a time──> n-grams (W - n + 1,)
                                                                            └──sum of signs──> simhash, 64 bits

simhash is Charikar's (2002); that 3 of 64 bits tell near-duplicates apart is from Manku and others, Detecting
Near-Duplicates for Web Crawling (2007).
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from functools import lru_cache

import numpy as np

NEAR_TEXT = 3
"""Most bits by which the simhashes of near texts differ."""
SHINGLE = 3
"""Words of which a simhash is made."""
_SIGNS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_SIGNS}]|[^\W_{_SIGNS}]+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def words(text: str) -> list[str]:
    """Its words without punctuation and case, in one form of Unicode; each CJK character is a word."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


@lru_cache(1 << 17)
def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(errors="replace"), digest_size=8).digest(), "little")


def word_hashes(text: str) -> np.ndarray:
    """(W,) uint64: a number for each word, the same on every machine."""
    return np.array([_hash(word) for word in words(text)], dtype=np.uint64)


def grams(hashes: np.ndarray, n: int) -> np.ndarray:
    """(W - n + 1,) uint64 of a text's n-grams in order, none if it has fewer words."""
    count = len(hashes) - n + 1
    if count <= 0:
        return np.zeros(0, dtype=np.uint64)
    total = np.zeros(count, dtype=np.uint64)
    for i in range(n):  # a polynomial in the factor, modulo 2 ** 64
        total = total * _FACTOR + hashes[i : i + count]
    return total ^ (total >> np.uint64(29))


def simhash(hashes: np.ndarray) -> int:
    """64 bits of a text's words, most of them the same for texts that share most of their 3-grams; 0 without words."""
    if not len(hashes):
        return 0
    features = np.unique(grams(hashes, min(SHINGLE, len(hashes))))
    bits = np.unpackbits(_mixed(features).view(np.uint8).reshape(-1, 8), axis=1)
    return int(np.packbits(2 * bits.sum(0, dtype=np.int64) > len(features)).view(np.uint64)[0])


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """Numbers whose bits depend on all bits (the finaliser of splitmix64)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
