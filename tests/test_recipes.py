"""The recipes of the line: complete, planned with their published counts, and run with a tiny stand-in."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import MARKS
from hf_models import TINY
from PIL import Image
from test_data import parquet, said, write
from test_video import film

import pumice
from pumice.config import Recipe, load_recipe
from pumice.model.build import build_processor
from pumice.plan.recipe import sizes_of
from pumice.templates import get_template
from pumice.train.course import course
from pumice.train.parallel import World
from pumice.train.run import train
from pumice.types import PumiceError

RECIPES = Path(__file__).parents[1] / "recipes"
LINE = sorted(p.stem for p in RECIPES.glob("*.toml") if p.stem not in ("pocket", "pocket-towers", "pocket-v1", "tiny"))
STEPS = {
    # 558,128 pairs and 665,298 conversations, in batches as published
    "llava-1.5-7b": [2181, 5198],
    "elva-160m": [4361, 5198],
    "elva-3.8b": [8721, 10396],
    "onevision-0.5b": [1091, 7813, 6250, 3125],
    "onevision-7b": [2181, 15625, 12500, 6250],
}
TRAINED = {
    # spec: computed sizes of the connectors; the whole model in the later stages
    "llava-1.5-7b": 20_979_712,
    "onevision-0.5b": 1_836_800,
    "onevision-7b": 16_980_992,
    "onevision-72b": 76_562_432,
}


def dry(recipe: Recipe, tmp_path: Path):
    def never():
        raise AssertionError("no tokenizer is needed while no source is there")

    return course(recipe, sizes_of(recipe, recipe.name), never, tmp_path, tmp_path / "cache")


@pytest.mark.parametrize("name", LINE)
def test_a_recipe_is_complete_and_planned_without_weights_or_data(name, tmp_path):
    recipe = load_recipe(RECIPES / f"{name}.toml")
    for source in recipe.data.values():
        assert source.url
        assert source.licence
        assert source.samples
    found = dry(recipe, tmp_path)
    assert [one.steps for one in found] == STEPS.get(name, [one.steps for one in found])
    assert all(one.steps > 1000 and one.missing for one in found)
    if name in TRAINED:
        assert found[0].trained == TRAINED[name]
    assert found[-1].trained > 0.7 * found[-1].parameters - 90e6  # all but ELVA's tower
    assert found[-1].memory == 4 * found[-1].parameters + 12 * found[-1].trained


def test_the_line_has_every_size():
    wanted = {
        "llava-1.5": ["7b", "13b"],
        "llava-next": ["vicuna-7b", "mistral-7b", "34b"],
        "onevision": ["0.5b", "7b", "72b"],
        "llava-video": ["7b"],
        "elva": ["160m", "270m", "450m", "1b", "3.8b", "7b", "13b"],
    }
    assert sorted(f"{line}-{size}" for line, sizes in wanted.items() for size in sizes) == LINE


# a tiny stand-in


def stand_in(recipe: Recipe, folder: Path) -> list[str]:
    """Overrides that put tiny random parts and a made-up sample of data into the place of the real ones."""
    import transformers

    from pumice.model.openelm import OpenELMConfig

    tower, lm = folder / "tower", folder / "lm"
    policy, kind = recipe.model.layout, recipe.model.tower.type
    vision = {**TINY, "num_hidden_layers": 2, "image_size": policy.tile, "patch_size": policy.tile // policy.side}
    made = {"clip": ("CLIPVisionConfig", "CLIPVisionModel"), "siglip": ("SiglipVisionConfig", "SiglipVisionModel")}
    config, model = (getattr(transformers, name) for name in made[kind])
    torch.manual_seed(0)
    model(config(**vision)).save_pretrained(tower)
    tokenizer = make_tokenizer([m for s in ("v1", recipe.model.template) for m in get_template(s).marks])
    tokenizer.save_pretrained(lm)
    fields = {**TINY, "num_hidden_layers": 2, "num_key_value_heads": 2, "vocab_size": len(tokenizer)}
    fields |= {"max_position_embeddings": 4096}
    if "OpenELM" in recipe.model.lm:
        text = OpenELMConfig(
            vocab_size=len(tokenizer), model_dim=32, head_dim=16, num_transformer_layers=2, num_query_heads=[2, 2],
            num_kv_heads=[1, 2], ffn_multipliers=[0.5, 1.0], ffn_dim_divisor=16, max_context_length=4096,
        )  # fmt: skip
    else:
        named = {"Qwen": "Qwen2Config", "Mistral": "MistralConfig", "Phi": "Phi3Config"}
        kind = next((made for sign, made in named.items() if sign in recipe.model.lm), "LlamaConfig")
        text = getattr(transformers, kind)(**fields, **({"pad_token_id": 0} if kind == "Phi3Config" else {}))
    transformers.AutoModelForCausalLM.from_config(text).save_pretrained(lm)
    overrides = [f'model.lm="{lm}"', f'model.tower.source="{tower}"', "model.tower.layers=[2]", 'precision="fp32"']
    if recipe.model.tokenizer:
        overrides.append(f'model.tokenizer="{lm}"')
    if recipe.start != "parts":
        overrides.append('start="parts"')
    for name, source in recipe.data.items():
        made_up(folder / "data", source.path, source.format, videos=recipe.model.video is not None and "video" in name)
        overrides.append(f'data.{name}.media="."')
    for stage in recipe.stages:
        overrides += [f"stages.{stage.name}.batch=3", f"stages.{stage.name}.pack_tokens=0"]
    return overrides


def make_tokenizer(marks: list[str]):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=core)
    made.add_special_tokens({"additional_special_tokens": list(dict.fromkeys([*MARKS, *(m.strip() for m in marks)]))})
    return made


def made_up(root: Path, path: str, format: str, videos: bool) -> None:
    """Six records in the form of a source: a small picture, a wide one, two pictures, text alone, a video."""
    root.mkdir(exist_ok=True)
    for name, size in (("a", (60, 40)), ("b", (90, 30))):
        Image.new("RGB", size, (200, 30, 90)).save(root / f"{name}.png")
    asked = said("<image>\nWhat is it?", "A square.")
    records = [{"id": str(i), "image": "ab"[i % 2] + ".png", "conversations": asked} for i in range(4)]
    records += [{"id": "text", "conversations": said("Say yes.", "Yes.")}]
    if videos:
        film(root / "v.mp4", frames=6)
        records += [{"id": "video", "video": "v.mp4", "conversations": asked}]
    if "onevision" in path or videos:
        records += [
            {"id": "two", "image": ["a.png", "b.png"], "conversations": said("<image>\n<image>\nAlike?", "No.")}
        ]
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    if format == "parquet":
        target.mkdir()
        rows = [{**r, "image": {"bytes": (root / r["image"]).read_bytes(), "path": None}} for r in records[:4]]
        parquet(target / "0.parquet", rows)
    elif target.suffix == ".yaml":
        write(target.with_suffix(".json"), records)
        target.write_text(f"datasets: [{{json_path: {target.stem}.json, sampling_strategy: 'first:100%'}}]")
    else:
        write(target, records)


@pytest.mark.parametrize("name", LINE)
def test_a_recipe_runs_with_a_tiny_stand_in(name, tmp_path):
    overrides = stand_in(load_recipe(RECIPES / f"{name}.toml"), tmp_path)
    recipe = load_recipe(RECIPES / f"{name}.toml", overrides)
    learner = train(recipe, tmp_path / "run", World(), tmp_path / "data")
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == [stage.name for stage in recipe.stages]
    assert all(0 < row["answer_loss"] < 20 and "skipped" not in row for row in rows)
    assert all(parameter.isfinite().all() for parameter in learner.model.parameters())
    opened = pumice.load(str(tmp_path / "run"), dtype="float32")  # the whole language model trained: a whole model
    for name, value in learner.model.state_dict().items():
        assert torch.equal(opened.model.state_dict()[name], value), name
    wanted = replace(build_processor(recipe.model), tokenizer=None)
    assert replace(opened.processor, tokenizer=None) == wanted


def test_a_folder_of_another_run_is_refused(tmp_path):
    path, out = RECIPES / "elva-160m.toml", tmp_path / "run"
    overrides = [*stand_in(load_recipe(path), tmp_path), "stages.align=false"]
    train(load_recipe(path, overrides), out, World(), tmp_path / "data")
    assert list((out / "checkpoints").iterdir())
    with pytest.raises(PumiceError, match="holds a run of another seed"):
        train(load_recipe(path, [*overrides, "seed=7"]), out, World(), tmp_path / "data")
    begun = [f'start="{out / "model"}"', 'start_modules=["tower"]']
    with pytest.raises(PumiceError, match="holds a run of another start, start_modules"):
        train(load_recipe(path, [*overrides, *begun]), out, World(), tmp_path / "data")
    kept = (out / "log.jsonl").read_text()
    (out / "recipe.toml").unlink()
    with pytest.raises(PumiceError, match=r"checkpoints, but no recipe\.toml"):
        train(load_recipe(path, overrides), out, World(), tmp_path / "data")
    assert not (out / "recipe.toml").exists()
    assert (out / "log.jsonl").read_text() == kept


def test_what_a_later_stage_lacks_is_said_before_the_first_one_trains(tmp_path):
    path, out = RECIPES / "elva-160m.toml", tmp_path / "run"
    overrides = stand_in(load_recipe(path), tmp_path)
    (tmp_path / "data" / "llava_v1_5_mix665k.json").unlink()
    with pytest.raises(PumiceError, match=r"\[data.mix_665k\]: .* doesn't exist"):
        train(load_recipe(path, overrides), out, World(), tmp_path / "data")
    assert not (out / "checkpoints").exists()
    patient = ["stages.instruct=false", "stages.align.patience=2", "stages.align.eval_every=1"]
    with pytest.raises(PumiceError, match="'align': patience waits for a held-out loss, and no sample is held out"):
        train(load_recipe(path, [*overrides, *patient, "stages.align.heldout=1e-4"]), out, World(), tmp_path / "data")


def test_towers_of_other_seeds_go_on_from_the_shipped_one_alone():
    recipe = load_recipe(RECIPES / "pocket-towers.toml", ["seed=3"])
    assert (recipe.start, recipe.start_folded, recipe.seed) == ("pocket", True, 3)
    assert recipe.model == load_recipe(RECIPES / "pocket.toml").model
    (stage,) = recipe.stages
    assert {name for name, rate in stage.lr.items() if rate} == {"tower"}


def test_the_dry_run_counts_what_is_there(tmp_path):
    path = RECIPES / "elva-160m.toml"
    overrides = stand_in(load_recipe(path), tmp_path)
    (tmp_path / "data" / "llava_v1_5_mix665k.json").unlink()
    # fmt: off
    command = [sys.executable, "-m", "pumice.cli", "train", str(path), *overrides, "--data", str(tmp_path / "data"),
               "--dry-run", "--json", "--device", "h100"]
    # fmt: on
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    align, instruct = said["stages"]
    assert said["base"] == "elva-160m.toml"  # which has none: what the overrides change
    assert {
        "key": "model.lm",
        "before": load_recipe(path).model.lm,
        "after": load_recipe(path, overrides).model.lm,
    } in (said["changed"])
    assert (align["samples"], align["steps"], align["sources"]) == (5, 2, {"blip_558k": 5})
    assert align["missing"] == []
    assert align["views"] == 4 * 2
    assert align["tokens"] > 4 * 98
    assert 0 < align["supervised"] < align["tokens"]
    assert align["seconds"] == pytest.approx(align["flops"] / (989.4e12 * 0.5))
    assert (instruct["missing"], instruct["tokens"], instruct["samples"]) == (["mix_665k"], None, 665298)


def test_what_isnt_on_this_machine_is_said_and_how_to_get_it(tmp_path):
    recipe = load_recipe(RECIPES / "llava-1.5-7b.toml")
    with pytest.raises(PumiceError, match=r"openai/clip-vit-large-patch14-336.*hf download"):
        train(recipe, tmp_path / "run", World(), tmp_path)


def test_a_run_begins_from_a_published_checkpoint(tmp_path):
    """LLaVA-Video begins from OneVision: the named modules are the checkpoint's, whatever the parts were."""
    from hf_models import make_model
    from hf_models import make_tokenizer as hf_tokenizer

    from pumice.train.run import make_learner
    from pumice.train.start import begin_from

    tokenizer = hf_tokenizer()
    checkpoint = make_model("onevision", tokenizer)
    checkpoint.save_pretrained(tmp_path / "checkpoint")
    text, vision = checkpoint.config.text_config, checkpoint.config.vision_config
    import transformers

    tokenizer.save_pretrained(tmp_path / "lm")
    # A base of fewer words, as before <image> was added
    smaller = type(text).from_dict(text.to_dict() | {"vocab_size": text.vocab_size - 2})
    transformers.AutoModelForCausalLM.from_config(smaller).save_pretrained(tmp_path / "lm")
    transformers.SiglipVisionModel(vision).save_pretrained(tmp_path / "tower")
    layers, side = vision.num_hidden_layers, vision.image_size // vision.patch_size
    recipe = load_recipe(
        RECIPES / "llava-video-7b.toml",
        [
            f'model.lm="{tmp_path / "lm"}"',
            f'model.tower.source="{tmp_path / "tower"}"',
            f"model.tower.layers=[{layers}]",
            f"model.tower.tile={vision.image_size}",
            *(
                f"model.{kind}.{key}"
                for kind in ("layout", "several", "video")
                for key in (f"tile={vision.image_size}", f"side={side}")
            ),
        ],
    )
    learner = make_learner(recipe, 0)
    before = learner.model.tower.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    begin_from(str(tmp_path / "checkpoint"), learner, ["connector", "newline", "lm"])
    theirs = checkpoint.state_dict()
    wanted = theirs["model.language_model.embed_tokens.weight"][: text.vocab_size - 2]
    assert torch.equal(learner.model.lm.get_input_embeddings().weight, wanted)
    assert torch.equal(learner.model.newline, theirs["model.image_newline"])
    assert all(torch.equal(value, before[name]) for name, value in learner.model.tower.state_dict().items())
    begin_from(str(tmp_path / "checkpoint"), learner)
    assert not any(
        torch.equal(value, before[name]) and value.dim() > 1 for name, value in learner.model.tower.state_dict().items()
    )
    (tmp_path / "checkpoint" / "model.safetensors").unlink()
    with pytest.raises(PumiceError, match="no weights"):
        begin_from(str(tmp_path / "checkpoint"), learner)
