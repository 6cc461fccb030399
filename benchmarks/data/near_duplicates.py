"""How far the hashes of a picture move when it is changed, and how far apart those of different pictures are.

    python -m benchmarks.data.near_duplicates --n 100

Held-out pictures of every older kind of renderer and the drawings of objects; each is changed in nine ways. Prints a
Markdown table: share of changed pictures that still count as the same, and the same of pairs of different pictures.
"""

from __future__ import annotations

import argparse
import io
import random
from collections.abc import Callable
from itertools import combinations

import numpy as np
from PIL import Image, ImageEnhance

from pumice.data.care.pictures import NEAR, picture_print
from pumice.data.render.registry import PLAIN
from pumice.data.rendered import renderer


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    """The picture after JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def scaled(image: Image.Image, factor: float) -> Image.Image:
    """The picture at another size."""
    return image.resize((max(1, round(image.width * factor)), max(1, round(image.height * factor))))


def cropped(image: Image.Image, share: float) -> Image.Image:
    """The picture without a share of its width and height at each edge."""
    x, y = round(image.width * share), round(image.height * share)
    return image.crop((x, y, image.width - x, image.height - y))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG, quality 50": lambda image: jpeg(image, 50),
    "JPEG, quality 20": lambda image: jpeg(image, 20),
    "half the size": lambda image: scaled(image, 0.5),
    "1.5 times the size": lambda image: scaled(image, 1.5),
    "brighter by 20%": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "darker by 30%": lambda image: ImageEnhance.Brightness(image).enhance(0.7),
    "contrast 1.4": lambda image: ImageEnhance.Contrast(image).enhance(1.4),
    "without 1% at each edge": lambda image: cropped(image, 0.01),
    "without 3% at each edge": lambda image: cropped(image, 0.03),
}


def apart(one: list[int], other: list[int]) -> tuple[int, int]:
    """Bits by which the coarse and the fine hash differ."""
    bits = [(a ^ b).bit_count() for a, b in zip(one, other, strict=True)]
    return bits[0], sum(bits[1:])


def row(name: str, pairs: list[tuple[int, int]]) -> str:
    """A line of the table."""
    found = np.array(pairs)
    same = ((found[:, 0] <= NEAR[0]) & (found[:, 1] <= NEAR[1])).mean()
    coarse, fine = (f"{np.percentile(found[:, i], 50):.0f}, {found[:, i].min()}-{found[:, i].max()}" for i in (0, 1))
    return f"| {name} | {len(found):,} | {coarse} | {fine} | {100 * same:.1f}% |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=100, help="pictures of each kind")
    count = parser.parse_args().n
    changed: dict[str, list[tuple[int, int]]] = {name: [] for name in CHANGES}
    different: list[tuple[int, int]] = []
    for kind in PLAIN:
        drawn = (renderer(kind)(random.Random(f"near-{kind}-{i}"), "heldout").image for i in range(count))
        images = [image.convert("RGB") for image in drawn]
        prints = [picture_print(image) for image in images]
        for name, change in CHANGES.items():
            again = [picture_print(change(image)) for image in images]
            changed[name] += [apart(one, other) for one, other in zip(prints, again, strict=True)]
        different += [apart(one, other) for one, other in combinations(prints, 2)]
    print(f"| picture against | pairs | bits of 64: median, range | of 256 | same ({NEAR[0]} and {NEAR[1]} at most) |")
    print("|---|---|---|---|---|")
    for name, pairs in changed.items():
        print(row(f"itself, {name}", pairs))
    print(row("others of its kind", different))


if __name__ == "__main__":
    main()
