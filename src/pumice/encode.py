"""Sample -> Features: the one place where a conversation becomes tokens, tiles and labels.

    Sample ──spans──> tokens of each text, Layout.tokens of each picture or video ──> ids, labels (T,)
    pictures, pages, frames of videos ──Layout──> tiles (N, 3, S, S)

Training, evaluation and serving all call ``encode``, so a prompt, a tiling or a mask can't differ between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pumice.chat import OwnTemplate, Span, own_start, spans, supervise_everywhere
from pumice.templates import Template
from pumice.tokens import Joints, joints, tokenize
from pumice.types import IGNORE, IMAGE, Features, Layout, Media, PumiceError, Sample, Turn
from pumice.vision.frames import VideoPolicy, default_video, instruction, sample_indices, video_layout
from pumice.vision.layout import Policy, layout
from pumice.vision.media import decode
from pumice.vision.pdf import page_size, render_page
from pumice.vision.pixels import frame_tiles, to_tiles
from pumice.vision.video import read_frames


@dataclass(frozen=True)
class Processor:
    """What ``encode`` needs of a model: tokenizer, template, layout policies, pixel statistics, token limit.

    ``policy`` lays out the only picture of a sample, and each of several where ``several`` is None (transformers'
    LLaVA-NeXT). Otherwise ``several`` lays out each of them (OneVision, and LLaVA-NeXT as it was trained: one padded
    view a picture). Pages of a PDF count as pictures, videos don't. ``video`` lays out videos; a model that has never
    seen one gets `default_video`. With ``cut`` a sample of more than ``max_tokens`` is cut at the right, as the
    originals train, instead of refused; a picture is never cut in two. ``ends`` are token ids that end an answer beside
    the template's own stop.

    Raises:
        PumiceError: the policies disagree on the tile's pixels or tokens.
    """

    tokenizer: Any
    template: Template | OwnTemplate
    policy: Policy
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    max_tokens: int = 8192
    several: Policy | None = None
    video: VideoPolicy | None = None
    cut: bool = False
    ends: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        tile, side = self.policy.tile, self.policy.side
        for name, other in (("several", self.several), ("video", self.video)):
            if other is not None and (other.tile, other.side) != (tile, side):
                raise PumiceError(
                    f"processor: {name} has tiles of {other.tile} px and {other.side} tokens a side, policy of {tile} "
                    f"px and {side}; one tower and connector serve both"
                )

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Token ids that end an answer."""
        return tuple(dict.fromkeys((*tokenize(self.tokenizer, self.template.stop, markup=True)[-1:], *self.ends)))

    @cached_property
    def joints(self) -> Joints:
        """How the tokenizer treats a text that isn't the beginning of one."""
        return joints(self.tokenizer)

    @property
    def video_policy(self) -> VideoPolicy:
        """The policy of videos, given or derived."""
        return self.video or default_video(self.policy)

    def picture_policy(self, sample: Sample) -> Policy:
        """The policy of every picture of a sample: it depends on whether there is more than one."""
        pictures = sum(media.kind != "video" for media in sample.media)
        return self.several if self.several is not None and pictures > 1 else self.policy


class Piece(NamedTuple):
    """One span laid out: its token ids, IMAGE at visual tokens, and the Layout of a picture, page or video."""

    span: Span
    ids: list[int]
    layout: Layout | None = None


def encode(sample: Sample, processor: Processor, prompt: bool = False) -> Features:
    """Lay out one sample. With ``prompt`` it ends in the assistant's open head, ready for generation.

    Raises:
        PumiceError: the sample has more tokens than the model takes (nothing is decoded then), or a picture, page or
            video can't be decoded.
    """
    ids: list[int] = []
    labels: list[int] = []
    placed: list[tuple[Media, Layout]] = []
    for piece in lay_out(sample, processor, prompt):
        ids += piece.ids
        labels += piece.ids if piece.span.loss else [IGNORE] * len(piece.ids)
        if isinstance(piece.span.content, Media) and piece.layout is not None:
            placed.append((piece.span.content, piece.layout))
    if len(ids) > processor.max_tokens:
        raise PumiceError(
            f"{sample.id or 'this conversation'} has {len(ids)} tokens, the model takes {processor.max_tokens}: "
            "fewer or smaller pictures, or a shorter text"
        )
    labels = supervise_everywhere(ids, labels, processor.template, processor.tokenizer)
    side, policy = processor.policy.tile, processor.picture_policy(sample)
    tiles = [decode_tiles(media, layout, processor, policy) for media, layout in placed]
    return Features(
        ids=torch.tensor(ids, dtype=torch.int64),
        labels=torch.tensor(labels, dtype=torch.int64),
        tiles=torch.cat(tiles) if tiles else torch.zeros(0, 3, side, side),
        layouts=tuple(layout for _, layout in placed),
        id=sample.id,
        glyphs=tuple(media.glyphs for media, _ in placed),
        things=tuple(media.things for media, _ in placed),
    )


