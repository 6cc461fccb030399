"""Towers: the numbers of transformers' models at the chosen blocks, for any block, tile size and precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from tower_cases import BLOCKS, CASES, PATCH, TILE, every_tower, expected, noise, reference

from pumice.model.towers import OPENAI, TOWERS, Tower, tower_class
from pumice.types import PumiceError


@every_tower
@pytest.mark.parametrize("layers", [(), (2,), (1, 3)])
def test_features_equal_transformers_hidden_states(name, layers, tmp_path):
    source = reference(name)
    source.save_pretrained(tmp_path)
    tower = TOWERS[name].from_folder(tmp_path, TILE, layers).eval()
    chosen = layers or (BLOCKS,)
    features = tower(noise())
    assert features.shape == (2, 25, 32 * len(chosen)) == (2, tower.side**2, tower.width)
    assert (features - expected(name, source, noise(), chosen)).abs().max() < 1e-5
    assert (tower.tile, tower.patch, tower.hidden, tower.layers) == (TILE, PATCH, 32, chosen)


@every_tower
def test_a_tower_from_its_config_saves_and_loads_its_own_weights(name):
    tower = TOWERS[name](CASES[name].fields, TILE, (1, 3))
    assert tower.training
    again = TOWERS[name](CASES[name].fields, TILE, (1, 3))
    assert not torch.allclose(tower(noise()), again(noise()))
    again.load_state_dict(tower.state_dict())
    assert torch.equal(tower(noise()), again(noise()))


@every_tower
def test_a_tile_that_is_no_multiple_of_the_patch(name):
    """384 = 27 * 14 + 6 in small: the last pixels on the right and at the bottom aren't seen, those before are."""
    tower = TOWERS[name](CASES[name].fields, 33).eval()
    tiles = noise(33)
    other = tiles.clone()
    other[..., 28:] = 5.0
    other[..., 28:, :] = -5.0
    assert tower.side == 2
    assert tower(tiles).shape == (2, 4, 32)
    assert torch.equal(tower(tiles), tower(other))
    other[..., 27] += 1.0
    assert not torch.equal(tower(tiles), tower(other))


@every_tower
def test_only_what_the_features_need_is_built(name):
    tower = TOWERS[name](CASES[name].fields, TILE, (1, 2))
    state = reference(name).state_dict()
    unused = ("encoder.layers.2.", "encoder.layer.2.", "model.layer.2.", "post_layernorm.", "head.")
    assert tower.model.state_dict().keys() == {key for key in state if not key.startswith(unused)}


@every_tower
def test_the_first_of_several_blocks_runs_alone(name):
    tower = TOWERS[name](CASES[name].fields, TILE, (1, 3))
    assert torch.equal(tower.first(noise()), tower(noise())[..., :32])
    tower.first(noise()).square().sum().backward()
    blocks = tower.model.get_submodule(tower.blocks)
    used = [any(p.grad is not None for p in block.parameters()) for block in blocks]
    assert used == [True, False, False]


@every_tower
def test_no_tiles_give_no_features(name):
    assert TOWERS[name](CASES[name].fields, TILE)(noise(count=0)).shape == (0, 25, 32)


@every_tower
def test_training_sees_the_same_features(name):
    """DINOv3's config asks for positions at a random scale in training, by default."""
    tower = TOWERS[name](CASES[name].fields, TILE)
    assert torch.equal(tower.train()(noise()), tower.eval()(noise()))


@every_tower
def test_bf16(name, tmp_path):
    """A tower cast to bf16 gives what transformers gives in bf16, and about what fp32 gives; so does autocast."""
    source = reference(name)
    source.save_pretrained(tmp_path)
    tower = TOWERS[name].from_folder(tmp_path, TILE, (2,)).eval()
    exact = tower(noise())
    with torch.autocast("cpu", torch.bfloat16):
        mixed = tower(noise())
    tower, tiles = tower.to(torch.bfloat16), noise().to(torch.bfloat16)
    half = tower(tiles)
    loaded = getattr(transformers, CASES[name].model).from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, expected(name, loaded, tiles, (2,)))
    for rounded in (half, mixed):
        assert (rounded.float() - exact).norm() < 0.03 * exact.norm()


