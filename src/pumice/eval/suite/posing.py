"""The tasks whose questions go with several pictures, a video, no picture, or with what only they draw.

kind, index ──maker──> Posed (frames, questions) ──keep──> Shown (PNGs or an MP4) + questions ──> Suite
"""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from PIL import Image

from pumice.data.render.film import film

if TYPE_CHECKING:
    from pumice.data.render.page import Question
    from pumice.data.render.scenes import Posed

KINDS: dict[str, str] = {
    "receipt_json": "receipt",
    "difference": "scenes",
    "odd_one_out": "scenes",
    "order": "scenes",
    "direction": "scenes",
    "video_order": "scenes",
    "video_count": "scenes",
    "text_only": "text",
    "chinese_read": "chinese",
    "chinese_value": "chinese",
    "presence": "scenes",
}
"""Tasks, each of which is its own kind of picture, and what draws it."""

STRIP = 4
"""Pictures, or frames of a video, that stand side by side where a question's media are shown as one."""


@dataclass(frozen=True)
class Shown:
    """What one question shows: ``pictures`` as PNG; with ``video`` (an MP4) these are a few of its frames. ``sha256``
    is over all that was drawn: encoders differ between machines.
    """

    pictures: tuple[bytes, ...] = field(repr=False)
    sha256: str
    video: bytes = field(default=b"", repr=False)

    def media(self) -> Any:
        """What an assistant is given: a picture, a list of several or none, or the bytes of a video."""
        opened = [Image.open(io.BytesIO(picture)).convert("RGB") for picture in self.pictures]
        return self.video or (opened[0] if len(opened) == 1 else opened)

    def strip(self) -> Image.Image:
        """All pictures in one row, to be looked at; a small white one where there is none."""
        opened = [Image.open(io.BytesIO(picture)).convert("RGB") for picture in self.pictures]
        gap = 4
        wide = sum(picture.width + gap for picture in opened) - gap
        image = Image.new("RGB", (max(wide, 16), max([picture.height for picture in opened], default=16)), "white")
        x = 0
        for picture in opened:
            image.paste(picture, (x, 0))
            x += picture.width + gap
        return image


def left_out(task: str) -> str:
    """Why a task can't be asked on this machine, or nothing."""
    if KINDS.get(task) != "chinese":
        return ""
    from pumice.data.render import chinese

    return chinese.missing()


def pose(task: str, n: int) -> tuple[list[tuple[str, Question, float | None]], dict[str, Shown]]:
    """``n`` questions of a task as (key, question, chance), and what they show by key; no question is asked twice
    without a picture.

    Raises:
        PumiceError: the renderers' packages are missing.
    """
    asked: list[tuple[str, Question, float | None]] = []
    shown: dict[str, Shown] = {}
    index, texts = 0, set()
    while len(asked) < n and not left_out(task):
        key = f"{task}-{index}"
        index += 1
        posed = _posed(task, key)
        new = [pair for pair in posed.asked if posed.frames or pair[0].text not in texts]
        texts.update(question.text for question, _ in new)
        if not new:
            continue
        shown[key] = keep(posed)
        asked += [(key, *pair) for pair in new[: n - len(asked)]]
    return asked, shown


def blind_twin(task: str) -> Shown:
    """Something to show in place of a task's only picture."""
    return keep(_posed(task, f"{task}-blind"))


def _posed(task: str, key: str) -> Posed:
    # A receipt is the one that the other tasks ask about.
    seed = key.replace("receipt_json", "receipts")
    return _maker(task)(random.Random(f"eval-{seed}"), "heldout")


def _maker(task: str) -> Callable[[random.Random, Any], Posed]:
    if KINDS[task] == "receipt":
        return _receipt
    if KINDS[task] == "text":
        return _text
    if KINDS[task] == "chinese":
        from pumice.data.render import chinese

        return chinese.MAKERS[task]
    from pumice.data.render import scenes

    return scenes.MAKERS[task]


def _receipt(rng: random.Random, split: Any) -> Posed:
    from pumice.data.render import receipts, records
    from pumice.data.render.scenes import Posed

    bill, rendered = receipts.describe(rng, split)
    return Posed((rendered.image,), ((records.receipt_json(bill), None),))


def _text(rng: random.Random, split: Any) -> Posed:
    from pumice.data.render.text_questions import text_only

    return text_only(rng, split)


def keep(posed: Posed) -> Shown:
    """Pictures as PNG, or a video as MP4 with STRIP of its frames."""
    digest = hashlib.sha256()
    for frame in posed.frames:
        digest.update(repr(frame.size).encode() + frame.tobytes())
    if not posed.fps:
        return Shown(tuple(map(_png, posed.frames)), digest.hexdigest())
    last = len(posed.frames) - 1
    few = [posed.frames[last * i // (STRIP - 1)] for i in range(STRIP)]
    return Shown(tuple(map(_png, few)), digest.hexdigest(), film(posed.frames, posed.fps))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
