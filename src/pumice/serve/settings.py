"""What a server may spend on strangers, in one place."""

from __future__ import annotations

from dataclasses import dataclass, field

from pumice.vision.media import Limits

MIB = 2**20


def media_limits() -> Limits:
    """What a file in a request may cost: less than one that its own owner opens."""
    return Limits(
        max_pixels=50_000_000, max_bytes=32 * MIB, max_pages=32, max_frames=200_000, max_seconds=3600, patience=20.0
    )


@dataclass(frozen=True)
class Remote:
    """Whether and how pictures are fetched from addresses: of ``hosts`` alone, of any public one where it is empty."""

    allowed: bool = False
    hosts: frozenset[str] = frozenset()
    max_bytes: int = 16 * MIB
    seconds: float = 10.0
    redirects: int = 3


@dataclass(frozen=True)
class ServeSettings:
    """Limits of one server. Sizes are in bytes, times in seconds.

    max_body, max_bodies   of one request, of all that are held at once
    body_seconds           for a request's head, then for its body; as long a client may take nothing of an answer
    deadline               in which it must have been answered
    drain                  that running answers get after SIGTERM
    requests               at work at once
    max_media, max_choices, max_stops   files, ``n`` and stop texts of a request
    answer_tokens          of an answer whose request doesn't say
    workers, worker_memory, worker_queue   processes that open files, what each may use, requests that may wait for one
    tile_bytes             of decoded pictures that are kept for the next question about them
    decoded_bytes          of decoded pictures whose requests wait for the engine
    share_cache            whether requests with different keys may share what is cached
    hosts                  names that the Host header may have; empty allows any
    """

    max_body: int = 32 * MIB
    max_bodies: int = 256 * MIB
    body_seconds: float = 60.0
    deadline: float = 300.0
    drain: float = 30.0
    requests: int = 1000
    max_media: int = 32
    max_choices: int = 8
    max_stops: int = 16
    answer_tokens: int = 512
    workers: int = 2
    worker_memory: int = 2048 * MIB
    worker_queue: int = 256
    tile_bytes: int = 256 * MIB
    decoded_bytes: int = 512 * MIB
    share_cache: bool = False
    hosts: frozenset[str] = frozenset()
    media: Limits = field(default_factory=media_limits)
    remote: Remote = Remote()
