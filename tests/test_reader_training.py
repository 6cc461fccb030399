"""Training for the reader: pages with their text, and an update beside the one that a run begins with."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_lowrank import conversation, data, parts, same  # noqa: F401  (fixtures)

import pumice
from pumice.assistant import Assistant
from pumice.config import ReaderConfig, load_recipe
from pumice.model.build import build_processor
from pumice.model.weights import lm_pairs, read_delta
from pumice.pocket.parts import READER, WEIGHTS
from pumice.reader import arrange, weights
from pumice.reader.reader import HEAD
from pumice.reader.teach import LONG, draw, teach
from pumice.train.parallel import World
from pumice.train.run import train
from pumice.types import Media, PumiceError

MIXTURE = {"receipts": 1.0, "forms": 1.0, "tables": 1.0}


def first(sample):
    """(media, texts) of a sample's first turn."""
    content = sample.turns[0].content
    return [one for one in content if isinstance(one, Media)], [one for one in content if isinstance(one, str)]


def test_pages_say_their_lines_before_the_question():
    for index in range(12):
        rendered = draw(MIXTURE, 0, "train", index)
        sample = teach(rendered, ReaderConfig(), f"page-{index}")
        media, (text, question) = first(sample)
        assert len(media) == 1
        assert text.startswith(HEAD)
        assert text.endswith("\n\n")
        assert question == rendered.questions[0].text
        said = text.lower()
        words = [word for _, line in rendered.lines for word in line.lower().split() if len(word) > 3]
        assert sum(word in said for word in words) > 0.8 * len(words)


def test_a_page_is_a_function_of_its_number():
    one, two = (teach(draw(MIXTURE, 0, "train", 7), ReaderConfig(0.5, 0.5), "x") for _ in range(2))
    assert [turn.content[-1] for turn in one.turns] == [turn.content[-1] for turn in two.turns]
    assert draw(MIXTURE, 0, "heldout", 7).lines != draw(MIXTURE, 0, "train", 7).lines


def test_shares_of_pages_stand_without_picture_or_without_text():
    samples = [teach(draw(MIXTURE, 0, "train", index), ReaderConfig(0.4, 0.5), f"x{index}") for index in range(60)]
    kinds = [(bool(media), len(texts) == 2) for media, texts in map(first, samples)]
    assert 0.2 < kinds.count((False, True)) / 60 < 0.6
    assert 0.15 < kinds.count((True, False)) / 60 < 0.5
    assert kinds.count((False, False)) == 0


def test_pages_are_asked_for_what_they_have_not_and_seldom_for_all():
    pages = [draw(MIXTURE, 0, "train", index) for index in range(60)]
    tasks = [question.task for page in pages for question in page.questions]
    assert 0.05 < tasks.count("absent") / len(tasks) < 0.3
    assert 0 < sum(task in LONG for task in tasks) < 0.1 * len(tasks)
    assert "receipt_json" in tasks


def test_lines_in_any_arrangement_stand_without_a_picture():
    """All that a receipt or form says is in its text, whatever stands where."""
    config = ReaderConfig(blind=0.0, arranged=1.0)
    for index in range(40):
        rendered = draw({"receipts": 1.0, "forms": 1.0}, 0, "train", index, 1.0)
        assert rendered == draw({"receipts": 1.0, "forms": 1.0}, 0, "train", index, 1.0)
        media, (text, _) = first(teach(rendered, config, f"x{index}"))
        assert not media
        assert text.startswith(HEAD)
        printed = "\n".join(line for _, line in rendered.lines)
        known = [q for q in rendered.questions if q.task in ("shop", "city", "date", "price", "amount", "code", "name")]
        assert all(question.answer in printed for question in known)
        assert all(box[0] < box[2] and box[1] < box[3] for box, _ in rendered.lines)
    assert draw(MIXTURE, 0, "train", 3, 0.0).glyphs


