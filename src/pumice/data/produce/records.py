"""Examples as the records and files that `pumice.data.sources` reads.

Example ──encode──> Record: LLaVA's conversation, pictures as PNG or JPEG, a video as MP4
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

from PIL import Image

from pumice.data.conversations import MARKER
from pumice.data.render.film import film
from pumice.data.render.kinds import KINDS, Example

JPEG_QUALITY = 92


@dataclass(frozen=True)
class Record:
    """One record: ``media`` are (ending, bytes) in the order of their markers, ``said`` is the rest of it as JSON."""

    key: str
    media: tuple[tuple[str, bytes], ...]
    said: dict[str, Any]


def to_record(example: Example, key: str) -> Record:
    """The record of an example. Every key of ``said`` is there in every record, so that all are columns of a table."""
    photo = KINDS[example.kind].photo
    if example.fps:
        media: tuple[tuple[str, bytes], ...] = (("mp4", film(example.frames, example.fps)),)
    else:
        media = tuple(encode(frame, photo) for frame in example.frames)
    turns = []
    for position, exchange in enumerate(example.exchanges):
        marks = "" if position else f"{MARKER}\n" * len(media)
        turns.append({"from": "human", "value": f"{marks}{exchange.question}"})
        turns.append({"from": "gpt", "value": exchange.answer})
    said = {
        "id": key,
        "data_source": example.kind,
        "category": KINDS[example.kind].category,
        "tasks": [exchange.task for exchange in example.exchanges],
        "forms": [exchange.form for exchange in example.exchanges],
        "conversations": turns,
        "reading": example.reading if len(media) == 1 else "",
    }
    return Record(key, media, said)


def encode(image: Image.Image, photo: bool) -> tuple[str, bytes]:
    """(ending, bytes): JPEG with full colour for pictures like photographs, PNG for drawn ones."""
    buffer = io.BytesIO()
    if photo:
        image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    else:
        image.save(buffer, "PNG", compress_level=6)
    return ("jpg" if photo else "png"), buffer.getvalue()
