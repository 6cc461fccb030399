"""Views of one picture or video to its sequence of visual tokens, as its Layout says.

picture  (views, P^2, H) ──> [overview P^2] + [map un-tiled, un-padded, scaled down, a newline a row] ──> (tokens, H)
video    (frames, P^2, H) ──pool──> (frames, Q^2, H) ──newlines a row, a frame or at the end──> (tokens, H)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pumice.model.connectors import pool
from pumice.types import Layout, PumiceError
from pumice.vision.frames import pooled_side


def merge_views(views: Tensor, layout: Layout, newline: Tensor | None) -> Tensor:
    """Visual tokens (layout.tokens, H) of one picture or video from its projected views (layout.views, P^2, H).

    ``newline`` (H,) is the learned row separator; only layouts without one may pass None. Frames of a model that pools
    before its connector (LLaVA-NeXT-Video) come pooled already, (layout.views, Q^2, H).

    Raises:
        PumiceError: the number of views or of tokens is not the layout's, both numbers given.
    """
    if views.shape[0] != layout.views:
        raise PumiceError(f"{_name(layout)} has {layout.views} views, found {views.shape[0]}")
    parts = _frames(views, layout, newline) if layout.frames else _picture(views, layout, newline)
    tokens = torch.cat(parts)
    if tokens.shape[0] != layout.tokens:
        raise PumiceError(f"{_name(layout)} has {layout.tokens} visual tokens, merged {tokens.shape[0]}")
    return tokens


def _name(layout: Layout) -> str:
    w, h = layout.size
    return f"a {w}x{h} video of {layout.frames} sampled frames" if layout.frames else f"a {w}x{h} picture"


def _picture(views: Tensor, layout: Layout, newline: Tensor | None) -> list[Tensor]:
    parts = [views[0]] if layout.overview else []
    parts.append(_map(views[int(layout.overview) :], layout, newline))
    if layout.ends:
        parts.append(_need(newline)[None].to(views.dtype))
    return parts


def _map(tiles: Tensor, layout: Layout, newline: Tensor | None) -> Tensor:
    """The grid of tiles (cols*rows, P^2, H) as one map in reading order, (h*w [+ h], H)."""
    side, width = layout.side, tiles.shape[-1]
    grid = tiles.view(layout.rows, layout.cols, side, side, width).permute(0, 2, 1, 3, 4)
    whole = grid.reshape(layout.rows * side, layout.cols * side, width)
    top, bottom, left, right = layout.keep
    kept = whole[top:bottom, left:right]
    if kept.shape[:2] != layout.map:
        # anyres_max_N: bilinear, no antialias, as in LLaVA-OneVision
        scaled = F.interpolate(kept.permute(2, 0, 1)[None], size=layout.map, mode="bilinear", align_corners=False)
        kept = scaled[0].permute(1, 2, 0)
    return _rows(kept, layout, newline)


def _frames(views: Tensor, layout: Layout, newline: Tensor | None) -> list[Tensor]:
    """Frames in their order; every ``slow_every``-th pooled by ``stride``, those between by twice as much."""
    whole, small = layout.side**2, layout.map[0] * layout.map[1]
    if views.shape[1] != whole and (views.shape[1] != small or layout.slow_every > 1):
        raise PumiceError(f"{_name(layout)} has {whole} tokens a frame before pooling, found {views.shape[1]}")
    slow = list(_pooled(views[:: layout.slow_every], layout, layout.stride, newline))
    fast: list[Tensor] = []
    if len(slow) < len(views):
        between = [i for i in range(len(views)) if i % layout.slow_every]
        fast = list(_pooled(views[between], layout, 2 * layout.stride, newline))
    parts = []
    for i in range(len(views)):
        parts.append((fast if i % layout.slow_every else slow).pop(0))
        if layout.ends and (i + 1) % (len(views) // layout.ends) == 0:
            parts.append(_need(newline)[None].to(views.dtype))
    return parts


def _pooled(views: Tensor, layout: Layout, stride: int, newline: Tensor | None) -> Tensor:
    """Frames (F, P^2, H), or pooled already, to (F, Q * (Q [+ 1]), H)."""
    side = pooled_side(layout.side, layout.pool, stride)
    maps = views if views.shape[1] == side**2 else pool(views, layout.pool, stride)
    return torch.stack([_rows(one.view(side, side, -1), layout, newline) for one in maps])


def _rows(grid: Tensor, layout: Layout, newline: Tensor | None) -> Tensor:
    """A map (h, w, H) row by row, with ``layout.newline`` each row's newline behind it: (h*w [+ h], H)."""
    if layout.newline:
        ends = _need(newline).to(grid.dtype).expand(grid.shape[0], 1, grid.shape[-1])
        grid = torch.cat([grid, ends], dim=1)
    return grid.reshape(-1, grid.shape[-1])


def _need(newline: Tensor | None) -> Tensor:
    if newline is None:
        raise PumiceError("this layout has newline tokens, but the model has no newline embedding")
    return newline
