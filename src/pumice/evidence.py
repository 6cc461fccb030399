"""Where in its pictures an answer was read: regions, found by how the language model attends.

    prompt, answer ──one forward pass──> attention of the answer's tokens to visual tokens (tokens,)
    Layout ──planes──> which part of the picture a visual token shows ──> heat ──> regions (box, weight)

The answer is taken as given: it is laid out behind the prompt, so any text can be asked about, also one that the model
wouldn't have said.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pumice.assistant import Assistant
from pumice.data.batch import pack
from pumice.encode import Processor, encode, lay_out
from pumice.messages import to_sample
from pumice.model.assistant import AssistantModel
from pumice.model.attention import Kind, attend
from pumice.types import IMAGE, Features, Layout, PumiceError, Sample, Turn
from pumice.vision.frames import pooled_side

SHARE = 0.25
"""Cells of at least this share of the highest one's heat belong to regions: of 0.15, 0.25, 0.35 and 0.5 the one whose
boxes fitted best on pages of the training split (docs/evidence.md)."""

MOST = 5
"""Regions of an answer; those that come after carry next to nothing."""

ROWS = 64
"""Tokens of an answer whose attention is held at once."""

Fractions = tuple[float, float, float, float]
"""(x0, y0, x1, y1) in fractions of a picture's width and height, x to the right and y down."""


@dataclass(frozen=True)
class Region:
    """A part of a medium that an answer was read from.

    ``media`` counts the conversation's pictures, pages and videos in reading order, from 0; ``box`` is in fractions of
    its width and height; ``frame`` counts a video's sampled frames. The weights of an answer's regions sum to 1.
    """

    media: int
    box: Fractions
    weight: float
    frame: int | None = None


def evidence(assistant: Assistant, asked: Sample | Sequence[dict[str, Any]], answer: str) -> list[Region]:
    """The regions that ``answer`` to a Sample, or to OpenAI-style messages, is read from, the strongest first.

    It takes one forward pass over prompt and answer. A conversation without pictures has no regions.

    Raises:
        PumiceError: the answer is no text or blank, the conversation ends in the assistant's words, a picture can't be
            read, or all of it is more than the model takes.
    """
    sample = answered(asked if isinstance(asked, Sample) else to_sample(asked), answer)
    if not sample.media:
        return []
    sample = assistant.prepared(sample)
    processor = replace(assistant.processor, cut=False)
    return regions(assistant.model, encode(sample, processor), answer_tokens(sample, processor))


def answered(sample: Sample, answer: str) -> Sample:
    """The conversation with its answer.

    Raises:
        PumiceError: the answer is no text or blank, or the conversation ends in the assistant's words.
    """
    if not isinstance(answer, str):
        raise PumiceError(f"the answer is {type(answer).__name__}; expected text")
    if not answer.strip():
        raise PumiceError("the answer is blank; expected the text whose evidence is wanted")
    if sample.turns[-1].role == "assistant":
        raise PumiceError("the conversation ends in the assistant's words; expected it without the answer")
    return replace(sample, turns=(*sample.turns, Turn("assistant", (answer.strip(),))))


def answer_tokens(sample: Sample, processor: Processor) -> slice:
    """Where the tokens of the last answer are in the laid-out sample, without the one that ends it."""
    found, end = slice(0, 0), 0
    for piece in lay_out(sample, processor):
        start, end = end, end + len(piece.ids)
        if piece.span.owner == "assistant" and not piece.span.markup:
            found = slice(start, end)
    return found


@torch.inference_mode()
def regions(model: AssistantModel, features: Features, answer: slice) -> list[Region]:
    """The regions that the tokens ``answer`` of a laid-out conversation are read from, the strongest first."""
    scores = visual_attention(model, features, answer).cpu()
    counts = [layout.tokens for layout in features.layouts]
    grids = [
        (media, plane, grid)
        for media, (layout, own) in enumerate(zip(features.layouts, scores.split(counts), strict=True))
        for plane, grid in heat(layout, own)
    ]
    return join(grids, SHARE, MOST)


