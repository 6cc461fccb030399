"""Views against transformers' PIL processors, bit for bit, and glyph boxes against drawn dots."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from pumice.types import PumiceError
from pumice.vision.layout import PRESETS, Policy, glyph_views, layout
from pumice.vision.pixels import to_tiles, views

CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
LLAVA = {
    "size": {"shortest_edge": 48},
    "crop_size": {"height": 48, "width": 48},
    "image_mean": CLIP[0],
    "image_std": CLIP[1],
}
SIZES = [(1, 1), (1, 60), (200, 3), (33, 47), (48, 48), (64, 48), (90, 31), (96, 96), (150, 100), (131, 200), (97, 300)]


def noise(size, seed=0):
    """Noise over a gradient: bicubic overshoot, saturation and flat parts at once."""
    w, h = size
    random = np.random.default_rng(seed)
    ramp = np.linspace(0, 255, w)[None, :, None] * np.ones((h, 1, 3))
    pixels = np.where(random.random((h, w, 1)) < 0.5, random.integers(0, 256, (h, w, 3)), ramp)
    return Image.fromarray(pixels.astype("u1"))


def small(name, tile=48):
    """A preset with small tiles, read as transformers reads it."""
    return dataclasses.replace(PRESETS[name], tile=tile, grid_order="hw")


def pinpoints(policy):
    return [[a * policy.tile, b * policy.tile] for a, b in policy.grids]


@pytest.mark.parametrize("size", SIZES)
def test_next_equals_transformers(size):
    policy = small("NEXT_CLIP")
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}, image_grid_pinpoints=pinpoints(policy)
    )
    picture = noise(size)
    expected = processor(picture, return_tensors="pt")["pixel_values"][0]
    got = to_tiles(picture, layout(size, policy), policy, *CLIP)
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)


@pytest.mark.parametrize("size", SIZES)
def test_onevision_equals_transformers(size):
    policy = small("ONEVISION")
    processor = LlavaOnevisionImageProcessorPil(
        size={"height": 48, "width": 48}, image_grid_pinpoints=pinpoints(policy), image_mean=HALF[0], image_std=HALF[1]
    )
    picture = noise(size)
    expected = processor(picture, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(to_tiles(picture, layout(size, policy), policy, *HALF), expected)


def test_number_of_tiles_equals_transformers_on_300_sizes():
    random = np.random.default_rng(3)
    for name, kind in (("NEXT_CLIP", LlavaNextImageProcessorPil), ("ONEVISION", LlavaOnevisionImageProcessorPil)):
        policy = small(name, tile=4)
        processor = kind(
            size={"height": 4, "width": 4}, crop_size={"height": 4, "width": 4}, image_grid_pinpoints=pinpoints(policy)
        )
        sizes = [(1, 1), (1, 500), (500, 1), (2, 333), *(tuple(s) for s in random.integers(1, 60, (300, 2)).tolist())]
        for size in sizes:
            picture = Image.new("RGB", size, (9, 99, 199))
            expected = processor(picture, return_tensors="pt")["pixel_values"][0]
            got = to_tiles(picture, layout(size, policy), policy, *CLIP)
            assert torch.equal(got, expected), (name, size)


def test_grid_order_changes_pixels_but_not_counts():
    """Specification 1.10: below one tile (1, 2) and (2, 1) tie; the originals and transformers choose differently."""
    policy = PRESETS["NEXT_CLIP"]
    picture = noise((200, 180))
    mine, theirs = (
        to_tiles(picture, layout(picture.size, p), p, *CLIP)
        for p in (policy, dataclasses.replace(policy, grid_order="hw"))
    )
    assert mine.shape == theirs.shape == (3, 3, 336, 336)
    assert torch.equal(mine[0], theirs[0])
    assert not torch.equal(mine[1], theirs[1])


@pytest.mark.parametrize("size", SIZES)
def test_pad_equals_transformers(size):
    policy = dataclasses.replace(PRESETS["LLAVA_15"], tile=48)
    processor = LlavaImageProcessorPil(**LLAVA, do_pad=True)
    picture = noise(size)
    expected = processor(picture, return_tensors="pt")["pixel_values"]
    assert torch.equal(to_tiles(picture, layout(size, policy), policy, *CLIP), expected)


@pytest.mark.parametrize("size", SIZES)
def test_crop_equals_transformers(size):
    policy = Policy("crop", tile=48, side=6)
    processor = LlavaImageProcessorPil(**LLAVA, do_pad=False)
    picture = noise(size)
    expected = processor(picture, return_tensors="pt")["pixel_values"]
    got = to_tiles(picture, layout(size, policy), policy, *CLIP)
    # Cutting and resizing at once may round a pixel the other way.
    assert (got - expected).abs().max() <= 1.01 / 255 / min(CLIP[1])


def test_onevision_several_pictures_are_padded():
    policy = dataclasses.replace(PRESETS["ONEVISION_MULTI"], tile=48)
    processor = LlavaOnevisionImageProcessorPil(size={"height": 48, "width": 48}, image_mean=HALF[0], image_std=HALF[1])
    pictures = [noise((64, 48)), noise((30, 90), 1)]
    nested: Any = [pictures]  # several pictures of one sample; a flat list would be one sample each
    expected = processor(nested, return_tensors="pt")["pixel_values"]
    for picture, tiles in zip(pictures, expected, strict=True):
        assert torch.equal(to_tiles(picture, layout(picture.size, policy), policy, *HALF), tiles[:1])


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (300, 200)])
def test_every_preset_gives_its_views(name, size):
    policy = PRESETS[name]
    plan = layout(size, policy)
    tiles = to_tiles(Image.new("RGB", size), plan, policy, *HALF)
    assert tiles.shape == (plan.views, 3, policy.tile, policy.tile)


def test_thin_pictures_stay_cheap():
    """Padding or cropping as the originals do would make pictures of gigabytes."""
    picture = Image.new("RGB", (1, 30_000), (255, 0, 0))
    for mode in ("pad", "crop", "square"):
        policy = Policy(mode, tile=48, side=6, fill=(0, 0, 255))
        (view,) = views(picture, layout(picture.size, policy), policy)
        assert view.size == (48, 48)
        assert (255, 0, 0) in {color for _, color in view.getcolors() or []}, mode


def test_canvas_colour():
    policy = PRESETS["POCKET"]
    (view,) = views(Image.new("RGB", (224, 56)), layout((224, 56), policy), policy)
    assert view.getpixel((0, 0)) == (255, 255, 255)
    assert view.getpixel((112, 112)) == (0, 0, 0)


def test_wrong_picture_is_refused():
    policy = PRESETS["POCKET"]
    with pytest.raises(PumiceError, match="4x5"):
        views(Image.new("RGB", (4, 5)), layout((5, 4), policy), policy)
    with pytest.raises(PumiceError, match="mode L"):
        views(Image.new("L", (4, 5)), layout((4, 5), policy), policy)


POLICIES = [
    *PRESETS.values(),
    Policy("square", tile=224, side=8),
    Policy("crop", tile=224, side=8),
]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: f"{policy.mode}-{policy.tile}-{policy.side}")
@pytest.mark.parametrize("size", [(500, 400), (700, 300), (240, 650)])
def test_black_dot_is_where_glyph_views_says(policy, size):
    plan = layout(size, policy)
    policy = dataclasses.replace(policy, fill=(255, 255, 255))
    w, h = size
    for cx, cy in [(w // 2, h // 2), (w // 4, h // 3), (3 * w // 4, 2 * h // 3), (w - 20, h - 20), (12, h // 2)]:
        box = (cx - 6, cy - 6, cx + 6, cy + 6)
        picture = Image.new("RGB", size, "white")
        ImageDraw.Draw(picture).ellipse((box[0], box[1], box[2] - 1, box[3] - 1), fill="black")
        pictures = [255 - np.asarray(view.convert("L"), dtype=float) for view in views(picture, plan, policy)]
        found = dict(glyph_views(plan, box))
        inked = {i for i, ink in enumerate(pictures) if ink.sum() > 0}
        assert set(found) <= inked
        for index, (x0, y0, x1, y1) in found.items():
            ink = pictures[index]
            # A dot that the edge of a tile cuts has its centre of mass elsewhere.
            if min(x0, y0) < 0 or max(x1, y1) > plan.tile:
                continue
            ys, xs = np.arange(plan.tile) + 0.5, np.arange(plan.tile) + 0.5
            assert (ink.sum(0) @ xs) / ink.sum() == pytest.approx((x0 + x1) / 2, abs=0.8)
            assert (ink.sum(1) @ ys) / ink.sum() == pytest.approx((y0 + y1) / 2, abs=0.8)
        assert policy.mode == "crop" or found
