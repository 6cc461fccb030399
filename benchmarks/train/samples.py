"""A made-up mixture of conversations about pictures, with the lengths of real ones; seeded, nothing is read.

    seed ──drafts──> [Draft] turns and picture sizes ──lay_out──> [Features] ids, labels, tiles of an update

Ids and pixels are noise: what a step costs depends on lengths, not on words. The kinds are those that LLaVA-1.5 to
OneVision were trained on: captions, book covers and multiple choice; many short questions about one picture (VQAv2,
GQA, Visual Genome, RefCOCO); GPT-4's descriptions and conversations; text alone (ShareGPT). Shares and medians are
estimates, no counts of those files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import numpy as np
import torch

from pumice.types import IGNORE, IMAGE, Features
from pumice.vision.layout import Policy, layout

MOST_TOKENS = 1024
"""Samples are cut at the right beyond ``most`` tokens, as the originals cut at 2,048; a picture never is."""
HEAD = 4
"""Tokens before the picture and the first turn."""
MEGA = 50
"""Batches that transformers' LengthGroupedSampler sorts together."""


@dataclass(frozen=True)
class Kind:
    """Lengths in tokens: medians of log-normal draws of questions and answers; ``turns`` (fewest, most)."""

    share: float
    turns: tuple[int, int]
    asked: float
    said: float
    spread: float
    picture: bool = True


KINDS = (
    Kind(0.40, (1, 2), 20, 16, 0.4),  # captions, book covers, multiple choice
    Kind(0.34, (3, 12), 12, 5, 0.4),  # short questions
    Kind(0.21, (1, 4), 20, 70, 0.5),  # descriptions, conversations
    Kind(0.05, (2, 5), 60, 220, 0.6, picture=False),  # text alone
)

SIZES = ((640, 480), (480, 640), (500, 375), (375, 500), (224, 150), (200, 224), (150, 200), (300, 475), (430, 220))
"""Pictures of COCO and Visual Genome, book covers and crops, (width, height)."""


@dataclass(frozen=True)
class Draft:
    """A sample before it is laid out: (tokens asked, said) of each turn, the picture's (width, height), a seed."""

    turns: tuple[tuple[int, int], ...]
    size: tuple[int, int] | None
    seed: int

    def length(self, policy: Policy, most: int = MOST_TOKENS) -> int:
        """Tokens of the laid-out sample."""
        visual = layout(self.size, policy).tokens if self.size else 0
        said = sum(asked + said for asked, said in self.turns)
        return HEAD + visual + min(said, max(most - HEAD - visual, 2))

    def lay_out(self, policy: Policy, vocabulary: int, most: int = MOST_TOKENS) -> Features:
        """The sample with random ids and pixels; answers carry loss."""
        generator = torch.Generator().manual_seed(self.seed)
        placed = (layout(self.size, policy),) if self.size else ()
        visual = sum(one.tokens for one in placed)
        loss = [False] * (HEAD + visual)
        for asked, said in self.turns:
            loss += [False] * asked + [True] * said
        carries = torch.tensor(loss[: self.length(policy, most)])
        # The last ids are left to markers, such as transformers' place of a visual token.
        ids = torch.randint(10, vocabulary - 10, (len(carries),), generator=generator)
        ids[HEAD : HEAD + visual] = IMAGE
        count = sum(one.views for one in placed)
        tiles = torch.randn(count, 3, policy.tile, policy.tile, generator=generator)
        return Features(ids, torch.where(carries, ids, IGNORE), tiles, placed)


def drafts(count: int, seed: int) -> list[Draft]:
    """``count`` samples in random order, the kinds in their shares by largest remainder."""
    rng = np.random.default_rng(seed)
    exact = [kind.share * count for kind in KINDS]
    whole = [int(value) for value in exact]
    rest = sorted(range(len(exact)), key=lambda i: whole[i] - exact[i])[: count - sum(whole)]
    made = []
    for i, kind in enumerate(KINDS):
        for _ in range(whole[i] + (i in rest)):
            turns = int(rng.integers(kind.turns[0], kind.turns[1] + 1))
            asked = rng.lognormal(log(kind.asked), kind.spread, turns).round().astype(int).clip(2)
            said = rng.lognormal(log(kind.said), kind.spread, turns).round().astype(int).clip(2)
            size = SIZES[int(rng.integers(len(SIZES)))] if kind.picture else None
            made.append(Draft(tuple(zip(asked.tolist(), said.tolist(), strict=True)), size, int(rng.integers(2**31))))
    return [made[i] for i in rng.permutation(count)]


