"""A reader beside a model: the text of a conversation's pictures goes into its prompt.

    Sample ──each picture, page: decode──> digest ──known?──OCR──> lines ──write──> text after the picture ──> Assisted

LLaVA-1.5's reference OCR tokens (arXiv 2310.03744), and ELVA's read-then-reason (arXiv 2406.11823) with the reading
done outside of the model. What a picture says is text of the user's: special tokens in it are tokenised as text.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pumice.reader.lines import Line, shorten, write
from pumice.reader.ocr import Read, rapid_ocr
from pumice.tokens import tokenize
from pumice.types import Media, Sample, Turn
from pumice.vision.media import decode
from pumice.vision.pdf import POINTS_PER_INCH, render_page

if TYPE_CHECKING:
    from PIL import Image

HEAD = "Text in the picture:\n"
MOST_TOKENS = 1024
"""Of the text of one picture; what is longer is cut between lines, and said."""
KEPT = 256
"""Pictures whose text is remembered."""
PAGE_DPI, PAGE_SIDE = 150, 2000
"""Resolution at which pages of PDFs are read, and the most pixels of their longer side."""


def block(text: str) -> str:
    """What stands between a picture and the question about it; nothing where no text was found."""
    return f"{HEAD}{text}\n\n" if text else ""


@dataclass(frozen=True)
class Reading:
    """The text of one picture as it enters the prompt, and how many lines there was no room for."""

    text: str
    left_out: int = 0


@dataclass(frozen=True)
class Assisted:
    """A sample with the text of its pictures, the lines there was no room for, and the milliseconds it took."""

    sample: Sample
    left_out: int
    ms: float


@dataclass
class Reader:
    """Reads pictures with ``read``, an OCR engine; ``count`` says how many tokens a text is.

    A picture is read once, however often it is asked about: its text is remembered by the digest of its pixels.
    Videos aren't read.
    """

    read: Read
    count: Callable[[str], int]
    most: int = MOST_TOKENS
    kept: int = KEPT
    _known: OrderedDict[bytes, Reading] = field(default_factory=OrderedDict, repr=False)
    _gate: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def settings(self) -> str:
        """What, beside the pictures, decides what enters a prompt: part of the digests of answers that are kept."""
        return f"reader {HEAD!r} {self.most}"

    def assist(self, sample: Sample) -> Assisted:
        """The sample with the text of each of its pictures and pages after it.

        Raises:
            PumiceError: a picture or page can't be decoded.
        """
        began = time.perf_counter()
        readings = [Reading("") if media.kind == "video" else self.text(pixels(media)) for media in sample.media]
        left_out = sum(reading.left_out for reading in readings)
        return Assisted(beside(sample, readings), left_out, (time.perf_counter() - began) * 1000)

    def text(self, picture: Image.Image) -> Reading:
        """The text of an RGB picture, from memory if it was read before."""
        key = hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).digest()
        with self._gate:  # the engine reads one at a time
            known = self._known.get(key)
            if known is None:
                known = self.reading(self.read(picture))
                self._known[key] = known
                while len(self._known) > self.kept:
                    self._known.popitem(last=False)
            return known

    def reading(self, lines: Sequence[Line]) -> Reading:
        """Recognised lines as they enter a prompt."""
        return Reading(*shorten(write(lines), self.most, self.count))

    def forget(self) -> None:
        """Read every picture anew from now on."""
        with self._gate:
            self._known.clear()


def beside(sample: Sample, readings: Sequence[Reading]) -> Sample:
    """The sample with the text of each of its media, in reading order, after it."""
    left = iter(readings)
    turns = []
    for turn in sample.turns:
        content: list[str | Media] = []
        for part in turn.content:
            content.append(part)
            if isinstance(part, Media) and (text := block(next(left).text)):
                content.append(text)
        turns.append(Turn(turn.role, tuple(content)))
    return replace(sample, turns=tuple(turns))


def pixels(media: Media) -> Image.Image:
    """A picture or page as the OCR engine gets it: mode RGB.

    Raises:
        PumiceError: it can't be decoded.
    """
    if media.kind == "image":
        return decode(media)
    scale = min(PAGE_DPI / POINTS_PER_INCH, PAGE_SIDE / max(media.size))
    width, height = (max(1, round(side * scale)) for side in media.size)
    return render_page(media, (width, height))


def open_reader(tokenizer: Any, most: int = MOST_TOKENS) -> Reader:
    """A reader for the model of a tokenizer, with RapidOCR.

    Raises:
        PumiceError: RapidOCR isn't installed.
    """
    return Reader(rapid_ocr(), lambda text: len(tokenize(tokenizer, text, markup=False)), most)