def visual_attention(model: AssistantModel, features: Features, answer: slice) -> Tensor:
    """Attention to each visual token (tokens,) fp32, the mean over layers, heads and the answer's tokens.

    A token counts where it is chosen, at the one before it. What comes after the answer isn't run.

    Raises:
        PumiceError: no answer, or more tokens than the language model takes.
    """
    if not 0 < answer.start < answer.stop <= len(features):
        raise PumiceError("the conversation has no answer whose evidence could be found")
    rows, most = slice(answer.start - 1, answer.stop - 1), model.lm.config.max_position_embeddings
    if rows.stop > most:
        raise PumiceError(f"conversation and answer have {rows.stop + 1} tokens, the model takes {most}")
    ids, labels = features.ids[: rows.stop], features.labels[: rows.stop]
    batch = pack([replace(features, ids=ids, labels=labels)]).to(model.device)
    watch = _Watch(rows, (batch.ids == IMAGE).nonzero().squeeze(1))
    model.lm.model(
        inputs_embeds=model.embed(batch)[None], position_ids=batch.positions[None], use_cache=False, cache=watch
    )
    return torch.stack(watch.layers).mean(0)


class _Watch:
    """Stands where decoding has its cache: attends as ever, and notes what ``rows`` pay to the tokens ``columns``."""

    def __init__(self, rows: slice, columns: Tensor) -> None:
        self.rows, self.columns = rows, columns
        self.layers: list[Tensor] = []

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, kind: Kind) -> Tensor:
        paid = torch.zeros(len(self.columns), device=q.device)
        for first in range(self.rows.start, self.rows.stop, ROWS):
            weights = attention_weights(q[:, first : min(first + ROWS, self.rows.stop)], k, first, kind)
            paid += weights[..., self.columns].sum((0, 1))
        self.layers.append(paid / (q.shape[0] * (self.rows.stop - self.rows.start)))
        return attend(q, k, v, kind)


