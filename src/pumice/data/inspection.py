"""The first samples of a stage as training will see them, as plain data: `pumice inspect`.

    Feed ──packs──> Place (step, forward pass) of each sample
    sample ──encode, lay_out──> Token by Token with owner and loss, Block a picture, views as pixels ──> Inspected

Ids, labels and tiles are those that ``encode`` made, not a second account of them. No model is built. A sample that
can't be read stays in its place with its error, and with as much as is known without its pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import Any

import numpy as np
from PIL import Image

from pumice.chat import Owner, own_start, spans
from pumice.data.feed import Feed, PlannedFeed
from pumice.encode import Piece, Processor, count_tokens, encode, lay_out, with_times
from pumice.tokens import tokenize
from pumice.types import IGNORE, Features, Layout, Media, MediaKind, PumiceError, Sample
from pumice.vision.frames import sample_times

REST = "\ufffd"
"""What decoders write for bytes that aren't a whole character."""
LONGEST = 8
"""Tokens of one character; more of them aren't waited for."""
NEAR = 16
"""Characters by which a token may lie behind the one before it."""

Written = tuple[Owner, str | None]
"""A span of the template: its owner and text; None is a picture or video, the next of the sample's."""


@dataclass(frozen=True)
class Token:
    """A token of text: ``text`` is what its id adds to the text before it, "" where it only begins a character.

    The owner of a token across a border is who has most of its characters.
    """

    id: int
    text: str
    owner: Owner
    learned: bool


@dataclass(frozen=True)
class Block:
    """The visual tokens of the picture or video with this number in its sample."""

    picture: int
    tokens: int
    owner: Owner


