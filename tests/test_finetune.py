"""Fine-tuning on one's own documents: the recipe that is written, what is held out, when it ends, scores."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_model
from hf_models import make_model, make_tokenizer, save_folder
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from test_data import root, said, write  # noqa: F401 (root is a fixture)
from test_train import RATES

import pumice
from pumice.assistant import Assistant
from pumice.config import CheckpointConfig, DataConfig, LoraConfig, load_recipe
from pumice.data.feed import PlannedFeed, open_feed
from pumice.data.index import build_index, split
from pumice.data.sources import open_source
from pumice.formats.export import export
from pumice.train import checkpoint as checkpoints
from pumice.train import run as running
from pumice.train.dense import DenseHead
from pumice.train.finetune import form_of, score, write_recipe
from pumice.train.loop import Run, run_stage
from pumice.train.objectives import Learner
from pumice.train.parallel import World
from pumice.types import PumiceError


@pytest.fixture
def data(root: Path) -> Path:  # noqa: F811
    """Sixty records, every fifth said twice."""
    records = [
        {"image": f"{'abcd'[i % 4]}.png", "conversations": said(f"<image>\nWhat {i}?", "yes")} for i in range(50)
    ]
    return write(root / "mine.json", records + records[::5])


def recipe(data: Path, out: Path, **changes):
    found = load_recipe(write_recipe("pocket", data, out))
    stage = dataclasses.replace(found.stages[0], lora=None, **{"lr": RATES, **changes})
    return dataclasses.replace(found, stages=(stage,))


def test_the_written_recipe_has_sound_defaults(data, tmp_path):
    path = write_recipe("pocket", data, tmp_path / "run")
    found = load_recipe(path)
    (stage,) = found.stages
    assert (found.name, found.start, stage.name, stage.data) == ("run", "pocket", "finetune", {"mine": 10.0})
    assert stage.lora is not None
    assert (stage.lora.rank, stage.heldout, stage.patience, stage.batch) == (48, 0.1, 3, 2)
    assert stage.lr.get("tower", 0.0) == 0.0
    assert found.data["mine"].format == "llava"


def test_the_form_follows_from_the_content(data, tmp_path):
    assert form_of(data) == "llava"
    parts = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    assert form_of(write(tmp_path / "m.jsonl", [{"messages": parts}], lines=True)) == "messages"
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a")
    assert form_of(tmp_path / "texts") == "captions"
    with pytest.raises(PumiceError, match="its first record has answer, question; expected messages"):
        form_of(write(tmp_path / "x.jsonl", [{"question": "a", "answer": "b"}], lines=True))
    with pytest.raises(PumiceError, match="no such file"):
        write_recipe("pocket", tmp_path / "gone.json", tmp_path / "run")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "empty.yaml").write_text("datasets: [{json_path: empty.jsonl}]")
    with pytest.raises(PumiceError, match=r"empty.yaml: no sample in it"):
        write_recipe("pocket", tmp_path / "empty.yaml", tmp_path / "run")
    with pytest.raises(PumiceError, match="--from nothing: expected pocket"):
        write_recipe("nothing", data, tmp_path / "run")
    with pytest.raises(PumiceError, match="'owner/gone' is neither a folder nor in the hub's cache"):
        write_recipe("owner/gone", data, tmp_path / "run")
    with pytest.raises(PumiceError, match=r"no checkpoint; expected a folder with a config.json"):
        write_recipe(str(tmp_path), data, tmp_path / "run")


def test_what_is_held_out_is_never_trained_on_even_twice(data, processor):
    source = open_source("mine", DataConfig("llava", data.name), data.parent)
    index = build_index(source, "mine", processor, data.parent / "cache")
    trained, held = split(index, 0.2)
    assert set(trained.usable) | set(held.usable) == set(range(60))
    assert not set(trained.usable) & set(held.usable)
    content = index.columns["content"]
    assert not np.intersect1d(content[trained.usable], content[held.usable]).size
    assert 3 <= len(held.usable) <= 24
    assert len(split(index, 0.0)[1].usable) == 0


@pytest.fixture
def made(data, tmp_path, tokenizer, processor):
    def make(**changes) -> tuple[Run, PlannedFeed, list[dict]]:
        model = tiny_model(len(tokenizer))
        torch.manual_seed(1)
        learner = Learner(model, DenseHead(24, model.lm.config.vocab_size), tokenizer)
        found = recipe(data, tmp_path / "run", **changes)
        rows: list[dict] = []
        run = Run(learner, processor, 0, tmp_path / "run", World(), lambda _, row, __: rows.append(row))
        feed = open_feed(found, found.stages[0], processor, data.parent, tmp_path / "cache")
        assert isinstance(feed, PlannedFeed)
        run.stage = found.stages[0]  # type: ignore[attr-defined]
        return run, feed, rows

    return make


def test_moving_the_data_changes_nothing_of_what_is_held_out(data, processor, tmp_path):
    moved = tmp_path / "elsewhere" / "again"
    shutil.copytree(data.parent, moved)
    found = []
    for place in (data.parent, moved):
        source = open_source("mine", DataConfig("llava", data.name), place)
        found.append(split(build_index(source, "mine", processor, tmp_path / "cache"), 0.2)[1].usable.tolist())
    assert found[0] == found[1]


def test_training_ends_when_the_held_out_loss_no_longer_falls(made):
    run, feed, rows = made(batch=10, eval_every=2, patience=2, warmup=1, schedule="wsd", lr={"lm": 0.3})
    kept: list[float] = []
    run.keep = lambda: kept.append(float(run.learner.model.lm.lm_head.weight.sum()))
    run_stage(run, run.stage, feed)
    losses = [row["heldout"] for row in rows if "heldout" in row]
    best = losses.index(min(losses))
    assert len(losses) == best + 3  # two evaluations without a lower one
    assert len(kept) == sum(loss < min([*losses[:i], float("inf")]) for i, loss in enumerate(losses))
    assert rows[-1]["step"] < feed.steps
    (saved,) = checkpoints.checkpoints(run.out / "checkpoints")
    assert checkpoints.read_state(saved)["step"] == feed.steps  # the same command has nothing left to do


def test_a_run_that_was_killed_counts_each_evaluation_once(made):
    changes = {"batch": 10, "eval_every": 1, "patience": 3, "warmup": 1, "schedule": "wsd", "lr": {"lm": 0.3}}
    run, feed, rows = made(**changes)
    run_stage(run, run.stage, feed)
    whole = [row["heldout"] for row in rows]
    run, feed, rows = made(**changes)
    run.out = run.out.with_name("killed")
    run.stop = lambda: len(rows) == 1
    run_stage(run, run.stage, feed)
    (saved,) = checkpoints.checkpoints(run.out / "checkpoints")
    for ends in (True, False):  # twice from the same checkpoint: the first time killed before the next one
        run, feed, rows = made(**changes)
        run.out = run.out.with_name("killed")
        checkpoints.load_training_state(saved, run.learner)
        run.report = (lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)) if ends else run.report
        with pytest.raises(KeyboardInterrupt) if ends else contextlib.nullcontext():
            run_stage(run, run.stage, feed, 1, saved)
    assert [row["heldout"] for row in rows] == whole[1:]


def test_the_score_asks_what_was_held_out(made, processor):
    run, feed, _ = made(heldout=0.2)
    assistant = Assistant(run.learner.model, processor)
    found = score(assistant, feed)
    assert found.questions == len(feed.heldout().plan.row) > 3
    assert found.exact == 0.0
    truths = iter(["yes", "yes", "nes", "a long answer"])
    told = type("Told", (), {"answer": lambda self, sample: type("A", (), {"text": next(truths)})})()
    found = score(told, feed, 4)
    assert (found.questions, found.exact) == (4, 0.5)
    assert found.character_errors == pytest.approx((1 / 3 + 1.0) / 4)


def test_a_held_out_picture_that_breaks_is_left_out_of_the_score(made, processor, data, capsys):
    run, feed, _ = made(heldout=0.3)
    assistant = Assistant(run.learner.model, processor)
    whole = score(assistant, feed, 1000).questions
    for name, change in (("a", lambda path: path.write_bytes(path.read_bytes()[:-30])), ("b", Path.unlink)):
        change(data.parent / f"{name}.png")
    left = score(assistant, feed, 1000).questions
    assert 0 < left < whole
    assert capsys.readouterr().out.count("not scored: ") == whole - left


@pytest.mark.slow
def test_the_command_tunes_pocket_and_scores_it(tmp_path, capsys):
    """Twelve pictures of words that all say the same; two steps; both scores."""
    from pumice import cli

    records = []
    for i in range(24):
        image = Image.new("RGB", (120, 40), "white")
        ImageDraw.Draw(image).text((5, 10), f"No. {i}", fill="black")
        image.save(tmp_path / f"{i}.png")
        records.append({"image": f"{i}.png", "conversations": said(f"<image>\nWhich number is it {i}?", "pumice")})
    data = write(tmp_path / "mine.jsonl", records, lines=True)
    out = tmp_path / "run"
    given = ["train", "--from", "pocket", "--data", str(data), "--out", str(out), "stages.finetune.steps=4"]
    assert cli.main([*given, "stages.finetune.eval_every=2", "stages.finetune.heldout=0.3"]) == 0
    assert "answered exactly" in capsys.readouterr().out
    scores = json.loads((out / "scores.json").read_text())
    assert scores["before"]["questions"] == scores["after"]["questions"] > 0
    assert (out / "delta.safetensors").is_file()


# from a checkpoint


@pytest.fixture
def checkpoint(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(running, "cache_dir", lambda: tmp_path / "cache")
    folder, tokenizer = tmp_path / "next", make_tokenizer()
    save_folder(folder, "next", tokenizer, make_model("next", tokenizer))
    return folder


def test_the_recipe_over_a_checkpoint_is_its_model_and_the_usual_defaults(data, checkpoint, tmp_path):
    found = load_recipe(write_recipe(str(checkpoint), data, tmp_path / "run"))
    (stage,) = found.stages
    assert found.model == CheckpointConfig(str(checkpoint.resolve()))
    assert (found.start, found.name) == ("parts", "run")
    assert stage.lora == LoraConfig(32, 64)
    assert stage.lr == {"connector": 2e-5, "newline": 2e-5, "lm": 2e-4}
    assert (stage.heldout, stage.patience, stage.data) == (0.1, 3, {"mine": 10.0})
    shutil.copytree(checkpoint, tmp_path / "whole" / "model")  # as a run that trained all of it leaves it
    (tmp_path / "whole" / "recipe.toml").write_text("")
    again = load_recipe(write_recipe(str(tmp_path / "whole"), data, tmp_path / "run"))
    assert again.model == CheckpointConfig(str((tmp_path / "whole" / "model").resolve()))


def test_a_name_on_a_hub_is_looked_up_in_its_cache(data, checkpoint, tmp_path, monkeypatch):
    snapshot = tmp_path / "hub" / "models--owner--tiny" / "snapshots" / "0123"
    shutil.copytree(checkpoint, snapshot)
    (tmp_path / "hub" / "models--owner--tiny" / "refs").mkdir()
    (tmp_path / "hub" / "models--owner--tiny" / "refs" / "main").write_text("0123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    given = [*QUICK, 'precision="fp32"']
    found = load_recipe(write_recipe("owner/tiny", data, tmp_path / "run"), given)
    assert found.model == CheckpointConfig("owner/tiny")
    running.train(found, tmp_path / "run", World())
    named = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert named["base_model_name_or_path"] == "owner/tiny"
    assert pumice.load(str(tmp_path / "run")).model.tower.tile == 56


QUICK = [f"stages.finetune.{setting}" for setting in ("steps=4", "batch=2", "eval_every=2", "heldout=0.2", "warmup=1")]


def test_the_command_tunes_a_checkpoint_goes_on_and_scores_it(data, checkpoint, tmp_path, capsys, monkeypatch):
    """Stopped after a step and begun again: the same weights as without, both scores, and a model that opens."""
    from pumice import cli

    def command(out: str) -> list[str]:
        given = ["train", "--from", str(checkpoint), "--data", str(data), "--out", str(tmp_path / out)]
        return [*given, *QUICK, "stages.finetune.lr.lm=0.01", "precision=fp32", "stages.finetune.log_every=1"]

    assert cli.main([*command("none"), "--dry-run", "--json"]) == 0
    (course,) = json.loads(capsys.readouterr().out)["stages"]
    assert (course["steps"], course["samples"]) == (4, 8)
    assert not (tmp_path / "none").exists()
    assert cli.main([*command("none"), "--resume"]) == 2
    assert cli.main(command("whole")) == 0
    assert "answered exactly" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr(running, "_stop_on_signals", lambda run: setattr(run, "stop", lambda: True))
        assert cli.main(command("part")) == 0
    assert "stopped after step 1 of 4; the same command goes on" in capsys.readouterr().out
    assert not (tmp_path / "part" / "scores.json").exists()
    assert cli.main([*command("part"), "--resume"]) == 0
    scores = [json.loads((tmp_path / run / "scores.json").read_text()) for run in ("whole", "part")]
    assert scores[0] == scores[1]
    assert scores[0]["before"]["questions"] == scores[0]["after"]["questions"] > 0
    weights = [load_file(tmp_path / run / "adapter" / "adapter_model.safetensors") for run in ("whole", "part")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    picture = Image.new("RGB", (60, 40))
    before, after = pumice.load(str(checkpoint)), pumice.load(str(tmp_path / "part"))
    messages = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "What?"}]}]
    assert not torch.allclose(before.logits(messages), after.logits(messages), atol=1e-2)


def test_too_few_samples_to_hold_any_out_are_found_before_training(data, checkpoint, tmp_path, capsys):
    from pumice import cli

    few = write(data.parent / "few.json", [{"image": "a.png", "conversations": said("<image>\nWhat?", "yes")}] * 3)
    given = ["train", "--from", str(checkpoint), "--data", str(few), "--out", str(tmp_path / "run"), "precision=fp32"]
    assert cli.main([*given, "stages.finetune.heldout=0.0001"]) == 2
    assert "nothing is held out of " in capsys.readouterr().err
    assert not (tmp_path / "run" / "log.jsonl").exists()
    settings = ("heldout=0", "patience=0", "steps=1", "warmup=1")
    assert cli.main([*given, *[f"stages.finetune.{setting}" for setting in settings]]) == 0
    assert "ask it: pumice ask" in capsys.readouterr().out
    assert not (tmp_path / "run" / "scores.json").exists()


def test_an_adapter_is_made_whole_before_it_is_tuned_further(data, checkpoint, tmp_path):
    found = load_recipe(write_recipe(str(checkpoint), data, tmp_path / "run"), [*QUICK, 'precision="fp32"'])
    running.train(found, tmp_path / "run", World())
    for given in ("run", "run/adapter"):
        with pytest.raises(PumiceError, match=r"an adapter, .* make it whole first: pumice export .*adapter --merge"):
            write_recipe(str(tmp_path / given), data, tmp_path / "next-run")
    export(tmp_path / "run" / "adapter", tmp_path / "merged", "hf")  # over the base that it names
    again = load_recipe(write_recipe(str(tmp_path / "merged"), data, tmp_path / "again"), [*QUICK, 'precision="fp32"'])
    running.train(again, tmp_path / "again", World())


def test_a_checkpoint_without_a_chat_template_is_given_one(data, checkpoint, tmp_path):
    (checkpoint / "chat_template.jinja").unlink()
    path = write_recipe(str(checkpoint), data, tmp_path / "run")
    with pytest.raises(PumiceError, match="no chat template; pass one of"):
        running.train(load_recipe(path, QUICK), tmp_path / "run", World())
    running.train(load_recipe(path, [*QUICK, "model.template=chatml"]), tmp_path / "run2", World())
    assert pumice.load(str(tmp_path / "run2")).processor.template.name == "chatml"  # type: ignore[union-attr]
