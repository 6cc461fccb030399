"""From a decoded picture, or frames of a video, to the views that go through the tower.

    PIL RGB (w, h) ──resize, paste, cut──> views, each S x S ──/255, mean, std──> (N, 3, S, S) float32
    frames ──squash or cut, one at a time──> views, each S x S ──/255, mean, std──> (F, 3, S, S) float32

Which views, where and how large is the Layout's business; here are only pixels. Resizing is PIL's bicubic on uint8, as
in the original LLaVA code and transformers' `*ImageProcessorPil` classes, to the bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from pumice.types import Layout, PumiceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from pumice.vision.layout import Policy

BICUBIC = Image.Resampling.BICUBIC
MAX_PAD = 64_000_000  # pixels of what modes "pad" and "crop" make on the way


def views(image: Image.Image, layout: Layout, policy: Policy) -> list[Image.Image]:
    """Views of S x S pixels, RGB, `layout.views` of them: the overview first if there is one, then tiles row by row.

    Raises PumiceError when the picture isn't RGB or isn't of the layout's size.
    Source: `process_anyres_image`, `expand2square` of LLaVA-NeXT's mm_utils.py.
    """
    if image.mode != "RGB" or image.size != layout.size:
        raise PumiceError(
            f"a picture of mode {image.mode} and {image.width}x{image.height} pixels; "
            f"expected RGB and {layout.size[0]}x{layout.size[1]} as in its layout"
        )
    if policy.mode == "anyres":
        return _anyres(image, layout, policy.fill)
    if policy.mode == "pad":
        return [_pad(image, layout, policy.fill)]
    return [_crop(image, layout)]


def _anyres(image: Image.Image, layout: Layout, fill: tuple[int, int, int]) -> list[Image.Image]:
    S = layout.tile
    canvas = Image.new("RGB", (layout.cols * S, layout.rows * S), fill)
    canvas.paste(image.resize(layout.resized, BICUBIC), layout.offset)
    corners = [(col * S, row * S) for row in range(layout.rows) for col in range(layout.cols)]
    tiles = [canvas.crop((x, y, x + S, y + S)) for x, y in corners]
    return [image.resize((S, S), BICUBIC), *tiles] if layout.overview else tiles


def _pad(image: Image.Image, layout: Layout, fill: tuple[int, int, int]) -> Image.Image:
    (w, h), S = image.size, layout.tile
    long = max(w, h)
    if long * long > MAX_PAD:
        # A picture of 1 x 30,000 would ask for 2.7 GB here: resize before pasting, at the price of a sharper seam.
        square = Image.new("RGB", (S, S), fill)
        square.paste(image.resize(layout.resized, BICUBIC), layout.offset)
        return square
    square = Image.new("RGB", (long, long), fill)
    square.paste(image, ((long - w) // 2, (long - h) // 2))
    return square.resize((S, S), BICUBIC)


def _crop(image: Image.Image, layout: Layout) -> Image.Image:
    """Resize, then cut out the middle, as CLIP's own processor does.

    Of a picture so thin that the resized one would be huge, only the middle is computed: a shade different at most.
    """
    (w, h), (rw, rh), (left, top), S = image.size, layout.resized, layout.offset, layout.tile
    if rw * rh <= MAX_PAD:
        return image.resize((rw, rh), BICUBIC).crop((-left, -top, S - left, S - top))
    x, y = -left * w / rw, -top * h / rh
    # min(): float noise may put the far edge of the box beyond the picture, which PIL refuses.
    return image.resize((S, S), BICUBIC, box=(x, y, min(x + S * w / rw, w), min(y + S * h / rh, h)))


def to_tiles(image: Image.Image, layout: Layout, policy: Policy, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalised views (N, 3, S, S) float32, N = `layout.views`; mean and std per channel, for values from 0 to 1.

    Raises PumiceError as `views` does.
    """
    return _normalised(views(image, layout, policy), mean, std)


def frame_tiles(frames: Iterable[Image.Image], layout: Layout, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalised frames (F, 3, S, S) float32, F = `layout.frames`; each is made small before the next is asked for.

    Raises PumiceError when their number isn't the layout's.
    """
    small = [_crop(frame, layout) for frame in frames]
    if len(small) != layout.frames:
        raise PumiceError(f"{len(small)} frames; expected {layout.frames} as in their layout")
    return _normalised(small, mean, std)


def _normalised(views: list[Image.Image], mean: Sequence[float], std: Sequence[float]) -> Tensor:
    pixels = np.stack([np.asarray(view) for view in views])  # (N, S, S, 3) uint8
    # 256 values a channel: a table is faster than arithmetic on every pixel. The order of roundings is transformers'.
    unit = (np.arange(256) * (1 / 255)).astype(np.float32)
    out = np.empty((len(pixels), 3, *pixels.shape[1:3]), np.float32)
    for c in range(3):
        table = (unit - np.float32(mean[c])) / np.float32(std[c])
        np.take(table, pixels[..., c], out=out[:, c])
    return torch.from_numpy(out)
