"""Averaged checkpoints: the mean to the bit, what isn't alike is named, and scores decide who is in a soup."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hf_models import make_model, make_tokenizer, noise, save_folder
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_eval import needs_objects
from test_own_form import RECIPE, assert_same, conversations, largest_file, make
from torch import Tensor
from tower_cases import VISION, WIDE

import pumice
from pumice import cli
from pumice.config import load_recipe
from pumice.eval import soups
from pumice.eval.suite.embedded import evaluate
from pumice.formats.alike import check_alike, check_related
from pumice.formats.members import open_member
from pumice.formats.own import save_own
from pumice.formats.soup import merge, normalised, open_members
from pumice.model.build import build_model
from pumice.model.towers import ClipTower
from pumice.model.weights import apply_delta, pack_delta, read_delta, save_delta
from pumice.types import PumiceError


def fine_tuned(model: Any, seed: int, parts: str = "") -> None:
    """Change every weight whose name begins with ``parts`` by a tenth of its size, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.startswith(parts):
                value.add_(0.1 * value.std(correction=0) * torch.randn(value.shape, generator=generator))


def weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors."""
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


@pytest.fixture
def own(tokenizer, tmp_path) -> list[str]:
    """Three fine-tunings of one assistant in Pumice's own form."""
    for number in range(3):
        assistant = make(tokenizer)
        fine_tuned(assistant.model, number)
        save_own(assistant, tmp_path / f"own{number}")
    return [str(tmp_path / f"own{number}") for number in range(3)]


@pytest.fixture
def published(tmp_path) -> list[str]:
    """Two fine-tunings of one LLaVA-NeXT, saved by transformers."""
    tokenizer = make_tokenizer()
    for number in range(2):
        model = make_model("next", tokenizer)
        fine_tuned(model, number)
        save_folder(tmp_path / f"next{number}", "next", tokenizer, model)
    return [str(tmp_path / f"next{number}") for number in range(2)]


# the mean


def test_the_mean_is_the_one_by_hand_to_the_bit(own, tmp_path):
    a, b, c = (weights(Path(folder)) for folder in own)
    merge(own[:2], tmp_path / "half")
    half = weights(tmp_path / "half")
    assert half.keys() == a.keys()
    for name, value in half.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, 0.5 * a[name] + 0.5 * b[name])
        assert not torch.equal(value, a[name])
    merge(own, tmp_path / "weighted", weights=[3, 1, 1])  # 0.6, 0.2, 0.2
    for name, value in weights(tmp_path / "weighted").items():
        assert torch.equal(value, 0.6 * a[name] + 0.2 * b[name] + 0.2 * c[name])


def test_a_merged_folder_opens_and_gives_the_logits_of_the_averaged_state(own, tmp_path):
    merge(own, tmp_path / "mean", weights=[0.5, 0.25, 0.25])
    models = [pumice.load(folder, dtype="float32").model for folder in own]
    states = [model.state_dict() for model in models]
    expected = pumice.load(own[0], dtype="float32")
    mean = {
        name: 0.5 * states[0][name] + 0.25 * states[1][name] + 0.25 * states[2][name]
        for name, value in states[0].items()
        if value.is_floating_point()
    }
    expected.model.load_state_dict(mean, strict=False)
    assert_same(expected, pumice.load(str(tmp_path / "mean"), dtype="float32"))
    with pytest.raises(AssertionError):
        assert_same(pumice.load(own[0], dtype="float32"), pumice.load(str(tmp_path / "mean"), dtype="float32"))


def test_what_stands_beside_the_weights_is_the_firsts(published, tmp_path):
    first = Path(published[0])
    (first / "README.md").write_text("of the first")
    (first / "optimizer.pt").write_bytes(b"moments")
    (first / "checkpoint-10").mkdir()
    (first / ".cache").write_text("x")
    merge(published, tmp_path / "mean")
    names = {path.name for path in first.iterdir()} - {"optimizer.pt", "checkpoint-10", ".cache"}
    assert {path.name for path in (tmp_path / "mean").iterdir()} == names
    for name in names - {"model.safetensors"}:
        assert (tmp_path / "mean" / name).read_bytes() == (first / name).read_bytes()
    with safe_open(tmp_path / "mean" / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "merged": "0.5 next0 + 0.5 next1"}


