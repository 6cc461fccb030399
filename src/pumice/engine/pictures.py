"""Pictures and videos as visual tokens, each computed once while it is remembered.

    tiles, Layout ──SHA-256 of both, whole──> Picture ──tower, connector, merge──> visual tokens (tokens, H)

A picture's tokens in the prefix tree have keys that no other picture's have: numbers handed out once a digest.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass, field

import torch
from torch import Tensor

from pumice.model.assistant import AssistantModel
from pumice.types import Features, Layout

NAMES = 65_536
"""Digests whose keys are remembered. One that is forgotten gets new keys: nothing wrong is found, only nothing."""

Digest = tuple[str, bytes]


def digests(prompt: Features) -> list[bytes]:
    """SHA-256 of each picture's pixels, their shape and all of its Layout."""
    found, first = [], 0
    for placed in prompt.layouts:
        tiles = prompt.tiles[first : first + placed.views].contiguous()
        digest = hashlib.sha256(repr((astuple(placed), tuple(tiles.shape), str(tiles.dtype))).encode())
        digest.update(tiles.numpy().data)
        found.append(digest.digest())
        first += placed.views
    return found


@dataclass(eq=False)
class Picture:
    """A picture, page or video of running requests, or a remembered one.

    ``key`` is the first of its tokens' keys, which go down from it. ``tiles`` (views, 3, S, S) are there until
    ``tokens`` (layout.tokens, H) are; ``features`` are those of its first tiles, while only these have been seen.
    """

    digest: Digest
    key: int
    layout: Layout
    tiles: Tensor | None
    tokens: Tensor | None = None
    features: list[Tensor] = field(default_factory=list)
    users: int = 0

    @property
    def seen(self) -> int:
        """Tiles that have been through the tower."""
        return sum(len(part) for part in self.features)


class Pictures:
    """Pictures in use, and others up to ``limit`` bytes of visual tokens, those unused for longest forgotten first.

    ``tower`` stands for the model's: (N, 3, S, S) to (N, side^2, C).
    """

    def __init__(self, model: AssistantModel, limit: int, tower: Callable[[Tensor], Tensor] | None = None) -> None:
        self.model, self.limit, self.tower = model, limit, tower or model.tower
        self.held = self.hits = self.misses = 0
        self._keys: OrderedDict[Digest, int] = OrderedDict()
        self._next = -1
        self._pictures: OrderedDict[Digest, Picture] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pictures)

    def take(self, space: str, prompt: Features, names: Iterable[bytes]) -> list[Picture]:
        """The pictures of a request, in use until `release`. Those that are known share what is known of them."""
        taken, first = [], 0
        for name, placed in zip(names, prompt.layouts, strict=True):
            digest, tiles = (space, name), prompt.tiles[first : first + placed.views]
            first += placed.views
            picture = self._pictures.get(digest)
            self.hits, self.misses = self.hits + (picture is not None), self.misses + (picture is None)
            if picture is None:
                picture = self._pictures[digest] = Picture(digest, self._key(digest, placed.tokens), placed, tiles)
            picture.users += 1
            taken.append(picture)
        return taken

    def release(self, pictures: Iterable[Picture]) -> None:
        """A request is through with its pictures."""
        for picture in pictures:
            picture.users -= 1
            self._pictures.move_to_end(picture.digest)
            if not picture.users and picture.tokens is None:
                del self._pictures[picture.digest]
        self._forget(self.limit)

    def look(self, pictures: Iterable[Picture], views: int) -> None:
        """Up to ``views`` tiles of pictures without tokens go through the tower, in one pass."""
        turns: list[tuple[Picture, Tensor]] = []
        for picture in dict.fromkeys(pictures):
            if picture.tiles is not None and views > 0:
                turns.append((picture, picture.tiles[picture.seen : picture.seen + views]))
                views -= len(turns[-1][1])
        if not turns:
            return
        newline = self.model.newline
        tiles = torch.cat([part for _, part in turns]).to(newline.device, newline.dtype)
        features = self.tower(tiles).split([len(part) for _, part in turns])
        for (picture, _), found in zip(turns, features, strict=True):
            self._saw(picture, found)
        self._forget(self.limit)

    def _saw(self, picture: Picture, features: Tensor) -> None:
        if picture.seen + len(features) < picture.layout.views:
            picture.features.append(features.clone())  # a view would keep all of the pass's
            return
        tokens = self.model.visual(torch.cat([*picture.features, features]), [picture.layout])
        picture.tokens, picture.tiles, picture.features = tokens, None, []
        self.held += tokens.nbytes

    def clear(self) -> None:
        """Forget all pictures that aren't in use."""
        self._forget(0)

    def _forget(self, limit: int) -> None:
        for digest in list(self._pictures):
            if self.held <= limit:
                return
            picture = self._pictures[digest]
            if not picture.users and picture.tokens is not None:
                self.held -= picture.tokens.nbytes
                del self._pictures[digest]

    def _key(self, digest: Digest, tokens: int) -> int:
        """The first of a picture's keys: numbers below 0 that belong to it for good."""
        if digest not in self._keys:
            self._keys[digest] = self._next
            self._next -= tokens
        self._keys.move_to_end(digest)
        if len(self._keys) > NAMES:
            self._keys.popitem(last=False)
        return self._keys[digest]
