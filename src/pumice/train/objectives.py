"""What a stage teaches: each objective turns a batch into loss terms.

    read    tiles ─tower─> features ─DenseHead─> characters of each patch
    align   tiles ─tower─> ─connector─> visual tokens ─LM's embedding─> the LM tokens drawn under each of them
    answer  the whole model: next token at supervised places; reading and alignment beside it when weighted

A term is a sum with its count, so that the loop can divide by the count over all workers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pumice.model.assistant import AssistantModel, supervised_rows
from pumice.train.dense import BIAS_UNIT, DenseHead, dense_accuracy, dense_loss, dense_weights, glyph_slots
from pumice.train.loss import token_loss
from pumice.train.parallel import whole
from pumice.types import IGNORE, Batch, Glyph, Layout
from pumice.vision.layout import glyph_views

ALIGN_LOGIT = 16.0
"""Logit of a visual token that equals a word embedding of mean length."""


@dataclass
class Term:
    """One part of a loss: ``total`` 0-dim sum over ``count`` items; it enters as weight * total / global count.

    ``sources`` has (total, right, items) of each source that a batch names.
    """

    name: str
    total: Tensor
    count: Tensor
    weight: float = 1.0
    right: int = 0
    items: int = 0
    sources: dict[str, tuple[float, float, float]] = field(default_factory=dict)


@dataclass
class Learner:
    """Everything that trains: the model, the reading head (training only) and the tokenizer for alignment.

    ``trained`` are the modules that some stage has changed.
    """

    model: AssistantModel
    head: DenseHead
    tokenizer: Any
    dense_weight: float = 0.0
    align_weight: float = 0.0
    sharded: bool = False
    trained: set[str] = field(default_factory=set)
    cache: dict[str, list[int]] = field(default_factory=dict)

    def words(self, word: str) -> list[int]:
        """Ids of a word as it reads in running text (with its leading space)."""
        if word not in self.cache:
            self.cache[word] = self.tokenizer(" " + word, add_special_tokens=False, split_special_tokens=True).input_ids
        return self.cache[word]

    @property
    def device(self) -> torch.device:
        return self.model.device


def read(learner: Learner, batch: Batch) -> list[Term]:
    """Dense reading of the tower alone, up to the first block that the connector sees."""
    return [_dense_term(learner, batch, learner.model.tower.first(batch.tiles), 1.0)]


def align(learner: Learner, batch: Batch) -> list[Term]:
    """Each visual token names the LM tokens drawn under it, with the reading loss beside it when weighted."""
    features = learner.model.tower(batch.tiles)
    visual = learner.model.visual(features, batch.layouts)
    return [_align_term(learner, batch, visual, 1.0), *_read_beside(learner, batch, features)]


def answer(learner: Learner, batch: Batch) -> list[Term]:
    """The questions' answers, with the reading and alignment losses beside them when weighted.

    Pictures without a question (walls of text) pass the tower and connector only.
    """
    model = learner.model
    features, unseen = _see(learner, batch)
    visual = model.visual(features, batch.layouts)
    asked, embedded = select_asked(batch, model.embed(batch, visual) + unseen)
    rows, targets = supervised_rows(asked)
    losses, right = token_loss(model.head, model.hidden(asked, embedded)[rows], targets)
    count = targets.numel()
    term = Term("answer", losses.sum(), torch.tensor(float(count)), 1.0, int(right.sum()), count)
    term.sources = _by_source(asked, rows, losses.detach(), right)
    terms = [term]
    if learner.align_weight:
        terms.append(_align_term(learner, batch, visual, learner.align_weight))
    return terms + _read_beside(learner, batch, features)


def _by_source(batch: Batch, rows: Tensor, losses: Tensor, right: Tensor) -> dict[str, tuple[float, float, float]]:
    """{source: (sum of losses, tokens right, tokens)} of supervised rows (K,)."""
    if not any(batch.sources):
        return {}
    names = sorted(set(batch.sources))
    of_document = torch.tensor([names.index(name) for name in batch.sources], device=rows.device)
    documents = torch.searchsorted(batch.starts[1:].to(rows), rows, right=True)
    sums = torch.zeros(3, len(names), device=rows.device)
    sums.index_add_(1, of_document[documents], torch.stack([losses, right.float(), torch.ones_like(losses)]))
    return {name: tuple(column) for name, column in zip(names, sums.T.tolist(), strict=True)}  # type: ignore[misc]


def _see(learner: Learner, batch: Batch) -> tuple[Tensor, Tensor | float]:
    """(features of the batch's views, 0 to add). Text alone passes no tower: its parameters get a gradient of zero.

    Where weights are shared out, every worker must run every block: a black view goes through, and adds nothing.
    """
    tower = learner.model.tower
    if batch.layouts or not learner.sharded:
        return (tower(batch.tiles) if batch.layouts else batch.tiles.new_zeros(0, 1, tower.width)), 0.0
    black = tower(batch.tiles.new_zeros(1, 3, tower.tile, tower.tile))
    return black[:0], black.sum() * 0.0


def select_asked(batch: Batch, embedded: Tensor) -> tuple[Batch, Tensor]:
    """The documents that have supervised tokens, as a batch of its own with its embeddings (T', H).

    When no document has any, the first is kept: the loss is then an empty sum, and every worker runs the same graph.
    """
    starts = batch.starts.tolist()
    documents = [i for i, (a, b) in enumerate(pairwise(starts)) if (batch.labels[a:b] != IGNORE).any()] or [0]
    spans = [(starts[i], starts[i + 1]) for i in documents]
    index = torch.cat([torch.arange(a, b, device=batch.ids.device) for a, b in spans])
    lengths = torch.tensor([0] + [b - a for a, b in spans])
    chosen = Batch(
        ids=batch.ids[index],
        labels=batch.labels[index],
        positions=batch.positions[index],
        starts=lengths.cumsum(0).to(torch.int32),
        tiles=batch.tiles,
        layouts=batch.layouts,
        sources=tuple(batch.sources[i] for i in documents) if batch.sources else (),
    )
    return chosen, embedded[index]


OBJECTIVES: dict[str, Callable[[Learner, Batch], list[Term]]] = {"read": read, "align": align, "answer": answer}
TERMS: tuple[str, ...] = ("answer", "align", "read")
"""Names that terms may have."""


def term_counts(learner: Learner, objective: str, batch: Batch) -> list[Term]:
    """Terms with the counts that the objective's will have, without a forward pass."""
    nothing = torch.zeros(())
    terms = []
    if objective == "answer":
        terms.append(Term("answer", nothing, torch.tensor(float(len(supervised_rows(batch)[0])))))
    if objective == "align" or (objective == "answer" and learner.align_weight):
        places, _ = alignment_targets(batch, learner)
        terms.append(Term("align", nothing, (1.0 / _sharing(places)).sum()))
    if objective == "read" or learner.dense_weight:
        labels = _glyph_labels(learner, batch)[0]
        terms.append(Term("read", nothing, dense_weights(torch.cat(labels)).sum() if labels else nothing))
    return terms


def _align_term(learner: Learner, batch: Batch, visual: Tensor, weight: float) -> Term:
    """Cross-entropy of visual tokens (sum of layout.tokens, H) against the LM tokens drawn under them."""
    places, targets = (pairs.to(learner.device) for pairs in alignment_targets(batch, learner))
    table = whole(learner.model.lm.get_input_embeddings().weight.detach())
    scale = ALIGN_LOGIT / float(table.square().sum(1).mean())
    # Where several tokens share a visual token, each counts in proportion: the target is a mixture.
    used, row = places.unique(return_inverse=True)
    bias = learner.head.word_bias * BIAS_UNIT
    logprobs = (F.linear(visual[used], table).float() * scale + bias).log_softmax(-1)
    share = 1.0 / _sharing(places)
    losses = -logprobs[row, targets] * share
    right = int((logprobs.argmax(-1)[row] == targets).sum())
    return Term("align", losses.sum(), share.sum(), weight, right, targets.numel())


def _sharing(places: Tensor) -> Tensor:
    """How many targets share each target's visual token, (K,) float32."""
    _, row, counts = places.unique(return_inverse=True, return_counts=True)
    return counts[row].float()


def _read_beside(learner: Learner, batch: Batch, features: Tensor) -> list[Term]:
    """The reading loss beside another objective, when the stage gives it a weight."""
    if not learner.dense_weight:
        return []
    if any(batch.glyphs):
        return [_dense_term(learner, batch, features, learner.dense_weight)]
    # A worker without text on its pages still takes part in the sum over workers.
    return [Term("read", features.sum() * 0.0, torch.tensor(0.0), learner.dense_weight)]


def _dense_term(learner: Learner, batch: Batch, features: Tensor, weight: float) -> Term:
    """Reading loss over the pictures that carry glyphs, on the features of the tower's first chosen block."""
    tower = learner.model.tower
    labels, keep = _glyph_labels(learner, batch)
    wanted = torch.cat(labels).to(features.device)
    logits = learner.head(features[keep][..., : tower.hidden])
    total, count = dense_loss(logits, wanted)
    right, items = dense_accuracy(logits, wanted)
    return Term("read", total, count, weight, right, items)


def _glyph_labels(learner: Learner, batch: Batch) -> tuple[list[Tensor], list[int]]:
    """(labels of the pictures that carry glyphs, numbers of their views)."""
    labels, keep, start = [], [], 0
    for placed, glyphs in zip(batch.layouts, batch.glyphs, strict=True):
        if glyphs:
            labels.append(glyph_slots(glyphs, placed, learner.model.tower.patch))
            keep += range(start, start + placed.views)
        start += placed.views
    return labels, keep


def alignment_targets(batch: Batch, learner: Learner) -> tuple[Tensor, Tensor]:
    """(index of the visual token, LM token) pairs, both (K,): the token's middle lies in that visual token."""
    places: list[int] = []
    targets: list[int] = []
    start = 0
    for placed, glyphs in zip(batch.layouts, batch.glyphs, strict=True):
        for word in split_words(glyphs):
            pieces = learner.words("".join(glyph.char for glyph in word))
            for token, (x, y) in zip(pieces, _middles(word, len(pieces), learner, pieces), strict=True):
                for place in visual_places(placed, x, y):
                    places.append(start + place)
                    targets.append(token)
        start += placed.tokens
    return torch.tensor(places, dtype=torch.int64), torch.tensor(targets, dtype=torch.int64)


def split_words(glyphs: Sequence[Glyph]) -> list[list[Glyph]]:
    """Glyphs in drawing order, cut where a gap is wider than a space or a new line starts."""
    words: list[list[Glyph]] = []
    for glyph in glyphs:
        last = words[-1][-1] if words else None
        if last is not None:
            height = max(g.y1 - g.y0 for g in words[-1][-8:])
            gap = glyph.x0 - last.x1
            apart = abs((glyph.y0 + glyph.y1) - (last.y0 + last.y1)) / 2
            if -height < gap < 0.3 * max(height, 8.0) and apart < max(height, 8.0):
                words[-1].append(glyph)
                continue
        words.append([glyph])
    return words


def _middles(word: list[Glyph], count: int, learner: Learner, pieces: list[int]) -> list[tuple[float, float]]:
    """Pixel middle of each piece of a word: x by its characters, y the middle of the word's ink."""
    top, bottom = min(g.y0 for g in word), max(g.y1 for g in word)
    lengths = [len(learner.tokenizer.decode([piece]).strip()) for piece in pieces]
    if sum(lengths) != len(word):
        lengths = [len(word) // count] * count
    middles, done = [], 0
    for length in lengths:
        run = word[min(done, len(word) - 1) : done + length] or word[-1:]
        middles.append(((run[0].x0 + run[-1].x1) / 2, (top + bottom) / 2))
        done += length
    return middles


def visual_places(layout: Layout, x: float, y: float) -> list[int]:
    """Indices among the picture's visual tokens that show picture pixel (x, y): in the map, and in the overview."""
    places = []
    top, _, left, _ = layout.keep
    pitch = layout.tile / layout.side
    for view, (vx, vy, _, _) in glyph_views(layout, (x, y, x, y)):
        col, row = min(int(vx / pitch), layout.side - 1), min(int(vy / pitch), layout.side - 1)
        if layout.overview and view == 0:
            places.append(row * layout.side + col)
            continue
        tile = view - int(layout.overview)
        col += tile % layout.cols * layout.side - left
        row += tile // layout.cols * layout.side - top
        if 0 <= row < layout.map[0] and 0 <= col < layout.map[1]:
            first = layout.side**2 if layout.overview else 0
            places.append(first + row * (layout.map[1] + layout.newline) + col)
    return places
