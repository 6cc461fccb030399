"""Low-rank training: what a run over a checkpoint leaves is complete, and opens everywhere as what was trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model
from hf_models import make_model, make_tokenizer
from PIL import Image
from safetensors.torch import load_file
from test_adapters import close, conversation, reference
from test_data import said, write

import pumice
from pumice.assistant import Assistant
from pumice.config import LoraConfig, Recipe, load_recipe
from pumice.formats.adapters import fold
from pumice.formats.export import export
from pumice.formats.opening import own_names
from pumice.formats.own import save_own
from pumice.formats.shards import read_folder
from pumice.model.build import build_processor
from pumice.plan.recipe import sizes_of
from pumice.train import run as running
from pumice.train.course import lora_parameters
from pumice.train.finetune import write_recipe
from pumice.train.lowrank import add_lora, folded, has_lora, lora_pairs, narrow, set_lora_pairs, updates
from pumice.train.objectives import Learner
from pumice.train.parallel import World
from pumice.train.run import train
from pumice.types import PumiceError

peft = pytest.importorskip("peft")

FAST = ["steps=3", "batch=2", "eval_every=0", "patience=0", "warmup=1", "gradient_checkpointing=false", "heldout=0"]
FAST += ["lr={tower = 0.01, connector = 0.01, newline = 0.01, lm = 0.02}"]
LORA, DORA = "lora={rank = 4, alpha = 6}", 'lora={rank = 4, alpha = 6, kind = "dora"}'
TOWER_LORA, TOWER_DORA = "tower_lora={rank = 2, alpha = 3}", 'tower_lora={rank = 2, alpha = 3, kind = "dora"}'
NO_TOWER, ONLY_TOWER = "lr.tower=0", "lr.lm=0"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Twelve questions about small pictures."""
    root = tmp_path_factory.mktemp("data")
    records = []
    for i in range(12):
        Image.new("RGB", (60 + 10 * i, 50), (20 * i, 90, 30)).save(root / f"{i}.png")
        records.append({"image": f"{i}.png", "conversations": said(f"<image>\nWhich {i}?", f"No. {i}")})
    return write(root / "mine.jsonl", records, lines=True)


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(running, "cache_dir", lambda: tmp_path_factory.getbasetemp())


def recipe_over(base: Path, data: Path, out: Path, *settings: str) -> Recipe:
    """What `pumice train --from base` writes, with a few quick steps."""
    given = [f"stages.finetune.{setting}" for setting in (*FAST, *settings)]
    return load_recipe(write_recipe(str(base), data, out), ['precision="fp32"', *given])


def tune(base: Path, data: Path, out: Path, *settings: str) -> Learner:
    recipe = recipe_over(base, data, out, *settings)
    learner = train(recipe, out, World())
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert all(0 < row["answer_loss"] < 50 for row in rows)
    return learner


@torch.no_grad()
def learned(learner: Learner, base: Path) -> Assistant:
    """The learner as it stands, with its low-rank matrices beside the weights."""
    processor = pumice.load(str(base), dtype="float32").processor
    return Assistant(learner.model, processor)


