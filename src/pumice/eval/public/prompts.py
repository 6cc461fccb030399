"""lmms-eval's messages to Pumice's: the same parts, named otherwise.

[{"role", "content": [{"type": "image" | "video" | "text", "url" | "text": ...}]}] ──to_messages──> messages
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pumice.types import PumiceError

MARK = "<image>"
"""What some benchmarks write into a question where a picture stands."""


def to_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages that `pumice.messages.to_sample` takes.

    A message with as many `<image>` in its texts as pictures has them there, as LLaVA's own evaluation does; otherwise
    parts keep their order.

    Raises:
        PumiceError: sound, a part of a video, or another kind of content that isn't read.
    """
    made = []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else [_part(part) for part in content]
        made.append({"role": message["role"], "content": _at_marks(parts)})
    return made


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    kind = part.get("type")
    if kind == "text":
        return {"type": "text", "text": part["text"]}
    if kind not in ("image", "video"):
        raise PumiceError(f"a {kind} part; only text, pictures and videos are read")
    held = part.get("url", part.get(kind))
    if isinstance(held, Mapping):
        if any(held.get(key) is not None for key in ("video_start", "video_end")):
            raise PumiceError("a part of a video; only whole videos are read")
        held = held.get("bytes") or held.get("path") or held.get("url")
    if any(part.get(key) is not None for key in ("start_time", "end_time")):
        raise PumiceError("a part of a video; only whole videos are read")
    return {"type": kind, kind: held}


def _at_marks(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    pictures = [part for part in parts if part["type"] == "image"]
    marks = sum(part["text"].count(MARK) for part in parts if part["type"] == "text")
    if not pictures or marks != len(pictures):
        return parts
    waiting, placed = iter(pictures), []
    for part in parts:
        if part["type"] == "video":
            placed.append(part)
        for position, piece in enumerate(part["text"].split(MARK) if part["type"] == "text" else ()):
            if position:
                placed.append(next(waiting))
                piece = piece.removeprefix("\n")  # the template writes one
            if piece:
                placed.append({"type": "text", "text": piece})
    return placed
