"""Loading towers: every kind of folder and state dict, positions of other tile sizes; what doesn't fit is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tower_cases import BLOCKS, CASES, PATCH, TILE, every_tower, expected, noise, random_model, reference

from pumice.model.backbones import resize_positions
from pumice.model.towers import TOWERS
from pumice.types import PumiceError

TEXT = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 16,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TABLES = {
    "clip": "embeddings.position_embedding.weight",
    "siglip": "embeddings.position_embedding.weight",
    "dinov2": "embeddings.position_embeddings",
}


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_the_vision_side_of_a_whole_model_loads(name, tmp_path):
    prefix = {"clip": "CLIP", "siglip": "Siglip"}[name]
    config = getattr(transformers, f"{prefix}Config")(vision_config=CASES[name].fields, text_config=TEXT)
    whole = random_model(getattr(transformers, f"{prefix}Model"), config)
    whole.save_pretrained(tmp_path)
    tower = TOWERS[name].from_folder(tmp_path, TILE, (2,)).eval()
    assert (tower(noise()) - expected(name, whole.vision_model, noise(), (2,))).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_a_folder_of_transformers_4_loads(name, tmp_path):
    """Its names begin with vision_model., and it holds the buffer of position numbers."""
    source = reference(name)
    source.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    state = {f"vision_model.{key}": value for key, value in load_file(path).items()}
    state["vision_model.embeddings.position_ids"] = torch.arange(25)[None]
    save_file(state, path, metadata={"format": "pt"})
    tower = TOWERS[name].from_folder(tmp_path, TILE, (2,)).eval()
    assert (tower(noise()) - expected(name, source, noise(), (2,))).abs().max() < 1e-5


@every_tower
@pytest.mark.parametrize("prefix", ["", "vision_model."])
def test_a_state_dict_loads_without_copies(name, prefix):
    source = reference(name)
    state = {prefix + key: value for key, value in source.state_dict().items()}
    tower = TOWERS[name](CASES[name].fields, TILE, (2,), state)
    assert (tower(noise()) - expected(name, source, noise(), (2,))).abs().max() < 1e-5
    theirs = {value.data_ptr() for value in state.values()}
    assert all(value.data_ptr() in theirs for value in tower.state_dict().values())
    assert all(module.training for module in tower.modules())


@every_tower
@pytest.mark.parametrize("tile", [42, 98])
def test_positions_of_another_tile_are_interpolated_as_transformers_does(name, tile, tmp_path):
    source = reference(name)
    source.save_pretrained(tmp_path)
    tower = TOWERS[name].from_folder(tmp_path, tile, (2,)).eval()
    inputs = {"interpolate_pos_encoding": True} if name in ("clip", "siglip") else {}
    assert (tower(noise(tile)) - expected(name, source, noise(tile), (2,), **inputs)).abs().max() < 1e-5
    if name in TABLES:  # at loading, not at every call
        assert tower.model.state_dict()[TABLES[name]].numel() == 32 * (CASES[name].prefix + (tile // PATCH) ** 2)


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("tile", [TILE, TILE + 6])
def test_positions_of_as_many_patches_stay_bit_for_bit(name, tile, tmp_path):
    source = reference(name)
    source.save_pretrained(tmp_path)
    tower = TOWERS[name].from_folder(tmp_path, tile)
    assert torch.equal(tower.model.state_dict()[TABLES[name]], source.state_dict()[TABLES[name]])


def test_a_table_grows_by_bicubic_interpolation_of_its_grid():
    """Keys' kernel with a = -0.75, the corners not aligned: cell k of 8 lies at (k + 0.5) / 2 - 0.5 of 4."""

    def kernel(d: float) -> float:
        return 1.25 * d**3 - 2.25 * d**2 + 1 if d <= 1 else -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)

    # Cells 3 and 4 lie at 1.25 and 1.75: their four neighbours are the whole row 0, 1, 2, 3.
    at = torch.tensor([sum(i * kernel(abs(i - x)) for i in range(4)) for x in (1.25, 1.75)])
    table = torch.cat([torch.tensor([[7.0]]), torch.arange(16.0)[:, None]])
    grown = resize_positions(table, 1, 8)
    assert grown[0] == 7.0
    assert torch.allclose(grown[1:].view(8, 8)[3:5, 3:5], 4 * at[:, None] + at, atol=1e-5)
    for rows in (1, 6):
        with pytest.raises(PumiceError, match=rf"{rows} rows: expected 1 and a square number"):
            resize_positions(torch.zeros(rows, 1), 1, 2)


