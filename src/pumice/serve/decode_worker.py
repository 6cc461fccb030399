"""The only code of a server that opens strangers' files: a process of its own that may hang, crash or starve alone.

    settings, then (task, bytes of a file) ──connection──> {"media": [...]} | {"shape": [...]}, tiles | {"preview": uri}
                                                           | {"lines": [...]} | {"error": text}

What comes and goes is JSON and raw numbers; nothing of it is ever unpickled.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import math
import os
import time
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, set_num_threads

from pumice.encode import Processor, decode_tiles, place
from pumice.reader.ocr import Read, rapid_ocr
from pumice.reader.reader import pixels
from pumice.serve.errors import clean
from pumice.templates import get_template
from pumice.types import Media, PumiceError
from pumice.vision.frames import VideoPolicy
from pumice.vision.kinds import NAMES, open_media
from pumice.vision.layout import Policy
from pumice.vision.media import Limits
from pumice.vision.pdf import render_page

PREVIEW = 448
"""Longest side in pixels of the small picture of a page."""
FIELDS = ("kind", "size", "frames", "fps", "page")
UNREADABLE = "this file can't be read: damaged, cut short, or it needs more memory than it may have"


def main(connection: Connection) -> None:
    """Answer tasks until the connection ends. The first message are the settings, as `settings_json` writes them."""
    os.setsid()  # so that what this process starts is killed with it
    set_num_threads(1)
    given = json.loads(connection.recv_bytes())
    limits = Limits(**given["limits"])
    processors = {name: _processor(fields) for name, fields in given["processors"].items()}
    read = rapid_ocr(threads=1) if given["reader"] else None
    if read is not None:
        read(Image.new("RGB", (64, 64)))  # its models are open before memory is bounded
    _bound_memory(given["memory"])
    while True:
        try:
            task, data = json.loads(connection.recv_bytes()), connection.recv_bytes()
        except (EOFError, OSError):
            return
        _bound_time(limits.patience)
        answer, tiles = _work(task, data, processors, limits, read)
        connection.send_bytes(json.dumps(answer).encode())
        if tiles is not None:
            connection.send_bytes(tiles.numpy().data.cast("B"))


def settings_json(processors: dict[str, Processor], limits: Limits, memory: int, reader: bool = False) -> bytes:
    """What a process has to know; ``memory`` in bytes is what it may use beyond what it has in the beginning. With
    ``reader`` it also recognises text.
    """
    fields = {
        name: {
            "policies": [p and p.to_dict() for p in (processor.policy, processor.several)],
            "video": processor.video and processor.video.to_dict(),
            "mean": processor.mean,
            "std": processor.std,
        }
        for name, processor in processors.items()
    }
    told = {"processors": fields, "limits": asdict(limits), "memory": memory, "reader": reader}
    return json.dumps(told).encode()


def _processor(fields: dict[str, Any]) -> Processor:
    """A processor without texts: only pictures pass here."""
    policy, several = (given and Policy.from_dict(given) for given in fields["policies"])
    video = fields["video"] and VideoPolicy.from_dict(fields["video"])
    return Processor(
        None, get_template("plain"), policy, tuple(fields["mean"]), tuple(fields["std"]), several=several, video=video
    )


def _work(
    task: dict[str, Any], data: bytes, processors: dict[str, Processor], limits: Limits, read: Read | None
) -> tuple[dict[str, Any], Tensor | None]:
    try:
        if task["task"] == "open":
            return {"media": [described(media) for media in _open(data, task["wanted"], limits)]}, None
        if task["task"] == "preview":
            return {"preview": _preview(_medium(task, data))}, None
        if task["task"] == "lines" and read is not None:
            return {"lines": read(pixels(_medium(task, data)))}, None
        tiles = _tiles(task, data, processors[task["model"]])
        return {"shape": list(tiles.shape)}, tiles
    except PumiceError as error:
        return {"error": _own_words(str(error))}, None
    except Exception:  # what libraries say may name addresses, so nothing of it leaves here
        return {"error": UNREADABLE}, None


def _open(data: bytes, wanted: str | None, limits: Limits) -> list[Media]:
    media = open_media(data, limits)
    if wanted is not None and media[0].kind != wanted:
        found, expected = NAMES[media[0].kind], next(text for kind, text in NAMES.items() if kind == wanted)
        raise PumiceError(f"this file is {found}; expected {expected}")
    return media


def _tiles(task: dict[str, Any], data: bytes, processor: Processor) -> Tensor:
    """Pixels as `pumice.encode.encode` makes them: by the same functions."""
    media = _medium(task, data)
    several = processor.several if task["several"] and processor.several is not None else None
    policy = several or processor.policy
    return decode_tiles(media, place(media, processor, policy), processor, policy).contiguous()


def _medium(task: dict[str, Any], data: bytes) -> Media:
    fields = task["media"]
    return Media(data, **fields | {"size": tuple(fields["size"])}, name="bytes")


def _preview(media: Media) -> str:
    """A small picture of a PDF's page, as a data: URI."""
    scale = PREVIEW / max(media.size)
    w, h = (max(1, round(side * scale)) for side in media.size)
    buffer = io.BytesIO()
    render_page(media, (w, h)).save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def described(media: Media) -> dict[str, Any]:
    """A medium without its file, as JSON has it."""
    return {name: getattr(media, name) for name in FIELDS}


def _own_words(text: str) -> str:
    """Pumice's message about a file that has no name."""
    own = clean(text)
    return "this file" + own.removeprefix("bytes") if own.startswith("bytes") else own or UNREADABLE


def _bound_memory(extra: int) -> None:
    """Refuse memory beyond what is mapped now and ``extra``, and any file written, where the system can."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + extra
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _bound_time(patience: float) -> None:
    """End by itself where the server, which counts seconds on the wall, is no more."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time() + 4 * patience + 10), hard))
