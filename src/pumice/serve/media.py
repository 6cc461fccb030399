"""The files of a request become a Sample, and that Features, without a pixel being decoded in the server's process.

    [Said] ──open_sample──> Sample (headers) ──lay_out──> tokens, checked ──tiles──> Features

Files that were opened lately are remembered by their SHA-256, so that the next question about them costs nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pumice.encode import Piece, Processor, lay_out
from pumice.reader.lines import Line
from pumice.reader.reader import Reader, beside
from pumice.serve.errors import ApiError, from_error, invalid
from pumice.serve.fetch import Fetcher
from pumice.serve.parts import Attachment, Said
from pumice.serve.settings import ServeSettings
from pumice.serve.workers import DecodePool
from pumice.types import IGNORE, IMAGE, Features, Layout, Media, PumiceError, Sample, Turn


class Recent:
    """Values of known size in bytes; the least recently used ones go when ``limit`` is reached."""

    def __init__(self, limit: int) -> None:
        self.limit, self.held = limit, 0
        self._values: OrderedDict[Any, tuple[Any, int]] = OrderedDict()

    def get(self, key: Any) -> Any:
        """The value, or None."""
        if key not in self._values:
            return None
        self._values.move_to_end(key)
        return self._values[key][0]

    def put(self, key: Any, value: Any, size: int) -> None:
        """Keep a value, unless it alone is more than the limit."""
        if size > self.limit or key in self._values:
            return
        self._values[key] = (value, size)
        self.held += size
        while self.held > self.limit:
            self.held -= self._values.popitem(last=False)[1][1]


class Room:
    """Bytes that may be held at once. Who asks for more than is free waits in line; ``most`` may wait."""

    def __init__(self, limit: int, most: int) -> None:
        self.limit, self.most, self.held = limit, most, 0
        self._line: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, size: int) -> None:
        """Hold ``size`` bytes; what is more than the limit has all of it for itself.

        Raises:
            ApiError: 429, too many wait.
        """
        if not self._line and self._fits(size):
            self.held += size
            return
        if len(self._line) >= self.most:
            raise ApiError(429, "queue_full", "too many pictures wait; try again in a moment", retry_after=2)
        place = (size, asyncio.get_running_loop().create_future())
        self._line.append(place)
        try:
            await place[1]
        except asyncio.CancelledError:
            if place in self._line:
                self._line.remove(place)
            else:  # its turn came at the same moment
                self.held -= size
            self._let_in()
            raise

    def give(self, size: int) -> None:
        """Hold them no more."""
        self.held -= size
        self._let_in()

    def _fits(self, size: int) -> bool:
        return not self.held or self.held + size <= self.limit

    def _let_in(self) -> None:
        while self._line and self._fits(self._line[0][0]):
            size, waiting = self._line.popleft()
            self.held += size
            if not waiting.done():  # else whoever waited was cancelled, and gives it back
                waiting.set_result(None)


@dataclass(frozen=True)
class Opened:
    """A Sample with, for each of its media in reading order, the attachment that it came in."""

    sample: Sample
    sources: tuple[Attachment, ...]
    digests: tuple[bytes, ...]


class Opener:
    """Opens and decodes the files of requests; ``space`` of a caller tells apart what is remembered."""

    def __init__(self, pool: DecodePool, fetcher: Fetcher, settings: ServeSettings) -> None:
        self.pool, self.fetcher, self.max_bytes = pool, fetcher, settings.media.max_bytes
        self.room = Room(settings.decoded_bytes, settings.worker_queue)
        self._tiles = Recent(settings.tile_bytes)
        self._headers = Recent(4096)  # files, not bytes
        self._texts = ThreadPoolExecutor(1, "texts")
        self._previewing = asyncio.Semaphore(1)

    async def open_sample(self, said: Sequence[Said], space: str) -> Opened:
        """A Sample of messages; of their files only the headers are read.

        Raises:
            ApiError: 400, a file can't be fetched or read within the limits.
        """
        files = [part for one in said for part in one.content if isinstance(part, Attachment)]
        found = await _all(self._open(file, space) for file in files)
        media = {id(file): opened for file, (opened, _) in zip(files, found, strict=True)}
        turns = []
        for one in said:
            content: list[str | Media] = []
            for part in one.content:
                content += [part] if isinstance(part, str) else media[id(part)]
            turns.append(Turn(one.role, tuple(content)))
        sources = [(file, digest) for file, (opened, digest) in zip(files, found, strict=True) for _ in opened]
        return Opened(Sample(tuple(turns)), tuple(s for s, _ in sources), tuple(d for _, d in sources))

    async def _open(self, file: Attachment, space: str) -> tuple[list[Media], bytes]:
        data = file.data or await self.fetcher.fetch(file.url, file.where)
        if len(data) > self.max_bytes:
            raise invalid(f"{len(data):,} bytes; at most {self.max_bytes:,} are read", file.where, "media_unreadable")
        if not data:
            raise invalid("an empty file", file.where, "media_unreadable")
        digest = (await asyncio.to_thread(hashlib.sha256, data)).digest()
        key = (space, digest, file.wanted)
        known = self._headers.get(key)
        if known is None:
            opened = await self.pool.open(data, file.wanted, file.where)
            known = [replace(media, reference=b"") for media in opened]  # what is remembered holds no file
            self._headers.put(key, known, 1)
        return [replace(media, reference=data) for media in known], digest

    async def lay_out(self, sample: Sample, processor: Processor, characters: int) -> Laid:
        """Tokens of a prompt, from texts and sizes alone. ``characters`` of text are more than the model can take.

        Raises:
            ApiError: 400, the texts are too long, or a picture's size or a text is none that the model takes.
        """
        texts = sum(len(part) for turn in sample.turns for part in turn.content if isinstance(part, str))
        if texts > characters:
            message = f"{texts:,} characters of text are more tokens than the model takes"
            raise invalid(message, "messages", "context_length_exceeded")
        try:
            # On a thread, since tokenisers release the GIL; on one, since they keep in themselves whether special
            # tokens are parsed: two texts at once, and what a user typed would be taken for the template's mark.
            return await asyncio.get_running_loop().run_in_executor(self._texts, _laid, sample, processor)
        except PumiceError as error:
            raise from_error(error, "messages") from None

    async def features(self, model: str, pieces: Laid, opened: Opened, space: str) -> Features:
        """What `pumice.encode.encode` gives for a prompt, its pixels decoded in other processes.

        Raises:
            ApiError: 400, a picture, page or frame can't be decoded.
        """
        several = sum(media.kind != "video" for media in opened.sample.media) > 1
        tiles = await _all(
            self._decode(model, place, several, file, (space, model, digest, place[0].page, several))
            for place, file, digest in zip(pieces.placed, opened.sources, opened.digests, strict=True)
        )
        return Features(
            ids=pieces.ids,
            labels=torch.full_like(pieces.ids, IGNORE),
            tiles=torch.cat(tiles) if tiles else torch.zeros(0, 3, pieces.tile, pieces.tile),
            layouts=tuple(layout for _, layout in pieces.placed),
        )

    async def with_text(self, opened: Opened, reader: Reader, space: str) -> Opened:
        """The same with the text of each picture and page after it, as the reader's own `assist` puts it there.

        Raises:
            ApiError: 400, a picture can't be decoded; 429, too many files wait.
        """
        found = zip(opened.sample.media, opened.sources, opened.digests, strict=True)
        lines = await _all(
            self._lines(media, file, (space, "lines", digest, media.page)) for media, file, digest in found
        )
        loop = asyncio.get_running_loop()
        readings = [await loop.run_in_executor(self._texts, reader.reading, one) for one in lines]
        return replace(opened, sample=beside(opened.sample, readings))

    async def _lines(self, media: Media, file: Attachment, key: Any) -> list[Line]:
        if media.kind == "video":
            return []
        lines = self._tiles.get(key)
        if lines is None:
            lines = await self.pool.lines(media, file.where)
            self._tiles.put(key, lines, 64 + sum(128 + len(text) for _, text in lines))
        return lines

    async def previews(self, opened: Opened, space: str) -> list[tuple[Attachment, Media, str]]:
        """The pages among a request's media, each with the file that it is of and a small picture (a data: URI).

        Raises:
            ApiError: 400, a page can't be rendered; 429, too many files wait.
        """
        found = zip(opened.sample.media, opened.sources, opened.digests, strict=True)
        pages = [
            (file, media, (space, "preview", digest, media.page))
            for media, file, digest in found
            if media.kind == "page"
        ]
        small = await _all(self._preview(file, media, key) for file, media, key in pages)
        return [(file, media, picture) for (file, media, _), picture in zip(pages, small, strict=True)]

    async def _preview(self, file: Attachment, media: Media, key: Any) -> str:
        picture = self._tiles.get(key)
        if picture is None:
            async with self._previewing:  # one at a time, so that a long PDF leaves processes to those who ask
                picture = await self.pool.preview(media, file.where)
            self._tiles.put(key, picture, len(picture))
        return picture

    async def _decode(
        self, model: str, place: tuple[Media, Layout], several: bool, file: Attachment, key: Any
    ) -> Tensor:
        tiles = self._tiles.get(key)
        if tiles is None:
            tiles = await self.pool.tiles(model, *place, several, file.where)
            self._tiles.put(key, tiles, tiles.nbytes)
        return tiles


@dataclass(frozen=True)
class Laid:
    """A prompt as tokens: ids (T,) int64, its media with their Layouts in reading order, the side of a tile."""

    ids: Tensor
    placed: tuple[tuple[Media, Layout], ...]
    tile: int

    @property
    def visual(self) -> int:
        """Tokens that stand for pictures."""
        return int((self.ids == IMAGE).sum())

    @property
    def bytes(self) -> int:
        """Of its pixels, decoded (float32)."""
        return sum(layout.views for _, layout in self.placed) * 3 * self.tile**2 * 4


def _laid(sample: Sample, processor: Processor) -> Laid:
    pieces: list[Piece] = list(lay_out(sample, processor, prompt=True))
    ids = [number for piece in pieces for number in piece.ids]
    placed = [(p.span.content, p.layout) for p in pieces if isinstance(p.span.content, Media) and p.layout is not None]
    return Laid(torch.tensor(ids, dtype=torch.int64), tuple(placed), processor.policy.tile)


def longest_text(processor: Processor) -> int:
    """Characters that certainly are more tokens than the model takes: every token as long as the longest."""
    longest = max((len(token) for token in processor.tokenizer.get_vocab()), default=1)
    return max(1, longest) * processor.max_tokens


async def _all(jobs: Any) -> list[Any]:
    """Results of coroutines run at once; when one fails the others are cancelled, and its error is raised alone."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(job) for job in jobs]
    except ExceptionGroup as several:
        raise several.exceptions[0] from None
    return [task.result() for task in tasks]
