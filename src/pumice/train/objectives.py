"""What a stage teaches: each objective turns a batch into loss terms.

    read    tiles ─tower─> features ─DenseHead─> characters of each patch
    align   tiles ─tower─> ─connector─> visual tokens ─LM's embedding─> the LM tokens drawn under each of them
    answer  the whole model: next token at supervised places; reading and alignment beside it when weighted

Beside any of them the tower may be held to what it knew of pictures without text.

A term is a sum with its count, so that the loop can divide by the count over all workers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pumice.model.assistant import AssistantModel, supervised_rows
from pumice.model.towers import Tower
from pumice.train.dense import BIAS_UNIT, DenseHead, dense_accuracy, dense_loss, dense_weights
from pumice.train.loss import token_loss
from pumice.train.parallel import whole
from pumice.train.targets import Labeller
from pumice.types import Batch, Targets

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

    ``trained`` are the modules that some stage has changed. ``teacher`` is the tower as training found it, where a
    stage's ``keep_weight`` needs it.
    """

    model: AssistantModel
    head: DenseHead
    tokenizer: Any
    dense_weight: float = 0.0
    align_weight: float = 0.0
    keep_weight: float = 0.0
    teacher: Tower | None = None
    sharded: bool = False
    trained: set[str] = field(default_factory=set)

    def labeller(self, objective: str) -> Labeller:
        """What makes the targets of an objective's batches, with the losses beside it that have a weight."""
        slots = objective == "read" or self.dense_weight > 0 or self.keep_weight > 0
        words = objective == "align" or (objective == "answer" and self.align_weight > 0)
        return Labeller(self.tokenizer, self.model.tower.patch, slots, words)

    def targets(self, batch: Batch) -> Targets:
        """A batch's targets, made now where the reader of the batch hasn't."""
        return batch.targets or Labeller(self.tokenizer, self.model.tower.patch).targets(batch).to(self.device)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def to(self, device: torch.device) -> None:
        """Move all of it, in place."""
        for module in (self.model, self.head, self.teacher):
            if module is not None:
                module.to(device)


def read(learner: Learner, batch: Batch) -> list[Term]:
    """Dense reading of the tower alone, up to the first block that the connector sees where nothing needs the rest."""
    tower = learner.model.tower
    features = tower(batch.tiles) if learner.keep_weight else tower.first(batch.tiles)
    return [_dense_term(learner, batch, features, 1.0), *_keep_beside(learner, batch, features)]


def align(learner: Learner, batch: Batch) -> list[Term]:
    """Each visual token names the LM tokens drawn under it, with the reading loss beside it when weighted."""
    features = learner.model.tower(batch.tiles)
    visual = learner.model.visual(features, batch.layouts)
    return [_align_term(learner, batch, visual, 1.0), *_beside(learner, batch, features)]


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
    return terms + _beside(learner, batch, features)


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
    documents = batch.asked or [0]
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
TERMS: tuple[str, ...] = ("answer", "align", "read", "keep")
"""Names that terms may have."""


def term_counts(learner: Learner, objective: str, batch: Batch) -> list[Term]:
    """Terms with the counts that the objective's will have, without a forward pass."""
    nothing = torch.zeros(())
    terms = []
    if objective == "answer":
        terms.append(Term("answer", nothing, torch.tensor(float(len(supervised_rows(batch)[0])))))
    if objective == "align" or (objective == "answer" and learner.align_weight):
        terms.append(Term("align", nothing, (1.0 / _sharing(learner.targets(batch).places)).sum()))
    if objective == "read" or learner.dense_weight:
        terms.append(Term("read", nothing, dense_weights(learner.targets(batch).slots).sum()))
    if learner.keep_weight:
        terms.append(Term("keep", nothing, _unread(learner, batch).sum() * learner.model.tower.side**2))
    return terms


def _align_term(learner: Learner, batch: Batch, visual: Tensor, weight: float) -> Term:
    """Cross-entropy of visual tokens (sum of layout.tokens, H) against the LM tokens drawn under them."""
    found = learner.targets(batch)
    places, targets = found.places, found.tokens
    table = whole(learner.model.lm.get_input_embeddings().weight.detach())
    scale = ALIGN_LOGIT / float(table.float().square().sum(1).mean())
    bias = learner.head.word_bias * BIAS_UNIT
    losses, right = token_loss(lambda rows: F.linear(rows, table).float() * scale + bias, visual[places], targets)
    # Where several tokens share a visual token, each counts in proportion: the target is a mixture.
    share = 1.0 / _sharing(places)
    return Term("align", (losses * share).sum(), share.sum(), weight, int(right.sum()), targets.numel())


def _sharing(places: Tensor) -> Tensor:
    """How many targets share each target's visual token, (K,) float32."""
    _, row, counts = places.unique(return_inverse=True, return_counts=True)
    return counts[row].float()


def _beside(learner: Learner, batch: Batch, features: Tensor) -> list[Term]:
    """The tower's losses beside another objective, those that the stage gives a weight."""
    read = [_dense_term(learner, batch, features, learner.dense_weight)] if learner.dense_weight else []
    return read + _keep_beside(learner, batch, features)


def _keep_beside(learner: Learner, batch: Batch, features: Tensor) -> list[Term]:
    """1 - cosine of each patch's last features (N, patches, width) and the teacher's, where no characters are known."""
    if not learner.keep_weight:
        return []
    assert learner.teacher is not None
    views, hidden = _unread(learner, batch), learner.model.tower.hidden
    with torch.no_grad():
        wanted = learner.teacher(batch.tiles[views])[..., -hidden:].float()
    losses = 1.0 - F.cosine_similarity(features[views][..., -hidden:].float(), wanted, dim=-1)
    return [Term("keep", losses.sum(), torch.tensor(float(losses.numel())), learner.keep_weight)]


def _unread(learner: Learner, batch: Batch) -> Tensor:
    """Which views (N,) bool show pictures whose characters, if there are any, aren't known."""
    views = torch.ones(batch.tiles.shape[0] if batch.layouts else 0, dtype=torch.bool, device=batch.tiles.device)
    views[learner.targets(batch).views] = False
    return views


def _dense_term(learner: Learner, batch: Batch, features: Tensor, weight: float) -> Term:
    """Reading loss over the pictures that carry glyphs, on the features of the tower's first chosen block."""
    found = learner.targets(batch)
    if not len(found.views):  # a worker without text on its pages still takes part in the sum over workers
        return Term("read", features.sum() * 0.0, torch.tensor(0.0), weight)
    logits = learner.head(features[found.views][..., : learner.model.tower.hidden])
    total, count = dense_loss(logits, found.slots)
    right, items = dense_accuracy(logits, found.slots)
    return Term("read", total, count, weight, right, items)
