"""Reading ahead, mixing rendered pictures with sources, and the figures of a run over all workers."""

from __future__ import annotations

import json
import os
import signal
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from test_data import root, said, write  # noqa: F401 (root is a fixture)
from test_data_plan import made, stage  # noqa: F401 (made is a fixture)
from test_train import RATES, render_small
from torch import tensor

from pumice.config import DataConfig, Recipe
from pumice.data.feed import RenderedFeed, open_feed
from pumice.data.loading import step_batches, steps_of
from pumice.data.mixing import MixedFeed, split_stage
from pumice.train.loop import run_stage
from pumice.train.metrics import Meter
from pumice.train.objectives import Term
from pumice.types import Batch, PumiceError


def alike(a: list[Batch], b: list[Batch]) -> bool:
    """Whether two steps hold the same."""
    return len(a) == len(b) and all(
        torch.equal(x.ids, y.ids)
        and torch.equal(x.tiles, y.tiles)
        and x.sources == y.sources
        and x.layouts == y.layouts
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("loaders", [1, 3])
def test_loaders_give_the_same_steps_in_order(made, loaders):  # noqa: F811
    _, feed = made(stage(data={"a": 1.0}, steps=7, batch=3, pack_tokens=200))
    plain = list(steps_of(feed, range(2, 7), 0, 1))
    ahead = list(steps_of(feed, range(2, 7), 0, 1, loaders=loaders))
    assert len(plain) == len(ahead) == 5
    assert all(alike(a, b) for a, b in zip(plain, ahead, strict=True))
    assert not alike(plain[0], plain[1])


def test_training_with_loaders_is_training_without(made):  # noqa: F811
    chosen = stage(data={"a": 1.0}, batch=5, lr=RATES, warmup=1)
    found = []
    for loaders in (0, 2):
        run, feed = made(chosen)
        run.loaders = loaders
        run_stage(run, chosen, feed)
        found.append([parameter.detach() for parameter in run.learner.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_what_a_loader_could_not_decode_is_counted_once(made, root: Path):  # noqa: F811
    chosen = stage(data={"a": 1.0}, batch=10)
    _, feed = made(chosen)
    data = (root / "c.png").read_bytes()
    (root / "c.png").write_bytes(data[: len(data) - 30])
    steps = list(steps_of(feed, range(feed.steps), 0, 1, loaders=2))
    assert sum(len(batch.sources) for step in steps for batch in step) == 8
    assert sorted(line.split(": ")[0] for line in feed.skipped) == ["a-1", "a-5"]


def test_a_worker_of_which_nothing_can_be_decoded_takes_part_in_every_pass(made, root: Path):  # noqa: F811
    _, feed = made(stage(data={"a": 1.0}, batch=2))
    whole = {number: feed.read([number]) for number in range(10)}
    shared = [feed.packs(step, rank, 2)[0] for step in range(5) for rank in range(2)]
    step = next(step for step in range(5) if whole[shared[2 * step][0]][0].layouts)
    for name in "abcd":
        data = (root / f"{name}.png").read_bytes()
        (root / f"{name}.png").write_bytes(data[: len(data) - 30])
    for rank in range(2):
        feed.skipped.clear()
        mine, other = (feed.read(shared[2 * step + r]) for r in (rank, 1 - rank))
        feed.skipped.clear()
        batches = step_batches(feed, step, rank, 2, even=True)
        assert len(batches) == bool(mine or other)
        assert all(mine or not batch.supervised for batch in batches)
        assert len(feed.skipped) == (not mine)


def test_an_error_in_a_loader_is_one_line(made, monkeypatch):  # noqa: F811
    from pumice.data import loading

    def fail(*_):
        raise PumiceError("stage 's': 100 draws in a row are too large")

    _, feed = made(stage(data={"a": 1.0}, batch=5))
    monkeypatch.setattr(loading, "step_batches", fail)
    with pytest.raises(PumiceError, match=r"^stage 's': 100 draws in a row are too large$"):
        list(steps_of(feed, range(2), 0, 1, loaders=1))


def test_a_loader_that_is_killed_is_an_error(made, monkeypatch):  # noqa: F811
    from pumice.data import loading

    _, feed = made(stage(data={"a": 1.0}, batch=5))
    here = os.getpid()

    def die(*_):
        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(loading, "step_batches", die)
    with pytest.raises(PumiceError, match=r"a loader process died.*--loaders"):
        list(steps_of(feed, range(2), 0, 1, loaders=1))


def test_a_stage_divides_its_batch_by_the_weights():
    drawn, stored = split_stage(stage(data={"lines": 1.0, "forms": 1.0, "a": 6.0}, steps=3, batch=8))
    assert (drawn.batch, drawn.data) == (2, {"lines": 1.0, "forms": 1.0})
    assert (stored.batch, stored.data) == (6, {"a": 6.0})
    drawn, stored = split_stage(stage(data={"lines": 0.01, "a": 1.0}, steps=3, batch=4))
    assert (drawn.batch, stored.batch) == (1, 3)
    drawn, stored = split_stage(stage(data={"lines": 1.0, "a": 0.01}, steps=3, batch=4))
    assert (drawn.batch, stored.batch) == (3, 1)


@pytest.mark.parametrize("pack_tokens", [0, 300])
def test_rendered_pictures_and_sources_share_every_step(root, processor, monkeypatch, pack_tokens):  # noqa: F811
    render_small(monkeypatch)
    write(
        root / "x.json", [{"image": "a.png", "conversations": said("<image>\nWhat?", "no " * i)} for i in range(1, 7)]
    )
    chosen = stage(data={"lines": 0.25, "mine": 0.75}, steps=4, batch=4, lr=RATES, pack_tokens=pack_tokens)
    recipe = Recipe("r", 0, None, (chosen,), data={"mine": DataConfig("llava", "x.json")})  # type: ignore[arg-type]
    feed = open_feed(recipe, chosen, processor, root, root / "cache")
    assert isinstance(feed, MixedFeed)
    assert isinstance(feed.drawn, RenderedFeed)
    assert (feed.steps, feed.seen(2)) == (4, 8)
    for step in range(4):
        whole = step_batches(feed, step, 0, 1)
        assert (len(whole) > 1) == bool(pack_tokens)
        assert sorted(name for batch in whole for name in batch.sources) == ["lines", "mine", "mine", "mine"]
        shares = [step_batches(feed, step, rank, 2) for rank in range(2)]
        assert all(shares)
        ids = sorted(tuple(document) for batch in whole for document in documents(batch))
        assert ids == sorted(tuple(d) for share in shares for batch in share for d in documents(batch))
    names = [feed.name(number) for pack in feed.packs(1, 0, 1) for number in pack]
    assert sum(name.startswith("mine-") for name in names) == 3


@pytest.mark.parametrize("mixture", [{"mine": 1.0}, {"lines": 0.5, "mine": 0.5}])
def test_samples_that_no_step_trains_on_are_said(root, processor, mixture):  # noqa: F811
    records = [{"image": name, "conversations": said("<image>\nWhat?", "no")} for name in ("a.png", "gone.png")]
    write(root / "x.json", records)
    chosen = stage(data=mixture, steps=1, batch=2, lr=RATES)
    recipe = Recipe("r", 0, None, (chosen,), data={"mine": DataConfig("llava", "x.json")})  # type: ignore[arg-type]
    told: list[str] = []
    open_feed(recipe, chosen, processor, root, root / "cache", warn=told.append)
    (line,) = told
    assert line.startswith("mine: 1 of 2 samples can't be used (")
    assert "unreadable: " in line
    assert "gone.png" in line
    records[1:] = []
    write(root / "x.json", records)
    open_feed(recipe, chosen, processor, root, root / "cache", warn=told.append)
    assert told == [line]


def documents(batch: Batch) -> list[list[int]]:
    starts = batch.starts.tolist()
    return [batch.ids[a:b].tolist() for a, b in pairwise(starts)]


def test_a_meter_says_losses_by_source_and_work(monkeypatch):
    meter = Meter()
    empty = torch.zeros(0, dtype=torch.int64)
    batch = Batch(empty, empty, empty, tensor([0]), torch.zeros(0, 3, 1, 1), ())
    first = Term("answer", tensor(6.0), tensor(4.0), 1.0, 3, 4, {"a": (4.0, 1.0, 2.0), "b": (2.0, 2.0, 2.0)})
    meter.add([first], [batch], flops=5e9)
    meter.add([Term("answer", tensor(2.0), tensor(1.0), 1.0, 1, 1, {"a": (2.0, 1.0, 1.0)})], [batch], flops=5e9)
    meter.step(2.0, {"lm": 1.0})
    meter.step(4.0, {"lm": 3.0})
    monkeypatch.setattr("time.monotonic", lambda: meter.began + 10.0)
    row = meter.row(peak=4e9)
    assert (row["answer_loss"], row["answer_accuracy"]) == (8.0 / 5.0, 0.8)
    assert (row["loss:a"], row["accuracy:a"]) == (2.0, 0.6667)
    assert (row["loss:b"], row["accuracy:b"]) == (1.0, 1.0)
    assert (row["norm"], row["norm:lm"]) == (3.0, 2.0)
    assert (row["gflops_s"], row["mfu"], row["step_s"]) == (1.0, 0.25, 5.0)


def test_losses_by_source_add_up_to_the_loss(made):  # noqa: F811
    """Two sources' sums are the whole sum, whatever documents without an answer stand between them."""
    from dataclasses import replace

    from pumice.train.objectives import answer
    from pumice.types import IGNORE

    run, feed = made(stage(data={"a": 1.0}, batch=10))
    (batch,) = step_batches(feed, 0, 0, 1)
    labels = batch.labels.clone()
    labels[: int(batch.starts[1])] = IGNORE  # the first document asks nothing
    names = tuple("xy"[i % 2] for i in range(len(batch.sources)))
    (term,) = answer(run.learner, replace(batch, labels=labels, sources=names))
    assert term.sources.keys() == {"x", "y"}
    for place, wanted in enumerate((float(term.total), term.right, term.items)):
        assert sum(sums[place] for sums in term.sources.values()) == pytest.approx(wanted, rel=1e-5)
    only = replace(batch, labels=labels.clone(), sources=names)
    starts = batch.starts.tolist()
    for i, (a, b) in enumerate(pairwise(starts)):
        if names[i] == "y":
            only.labels[a:b] = IGNORE
    (alone,) = answer(run.learner, only)
    assert term.sources["x"][0] == pytest.approx(float(alone.total), rel=1e-4)


def test_tensorboard_has_the_figures(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from pumice.train.trackers import open_trackers
    from pumice.train.view import Printer, Reports

    reports = Reports(Printer(), open_trackers(["tensorboard"], tmp_path, 'name = "r"\n'))
    for step in (1, 2):
        reports(
            stage(),
            {"step": step, "answer_loss": 1.0 / step, "step_s": 1.0, "wait": 0.0, "pictures_s": 0.0, "tokens_s": 1},
            2,
        )
    reports.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars(f"{stage().name}/answer_loss")]
    assert found == [(1, 1.0), (2, 0.5)]


def test_an_unknown_tracker_is_an_error(tmp_path):
    from pumice.train.trackers import open_trackers

    with pytest.raises(PumiceError, match="unknown tracker 'board'; known: tensorboard, trackio, wandb"):
        open_trackers(["board"], tmp_path, "")


def test_figures_are_those_of_all_workers(tmp_path):
    import subprocess
    import sys

    from test_train import WORKER

    script = tmp_path / "worker.py"
    text = WORKER.format(paths=[str(Path(__file__).parent)])
    text = text.replace("done = ", "run.out.mkdir(parents=True); run.log = open(run.out / 'log', 'a')\ndone = ", 1)
    script.write_text(text.replace("'log'", "f'log-{world.rank}'"))
    rows = {}
    for workers in (1, 2):
        out = tmp_path / str(workers)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
        text = script.read_text().replace("mkdir(parents=True)", "mkdir(parents=True, exist_ok=True)")
        script.write_text(text)
        done = subprocess.run([*command, str(script), str(out), str(out) + ".pt"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        rows[workers] = [[json.loads(x) for x in (out / f"log-{r}").read_text().splitlines()] for r in range(workers)]
    keys = ("answer_loss", "answer_accuracy", "read_loss", "read_accuracy", "norm", "norm:lm", "norm:tower")
    for alone, first, second in zip(rows[1][0], *rows[2], strict=True):
        for key in keys:
            assert first[key] == second[key] == pytest.approx(alone[key], abs=2e-4), key
