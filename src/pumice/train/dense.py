"""Dense reading: every patch of the tower says which characters lie in it.

    glyphs + Layout ──glyph_slots──> labels (N, patches, 3) ──DenseHead(features)──> loss

An untouched DINOv2 can't read. This supervision costs no language model and gives hundreds of labels a picture: a
linear head over each patch's feature names up to three characters whose ink is centred in the patch, left to right.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pumice.types import Glyph, Layout
from pumice.vision.layout import glyph_views

SLOTS = 3
CLASSES = 97
"""Class 0 is an empty slot, 1-95 printable ASCII from "!" to "~", 96 any other character."""
EMPTY_WEIGHT = 0.3
BIAS_UNIT = 100.0
"""A step of AdamW moves every parameter by about the learning rate; log-frequencies need more than that."""


def char_class(char: str) -> int:
    """Class of a character; see CLASSES."""
    code = ord(char) - 32
    return code if 0 < code < 96 else 96


def glyph_slots(glyphs: Sequence[Glyph], layout: Layout, patch: int) -> Tensor:
    """Labels (N, (S/patch)^2, SLOTS) int64 of the views of one picture; characters beyond the third are left out."""
    side = layout.tile // patch
    cells: dict[tuple[int, int], list[tuple[float, int]]] = {}
    for glyph in glyphs:
        for view, (x0, y0, x1, y1) in glyph_views(layout, (glyph.x0, glyph.y0, glyph.x1, glyph.y1)):
            x, y = (x0 + x1) / 2, (y0 + y1) / 2
            col, row = int(x // patch), int(y // patch)
            if 0 <= col < side and 0 <= row < side:
                cells.setdefault((view, row * side + col), []).append((x, char_class(glyph.char)))
    labels = torch.zeros(layout.views, side * side, SLOTS, dtype=torch.int64)
    for (view, cell), found in cells.items():
        for slot, (_, label) in enumerate(sorted(found)[:SLOTS]):
            labels[view, cell, slot] = label
    return labels


class DenseHead(nn.Module):
    """What only training needs: the linear reading head, features (..., C) to logits (..., SLOTS, CLASSES).

    ``word_bias`` (V,) is the bias of the alignment's classifier over the vocabulary, in units of BIAS_UNIT. Without it
    how frequent a token is can only be said by a vector common to all visual tokens, which hides their differences
    from the language model.
    """

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, SLOTS * CLASSES)
        self.word_bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(features).unflatten(-1, (SLOTS, CLASSES))


def dense_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the weighted cross-entropies and sum of the weights, both 0-dim: empty slots weigh EMPTY_WEIGHT."""
    flat = labels.flatten()
    weight = dense_weights(flat)
    losses = F.cross_entropy(logits.flatten(0, -2).float(), flat, reduction="none")
    return (losses * weight).sum(), weight.sum()


def dense_weights(labels: Tensor) -> Tensor:
    """Weight of each label, in its shape."""
    return torch.where(labels == 0, EMPTY_WEIGHT, 1.0)


@torch.no_grad()
def dense_accuracy(logits: Tensor, labels: Tensor) -> tuple[int, int]:
    """(characters named right, characters) over the filled slots."""
    filled = labels > 0
    return int(((logits.argmax(-1) == labels) & filled).sum()), int(filled.sum())