def test_shards_stay_shards_and_transformers_reads_them(published, tmp_path):
    loaded = transformers.LlavaNextForConditionalGeneration.from_pretrained
    models = [loaded(folder) for folder in published]
    for number, model in enumerate(models):
        model.save_pretrained(tmp_path / f"sharded{number}", max_shard_size="40KB")
    merge([str(tmp_path / f"sharded{number}") for number in range(2)], tmp_path / "mean")
    index = "model.safetensors.index.json"
    found, first = (json.loads((tmp_path / name / index).read_text()) for name in ("mean", "sharded0"))
    assert found["weight_map"] == first["weight_map"]
    assert found["metadata"]["total_size"] == first["metadata"]["total_size"]
    assert len(set(found["weight_map"].values())) > 2
    mean, report = loaded(tmp_path / "mean", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, value in mean.state_dict().items():
        a, b = (model.state_dict()[name] for model in models)
        assert torch.equal(value, 0.5 * a + 0.5 * b)


def test_pickles_become_safetensors(published, tmp_path):
    for number, folder in enumerate(published):
        shutil.copytree(folder, tmp_path / f"pickled{number}")
        path = tmp_path / f"pickled{number}" / "model.safetensors"
        torch.save(load_file(path), path.with_name("pytorch_model.bin"))
        path.unlink()
    merge(published, tmp_path / "mean")
    merge([str(tmp_path / "pickled0"), published[1]], tmp_path / "again")
    assert not list((tmp_path / "again").glob("*.bin"))
    expected, found = weights(tmp_path / "mean"), weights(tmp_path / "again")
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_the_mean_is_taken_in_fp32_and_written_in_the_dtype_of_the_first(own, tmp_path):
    kept = torch.arange(6, dtype=torch.int64).reshape(2, 3)
    for number, dtype in ((0, torch.bfloat16), (1, torch.float32), (2, torch.float16)):
        state = {name: value.to(dtype) for name, value in weights(Path(own[number])).items()}
        save_file({**state, "lm.table": kept}, Path(own[number]) / "model.safetensors", {"format": "pt"})
    a, b, c = (weights(Path(folder)) for folder in own)
    merge(own, tmp_path / "mean", weights=[0.5, 0.2, 0.3])
    found, rounded_early = weights(tmp_path / "mean"), 0
    assert torch.equal(found.pop("lm.table"), kept)
    for name, value in found.items():
        mean = 0.5 * a[name].float() + 0.2 * b[name].float() + 0.3 * c[name].float()
        assert torch.equal(value, mean.to(torch.bfloat16))
        early = 0.5 * a[name] + 0.2 * b[name].bfloat16() + 0.3 * c[name].bfloat16()
        rounded_early += int((value != early).sum())
    assert rounded_early > 100


def test_frozen_weights_stay_the_same_to_the_bit(tokenizer, tmp_path):
    for number in range(3):
        assistant = make(tokenizer)
        fine_tuned(assistant.model, number, parts="connector")
        save_own(assistant, tmp_path / str(number))
    frozen = weights(tmp_path / "0")
    for name, shares in (("thirds", None), ("others", [0.1, 0.3, 0.6])):
        merge([str(tmp_path / str(number)) for number in range(3)], tmp_path / name, shares)
        for key, value in weights(tmp_path / name).items():
            assert torch.equal(value, frozen[key]) == (not key.startswith("connector")), key
    assert not torch.equal(frozen["lm.lm_head.weight"] * (1 / 3) * 3, frozen["lm.lm_head.weight"])


def test_of_a_checkpoint_with_weight_zero_nothing_is_left(own, tmp_path):
    merge([own[0], own[1]], tmp_path / "second", weights=[0, 5])
    assert (tmp_path / "second" / "model.safetensors").stat().st_size > 1000
    expected = weights(Path(own[1]))
    assert all(torch.equal(value, expected[name]) for name, value in weights(tmp_path / "second").items())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1.0], r"1 weights \(1\) for 2 checkpoints"),
        ([2.0, -1.0], "weights 2, -1; expected numbers of 0 or more"),
        ([0.0, 0.0], "weights 0, 0; expected .* not all of them 0"),
        ([float("nan"), 1.0], "weights nan, 1; expected"),
        ([float("inf"), 1.0], "weights inf, 1; expected"),
    ],
)
def test_impossible_weights_are_refused(given, message):
    with pytest.raises(PumiceError, match=message):
        normalised(given, 2)


