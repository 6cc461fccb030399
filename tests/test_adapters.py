"""Adapters and connectors over their bases give what peft's models give; what doesn't fit is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import make_model, make_processor, make_tokenizer, noise, save_folder
from safetensors.torch import load_file, save_file
from test_formats import ORIGINAL
from torch import Tensor

import pumice
from pumice.formats.adapters import fold, merged
from pumice.formats.opening import own_names
from pumice.formats.shards import read_folder
from pumice.types import PumiceError

peft = pytest.importorskip("peft")

ATTENTION = ["q_proj", "v_proj"]
SPEAKING = r".*language_model.*\.(q_proj|up_proj|down_proj)"
PATTERNS = {
    "rank_pattern": {"up_proj": 3, r"layers\.1\.self_attn\.q_proj": 7},
    "alpha_pattern": {"^model.language_model.layers.0.mlp.down_proj": 5, "q_proj": 2.5},
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "LLaVA-1.5, tower too": ("llava", {"target_modules": ATTENTION}),
    "NeXT": ("next", {"target_modules": SPEAKING}),
    "NeXT with Mistral, every linear layer": ("next-mistral", {"target_modules": "all-linear", "lora_alpha": 3}),
    "OneVision": ("onevision", {"target_modules": ATTENTION, "lora_alpha": 16}),
    "rank-stabilised": ("next", {"target_modules": SPEAKING, "use_rslora": True}),
    "patterns": ("next", {"target_modules": SPEAKING, **PATTERNS}),
    "patterns, rank-stabilised": ("next", {"target_modules": SPEAKING, "use_rslora": True, **PATTERNS}),
    "DoRA": ("next", {"target_modules": SPEAKING, "use_dora": True}),
    "DoRA, tower too": ("onevision", {"target_modules": ATTENTION, "use_dora": True, "use_rslora": True}),
    "saved whole": ("next", {"target_modules": SPEAKING, "modules_to_save": ["multi_modal_projector", "lm_head"]}),
    "biases": ("onevision", {"target_modules": ATTENTION, "bias": "all"}),
    "biases of adapted layers": ("onevision", {"target_modules": ATTENTION, "bias": "lora_only"}),
    "low-rank bias": ("onevision", {"target_modules": ATTENTION, "lora_bias": True}),
    "embedding and head": ("next", {"target_modules": [*ATTENTION, "embed_tokens", "lm_head"]}),
    "one layer": ("next", {"target_modules": ATTENTION, "layers_to_transform": [1]}),
}


def adapt(family: str, tied: bool = False, **settings: Any) -> Any:
    """peft's model over a family's, everything that it trains random."""
    model = peft.get_peft_model(
        make_model(family, make_tokenizer(), tied), peft.LoraConfig(**{"r": 4, "lora_alpha": 8, **settings})
    ).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "magnitude" in name:
                parameter.mul_(0.5 + torch.rand(parameter.shape, generator=generator))
            elif parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def conversation(seed: int, sizes: tuple[tuple[int, int], ...] = ((112, 112),)) -> list[dict[str, Any]]:
    pictures = [{"type": "image", "image": noise(seed + i, size)} for i, size in enumerate(sizes)]
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": "What is it?"}]}]


@torch.no_grad()
def reference(family: str, model: Any, messages: list[dict[str, Any]]) -> Tensor:
    """The logits (T, V) of transformers' model, or of peft's around it."""
    processor = make_processor(family, make_tokenizer())
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    pictures = [part["image"] for part in messages[0]["content"] if part["type"] == "image"]
    return model(**processor(images=pictures or None, text=[text], return_tensors="pt")).logits[0]


def close(found: Tensor, expected: Tensor) -> bool:
    """To 1e-4 of the largest logit, and of 1."""
    return found.shape == expected.shape and bool(
        (found - expected).abs().max() < 1e-4 * expected.abs().max().clamp(min=1.0)
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_adapter_gives_the_logits_and_the_merged_weights_of_peft(bases, tmp_path, variant):
    family, settings = VARIANTS[variant]
    base, model = bases(family), adapt(family, **settings)
    model.save_pretrained(tmp_path)
    opened = pumice.load(str(tmp_path), dtype="float32", base=str(base))
    plain = pumice.load(str(base), dtype="float32")
    for seed, sizes in enumerate([((112, 112),), ((90, 40),), ()]):
        messages = conversation(seed, sizes)
        expected = reference(family, model, messages)
        assert close(opened.logits(messages), expected)
        assert not close(plain.logits(messages), expected)
    before = own_names(read_folder(base), base)
    folded = fold(before, tmp_path)
    expected = own_names(model.merge_and_unload().state_dict(), base)
    assert folded.keys() == before.keys() == expected.keys()
    for name, value in folded.items():
        assert (value - expected[name]).abs().max() <= 1e-6 * expected[name].abs().max().clamp(min=1.0), name
        assert value.dtype == before[name].dtype


def test_arithmetic_is_fp32_whatever_the_files_hold(bases, tmp_path):
    model = adapt("next", target_modules=SPEAKING)
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    half = {k: v.bfloat16() for k, v in own_names(read_folder(bases("next")), tmp_path).items()}
    exact, rounded = fold(half, tmp_path, torch.float32), fold(half, tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    stem = "base_model.model.model.language_model.layers.1.mlp.up_proj.lora_"
    name = "lm.model.layers.1.mlp.up_proj.weight"
    a, b = weights[f"{stem}A.weight"].double(), weights[f"{stem}B.weight"].double()
    wanted = half[name].double() + 2.0 * b @ a
    assert torch.allclose(exact[name].double(), wanted, atol=1e-5)
    assert rounded[name].dtype == torch.bfloat16
    assert torch.equal(rounded[name], exact[name].bfloat16())
    untouched = "lm.model.layers.1.mlp.gate_proj.weight"
    assert exact[untouched] is half[untouched]


def test_older_names_and_pickles_are_read(bases, tmp_path):
    model = adapt("next", target_modules=ATTENTION)
    model.save_pretrained(tmp_path)
    before = own_names(read_folder(bases("next")), tmp_path)
    expected = fold(before, tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    older = {}
    for name, value in weights.items():  # transformers before 4.52; the adapter's name left in
        name = name.replace("model.model.language_model.", "model.language_model.model.")
        name = name.replace("model.model.vision_tower.", "model.vision_tower.vision_model.")
        older[name.replace(".weight", ".default.weight")] = value
    assert not older.keys() & weights.keys()
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save(older, tmp_path / "adapter_model.bin")
    found = fold(before, tmp_path)
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_the_base_that_the_adapter_names_is_used(bases, tmp_path):
    model = adapt("next", target_modules=ATTENTION)
    model.save_pretrained(tmp_path)
    with pytest.raises(PumiceError, match=r"only a part of a model; it names no base: pass .* as base="):
        pumice.load(str(tmp_path))
    edit_config(tmp_path, base_model_name_or_path="llava-hf/llava-v1.6-vicuna-7b-hf")
    with pytest.raises(PumiceError, match=r"llava-v1.6-vicuna-7b-hf' is no folder here, and nothing is fetched: pass"):
        pumice.load(str(tmp_path))
    edit_config(tmp_path, base_model_name_or_path=str(bases("next")))
    messages = conversation(1)
    assert close(pumice.load(str(tmp_path), dtype="float32").logits(messages), reference("next", model, messages))


def edit_config(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


LAYOUTS = {
    "llava": {"image_aspect_ratio": "pad", "mm_patch_merge_type": "flat"},
    "next": {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad"},
}


class Originals:
    """A family's model in the originals' pieces: a language model, a tower, and the names of what is trained."""

    def __init__(self, root: Path, source: Path, family: str) -> None:
        config = json.loads((source / "config.json").read_text())
        self.lm, self.tower, self.part = root / "lm", root / "tower", root / "part"
        for folder in (self.lm, self.tower, self.part):
            folder.mkdir()
        self.weights = {}
        for name, value in load_file(source / "model.safetensors").items():
            theirs, ours = next((a, b) for a, b in ORIGINAL if name.startswith(a))
            self.weights[ours + name.removeprefix(theirs)] = value
        tower = "model.vision_tower.vision_tower."
        save_file(
            {n.removeprefix(tower): v for n, v in self.weights.items() if n.startswith(tower)},
            self.tower / "model.safetensors",
        )
        (self.tower / "config.json").write_text(json.dumps(config["vision_config"]))
        text = config["text_config"]
        save_file({n: v for n, v in self.weights.items() if n not in self.seeing()}, self.lm / "model.safetensors")
        (self.lm / "config.json").write_text(json.dumps(text))
        for path in source.glob("tokenizer*"):
            shutil.copyfile(path, self.lm / path.name)
        grids = {"image_grid_pinpoints": config["image_grid_pinpoints"]} if "image_grid_pinpoints" in config else {}
        mm = {"mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2, "mm_vision_tower": str(self.tower)}
        fields = {**text, "model_type": "llava_llama", **LAYOUTS[family], **grids, **mm}
        (self.part / "config.json").write_text(json.dumps(fields))

    def seeing(self) -> dict[str, Tensor]:
        parts = ("model.mm_projector.", "model.image_newline", "model.vision_tower.")
        return {n: v for n, v in self.weights.items() if n.startswith(parts)}

    def connecting(self) -> dict[str, Tensor]:
        return {n: v for n, v in self.seeing().items() if "vision_tower" not in n}

    def load(self, **given: Any) -> Any:
        options = {"base": str(self.lm), "tower": str(self.tower), "template": "chatml", **given}
        return pumice.load(str(self.part), dtype="float32", **options)


@pytest.fixture
def originals(bases, tmp_path) -> Callable[[str], Originals]:
    return lambda family: Originals(tmp_path, bases(family), family)


def save_original_adapter(parts: Originals, model: Any, prefix: str = "base_model.model.") -> None:
    """What LLaVA's training script writes: names without `language_model`, pickles, the connector apart."""
    model.save_pretrained(parts.part, safe_serialization=False)
    path = parts.part / "adapter_model.bin"
    weights = torch.load(path, weights_only=True)
    torch.save({n.replace("model.model.language_model.", "model.model."): v for n, v in weights.items()}, path)
    rest = {prefix + name: value for name, value in parts.connecting().items()}
    torch.save(rest, parts.part / "non_lora_trainables.bin")