@every_tower
def test_attention_is_fused(name):
    assert TOWERS[name](CASES[name].fields, TILE).config._attn_implementation == "sdpa"


def published(name: str, tile: int, layers: tuple[int, ...], **fields: Any) -> Tower:
    """A tower at its real size, without memory."""
    with torch.device("meta"):
        return TOWERS[name](fields, tile, layers)


def test_the_towers_of_the_line_have_their_published_sizes():
    large = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    so400m = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
    llava = published("clip", 336, (23,), **large, patch_size=14)
    onevision = published("siglip", 384, (26,), **so400m, patch_size=14)
    elva = published("clip", 224, (11,), patch_size=32)  # CLIP's own defaults are ViT-B/32
    assert [(t.side, t.width) for t in (llava, onevision, elva)] == [(24, 1024), (27, 1152), (7, 768)]
    # By hand: a block is 12 C^2 + 13 C weights at FFN 4 C, else 4 C^2 + 2 C F + F + 9 C.
    counts = [sum(p.numel() for p in tower.parameters()) for tower in (llava, onevision, elva)]
    clip = 14 * 14 * 3 * 1024 + 577 * 1024 + 1024 + 2 * 1024 + 23 * (12 * 1024**2 + 13 * 1024)
    block = 4 * 1152**2 + 2 * 1152 * 4304 + 4304 + 9 * 1152
    siglip = (14 * 14 * 3 + 1) * 1152 + 729 * 1152 + 26 * block
    # ELVA's whole encoder has 87,456,000: the last block and the final norm are left out.
    assert counts == [clip, siglip, 87_456_000 - (12 * 768**2 + 13 * 768) - 2 * 768]


def test_pixel_statistics():
    assert tuple(int(255 * mean) for mean in OPENAI.mean) == (122, 116, 104)  # ELVA's colour of padding
    means = {name: tower.pixels.mean for name, tower in TOWERS.items()}
    assert means["clip"] == OPENAI.mean
    assert means["siglip"] == (0.5, 0.5, 0.5)
    assert means["dinov2"] == means["dinov3"] == (0.485, 0.456, 0.406)
    assert OPENAI.std == (0.26862954, 0.26130258, 0.27577711)
    assert TOWERS["siglip"].pixels.std == (0.5, 0.5, 0.5)


def test_an_unknown_type_lists_the_known_ones():
    with pytest.raises(PumiceError, match="unknown tower type 'clip-vit'; known: dinov2, dinov3, clip, siglip"):
        tower_class("clip-vit")


@every_tower
@pytest.mark.parametrize("layers", [(0,), (4,), (3, 1), (2, 2), (-1,)])
def test_blocks_that_do_not_exist_are_refused(name, layers, tmp_path):
    with pytest.raises(PumiceError, match="expected rising numbers up to 3, the first at least 1"):
        TOWERS[name](CASES[name].fields, TILE, layers)
    reference(name).save_pretrained(tmp_path)
    with pytest.raises(PumiceError, match="expected rising numbers up to 3, the first at least 1"):
        TOWERS[name].from_folder(tmp_path, TILE, layers)


@every_tower
def test_a_config_of_more_blocks_than_any_tower_has_is_refused(name):
    with pytest.raises(PumiceError, match="num_hidden_layers = 1000000000; expected 1 to 1,000"):
        TOWERS[name]({**CASES[name].fields, "num_hidden_layers": 10**9}, TILE)


@every_tower
def test_tiles_of_another_size_are_refused(name):
    tower = TOWERS[name](CASES[name].fields, TILE)
    with pytest.raises(PumiceError, match=r"\(2, 3, 84, 84\), expected \(N, 3, 70, 70\)"):
        tower(noise(84))
    with pytest.raises(PumiceError, match="tiles of 13 pixels, expected at least one patch of 14"):
        TOWERS[name](CASES[name].fields, 13)
