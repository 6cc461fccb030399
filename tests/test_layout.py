"""Grids, maps and token counts against the published figures and transformers' own processors."""

import dataclasses
import json
import math
import random
import tomllib
from typing import Any

import pytest

from pumice.types import PumiceError
from pumice.vision.frames import (
    VIDEO_PRESETS,
    VideoPolicy,
    default_video,
    instruction,
    pooled_side,
    sample_indices,
    sample_times,
    video_layout,
)
from pumice.vision.layout import PRESETS, Policy, glyph_views, layout

# (w, h): NeXT CLIP-336, NeXT SigLIP-384, OneVision: tokens, (cols, rows), final (h, w) of the map
GOLDEN = {
    (200, 200): [(1176, (1, 2), (24, 24)), (1513, (1, 2), (28, 27)), (1485, (1, 1), (27, 27))],
    (336, 336): [(1176, (1, 2), (24, 24)), (1513, (1, 2), (28, 27)), (1485, (1, 1), (27, 27))],
    (384, 384): [(2928, (2, 2), (48, 48)), (1513, (1, 2), (28, 27)), (1485, (1, 1), (27, 27))],
    (500, 500): [(2928, (2, 2), (48, 48)), (3699, (2, 2), (54, 54)), (3699, (2, 2), (54, 54))],
    (640, 480): [(2340, (2, 2), (36, 48)), (2929, (2, 2), (40, 54)), (2929, (2, 2), (40, 54))],
    (480, 640): [(2352, (2, 2), (48, 36)), (2943, (2, 2), (54, 40)), (2943, (2, 2), (54, 40))],
    (800, 600): [(2340, (2, 2), (36, 48)), (2929, (2, 2), (40, 54)), (4725, (3, 2), (54, 73))],
    (1024, 768): [(2340, (2, 2), (36, 48)), (2929, (2, 2), (40, 54)), (4725, (3, 2), (54, 73))],
    (1024, 1024): [(2928, (2, 2), (48, 48)), (3699, (2, 2), (54, 54)), (7371, (3, 3), (81, 81))],
    (1024, 899): [(2634, (2, 2), (42, 48)), (3369, (2, 2), (48, 54)), (6551, (3, 3), (71, 81))],
    (1280, 720): [(1948, (2, 2), (28, 48)), (2379, (2, 2), (30, 54)), (5967, (4, 2), (54, 96))],
    (1920, 1080): [(1948, (2, 2), (28, 48)), (2379, (2, 2), (30, 54)), (7269, (5, 3), (60, 108))],
    (1080, 1920): [(1968, (2, 2), (48, 28)), (2403, (2, 2), (54, 30)), (7317, (3, 5), (108, 60))],
    (3000, 2000): [(2144, (2, 2), (32, 48)), (2709, (2, 2), (36, 54)), (7329, (6, 4), (66, 99))],
    (2304, 2304): [(2928, (2, 2), (48, 48)), (3699, (2, 2), (54, 54)), (7371, (6, 6), (81, 81))],
    (1000, 200): [(1598, (3, 1), (14, 72)), (2123, (3, 1), (17, 81)), (2123, (3, 1), (17, 81))],
    (200, 1000): [(1656, (1, 3), (72, 14)), (2187, (1, 3), (81, 17)), (2187, (1, 3), (81, 17))],
    (4000, 500): [(1306, (3, 1), (10, 72)), (1631, (3, 1), (11, 81)), (4152, (6, 1), (21, 162))],
}


@pytest.mark.parametrize("size", GOLDEN)
def test_published_counts(size):
    for name, (tokens, grid, final) in zip(("NEXT_CLIP", "NEXT_SIGLIP", "ONEVISION"), GOLDEN[size], strict=True):
        got = layout(size, PRESETS[name])
        assert (got.tokens, (got.cols, got.rows), got.map) == (tokens, grid, final), name
        assert got.overview
        assert got.newline
        assert not got.ends