def test_values_that_are_not_finite_are_refused(own, tmp_path):
    path = Path(own[1]) / "model.safetensors"
    state = load_file(path)
    state["lm.model.norm.weight"][3] = float("nan")
    save_file(state, path)
    with pytest.raises(PumiceError, match=rf"lm\.model\.norm\.weight: values that aren't finite in {own[1]}$"):
        merge(own[:2], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


# the tower alone


def test_only_the_tower_is_averaged_and_only_towers_must_be_alike(tokenizer, tmp_path):
    small, large = make(tokenizer, lm="llama"), make(tokenizer, lm="qwen2", connector=(2, 3, True))
    large.model.tower.load_state_dict(small.model.tower.state_dict())
    fine_tuned(large.model, 1, parts="tower")
    save_own(small, tmp_path / "small")
    save_own(large, tmp_path / "large")
    sources = [str(tmp_path / "small"), str(tmp_path / "large")]
    merge(sources, tmp_path / "mean", module="tower")
    a, b, found = (weights(tmp_path / name) for name in ("small", "large", "mean"))
    assert found.keys() == a.keys()
    for name, value in found.items():
        assert torch.equal(value, 0.5 * a[name] + 0.5 * b[name] if name.startswith("tower.") else a[name])
    assert pumice.load(str(tmp_path / "mean")).ask(noise(1, (50, 60)), "What?", max_tokens=3).tokens
    with pytest.raises(PumiceError, match=r"config: connector.depth 3, expected 2, text_config"):
        merge(sources, tmp_path / "all")


def test_towers_of_a_whole_clip_and_of_an_older_file(tmp_path):
    """The pretrained tower may be a soup's member, whatever its file calls its weights."""
    torch.manual_seed(0)
    text = {**WIDE, "vocab_size": 50, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1}
    whole = transformers.CLIPModel(transformers.CLIPConfig(vision_config=WIDE, text_config=text))
    whole.save_pretrained(tmp_path / "whole")
    tuned = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**WIDE))
    tuned.load_state_dict(whole.vision_model.state_dict())
    fine_tuned(tuned, 1)
    tuned.save_pretrained(tmp_path / "tuned")
    older = {f"vision_model.{name}": value for name, value in tuned.state_dict().items()}
    older["vision_model.embeddings.position_ids"] = torch.arange(26)[None]
    save_file({name: value.contiguous() for name, value in older.items()}, tmp_path / "tuned" / "model.safetensors")
    fields = json.loads((tmp_path / "tuned" / "config.json").read_text())
    del fields["layer_norm_eps"]  # transformers' default
    (tmp_path / "tuned" / "config.json").write_text(json.dumps({**fields, "top_k": 50, "torchscript": False}))
    for first, second, name in (("whole", "tuned", "a"), ("tuned", "whole", "b")):
        merge([str(tmp_path / first), str(tmp_path / second)], tmp_path / name, module="tower")
        assert weights(tmp_path / name).keys() == weights(tmp_path / first).keys()
        tower = ClipTower.from_folder(tmp_path / name, WIDE["image_size"])
        for key, value in tower.model.state_dict().items():
            before = whole.vision_model.state_dict()[key], tuned.state_dict()[key]
            if "post_layernorm" not in key:  # unused, and so not read
                assert torch.equal(value, 0.5 * before[0] + 0.5 * before[1]), key
    text_side = {name: value for name, value in whole.state_dict().items() if not name.startswith("vision_model.")}
    found = weights(tmp_path / "a")
    assert text_side
    assert all(torch.equal(value, found[name]) for name, value in text_side.items())
    with pytest.raises(PumiceError, match=r"tuned can't be averaged.*missing weights: logit_scale, text_model"):
        merge([str(tmp_path / "whole"), str(tmp_path / "tuned")], tmp_path / "all")


def test_dino_towers(tmp_path):
    torch.manual_seed(0)
    model = transformers.Dinov2Model(transformers.Dinov2Config(**VISION, mlp_ratio=2))
    model.save_pretrained(tmp_path / "a")
    fine_tuned(model, 1)
    model.save_pretrained(tmp_path / "b")
    for module in ("all", "tower"):
        merge([str(tmp_path / "a"), str(tmp_path / "b")], tmp_path / module, [0.25, 0.75], module)
        a, b, found = (weights(tmp_path / name) for name in ("a", "b", module))
        assert found.keys() == a.keys()
        assert all(torch.equal(value, 0.25 * a[name] + 0.75 * b[name]) for name, value in found.items())


# what isn't alike


def spoiled(folder: str, change: Any, file: str = "model.safetensors") -> None:
    path = Path(folder) / file
    if file.endswith(".json"):
        fields = json.loads(path.read_text())
        change(fields)
        path.write_text(json.dumps(fields))
        return
    state = load_file(path)
    change(state)
    save_file(state, path)


def test_names_and_shapes_that_differ_are_all_listed(own, tmp_path):
    def change(state):
        state["lm.model.more.weight"] = state.pop("lm.model.norm.weight")
        state["newline"] = state["newline"][:5].clone()
        state["lm.table"] = torch.tensor([1, 2])

    spoiled(own[1], change)
    spoiled(own[0], lambda state: state.update({"lm.table": torch.tensor([1, 3])}))
    with pytest.raises(PumiceError) as caught:
        merge(own[:2], tmp_path / "mean")
    assert str(caught.value) == (
        f"{own[1]} can't be averaged with {own[0]}: missing weights: lm.model.norm.weight; unknown weights: "
        "lm.model.more.weight; weights of another shape: newline [5], expected [32]; weights not of floating point "
        "that differ: lm.table"
    )
    assert not (tmp_path / "mean").exists()


