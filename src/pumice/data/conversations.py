"""LLaVA's records to Samples.

    {"id", "image": "a.jpg" | [...], "conversations": [{"from": "human", "value": "<image>\\nWhat?"}, ...]} ──> Sample

The markers say where the media stand; their number must be that of the media. Formats: LLaVA-NeXT `train.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pumice.types import Media, PumiceError, Role, Sample, Turn

Opener = Callable[[Any], list[Media]]
"""Opens what a record says of one picture or video: a path below the media folder, or embedded bytes."""

MARKER = "<image>"
NOISE = "QA_GT_caption_based_noisy"
"""A label that lies in the text of some published records; the originals delete it too."""
ROLES: dict[str, Role] = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system",
}  # fmt: skip


def conversation(record: dict[str, Any], open_one: Opener, where: str) -> Sample:
    """A record's conversation. ``where`` is its id if it has none of its own.

    Turns before the first of the user are dropped but for a system turn, as in the originals. A turn with one marker
    begins with its picture; with several each stands where it is.

    Raises:
        PumiceError: no conversation, an unknown role, roles that don't alternate, or another number of markers than of
            media.
    """
    media = [one for reference in _references(record) for one in open_one(reference)]
    turns = _turns(record)
    markers = sum(text.count(MARKER) for role, text in turns if role == "user") if media else 0
    if markers != len(media):
        raise PumiceError(f"{len(media)} pictures or videos, and {markers} {MARKER} in the user's text")
    waiting = iter(media)
    built = []
    for role, text in turns:
        text = text.replace(NOISE, "")
        content = tuple(_content(text, waiting)) if media and role == "user" else (text.strip(),)
        built.append(Turn(role, content))
    reading = record.get("reading")
    return Sample(
        tuple(built),
        id=str(record.get("id", where)),
        source=str(record.get("data_source", "")),
        reading=reading if isinstance(reading, str) else "",
    )


def _references(record: dict[str, Any]) -> list[Any]:
    """What the record says of its media: image wins over video, as in the originals."""
    for key in ("image", "images", "video"):
        found = record.get(key)
        if found is not None and found != "" and found != []:
            return list(found) if isinstance(found, list | tuple) else [found]
    return []


def named(reference: Any) -> str:
    """What a record says of a picture that is a file.

    Raises:
        PumiceError: it isn't a name.
    """
    if not isinstance(reference, str):
        raise PumiceError(f"a picture or video named {reference!r:.80}; expected the name of a file")
    return reference


def _turns(record: dict[str, Any]) -> list[tuple[Role, str]]:
    said = record.get("conversations")
    if not isinstance(said, list) or not said:
        raise PumiceError("no conversations; expected a list of {from, value}")
    turns: list[tuple[Role, str]] = []
    for position, turn in enumerate(said):
        who = turn.get("from", turn.get("role")) if isinstance(turn, dict) else None
        text = turn.get("value", turn.get("content")) if isinstance(turn, dict) else None
        if not isinstance(who, str) or who not in ROLES or not isinstance(text, str):
            raise PumiceError(
                f"conversations[{position}]: expected {{from: human | gpt, value: text}}, not {turn!r:.80}"
            )
        turns.append((ROLES[who], text))
    system = turns[:1] if turns[0][0] == "system" else []
    first = next((i for i, (role, _) in enumerate(turns) if role == "user"), None)
    if first is None:
        raise PumiceError("no turn of the user")
    turns = turns[first:]
    for position, (role, _) in enumerate(turns):
        if role != ("assistant" if position % 2 else "user"):
            raise PumiceError(f"turn {position} is the {role}'s; user and assistant should take turns")
    return system + turns


def _content(text: str, media: Iterator[Media]) -> Iterator[str | Media]:
    """A user's text and the media that its markers stand for; the template writes the newline behind each of them."""
    pieces = text.split(MARKER)
    if len(pieces) == 2:
        yield next(media)
        # Both sides meet as the originals join them: without the marker, and stripped.
        yield (pieces[0] + pieces[1]).strip()
        return
    for position, piece in enumerate(pieces):
        if position:
            yield next(media)
            piece = piece.removeprefix("\n")
        if piece.strip() or (position == 0 and len(pieces) == 1):
            yield piece.strip() if len(pieces) == 1 else piece
