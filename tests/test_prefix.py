"""What is remembered: the radix tree and its memory, pictures by their digests, spaces apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import conversation

from pumice.encode import encode
from pumice.engine.memory import Memory
from pumice.engine.pictures import Pictures, digests
from pumice.engine.prefix import PrefixTree
from pumice.types import Features


@pytest.fixture
def memory(model) -> Memory:
    return Memory(model, 40, torch.float32)


def keys(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def filled(tree: PrefixTree, node, mark: float) -> None:
    """Read what is unread of a path: its keys and values hold ``mark`` plus the position."""
    for one in node.path():
        segment = one.segment
        for tensor in (*segment.keys, *segment.values):
            places = torch.arange(segment.end, segment.start + len(one.keys))
            tensor[:, segment.length : len(one.keys)] = mark + places[None, :, None].float()
        segment.length = len(one.keys)


def held(node) -> list[float]:
    """What a path holds, token by token."""
    return torch.cat([one.segment.values[1][1, : one.segment.length, 2] for one in node.path()]).tolist()


def enter(tree: PrefixTree, numbers: np.ndarray, extra: int = 0, space: str = ""):
    entered = tree.enter(space, numbers, extra)
    assert entered is not None
    return entered


def test_a_prompt_shares_what_it_has_in_common_with_others(memory):
    tree = PrefixTree(memory)
    first, known = enter(tree, keys(1, 2, 3, 4))
    assert known == 0
    filled(tree, first, 0.0)
    second, known = enter(tree, keys(1, 2, 9))
    assert known == 2
    assert memory.held == 5
    filled(tree, second, 100.0)
    assert held(first) == [0, 1, 2, 3]
    assert held(second) == [0, 1, 102]
    assert [len(node.keys) for node in first.path()] == [2, 2]
    whole, known = enter(tree, keys(1, 2, 3, 4))
    assert (whole, known) == (first, 4)


def test_a_split_moves_nothing_and_what_remains_moves_when_its_other_half_goes(memory):
    tree = PrefixTree(memory)
    first, _ = enter(tree, keys(1, 2, 3, 4))
    filled(tree, first, 0.0)
    place = first.segment.keys[0].data_ptr()
    second, _ = enter(tree, keys(1, 2))
    assert second.segment.keys[0].data_ptr() == place
    assert second.segment.keys[0].untyped_storage().data_ptr() == first.segment.keys[0].untyped_storage().data_ptr()
    tree.leave(first, keys(), None)
    assert tree.enter("", keys(*range(10, 48)), 0) is not None  # needs the room of first's rest
    assert memory.held == 40
    assert second.segment.keys[0].untyped_storage().nbytes() == 2 * 4 * 2 * 8  # tokens, bytes, kv heads, d
    assert held(second) == [0, 1]


def test_the_leaf_unused_for_longest_goes_first_and_nothing_in_use(memory):
    tree = PrefixTree(memory)
    nodes = {}
    for first in (1, 2, 3):
        nodes[first], _ = enter(tree, keys(first, *range(50, 60)))
        filled(tree, nodes[first], first)
    for first in (2, 1, 3):  # 2 is unused for longest
        tree.leave(nodes[first], keys(), None)
    used, known = enter(tree, keys(1, *range(50, 60)))
    assert known == 11
    enter(tree, keys(*range(20, 34)))
    assert {int(node.keys[0]) for node in tree.nodes()} == {1, 3, 20}
    assert tree.enter("", keys(*range(60, 80)), 0) is None  # 15 are in use here, 14 there: nothing is dropped in vain
    assert {int(node.keys[0]) for node in tree.nodes()} == {1, 3, 20}
    assert held(used) == [1.0 + place for place in range(11)]


def test_who_waits_for_another_goes_on_where_that_one_stopped(memory):
    tree = PrefixTree(memory)
    first, _ = enter(tree, keys(1, 2, 3, 4, 5))
    second, known = enter(tree, keys(1, 2, 3, 7))
    assert known == 3
    shared = second.parent
    assert shared is not None
    shared.segment.length = 2  # two of the three are read, then the first leaves
    tree.leave(first, keys(), None)
    assert sorted(node.keys.tolist() for node in tree.nodes()) == [[1, 2, 3], [7]]
    assert memory.held == 4
    tree.leave(second, keys(), None)
    assert [node.keys.tolist() for node in tree.nodes()] == [[1, 2]]
    assert memory.held == 2
    tree.clear()
    assert (memory.held, tree.roots) == (0, {})


def test_answers_stay_behind_their_prompts(memory):
    tree = PrefixTree(memory)
    node, _ = enter(tree, keys(1, 2), extra=6)
    filled(tree, node, 0.0)
    own = memory.new(6, 2)
    own.length = 3
    for tensor in (*own.keys, *own.values):
        tensor.copy_(torch.arange(70, 76)[None, :, None].expand_as(tensor))
    tree.leave(node, keys(3, 8, 9), own)
    assert memory.held == 5
    again, known = enter(tree, keys(1, 2, 3, 8, 5))
    assert known == 4
    assert held(again) == [0, 1, 70, 71]


def test_an_answer_is_not_put_behind_what_is_still_being_read(memory):
    """Who reads it may leave, and then nothing may hang from what it didn't come to."""
    tree = PrefixTree(memory)
    first, _ = enter(tree, keys(1, 2), extra=4)
    filled(tree, first, 0.0)
    second, known = enter(tree, keys(1, 2, 3, 8))
    assert known == 2
    own = memory.new(4, 2)
    own.length = 3
    tree.leave(first, keys(3, 8, 9), own)
    assert second.children == {}
    tree.leave(second, keys(), None)
    assert [node.keys.tolist() for node in tree.nodes()] == [[1, 2]]
    assert memory.held == 2


