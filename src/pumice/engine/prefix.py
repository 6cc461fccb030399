"""What has been read before: a radix tree over laid-out tokens, whose nodes hold their keys and values.

    space ── root ──[instructions, picture]──┬──[first question]──[its answer]
                                             └──[second question, being read]

A token's key is its id, or for a visual token a number that only this picture's token at this place has, so that a
match is a match of pixels. A request's prompt is in the tree from its admission on: whoever has the same beginning
waits for it or, if the first leaves, goes on with it. A node is in use while a sequence runs through it; the others are
dropped when room is needed, leaves first, the one unused for longest first.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pumice.engine.memory import Memory
from pumice.engine.segments import Segment

Keys = NDArray[np.int64]


class Node:
    """Tokens behind those of ``parent``; the segment holds the first ``segment.length`` of them so far.

    ``users`` are the sequences that run through it, ``used`` is when one last began or ended.
    """

    def __init__(self, keys: Keys, segment: Segment | None, parent: Node | None) -> None:
        self.keys, self.parent = keys, parent
        self.children: dict[int, Node] = {}
        self.users = 0
        self.used = 0
        self._segment = segment

    @property
    def segment(self) -> Segment:
        """Keys and values of the node's tokens; a root has none."""
        assert self._segment is not None
        return self._segment

    @segment.setter
    def segment(self, segment: Segment) -> None:
        self._segment = segment

    @property
    def whole(self) -> bool:
        """Whether all of its tokens have been read."""
        return self.parent is None or self.segment.length == len(self.keys)

    @property
    def left(self) -> int:
        """How many of its tokens are still to be read."""
        return len(self.keys) - self.segment.length

    def segments(self) -> tuple[Segment, ...]:
        """Those of its path, as decoders take them."""
        return tuple(node.segment for node in self.path())

    def path(self) -> list[Node]:
        """The nodes from below the root to this one."""
        nodes, node = [], self
        while node.parent is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]


