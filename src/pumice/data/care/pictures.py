"""What a picture looks like in 320 bits, the same after it was scaled, compressed again or brightened.

Media ──decode small, grey 64 x 64──> DCT ──8 x 8 lowest──> coarse hash (64 bits), looked up among millions
                                          └──16 x 16 lowest──> fine hash (256 bits), compared where the coarse ones meet

The coarse hash is pHash's (Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010): signs of
the lowest frequencies but the constant ones, against their median. Pages of text are alike in so few frequencies, so
that the fine hash decides.
"""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from pumice.types import Media
from pumice.vision.media import decode
from pumice.vision.pdf import render_page
from pumice.vision.video import read_frames

SIDE = 64
COARSE, FINE = 8, 16
NEAR = (6, 40)
"""Most bits by which coarse and fine hash of the same picture differ: see `benchmarks/data/near_duplicates.py`."""
FRAMES = (0.1, 0.5, 0.9)
"""Where in a video the frames are taken that stand for it."""


NUMBERS = 1 + FINE**2 // 64
"""Numbers of 64 bits that stand for a picture: the coarse hash, and the fine one."""


def prints(media: Media) -> list[list[int]]:
    """Hashes (NUMBERS,) of a picture or a page, or of three frames of a video.

    Raises:
        PumiceError: it can't be decoded.
    """
    if media.kind == "video":
        places = sorted({min(media.frames - 1, int(at * media.frames)) for at in FRAMES})
        return [picture_print(frame) for frame in read_frames(media, places)]
    if media.kind == "page":
        w, h = (max(1, round(side * 8 * SIDE / max(media.size))) for side in media.size)
        return [picture_print(render_page(media, (w, h)))]
    return [picture_print(_small(media))]


def picture_print(image: Image.Image) -> list[int]:
    """Hashes (NUMBERS,) of a decoded picture."""
    grey = image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0)
    waves = _waves()
    lowest = waves @ np.asarray(grey, dtype=np.float32) @ waves.T
    return [*_bits(lowest[:COARSE, :COARSE]), *_bits(lowest)]


def _bits(lowest: np.ndarray) -> list[int]:
    """Signs against the median as 64-bit numbers."""
    signs = np.packbits((lowest > np.median(lowest)).ravel())
    return [int(word) for word in signs.view(">u8")]


@cache
def _waves() -> np.ndarray:
    """Rows 1 to FINE of the DCT-II of SIDE points, (FINE, SIDE)."""
    rows, places = np.arange(1, FINE + 1)[:, None], np.arange(SIDE)[None]
    return np.cos(np.pi * rows * (2 * places + 1) / (2 * SIDE)).astype(np.float32)


def _small(media: Media) -> Image.Image:
    """The picture, of a JPEG a smaller one, which its decoder makes in a fraction of the time."""
    reference = media.reference
    if not isinstance(reference, Image.Image):
        try:
            source = io.BytesIO(reference) if isinstance(reference, bytes) else Path(reference)
            with Image.open(source, formats=("JPEG",)) as image:
                image.draft("RGB", (4 * SIDE, 4 * SIDE))
                return ImageOps.exif_transpose(image)
        except Exception:  # not a JPEG, or a damaged one: `decode` says which
            pass
    return decode(media)
