"""Features -> Batch: documents side by side in one flat stream, without padding.

[Features, ...] ──pack──> ids (T,), labels (T,), positions restart, starts (D+1,)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pumice.types import IMAGE, Batch, Features, PumiceError


def pack(documents: Sequence[Features]) -> Batch:
    """Concatenate documents in order.

    Raises:
        PumiceError: nothing to pack, or a document whose visual tokens don't match its layouts.
    """
    if not documents:
        raise PumiceError("can't pack zero documents")
    for document in documents:
        found, expected = int((document.ids == IMAGE).sum()), sum(placed.tokens for placed in document.layouts)
        if found != expected:
            name = document.id or "a document"
            raise PumiceError(f"{name}: {found} visual tokens laid out, layouts ask for {expected}")
    lengths = torch.tensor([len(document) for document in documents])
    return Batch(
        ids=torch.cat([document.ids for document in documents]),
        labels=torch.cat([document.labels for document in documents]),
        positions=torch.cat([torch.arange(len(document)) for document in documents]),
        starts=torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).to(torch.int32),
        tiles=torch.cat([document.tiles for document in documents]),
        layouts=tuple(placed for document in documents for placed in document.layouts),
        glyphs=tuple(drawn for document in documents for drawn in document.glyphs),
        things=tuple(shown for document in documents for shown in document.things),
        sources=tuple(document.source for document in documents),
    )