def test_config_fields_that_differ_are_named_and_history_is_not(own, published, tmp_path):
    def change(fields):
        fields["text_config"]["rope_parameters"]["rope_theta"] = 5e5
        fields["layout"]["newline"] = False

    spoiled(own[1], change, "config.json")
    with pytest.raises(PumiceError, match=r"config: layout\.newline False, expected True, .*rope_theta 500000.0, exp"):
        merge(own[:2], tmp_path / "mean")
    history = {
        "transformers_version": "4.45.0",
        "_name_or_path": "x",
        "torch_dtype": "bfloat16",
        "mm_projector_lr": 1e-3,
    }
    spoiled(published[1], lambda fields: fields.update(history), "config.json")
    spoiled(published[1], lambda fields: fields["text_config"].update(rms_norm_eps=1e-3), "config.json")
    with pytest.raises(PumiceError, match=r"next0: config: text_config.rms_norm_eps 0.001, expected 1e-06$"):
        merge(published, tmp_path / "mean")
    spoiled(published[1], lambda fields: fields["text_config"].pop("rms_norm_eps"), "config.json")
    merge(published, tmp_path / "mean")


def test_members_of_two_kinds_and_of_none_are_refused(own, published, tmp_path):
    with pytest.raises(PumiceError, match=r"next0 is a checkpoint in llava-hf's form, .*own0 a checkpoint in Pumice's"):
        open_members([own[0], published[0]], "all")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        PumiceError, match=r"empty: expected a checkpoint's or tower's folder \(config.json\), or a run"
    ):
        open_member(str(tmp_path / "empty"))
    (tmp_path / "empty" / "adapter_config.json").write_text("{}")
    with pytest.raises(PumiceError, match="empty: only a part of a model"):
        open_member(str(tmp_path / "empty"))
    text = transformers.LlamaForCausalLM(transformers.LlamaConfig(**WIDE, vocab_size=40))
    text.save_pretrained(tmp_path / "text")
    with pytest.raises(PumiceError, match="text: neither a tower nor an assistant of the line: no connector"):
        open_member(str(tmp_path / "text"))
    with pytest.raises(PumiceError, match="1 checkpoint, expected at least two"):
        merge([own[0]], tmp_path / "mean")


def test_the_originals_names_are_averaged_too(published, tmp_path):
    from pumice.formats.export import export

    for number, folder in enumerate(published):
        export(Path(folder), tmp_path / f"original{number}", "original")
    sources = [str(tmp_path / f"original{number}") for number in range(2)]
    merge(sources, tmp_path / "mean")  # each names a tower's folder of its own, with the same content
    merge(published, tmp_path / "hf")
    expected = pumice.load(str(tmp_path / "hf"), dtype="float32", template="v1")
    found = pumice.load(str(tmp_path / "mean"), dtype="float32", template="v1")
    state = expected.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in found.model.state_dict().items())


# a common ancestor


def test_unrelated_models_are_refused_and_their_matrices_named(own, tokenizer, tmp_path):
    other = make(tokenizer)
    torch.manual_seed(7)
    with torch.no_grad():
        for value in other.model.parameters():
            if value.dim() > 1:
                value.copy_(torch.randn_like(value))
    save_own(other, tmp_path / "other")
    sources = [own[0], own[1], str(tmp_path / "other")]
    with pytest.raises(PumiceError) as caught:
        merge(sources, tmp_path / "mean")
    text = str(caught.value)
    assert "own1: " not in text
    assert all(f"matrices of {part} have a cosine below 0.5" in text for part in ("tower", "connector", "lm"))
    assert "lm.model.layers.0.mlp" in text
    assert not (tmp_path / "mean").exists()
    assert len(merge(sources, tmp_path / "mean", force=True)) == 3
    assert (tmp_path / "mean" / "model.safetensors").is_file()


def test_a_connector_of_another_seed_is_a_stranger_among_related_parts(tokenizer, tmp_path):
    for number in range(2):
        assistant = make(tokenizer)
        fine_tuned(assistant.model, number)
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for value in assistant.model.connector.parameters():
                value.copy_(torch.randn(value.shape, generator=generator))
        save_own(assistant, tmp_path / str(number))
    members = [open_member(str(tmp_path / str(number))) for number in range(2)]
    check_alike(members, "all")
    (text,) = check_related(members, "all", force=True)
    assert "2 of 2 matrices of connector" in text
    assert "connector.layers.0.weight 0.0" in text or "connector.layers.0.weight -0.0" in text
    assert check_related(members, "tower") == []


