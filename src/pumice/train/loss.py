"""Cross-entropy over the vocabulary without the logits of all rows at once.

hidden rows (K, H) ──CHUNK rows──> logits (CHUNK, V) ──> loss of each token, whether it was named right
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

CHUNK = 1024
"""Rows whose fp32 logits exist at the same time: 0.6 GB with a vocabulary of 152,000."""


def token_loss(head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(cross-entropies (K,) float32, whether the best guess is right (K,) bool) of K rows (K, H), targets (K,).

    ``head`` gives rows' logits. More than CHUNK rows are done in turn, and their logits computed again in the backward
    pass.
    """
    if len(targets) <= CHUNK:
        return _chunk_loss(head, hidden, targets)
    losses, right = [], []
    for rows, wanted in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True):
        loss, found = checkpoint(_chunk_loss, head, rows, wanted, use_reentrant=False)  # type: ignore[misc]
        losses.append(loss)
        right.append(found)
    return torch.cat(losses), torch.cat(right)


def _chunk_loss(head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    logits = head(hidden).float()
    return F.cross_entropy(logits, targets, reduction="none"), logits.argmax(-1) == targets
