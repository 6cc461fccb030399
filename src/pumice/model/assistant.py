"""The model: tower, connector and language model over one flat Batch.

tiles (N, 3, S, S) ─tower─> (N, side^2, C) ─connector─> (N, P^2, H) ─merge─┐
ids (T,) ─embedding─> (T, H) with the IMAGE places filled by the merged ───┴─> language model ─> (T, H) ─> logits
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pumice.model import attention  # registers the "pumice" attention with transformers
from pumice.model.connectors import MlpConnector
from pumice.model.merge import merge_views
from pumice.model.towers import Tower
from pumice.types import IGNORE, IMAGE, Batch, Layout, PumiceError


class AssistantModel(nn.Module):
    """A visual assistant's torch module.

    ``lm`` is a transformers causal LM; ``newline`` (H,) the learned row separator. The names of the parts (tower,
    connector, newline, lm) are the keys of learning rates in a recipe and the prefixes of checkpoint keys.
    """

    tower: Tower
    connector: MlpConnector

    def __init__(self, tower: Tower, connector: MlpConnector, lm: Any) -> None:
        super().__init__()
        self.tower = tower
        self.connector = connector
        self.newline = nn.Parameter(torch.zeros(lm.config.hidden_size))
        self.lm = lm
        lm.set_attn_implementation(attention.NAME)

    @property
    def device(self) -> torch.device:
        return self.newline.device

    def project(self, features: Tensor) -> Tensor:
        """Patch features (N, side^2, C) to visual tokens (N, P^2, H)."""
        return self.connector(features)

    def visual(self, projected: Tensor, layouts: Sequence[Layout]) -> Tensor:
        """Visual tokens of all pictures in reading order, (sum of layout.tokens, H), from projected views."""
        if not layouts:
            return projected.new_zeros(0, self.newline.shape[0])
        views = projected.split([placed.views for placed in layouts])
        return torch.cat([merge_views(v, placed, self.newline) for v, placed in zip(views, layouts, strict=True)])

    def embed(self, batch: Batch, projected: Tensor | None = None) -> Tensor:
        """Input embeddings (T, H); ``projected`` (N, P^2, H) spares the tower when it is already known.

        Raises:
            PumiceError: visual tokens in ``ids`` and in ``layouts`` differ in number, or tiles do.
        """
        places = batch.ids == IMAGE
        expected = sum(placed.tokens for placed in batch.layouts)
        if int(places.sum()) != expected:
            raise PumiceError(f"the batch has {int(places.sum())} visual tokens, its layouts {expected}")
        if sum(placed.views for placed in batch.layouts) != batch.tiles.shape[0]:
            views = sum(placed.views for placed in batch.layouts)
            raise PumiceError(f"the batch has {batch.tiles.shape[0]} tiles, its layouts {views}")
        table = self.lm.get_input_embeddings()
        embedded = table(batch.ids.clamp(min=0))
        if not batch.layouts:
            return embedded
        if projected is None:
            projected = self.project(self.tower(batch.tiles.to(self.newline.dtype)))
        tokens = self.visual(projected, batch.layouts).to(embedded.dtype)
        return embedded.masked_scatter(places[:, None], tokens)

    def hidden(self, batch: Batch, embedded: Tensor | None = None) -> Tensor:
        """Last hidden states (T, H), each document attending to itself only."""
        if embedded is None:
            embedded = self.embed(batch)
        output = self.lm.model(
            inputs_embeds=embedded[None],
            position_ids=batch.positions[None],
            use_cache=False,
            starts=batch.starts.tolist(),
        )
        return output.last_hidden_state[0]

    def logits(self, batch: Batch) -> Tensor:
        """Logits (T, V) at every place of the stream."""
        return self.lm.lm_head(self.hidden(batch))

    def answer_loss(self, batch: Batch, embedded: Tensor | None = None) -> tuple[Tensor, int]:
        """Sum of the cross-entropies of the supervised tokens and their number K; only K rows meet the LM head."""
        rows, targets = supervised_rows(batch)
        logits = self.lm.lm_head(self.hidden(batch, embedded)[rows])
        return nn.functional.cross_entropy(logits.float(), targets, reduction="sum"), int(targets.numel())


def supervised_rows(batch: Batch) -> tuple[Tensor, Tensor]:
    """Places (K,) whose next token carries loss, and those tokens (K,). A document's first token has no predecessor."""
    labels = batch.labels.clone()
    labels[batch.starts[:-1].long()] = IGNORE
    targets = (labels != IGNORE).nonzero().squeeze(1)
    return targets - 1, labels[targets]