def lay_out(sample: Sample, processor: Processor, prompt: bool = False) -> Iterator[Piece]:
    """The sample's spans with their tokens, in order; no pixel is decoded."""
    pieces = _lay_out(sample, processor, prompt)
    return _cut(list(pieces), processor.max_tokens) if processor.cut else pieces


def _cut(pieces: list[Piece], limit: int) -> Iterator[Piece]:
    """Pieces up to ``limit`` tokens; all of them where the limit falls into a picture: the sample is then too long."""
    kept: list[Piece] = []
    room = limit
    for piece in pieces:
        if len(piece.ids) > room and piece.layout is not None:
            return iter(pieces)
        kept.append(piece._replace(ids=piece.ids[:room]))
        room -= len(kept[-1].ids)
    return iter(kept)


def _lay_out(sample: Sample, processor: Processor, prompt: bool) -> Iterator[Piece]:
    policy = processor.picture_policy(sample)
    turns = [with_times(turn, processor.video_policy) for turn in sample.turns]
    # The originals tokenise what stands between pictures as texts of their own, transformers as one with marks in it.
    after_picture = None if isinstance(processor.template, Template) else IMAGE
    last = None
    for span in join(spans(turns, processor.template, prompt, own_start(processor.tokenizer))):
        if isinstance(span.content, Media):
            placed = place(span.content, processor, policy)
            yield Piece(span, [IMAGE] * placed.tokens, placed)
            last = after_picture
        else:
            ids = processor.joints.ids(processor.tokenizer, span.content, span.markup, last)
            yield Piece(span, ids)
            if ids:
                last = None if span.owner == "tokenizer" else ids[-1]


def place(media: Media, processor: Processor, policy: Policy) -> Layout:
    """Layout of a picture or page under ``policy``, or of a video under the processor's own."""
    if media.kind == "video":
        indices = sample_indices(media.frames, media.fps, processor.video_policy)
        return video_layout(len(indices), media.size, processor.video_policy)
    return layout(page_size(media.size, policy) if media.kind == "page" else media.size, policy)


def decode_tiles(media: Media, placed: Layout, processor: Processor, policy: Policy) -> Tensor:
    """Pixels (placed.views, 3, S, S) float32 of one picture, page or video, normalised.

    Raises:
        PumiceError: it can't be decoded.
    """
    mean, std = processor.mean, processor.std
    if media.kind == "video":
        indices = sample_indices(media.frames, media.fps, processor.video_policy)
        return frame_tiles(read_frames(media, indices), placed, mean, std)
    picture = render_page(media, placed.size) if media.kind == "page" else decode(media)
    return to_tiles(picture, placed, policy, mean, std)


def with_times(turn: Turn, policy: VideoPolicy) -> Turn:
    """The turn with the times of its frames after each video, where the policy has ``time_instruction``.

    LLaVA-Video was trained on <video>, newline, instruction, newline, question; the first newline is the template's.
    """
    if not policy.time_instruction:
        return turn
    content: list[str | Media] = []
    for part in turn.content:
        content.append(part)
        if isinstance(part, Media) and part.kind == "video":
            content.append(instruction(part.frames, part.fps, policy) + "\n")
    return Turn(turn.role, tuple(content))


def join(parts: Sequence[Span] | Any) -> list[Span]:
    """Merge neighbouring spans that are tokenised alike, so that a merge of the tokenizer isn't cut in two.

    Where only the loss differs, a blank between them goes to the second: tokenizers join it to the word behind it.
    """
    merged: list[Span] = []
    for span in parts:
        last = merged[-1] if merged else None
        if (
            last is None
            or not isinstance(last.content, str)
            or not isinstance(span.content, str)
            or last.markup != span.markup
            or last.owner == "tokenizer"
        ):
            merged.append(span)
        elif last.loss == span.loss:
            merged[-1] = Span(last.content + span.content, span.owner, span.markup, span.loss)
        else:
            blank = " " if not span.markup and last.content.endswith(" ") else ""
            merged[-1] = replace(last, content=last.content.removesuffix(blank))
            merged.append(replace(span, content=blank + span.content))
    return merged


def count_tokens(sample: Sample, processor: Processor) -> int:
    """Tokens of the laid-out sample without decoding a pixel."""
    return sum(len(piece.ids) for piece in lay_out(sample, processor))
