"""Packing as nanoVLM's, in transformers' modules: knapsacks of constant length under one causal mask.

    [Features] + separator ──knapsacks──> rows (1, L), padded at the left ──decoder, head──> (1, L, V) ──> loss

nanoVLM isn't on the package index; its `ConstantLengthDataset` and `VQACollator` were read, and what they do is written
anew here. A pad token, hidden from attention, ends every sample. The longest sample goes first, each into the lightest
knapsack. Rows are filled up at the left to one length. Positions run through a row, and a sample sees
those before it (their issue 201; pull request 204, which would part them, is open): the loss isn't that of separate
samples. `NanoVlmApart` parts them by a dense mask and begins positions anew, and must have everyone's loss.

In one thing it is better here than there: as many knapsacks are made as the tokens fill. Shipped settings buffer eight
rows' worth of samples and make five knapsacks more than needed, so that a third of every row is padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from benchmarks.train.measure import Setting, Update
from benchmarks.train.ours import block_mask
from benchmarks.train.padded import Loop
from benchmarks.train.samples import supervised
from pumice.types import IGNORE, IMAGE, Features

NAME = "nanovlm"
HIDDEN = -1e4
"""Added to the scores of pad tokens, which leaves them nothing. nanoVLM adds the least fp32 number, which bf16 autocast
makes minus infinity: a row that sees pads alone could then be NaN."""


def _attend(module: Any, q: Tensor, k: Tensor, v: Tensor, _: Any, scaling: float, seen: Tensor, **__: Any) -> Any:
    """q (1, heads, T, d); ``seen`` is (1, 1, 1, T) float beside the causal mask, or (1, 1, T, T) bool instead of it.

    Heads of keys and values are repeated, as nanoVLM does. On a GPU two masks at once are left to the memory-efficient
    kernel, which torch took for nanoVLM: Flash Attention has none to add, and the plain way refuses two.
    """
    shared = q.shape[1] // k.shape[1]
    keys, values = k.repeat_interleave(shared, dim=1), v.repeat_interleave(shared, dim=1)
    both = seen.dtype != torch.bool
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION) if both and q.is_cuda else nullcontext():
        out = F.scaled_dot_product_attention(q, keys, values, seen, is_causal=both, scale=scaling)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, lambda *_, **__: None)


def knapsacks(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Numbers of the samples of each of ``count`` knapsacks: the longest first, each into the lightest."""
    sacks: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        lightest = min(range(count), key=loads.__getitem__)
        sacks[lightest].append(i)
        loads[lightest] += lengths[i]
    return [sack for sack in sacks if sack]


class NanoVlm(Loop):
    """(d) as nanoVLM is: a sample sees those before it in its row."""

    apart = False

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.model.model.language_model.set_attn_implementation(NAME)

    def run(self, updates: Sequence[Sequence[Features]]) -> list[Update]:
        """``proof`` is the loss at step 0 with samples apart: all but their seeing each other is as in the others."""
        shipped, self.apart = self.apart, True
        with torch.no_grad():
            self.proof = sum(loss.item() for loss, _ in self.passes(updates[0], supervised(updates[0])))
        self.apart = shipped
        return super().run(updates)

    def passes(self, documents: Sequence[Features], count: int) -> Iterator[tuple[Tensor, int]]:
        lengths = [len(document) + 1 for document in documents]
        sacks = knapsacks(lengths, max(1, round(sum(lengths) / self.setting.pack_tokens)))
        longest = max(sum(lengths[i] for i in sack) for sack in sacks)
        for sack in sacks:
            with self.autocast():
                loss = self.packed([documents[i] for i in sack], longest, count)
            yield loss, longest

    def packed(self, documents: Sequence[Features], length: int, count: int) -> Tensor:
        """Loss of one row, which is put together on the CPU, as by nanoVLM's data set."""
        device = self.setting.device
        ids = torch.cat([F.pad(document.ids, (0, 1)) for document in documents])
        labels = torch.cat([F.pad(document.labels, (0, 1), value=IGNORE) for document in documents])
        keep = torch.cat([F.pad(torch.ones(len(document)), (0, 1)) for document in documents])
        left = length - len(ids)
        ids, labels, keep = F.pad(ids, (left, 0)), F.pad(labels, (left, 0), value=IGNORE), F.pad(keep, (left, 0))
        ids, labels, keep = ids.to(device), labels.to(device), keep.to(device)
        embedded = self.model.get_input_embeddings()(ids.clamp(min=0))
        pictures = [document for document in documents if document.layouts]
        if pictures:
            tiles = torch.cat([one.tiles for one in pictures]).to(device)
            seen = self.see(tiles).split([len(one.tiles) for one in pictures])
            visual = torch.cat([self.merge(part, one) for part, one in zip(seen, pictures, strict=True)])
            embedded = embedded.masked_scatter((ids == IMAGE)[:, None], visual.to(embedded.dtype))
        positions, mask = torch.arange(length, device=device), (1.0 - keep)[None, None, None] * HIDDEN
        if self.apart:
            starts = torch.tensor([0, left, *(len(one) + 1 for one in documents)]).cumsum(0).unique().tolist()
            mask = block_mask(tuple(starts), device)
            positions = torch.cat([torch.arange(b - a, device=device) for a, b in pairwise(starts)])
        output = self.model.model.language_model(
            inputs_embeds=embedded[None], position_ids=positions[None], use_cache=False, seen=mask
        )
        return self.logits_loss(output.last_hidden_state, labels[None], count)


class NanoVlmApart(NanoVlm):
    """(d) with samples that don't see each other."""

    apart = True
