"""Files to what is read of them: every page of a PDF, a picture, a video.

path ──open_media──> [Page(file, number, media, digest)]
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pumice.types import Media
from pumice.vision.kinds import open_media
from pumice.vision.media import Limits

LIMITS = Limits(max_pages=100_000)
"""A document's pages are asked about one by one, so that their number doesn't matter."""


@dataclass(frozen=True)
class Page:
    """One picture, video or page of ``file``; ``number`` counts pages from 1. ``digest`` is of the file's bytes."""

    file: str
    media: Media
    digest: str

    @property
    def number(self) -> int | None:
        return self.media.page + 1 if self.media.kind == "page" else None


def open_pages(file: str) -> list[Page]:
    """Everything that is read of a file, `report.pdf#2-5` for some of its pages.

    Raises:
        PumiceError: there is no such file, or it can't be read.
    """
    opened = open_media(file, LIMITS)
    digest = _digest(opened[0].reference)
    return [Page(file, media, digest) for media in opened]


def _digest(reference: str | bytes) -> str:
    if isinstance(reference, bytes):
        return hashlib.sha256(reference).hexdigest()
    with Path(reference).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
