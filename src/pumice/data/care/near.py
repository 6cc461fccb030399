"""Hashes that differ in a few bits, found among millions without comparing all with all.

    hashes (N, 1 + W) uint64 ──first one cut into bands──> equal in two of them ──compare──> pairs

Two numbers that differ in at most k bits are equal in two of k + 2 bands at least, so that only those which share two
are compared: nothing is missed. Memory is a few times that of the hashes, however many share a band. Where there is
more than one number in a row, the first is looked up and the others decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise

import numpy as np


def near_pairs(hashes: np.ndarray, most: Sequence[int]) -> np.ndarray:
    """Pairs (M, 2) int64 of places i < j in ``hashes`` (N, 1 + W) that are near: ``most[0]`` bits of the first number
    differ at most, and ``most[1]`` of all others together.

    All near pairs of distinct rows by the first of each, and for every further row of the same numbers one pair with
    the first of them: a picture that is there a thousand times gives 999 pairs and not half a million.
    """
    rows, first, back = np.unique(hashes, axis=0, return_index=True, return_inverse=True)
    same = np.stack([first[back.ravel()], np.arange(len(hashes))], 1)
    close = np.sort(first[_within(rows, None, most)], axis=1)
    return _distinct(np.concatenate([same[same[:, 0] != same[:, 1]], close]).astype(np.int64))


def near_between(hashes: np.ndarray, others: np.ndarray, most: Sequence[int]) -> np.ndarray:
    """Pairs (M, 2) int64 of places in ``hashes`` (N, 1 + W) and in ``others`` (L, 1 + W) that are near as in
    `near_pairs`: of each row in ``hashes`` every near distinct row of ``others``, by the first of it."""
    mine, back = np.unique(hashes, axis=0, return_inverse=True)
    theirs, first = np.unique(others, axis=0, return_index=True)
    close = _within(mine, theirs, most)
    order = np.argsort(back.ravel(), kind="stable")
    places = np.split(order, np.searchsorted(back.ravel()[order], np.arange(1, len(mine))))
    pairs = [(place, first[other]) for one, other in close for place in places[one]]
    return _distinct(np.array(pairs, dtype=np.int64).reshape(-1, 2))


def _within(mine: np.ndarray, theirs: np.ndarray | None, most: Sequence[int]) -> np.ndarray:
    """Pairs of places in two arrays of distinct rows; without ``theirs`` in one, each pair once in either order."""
    others, found = mine if theirs is None else theirs, np.zeros((0, 2), dtype=np.int64)
    for mask in _masks(most[0]):
        keys = others[:, 0] & mask
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        if theirs is None:
            rows, begin, stop = order, np.arange(1, len(order) + 1), np.searchsorted(keys, keys, "right")
        else:
            wanted = mine[:, 0] & mask
            rows, begin, stop = (
                np.arange(len(mine)),
                np.searchsorted(keys, wanted),
                np.searchsorted(keys, wanted, "right"),
            )
        found = _distinct(np.concatenate([found, *_compare(mine, others, most, rows, order, begin, stop)]))
    return found


def _masks(most: int) -> list[np.uint64]:
    """Two of ``most`` + 2 bands of nearly equal width, in all ways."""
    edges = [64 * i // (most + 2) for i in range(most + 3)]
    bands = [(1 << b) - (1 << a) for a, b in pairwise(edges)]
    return [np.uint64(one | other) for one, other in combinations(bands, 2)]


def _compare(
    mine: np.ndarray, others: np.ndarray, most: Sequence[int], rows: np.ndarray, order: np.ndarray, begin: np.ndarray,
    stop: np.ndarray,
) -> list[np.ndarray]:  # fmt: skip
    """The near ones among each of ``rows`` and the ``order[begin:stop]`` that share its key, one of these at a time."""
    found: list[np.ndarray] = []
    while len(rows):
        left = begin < stop
        rows, begin, stop = rows[left], begin[left], stop[left]
        other = order[begin]
        near = np.bitwise_count(mine[rows, 0] ^ others[other, 0]) <= most[0]
        pairs = np.stack([rows[near], other[near]], 1)
        if mine.shape[1] > 1:
            differing = np.bitwise_count(mine[pairs[:, 0], 1:] ^ others[pairs[:, 1], 1:]).sum(1, dtype=np.int64)
            pairs = pairs[differing <= most[1]]
        found.append(pairs)
        begin = begin + 1
    return found


def _distinct(pairs: np.ndarray) -> np.ndarray:
    return np.unique(pairs, axis=0) if len(pairs) else pairs.reshape(0, 2)
