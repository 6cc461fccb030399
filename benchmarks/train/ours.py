"""Pumice's own training step, and the same with one thing taken away.

[Features] ──best fit, pack──> [Batch] ──pumice.train.loop.train_step──> loss
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from benchmarks.train.measure import BETAS, CLIP, EPS, RATE, Setting, Update, timed
from benchmarks.train.shapes import open_ours
from pumice.config import Stage
from pumice.data.batch import pack
from pumice.data.plan import best_fit
from pumice.train.loop import Run, train_step
from pumice.train.objectives import OBJECTIVES, Learner, Term
from pumice.train.optim import freeze, make_optimizer
from pumice.train.parallel import World
from pumice.types import IGNORE, Batch, Features


def make_stage(frozen: bool) -> Stage:
    """An answer stage with the optimiser of all contenders."""
    rates = {"connector": RATE, "newline": RATE, "lm": RATE} | ({} if frozen else {"tower": RATE})
    return Stage(
        "answer", "answer", rates, {}, steps=1, batch=1, warmup=0.0, decay=0.0, weight_decay=0.0,
        betas=BETAS, eps=EPS, clip=CLIP,
    )  # fmt: skip


class Ours:
    """`pumice train` without the reading of files."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.learner, _ = open_ours(setting.folder)
        self.learner.model.to(setting.device)
        self.learner.head.to(setting.device)
        self.stage = make_stage(setting.frozen)
        self.trainable = freeze(self.learner, self.stage)
        self.optimizer = make_optimizer(self.trainable, self.stage)
        nothing: Any = None
        self.loop = Run(self.learner, nothing, 0, Path(), World(), lambda *_: None, setting.dtype)

    def run(self, updates: Sequence[Sequence[Features]]) -> list[Update]:
        return timed(self.update, updates, self.setting.device)

    def update(self, documents: Sequence[Features]) -> tuple[float, int]:
        # As `pumice.train.loop.batches_of` takes them to the learner.
        batches = [batch.to(self.setting.device) for batch in self.batches(documents)]
        feed: Any = SimpleNamespace(steps=1)
        terms, *_ = train_step(self.loop, self.stage, feed, 0, batches, self.optimizer, self.trainable)
        loss = sum(float(term.total) for term in terms) / sum(float(term.count) for term in terms)
        return loss, sum(len(batch.ids) for batch in batches)

    def batches(self, documents: Sequence[Features]) -> list[Batch]:
        """As a plan packs a step."""
        fits = best_fit([len(document) for document in documents], self.setting.pack_tokens)
        return [pack([documents[i] for i in numbers]) for numbers in fits]


class Padded(Ours):
    """Without packing: batches in order, each document filled up to the longest of its batch."""

    def batches(self, documents: Sequence[Features]) -> list[Batch]:
        parts = [documents[i : i + self.setting.batch] for i in range(0, len(documents), self.setting.batch)]
        return [pack([filled(one, max(map(len, part))) for one in part]) for part in parts]


def filled(document: Features, length: int) -> Features:
    """The document with tokens without loss behind it, up to ``length``."""
    rest = length - len(document)
    return replace(document, ids=F.pad(document.ids, (0, rest)), labels=F.pad(document.labels, (0, rest), value=IGNORE))


class OneMask(Ours):
    """Without attention by document: all tokens of a pack under one dense (T, T) mask."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.learner.model.lm.set_attn_implementation(ONE_MASK)


ONE_MASK = "one mask"


@lru_cache(maxsize=1)
def block_mask(starts: tuple[int, ...], device: torch.device) -> Tensor:
    """(1, 1, T, T) bool: what each token sees, causal in its own document."""
    mask = torch.zeros(starts[-1], starts[-1], dtype=torch.bool, device=device)
    for a, b in pairwise(starts):
        mask[a:b, a:b] = torch.ones(b - a, b - a, dtype=torch.bool, device=device).tril()
    return mask[None, None]


def _one_mask(
    module: Any, q: Tensor, k: Tensor, v: Tensor, _: Any, scaling: float, starts: list[int], **__: Any
) -> Any:
    mask, shared = block_mask(tuple(starts), q.device), q.shape[1] // k.shape[1]
    if q.is_cuda and shared > 1:
        # torch's kernels that take a mask on a GPU may not take shared heads, as transformers knows too.
        k, v = k.repeat_interleave(shared, dim=1), v.repeat_interleave(shared, dim=1)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling, enable_gqa=q.shape[1] != k.shape[1])
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(ONE_MASK, _one_mask)
AttentionMaskInterface.register(ONE_MASK, lambda *_, **__: None)


class AllRows(Ours):
    """Without the choice of supervised rows: every token of a pack through the head."""

    def update(self, documents: Sequence[Features]) -> tuple[float, int]:
        with mock.patch.dict(OBJECTIVES, answer=all_rows):
            return super().update(documents)


def all_rows(learner: Learner, batch: Batch) -> list[Term]:
    """The answer objective with the logits (T, V) of the whole stream."""
    labels = batch.labels.clone()
    labels[batch.starts[:-1].long()] = IGNORE
    targets = F.pad(labels[1:], (0, 1), value=IGNORE)
    loss = F.cross_entropy(learner.model.logits(batch).float(), targets, ignore_index=IGNORE, reduction="sum")
    return [Term("answer", loss, (targets != IGNORE).sum().float())]


class Frozen(Ours):
    """Without training the tower."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(replace(setting, frozen=True))