def test_scaled_map_keeps_its_unscaled_size():
    got = layout((1920, 1080), PRESETS["ONEVISION"])
    assert (got.keep[1] - got.keep[0], got.keep[3] - got.keep[2]) == (75, 135)
    assert got.map == (60, 108)


def test_largest_onevision_and_next():
    assert layout((988, 1207), PRESETS["ONEVISION"]).tokens == 8765
    generator = random.Random(0)
    sizes = [(generator.randint(1, 4000), generator.randint(1, 4000)) for _ in range(3000)]
    assert max(layout(size, PRESETS["ONEVISION"]).tokens for size in sizes) <= 8765
    assert max(layout(size, PRESETS["NEXT_CLIP"]).tokens for size in sizes) == 2928


@pytest.mark.parametrize(
    ("name", "tokens", "end"),
    [
        ("LLAVA_15", 576, False),
        ("ONEVISION_MULTI", 730, True),
        ("NEXT_MULTI", 577, True),
        ("NEXT_CLIP", 577, True),
        ("NEXT_SIGLIP", 730, True),
    ],
)
@pytest.mark.parametrize("size", [(1, 1), (640, 480), (1, 5000)])
def test_one_view(name, tokens, end, size):
    policy = dataclasses.replace(PRESETS[name], mode="pad", grids=())
    got = layout(size, policy)
    assert (got.views, got.tokens, got.ends, got.newline) == (1, tokens, end, False)
    assert layout(size, dataclasses.replace(policy, mode="square")).tokens == tokens
    assert layout(size, dataclasses.replace(policy, mode="crop")).tokens == tokens


def test_crop_sticks_out_of_the_canvas():
    got = layout((640, 480), Policy("crop", 336, 24))
    assert (got.resized, got.offset, got.overview) == ((448, 336), (-56, 0), False)


@pytest.mark.parametrize(
    ("size", "canvas", "tokens"),
    [
        ((1654, 2339), (672, 896), 637),
        ((864, 1296), (672, 896), 637),
        ((640, 480), (672, 672), 490),
        ((1920, 1080), (896, 672), 637),
        ((100, 100), (224, 224), 98),
    ],
)
def test_elva_worked_cases(size, canvas, tokens):
    got = layout(size, PRESETS["ELVA"])
    assert (got.cols * 224, got.rows * 224) == canvas
    assert (got.tokens, got.views * 49) == (tokens, tokens)
    assert got.map == (got.rows * 7, got.cols * 7)
    assert PRESETS["ELVA"].fill == (122, 116, 104)


def test_elva_tokens_of_every_grid():
    sizes = [(224, 224), (224, 448), (448, 224), (448, 448), (448, 672), (672, 448), (672, 672), (672, 896), (896, 672)]
    assert [layout(s, PRESETS["ELVA"]).tokens for s in sizes] == [98, 147, 147, 245, 343, 343, 490, 637, 637]


@pytest.mark.parametrize(
    ("size", "grid", "final", "tokens"),
    [
        ((224, 224), (1, 1), (8, 8), 72),  # no overview beside a single tile
        ((200, 120), (1, 1), (6, 8), 54),
        ((448, 224), (2, 1), (8, 16), 64 + 8 * 17),
        ((448, 448), (2, 2), (16, 16), 64 + 16 * 17),
        ((1000, 50), (2, 1), (2, 16), 64 + 2 * 17),  # a thin line of text keeps its rows
    ],
)
def test_pocket_with_four_patches_a_token(size, grid, final, tokens):
    got = layout(size, dataclasses.replace(PRESETS["POCKET"], side=8))
    assert ((got.cols, got.rows), got.map, got.tokens) == (grid, final, tokens)


@pytest.mark.parametrize(
    ("size", "grid", "final", "tokens"),
    [
        ((224, 224), (1, 1), (16, 16), 16 * 17),
        ((200, 120), (1, 1), (10, 16), 10 * 17),
        ((448, 224), (2, 1), (16, 32), 256 + 16 * 33),
        ((448, 448), (2, 2), (32, 32), 256 + 32 * 33),
    ],
)
def test_pocket(size, grid, final, tokens):
    got = layout(size, PRESETS["POCKET"])
    assert ((got.cols, got.rows), got.map, got.tokens) == (grid, final, tokens)
    assert got.overview == (got.cols * got.rows > 1)


