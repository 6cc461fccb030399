"""From the size of a picture to its tokens, in integers: no pixel is opened, torch isn't imported.

    (w, h) ──best grid──> (cols, rows) ──fit──> resized, offset ──un-pad──> keep ──scale down──> map ──> tokens

Pre-processing, feature merging, token counting, planning an epoch and drawing the tiling all read the same Layout.
Formulas: LLaVA-NeXT `mm_utils.py` and `llava_arch.py`; transformers' `image_processing_utils.py` where a named option
says so.
"""

from __future__ import annotations

import math
from dataclasses import MISSING, asdict, dataclass, fields
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from pumice.types import Layout, PumiceError

if TYPE_CHECKING:
    from collections.abc import Mapping

Box = tuple[float, float, float, float]
"""(x0, y0, x1, y1) in pixels, x to the right and y down."""

CHOICES = {
    "mode": ("square", "crop", "pad", "anyres"),
    "overview": ("always", "multi", "never"),
    "rounding": ("truncate", "round7", "cover"),
    "grid_order": ("wh", "hw"),
}


@dataclass(frozen=True)
class Policy:
    """How pictures of any size become tiles and tokens. Plain data: it goes through TOML and JSON unchanged.

    mode        square: one view, squashed · crop: one view, shortest side to S and the centre cut out (CLIP's own) ·
                pad: one view on a square of `fill` · anyres: the best of `grids`, cut into tiles
    tile, side  S pixels and P tokens a side of one view, P counted after the connector
    grids       (cols, rows) of tiles to choose from; where two are equally good the first wins
    overview    one more view with the whole picture squashed: always, multi (only beside several tiles), never
    newline     a token ends every row of an anyres map; with one view only, one token ends the picture
    unpad       drop the rows or columns of the map that hold only canvas
    max_tiles   N of `anyres_max_N`: maps of more than 1.21 * N * P * P tokens are scaled down to N * P * P; 0 is off
    fill        colour (r, g, b) of the canvas
    rounding    size of the picture on the map: truncate is int(x), the originals' · round7 is int(round(x, 7)),
                transformers' · cover is the ceiling, which never drops a token that holds picture (the other two drop
                the whole map of a picture thinner than one token where P * rows is even)
    grid_order  wh reads `grids` as (cols, rows), as the originals do; hw reads the same numbers as (rows, cols), as
                transformers does. It matters only where two grids are equally good.

    Raises PumiceError when a value has the wrong type or range.
    """

    mode: str
    tile: int
    side: int
    grids: tuple[tuple[int, int], ...] = ()
    overview: str = "always"
    newline: bool = False
    unpad: bool = False
    max_tiles: int = 0
    fill: tuple[int, int, int] = (0, 0, 0)
    rounding: str = "truncate"
    grid_order: str = "wh"

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise PumiceError(f"policy: {name} = {value!r}; expected one of {', '.join(choices)}")
        for name, least in (("tile", 1), ("side", 1), ("max_tiles", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise PumiceError(f"policy: {name} = {value!r}; expected an integer of at least {least}")
        for name in ("newline", "unpad"):
            if type(getattr(self, name)) is not bool:
                raise PumiceError(f"policy: {name} = {getattr(self, name)!r}; expected true or false")
        if type(self.grids) is not tuple or not all(_integers(grid, 2, 1, 1 << 16) for grid in self.grids):
            raise PumiceError(f"policy: grids = {self.grids!r}; expected pairs (cols, rows) of at least 1")
        if not _integers(self.fill, 3, 0, 255):
            raise PumiceError(f"policy: fill = {self.fill!r}; expected (r, g, b) from 0 to 255")
        if (self.mode == "anyres") != bool(self.grids):
            raise PumiceError(f"policy: mode {self.mode!r} with {len(self.grids)} grids; only anyres has them")
        if self.max_tiles and not self.unpad:
            raise PumiceError("policy: max_tiles needs unpad = true (the originals scale only an un-padded map)")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Policy:
        """Policy from parsed TOML or JSON (lists for tuples). Raises PumiceError naming an unknown or missing key."""
        return cls(**checked_keys(cls, data, "policy"))

    def to_dict(self) -> dict[str, Any]:
        """Plain dict that `from_dict` and any TOML or JSON writer accept; every key is there."""
        return asdict(self)


def checked_keys(kind: Any, data: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Arguments of the dataclass `kind` from a parsed table, lists as tuples.

    Raises PumiceError, beginning with `name`, for a key that `kind` doesn't have or a missing one without a default.
    """
    known = {field.name: field.default is MISSING for field in fields(kind)}
    for key in data:
        if key not in known:
            near = get_close_matches(key, known, 1, 0.0)[0]
            raise PumiceError(f"{name}: unknown key {key!r}; the nearest is {near!r} (known: {', '.join(known)})")
    missing = [key for key, needed in known.items() if needed and key not in data]
    if missing:
        raise PumiceError(f"{name}: missing {', '.join(missing)}")
    return {key: _tuples(value) for key, value in data.items()}


def _tuples(value: Any) -> Any:
    return tuple(_tuples(part) for part in value) if isinstance(value, list | tuple) else value


def _integers(value: Any, length: int, low: int, high: int) -> bool:
    right_size = isinstance(value, tuple) and len(value) == length
    return right_size and all(type(part) is int and low <= part <= high for part in value)


def layout(size: tuple[int, int], policy: Policy) -> Layout:
    """Tiles and tokens of a picture of (width, height) pixels. Raises PumiceError for a side below 1.

    `tokens` = overview * P * P + h * (w + newline) + ends with (h, w) = map. A policy with `newline` ends one view with
    one token (577 for NeXT, 730 for OneVision); the rows of its map carry none (`Layout.newline` is False).
    """
    if min(size) < 1:
        raise PumiceError(f"a picture of {size[0]}x{size[1]} pixels; expected at least 1x1")
    return _anyres(size, policy) if policy.mode == "anyres" else _single(size, policy)


def _single(size: tuple[int, int], policy: Policy) -> Layout:
    """One view. The pasted picture sticks out of the canvas (offset below 0) where the mode crops it."""
    (w, h), S, P = size, policy.tile, policy.side
    resized, offset = (S, S), (0, 0)
    if policy.mode == "crop":
        short = min(w, h)
        resized = (int(S * w / short), int(S * h / short))
        offset = (-((resized[0] - S) // 2), -((resized[1] - S) // 2))
    elif policy.mode == "pad":
        long = max(w, h)
        resized = (max(1, round(w * S / long)), max(1, round(h * S / long)))
        offset = (min(round((long - w) // 2 * S / long), S - 1), min(round((long - h) // 2 * S / long), S - 1))
    return Layout(
        size=size, tile=S, side=P, cols=1, rows=1, resized=resized, offset=offset, overview=False,
        keep=(0, P, 0, P), map=(P, P), newline=False, tokens=P * P + policy.newline, ends=int(policy.newline),
    )  # fmt: skip


def _anyres(size: tuple[int, int], policy: Policy) -> Layout:
    P = policy.side
    cols, rows = best_grid(size, policy)
    resized, offset = _fit(size, (cols * policy.tile, rows * policy.tile))
    keep = _unpad(size, (rows * P, cols * P), policy.rounding) if policy.unpad else (0, rows * P, 0, cols * P)
    h, w = keep[1] - keep[0], keep[3] - keep[2]
    if policy.max_tiles:
        t = math.sqrt(h * w / (policy.max_tiles * P * P))
        if t > 1.1:
            h, w = int(h // t), int(w // t)
    overview = policy.overview == "always" or (policy.overview == "multi" and cols * rows > 1)
    return Layout(
        size=size, tile=policy.tile, side=P, cols=cols, rows=rows, resized=resized, offset=offset, overview=overview,
        keep=keep, map=(h, w), newline=policy.newline, tokens=overview * P * P + h * (w + policy.newline),
    )  # fmt: skip


def best_grid(size: tuple[int, int], policy: Policy) -> tuple[int, int]:
    """(cols, rows) that keep most of the picture's own pixels, then waste least canvas, then come first."""
    W, H = size
    best, best_kept, best_waste = (0, 0), -1, 0
    for first, second in policy.grids:
        cols, rows = (first, second) if policy.grid_order == "wh" else (second, first)
        w, h = cols * policy.tile, rows * policy.tile
        scale = min(w / W, h / H)
        # Truncation here, ceiling in _fit, truncation in _unpad: the originals' choices, and results hang on them.
        kept = min(int(W * scale) * int(H * scale), W * H)
        waste = w * h - kept
        if kept > best_kept or (kept == best_kept and waste < best_waste):
            best, best_kept, best_waste = (cols, rows), kept, waste
    return best


def _fit(size: tuple[int, int], canvas: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """(resized, offset): the largest picture of the same shape, centred on the canvas, all (width, height) pixels."""
    (W, H), (tw, th) = size, canvas
    sw, sh = tw / W, th / H
    w, h = (tw, min(math.ceil(H * sw), th)) if sw < sh else (min(math.ceil(W * sh), tw), th)
    return (w, h), ((tw - w) // 2, (th - h) // 2)


_ROUNDINGS = {"truncate": int, "round7": lambda x: int(round(x, 7)), "cover": lambda x: math.ceil(round(x, 7))}


def _unpad(size: tuple[int, int], full: tuple[int, int], rounding: str) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of the full (rows, cols) token map that hold picture; may be one token wider."""
    (W, H), (ch, cw) = size, full
    whole = _ROUNDINGS[rounding]
    wider_than_canvas = cw / ch < W / H
    if wider_than_canvas:
        p = (ch - min(whole(H * (cw / W)), ch)) // 2
        return p, ch - p, 0, cw
    p = (cw - min(whole(W * (ch / H)), cw)) // 2
    return 0, ch, p, cw - p


def glyph_views(layout: Layout, box: Box) -> list[tuple[int, Box]]:
    """Where a box in picture pixels (after EXIF rotation) lands: [(view index, box in that view's S x S pixels)].

    The tile that holds the box's centre comes first, then the overview (view 0) if there is one. Boxes keep their
    whole extent, so that a glyph cut by the edge of a tile may reach below 0 or beyond S. Empty where the centre is
    outside of every view. It gives the supervision of reading per patch.
    """
    x0, y0, x1, y1 = box
    (W, H), S = layout.size, layout.tile
    sx, sy = layout.resized[0] / W, layout.resized[1] / H
    left, top = layout.offset
    on_canvas = (x0 * sx + left, y0 * sy + top, x1 * sx + left, y1 * sy + top)
    col = math.floor((on_canvas[0] + on_canvas[2]) / 2 / S)
    row = math.floor((on_canvas[1] + on_canvas[3]) / 2 / S)
    if not (0 <= (x0 + x1) / 2 < W and 0 <= (y0 + y1) / 2 < H and 0 <= col < layout.cols and 0 <= row < layout.rows):
        return []
    x, y = col * S, row * S
    index = int(layout.overview) + row * layout.cols + col
    found = [(index, (on_canvas[0] - x, on_canvas[1] - y, on_canvas[2] - x, on_canvas[3] - y))]
    if layout.overview:
        found.append((0, (x0 * S / W, y0 * S / H, x1 * S / W, y1 * S / H)))
    return found


_NEXT_GRIDS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
_CLIP_MEAN = (122, 116, 104)
_SIGLIP_MEAN = (127, 127, 127)

LLAVA_15 = Policy("pad", tile=336, side=24, fill=_CLIP_MEAN)
"""LLaVA-1.5: 576 tokens for every picture."""

NEXT_CLIP = Policy("anyres", tile=336, side=24, grids=_NEXT_GRIDS, newline=True, unpad=True)
"""LLaVA-NeXT (1.6) on CLIP-L/14-336: 1176 to 2928 tokens for usual shapes."""

NEXT_SIGLIP = Policy("anyres", tile=384, side=27, grids=_NEXT_GRIDS, newline=True, unpad=True)
"""LLaVA-NeXT on SigLIP-384, and OneVision's stage 1.5: at most 3699 tokens."""

_OV_GRIDS = tuple((cols, rows) for cols in range(1, 7) for rows in range(1, 7))
ONEVISION = Policy("anyres", tile=384, side=27, grids=_OV_GRIDS, newline=True, unpad=True, max_tiles=9)
"""LLaVA-OneVision, a single picture (`anyres_max_9`): at most 8765 tokens."""

ONEVISION_MULTI = Policy("pad", tile=384, side=27, newline=True, fill=_SIGLIP_MEAN)
"""LLaVA-OneVision, each of several pictures: 730 tokens."""

NEXT_MULTI = Policy("pad", tile=336, side=24, newline=True, fill=_CLIP_MEAN)
"""LLaVA-NeXT as it was trained, each of several pictures: 577 tokens. transformers' LLaVA-NeXT tiles each of them."""

_ELVA_GRIDS = ((1, 1), (1, 2), (2, 1), (2, 2), (2, 3), (3, 2), (3, 3), (3, 4), (4, 3))
ELVA = Policy("anyres", tile=224, side=7, grids=_ELVA_GRIDS, fill=_CLIP_MEAN)
"""ELVA: 98 to 637 tokens; canvas included, no newline."""

POCKET = Policy(
    "anyres", tile=224, side=16, grids=((1, 1), (1, 2), (2, 1), (2, 2)), overview="multi", newline=True, unpad=True,
    fill=(255, 255, 255), rounding="cover",
)  # fmt: skip
"""The embedded model: 272 tokens for a 1x1 square, at most 1,312. `cover` keeps a thin line of text on the map."""

PRESETS = {
    "LLAVA_15": LLAVA_15,
    "NEXT_CLIP": NEXT_CLIP,
    "NEXT_SIGLIP": NEXT_SIGLIP,
    "ONEVISION": ONEVISION,
    "ONEVISION_MULTI": ONEVISION_MULTI,
    "NEXT_MULTI": NEXT_MULTI,
    "ELVA": ELVA,
    "POCKET": POCKET,
}
"""Policies by name."""
