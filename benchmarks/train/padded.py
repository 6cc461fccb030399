"""A loop as LLaVA's: samples padded to the longest of their batch, logits of all positions.

    [Features] ──tower, projector──> visual tokens ──splice, pad──> embeddings (B, L, H) ──decoder──> logits (B, L, V)

Modules are transformers'. What LLaVA does and this does too: text alone passes a black view through the tower; all
blocks of the tower run; the mask of a padded batch is dense. Two things are better than there: the loss is normalised
by the tokens of the whole update (so that it equals the others'), and nothing is computed twice to save memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pad_sequence

from benchmarks.train.measure import BETAS, CLIP, EPS, RATE, Setting, Update, timed
from benchmarks.train.samples import supervised
from benchmarks.train.shapes import open_theirs
from pumice.types import IGNORE, IMAGE, Features


class Loop:
    """transformers' model in a plain loop; subclasses say how an update is cut and what a pass computes."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.model: Any = open_theirs(setting.shape, setting.folder).to(setting.device)
        if setting.frozen:
            self.model.model.vision_tower.requires_grad_(False)
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=RATE, betas=BETAS, eps=EPS, weight_decay=0.0, fused=True)

    def run(self, updates: Sequence[Sequence[Features]]) -> list[Update]:
        return timed(self.update, updates, self.setting.device)

    def update(self, documents: Sequence[Features]) -> tuple[float, int]:
        count, total, rows = supervised(documents), 0.0, 0
        for loss, passed in self.passes(documents, count):
            loss.backward()
            total += loss.item()
            rows += passed
        clip_grad_norm_(self.parameters, CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total, rows

    def passes(self, documents: Sequence[Features], count: int) -> Iterator[tuple[Tensor, int]]:
        """(loss over ``count``, rows through the language model) of each forward pass."""
        raise NotImplementedError

    def autocast(self) -> Any:
        on = self.setting.dtype != torch.float32
        return torch.autocast(self.setting.device.type, self.setting.dtype, enabled=on)

    def see(self, tiles: Tensor) -> Tensor:
        """Projected features (N, P^2, H) of views (N, 3, S, S)."""
        config, inner = self.model.config, self.model.model
        states = inner.vision_tower(tiles, output_hidden_states=True).hidden_states
        chosen = states[config.vision_feature_layer]
        if config.vision_feature_select_strategy == "default":
            chosen = chosen[:, 1:]
        return inner.multi_modal_projector(chosen)

    def merge(self, seen: Tensor, document: Features) -> Tensor:
        """Visual tokens (n, H) of a document's picture from its projected views."""
        if not hasattr(self.model.model, "pack_image_features"):
            return seen.flatten(0, 1)
        (placed,) = document.layouts
        size = torch.tensor([[placed.size[1], placed.size[0]]])  # stays on the CPU: only its numbers are read
        newline, ratio = self.model.model.image_newline, self.model.config.vision_aspect_ratio
        return self.model.model.pack_image_features([seen], size, newline, ratio)[0][0]

    def logits_loss(self, hidden: Tensor, labels: Tensor, count: int) -> Tensor:
        """Logits of all places, and transformers' own loss."""
        logits = self.model.lm_head(hidden)
        return self.model.loss_function(
            logits=logits, labels=labels, vocab_size=self.setting.shape.lm["vocab_size"], num_items_in_batch=count
        )


class PaddedLoop(Loop):
    """(a) in the order of a shuffled loader; (b) the same, with updates whose batches have samples of one length."""

    def passes(self, documents: Sequence[Features], count: int) -> Iterator[tuple[Tensor, int]]:
        for i in range(0, len(documents), self.setting.batch):
            with self.autocast():
                found = self.padded(documents[i : i + self.setting.batch], count)
            yield found  # the pass back is no part of autocast

    def padded(self, documents: Sequence[Features], count: int) -> tuple[Tensor, int]:
        side, device = self.setting.shape.tower["image_size"], self.setting.device
        black = torch.zeros(1, 3, side, side)
        views = [document.tiles if document.layouts else black for document in documents]
        # What LLaVA's collator makes is made on the CPU and taken over whole; it splices on the device.
        ids = torch.cat([document.ids for document in documents]).to(device).split([len(one) for one in documents])
        labels = pad_sequence([document.labels for document in documents], batch_first=True, padding_value=IGNORE)
        mask = pad_sequence([torch.ones(len(one), dtype=torch.bool) for one in documents], batch_first=True)
        labels, mask = labels.to(device), mask.to(device)
        seen = self.see(torch.cat(views).to(device)).split([len(one) for one in views])
        embedded = [self.splice(*parts) for parts in zip(documents, ids, seen, strict=True)]
        inputs = pad_sequence(embedded, batch_first=True)
        output = self.model.model.language_model(inputs_embeds=inputs, attention_mask=mask, use_cache=False)
        return self.logits_loss(output.last_hidden_state, labels, count), mask.numel()

    def splice(self, document: Features, ids: Tensor, seen: Tensor) -> Tensor:
        """Embeddings (T, H) of a document with its visual tokens in place; ``ids`` (T,) are its own on the device."""
        table = self.model.get_input_embeddings()
        if not document.layouts:
            return torch.cat([table(ids), seen.flatten(0, 1)[:0]])
        places = (document.ids == IMAGE).nonzero().squeeze(1)
        first, last = int(places[0]), int(places[-1]) + 1
        return torch.cat([table(ids[:first]), self.merge(seen, document), table(ids[last:])])
