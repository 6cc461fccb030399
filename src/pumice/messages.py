"""OpenAI-style messages to Samples, the form in which people and programs ask.

[{"role": "user", "content": [{"type": "image", "image": ...}, {"type": "text", "text": ...}]}] ──> Sample
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

from pumice.types import Media, MediaKind, PumiceError, Role, Sample, Turn
from pumice.vision.kinds import NAMES, open_media
from pumice.vision.media import read_data_uri

ROLES: tuple[Role, ...] = ("system", "user", "assistant")
MEDIA_PARTS: dict[str, MediaKind | None] = {
    "image": None,
    "image_url": None,
    "pdf": "page",
    "video": "video",
    "video_url": "video",
}
"""Types of message parts that hold media, and what they must hold. An image may be a PDF or a video as well."""
URL_PARTS = ("image_url", "video_url")


def question_messages(pictures: Any, question: str) -> list[dict[str, Any]]:
    """Messages that ask one question about one picture, PDF or video, or a list of them."""
    several = list(pictures) if isinstance(pictures, (list, tuple)) else [pictures]
    content = [{"type": "image", "image": picture} for picture in several]
    return [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]


def to_sample(messages: Sequence[dict[str, Any]]) -> Sample:
    """OpenAI-style messages to a Sample; pictures, PDFs and videos are opened (headers only).

    Raises:
        PumiceError: an unknown role or part, a missing key, or a picture, PDF or video that can't be opened.
    """
    if not messages:
        raise PumiceError("messages is empty; expected at least one {'role': 'user', 'content': ...}")
    turns = []
    for position, message in enumerate(messages):
        if not isinstance(message, dict):
            kind = type(message).__name__
            raise PumiceError(f"messages[{position}]: {kind}, expected {{'role': ..., 'content': ...}}")
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise PumiceError(f"messages[{position}]: role {role!r}, expected one of {', '.join(ROLES)}")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list):
            raise PumiceError(
                f"messages[{position}]: content is {type(content).__name__}, expected text or a list of parts"
            )
        content = [_part(part, f"messages[{position}].content[{i}]") for i, part in enumerate(parts)]
        turns.append(Turn(role, tuple(chain.from_iterable(content))))
    return Sample(tuple(turns))


def _part(part: Any, where: str) -> list[str | Media]:
    """What one part of a message holds: its text, or its media (a PDF has one a page)."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return [part["text"]]
    if isinstance(kind, str) and kind in MEDIA_PARTS and kind in part:
        reference, wanted = part[kind], MEDIA_PARTS[kind]
        if kind in URL_PARTS:
            reference = _data_uri(reference, where)
        media = open_media(reference)
        if wanted is not None and media[0].kind != wanted:
            name = media[0].name or where
            raise PumiceError(f"{where}: {name} is {NAMES[media[0].kind]}; expected {NAMES[wanted]}")
        return [*media]
    raise PumiceError(
        f"{where}: expected {{'type': 'text', 'text': ...}} or {{'type': 'image', 'image': path, bytes or PIL image}}; "
        f"media have one of the types {', '.join(MEDIA_PARTS)}, and their content under a key of that name"
    )


def _data_uri(value: Any, where: str) -> bytes:
    """Bytes of {"url": "data:..."}. A url is a client's text: it never names a file of this machine."""
    url = value.get("url") if isinstance(value, dict) else None
    if not isinstance(url, str) or not url.startswith("data:"):
        raise PumiceError(f"{where}: expected {{'url': 'data:...;base64,...'}}; addresses and files aren't fetched")
    return read_data_uri(url)