# deltas


@pytest.fixture
def runs(tokenizer, tmp_path) -> list[str]:
    """Three folders as `pumice train` leaves them: one base, one connector's start, low-rank pairs of two ranks."""
    base = make(tokenizer, tied=True)
    parts = tmp_path / "parts"
    base.model.lm.save_pretrained(parts / "lm")
    tokenizer.save_pretrained(parts / "lm")
    base.model.tower.model.save_pretrained(parts / "tower")
    for number, rank in enumerate((2, 2, 3)):
        trained = make(tokenizer, tied=True)
        fine_tuned(trained.model, number, parts="connector")
        fine_tuned(trained.model, number, parts="tower")
        with torch.no_grad():
            trained.model.newline.add_(0.1 * number)
        generator = torch.Generator().manual_seed(number)
        pairs = {
            f"model.layers.{layer}.mlp.up_proj": (
                0.2 * torch.randn(rank, 32, generator=generator),
                torch.randn(48, rank, generator=generator),
            )
            for layer in range(2)
        }
        run = tmp_path / f"run{number}"
        (run / "checkpoints").mkdir(parents=True)
        (run / "recipe.toml").write_text(RECIPE.format(lm=parts / "lm", tower=parts / "tower"))
        save_delta(pack_delta(trained.model, base.model.tower, pairs), run / "delta.safetensors", {"recipe": "tiny"})
    return [str(tmp_path / f"run{number}") for number in range(3)]


