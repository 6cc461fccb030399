"""The data types that a sample meets, in order, on its way to the model.

    files, requests ──> Sample ──encode──> Features ──pack──> Batch ──> model

Glossary of shape letters, used in every docstring:

    T  tokens of a sequence or of a whole packed batch
    D  documents packed in a batch
    N  tiles (views) of one or more pictures; a video has one a frame
    F  frames sampled from a video
    S  side of a tile in pixels
    P  side of a tile's feature map after the connector, in tokens
    Q  side of a frame's feature map after pooling, in tokens
    C  channels of the tower       H  hidden size of the language model
    V  vocabulary                  K  supervised tokens
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Role = Literal["system", "user", "assistant"]
MediaKind = Literal["image", "video", "page"]
PoolMode = Literal["bilinear", "average", "max"]

IMAGE = -200
"""Token id that stands for one visual token until the model fills it in (as in LLaVA)."""

IGNORE = -100
"""Label of a token without loss."""

MOST_LAYERS = 1_000
"""Blocks that a config may ask for: they are counted, named and built before weights are looked at."""


class PumiceError(Exception):
    """An error that is the user's to mend: one line that says what, where, and what to do."""


class Glyph(NamedTuple):
    """One drawn character and its ink box in picture pixels (x0, y0, x1, y1)."""

    char: str
    x0: float
    y0: float
    x1: float
    y1: float


class Named(NamedTuple):
    """A thing that a drawn picture shows: words for it, best first ("apple", "red"), and its box in picture pixels."""

    words: tuple[str, ...]
    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(frozen=True)
class Media:
    """A picture, a video or one page of a PDF that has not been decoded yet.

    ``reference`` is a path, ``bytes`` of an encoded file, or a PIL image. ``size`` is (width, height) in pixels after
    EXIF rotation (of a video, after its display rotation); of a page in points of 1/72 inch, since its pixels depend on
    the layout. A video has ``frames`` frames at ``fps`` a second on average. ``page`` counts from 0. ``glyphs`` are the
    characters drawn on a rendered page and ``things`` what else it shows, when known.
    """

    reference: Any
    size: tuple[int, int]
    kind: MediaKind = "image"
    frames: int = 1
    name: str = ""
    glyphs: tuple[Glyph, ...] = field(default=(), repr=False)
    things: tuple[Named, ...] = ()
    fps: float = 0.0
    page: int = 0


@dataclass(frozen=True)
class Turn:
    """What one side says: texts and media in reading order."""

    role: Role
    content: tuple[str | Media, ...]


@dataclass(frozen=True)
class Sample:
    """A conversation about some media, from any file format or request.

    ``reading`` is the text in its picture, where known.
    """

    turns: tuple[Turn, ...]
    id: str = ""
    source: str = ""
    task: str = ""
    reading: str = ""

    @property
    def media(self) -> list[Media]:
        """All media of the conversation in reading order."""
        return [part for turn in self.turns for part in turn.content if isinstance(part, Media)]


@dataclass(frozen=True)
class Layout:
    """How one picture or video becomes tokens: integers that follow from its width, height and frames alone.

    The picture is resized to ``resized``, pasted at ``offset`` on a canvas of ``cols`` x ``rows`` tiles of
    ``tile`` pixels, and cut row by row. With ``overview`` one more view, the whole picture squashed to one
    tile, comes first. After the connector a tile is ``side`` x ``side`` tokens. ``keep`` (top, bottom, left,
    right) is the part of the (rows*side, cols*side) token map that holds the picture; ``map`` (h, w) is the size
    after keeping it and scaling it down; with ``newline`` every row of the map ends in one more token. ``ends`` more
    newline tokens follow, after every (views / ends) views: 1 ends the whole.

    A video has ``frames`` sampled frames (a picture 0), each one view of one tile. Its ``map`` is that of one frame
    pooled by ``stride`` in the mode ``pool``. Every ``slow_every``-th frame has it; those between are pooled by
    2 * ``stride``.
    """

    size: tuple[int, int]
    tile: int
    side: int
    cols: int
    rows: int
    resized: tuple[int, int]
    offset: tuple[int, int]
    overview: bool
    keep: tuple[int, int, int, int]
    map: tuple[int, int]
    newline: bool
    tokens: int
    ends: int = 0
    frames: int = 0
    pool: PoolMode = "bilinear"
    stride: int = 1
    slow_every: int = 1

    @property
    def views(self) -> int:
        """Number of tiles that go through the tower, the overview included."""
        return self.frames or self.cols * self.rows + int(self.overview)


@dataclass(frozen=True)
class Features:
    """One encoded sample. ids (T,) int64 with IMAGE at visual tokens, labels (T,) int64 with IGNORE where
    there is no loss (labels[t] is the token at t, not shifted), tiles (N, 3, S, S) float32, one Layout a picture or
    video.
    """

    ids: Tensor
    labels: Tensor
    tiles: Tensor
    layouts: tuple[Layout, ...]
    id: str = ""
    glyphs: tuple[tuple[Glyph, ...], ...] = ()
    things: tuple[tuple[Named, ...], ...] = ()
    source: str = ""

    def __len__(self) -> int:
        return self.ids.shape[0]


@dataclass(frozen=True)
class Targets:
    """What a batch's rendered pages teach beside answers: ``slots`` (N', patches, 3) int64, the characters in each
    patch of the ``views`` (N',); ``tokens`` (K',), LM tokens of what is drawn under the visual tokens ``places`` (K',).
    """

    slots: Tensor
    views: Tensor
    places: Tensor
    tokens: Tensor

    def to(self, device: torch.device) -> Targets:
        """The targets on ``device``."""
        return Targets(*(getattr(self, f).to(device) for f in ("slots", "views", "places", "tokens")))


@dataclass(frozen=True)
class Batch:
    """Documents packed into one flat stream without padding.

    ids, labels, positions (T,) int64; starts (D+1,) int32 offsets of the documents, starts[D] == T;
    tiles (N, 3, S, S) float32; layouts in reading order over all documents; sources name where each document comes
    from. ``targets`` stand in the place of glyphs and things once they are made.
    """

    ids: Tensor
    labels: Tensor
    positions: Tensor
    starts: Tensor
    tiles: Tensor
    layouts: tuple[Layout, ...]
    glyphs: tuple[tuple[Glyph, ...], ...] = ()
    things: tuple[tuple[Named, ...], ...] = ()
    sources: tuple[str, ...] = ()
    targets: Targets | None = None

    def to(self, device: torch.device) -> Batch:
        """The batch with its tensors on ``device``."""
        moved = {f: getattr(self, f).to(device) for f in ("ids", "labels", "positions", "starts", "tiles")}
        return replace(self, **moved, targets=self.targets and self.targets.to(device))

    @property
    def supervised(self) -> int:
        """Tokens that carry loss."""
        return int((self.labels != IGNORE).sum())

    @property
    def asked(self) -> list[int]:
        """Numbers of the documents that have tokens with loss."""
        import torch  # what reads recipes only needn't wait for it

        places = (self.labels != IGNORE).nonzero().squeeze(1).to(self.starts.dtype)
        return (torch.searchsorted(self.starts, places, right=True) - 1).unique().tolist()
