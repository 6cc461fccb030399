"""Fine-tuning on one's own documents: the recipe that is written, what is held out, when it ends, scores."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_model
from PIL import Image, ImageDraw
from test_data import root, said, write  # noqa: F401 (root is a fixture)
from test_train import RATES

from pumice.assistant import Assistant
from pumice.config import DataConfig, load_recipe
from pumice.data.feed import PlannedFeed, open_feed
from pumice.data.index import build_index, split
from pumice.data.sources import open_source
from pumice.train import checkpoint as checkpoints
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
    assert (stage.lora.rank, stage.heldout, stage.patience, stage.batch) == (32, 0.1, 3, 2)
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
    with pytest.raises(PumiceError, match="--from nothing: expected pocket"):
        write_recipe("nothing", data, tmp_path / "run")


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