def same(found: torch.Tensor, wanted: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return bool((found - wanted).abs().max() <= tolerance * wanted.abs().max().clamp(min=1.0))


VARIANTS = {
    "LoRA": ("next", [LORA, NO_TOWER]),
    "LoRA, one view": ("llava", [LORA, NO_TOWER]),
    "DoRA": ("onevision", [DORA, NO_TOWER]),
    "LoRA of both, other ranks": ("next-mistral", [LORA, TOWER_LORA]),
    "DoRA of both": ("next", [DORA, TOWER_DORA]),
    "DoRA of the tower, LoRA of the lm": ("onevision", [LORA, TOWER_DORA]),
    "the tower alone": ("next", ["lora=false", ONLY_TOWER, TOWER_LORA]),
    "all of the tower": ("next", [LORA]),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_adapter_of_a_run_is_complete_and_opens_everywhere(bases, data, tmp_path, variant):
    family, settings = VARIANTS[variant]
    base, adapter = bases(family), tmp_path / "run" / "adapter"
    learner = learned(tune(base, data, tmp_path / "run", *settings), base)
    assert not (tmp_path / "run" / "delta.safetensors").exists()
    opened = pumice.load(str(adapter), dtype="float32", base=str(base))
    export(adapter, tmp_path / "merged", "hf", base=base)
    theirs = type(make_model(family, make_tokenizer()))
    merged = theirs.from_pretrained(tmp_path / "merged").eval()
    beside = peft.PeftModel.from_pretrained(theirs.from_pretrained(base), adapter).eval()
    plain = pumice.load(str(base), dtype="float32")
    for seed, sizes in enumerate([((112, 112),), ((90, 40),), ()]):
        messages = conversation(seed, sizes)
        wanted = learner.logits(messages)
        assert same(opened.logits(messages), wanted)
        assert close(plain.logits(messages), wanted) == (not sizes and ONLY_TOWER in settings)
        assert close(reference(family, merged, messages), wanted)
        assert close(reference(family, beside, messages), wanted)


def test_the_adapter_holds_whole_what_was_trained_whole(bases, data, tmp_path):
    """Nothing of the run's weights is missing: connector, newline and tower differ from the base, the rest doesn't."""
    base = bases("next")
    before = own_names(read_folder(base), base)
    learner = tune(base, data, tmp_path / "run", LORA)
    after = fold(before, tmp_path / "run" / "adapter")
    with folded(learner.model):
        wanted = {name: value.clone() for name, value in learner.model.state_dict().items()}
    assert wanted.keys() <= after.keys()
    for name, value in after.items():
        changed = not torch.equal(value, before[name])
        low_rank = ".layers." in name and "norm" not in name
        trained = name in wanted and (not name.startswith("lm.") or low_rank)
        unused = name.startswith("tower.") and "embeddings.class" in name
        assert changed == trained or unused, name
        assert name not in wanted or same(value, wanted[name], 1e-6), name


def test_an_adapter_over_our_own_form_and_over_the_originals(bases, data, tmp_path, tokenizer, processor):
    own = tmp_path / "own"
    save_own(Assistant(tiny_model(len(tokenizer)), processor), own)
    export(bases("next"), tmp_path / "original", "original")
    for base, settings in ((own, [DORA, TOWER_LORA]), (tmp_path / "original", [LORA, TOWER_LORA])):
        out = tmp_path / f"run-{base.name}"
        assistant = learned(tune(base, data, out, *settings), base)
        messages = conversation(3, ((60, 40),))
        opened = pumice.load(str(out / "adapter"), dtype="float32", base=str(base))
        assert same(opened.logits(messages), assistant.logits(messages))
        assert same(pumice.load(str(out), dtype="float32").logits(messages), assistant.logits(messages))
        assert not close(pumice.load(str(base), dtype="float32").logits(messages), assistant.logits(messages))


def test_a_checkpoint_without_its_tower_has_no_adapter_of_the_tower(bases, data, tmp_path):
    base = tmp_path / "original"
    export(bases("llava"), base, "original")
    weights = load_file(base / "model.safetensors")
    tower = {n: v for n, v in weights.items() if "vision_tower" in n}
    from safetensors.torch import save_file

    save_file({n: v for n, v in weights.items() if n not in tower}, base / "model.safetensors")
    folder = Path(json.loads((base / "config.json").read_text())["mm_vision_tower"])
    named = f'model.tower="{folder}"'
    path = write_recipe(str(base), data, tmp_path / "run")
    given = [named, 'precision="fp32"', *[f"stages.finetune.{setting}" for setting in (*FAST, LORA)]]
    with pytest.raises(PumiceError, match="has no weights of its tower, which low-rank matrices could stand beside"):
        train(load_recipe(path, [*given, f"stages.finetune.{TOWER_LORA}"]), tmp_path / "run", World())
    learner = train(load_recipe(path, [*given, "stages.finetune.lr.tower=0"]), tmp_path / "other", World())
    opened = pumice.load(str(tmp_path / "other"), dtype="float32")
    messages = conversation(3)
    assert same(opened.logits(messages), Assistant(learner.model, opened.processor).logits(messages))


# a recipe with a model of its own


@pytest.fixture
def parts(bases, tmp_path) -> Path:
    """A recipe whose parts lie in folders, and which begins from a checkpoint of another language model's weights."""
    import transformers

    base, theirs = bases("next"), make_model("next", make_tokenizer())
    make_tokenizer().save_pretrained(tmp_path / "lm")
    torch.manual_seed(9)
    transformers.AutoModelForCausalLM.from_config(theirs.config.text_config).save_pretrained(tmp_path / "lm")
    transformers.CLIPVisionModel(theirs.config.vision_config).save_pretrained(tmp_path / "tower")
    path = tmp_path / "own.toml"
    path.write_text(
        f"""
seed = 1
precision = "fp32"
start = "{base}"
[model]
lm = "{tmp_path / "lm"}"
template = "chatml"
tower = {{ type = "clip", source = "{tmp_path / "tower"}", tile = 56, layers = [2] }}
connector = {{ shuffle = 1, depth = 2 }}
layout = {{ mode = "pad", tile = 56, side = 4 }}
[data.mine]
format = "llava"
path = "mine.jsonl"
[stages.first]
objective = "answer"
data = {{ mine = 1 }}
batch = 4
lr = {{ connector = 1e-2 }}
warmup = 1
[stages.second]
objective = "answer"
data = {{ mine = 1 }}
batch = 4
lr = {{ connector = 1e-2, lm = 1e-2 }}
warmup = 1
lora = {{ rank = 2, alpha = 2 }}
"""
    )
    return path


def stop_after(monkeypatch, saves: int) -> None:
    """Runs of this process end as after Ctrl-C once they have logged so many steps."""

    def ask(run: Any) -> None:
        seen: list[int] = []
        report = run.report
        run.report = lambda stage, row, steps: (seen.append(row["step"]), report(stage, row, steps))
        run.stop = lambda: len(seen) >= saves

    monkeypatch.setattr(running, "_stop_on_signals", ask)


@pytest.mark.parametrize("steps", [1, 4])
def test_a_run_over_a_checkpoint_goes_on_as_if_it_had_not_stopped(parts, bases, data, tmp_path, monkeypatch, steps):
    """Stopped in the first stage and in the second; the language model isn't that of the recipe's parts."""
    recipe = load_recipe(parts, ["stages.first.log_every=1", "stages.second.log_every=1"])
    whole = train(recipe, tmp_path / "whole", World(), data.parent)
    with monkeypatch.context() as patch:
        stop_after(patch, steps)
        train(recipe, tmp_path / "part", World(), data.parent)
    again = train(recipe, tmp_path / "part", World(), data.parent)
    for (name, a), b in zip(whole.model.state_dict().items(), again.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    wanted, found = (load_file(tmp_path / run / "adapter" / "adapter_model.safetensors") for run in ("whole", "part"))
    assert wanted.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in wanted.items())
    opened = pumice.load(str(tmp_path / "part"), dtype="float32")  # with the recipe's layouts and template
    assistant = Assistant(again.model, build_processor(recipe.model))
    assert replace(opened.processor, tokenizer=None) == replace(assistant.processor, tokenizer=None)
    messages = conversation(5)
    assert same(opened.logits(messages), assistant.logits(messages))
    over = pumice.load(str(tmp_path / "part" / "adapter"), dtype="float32", base=str(bases("next")), template="chatml")
    over.processor = assistant.processor
    assert same(over.logits(messages), assistant.logits(messages))


@pytest.mark.parametrize(
    ("changes", "made"),
    [
        (["stages.second.lora=false"], "model"),
        (["stages.second.tower_lora={rank = 2, alpha = 2}", "stages.second.lr.tower=1e-2"], "adapter"),
        (["stages.second.lora=false", "stages.second.tower_lora={rank = 2, alpha = 2}", "stages.second.lr.tower=1e-2"],
         "model"),
        (["start=parts"], "delta.safetensors"),
        (["start=parts", 'stages.second.lora.kind="dora"'], "model"),
        (["start=parts", "stages.second.tower_lora={rank = 2, alpha = 2}", "stages.second.lr.tower=1e-2"],
         "delta.safetensors"),
        (['start_modules=["tower"]'], "model"),
    ],
)  # fmt: skip
def test_a_run_leaves_what_says_all_that_it_learned(parts, data, tmp_path, changes, made):
    recipe = load_recipe(parts, changes)
    learner = train(recipe, tmp_path / "run", World(), data.parent)
    found = {path.name for path in (tmp_path / "run").iterdir()} & {"model", "adapter", "delta.safetensors"}
    assert found == {made}
    opened = pumice.load(str(tmp_path / "run"), dtype="float32")
    messages = conversation(5)
    wanted = Assistant(learner.model, build_processor(recipe.model)).logits(messages)
    rounded = made == "delta.safetensors"  # int8 and 16 bit
    assert same(opened.logits(messages), wanted, 2e-2 if rounded else 1e-5)


def test_a_delta_of_a_frozen_language_model_keeps_what_it_began_with(parts, data, tmp_path):
    second = load_recipe(parts, ["start=parts", "stages.first=false"])
    train(second, tmp_path / "one", World(), data.parent)
    first = load_recipe(parts, [f'start="{tmp_path / "one" / "delta.safetensors"}"', "stages.second=false"])
    learner = train(first, tmp_path / "two", World(), data.parent)
    wanted = Assistant(learner.model, build_processor(first.model)).logits(conversation(5))
    assert same(pumice.load(str(tmp_path / "two"), dtype="float32").logits(conversation(5)), wanted, 2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [LORA, DORA])
def test_two_workers_that_share_weights_out_make_the_adapter_of_one(bases, data, tmp_path, kind):
    base = bases("next")
    settings = [f"stages.finetune.{setting}" for setting in (*FAST, kind, TOWER_LORA)]
    for out, workers, more in (("alone", "1", []), ("shared", "2", ["parallel=shard"])):
        given = ["--from", str(base), "--data", str(data), "--out", str(tmp_path / out), "--workers", workers]
        command = [sys.executable, "-m", "pumice.cli", "train", *given, *settings, "precision=fp32", *more]
        environment = os.environ | {"PUMICE_CACHE": str(tmp_path / "cache")}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("ask it: pumice ask") == 1  # of all processes, one compares
    wanted, found = (load_file(tmp_path / run / "adapter" / "adapter_model.safetensors") for run in ("alone", "shared"))
    assert wanted.keys() == found.keys()
    assert all(torch.allclose(found[name], value, atol=1e-3) for name, value in wanted.items())


# in 4 bits


def test_a_language_model_in_4_bits_trains_low_rank(bases, data, tmp_path):
    pytest.importorskip("bitsandbytes")
    base, out = bases("next"), tmp_path / "run"
    four = 'lora={rank = 4, alpha = 6, quantize = "nf4"}'
    learner = tune(base, data, out, four, NO_TOWER)
    held = {name: value for name, value in learner.model.lm.named_parameters() if value.dtype == torch.uint8}
    assert len(held) == 2 * 7  # every linear layer of both blocks
    assert not any(value.requires_grad for value in held.values())
    before = own_names(read_folder(base), base)
    found = fold(before, out / "adapter")
    for path, update in updates(learner.model.lm).items():
        a, b = update.pieces["lora_A.weight"], update.pieces["lora_B.weight"]
        assert b.abs().max() > 0
        name = f"lm.{path}.weight"
        assert same(found[name], before[name] + 1.5 * b @ a, 1e-6)
    with folded(learner.model):
        for path in updates(learner.model.lm):
            weight = learner.model.lm.get_submodule(path).weight
            assert not same(weight, found[f"lm.{path}.weight"], 1e-3)  # over the base's own weights, not their 4 bits
            assert same(weight, found[f"lm.{path}.weight"], 0.2)
    again = tune(base, data, out, four, NO_TOWER)  # nothing left to do: as it was
    for path, update in updates(learner.model.lm).items():
        theirs = updates(again.model.lm)[path].pieces
        assert all(torch.equal(value, theirs[kind]) for kind, value in update.pieces.items())


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_what_is_in_4_bits_folds_to_what_it_computes(model, kind):
    pytest.importorskip("bitsandbytes")
    lm = model.lm
    add_lora(lm, LoraConfig(3, 5, kind, "nf4"), 0)
    stir(lm)
    ids = torch.arange(40)[None]
    wanted = lm.model(ids, starts=[0, 40]).last_hidden_state
    with folded(lm):
        assert not has_lora(lm)
        assert same(lm.model(ids, starts=[0, 40]).last_hidden_state, wanted)
    assert same(lm.model(ids, starts=[0, 40]).last_hidden_state, wanted, 0.0)


def test_without_bitsandbytes_4_bits_are_refused(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.nn", None)
    with pytest.raises(PumiceError, match=r"quantize = nf4 needs bitsandbytes: pip install bitsandbytes, or leave"):
        add_lora(model.lm, LoraConfig(2, 2, quantize="nf4"), 0)


# matrices


@torch.no_grad()
def stir(module: torch.nn.Module) -> None:
    """Give low-rank matrices and lengths values as after training."""
    generator = torch.Generator().manual_seed(4)
    for name, parameter in module.named_parameters():
        if "magnitude" in name:
            parameter.mul_(0.5 + torch.rand(parameter.shape, generator=generator))
        elif ".lora_" in name:
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def test_every_linear_layer_of_the_blocks_has_matrices_and_nothing_else_trains(model):
    for module, count in ((model.lm, 2 * 7), (model.tower.model, 2 * 6)):
        add_lora(module, LoraConfig(2, 4), 0)
        assert len(updates(module)) == count
        training = [name for name, value in module.named_parameters() if value.requires_grad]
        assert training
        assert all(".lora_" in name for name in training)


def test_pairs_put_into_dora_are_the_model_that_they_came_from(tokenizer):
    source, target = tiny_model(len(tokenizer)).lm, tiny_model(len(tokenizer)).lm
    add_lora(source, LoraConfig(2, 6), 0)
    stir(source)
    add_lora(target, LoraConfig(2, 2, "dora"), 1)
    set_lora_pairs(target, lora_pairs(source))
    ids = torch.arange(30)[None]
    wanted = source.model(ids, starts=[0, 30]).last_hidden_state
    assert same(target.model(ids, starts=[0, 30]).last_hidden_state, wanted)
    with pytest.raises(PumiceError, match="lengths of rows too"):
        lora_pairs(target)


def test_the_dry_run_counts_the_matrices(bases, data, tmp_path):
    from pumice.train.run import make_learner
    from pumice.train.start import prepare

    recipe = recipe_over(bases("next"), data, tmp_path, DORA, TOWER_LORA)
    learner = make_learner(recipe, 0)
    prepare(recipe, learner, 0, CPU)
    sizes = sizes_of(recipe, "x")
    for name, config in recipe.stages[0].low_rank.items():
        found = [value for path, value in getattr(learner.model, name).named_parameters() if ".lora_" in path]
        assert lora_parameters(sizes, name, config) == sum(value.numel() for value in found)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["stages.first.tower_lora={rank = 2, alpha = 2}"], r"stages.first.tower_lora: lr.tower is 0: set it above 0"),
        (["stages.first.lr.lm=1e-3"], r"second.lora: differs from stages.first.lora; a run trains a module one way"),
        (["stages.second.lora.kind=ia3"], r"stages.second.lora.kind: expected one of lora, dora"),
        (['stages.second.lora.quantize="int8"'], r"stages.second.lora.quantize: expected one of nf4"),
        (['stages.second.tower_lora={rank = 2, alpha = 2, quantize = "nf4"}', "stages.second.lr.tower=1"],
         r"tower_lora.quantize: only the language model's weights"),
        (['stages.second.lora.quantize="nf4"', "parallel=shard"], r"lora.quantize: parallel = shard can't cut"),
        (["model=false", "model={checkpoint = 'x'}"], r"start: model.checkpoint brings its own weights"),
        (["model.checkpoint=x"], r"model.lm: unknown key"),
    ],
)  # fmt: skip
def test_recipes_that_cannot_be_trained_are_refused(parts, settings, message):
    with pytest.raises(PumiceError, match=message):
        load_recipe(parts, settings)