def test_spaces_share_nothing(memory):
    tree = PrefixTree(memory)
    mine, _ = enter(tree, keys(1, 2, 3), space="a")
    filled(tree, mine, 0.0)
    _, known = enter(tree, keys(1, 2, 3), space="b")
    assert known == 0
    _, known = enter(tree, keys(1, 2, 3), space="a")
    assert known == 3


def prompt(processor, seed: int, size=(40, 30)) -> Features:
    return encode(conversation(seed, size, "What?", None), processor, prompt=True)


def test_a_digest_is_of_all_pixels_and_of_the_layout(processor):
    first = prompt(processor, 1)
    (name,) = digests(first)
    assert digests(prompt(processor, 1)) == [name]
    assert len(name) == 32
    changed = first.tiles.clone()
    changed[-1, -1, -1, -1] += 1e-6
    assert digests(replace(first, tiles=changed)) != [name]
    others = {
        digests(replace(first, layouts=(replace(first.layouts[0], **{field: value}),)))[0]
        for field, value in (("map", (7, 7)), ("newline", False), ("keep", (0, 0, 0, 0)), ("size", (30, 40)))
    }
    assert len(others | {name}) == 5


def test_pictures_have_keys_of_their_own_for_good(model, processor):
    pictures = Pictures(model, 0)
    found = {}
    for seed in (1, 2, 1):
        one = prompt(processor, seed)
        (taken,) = pictures.take("", one, digests(one))
        span = (taken.key, taken.key - taken.layout.tokens)
        assert found.setdefault(seed, span) == span
        pictures.release([taken])
    assert found[2][0] <= found[1][1]
    assert max(first for first, _ in found.values()) < 0
    (other,) = pictures.take("other", prompt(processor, 1), digests(prompt(processor, 1)))
    assert (other.key, other.key - other.layout.tokens) not in found.values()


@torch.inference_mode()
def test_tiles_seen_a_few_at_a_time_give_the_same_tokens(model, processor):
    one = encode(conversation(1, (90, 40), "What?", None), processor, prompt=True)
    wanted = model.visual(model.tower(one.tiles), one.layouts)
    pictures = Pictures(model, 2**20)
    (taken,) = pictures.take("", one, digests(one))
    passes = 0
    while taken.tokens is None:
        pictures.look([taken], 1)
        passes += 1
    assert passes == one.layouts[0].views > 1
    assert torch.allclose(taken.tokens, wanted, atol=1e-6)


@torch.inference_mode()
def test_pictures_are_forgotten_when_they_take_too_much_and_never_in_use(model, processor):
    prompts = [prompt(processor, seed) for seed in range(3)]
    each = prompts[0].layouts[0].tokens * 32 * 4
    pictures = Pictures(model, 2 * each)
    taken = [pictures.take("", one, digests(one))[0] for one in prompts]
    pictures.look(taken, 99)
    assert pictures.held == 3 * each  # all in use
    pictures.release(taken[1:2])
    assert (pictures.held, len(pictures)) == (2 * each, 2)
    pictures.release([taken[0], taken[2]])
    assert (pictures.held, pictures.hits, pictures.misses) == (2 * each, 0, 3)
    pictures.take("", prompts[0], digests(prompts[0]))
    pictures.clear()
    assert (pictures.held, len(pictures)) == (each, 1)
