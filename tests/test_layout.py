"""Grids, maps and token counts against the published figures and transformers' own processors."""

import dataclasses
import json
import math
import random
import tomllib

import pytest

from pumice.types import PumiceError
from pumice.vision.layout import PRESETS, Policy, glyph_views, has_end, layout

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
        assert not has_end(got)


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
    [("LLAVA_15", 576, False), ("ONEVISION_MULTI", 730, True), ("NEXT_CLIP", 577, True), ("NEXT_SIGLIP", 730, True)],
)
@pytest.mark.parametrize("size", [(1, 1), (640, 480), (1, 5000)])
def test_one_view(name, tokens, end, size):
    policy = dataclasses.replace(PRESETS[name], mode="pad", grids=())
    got = layout(size, policy)
    assert (got.views, got.tokens, has_end(got), got.newline) == (1, tokens, end, False)
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
    assert layout((1000, 50), dataclasses.replace(pocket, rounding="truncate")).map == (0, 16)


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