@pytest.mark.parametrize("family", ["llava", "next"])
@pytest.mark.parametrize("prefix", ["base_model.model.", "model.", ""])
def test_an_original_adapter_over_a_plain_language_model(bases, originals, family, prefix):
    parts, model = originals(family), adapt(family, target_modules=SPEAKING)
    save_original_adapter(parts, model, prefix)
    messages = conversation(4)
    published = pumice.load(str(bases(family)), dtype="float32", template="chatml")
    model.save_pretrained(parts.part.parent / "hf")
    over_hf = pumice.load(
        str(parts.part.parent / "hf"), dtype="float32", base=str(bases(family)), template="chatml"
    ).logits(messages)
    opened = parts.load()
    assert (opened.logits(messages) - over_hf).abs().max() < 1e-4
    assert (published.logits(messages) - over_hf).abs().max() > 1e-2
    with pytest.raises(PumiceError, match=r"has no tower .* pass its folder as tower="):
        parts.load(tower=None)
    (parts.part / "non_lora_trainables.bin").unlink()
    with pytest.raises(PumiceError, match=r"connector weights that are missing.*layers.0.bias"):
        parts.load()


@pytest.mark.parametrize("with_tower", [False, True])
def test_an_original_adapter_replaces_what_a_whole_base_has(originals, with_tower):
    parts, model = originals("next"), adapt("next", target_modules=SPEAKING)
    save_original_adapter(parts, model)
    expected = parts.load().logits(conversation(4))
    rest = parts.seeing() if with_tower else parts.connecting()
    torch.save({f"base_model.model.{n}": v for n, v in rest.items()}, parts.part / "non_lora_trainables.bin")
    wrong = {n: torch.zeros_like(v) if n in rest else v for n, v in parts.weights.items()}
    save_file(wrong, parts.lm / "model.safetensors")
    shutil.copyfile(parts.part / "config.json", parts.lm / "config.json")
    assert torch.equal(parts.load(tower=None).logits(conversation(4)), expected)