def test_cover_never_drops_picture_and_truncation_does():
    pocket = PRESETS["POCKET"]
    generator = random.Random(1)
    for _ in range(500):
        size = (generator.randint(1, 3000), generator.randint(1, 3000))
        got = layout(size, pocket)
        patch = got.tile / got.side
        top, bottom, left, right = (edge * patch for edge in got.keep)
        assert left <= got.offset[0] + 1
        assert right >= got.offset[0] + got.resized[0] - 1
        assert top <= got.offset[1] + 1
        assert bottom >= got.offset[1] + got.resized[1] - 1
    assert layout((1000, 20), dataclasses.replace(pocket, rounding="truncate")).map == (0, 32)


def random_sizes(count):
    """Sizes of every kind: usual, at the tiles' own multiples, thin, tiny, huge."""
    generator = random.Random(20)
    sizes = [(1, 1), (1, 5000), (5000, 1), (2, 2), (1, 2), (7, 9000), (9000, 7), (336, 336), (384, 384), (20000, 20000)]
    while len(sizes) < count:
        unit = generator.choice([1, 1, 1, 168, 192, 336, 384])
        w, h = (generator.randint(1, max(2, 2500 // unit)) * unit for _ in range(2))
        sizes.append((w, h) if generator.random() < 0.8 else (w, max(1, h // 60)))
    return sizes


def reference_grid(size, policy):
    from transformers.image_processing_utils import select_best_resolution

    h, w = select_best_resolution((size[1], size[0]), [[a * policy.tile, b * policy.tile] for a, b in policy.grids])
    return w // policy.tile, h // policy.tile


def reference_counter(name, policy):
    """transformers' own count of tokens, without a tokenizer."""
    if name == "ONEVISION":
        from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor as Processor
    else:
        from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor as Processor

    processor = Processor.__new__(Processor)
    vars(processor)["vision_aspect_ratio"] = "anyres_max_9"

    def count(size):
        grid = reference_grid(size, policy)
        P = policy.side
        features, newlines = processor._get_unpadded_features(size[1], size[0], P, P, grid[1], grid[0])
        return policy.side**2 + features + newlines

    return count


@pytest.mark.parametrize("name", ["NEXT_CLIP", "NEXT_SIGLIP", "ONEVISION"])
def test_grid_and_tokens_equal_transformers(name):
    policy = dataclasses.replace(PRESETS[name], grid_order="hw", rounding="round7")
    count = reference_counter(name, policy)
    for size in random_sizes(1500):
        got = layout(size, policy)
        assert (got.cols, got.rows) == reference_grid(size, policy), size
        assert got.tokens == count(size), size


@pytest.mark.parametrize("name", ["NEXT_CLIP", "ONEVISION"])
def test_merged_features_equal_transformers(name):
    """The map sizes too, where transformers really un-pads and scales a tensor."""
    import torch
    from transformers.models.llava_onevision.modeling_llava_onevision import unpad_image

    policy = dataclasses.replace(PRESETS[name], rounding="round7")
    for size in random_sizes(300):
        got = layout(size, policy)
        full = torch.empty(1, got.rows * got.side, got.cols * got.side)
        top, bottom, left, right = got.keep
        assert unpad_image(full, (size[1], size[0])).shape == full[:, top:bottom, left:right].shape, size


def test_grid_order_matters_only_for_ties():
    clip = PRESETS["NEXT_CLIP"]
    assert (layout((200, 200), clip).cols, layout((200, 200), clip).rows) == (1, 2)
    swapped = layout((200, 200), dataclasses.replace(clip, grid_order="hw"))
    assert (swapped.cols, swapped.rows) == (2, 1)
    assert swapped.tokens == layout((200, 200), clip).tokens
    generator = random.Random(2)
    sizes = [(generator.randint(50, 2500), generator.randint(50, 2500)) for _ in range(4000)]
    for name, only_small in (("NEXT_CLIP", 336), ("ONEVISION", 0)):
        other = dataclasses.replace(PRESETS[name], grid_order="hw")
        differ = [s for s in sizes if layout(s, PRESETS[name]) != layout(s, other)]
        assert all(max(s) <= only_small for s in differ)
        assert bool(differ) == bool(only_small)


def test_rounding_options_differ():
    clip, size = PRESETS["NEXT_CLIP"], (1722, 656)
    counts = {r: layout(size, dataclasses.replace(clip, rounding=r)) for r in ("truncate", "round7")}
    assert counts["truncate"].map != counts["round7"].map
    assert (counts["truncate"].cols, counts["truncate"].rows) == (3, 1)
    x = 1722 * (24 / 656)  # 63 exactly, 62.999... in floats
    assert int(x) != int(round(x, 7))
    assert math.isclose(x, round(x), abs_tol=1e-7)


@pytest.mark.parametrize("name", PRESETS)
def test_policy_survives_json_and_toml(name):
    policy = PRESETS[name]
    assert Policy.from_dict(json.loads(json.dumps(policy.to_dict()))) == policy
    toml = "\n".join(f"{key} = {json.dumps(value)}" for key, value in policy.to_dict().items())
    assert Policy.from_dict(tomllib.loads(toml)) == policy
    hash(policy)


BASE = {"mode": "square", "tile": 224, "side": 7}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"new_line": True}, ["'new_line'", "'newline'"]),
        ({"mode": "anyress"}, ["'anyress'", "anyres"]),
        ({"tile": "224"}, ["tile", "'224'"]),
        ({"side": 0}, ["side", "0"]),
        ({"newline": 1}, ["newline", "true or false"]),
        ({"fill": [0, 0]}, ["fill"]),
        ({"mode": "anyres"}, ["anyres", "0 grids"]),
        ({"mode": "anyres", "grids": [[1, 2, 3]]}, ["grids"]),
        ({"mode": "anyres", "grids": [[1, 1]], "max_tiles": 9}, ["max_tiles", "unpad"]),
    ],
)
def test_bad_policy_is_named(change, words):
    with pytest.raises(PumiceError) as error:
        Policy.from_dict(BASE | change)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


def test_missing_key_and_impossible_size():
    with pytest.raises(PumiceError, match="missing side"):
        Policy.from_dict({"mode": "square", "tile": 224})
    with pytest.raises(PumiceError, match="0x5"):
        layout((0, 5), PRESETS["POCKET"])


def test_glyph_lands_in_one_tile_and_the_overview():
    got = layout((448, 448), PRESETS["POCKET"])  # 2x2 tiles, nothing resized
    assert glyph_views(got, (230, 10, 240, 30)) == [(2, (6, 10, 16, 30)), (0, (115, 5, 120, 15))]
    # cut by the edge of two tiles: only the one with the centre has it, whole
    assert glyph_views(got, (220, 300, 232, 310)) == [(4, (-4, 76, 8, 86)), (0, (110, 150, 116, 155))]
    assert glyph_views(got, (440, 0, 460, 10)) == []  # centre outside of the picture
    alone = layout((224, 112), PRESETS["POCKET"])
    assert glyph_views(alone, (0, 0, 2, 2)) == [(0, (0, 56, 2, 58))]


ONEVISION_VIDEO = VIDEO_PRESETS["ONEVISION_VIDEO"]
CLIP_VIDEO = VIDEO_PRESETS["NEXT_VIDEO"]


@pytest.mark.parametrize(
    ("frames", "change", "tokens"),
    [
        (32, {}, 6273),
        (64, {"newline": "grid"}, 13440),
        (64, {"newline": "grid", "pool": "average"}, 11648),
        (64, {"newline": "grid", "pool": "max"}, 11648),
        (10, {"newline": "frame"}, 1970),
        (10, {"newline": "no_token"}, 1960),
        (1, {}, 197),
        (1, {"newline": "frame"}, 197),
        (5, {"stride": 1}, 5 * 729 + 1),
    ],
)
def test_published_counts_of_videos(frames, change, tokens):
    got = video_layout(frames, (1920, 1080), dataclasses.replace(ONEVISION_VIDEO, **change))
    assert (got.tokens, got.views, got.frames) == (tokens, frames, frames)


def test_presets_of_videos():
    counts = {name: video_layout(policy.frames, (640, 480), policy).tokens for name, policy in VIDEO_PRESETS.items()}
    assert counts == {
        "ONEVISION_VIDEO": 6273,
        "LLAVA_VIDEO_7B": 13440,
        "LLAVA_VIDEO_72B": 6720,
        "NEXT_VIDEO": 32 * 144,
    }
    assert video_layout(1, (640, 480), CLIP_VIDEO).tokens == 144


@pytest.mark.parametrize("frames", [1, 2, 8, 31, 32])
def test_tokens_of_videos_equal_transformers(frames):
    import numpy as np
    from transformers.models.llava_next_video.processing_llava_next_video import LlavaNextVideoProcessor
    from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

    onevision: Any = LlavaOnevisionProcessor.__new__(LlavaOnevisionProcessor)
    vars(onevision).update(num_image_tokens=729, video_token=".")
    clip: Any = LlavaNextVideoProcessor.__new__(LlavaNextVideoProcessor)
    vars(clip).update(patch_size=14, video_token=".")
    for processor, policy in ((onevision, ONEVISION_VIDEO), (clip, CLIP_VIDEO)):
        pixels = {"pixel_values_videos": [np.empty((frames, 3, policy.tile, policy.tile), np.uint8)]}
        expected = len(processor.replace_video_token(pixels, 0))
        assert video_layout(frames, (640, 480), policy).tokens == expected


def test_side_after_pooling_is_that_of_the_pooling():
    import torch

    from pumice.model.connectors import pool

    for side in range(4, 30):
        for stride in (1, 2, 3, 4):
            for mode in ("bilinear", "average", "max"):
                assert pool(torch.zeros(1, side**2, 1), mode, stride).shape[1] == pooled_side(side, mode, stride) ** 2


@pytest.mark.parametrize("frames", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("newline", ["one_token", "grid", "frame", "no_token"])
def test_fast_frames_between_slow_ones(frames, newline):
    """LLaVA-Video's V = (64, M, 3, 2): frames 0, 3, 6... of 14 x 14 tokens, the others of 7 x 7."""
    got = video_layout(frames, (640, 480), dataclasses.replace(ONEVISION_VIDEO, slow_every=3, newline=newline))
    sides = [14 if i % 3 == 0 else 7 for i in range(frames)]
    ends = {"one_token": 1, "frame": frames}.get(newline, 0)
    assert got.tokens == sum(side * (side + (newline == "grid")) for side in sides) + ends


def test_a_frame_is_squashed_or_its_centre_cut_out():
    squashed, cut = (video_layout(3, (640, 480), policy) for policy in (ONEVISION_VIDEO, CLIP_VIDEO))
    assert (squashed.resized, squashed.offset) == ((384, 384), (0, 0))
    assert (cut.resized, cut.offset) == ((448, 336), (-56, 0))


@pytest.mark.parametrize(
    ("frames", "fps", "change", "expected"),
    [
        (100, 25.0, {}, [0, 25, 50, 75]),
        (101, 25.0, {}, [0, 25, 50, 75, 100]),
        (100, 24.4, {}, [0, 24, 48, 72, 96]),
        (100, 25.0, {"fps": 2.0}, [0, 12, 24, 36, 48, 60, 72, 84, 96]),  # round(12.5) is 12
        (100, 25.0, {"frames": 4}, [0, 25, 50, 75]),
        (100, 25.0, {"frames": 3}, [0, 49, 99]),  # 49.5 is truncated
        (100, 25.0, {"frames": 5, "force_sample": True}, [0, 24, 49, 74, 99]),
        (3, 25.0, {"frames": 5, "force_sample": True}, [0, 0, 1, 1, 2]),  # a short video repeats frames
        (1, 25.0, {}, [0]),
        (1, 25.0, {"frames": 4, "force_sample": True}, [0, 0, 0, 0]),
        (4, 0.25, {}, [0, 1, 2, 3]),  # round(0.25) would be a step of 0
    ],
)
def test_sampled_frames(frames, fps, change, expected):
    assert sample_indices(frames, fps, dataclasses.replace(ONEVISION_VIDEO, **change)) == expected


def test_times_are_those_of_the_originals():
    assert sample_times(100, 25.0, ONEVISION_VIDEO) == [0.0, 1.0, 2.0, 3.0]
    assert sample_times(120, 29.97, ONEVISION_VIDEO) == [0.0, 1.0, 2.0, 3.0]  # a step of 30 counts as a second
    three = dataclasses.replace(ONEVISION_VIDEO, frames=3)
    assert sample_times(120, 29.97, three) == [0.0, 59 / 29.97, 119 / 29.97]
    assert sample_times(100, 25.0, dataclasses.replace(ONEVISION_VIDEO, fps=2.5)) == pytest.approx(
        [index / 25 for index in range(0, 100, 10)]
    )


def test_instruction_is_word_for_word():
    assert instruction(100, 25.0, dataclasses.replace(ONEVISION_VIDEO, frames=3)) == (
        "The video lasts for 4.00 seconds, and 3 frames are uniformly sampled from it. These frames are located at "
        "0.00s,1.96s,3.96s.Please answer the following questions related to this video."
    )


@pytest.mark.parametrize("name", PRESETS)
def test_every_policy_has_frames_for_a_model_that_never_saw_any(name):
    policy = PRESETS[name]
    video = default_video(policy)
    got = video_layout(8, (640, 480), video)
    assert (got.tile, got.side, got.views) == (policy.tile, policy.side, 8)
    assert got.tokens <= 8 * 197
    assert bool(got.ends) == policy.newline


@pytest.mark.parametrize("name", VIDEO_PRESETS)
def test_video_policy_survives_json_and_toml(name):
    policy = VIDEO_PRESETS[name]
    assert VideoPolicy.from_dict(json.loads(json.dumps(policy.to_dict()))) == policy
    toml = "\n".join(f"{key} = {json.dumps(value)}" for key, value in policy.to_dict().items())
    assert VideoPolicy.from_dict(tomllib.loads(toml)) == policy


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"new_line": "grid"}, ["'new_line'", "'newline'"]),
        ({"newline": "rows"}, ["'rows'", "one_token, grid"]),
        ({"mode": "anyres"}, ["'anyres'", "square, crop"]),
        ({"pool": "mean"}, ["'mean'", "average"]),
        ({"frames": 0}, ["frames", "at least 1"]),
        ({"frames": 8.0}, ["frames", "8.0"]),
        ({"fps": 0}, ["fps", "above 0"]),
        ({"fps": True}, ["fps", "True"]),
        ({"force_sample": 1}, ["force_sample", "true or false"]),
        ({"pool": "max", "stride": 8}, ["stride 8", "7 tokens a side"]),
        ({"pool": "max", "stride": 4, "slow_every": 2}, ["stride 4", "7 tokens a side"]),
        ({"slow_every": 0}, ["slow_every"]),
    ],
)
def test_bad_video_policy_is_named(change, words):
    with pytest.raises(PumiceError) as error:
        VideoPolicy.from_dict({"tile": 224, "side": 7} | change)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


def test_impossible_videos():
    with pytest.raises(PumiceError, match="0 frames"):
        video_layout(0, (4, 4), ONEVISION_VIDEO)
    with pytest.raises(PumiceError, match="0x4"):
        video_layout(1, (0, 4), ONEVISION_VIDEO)
    for frames, fps in ((0, 25.0), (3, 0.0), (3, float("nan")), (3, float("inf"))):
        with pytest.raises(PumiceError, match="expected both above 0"):
            sample_indices(frames, fps, ONEVISION_VIDEO)