def test_charts_in_lines_say_what_is_asked_and_drawn_ones_keep_their_picture():
    config = ReaderConfig(blind=1.0, arranged=1.0)
    tasks = []
    for index in range(40):
        rendered = draw({"charts": 1.0}, 0, "train", index, 1.0)
        media, (text, _) = first(teach(rendered, config, f"x{index}"))
        assert not media
        assert text.startswith(HEAD)
        printed = "\n".join(line for _, line in rendered.lines)
        tasks += [question.task for question in rendered.questions]
        named = [q for q in rendered.questions if q.task in ("chart_extreme", "chart_value")]
        assert all(question.answer in printed for question in named)
        media, _ = first(teach(draw({"charts": 1.0}, 0, "train", index, 0.0), config, f"x{index}"))
        assert media
    compared = [task for task in tasks if task in ("chart_extreme", "chart_compare")]
    assert 0.5 < len(compared) / len(tasks) < 0.9


def test_arrangements_have_prices_on_either_side_and_blocks_in_any_order():
    price_first, total_first = [], []
    for seed in range(120):
        rendered = arrange.receipt(random.Random(seed), "train")
        texts = [text for _, text in rendered.lines]
        for asked in (q for q in rendered.questions if q.task == "receipt_json"):
            bill = json.loads(asked.answer)
            good, printed = bill["items"][0], "\n".join(texts)
            price_first.append(printed.index(good["price"]) < printed.index(good["name"]))
            total_first.append(printed.rindex(bill["total"]) < printed.index(bill["items"][-1]["name"]))
    assert len(price_first) > 30
    for share in (sum(price_first) / len(price_first), sum(total_first) / len(total_first)):
        assert 0.15 < share < 0.75


def test_a_run_trains_an_update_beside_the_one_that_it_began_with(parts, data, tmp_path):  # noqa: F811
    """Its delta is the whole model; what it adds is the new ranks alone, and in 8 bits still nearly all of it."""
    start = load_recipe(parts, ["start=parts", "stages.first=false"])
    train(start, tmp_path / "one", World(), data.parent)
    delta = tmp_path / "one" / "delta.safetensors"
    begun = pumice.load(str(tmp_path / "one"), dtype="float32")
    settings = [f'start="{delta}"', "start_folded=true", "stages.first=false", "stages.second.lr.lm=3e-2",
                "stages.second.lr.connector=0", "stages.second.lora={rank = 3, alpha = 6}"]  # fmt: skip
    recipe = load_recipe(parts, settings)
    learner = train(recipe, tmp_path / "two", World(), data.parent)
    messages = conversation(5)
    wanted = Assistant(learner.model, build_processor(recipe.model)).logits(messages)
    assert not same(begun.logits(messages), wanted, 1e-3)  # it has learned something
    whole = pumice.load(str(tmp_path / "two"), dtype="float32")
    assert same(whole.logits(messages), wanted, 2e-2)
    pairs = weights.new_pairs(tmp_path / "two" / "delta.safetensors", delta)
    assert {a.shape[0] for a, _ in pairs.values()} == {3}
    weights.save(pairs, tmp_path / "reader.safetensors", {})
    weights.add(begun.model, tmp_path / "reader.safetensors")
    assert same(begun.logits(messages), wanted, 2e-2)