@pytest.mark.parametrize("family", ["llava", "next"])
@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
@pytest.mark.parametrize("prefix", ["", "base_model.model."])
def test_a_connector_alone_over_a_language_model_and_a_tower(bases, originals, family, suffix, prefix):
    parts = originals(family)
    tensors = {prefix + name: value for name, value in parts.connecting().items()}
    path = parts.part / f"mm_projector.{suffix}"
    save_file(tensors, path) if suffix == "safetensors" else torch.save(tensors, path)
    messages = conversation(4)
    expected = pumice.load(str(bases(family)), dtype="float32", template="chatml").logits(messages)
    assert (parts.load().logits(messages) - expected).abs().max() < 1e-4
    with pytest.raises(PumiceError, match="only a part of a model; it names no base: pass"):
        parts.load(base=None)
    with pytest.raises(PumiceError, match=r"nowhere: no such folder, expected the base model of"):
        parts.load(base="nowhere")
    with pytest.raises(PumiceError, match=r"itself only a part of a model"):
        parts.load(base=str(parts.part))


def test_a_connector_that_does_not_fit_is_named(originals):
    parts = originals("llava")
    tensors = parts.connecting()
    path = parts.part / "mm_projector.bin"
    torch.save({**tensors, "model.mm_projector.0.weight": torch.zeros(3, 3), "other.weight": torch.zeros(1)}, path)
    with pytest.raises(PumiceError, match=r"doesn't fit the weights of its base; unknown: other.weight"):
        parts.load()
    torch.save({**tensors, "model.mm_projector.0.weight": torch.zeros(3, 3)}, path)
    with pytest.raises(PumiceError, match=r"of another shape: layers.0.weight"):
        parts.load()
    torch.save({"run": print}, path)
    with pytest.raises(PumiceError, match=r"mm_projector.bin: refused"):
        parts.load()