def applied(run: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(the model of a run, its pretrained parts)."""
    model = build_model(load_recipe(Path(run) / "recipe.toml").model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    apply_delta(model, Path(run) / "delta.safetensors")
    return model.state_dict(), before


@pytest.mark.parametrize("shares", [[0.5, 0.5], [0.2, 0.3, 0.5]])
def test_averaged_deltas_are_the_averaged_models_to_the_deltas_rounding(runs, tmp_path, shares):
    runs = runs[: len(shares)]
    merge(runs, tmp_path / "mean", shares)
    states = [applied(run)[0] for run in runs]
    found, before = applied(str(tmp_path / "mean"))
    changed = 0
    for name, value in found.items():
        mean = sum(share * state[name].double() for share, state in zip(shares, states, strict=True))
        off = (value.double() - mean).abs()
        if name.startswith("tower.") and f"{name}.q" in read_delta(tmp_path / "mean" / "delta.safetensors")[0]:
            step = (mean - before[name].double()).flatten(1).abs().amax(dim=1) / 127
            assert (off.flatten(1).amax(dim=1) <= 0.51 * step + 1e-6).all(), name
        elif "up_proj" in name:
            scale = (mean - before[name].double()).abs().max()
            assert off.max() <= 2**-7 * scale, name  # bf16 has 8 bits
        else:
            assert (off <= 2**-11 * mean.abs() + 1e-6).all(), name  # fp16 has 11
        changed += not torch.allclose(value.double(), states[0][name].double(), atol=1e-3)
    assert changed > 20
    tensors, metadata = read_delta(tmp_path / "mean" / "delta.safetensors")
    assert metadata["recipe"] == "tiny"
    assert "run0" in metadata["merged"]
    ranks = [len(value) for name, value in tensors.items() if name.endswith(".a")]
    assert ranks == [4, 4] if len(runs) == 2 else ranks == [7, 7]
    assert {path.name for path in (tmp_path / "mean").iterdir()} == {"recipe.toml", "delta.safetensors"}
    assert pumice.load(str(tmp_path / "mean")).ask(noise(1, (40, 50)), "What?", max_tokens=3).tokens


def test_a_run_with_all_the_weight_stays_as_it_was(runs, tmp_path):
    # A delta file stands for its run.
    merge([runs[0], f"{runs[1]}/delta.safetensors"], tmp_path / "second", weights=[0, 1])
    merge([runs[0], runs[0]], tmp_path / "first")
    for name, run in (("second", runs[1]), ("first", runs[0])):
        expected, found = (read_delta(Path(f) / "delta.safetensors")[0] for f in (run, tmp_path / name))
        assert found.keys() == expected.keys()
        assert all(torch.equal(value, expected[key]) for key, value in found.items())


def test_the_rank_of_averaged_pairs_stops_at_what_the_product_can_have(runs, tmp_path):
    many = [runs[number % 3] for number in range(18)]  # 42 ranks, of 32 x 48
    merge(many, tmp_path / "many")
    merge(runs, tmp_path / "few")
    tensors, _ = read_delta(tmp_path / "many" / "delta.safetensors")
    assert {len(value) for name, value in tensors.items() if name.endswith(".a")} == {32}
    few, many_state = applied(str(tmp_path / "few"))[0], applied(str(tmp_path / "many"))[0]
    name = "lm.model.layers.1.mlp.up_proj.weight"
    assert torch.allclose(few[name], many_state[name], atol=2**-7)
    assert not torch.allclose(few[name], applied(runs[0])[0][name], atol=0.1)


def test_of_deltas_the_tower_alone(runs, tmp_path):
    merge(runs[:2], tmp_path / "mean", module="tower")
    a, b, found = (read_delta(Path(f) / "delta.safetensors")[0] for f in (*runs[:2], tmp_path / "mean"))
    towers = [name for name in a if name.startswith("tower.") and not torch.equal(a[name], b[name])]
    assert towers
    assert all(not torch.equal(found[name], a[name]) for name in towers)
    assert all(torch.equal(found[name], a[name]) for name in a if not name.startswith("tower."))


def test_runs_over_other_parts_or_of_another_connector_are_refused(runs, tokenizer, tmp_path):
    path = Path(runs[1]) / "recipe.toml"
    path.write_text(path.read_text().replace("[1, 3]", "[2, 3]"))
    with pytest.raises(
        PumiceError, match=r"run1 can't be averaged with .*run0: config: tower.layers \(2, 3\), expected"
    ):
        merge(runs[:2], tmp_path / "mean")
    path.unlink()
    with pytest.raises(PumiceError, match=r"run1/delta\.safetensors: no recipe\.toml beside the delta"):
        merge([runs[0], f"{runs[1]}/delta.safetensors"], tmp_path / "mean")
    tensors, _ = read_delta(Path(runs[2]) / "delta.safetensors")
    for name, value in tensors.items():
        if name.startswith("connector.") and value.dim() > 1:
            tensors[name] = torch.randn(value.shape, generator=torch.Generator().manual_seed(1)).half()
    save_delta(dict(tensors), Path(runs[2]) / "delta.safetensors", {})
    with pytest.raises(PumiceError, match="run2: 2 of 2 matrices of connector have a cosine below"):
        merge([runs[0], runs[2]], tmp_path / "mean")


# disk and memory


@pytest.mark.parametrize("size", [100, 20_000])
def test_a_full_disk_leaves_nothing_behind(own, runs, tmp_path, size):
    before = {path.name for path in tmp_path.iterdir()}
    for sources in (own[:2], runs[:2]):
        out = tmp_path / "new" / "mean"
        with pytest.raises(PumiceError, match=rf"{out}: not written \(.*File too large"), largest_file(size):
            merge(sources, out)
        assert {path.name for path in tmp_path.iterdir()} == before
    (tmp_path / "mean").mkdir()
    (tmp_path / "mean" / "notes.txt").write_text("mine")
    with pytest.raises(PumiceError, match="mean: not empty; nothing is written over"):
        merge(own[:2], tmp_path / "mean")


PEAK = """
import sys
from pathlib import Path
from pumice.formats.soup import merge

def peak():  # in KB, of this program alone: what getrusage says begins with the parent's
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

before = peak()
merge(sys.argv[1:3], Path(sys.argv[3]))
print((peak() - before) / 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_checkpoints(own, tmp_path):
    """Two checkpoints of 64 MB in tensors of 1 MB."""
    for number in range(2):
        state = weights(Path(own[number]))
        more = torch.randn(64, 512, 512, generator=torch.Generator().manual_seed(0)) + 0.1 * number
        state |= {f"lm.more.{i}.weight": value.clone() for i, value in enumerate(more)}
        save_file(state, Path(own[number]) / "model.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *own[:2], str(tmp_path / "mean")], capture_output=True, text=True, check=True
    )
    assert (tmp_path / "mean" / "model.safetensors").stat().st_size > 64 * 2**20
    assert float(done.stdout) < 30


# soups


def table(scores: dict[tuple[int, ...], float]) -> Any:
    """A score function of the members that a uniform mean is of."""
    asked: list[tuple[int, ...]] = []

    def score(shares):
        kept = tuple(i for i, share in enumerate(shares) if share)
        assert all(shares[i] == 1 / len(kept) for i in kept)
        asked.append(kept)
        return scores[kept]

    return score, asked


def test_the_greedy_soup_adds_the_best_first_and_keeps_what_does_not_hurt():
    score, asked = table({
        (0,): 0.5, (1,): 0.9, (2,): 0.7, (3,): 0.7,
        (1, 2): 0.85,  # falls: 2 stays out
        (1, 3): 0.9,  # no change: 3 joins
        (0, 1, 3): 0.95,
    })  # fmt: skip
    tried = soups.greedy(4, score)
    assert [(one.member, one.own, one.soup, one.kept) for one in tried] == [
        (1, 0.9, 0.9, True),
        (2, 0.7, 0.85, False),
        (3, 0.7, 0.9, True),
        (0, 0.5, 0.95, True),
    ]
    assert asked == [(0,), (1,), (2,), (3,), (1, 2), (1, 3), (0, 1, 3)]


def test_a_soup_that_only_spoils_is_its_best_member():
    score, _ = table({(0,): 0.0, (1,): 0.3, (2,): 0.2, (1, 2): 0.1, (0, 1): 0.29})
    tried = soups.greedy(3, score)
    assert [one.member for one in tried if one.kept] == [1]
    assert [one.member for one in tried] == [1, 2, 0]


def test_a_later_member_is_compared_with_the_soup_not_with_what_was_turned_down():
    score, _ = table({(0,): 0.8, (1,): 0.7, (2,): 0.6, (0, 1): 0.2, (0, 2): 0.5})
    assert [one.kept for one in soups.greedy(3, score)] == [True, False, False]


def test_a_sweep_asks_the_ends_for_what_they_are(own):
    asked = []

    def score(shares):
        asked.append(tuple(shares))
        return (shares[0] ** 2, 0.5)

    points = soups.sweep((0.0, 0.25, 1.0), score)
    assert asked == [(1.0, 0.0), (0.75, 0.25), (0.0, 1.0)]
    assert [point.scores for point in points] == [(1.0, 0.5), (0.5625, 0.5), (0.0, 0.5)]
    assert soups.best(points).a == 0
    assert soups.best([replace(points[2], scores=(1.0, 0.6)), points[0]]).a == 1
    assert soups.best([points[2], points[0], points[0]]).mean == 0.75


def test_what_is_opened_to_be_scored_is_the_mean_and_nothing_stays(own, runs, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    for sources in (own[:2], runs[:2]):
        members, _ = open_members(sources, "all")
        ends = [pumice.load(source, dtype="float32") for source in sources]
        for end, shares in zip(ends, ([1.0, 0.0], [0.0, 1.0]), strict=True):
            with soups.opened(members, shares, "all") as assistant:
                assert_same(end, assistant)
        merge(sources, tmp_path / f"mean-{Path(sources[0]).name}")
        with soups.opened(members, [0.5, 0.5], "all") as assistant:
            messages = conversations(assistant)[0]
            mean = pumice.load(str(tmp_path / f"mean-{Path(sources[0]).name}"))
            assert torch.equal(assistant.logits(messages), mean.logits(messages))
            assert not torch.equal(assistant.logits(messages), ends[0].logits(messages))
    assert not list((tmp_path / "scratch").iterdir())


def parrot(tokenizer: Any, answer: str, folder: Path) -> str:
    """An assistant that answers every question the same: after each character of the answer its LM wants the next."""
    assistant = make(tokenizer)
    lm = assistant.model.lm
    with torch.no_grad():
        for block in lm.model.layers:
            block.self_attn.o_proj.weight.mul_(1e-4)
            block.mlp.down_proj.weight.mul_(1e-4)
        table = torch.randn(lm.lm_head.weight.shape, generator=torch.Generator().manual_seed(3))
        lm.model.embed_tokens.weight.copy_(torch.nn.functional.normalize(table, dim=1))
        lm.model.norm.weight.fill_(1.0)
        lm.lm_head.weight.mul_(0.01)
        ids = [*tokenizer("\n" + answer).input_ids, tokenizer.convert_tokens_to_ids("<|im_end|>")]
        for before, after in pairwise(ids):
            lm.lm_head.weight[after] += lm.model.embed_tokens.weight[before] * 10
    save_own(assistant, folder)
    return str(folder)


@pytest.fixture
def parrots(tokenizer, tmp_path) -> list[str]:
    """Two assistants, one right where the answer is no, one where it is yes."""
    return [parrot(tokenizer, answer, tmp_path / answer) for answer in ("no", "yes")]


@needs_objects
def test_the_ends_of_a_sweep_score_what_the_members_do(parrots, tmp_path, capsys):
    own = [evaluate(pumice.load(folder), ("yesno",), 15, blind=False)["yesno"].score for folder in parrots]
    assert sum(own) == 1
    assert min(own) > 0
    command = ["merge", "--sweep", *parrots, "--tasks", "yesno", "--against", "colour,counting", "-n", "15", "--json"]
    files = ["--plot", str(tmp_path / "sweep.svg"), "--out", str(tmp_path / "best")]
    assert cli.main([*command, "--points", "1,0,.5,1", *files]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [point["a"] for point in found["points"]] == [0, 0.5, 1]
    assert [found["points"][i]["tasks"] for i in (0, 2)] == own
    assert {point["against"] for point in found["points"]} == {0}
    assert found["best"] == max(found["points"], key=lambda point: point["mean"])["a"]
    chosen = weights(Path(parrots[own.index(max(own))]))
    if max(point["tasks"] for point in found["points"]) == max(own):
        assert all(torch.equal(value, chosen[name]) for name, value in weights(tmp_path / "best").items())
    assert "<svg" in (tmp_path / "sweep.svg").read_text()


@needs_objects
def test_the_greedy_soup_of_real_models_is_printed_and_written(parrots, tmp_path, capsys):
    own = [evaluate(pumice.load(folder), ("yesno",), 15, blind=False)["yesno"].score for folder in parrots]
    first = own.index(max(own))
    sources = [*parrots, parrots[first]]  # the best once more changes nothing, and so joins
    assert cli.main(["merge", *sources, "--greedy", "yesno", "-n", "15", "--out", str(tmp_path / "soup")]) == 0
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    assert [row[1:] for row in rows[:2]] == [[f"{100 * max(own):.1f}", f"{100 * max(own):.1f}", "yes"]] * 2
    assert rows[2][1] == f"{100 * min(own):.1f}"
    assert out.splitlines()[-1] == str(tmp_path / "soup")
    if rows[2][3] == "no":
        expected = weights(Path(parrots[first]))
        assert all(torch.equal(value, expected[name]) for name, value in weights(tmp_path / "soup").items())


def test_a_drawing_is_a_picture(tmp_path):
    from PIL import Image

    points = [soups.Point(0.0, (0.1, 0.9)), soups.Point(0.5, (0.6, 0.8)), soups.Point(1.0, (0.7, 0.2))]
    soups.draw(points, ("read", "objects"), ("runs/$clip_", "runs/reader"), tmp_path / "sweep.png")
    with Image.open(tmp_path / "sweep.png") as image:
        assert image.size[0] > 600
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 10
    with pytest.raises(PumiceError, match="not written"):
        soups.draw(points, ("a", "b"), ("a", "b"), tmp_path / "no" / "sweep.png")


# the command


def test_the_command_writes_the_mean(own, tmp_path, capsys):
    out = tmp_path / "mean"
    assert cli.main(["merge", *own[:2], "--weights", "1,3", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    a, b = (weights(Path(folder)) for folder in own[:2])
    assert all(torch.equal(value, 0.25 * a[name] + 0.75 * b[name]) for name, value in weights(out).items())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["A", "--out", "x"], "only A; expected at least two"),
        (["A", "B"], "--out is missing"),
        (["A", "B", "--out", "x", "--weights", "1;2"], "expected numbers with commas"),
        (["A", "B", "--out", "x", "--weights=-1,2"], "weights -1, 2; expected numbers of 0 or more"),
        (["A", "B", "--out", "x", "--weights=1,2,3"], "3 weights (1, 2, 3) for 2 checkpoints"),
        (["A", "B", "--greedy", "cells", "--sweep"], "expected one of them"),
        (["A", "B", "--greedy", "cells", "--weights", "1,1"], "--weights are chosen by --greedy"),
        (["A", "B", "--greedy", "nonesuch"], "no task 'nonesuch'"),
        (["A", "B", "--greedy", ","], "--greedy is empty"),
        (["A", "B", "--sweep", "--tasks", "read"], "expected both --tasks and --against"),
        (["A", "B", "C", "--sweep", "--tasks", "read", "--against", "cells"], "expected two, got 3"),
        (["A", "B", "--out", "x", "--points", "0,1"], "--points: only for --sweep"),
        (["A", "B", "--sweep", "--tasks", "read", "--against", "cells", "--points", "0,2"], "from 0 to 1"),
        (["A", "B", "--sweep", "--tasks", "read", "--against", "cells", "--plot", "x.pdf"], "ends in .png or .svg"),
        (["A", "B", "--out", "x", "--json"], "--json is for --greedy and --sweep"),
        (["A", "B", "--out", "."], ".: not empty"),
        (["A", "B", "--out", "x"], "A: expected a checkpoint's or tower's folder"),
    ],
)
def test_mistakes_are_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert cli.main(["merge", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_tower_alone_has_no_score(tmp_path, capsys):
    torch.manual_seed(0)
    transformers.Dinov2Model(transformers.Dinov2Config(**VISION, mlp_ratio=2)).save_pretrained(tmp_path / "tower")
    assert cli.main(["merge", str(tmp_path / "tower"), str(tmp_path / "tower"), "--greedy", "cells"]) == 2
    assert "tower is a tower alone and can't answer" in capsys.readouterr().err
