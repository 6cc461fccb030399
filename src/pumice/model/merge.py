"""Views of one picture to its sequence of visual tokens, as its Layout says.

(views, P^2, H) ──> [overview P^2] + [map un-tiled, un-padded, scaled down, a newline a row] ──> (tokens, H)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pumice.types import Layout, PumiceError
from pumice.vision.layout import has_end


def merge_views(views: Tensor, layout: Layout, newline: Tensor | None) -> Tensor:
    """Visual tokens (layout.tokens, H) of one picture from its projected views (layout.views, P^2, H).

    ``newline`` (H,) is the learned row separator; only layouts without one may pass None.

    Raises:
        PumiceError: the number of views or of tokens is not the layout's, both numbers given.
    """
    if views.shape[0] != layout.views:
        raise PumiceError(
            f"a {layout.size[0]}x{layout.size[1]} picture has {layout.views} views, found {views.shape[0]}"
        )
    parts = [views[0]] if layout.overview else []
    tiles = views[int(layout.overview) :]
    if layout.overview or layout.newline or layout.cols * layout.rows > 1 or layout.map != (layout.side, layout.side):
        parts.append(_map(tiles, layout, newline))
    else:
        parts.append(tiles[0])
    if has_end(layout):
        parts.append(_need(newline)[None])
    tokens = torch.cat(parts)
    if tokens.shape[0] != layout.tokens:
        raise PumiceError(
            f"a {layout.size[0]}x{layout.size[1]} picture has {layout.tokens} visual tokens, merged {tokens.shape[0]}"
        )
    return tokens


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
    if layout.newline:
        ends = _need(newline).to(kept.dtype).expand(kept.shape[0], 1, width)
        kept = torch.cat([kept, ends], dim=1)
    return kept.reshape(-1, width)


def _need(newline: Tensor | None) -> Tensor:
    if newline is None:
        raise PumiceError("this layout has newline tokens, but the model has no newline embedding")
    return newline