@dataclass(frozen=True)
class Picture:
    """A picture, page or video. ``views`` are RGB of S x S pixels as the tower gets them, ``layout.views`` of them.

    They are empty where the sample couldn't be encoded. ``times`` are the seconds of a video's frames.
    """

    kind: MediaKind
    name: str
    layout: Layout
    views: tuple[Image.Image, ...] = ()
    times: tuple[float, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where a sample is trained on: forward pass ``pack`` of ``packs`` in ``step``, all counted from 0.

    ``samples`` share the pass, with ``tokens`` in all; 0 where that isn't known beforehand.
    """

    number: int
    step: int
    pack: int
    packs: int
    samples: int
    tokens: int = 0


@dataclass(frozen=True)
class Inspected:
    """One sample. ``name`` is what messages of training call it.

    ``written`` is what the template wrote, ``parts`` what the model gets of it. ``whole`` are the tokens before the
    cut, 0 in a stage that doesn't cut.
    """

    place: Place
    name: str
    id: str = ""
    source: str = ""
    written: tuple[Written, ...] = ()
    parts: tuple[Token | Block, ...] = ()
    pictures: tuple[Picture, ...] = ()
    whole: int = 0
    error: str = ""

    @property
    def visual(self) -> int:
        return sum(part.tokens for part in self.parts if isinstance(part, Block))

    @property
    def tokens(self) -> int:
        return self.visual + sum(isinstance(part, Token) for part in self.parts)

    @property
    def supervised(self) -> int:
        return sum(isinstance(part, Token) and part.learned for part in self.parts)

    @property
    def views(self) -> int:
        return sum(picture.layout.views for picture in self.pictures)


def places(feed: Feed) -> Iterator[Place]:
    """Every sample of a feed in the order in which one worker trains on them."""
    for step in range(feed.steps):
        packs = feed.packs(step, 0, 1)
        for pack, numbers in enumerate(packs):
            tokens = sum(feed.tokens(number) for number in numbers) if isinstance(feed, PlannedFeed) else 0
            for number in numbers:
                yield Place(number, step, pack, len(packs), len(numbers), tokens)


def inspect_feed(feed: Feed, count: int) -> Iterator[Inspected]:
    """The first ``count`` samples of a feed, one at a time, since their pixels take memory.

    A faulty sample is no error: it says what is wrong with it.
    """
    for place in islice(places(feed), count):
        yield _inspect(feed, place)


def _inspect(feed: Feed, place: Place) -> Inspected:
    name, source = feed.name(place.number), _source(feed, place.number)
    try:
        sample = feed.sample(place.number)
    except PumiceError as error:
        return Inspected(place, name, source=source, error=str(error))
    if sample.source:
        source = f"{source}, {sample.source}" if source else sample.source
    processor = feed.processor
    pieces: list[Piece] = []
    written: tuple[Written, ...] = ()
    features, fault = None, ""
    try:
        written = _written(sample, processor)
        pieces = list(lay_out(sample, processor))
        features = encode(sample, processor)
    except PumiceError as error:
        fault = str(error)
    parts = tuple(_parts(written, pieces, features, processor.tokenizer))
    whole = count_tokens(sample, replace(processor, cut=False)) if pieces and processor.cut else 0
    pictures = tuple(_pictures(pieces, features, processor))
    return Inspected(place, name, sample.id, source, written, parts, pictures, whole, fault)


def _source(feed: Feed, number: int) -> str:
    """The recipe's name of a sample's source; none for a rendered one, which knows its kind once it is drawn."""
    return feed.plan.names[feed.plan.source[number]] if isinstance(feed, PlannedFeed) else ""


def _written(sample: Sample, processor: Processor) -> tuple[Written, ...]:
    """What the template writes, span by span: laying out joins the spans of several owners into one piece."""
    turns = [with_times(turn, processor.video_policy) for turn in sample.turns]
    found = spans(turns, processor.template, start=own_start(processor.tokenizer))
    return tuple((span.owner, span.content if isinstance(span.content, str) else None) for span in found)


def _parts(
    written: Sequence[Written], pieces: Sequence[Piece], features: Features | None, tokenizer: Any
) -> Iterator[Token | Block]:
    """Tokens and blocks in order; loss is that of ``encode``'s labels, or of the pieces where it failed."""
    ids = [token for piece in pieces for token in piece.ids]
    learned = [piece.span.loss for piece in pieces for _ in piece.ids]
    if features is not None:
        if features.ids.tolist() != ids:
            raise PumiceError(f"{features.id}: {len(features)} ids were encoded, {len(ids)} others laid out")
        learned = (features.labels != IGNORE).tolist()
    owners = (owner for owner, text in written if text for _ in text)
    start, pictures = 0, 0
    for piece in pieces:
        if isinstance(piece.span.content, Media):
            yield Block(pictures, len(piece.ids), piece.span.owner)
            pictures += 1
        else:
            theirs: list[Any] = list(islice(owners, len(piece.span.content)))
            texts = token_texts(piece.ids, tokenizer)
            who = token_owners(texts, piece.span.content, theirs)
            yield from map(Token, piece.ids, texts, who, learned[start : start + len(piece.ids)])
        start += len(piece.ids)


def token_texts(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """What each id adds to the text of those before it, as the tokenizer decodes them."""

    def decode(part: Sequence[int]) -> str:
        return tokenizer.decode(part, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    # Behind another token, since decoders of Llama's kind drop the blank that a text begins with.
    row = [*tokenize(tokenizer, "a", markup=True)[-1:], *ids]
    texts, begin, read = [], 0, 1
    for end in range(2, len(row) + 1):
        whole = decode(row[begin:end])
        if whole.endswith(REST) and end - read < LONGEST and end < len(row):
            texts.append("")  # bytes of a character that isn't whole yet
        else:
            texts.append(whole[len(decode(row[begin:read])) :])
            begin, read = read, end
    return texts


def token_owners(texts: Sequence[str], whole: str, owners: Sequence[Owner]) -> Iterator[Owner]:
    """The owner of each token of a piece's text, from those of its characters.

    A token begins where the one before it ended, or a little later: a mark may swallow white space. What a tokenizer
    adds (a blank) or writes in another way than the text goes to whom the next character belongs.
    """
    end, missed = 0, 0
    for text in texts:
        if not whole.startswith(text, end):
            text = text.strip()
            missed += len(text)
            found = whole.find(text, end, end + NEAR + 4 * missed) if text else -1
            end, text = (found, text) if found >= 0 else (end, "")
        start, end = end, end + len(text)
        missed = 0 if text else missed
        theirs = owners[start:end] or owners[end : end + 1] or owners[-1:]
        yield max(reversed(theirs), key=theirs.count)


def _pictures(pieces: Sequence[Piece], features: Features | None, processor: Processor) -> Iterator[Picture]:
    first = 0
    for piece in pieces:
        media, placed = piece.span.content, piece.layout
        if not isinstance(media, Media) or placed is None:
            continue
        views = _views(features, first, placed.views, processor) if features is not None else ()
        video = media.kind == "video"
        times = sample_times(media.frames, media.fps, processor.video_policy) if video else ()
        yield Picture(media.kind, media.name, placed, views, tuple(times))
        first += placed.views


def _views(features: Features, first: int, count: int, processor: Processor) -> tuple[Image.Image, ...]:
    """Tiles (3, S, S) back as pixels: what the tower gets, undone of its normalisation."""
    tiles = features.tiles[first : first + count].permute(0, 2, 3, 1).numpy()
    values = tiles * np.array(processor.std, np.float32) + np.array(processor.mean, np.float32)
    pixels = np.rint(values * 255).clip(0, 255).astype(np.uint8)
    return tuple(Image.fromarray(view) for view in pixels)


def to_json(found: Inspected) -> dict[str, Any]:
    """One sample as JSON takes it.

    ``spans`` are runs of one owner: ids and their texts, or a picture's number and its visual tokens (whose id is
    `pumice.types.IMAGE`). ``labels`` are runs [learned, tokens] over all of them: a label is its id, or
    `pumice.types.IGNORE`.
    """
    place = found.place
    learned = [(isinstance(p, Token) and p.learned, p.tokens if isinstance(p, Block) else 1) for p in found.parts]
    runs = [[loss, sum(n for _, n in run)] for loss, run in groupby(learned, key=lambda pair: pair[0])]
    return {
        "number": place.number, "name": found.name, "id": found.id, "source": found.source, "step": place.step,
        "pack": place.pack, "packs": place.packs, "tokens": found.tokens, "visual": found.visual,
        "supervised": found.supervised, "views": found.views, "before_cut": found.whole,
        "spans": list(_spans(found.parts)), "labels": runs, "media": [_media(one) for one in found.pictures],
        "error": found.error or None,
    }  # fmt: skip


def _spans(parts: Sequence[Token | Block]) -> Iterator[dict[str, Any]]:
    for (kind, owner), run in groupby(parts, key=lambda part: (type(part), part.owner)):
        if kind is Block:
            yield from ({"owner": owner, "picture": b.picture, "tokens": b.tokens} for b in run if isinstance(b, Block))
        else:
            tokens = [part for part in run if isinstance(part, Token)]
            yield {"owner": owner, "ids": [t.id for t in tokens], "texts": [t.text for t in tokens]}


def _media(picture: Picture) -> dict[str, Any]:
    placed = picture.layout
    return {
        "kind": picture.kind, "name": picture.name, "size": placed.size, "grid": [placed.cols, placed.rows],
        "tile": placed.tile, "overview": placed.overview, "views": placed.views, "map": placed.map,
        "tokens": placed.tokens, "times": picture.times,
    }  # fmt: skip
