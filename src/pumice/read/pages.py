"""Files to what is read of them: every page of a PDF, a picture, a video.

path ──open_each──> [Page(file, number, media, digest)], a damaged page with its error instead of a medium
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pumice.types import Media, PumiceError
from pumice.vision.kinds import open_each
from pumice.vision.media import Limits
from pumice.vision.pdf import PageError

LIMITS = Limits(max_pages=100_000)
"""A document's pages are asked about one by one, so that their number doesn't matter."""


@dataclass(frozen=True)
class Page:
    """One picture, video or page of ``file``; ``number`` counts pages from 1, None where there are none. ``media`` is
    the error where it can't be read. ``digest`` is of the file's bytes, "" where nothing of it could be read.
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
    opened = open_each(file, LIMITS)
    digest = next((_digest(media.reference) for media in opened if isinstance(media, Media)), "")
    return [Page(file, _number(one), one, digest) for one in opened]


def _number(one: Media | PageError) -> int | None:
    return one.page + 1 if isinstance(one, PageError) or one.kind == "page" else None


def _digest(reference: str | bytes) -> str:
    if isinstance(reference, bytes):
        return hashlib.sha256(reference).hexdigest()
    with Path(reference).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