def attention_weights(q: Tensor, k: Tensor, first: int, kind: Kind) -> Tensor:
    """Attention (heads, n, T) fp32 that q (heads, n, d), the tokens from ``first`` on, pays to k (kv, T, d)."""
    keys = k.repeat_interleave(q.shape[0] // k.shape[0], 0)
    scores = (q @ keys.mT).float() * kind.scale
    if kind.softcap is not None:
        scores = torch.tanh(scores / kind.softcap) * kind.softcap
    distance = torch.arange(first, first + q.shape[1])[:, None] - torch.arange(k.shape[1])
    seen = (distance >= 0) & (distance < (kind.window or k.shape[1]))
    return scores.masked_fill(~seen.to(q.device), float("-inf")).softmax(-1)


@dataclass(frozen=True)
class Plane:
    """A grid of visual tokens over a picture or frame: rows between ``ys`` (h+1,) and columns between ``xs`` (w+1,).

    The edges are fractions of the picture; cells beyond it have no extent. ``first`` is the number of its first token
    among the medium's, ``pitch`` that of tokens from row to row (w, or w + 1 with newlines).
    """

    ys: tuple[float, ...]
    xs: tuple[float, ...]
    first: int
    pitch: int
    frame: int | None = None

    def of(self, scores: Tensor) -> Tensor:
        """The plane's part (h, w) of scores (layout.tokens,)."""
        h, w = len(self.ys) - 1, len(self.xs) - 1
        return scores[self.first : self.first + h * self.pitch].view(h, self.pitch)[:, :w]


def planes(layout: Layout) -> list[Plane]:
    """Where each visual token of a picture or video lies: the map, then the overview if there is one, or all frames.

    Newline tokens are in none of them.
    """
    if layout.frames:
        return list(_frames(layout))
    top, bottom, left, right = layout.keep
    (h, w), pitch = layout.map, layout.tile / layout.side
    ys = _edges(h, top * pitch, (bottom - top) * pitch / h, layout.offset[1], layout.resized[1])
    xs = _edges(w, left * pitch, (right - left) * pitch / w, layout.offset[0], layout.resized[0])
    if not layout.overview:
        return [Plane(ys, xs, 0, w + layout.newline)]
    whole = _edges(layout.side, 0, 1, 0, layout.side)
    return [Plane(ys, xs, layout.side**2, w + layout.newline), Plane(whole, whole, 0, layout.side)]


def _frames(layout: Layout) -> Iterator[Plane]:
    first = 0
    for frame in range(layout.frames):
        stride = layout.stride if frame % layout.slow_every == 0 else 2 * layout.stride
        side = pooled_side(layout.side, layout.pool, stride)
        # Bilinear pooling spreads its cells over the whole frame; the others leave out what doesn't fill a cell.
        cell = layout.tile / side if layout.pool == "bilinear" else stride * layout.tile / layout.side
        ys = _edges(side, 0, cell, layout.offset[1], layout.resized[1])
        xs = _edges(side, 0, cell, layout.offset[0], layout.resized[0])
        pitch = side + layout.newline
        yield Plane(ys, xs, first, pitch, frame)
        first += side * pitch
        first += bool(layout.ends) and (frame + 1) % (layout.frames // layout.ends) == 0


def _edges(cells: int, start: float, step: float, offset: float, length: float) -> tuple[float, ...]:
    """Edges of cells on a canvas as fractions of the picture that begins there at ``offset``, cut to it."""
    return tuple(min(max((start + i * step - offset) / length, 0.0), 1.0) for i in range(cells + 1))


def heat(layout: Layout, scores: Tensor) -> list[tuple[Plane, Tensor]]:
    """Scores (layout.tokens,) on planes (h, w): the overview's are spread over the map's cells that lie under them."""
    grids = [(plane, plane.of(scores)) for plane in planes(layout)]
    if not layout.overview:
        return grids
    (plane, fine), (whole, coarse) = grids
    spread = _overlap(whole.ys, plane.ys) @ coarse @ _overlap(whole.xs, plane.xs).T
    return [(plane, fine + spread)]


def _overlap(coarse: Sequence[float], fine: Sequence[float]) -> Tensor:
    """(fine, coarse) share of each coarse interval that lies in each fine one."""
    a, b = torch.tensor(coarse), torch.tensor(fine)
    low = torch.maximum(a[None, :-1], b[:-1, None])
    high = torch.minimum(a[None, 1:], b[1:, None])
    return (high - low).clamp(min=0) / (a[1:] - a[:-1])[None]


def join(grids: Sequence[tuple[int, Plane, Tensor]], share: float, most: int) -> list[Region]:
    """Regions of heat (media, plane, (h, w)): neighbouring cells of at least ``share`` of the highest, joined.

    The ``most`` heaviest are kept, the heaviest first. No heat gives no region.
    """
    peak = max((float(grid.max()) for _, _, grid in grids if grid.numel()), default=0.0)
    if not peak > 0:
        return []
    found: list[Region] = []
    for media, plane, grid in grids:
        for cells in _connected((grid >= share * peak).tolist()):
            rows, cols = [row for row, _ in cells], [col for _, col in cells]
            box = (plane.xs[min(cols)], plane.ys[min(rows)], plane.xs[max(cols) + 1], plane.ys[max(rows) + 1])
            if box[0] < box[2] and box[1] < box[3]:
                found.append(Region(media, box, float(grid[rows, cols].sum()), plane.frame))
    kept = sorted(found, key=lambda region: -region.weight)[:most]
    total = sum(region.weight for region in kept)
    return [Region(one.media, one.box, one.weight / total, one.frame) for one in kept]


def _connected(hot: list[list[bool]]) -> Iterator[list[tuple[int, int]]]:
    """Groups of true cells (row, col) that touch by sides or corners."""
    left = {(r, c) for r, row in enumerate(hot) for c, cell in enumerate(row) if cell}
    while left:
        group = [left.pop()]
        for r, c in group:
            near = {(r + i, c + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            group += sorted(near)
        yield group
