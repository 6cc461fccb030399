"""Sample -> Features: the one place where a conversation becomes tokens, tiles and labels.

    Sample ──spans──> tokens of each text, Layout.tokens of each picture ──> ids, labels (T,), tiles (N, 3, S, S)

Training, evaluation and serving all call ``encode``, so a prompt, a tiling or a mask can't differ between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pumice.chat import Span, Template, spans
from pumice.types import IGNORE, IMAGE, Features, Layout, Media, PumiceError, Sample
from pumice.vision.layout import Policy, layout
from pumice.vision.media import decode
from pumice.vision.pixels import to_tiles


@dataclass(frozen=True)
class Processor:
    """What ``encode`` needs of a model: tokenizer, template, layout policy, pixel statistics, token limit."""

    tokenizer: Any
    template: Template
    policy: Policy
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    max_tokens: int = 8192

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Token ids that end an answer."""
        return tuple(tokenize(self.tokenizer, self.template.stop, markup=True)[-1:])


def tokenize(tokenizer: Any, text: str, markup: bool) -> list[int]:
    """Ids of one span's text. Without ``markup``, a special token in the text is split into ordinary ones."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=not markup).input_ids


def encode(sample: Sample, processor: Processor, prompt: bool = False) -> Features:
    """Lay out one sample. With ``prompt`` it ends in the assistant's open head, ready for generation.

    Raises:
        PumiceError: a picture can't be decoded, or the sample has more tokens than the model takes.
    """
    ids: list[int] = []
    labels: list[int] = []
    tiles: list[torch.Tensor] = []
    layouts: list[Layout] = []
    glyphs = []
    for span in join(spans(sample.turns, processor.template, prompt)):
        if isinstance(span.content, Media):
            placed = layout(span.content.size, processor.policy)
            layouts.append(placed)
            tiles.append(to_tiles(decode(span.content), placed, processor.policy, processor.mean, processor.std))
            glyphs.append(span.content.glyphs)
            ids += [IMAGE] * placed.tokens
            labels += [IGNORE] * placed.tokens
        else:
            new = tokenize(processor.tokenizer, span.content, span.markup)
            ids += new
            labels += new if span.loss else [IGNORE] * len(new)
    if len(ids) > processor.max_tokens:
        raise PumiceError(
            f"{sample.id or 'this conversation'} has {len(ids)} tokens, the model takes {processor.max_tokens}: "
            "fewer or smaller pictures, or a shorter text"
        )
    side = processor.policy.tile
    return Features(
        ids=torch.tensor(ids, dtype=torch.int64),
        labels=torch.tensor(labels, dtype=torch.int64),
        tiles=torch.cat(tiles) if tiles else torch.zeros(0, 3, side, side),
        layouts=tuple(layouts),
        id=sample.id,
        glyphs=tuple(glyphs),
    )


def join(parts: Sequence[Span] | Any) -> list[Span]:
    """Merge neighbouring spans that are tokenised alike, so that a merge of the tokenizer isn't cut in two."""
    merged: list[Span] = []
    for span in parts:
        last = merged[-1] if merged else None
        if (
            last is not None
            and isinstance(last.content, str)
            and isinstance(span.content, str)
            and (last.markup, last.loss) == (span.markup, span.loss)
        ):
            merged[-1] = Span(last.content + span.content, span.owner, span.markup, span.loss)
        else:
            merged.append(span)
    return merged


def count_tokens(sample: Sample, processor: Processor) -> int:
    """Tokens of the laid-out sample without decoding a pixel."""
    total = 0
    for span in join(spans(sample.turns, processor.template)):
        if isinstance(span.content, Media):
            total += layout(span.content.size, processor.policy).tokens
        else:
            total += len(tokenize(processor.tokenizer, span.content, span.markup))
    return total
