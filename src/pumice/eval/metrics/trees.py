"""Receipts and forms as JSON: Donut's tree edit distance accuracy and field F1.

    model's text ──read_json──> dict | None ──normalise──> lists of texts ──> tree of keys and leaves ──> distance
                                                                       └────> (path, value) fields ──> F1

Equal to Donut's JSONParseEvaluator, which leaves reading JSON out of text to others: `read_json` is ours.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pumice.eval.metrics.strings import levenshtein

DEPTH = 64
"""Brackets inside brackets that `read_json` takes: no receipt has more, and a model that repeats itself may."""


def read_json(text: str) -> dict[str, Any] | list[Any] | None:
    """The JSON object or list that a text is, else the longest object ``{...}`` inside it, else None.

    None counts as a failure to be reported beside the score, and scores as {}.
    """
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        whole = _longest_object(text)
    return whole if isinstance(whole, dict | list) and _depth_at_most(DEPTH, whole) else None


def _depth_at_most(levels: int, data: Any) -> bool:
    if not isinstance(data, dict | list):
        return True
    inner = data.values() if isinstance(data, dict) else data
    return levels > 0 and all(_depth_at_most(levels - 1, item) for item in inner)


def _longest_object(text: str) -> dict[str, Any] | None:
    decoder, best, length, start = json.JSONDecoder(), None, 0, text.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            end = start + 1
        else:
            if end - start > length:
                best, length = value, end - start
        start = text.find("{", end)
    return best


def normalise(data: Any) -> Any:
    """Keys by length, then alphabet; scalars as lists of one stripped text; what is empty, 0, false or null dropped."""
    if not data:
        return {}
    if isinstance(data, dict):
        kept = {key: normalise(data[key]) for key in sorted(data, key=lambda key: (len(key), key))}
        return {key: value if isinstance(value, list) else [value] for key, value in kept.items() if value}
    if not isinstance(data, list):
        return [str(data).strip()]
    if all(isinstance(item, dict) for item in data):
        return [item for item in map(normalise, data) if item]
    # Exact types: a bool or a nested list beside texts is dropped.
    return [str(item).strip() for item in data if type(item) in (str, int, float) and str(item).strip()]


@dataclass(frozen=True)
class Node:
    """A key, or with ``leaf`` a value."""

    label: str
    children: tuple[Node, ...] = ()
    leaf: bool = False


def tree(data: Any, label: str = "<root>") -> Node:
    """Normalised data as a tree: keys are nodes, objects of a list are <subtree> nodes, values are leaves."""
    if isinstance(data, dict):
        return Node(label, tuple(tree(value, key) for key, value in data.items()))
    if all(isinstance(item, dict) for item in data):
        return Node(label, tuple(tree(item, "<subtree>") for item in data))
    return Node(label, tuple(Node(item, leaf=True) for item in data))


def ted_accuracy(prediction: Any, truth: Any) -> float:
    """1 - distance(prediction, truth) / distance({}, truth), 0 at least; of an empty truth 0, as Donut's.

    Entries of a list are compared in order: swapping two lines of a receipt costs, though `field_f1` stays 1.
    """
    wanted = tree(normalise(truth))
    empty = tree_distance(Node(wanted.label), wanted)
    return max(0.0, 1 - tree_distance(tree(normalise(prediction)), wanted) / empty) if empty else 0.0


def field_f1(predictions: Sequence[Any], truths: Sequence[Any]) -> float:
    """F1 of (path, value) fields counted over all documents; positions in lists don't count.

    Raises:
        ValueError: unequal lengths, or no field on either side.
    """
    hits = misses = 0
    for prediction, truth in zip(predictions, truths, strict=True):
        found, wanted = _fields(normalise(prediction)), _fields(normalise(truth))
        for field in found:
            if field in wanted:
                wanted.remove(field)
                hits += 1
            else:
                misses += 1
        misses += len(wanted)
    if not hits + misses:
        raise ValueError("no fields in the predictions nor in the truths; field F1 needs at least one")
    return hits / (hits + misses / 2)


def _fields(data: Any, path: str = "") -> list[tuple[str, str]]:
    if isinstance(data, dict):
        return [pair for key, value in data.items() for pair in _fields(value, f"{path}.{key}" if path else key)]
    if isinstance(data, list):
        return [pair for item in data for pair in _fields(item, path)]
    return [(path, data)]


def tree_distance(a: Node, b: Node) -> int:
    """Cheapest edits of ordered trees (Zhang and Shasha 1989): a key costs 1, a value its characters.

    A value becomes another for their Levenshtein distance, and a key for 1 + its characters.
    """
    left, right = _Postorder(a), _Postorder(b)
    done = [[0] * len(right.nodes) for _ in left.nodes]
    for i in left.roots:
        for j in right.roots:
            _forests(left, right, i, j, done)
    return done[-1][-1]


class _Postorder:
    """Nodes children first, the first leaf below each (``low``), and ``roots``: nodes that are not a first child."""

    def __init__(self, root: Node) -> None:
        self.nodes: list[Node] = []
        self.low: list[int] = []
        self._walk(root)
        # The last node with a given first leaf is the topmost of its chain of first children.
        self.roots = sorted({low: index for index, low in enumerate(self.low)}.values())

    def _walk(self, node: Node) -> int:
        low = len(self.nodes)
        for child in node.children:
            self._walk(child)
        self.nodes.append(node)
        self.low.append(low)
        return low


def _forests(a: _Postorder, b: _Postorder, i: int, j: int, done: list[list[int]]) -> None:
    """Distances of the subtrees below i and j that share their first leaves, into ``done``; others must be there."""
    low_a, low_b = a.low[i], b.low[j]
    rows = [[0]]
    for y in range(low_b, j + 1):
        rows[0].append(rows[0][-1] + _cost(b.nodes[y]))
    for x in range(low_a, i + 1):
        above, row = rows[-1], [rows[-1][0] + _cost(a.nodes[x])]
        rows.append(row)
        for y in range(low_b, j + 1):
            column = y - low_b
            best = min(above[column + 1] + _cost(a.nodes[x]), row[column] + _cost(b.nodes[y]))
            if a.low[x] == low_a and b.low[y] == low_b:
                done[x][y] = best = min(best, above[column] + _change(a.nodes[x], b.nodes[y]))
            else:
                best = min(best, rows[a.low[x] - low_a][b.low[y] - low_b] + done[x][y])
            row.append(best)


def _cost(node: Node) -> int:
    return len(node.label) if node.leaf else 1


def _change(a: Node, b: Node) -> int:
    if a.leaf and b.leaf:
        return _edits(a.label, b.label)
    if a.leaf or b.leaf:
        return 1 + len(a.label if a.leaf else b.label)
    return int(a.label != b.label)


@lru_cache(1 << 14)
def _edits(a: str, b: str) -> int:
    return levenshtein(a, b)
