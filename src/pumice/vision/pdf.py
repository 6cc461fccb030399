"""Pages of a PDF as pictures: their sizes are known at once, their pixels when they are asked for.

    PDF ──open_pdf(pages)──> [Media(kind="page", size in points)] ──page_size(policy)──> (w, h) ──render_page──> PIL RGB

A page has no pixels of its own. It is rendered to the size that the layout's largest canvas holds, so that the text is
as sharp as the model can see it and nothing is resized twice. PDFium works in a process of its own (`pdf_worker`):
a hostile file can make it hang or crash, and here that is a PumiceError of one line.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pumice.types import Media, PumiceError
from pumice.vision import pdf_worker
from pumice.vision.media import Limits, check_file

if TYPE_CHECKING:
    from pumice.vision.layout import Policy

POINTS_PER_INCH = 72
MAX_DPI = 300  # scanners' usual resolution: a stamp isn't enlarged to fill the canvas
MAX_SIDE = 14_400  # points: the largest page that PDF 1.7 allows (200 inches), in its annex C
MAX_PIXELS = 32_000_000


def page_size(points: tuple[int, int], policy: Policy) -> tuple[int, int]:
    """(width, height) in pixels at which a page of so many points is rendered.

    It is the largest that one of the policy's canvases holds; a policy that squashes or crops gets the shorter side at
    the tile's. At most `MAX_DPI` and `MAX_PIXELS`.
    """
    w, h = points
    S = policy.tile
    if policy.mode in ("square", "crop"):
        scale = S / min(w, h)
    else:
        grids = policy.grids if policy.grid_order == "wh" else tuple((b, a) for a, b in policy.grids)
        scale = max(min(cols * S / w, rows * S / h) for cols, rows in grids or ((1, 1),))
    scale = min(scale, MAX_DPI / POINTS_PER_INCH, math.sqrt(MAX_PIXELS / (w * h)))
    return max(1, round(w * scale)), max(1, round(h * scale))


class PageError(PumiceError):
    """A page that can't be opened, though its PDF can; ``page`` counts from 0."""

    def __init__(self, page: int, text: str) -> None:
        super().__init__(text)
        self.page = page


def open_pdf(name: str, source: str | bytes, pages: tuple[int, int] | None, limits: Limits) -> list[Media]:
    """Media of the pages `pages` (first and last, counted from 1) or of all, each with its size in points.

    Raises PumiceError for a PDF that is damaged, needs a password or has no pages, for pages that it doesn't have or
    that are larger than a PDF's may be, and for more of them than `limits` allow.
    """
    opened: list[Media] = []
    for page in open_pages(name, source, pages, limits):
        if isinstance(page, PageError):
            raise page
        opened.append(page)
    return opened


def open_pages(
    name: str, source: str | bytes, pages: tuple[int, int] | None, limits: Limits
) -> list[Media | PageError]:
    """As `open_pdf`, but that a page which is damaged or too large fails alone, in its place."""
    sizes = _ask(name, source, limits, "sizes")[0]["sizes"]
    first, last = pages or (1, len(sizes))
    if last > len(sizes):
        raise PumiceError(f"{name}: no page {last}; it has {len(sizes)}")
    if last - first >= limits.max_pages:
        raise PumiceError(
            f"{name}: {last - first + 1} pages; at most {limits.max_pages} are read at once: choose some, such as "
            f"{name}#{first}-{first + limits.max_pages - 1}"
        )
    return [_page(name, source, number, sizes) for number in range(first, last + 1)]


def _page(name: str, source: str | bytes, number: int, sizes: list[tuple[float, float] | None]) -> Media | PageError:
    name, size = f"{name} page {number} of {len(sizes)}", sizes[number - 1]
    if size is None:
        return PageError(number - 1, f"{name}: damaged; expected a page that can be read")
    w, h = size
    if not (0.5 < w <= MAX_SIDE and 0.5 < h <= MAX_SIDE):
        return PageError(number - 1, f"{name}: {w:g}x{h:g} points; expected 1 to {MAX_SIDE:,} a side")
    return Media(reference=source, size=(round(w), round(h)), kind="page", name=name, page=number - 1)


def render_page(media: Media, size: tuple[int, int], limits: Limits | None = None) -> Image.Image:
    """A page's pixels: mode RGB, of (width, height) `size`, on white, with annotations and filled-in forms.

    Raises PumiceError when the page is damaged, or takes more time or memory than it may.
    """
    w, h = size
    answer, pixels = _ask(media.name, media.reference, limits or Limits(), "render", str(media.page), str(w), str(h))
    rows = np.frombuffer(pixels, np.uint8).reshape(h, answer["stride"])
    return Image.fromarray(rows[:, : 3 * w].reshape(h, w, 3))


def _ask(name: str, source: str | bytes, limits: Limits, task: str, *numbers: str) -> tuple[dict[str, Any], bytes]:
    """(answer, pixels) of a worker process."""
    held = isinstance(source, bytes)
    if not held:
        check_file(source, name, limits.max_bytes)
    path = "-" if held else str(Path(source).absolute())
    # -P: the folder of the script, with its modules' names, doesn't become one of Python's own
    command = [sys.executable, "-P", pdf_worker.__file__, task, path, *numbers]
    try:
        done = subprocess.run(
            command, input=source if held else b"", capture_output=True, timeout=limits.patience, check=False
        )
    except subprocess.TimeoutExpired:
        raise PumiceError(f"{name}: reading it takes more than {limits.patience:g} seconds; it is given up") from None
    line, _, pixels = done.stdout.partition(b"\n")
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        reason = last[0] if last else f"exit code {done.returncode}"
        raise PumiceError(f"{name}: PDFium failed ({reason[:200]}); the file is damaged or needs too much memory")
    answer = json.loads(line)
    if "error" in answer:
        raise PumiceError(f"{name}: {answer['error']}; expected a PDF that can be read")
    return answer, pixels