PREFIX = "base_model.model.model.language_model.layers."
FAULTS: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "half of a pair": (
        lambda w: w.pop(f"{PREFIX}0.self_attn.q_proj.lora_B.weight"),
        r"missing: model.language_model.layers.0.self_attn.q_proj.lora_B.weight$",
    ),
    "a layer without its pair": (
        lambda w: [w.pop(f"{PREFIX}1.self_attn.q_proj.lora_{x}.weight") for x in "AB"],
        r"missing: model.language_model.layers.1.self_attn.q_proj$",
    ),
    "another shape": (
        lambda w: w.update({f"{PREFIX}0.self_attn.q_proj.lora_A.weight": torch.zeros(4, 31)}),
        r"of another shape: .*layers.0.self_attn.q_proj \(A \[4, 31\], B \[32, 4\]; expected rank 4 beside \[32, 32\]",
    ),
    "another rank": (
        lambda w: w.update(
            {
                f"{PREFIX}0.self_attn.q_proj.lora_A.weight": torch.zeros(5, 32),
                f"{PREFIX}0.self_attn.q_proj.lora_B.weight": torch.zeros(32, 5),
            }
        ),
        r"of another shape: .*\(A \[5, 32\], B \[32, 5\]; expected rank 4",
    ),
    "not gathered by ZeRO-3": (
        lambda w: w.update({name: torch.zeros(0) for name in w}),
        r"of another shape: .*layers.0.self_attn.q_proj \(A \[0\], B \[0\]; expected rank 4",
    ),
    "a layer that the base lacks": (
        lambda w: w.update({f"{PREFIX}7.self_attn.q_proj.lora_{x}.weight": torch.zeros(4, 4) for x in "AB"}),
        r"unknown: model.language_model.layers.7.self_attn.q_proj$",
    ),
    "another kind of matrix": (
        lambda w: w.update({f"{PREFIX}0.self_attn.q_proj.lora_diag": torch.zeros(4)}),
        r"unknown: model.language_model.layers.0.self_attn.q_proj.lora_diag$",
    ),
    "a whole weight that the base lacks": (
        lambda w: w.update({"base_model.model.score.weight": torch.zeros(4)}),
        r"unknown: score.weight$",
    ),
    "several at once": (
        lambda w: [
            w.pop(f"{PREFIX}0.self_attn.q_proj.lora_B.weight"),
            w.update({f"{PREFIX}1.self_attn.v_proj.lora_A.weight": torch.zeros(4, 9), "score": torch.zeros(1)}),
        ],
        r"missing: .*0.self_attn.q_proj.lora_B.weight; of another shape: .*1.self_attn.v_proj.*; unknown: score$",
    ),
    "nothing": (lambda w: w.clear(), "no low-rank weights among its 0"),
}