def warm_up(count: int) -> list[Draft]:
    """A short update that has everything: pictures of two layouts, text alone, several turns, several lengths.

    It is step 0, whose loss must be the same for all, and it lets a contender make its moments and buffers.
    """
    sizes: list[tuple[int, int] | None] = [(430, 220), None, (150, 200)] + [None] * count
    return [Draft(((5 + i, 3 + i % 4),) * (1 + i % 3), sizes[i], 7 * i + 1) for i in range(count)]


def shuffled_updates(count: int, updates: int, runs: int, run: int, seed: int) -> list[list[Draft]]:
    """The timed updates of a run, of ``count`` samples each. All runs together have the kinds in their shares."""
    pool = drafts(count * updates * runs, seed)
    mine = pool[run * count * updates : (run + 1) * count * updates]
    return [mine[i * count : (i + 1) * count] for i in range(updates)]


def grouped_update(
    batch: int, like: Sequence[Draft], policy: Policy, seed: int, most: int = MOST_TOKENS
) -> list[Draft]:
    """An update as length grouping makes them: batches of one length each, from a pool of MEGA batches.

    A pool as large as the sampler's takes too long to train on. So the update has other samples of the same mixture:
    as many batches of the pool as ``like`` has, those of 500 draws whose tokens together come nearest to its own.
    """
    from transformers.trainer_pt_utils import get_length_grouped_indices

    pool = drafts(MEGA * batch, seed + 1)
    lengths = [draft.length(policy, most) for draft in pool]
    generator = torch.Generator().manual_seed(seed)
    order = get_length_grouped_indices(lengths, batch, mega_batch_mult=MEGA, generator=generator)
    batches = [order[i : i + batch] for i in range(0, len(order), batch)]
    totals = np.array([sum(lengths[i] for i in numbers) for numbers in batches])
    rng = np.random.default_rng(seed)
    wanted = sum(draft.length(policy, most) for draft in like)
    tries = [rng.choice(MEGA, -(-len(like) // batch), replace=False) for _ in range(500)]
    best = min(tries, key=lambda chosen: abs(int(totals[chosen].sum()) - wanted))
    return [pool[i] for number in best for i in batches[number]]


def padding(lengths: Sequence[int], batch: int) -> float:
    """Share of padding when batches of ``lengths`` in order are padded to their longest."""
    batches = [lengths[i : i + batch] for i in range(0, len(lengths), batch)]
    return 1.0 - sum(lengths) / sum(max(one) * len(one) for one in batches)


def long_run(batch: int, policy: Policy, most: int = MOST_TOKENS, pools: int = 10) -> dict[str, float]:
    """Mean tokens of a sample, and padding in random order and grouped by length, of ``pools`` * MEGA batches."""
    lengths = [draft.length(policy, most) for draft in drafts(pools * MEGA * batch, seed=1)]
    size = MEGA * batch
    grouped = [n for i in range(0, len(lengths), size) for n in sorted(lengths[i : i + size], reverse=True)]
    mean = sum(lengths) / len(lengths)
    return {"mean": mean, "shuffled": padding(lengths, batch), "grouped": padding(grouped, batch)}


def tokens(documents: Sequence[Features]) -> int:
    """Useful tokens: all of the laid-out sequences, visual and text."""
    return sum(len(document) for document in documents)


def supervised(documents: Sequence[Features]) -> int:
    """Tokens that carry loss."""
    return sum(int((document.labels != IGNORE).sum()) for document in documents)


def views(documents: Sequence[Features]) -> int:
    """Tiles that go through the tower."""
    return sum(document.tiles.shape[0] for document in documents)
