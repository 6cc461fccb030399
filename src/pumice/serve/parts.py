"""The messages of a request, before any file in them is opened.

    [{"role", "content"}] ──read_messages──> [Said(role, [text | Attachment])]

A client's text never names a file of this machine: what isn't a data: URI is an address, and those are `fetch`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pumice.serve.errors import clean, invalid
from pumice.types import MediaKind, PumiceError, Role
from pumice.vision.media import Limits, read_data_uri

ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
TEXTS = ("text", "input_text", "output_text")
DETAILS = (None, "auto", "high", "original")


@dataclass(frozen=True)
class Attachment:
    """A file in a request: its ``data``, or an address. ``message`` and ``part`` say where, ``where`` in words."""

    data: bytes
    url: str
    wanted: MediaKind | None
    message: int
    part: int
    where: str


@dataclass(frozen=True)
class Said:
    """One message."""

    role: Role
    content: tuple[str | Attachment, ...]


def read_messages(messages: list[Any], limits: Limits, most: int, field: str = "messages") -> list[Said]:
    """Messages of chat completions, or items of a response's input, checked; ``most`` files. ``field`` holds them.

    Raises:
        ApiError: 400, naming the field.
    """
    if not messages:
        raise invalid("expected at least one message", field)
    said = [_message(message, i, limits, f"{field}[{i}]") for i, message in enumerate(messages)]
    files = sum(isinstance(part, Attachment) for one in said for part in one.content)
    if files > most:
        raise invalid(f"{files} files; at most {most} in a request", field)
    if said[-1].role == "assistant":
        raise invalid("the last message is the assistant's; answers aren't continued", field, "unsupported_value")
    return said


def refuse_extra(given: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    """Raise ApiError for a key that isn't known, unless what it says is nothing."""
    for name, value in given.items():
        if name not in known and not is_nothing(value):
            raise invalid("isn't supported and would change the answer; leave it out", f"{where}.{clean(name)}",
                          "unknown_parameter")  # fmt: skip


def is_nothing(value: Any) -> bool:
    """Null, or empty: what clients send for fields that they don't use."""
    return value is None or (isinstance(value, (str, list, dict)) and not value)


def _message(message: Any, number: int, limits: Limits, where: str) -> Said:
    if not isinstance(message, dict):
        raise invalid("expected an object with role and content", where)
    refuse_extra(message, ("role", "content", "id", "type", "status"), where)
    if message.get("type") not in (None, "message"):
        raise invalid("only messages are supported, no calls of tools", f"{where}.type", "unsupported_value")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise invalid(f"expected one of {', '.join(ROLES)}", f"{where}.role")
    content = message.get("content")
    if isinstance(content, str):
        return Said(ROLES[role], (content,))
    if not isinstance(content, list):
        raise invalid("expected a text or a list of parts", f"{where}.content")
    parts = tuple(_part(part, (number, i), limits, f"{where}.content[{i}]") for i, part in enumerate(content))
    if role != "user" and any(isinstance(part, Attachment) for part in parts):
        raise invalid("only the user's messages may hold files", f"{where}.content")
    return Said(ROLES[role], parts)


def _part(part: Any, place: tuple[int, int], limits: Limits, where: str) -> str | Attachment:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in TEXTS:
        refuse_extra(part, ("type", "text", "annotations", "logprobs"), where)
        if not isinstance(part.get("text"), str):
            raise invalid("expected a text", f"{where}.text")
        return part["text"]
    read = _READERS.get(kind) if isinstance(kind, str) else None
    if read is None:
        raise invalid(f"expected one of {', '.join(('text', *_READERS))}", f"{where}.type", "unsupported_value")
    text, wanted = read(part, where)
    if not text.startswith("data:"):
        return Attachment(b"", text, wanted, *place, where)
    try:
        data = read_data_uri(text, limits)
    except PumiceError as error:
        raise invalid(clean(str(error)), where, "media_unreadable") from None
    if not data:
        raise invalid("an empty file", where, "media_unreadable")
    return Attachment(data, "", wanted, *place, where)


def _nested(part: dict[str, Any], key: str, known: tuple[str, ...], where: str) -> dict[str, Any]:
    refuse_extra(part, ("type", key), where)
    inner = part.get(key)
    if not isinstance(inner, dict):
        raise invalid("expected an object", f"{where}.{key}")
    refuse_extra(inner, known, f"{where}.{key}")
    return inner


def _url(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise invalid("expected data:...;base64,...", where)
    return value


def _detail(value: Any, where: str) -> None:
    if value not in DETAILS:
        raise invalid("the model's own layout decides; leave it out", f"{where}.detail", "unsupported_value")


def _image_url(part: dict[str, Any], where: str) -> tuple[str, MediaKind | None]:
    if isinstance(part.get("image_url"), str):  # some clients leave the object out
        return _url(part["image_url"], f"{where}.image_url"), None
    inner = _nested(part, "image_url", ("url", "detail"), where)
    _detail(inner.get("detail"), f"{where}.image_url")
    return _url(inner.get("url"), f"{where}.image_url.url"), None


def _video_url(part: dict[str, Any], where: str) -> tuple[str, MediaKind | None]:
    return _url(_nested(part, "video_url", ("url",), where).get("url"), f"{where}.video_url.url"), "video"


def _input_video(part: dict[str, Any], where: str) -> tuple[str, MediaKind | None]:
    inner = _nested(part, "input_video", ("data", "url", "format"), where)
    if inner.get("url") is not None:
        return _url(inner["url"], f"{where}.input_video.url"), "video"
    return "data:;base64," + _url(inner.get("data"), f"{where}.input_video.data"), "video"


def _file(part: dict[str, Any], where: str) -> tuple[str, MediaKind | None]:
    return _file_data(_nested(part, "file", ("file_data", "filename"), where), f"{where}.file")


def _input_file(part: dict[str, Any], where: str) -> tuple[str, MediaKind | None]:
    refuse_extra(part, ("type", "file_data", "filename", "file_url"), where)
    if part.get("file_url") is not None:
        return _url(part["file_url"], f"{where}.file_url"), None
    return _file_data(part, where)


def _file_data(inner: dict[str, Any], where: str) -> tuple[str, MediaKind | None]:
    text = _url(inner.get("file_data"), f"{where}.file_data")
    return (text if text.startswith("data:") else "data:;base64," + text), None


def _input_image(part: dict[str, Any], where: str) -> tuple[str, MediaKind | None]:
    refuse_extra(part, ("type", "image_url", "detail"), where)
    _detail(part.get("detail"), where)
    return _url(part.get("image_url"), f"{where}.image_url"), None


_READERS = {
    "image_url": _image_url,
    "video_url": _video_url,
    "input_video": _input_video,
    "file": _file,
    "input_image": _input_image,
    "input_file": _input_file,
}
