"""What happens to a page before it is a picture: paper, background, perspective, uneven light, blur, noise, JPEG.

    page ──lay(on paper, in perspective, before a background)──> ──degrade(light, blur, noise, JPEG)──> picture

The ranges are SynthDoG's (Donut, arXiv 2111.15664). Textures are drawn, not photographed: fibres and stains for paper;
clouds, planks, tiles and cloth for what lies behind it.
"""

from __future__ import annotations

import io
import random

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from pumice.data.render.page import Colour

Size = tuple[int, int]
COARSE = 3
"""Backgrounds are drawn so many times smaller than they are shown: they are out of focus, and it is cheaper."""
Corners = tuple[tuple[float, float], ...]
"""Top left, top right, bottom right, bottom left in pixels."""


def clouds(rng: random.Random, size: Size, detail: int, low: int, high: int) -> Image.Image:
    """Soft grey noise (mode L) between two levels; ``detail`` is its cells along the longer side."""
    scale = detail / max(size)
    cells = (max(2, round(size[0] * scale)), max(2, round(size[1] * scale)))
    noise = np.random.default_rng(rng.getrandbits(32)).integers(low, high + 1, (cells[1], cells[0]), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def paper(rng: random.Random, size: Size, tone: Colour) -> Image.Image:
    """A sheet of a tone with grain and soft stains, sometimes with a fold."""
    sheet = Image.new("RGB", size, tone)
    grain = clouds(rng, size, max(size), 255 - rng.randint(4, 22), 255)
    stains = clouds(rng, size, rng.randint(3, 8), 255 - rng.randint(4, 30), 255)
    sheet = ImageChops.multiply(sheet, Image.merge("RGB", [ImageChops.multiply(grain, stains)] * 3))
    if rng.random() < 0.25:
        _fold(rng, sheet)
    return sheet


def _fold(rng: random.Random, sheet: Image.Image) -> None:
    """A light line across the sheet with a shade beside it."""
    draw, upright = ImageDraw.Draw(sheet, "RGBA"), rng.random() < 0.5
    at = rng.uniform(0.3, 0.7) * sheet.size[not upright]
    end = sheet.size[upright]
    for offset, colour in ((-2, (0, 0, 0, 18)), (-1, (0, 0, 0, 34)), (0, (255, 255, 255, 120)), (1, (0, 0, 0, 22))):
        line = (at + offset, 0, at + offset, end) if upright else (0, at + offset, end, at + offset)
        draw.line(line, colour)


def background(rng: random.Random, size: Size) -> Image.Image:
    """Something for a page or a sign to be in front of, out of focus by up to 10 pixels."""
    small = (max(8, size[0] // COARSE), max(8, size[1] // COARSE))
    return _texture(rng, small).resize(size, Image.Resampling.BICUBIC)


def _texture(rng: random.Random, size: Size) -> Image.Image:
    base = tuple(rng.randint(40, 220) for _ in range(3))
    image = Image.new("RGB", size, base)
    kind = rng.choice(("clouds", "planks", "tiles", "cloth", "wall"))
    draw = ImageDraw.Draw(image)
    near = [_near(rng, base, 26) for _ in range(6)]
    step = rng.randint(24, 90) // COARSE
    if kind == "planks":
        for i, x in enumerate(range(0, size[0], step)):
            draw.rectangle((x, 0, x + step - 2, size[1]), near[i % 6])
    elif kind == "tiles":
        for i, y in enumerate(range(0, size[1], step)):
            for x in range(-(i % 2) * step, size[0], 2 * step):
                draw.rectangle((x, y, x + 2 * step - 3, y + step - 3), rng.choice(near))
    elif kind == "cloth":
        for y in range(0, size[1], 2):
            draw.line((0, y, size[0], y), near[y // 2 % 6])
        for x in range(0, size[0], step):
            draw.line((x, 0, x, size[1]), near[0], rng.randint(1, 4))
    shade = clouds(rng, size, rng.choice((4, 12, 60, 120)), 255 - rng.randint(20, 110), 255)
    image = ImageChops.multiply(image, Image.merge("RGB", [shade] * 3))
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 10) / COARSE))


def _near(rng: random.Random, colour: tuple[int, ...], swing: int) -> Colour:
    return tuple(max(0, min(255, value + rng.randint(-swing, swing))) for value in colour)  # type: ignore[return-value]


def tilt(rng: random.Random, size: Size, most: float) -> Corners:
    """The corners of an area of ``size``, each moved inwards by up to ``most`` of the side."""
    w, h = size

    def off(side: float) -> float:
        return rng.uniform(0, most) * side

    return (
        (off(w), off(h)), (w - off(w), off(h)), (w - off(w), h - off(h)), (off(w), h - off(h)),
    )  # fmt: skip


def lay(page: Image.Image, ground: Image.Image, corners: Corners) -> Image.Image:
    """The page in perspective with its corners at ``corners`` of the ground, with a soft shadow below it."""
    w, h = page.size
    coefficients = _perspective(corners, ((0, 0), (w, 0), (w, h), (0, h)))
    warped = page.transform(ground.size, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BICUBIC)
    mask = Image.new("L", ground.size)
    ImageDraw.Draw(mask).polygon(list(corners), fill=255)
    soft = mask.reduce(4).filter(ImageFilter.GaussianBlur(1.5)).resize(ground.size, Image.Resampling.BILINEAR)
    shadow = soft.point([255 - level // 3 for level in range(256)])
    dark = ImageChops.multiply(ground, Image.merge("RGB", [shadow] * 3))
    dark.paste(warped, (0, 0), mask)
    return dark


def _perspective(source: Corners, target: Corners) -> list[float]:
    """The eight numbers of PIL's perspective transform that takes the source's corners to the target's."""
    rows, values = [], []
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.linalg.solve(np.array(rows, dtype=float), np.array(values, dtype=float)).tolist()


def degrade(rng: random.Random, image: Image.Image, legible: int) -> Image.Image:
    """Light, colour, blur, noise and JPEG as SynthDoG's last effects; milder where the text is small.

    ``legible`` is the height of the smallest text in pixels: blur stays below a twelfth of it.
    """
    if rng.random() < 0.5:
        image = _shaded(rng, image)
    if rng.random() < 0.2:
        tint = tuple(rng.randint(215, 255) for _ in range(3))
        image = ImageChops.multiply(image, Image.new("RGB", image.size, tint))
    contrast, brightness = rng.uniform(1, 1.5), rng.uniform(-48, 0)
    image = image.point([max(0, min(255, round((v - 128) * contrast + 128 + brightness))) for v in range(256)] * 3)
    image = image.filter(ImageFilter.GaussianBlur(min(rng.uniform(0, 1.5), legible / 12)))
    if rng.random() < 0.5 and legible >= 24:
        image = _moved(rng, image)
    grain = np.random.default_rng(rng.getrandbits(32)).standard_normal((image.height, image.width), dtype=np.float32)
    noise = np.rint(grain * rng.uniform(0, 8)).astype(np.int16)[..., None]
    pixels = (np.asarray(image, dtype=np.int16) + noise).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=rng.randint(50, 95))
    return Image.open(buffer).convert("RGB")


def _shaded(rng: random.Random, image: Image.Image) -> Image.Image:
    """A shadow over a part of the picture, from one side."""
    ramp = Image.linear_gradient("L").rotate(rng.choice((0, 90, 180, 270)))
    floor = rng.randint(130, 220)
    ramp = ramp.resize(image.size).point([floor + (255 - floor) * level // 255 for level in range(256)])
    return ImageChops.multiply(image, Image.merge("RGB", [ramp] * 3))


def _moved(rng: random.Random, image: Image.Image) -> Image.Image:
    """Blurred along one direction over 3 or 5 pixels."""
    size, middle = rng.choice(((3, 1), (5, 2)))
    way = rng.choice(("across", "down", "slope"))
    kernel = [
        int({"across": y == middle, "down": x == middle, "slope": x == y}[way])
        for y in range(size)
        for x in range(size)
    ]
    return image.filter(ImageFilter.Kernel((size, size), kernel))