@pytest.fixture
def adapter(tmp_path) -> Path:
    """A small adapter to break."""
    adapt("next", target_modules=ATTENTION).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("fault", FAULTS)
def test_weights_that_do_not_fit_are_named(bases, adapter, fault):
    edit, message = FAULTS[fault]
    weights = load_file(adapter / "adapter_model.safetensors")
    edit(weights)
    save_file(weights, adapter / "adapter_model.safetensors")
    with pytest.raises(PumiceError, match=message) as caught:
        merged(adapter, bases("next"))
    assert "\n" not in str(caught.value)


REFUSED = {
    "another method": ({"peft_type": "IA3"}, "peft_type = 'IA3'; only LORA adapters"),
    "prefixes": ({"peft_type": "PREFIX_TUNING"}, "peft_type = 'PREFIX_TUNING'; only LORA"),
    "some tokens": ({"alora_invocation_tokens": [1]}, "it acts on some tokens only"),
    "rows": ({"trainable_token_indices": [1]}, "single rows of the embedding"),
    "transposed": ({"fan_in_fan_out": True}, "fan_in_fan_out = True; .* transposed"),
    "a changed base": ({"init_lora_weights": "pissa_niter_4"}, "it changed the base's weights when training began"),
    "a scale of no number": ({"lora_alpha": "x"}, "lora_alpha = 'x'; expected a number"),
    "a rank of 0": ({"r": 0}, "r = 0; expected a whole number from 1 to 10,000,000"),
    "a pattern that is none": ({"alpha_pattern": {"(": 1}}, "isn't an expression"),
    "DoRA without magnitudes": ({"use_dora": True}, "missing: .*q_proj.lora_magnitude_vector"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_adapters_that_cannot_be_folded_are_refused(bases, adapter, what):
    values, message = REFUSED[what]
    edit_config(adapter, **values)
    with pytest.raises(PumiceError, match=message):
        pumice.load(str(adapter), base=str(bases("next")))


def test_files_that_cannot_be_trusted_are_refused(bases, adapter):
    base = str(bases("next"))
    path = adapter / "adapter_model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PumiceError, match=r"adapter_model.safetensors: not readable"):
        pumice.load(str(adapter), base=base)
    path.unlink()
    with pytest.raises(PumiceError, match=r"no weights of the adapter; expected adapter_model.safetensors or"):
        pumice.load(str(adapter), base=base)
    torch.save({"run": print}, adapter / "adapter_model.bin")
    with pytest.raises(PumiceError, match=r"adapter_model.bin: refused"):
        pumice.load(str(adapter), base=base)
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(PumiceError, match=r"adapter_config.json"):
        pumice.load(str(adapter), base=base)
    with pytest.raises(PumiceError, match="base= is for an adapter or a connector alone"):
        pumice.load(base, base=base)


def test_a_tied_embedding_changes_only_with_its_head(tmp_path):
    tokenizer, base, part = make_tokenizer(), tmp_path / "base", tmp_path / "part"
    save_folder(base, "onevision", tokenizer, make_model("onevision", tokenizer, tied=True))
    model = adapt("onevision", tied=True, target_modules=ATTENTION, modules_to_save=["embed_tokens"])
    model.save_pretrained(part)
    with pytest.raises(PumiceError, match="share one weight in the base"):
        merged(part, base)
    settings = {"target_modules": ATTENTION, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    model = adapt("onevision", tied=True, **settings)
    model.save_pretrained(part)
    opened = pumice.load(str(part), dtype="float32", base=str(base))
    assert close(opened.logits(conversation(2)), reference("onevision", model, conversation(2)))


def test_tokenizer_and_config_come_from_where_they_are(bases, adapter, originals):
    base = bases("next")
    whole = merged(adapter, base)
    assert (whole.config, whole.tokens) == (base, base)
    for path in (*base.glob("tokenizer*"), base / "chat_template.jinja"):
        shutil.copyfile(path, adapter / path.name)
    assert merged(adapter, base).tokens == adapter
    assert (
        pumice.load(str(adapter), base=str(base), dtype="float32").processor.template.source
        == (base / "chat_template.jinja").read_text()
    )


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_weights_are_cast_as_they_are_read(tmp_path, suffix):
    tensors = {"a": torch.randn(7, 5), "b": torch.randn(3).bfloat16(), "numbers": torch.arange(4)}
    if suffix == "bin":
        torch.save(tensors, tmp_path / "pytorch_model.bin")
    else:
        save_file(tensors, tmp_path / "model.safetensors")
    for dtype in (torch.float32, torch.bfloat16):
        found = read_folder(tmp_path, dtype)
        assert torch.equal(found["a"], tensors["a"].to(dtype))
        assert torch.equal(found["b"], tensors["b"].to(dtype))
        assert torch.equal(found["numbers"], tensors["numbers"])
    assert read_folder(tmp_path)["b"].dtype == torch.bfloat16


def test_the_command_folds_and_writes_every_form(bases, tmp_path, capsys):
    """adapter + base --merge--> llava-hf's folder and Pumice's own: both have the adapter's logits."""
    from pumice import cli

    model = adapt("llava", target_modules="all-linear")
    model.save_pretrained(tmp_path / "adapter")
    given = ["export", str(tmp_path / "adapter"), "--base", str(bases("llava"))]
    assert cli.main([*given, "--to", "hf", "--out", str(tmp_path / "hf")]) == cli.MISTAKE
    assert "--merge folds it into its base" in capsys.readouterr().err
    expected = reference("llava", model, messages := conversation(1))
    for form in ("hf", "pumice"):
        out = tmp_path / form
        assert cli.main([*given, "--merge", "--to", form, "--out", str(out)]) == 0
        assert close(pumice.load(str(out), dtype="float32").logits(messages), expected), form
    assert cli.main([*given, "--merge", "--to", "gguf", "--out", str(tmp_path / "gguf")]) == cli.MISTAKE
    assert "write it with --to hf --merge first" in capsys.readouterr().err
    assert (
        cli.main([*given, "--merge", "--to", "hf", "--precision", "f16", "--out", str(tmp_path / "x")]) == cli.MISTAKE
    )
    assert "--precision is for --to gguf" in capsys.readouterr().err
