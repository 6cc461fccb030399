"""What a reference holds, by its first bytes and never by its name: a picture, a PDF or a video.

    path | path#2 | path#3-5 | bytes | PIL image | "-" | data: URI ──open_media──> [Media], one a picture, page or video

A PDF becomes its pages, so that one reference may give several Media. An animated GIF or WebP is its first frame.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pumice.types import Media, MediaKind, PumiceError
from pumice.vision.media import SIGNATURES, Limits, head_of, locate, open_located
from pumice.vision.pdf import PageError, open_pages, open_pdf
from pumice.vision.video import container, open_video

if TYPE_CHECKING:
    from PIL import Image

NAMES: dict[MediaKind, str] = {"image": "a picture", "page": "a PDF", "video": "a video"}


def open_media(reference: Any, limits: Limits | None = None) -> list[Media]:
    """Media of whatever a reference holds; for a PDF its pages, or those that `report.pdf#2` or `#3-5` names.

    No picture and no page is decoded, of a video its first frame. Media that are given come back as they are.
    Raises PumiceError for anything that isn't readable within the limits, for pages that don't exist, and for URLs.
    Any other text is taken for a path: a server must pass the bytes from `read_data_uri` and never a client's text.
    """
    return _open(reference, limits or Limits(), open_pdf)


def open_each(reference: Any, limits: Limits | None = None) -> list[Media | PageError]:
    """As `open_media`, but that a damaged page of a PDF fails alone, in its place."""
    return _open(reference, limits or Limits(), open_pages)


def _open(reference: Any, limits: Limits, open_document: Callable[..., list[Any]]) -> list[Any]:
    if isinstance(reference, Media):
        return [reference]
    reference, pages = _split_pages(reference)
    name, source = locate(reference, limits)
    kind = kind_of(name, source)
    if pages and kind != "page":
        raise PumiceError(f"{name} is {NAMES[kind]}; only of a PDF can pages be chosen")
    if kind == "page":
        return open_document(name, source, pages, limits)
    return [open_video(name, source, limits) if kind == "video" else open_located(name, source, limits)]


def kind_of(name: str, source: str | bytes | Image.Image) -> MediaKind:
    """Kind of a file (path), of its bytes or of a PIL image; what is neither a PDF nor a video counts as a picture.

    Raises PumiceError when there is nothing to read.
    """
    if not isinstance(source, str | bytes):
        return "image"
    head = head_of(name, source)
    if container(head) is not None:
        return "video"
    if any(head.startswith(start) for start in SIGNATURES):
        return "image"
    return "page" if b"%PDF-" in head else "image"  # readers allow some bytes before it


def _split_pages(reference: Any) -> tuple[Any, tuple[int, int] | None]:
    """(path, (first, last)) of `path#first-last` or `path#page`, unless there is a file of that very name."""
    if not isinstance(reference, str | Path) or str(reference).startswith("data:"):
        return reference, None
    found = re.fullmatch(r"(.+)#(\d{1,9})(?:-(\d{1,9}))?", str(reference), re.DOTALL)
    if not found or os.path.exists(reference):  # noqa: PTH110 (Path.exists raises for a name that is too long)
        return reference, None
    first, last = int(found[2]), int(found[3] or found[2])
    if not 1 <= first <= last:
        raise PumiceError(f"{reference}: no such pages; expected a range such as #2 or #3-5, counted from 1")
    return found[1], (first, last)