def test_a_folder_of_another_type_says_which(tmp_path):
    reference("siglip").save_pretrained(tmp_path)
    wanted = r"'siglip_vision_model', expected clip_vision_model or clip; set the tower's type to \"siglip\""
    with pytest.raises(PumiceError, match=wanted):
        TOWERS["clip"].from_folder(tmp_path, TILE)
    (tmp_path / "config.json").write_text('{"model_type": "siglip2_vision_model"}')
    with pytest.raises(PumiceError, match=r"'siglip2_vision_model', .*; known towers: dinov2, dinov3, clip, siglip"):
        TOWERS["siglip"].from_folder(tmp_path, TILE)
    for text in ("[]", "{"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(PumiceError, match=r"config\.json: not readable"):
            TOWERS["clip"].from_folder(tmp_path, TILE)
    with pytest.raises(PumiceError, match=r"nowhere/config\.json: not readable"):
        TOWERS["clip"].from_folder(tmp_path / "nowhere", TILE)


def changed(folder: Path, drop: str = "", add: str = "", cut: str = "") -> None:
    """Spoil a folder's weights: remove one, add one, or shorten one."""
    path = folder / "model.safetensors"
    state = load_file(path)
    state.pop(drop, None)
    if add:
        state[add] = torch.zeros(3)
    if cut:
        state[cut] = state[cut][:-1].clone()
    save_file(state, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drop": "encoder.layers.1.mlp.fc1.weight"}, r"missing: encoder\.layers\.1\.mlp\.fc1\.weight; unknown: none"),
        ({"add": "encoder.layers.1.mlp.gate"}, r"missing: none; unknown: encoder\.layers\.1\.mlp\.gate"),
        ({"add": "adapter.weight"}, r"unknown: adapter\.weight"),
        (
            {"cut": "encoder.layers.0.layer_norm1.weight"},
            r"another shape: encoder\.layers\.0\.layer_norm1\.weight \[31\], expected \[32\]",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(change, message, tmp_path):
    reference("clip").save_pretrained(tmp_path)
    changed(tmp_path, **change)
    with pytest.raises(PumiceError, match=message) as error:
        TOWERS["clip"].from_folder(tmp_path, TILE)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_weights_that_no_feature_needs_may_be_missing(tmp_path):
    source = reference("clip")
    source.save_pretrained(tmp_path)
    changed(tmp_path, drop="post_layernorm.weight")
    changed(tmp_path, drop="encoder.layers.2.mlp.fc1.weight")
    tower = TOWERS["clip"].from_folder(tmp_path, TILE, (2,)).eval()
    assert (tower(noise()) - expected("clip", source, noise(), (2,))).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["dinov2", "dinov3"])
def test_the_mask_token_of_pretraining_may_be_missing(name, tmp_path):
    source = reference(name)
    source.save_pretrained(tmp_path)
    changed(tmp_path, drop="embeddings.mask_token")
    tower = TOWERS[name].from_folder(tmp_path, TILE).eval()
    assert (tower(noise()) - expected(name, source, noise(), (BLOCKS,))).abs().max() < 1e-5


def test_a_folder_without_weights_is_one_line(tmp_path):
    reference("dinov2").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(PumiceError, match="don't load as Dinov2Model") as error:
        TOWERS["dinov2"].from_folder(tmp_path, TILE)
    assert "\n" not in str(error.value)