class PrefixTree:
    """The trees of all spaces, and what their segments take of ``memory``."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.roots: dict[str, Node] = {}
        self._clock = 0

    def known(self, space: str, keys: Keys) -> int:
        """How many first tokens of a prompt are in the tree; some of them may not have been read yet."""
        root = self.roots.get(space)
        return 0 if root is None else self._find(root, keys)[2]

    def enter(self, space: str, keys: Keys, extra: int) -> tuple[Node, int] | None:
        """Take a prompt into the tree, in use: its last node, and how many of its tokens were there already.

        ``extra`` tokens of room must be left beside. None when there isn't room enough, whatever were dropped.
        """
        root = self.roots.setdefault(space, Node(np.zeros(0, np.int64), None, None))
        node, matched = self._match(root, keys)
        self._use(node, 1)
        if not self._make_room(len(keys) - matched + extra):
            self._use(node, -1)
            self._drop_empty()
            return None
        if matched < len(keys):
            node = self._add(node, keys[matched:], self.memory.new(len(keys) - matched, matched))
            node.users, node.used = 1, self._clock  # those above it are in use by now
        return node, matched

    def leave(self, node: Node, fed: Keys, own: Segment | None) -> None:
        """End a sequence that ran through ``node``; ``own`` holds its further tokens ``fed``, which become a leaf.

        What nobody else uses and isn't whole keeps the tokens that have been read.
        """
        self._use(node, -1)
        if own is not None:
            self._keep(node, fed, own)
        for one in reversed(node.path()):
            if one.users == 0 and not one.whole:
                self._trim(one)
        self._drop_empty()

    def clear(self) -> None:
        """Drop all that no sequence uses."""
        self._drop(None)

    def nodes(self) -> Iterator[Node]:
        """All nodes that hold tokens."""
        todo = [child for root in self.roots.values() for child in root.children.values()]
        while todo:
            node = todo.pop()
            yield node
            todo += node.children.values()

    def _match(self, node: Node, keys: Keys) -> tuple[Node, int]:
        """The node where the longest known beginning of ``keys`` ends, and its length. May cut a node in two."""
        node, alike, matched = self._find(node, keys)
        return (node if alike == len(node.keys) else self._split(node, alike)), matched

    def _find(self, node: Node, keys: Keys) -> tuple[Node, int, int]:
        """The node in which the longest known beginning of ``keys`` ends, how many of the node's tokens belong to it,
        and its length.
        """
        alike, matched = len(node.keys), 0
        while alike == len(node.keys) and matched < len(keys):
            child = node.children.get(int(keys[matched]))
            if child is None:
                break
            node, alike = child, _alike(child.keys, keys[matched:])
            matched += alike
        return node, alike, matched

    def _split(self, node: Node, at: int) -> Node:
        """Cut a node in two; the new one is the upper. Whoever runs through it runs through both."""
        assert node.parent is not None
        above, below = self.memory.split(node.segment, at)
        upper = Node(node.keys[:at], above, node.parent)
        upper.users, upper.used = node.users, node.used
        node.parent.children[int(node.keys[0])] = upper
        upper.children[int(node.keys[at])] = node
        node.keys, node.segment, node.parent = node.keys[at:], below, upper
        return upper

    def _add(self, parent: Node, keys: Keys, segment: Segment) -> Node:
        node = parent.children[int(keys[0])] = Node(keys, segment, parent)
        return node

    def _use(self, node: Node, change: int) -> None:
        self._clock += 1
        place: Node | None = node
        while place is not None:
            place.users += change
            place.used = self._clock
            place = place.parent

    def _keep(self, node: Node, fed: Keys, own: Segment) -> None:
        """Put a sequence's own tokens under ``node``, as far as they aren't there."""
        if not own.length:
            self.memory.free(own)
            return
        place, matched = node, 0
        while matched < len(fed) and (child := place.children.get(int(fed[matched]))) is not None:
            alike = _alike(child.keys, fed[matched:])
            if alike < len(child.keys) and alike < len(fed) - matched and child.whole:
                child = self._split(child, alike)
            place, matched = child, matched + alike
            if alike < len(child.keys) or not child.whole:
                matched = len(fed)  # it is all there, or somebody is just reading something like it
        if matched == len(fed):
            self.memory.free(own)
            return
        kept = self._add(place, fed[matched:], self.memory.cut(own, matched, len(fed)))
        kept.used = self._clock

    def _trim(self, node: Node) -> None:
        """Leave a node the tokens that have been read, or take it away."""
        read = node.segment.length
        if read:
            node.segment = self.memory.cut(node.segment, 0, read)
            node.keys = node.keys[:read]
        else:
            self._remove(node)

    def _remove(self, node: Node) -> None:
        assert node.parent is not None
        assert not node.children
        del node.parent.children[int(node.keys[0])]
        self.memory.free(node.segment)

    def _make_room(self, tokens: int) -> bool:
        """Whether there is room for so many tokens, after dropping what has to go; nothing goes in vain."""
        lacking = tokens - self.memory.free_tokens
        if lacking <= 0:
            return True
        if sum(len(node.keys) for node in self.nodes() if not node.users) < lacking:
            return False
        self._drop(lacking)
        return True

    def _drop(self, tokens: int | None) -> None:
        """Drop unused leaves, those unused for longest first, until ``tokens`` have gone (None: all)."""
        leaves = [(n.used, id(n), n) for n in self.nodes() if not n.users and not n.children]
        heapq.heapify(leaves)
        gone = 0
        while leaves and (tokens is None or gone < tokens):
            node = heapq.heappop(leaves)[2]
            gone += len(node.keys)
            self._remove(node)
            parent = node.parent
            if parent is not None and parent.parent is not None and not parent.users and not parent.children:
                heapq.heappush(leaves, (parent.used, id(parent), parent))
        self._drop_empty()

    def _drop_empty(self) -> None:
        """Forget spaces without tokens and sequences."""
        for space in [space for space, root in self.roots.items() if not root.children and not root.users]:
            del self.roots[space]


def _alike(one: Keys, other: Keys) -> int:
    """How many first keys are the same."""
    n = min(len(one), len(other))
    differ = one[:n] != other[:n]
    return int(differ.argmax()) if differ.any() else n
