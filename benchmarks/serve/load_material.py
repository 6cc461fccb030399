"""What the load test asks: a mixed set of good questions, and requests that are bad in many ways."""

from __future__ import annotations

import base64
import io
import json
import random
from typing import Any

import av
import numpy as np
from PIL import Image, ImageDraw


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    """A page with a few words and shapes."""
    chance = random.Random(seed)
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        x, y = chance.randrange(size[0]), chance.randrange(size[1])
        draw.rectangle((x, y, x + 30, y + 20), fill=tuple(chance.randrange(256) for _ in range(3)))
        draw.text((x, y), f"total {chance.randrange(1000)}", fill="black")
    return image


def encoded(image: Image.Image, kind: str) -> bytes:
    """A file of it."""
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def video(seed: int) -> bytes:
    """A second of film."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as file:
        stream: Any = file.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 160, 128, "yuv420p"
        for number in range(8):
            pixels = np.asarray(picture(seed + number // 4, (160, 128)))
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        file.mux(stream.encode(None))
    return buffer.getvalue()


def part(data: bytes) -> dict[str, Any]:
    """A part of a message that holds a file."""
    return {"type": "image_url", "image_url": {"url": "data:;base64," + base64.b64encode(data).decode()}}


def questions(model: str, tokens: int) -> list[dict[str, Any]]:
    """The mixed set."""
    sizes = [(320, 240), (200, 400), (640, 480), (90, 90), (800, 200)]
    kinds = ["PNG", "JPEG", "WEBP", "GIF", "BMP"]
    files = [encoded(picture(i, size), kind) for i, (size, kind) in enumerate(zip(sizes, kinds, strict=True))]
    media = [[], *[[file] for file in files], files[:2], [encoded(picture(7, (300, 400)), "PDF")], [video(3)]]
    texts = ["What is the total?", "Which colours are there?", "Describe it."]
    asked = []
    for number, (held, text) in enumerate((held, text) for held in media for text in texts):
        content = [*map(part, held), {"type": "text", "text": text}]
        body = {
            "model": model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": tokens,
            "stream": True,
        }
        if number % 4 == 3:
            body |= {"temperature": 1.0, "seed": number}
        if number % 7 == 5:
            body |= {"response_format": {"type": "json_object"}}
        asked.append(body)
    return asked


PATHS = ("/v1/chat/completions", "/v1/responses", "/tokenize", "/v1/evidence", "/v1/previews")


def spoilt(body: dict[str, Any], chance: random.Random) -> tuple[str, bytes]:
    """A path, and one of several kinds of bad request to it."""
    path = chance.choice(PATHS)
    return path, _spoilt(shaped(body, path), chance)


def shaped(body: dict[str, Any], path: str) -> dict[str, Any]:
    """A chat completion's request in the form that another path takes."""
    messages = body["messages"]
    forms = {
        "/v1/responses": {"model": body["model"], "input": messages, "max_output_tokens": 1},
        "/tokenize": {"model": body["model"], "messages": messages},
        "/v1/evidence": {"model": body["model"], "messages": messages, "answer": "12"},
        "/v1/previews": {"messages": messages},
    }
    return forms.get(path, {**body, "stream": False, "max_tokens": 1})


def _spoilt(body: dict[str, Any], chance: random.Random) -> bytes:
    kind = chance.randrange(6)
    whole = json.dumps(body).encode()
    if kind == 0:  # JSON with bytes changed
        data = bytearray(whole)
        for _ in range(20):
            data[chance.randrange(len(data))] = chance.randrange(256)
        return bytes(data)
    if kind == 1:
        return whole[: chance.randrange(len(whole))]
    if kind == 2:  # a field that is wrong
        wrong = chance.choice(
            [{"temperature": -1}, {"n": 10**9}, {"colour": 1}, {"messages": [[]]}, {"stop": [""] * 99}]
        )
        return json.dumps({**body, **wrong}).encode()
    if kind == 3:  # a picture that says it is huge
        image = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\xff\xff\0\0\xff\xff\x08\2\0\0\0" + chance.randbytes(300)
    elif kind == 4:  # a picture with bytes changed and its end cut off
        image = bytearray(
            encoded(picture(chance.randrange(5), (80, 60)), chance.choice(["PNG", "JPEG", "GIF", "TIFF"]))
        )
        for _ in range(30):
            image[chance.randrange(len(image))] = chance.randrange(256)
        image = bytes(image[: len(image) // 2])
    else:
        image = chance.choice([b"%PDF-1.7\n", b"\0\0\0\x18ftypmp42", b"RIFF", b"GIF89a", b""]) + chance.randbytes(2000)
    content = [part(image), {"type": "text", "text": "What?"}]
    field = "input" if "input" in body else "messages"
    return json.dumps({**body, field: [{"role": "user", "content": content}]}).encode()
