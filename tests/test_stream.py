"""Streams: steps filled from a window over samples that weren't indexed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import tiny_model
from test_data import root, said, write  # noqa: F401 (root is a fixture)
from test_data_plan import stage
from test_train import RATES

from pumice.config import DataConfig
from pumice.data.feed import PlannedFeed
from pumice.data.index import measure
from pumice.data.loading import step_batches
from pumice.data.sources import open_source
from pumice.data.stream import StreamPlan
from pumice.train.checkpoint import checkpoints, load_training_state, read_state
from pumice.train.dense import DenseHead
from pumice.train.loop import Run, run_stage
from pumice.train.objectives import Learner
from pumice.train.parallel import World
from pumice.types import PumiceError


@pytest.fixture
def streamed(root: Path, processor):  # noqa: F811
    """A feed of two sources of 12 and 5 samples of growing length; one sample has no picture on disk."""
    records = [
        {"image": "abcd"[i % 4] + ".png", "conversations": said("<image>\nWhat?", "no " * i)} for i in range(1, 13)
    ]
    records[4]["image"] = "missing.png"
    write(root / "x.json", records)
    write(root / "y.json", [{"conversations": said("Say it.", "it " * i)} for i in range(1, 6)])

    def make(**more) -> PlannedFeed:
        settings = {
            "steps": 9,
            "batch": 0,
            "batch_tokens": 130,
            "stream": 6,
            "lr": RATES,
            "data": {"a": 2.0, "b": 1.0},
            **more,
        }
        chosen = stage(**settings)
        sources = {n: open_source(n, DataConfig("llava", p), root) for n, p in (("a", "x.json"), ("b", "y.json"))}
        return PlannedFeed(StreamPlan(sources, chosen, processor, 0), sources, processor)

    return make


def rows(feed: PlannedFeed, steps: range) -> list[list[str]]:
    return [[feed.name(n) for pack in feed.packs(step, 0, 1) for n in pack] for step in steps]


def test_steps_are_full_and_every_sample_comes_in_its_turn(streamed, processor):
    feed = streamed()
    found = rows(feed, range(9))
    for step, names in enumerate(found):
        numbers = [n for pack in feed.packs(step, 0, 1) for n in pack]
        assert 100 < sum(feed.tokens(n) for n in numbers) <= 130, step
        assert feed.tokens(numbers[0]) == measure(feed.sources[names[0][0]], int(names[0][2:]), processor).tokens
    used = [name for names in found for name in names]
    waiting = [f"{feed.plan.names[s.source]}-{s.row}" for s in feed.plan._window]
    for source, length, bad in (("a", 12, {4}), ("b", 5, set())):
        mine = sorted(int(name[2:]) for name in used + waiting if name[0] == source)
        passes = len(mine) // (length - len(bad)) + 1
        order = [row for _ in range(passes) for row in range(length) if row not in bad][: len(mine)]
        assert mine == sorted(order)  # none twice in a pass, none forgotten
    assert {line.split(":")[0] for line in feed.unusable} == {"a-4"}
    assert feed.seen(9) == len(used)


def test_the_window_doesnt_starve_its_oldest(streamed):
    feed = streamed(batch_tokens=0, batch=2, steps=40)
    for step in range(40):
        before = min(s["number"] for s in feed.state(step)["window"]) if feed.state(step)["window"] else 0
        chosen = [n for pack in feed.packs(step, 0, 1) for n in pack]
        assert len(chosen) == 2
        assert before in chosen or not feed.state(step)["window"]


def test_workers_share_what_one_has_and_a_restored_stream_goes_on(streamed):
    whole = streamed()
    expected = rows(whole, range(9))
    for step in range(9):
        shared = [n for rank in range(3) for pack in whole.packs(step, rank, 3) for n in pack]
        assert sorted(whole.name(n) for n in shared) == sorted(expected[step])
    state = json.loads(json.dumps(whole.state(4)))
    later = streamed()
    later.restore(4, state)
    assert rows(later, range(4, 9)) == expected[4:]
    assert later.seen(6) == whole.seen(6)
    assert later.plan._drawn <= whole.plan._drawn + 6


def test_a_stream_of_other_sources_isnt_gone_on_with(streamed):
    state = streamed(data={"a": 1.0}).state(2)
    with pytest.raises(PumiceError, match=r"the checkpoint's stream has the sources a; the recipe has a, b"):
        streamed().restore(2, state)


def test_a_stream_of_rendered_pictures_alone_is_refused():
    from pumice.config import load_recipe

    with pytest.raises(PumiceError, match=r"stages.read.stream: all of its data are rendered"):
        load_recipe(Path(__file__).parents[1] / "recipes" / "tiny.toml", ["stages.read.stream=8"])


def test_loaders_find_the_same_stream(streamed):
    from pumice.data.loading import steps_of

    plain, ahead = streamed(), streamed()
    for a, b in zip(steps_of(plain, range(6), 0, 1), steps_of(ahead, range(6), 0, 1, loaders=2), strict=True):
        assert torch.equal(a[0].ids, b[0].ids)


def test_a_sample_longer_than_a_step_and_a_source_without_use_are_errors(streamed, root):  # noqa: F811
    with pytest.raises(
        PumiceError, match=r"stage .*: a-\d+ has \d+ tokens; batch_tokens is 30: raise it, or lower max_tokens"
    ):
        streamed(batch_tokens=30).packs(0, 0, 1)
    for picture in root.glob("*.png"):
        picture.unlink()
    with pytest.raises(PumiceError, match=r"no sample can be used; the last: a-\d+: unreadable"):
        streamed(data={"a": 1.0}).packs(0, 0, 1)


def test_an_empty_source_is_named(streamed, root):  # noqa: F811
    write(root / "y.json", [])
    with pytest.raises(PumiceError, match=r"\[data.b\]: no sample in it"):
        streamed()


def test_a_stopped_run_goes_on_in_the_stream(streamed, tokenizer, processor, tmp_path):
    def learn(out: str, feed: PlannedFeed, stop: int = 0, begin: int = 0, found=None) -> Run:
        model = tiny_model(len(tokenizer))
        torch.manual_seed(1)
        learner = Learner(model, DenseHead(24, model.lm.config.vocab_size), tokenizer)
        if found:
            load_training_state(found, learner)
        run = Run(learner, processor, 0, tmp_path / out, World(), lambda *_: None)
        done: list[int] = []
        run.tick = lambda *_: done.append(1)
        run.stop = lambda: bool(stop) and len(done) == stop - 1
        run_stage(run, feed.plan.stage, feed, begin, found)
        return run

    whole = learn("whole", streamed())
    learn("parts", streamed(), stop=4)
    newest = checkpoints(tmp_path / "parts" / "checkpoints")[-1]
    state = read_state(newest)
    later = streamed()
    later.restore(state["step"], state["feed"])
    resumed = learn("parts", later, begin=state["step"], found=newest)
    assert 0 < state["step"] < 9
    pairs = zip(whole.learner.model.parameters(), resumed.learner.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_what_a_stream_trains_on_is_what_its_names_say(streamed):
    feed = streamed()
    (batch,) = step_batches(feed, 0, 0, 1)
    assert sorted(batch.sources) == sorted(name[0] for name in rows(feed, range(1))[0])
