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
from pumice.model.connectors import MlpConnector, pool
from pumice.model.merge import merge_views
from pumice.model.towers import Tower
from pumice.types import IGNORE, IMAGE, Batch, Layout, PumiceError


class AssistantModel(nn.Module):
    """A visual assistant's torch module.

    ``lm`` is a transformers causal LM; ``newline`` (H,) the learned row separator. With ``pool_first`` a video's frames
    are pooled before the connector (LLaVA-NeXT-Video), else after it. The names of the parts (tower,
    connector, newline, lm) are the keys of learning rates in a recipe and the prefixes of checkpoint keys.
    """

    tower: Tower
    connector: MlpConnector

    def __init__(self, tower: Tower, connector: MlpConnector, lm: Any, pool_first: bool = False) -> None:
        super().__init__()
        self.tower = tower
        self.connector = connector
        self.newline = nn.Parameter(torch.zeros(lm.config.hidden_size))
        self.lm = lm
        self.pool_first = pool_first
        lm.set_attn_implementation(attention.NAME)

    @property
    def device(self) -> torch.device:
        return self.newline.device

    def visual(self, features: Tensor, layouts: Sequence[Layout]) -> Tensor:
        """Visual tokens of all media in reading order, (layout.tokens summed, H), from features (N, side^2, C)."""
        if not layouts:
            return features.new_zeros(0, self.newline.shape[0])
        counts = [placed.views for placed in layouts]
        if self.pool_first and any(placed.frames for placed in layouts):
            views = [self._pooled_first(f, placed) for f, placed in zip(features.split(counts), layouts, strict=True)]
        else:
            views = self.connector(features).split(counts)
        return torch.cat([merge_views(v, placed, self.newline) for v, placed in zip(views, layouts, strict=True)])

    def _pooled_first(self, features: Tensor, placed: Layout) -> Tensor:
        """Projected views of one picture, or of one video whose frames are pooled before the connector."""
        return self.connector(pool(features, placed.pool, placed.stride) if placed.frames else features)

    def embed(self, batch: Batch, visual: Tensor | None = None) -> Tensor:
        """Input embeddings (T, H); ``visual`` (tokens, H), all visual tokens, spares the tower where they are known.

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
        if visual is None:
            visual = self.visual(self.tower(batch.tiles.to(self.newline.dtype)), batch.layouts)
        return embedded.masked_scatter(places[:, None], visual.to(embedded.dtype))

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

    def compile_blocks(self) -> None:
        """Compile the blocks of tower and language model, each kind once; the first pass then takes a minute longer.

        What lies between matrix products becomes a few kernels, which pays on a GPU.
        """
        for block in [*self.tower.stack, *self.lm.model.layers]:
            block.compile(dynamic=True)

    def logits(self, batch: Batch) -> Tensor:
        """Logits (T, V) at every place of the stream."""
        return self.head(self.hidden(batch))

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of last hidden states (..., H), bounded where the language model's are (Gemma 2)."""
        logits = self.lm.lm_head(hidden)
        cap = getattr(self.lm.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def answer_loss(self, batch: Batch, embedded: Tensor | None = None) -> tuple[Tensor, int]:
        """Sum of the cross-entropies of the supervised tokens and their number K; only K rows meet the LM head."""
        rows, targets = supervised_rows(batch)
        logits = self.head(self.hidden(batch, embedded)[rows])
        return nn.functional.cross_entropy(logits.float(), targets, reduction="sum"), int(targets.numel())


def supervised_rows(batch: Batch) -> tuple[Tensor, Tensor]:
    """Places (K,) whose next token carries loss, and those tokens (K,). A document's first token has no predecessor."""
    labels = batch.labels.clone()
    labels[batch.starts[:-1].long()] = IGNORE
    targets = (labels != IGNORE).nonzero().squeeze(1)
    return targets - 1, labels[targets]
