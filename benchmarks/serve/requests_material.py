"""What is asked: pictures, a video, a PDF, texts and questions, drawn from a seed; files as users have them.

seed ──> PNG of 672x672, MPEG-4 film of 16 seconds, PDF of ten wide sheets, words
"""

from __future__ import annotations

import io
import random
from typing import Any

import av
import numpy as np
from PIL import Image, ImageDraw

WORDS = [
    "amount", "balance", "carbon", "delivery", "engine", "forest", "granite",
    "harbour", "invoice", "journal", "kettle", "lantern", "meadow", "number",
]  # fmt: skip
SIDE, FRAMES, PAGES = 672, 16, 10
SHEET = (900, 300)
"""A page's points. Ten of these are 6,520 tokens to the pocket model; letter pages would be 11,200, of its 8,192."""


def page(seed: int, size: tuple[int, int]) -> Image.Image:
    """A white page of words and coloured boxes."""
    chance, image = random.Random(seed), Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for y in range(10, size[1] - 20, 24):
        draw.text((10, y), text(chance.randrange(10**9), size[0] // 60), fill="black")
    for _ in range(8):
        x, y = chance.randrange(size[0] - 60), chance.randrange(size[1] - 40)
        draw.rectangle((x, y, x + 60, y + 30), fill=tuple(chance.randrange(256) for _ in range(3)))
    return image


def picture(seed: int) -> bytes:
    """A PNG file."""
    return encoded(page(seed, (SIDE, SIDE)), "PNG")


def pdf(seed: int) -> bytes:
    """A PDF file of ten sheets, each a picture."""
    first, *others = (page(seed * PAGES + number, SHEET) for number in range(PAGES))
    return encoded(first, "PDF", save_all=True, append_images=others)


def video(seed: int) -> bytes:
    """A film of 16 seconds at 8 pictures a second: at one frame a second, 16 frames are looked at."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as file:
        stream: Any = file.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for number in range(FRAMES):
            frame = np.asarray(page(seed * FRAMES + number, (320, 240)))
            for _ in range(8):
                file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        file.mux(stream.encode(None))
    return buffer.getvalue()


def text(seed: int, words: int) -> str:
    """So many words."""
    chance = random.Random(seed)
    return " ".join(chance.choice(WORDS) for _ in range(words))


def question(number: int) -> str:
    """A short question, no two alike."""
    return f"Question {number}: which word stands behind {WORDS[number % len(WORDS)]} in line {number + 1}?"


def encoded(image: Image.Image, kind: str, **more: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **more)
    return buffer.getvalue()
