"""Files to what is read of them: every page of a PDF, a picture, a video.

path ──open_media──> [Page(file, number, media, digest)], a damaged page with its error instead of a medium
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pumice.types import Media, PumiceError
from pumice.vision import kinds, pdf
from pumice.vision.media import Limits, locate

LIMITS = Limits(max_pages=100_000)
"""A document's pages are asked about one by one, so that their number doesn't matter."""


@dataclass(frozen=True)
class Page:
    """One picture, video or page of ``file``; ``number`` counts pages from 1, None where there are none. ``media`` is
    the error where it can't be read. ``digest`` is of the file's bytes.
    """

    file: str
    number: int | None
    media: Media | PumiceError
    digest: str


def open_pages(file: str) -> list[Page]:
    """Everything that is read of a file, `report.pdf#2-5` for some of its pages.

    Raises:
        PumiceError: there is no such file, or none of it can be read.
    """
    try:
        opened = kinds.open_media(file, LIMITS)
    except PumiceError:
        pages = _one_by_one(file)
        if not any(isinstance(page.media, Media) for page in pages):
            raise
        return pages
    digest = _digest(opened[0].reference)
    return [Page(file, media.page + 1 if media.kind == "page" else None, media, digest) for media in opened]


def _one_by_one(file: str) -> list[Page]:
    """The pages of a PDF that can't be opened as a whole.

    Raises:
        PumiceError: it isn't the fault of single pages.
    """
    path, chosen = kinds._split_pages(file)
    name, source = locate(path, LIMITS)
    if kinds.kind_of(name, source) != "page" or not isinstance(source, str | bytes):
        return []
    sizes = pdf._ask(name, source, LIMITS, "sizes")[0]["sizes"]
    digest, (first, last) = _digest(source), chosen or (1, len(sizes))
    pages: list[Page] = []
    for number in range(first, min(last, len(sizes), first + LIMITS.max_pages) + 1):
        try:
            media: Media | PumiceError = pdf._page(name, source, number, sizes)
        except PumiceError as error:
            media = error
        pages.append(Page(file, number, media, digest))
    return pages if last <= len(sizes) else []


def _digest(reference: str | bytes) -> str:
    if isinstance(reference, bytes):
        return hashlib.sha256(reference).hexdigest()
    with Path(reference).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