def test_an_update_can_begin_as_another(parts, data, tmp_path):  # noqa: F811
    """A second run goes on from the first one's packed update: it begins with its answers, and has its ranks."""
    train(load_recipe(parts, ["start=parts", "stages.first=false"]), tmp_path / "one", World(), data.parent)
    delta, packed = tmp_path / "one" / "delta.safetensors", tmp_path / "reader.safetensors"
    settings = [f'start="{delta}"', "start_folded=true", "stages.first=false", "stages.second.lr.lm=3e-2",
                "stages.second.lr.connector=0", "stages.second.lora={rank = 3, alpha = 6}"]  # fmt: skip
    train(load_recipe(parts, settings), tmp_path / "two", World(), data.parent)
    weights.save(weights.new_pairs(tmp_path / "two" / "delta.safetensors", delta), packed, {})
    wanted = pumice.load(str(tmp_path / "one"), dtype="float32")
    weights.add(wanted.model, packed)
    frozen = [*settings, f'stages.second.lora.start="{packed}"', "stages.second.lr.lm=1e-12"]
    train(load_recipe(parts, frozen), tmp_path / "three", World(), data.parent)
    found = pumice.load(str(tmp_path / "three"), dtype="float32")
    assert same(found.logits(conversation(5)), wanted.logits(conversation(5)), 2e-2)
    pairs = weights.new_pairs(tmp_path / "three" / "delta.safetensors", delta)
    begun = {name: a for name, a in weights.load(packed).items() if name.endswith(".a")}
    assert all(same(pairs[name[3:-2]][0].float(), a, 1e-2) for name, a in begun.items())
    wrong = [*frozen, "stages.second.lora.rank=2"]
    with pytest.raises(PumiceError, match=r"reader.safetensors: .*rank 3, expected 2"):
        train(load_recipe(parts, wrong), tmp_path / "four", World(), data.parent)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["stages.second.lora.start=reader"], "second.lora.start: start = '.*' has an update of its own: set start_fo"),
        (['stages.second.tower_lora={rank = 2, alpha = 2, start = "reader"}', "stages.second.lr.tower=1"],
         "tower_lora.start: only the language model's update"),
    ],
)  # fmt: skip
def test_beginnings_that_contradict_each_other_are_refused(parts, settings, message):  # noqa: F811
    with pytest.raises(PumiceError, match=message):
        load_recipe(parts, settings)


def test_a_stopped_run_over_a_folded_start_goes_on_bit_for_bit(parts, data, tmp_path, monkeypatch):  # noqa: F811
    from test_lowrank import stop_after

    train(load_recipe(parts, ["start=parts", "stages.first=false"]), tmp_path / "one", World(), data.parent)
    settings = [f'start="{tmp_path / "one" / "delta.safetensors"}"', "start_folded=true", "stages.first=false",
                "stages.second.log_every=1"]  # fmt: skip
    recipe = load_recipe(parts, settings)
    whole = train(recipe, tmp_path / "whole", World(), data.parent)
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        train(recipe, tmp_path / "part", World(), data.parent)
    again = train(recipe, tmp_path / "part", World(), data.parent)
    for (name, a), b in zip(whole.model.state_dict().items(), again.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_new_pairs_of_another_start_are_refused(parts, data, tmp_path):  # noqa: F811
    train(load_recipe(parts, ["start=parts", "stages.first=false"]), tmp_path / "one", World(), data.parent)
    delta = tmp_path / "one" / "delta.safetensors"
    with pytest.raises(PumiceError, match="isn't that of a run with start_folded from"):
        weights.new_pairs(delta, delta)


def test_the_recipe_of_the_shipped_mode_trains_nothing_but_the_update():
    recipe = load_recipe(READER.with_suffix(".toml"))
    assert recipe.start == "pocket"
    assert recipe.start_folded
    assert [set(stage.lr) for stage in recipe.stages] == [{"lm"}] * len(recipe.stages)
    assert all(stage.lora and stage.reader for stage in recipe.stages)


@pytest.mark.skipif(not READER.is_file(), reason="no weights of the mode in this checkout")
def test_the_shipped_weights_fit_the_model_and_the_limit():
    found, shipped = weights.load(READER), lm_pairs(read_delta(WEIGHTS)[0])
    assert {name.removeprefix("lm.").rpartition(".")[0] for name in found} == set(shipped)
    assert all(found[f"lm.{path}.a"].shape[1] == a.shape[1] for path, (a, _) in shipped.items())
    assert READER.stat().st_size + WEIGHTS.stat().st_size < 60 * 2**20


def test_the_share_without_picture_is_a_share(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(f'base = "{Path(READER).with_suffix(".toml")}"\n[stages.reader.reader]\nblind = 1.5\n')
    with pytest.raises(PumiceError, match="blind"):
        load_recipe(path)
    assert replace(ReaderConfig(), blind=1.0).bare == 0.0