def test_a_low_rank_layer_computes_what_pefts_own_does():
    torch.manual_seed(0)
    module = tiny_model(300).lm
    add_lora(module, LoraConfig(rank=3, alpha=5.0), 0)
    layer = module.model.layers[1].mlp.up_proj
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    x = torch.randn(2, 7, 32, requires_grad=True)
    factors = [layer.lora_A["default"].weight, layer.lora_B["default"].weight, x]
    for dtype in (None, torch.bfloat16):
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            mine, theirs = layer(x), type(layer).forward(layer, x)
        assert mine.dtype == theirs.dtype
        grads = [torch.autograd.grad(out.float().square().sum(), factors) for out in (mine, theirs)]
        for a, b in zip([mine, *grads[0]], [theirs, *grads[1]], strict=True):
            assert torch.allclose(a, b, rtol=0, atol=(3e-2 if dtype else 1e-6) * float(b.abs().max()))


def test_frozen_weights_in_16_bit_change_what_rounding_does_and_no_more():
    torch.manual_seed(0)
    ids, losses = torch.randint(0, 300, (1, 40)), []
    for dtype in (torch.float32, torch.bfloat16):
        lm = tiny_model(300).lm
        lm.set_attn_implementation("sdpa")
        narrow(lm, dtype)
        add_lora(lm, LoraConfig(rank=3, alpha=5.0), 0)
        kinds = {("lora" if ".lora_" in name else "own"): value.dtype for name, value in lm.named_parameters()}
        assert kinds == {"lora": torch.float32, "own": dtype}
        with torch.autocast("cpu", torch.bfloat16):
            loss = lm(input_ids=ids, labels=ids).loss
        loss.backward()
        trained = [value for name, value in lm.named_parameters() if ".lora_B" in name]
        losses.append((float(loss.detach()), torch.cat([value.grad.flatten() for value in trained])))
        assert all(value.grad.dtype == torch.float32 for value in trained)
    (here, mine), (there, theirs) = losses
    assert there == pytest.approx(here, rel=2e-2)
    assert float(torch.cosine_similarity(mine, theirs, dim=0)) > 0.98
