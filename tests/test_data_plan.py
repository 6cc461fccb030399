"""Planned epochs: which samples, in which order, in which step, on which worker; and training from them."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_model
from test_data import root, said, write  # noqa: F401 (root is a fixture)
from test_train import RATES

from pumice.config import DataConfig, Stage
from pumice.data.feed import PlannedFeed, stage_processor
from pumice.data.index import COLUMNS, Index
from pumice.data.loading import step_batches
from pumice.data.plan import best_fit, plan, shares
from pumice.data.sources import open_source
from pumice.train.checkpoint import checkpoints, load_training_state
from pumice.train.dense import DenseHead
from pumice.train.loop import Run, run_stage
from pumice.train.objectives import OBJECTIVES, Learner, term_counts
from pumice.train.parallel import World
from pumice.types import PumiceError

ALONE = World()


def stage(**changes) -> Stage:
    return dataclasses.replace(Stage("s", "answer", {"lm": 1e-3}, {"a": 1.0, "b": 1.0}, batch=4), **changes)


def index(name: str, tokens: list[int], bad: tuple[int, ...] = ()) -> Index:
    count = len(tokens)
    columns = {key: np.arange(count).astype(kind) for key, kind in COLUMNS.items()}
    columns["tokens"] = np.array(tokens, dtype="i4")
    problem = np.array(["too long" if i in bad else "" for i in range(count)])
    return Index(name, columns, np.zeros(count, dtype=bool), problem, [""] * count)


@pytest.fixture
def indexes() -> dict[str, Index]:
    rng = np.random.default_rng(0)
    return {
        "a": index("a", rng.integers(20, 400, 30).tolist(), bad=(3, 7)),
        "b": index("b", rng.integers(20, 400, 11).tolist()),
    }


def pairs(found, numbers=None) -> list[tuple[int, int]]:
    chosen = slice(None) if numbers is None else numbers
    return list(zip(found.source[chosen].tolist(), found.row[chosen].tolist(), strict=True))


def test_a_pass_takes_every_usable_sample_once(indexes):
    found = plan(indexes, stage(), 0)
    usable = [(0, row) for row in range(30) if row not in (3, 7)] + [(1, row) for row in range(11)]
    assert sorted(pairs(found)) == usable
    assert pairs(found) != usable
    assert found.starts.tolist() == [0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 39]
    assert pairs(plan(indexes, stage(), 0)) == pairs(found)
    assert pairs(plan(indexes, stage(), 1)) != pairs(found)
    assert pairs(plan(indexes, stage(name="t"), 0)) != pairs(found)
    assert found.tokens.tolist() == [indexes["ab"[s]].columns["tokens"][row] for s, row in pairs(found)]


def test_amounts_are_passes_over_a_source(indexes):
    found = plan(indexes, stage(data={"a": 2.5, "b": 0.0}), 0)
    times = np.bincount(found.row, minlength=30)
    assert sorted(times.tolist()) == [0] * 2 + [2] * 14 + [3] * 14
    assert found.names == ("a",)


def test_weights_are_a_mixture_of_passes(indexes):
    found = plan(indexes, stage(data={"a": 3.0, "b": 1.0}, steps=500), 0)
    assert found.steps == 500
    share = (found.source == 0).mean()
    assert share == pytest.approx(0.75, abs=0.03)
    rows = found.row[found.source == 1]
    assert all(sorted(rows[i : i + 11].tolist()) == list(range(11)) for i in range(0, len(rows) - 11, 11))


@pytest.mark.parametrize("steps", [0, 7])
def test_steps_by_tokens_are_full_and_never_more(indexes, steps):
    found = plan(indexes, stage(batch=0, batch_tokens=1000, steps=steps), 0)
    sums = [int(found.tokens[found.of(step)].sum()) for step in range(found.steps)]
    assert max(sums) <= 1000
    assert min(sums[:-1]) > 1000 - 400
    assert found.starts[-1] == len(found.row)
    assert found.steps == (steps or found.steps)
    with pytest.raises(PumiceError, match=r"a sample of \d+ tokens; batch_tokens is 300"):
        plan(indexes, stage(batch=0, batch_tokens=300), 0)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_workers_share_a_step_and_each_pass_fits(indexes, size):
    found = plan(indexes, stage(batch=12, pack_tokens=700), 0)
    for step in range(found.steps):
        packs = [found.packs(step, rank, size, view_cost=50.0) for rank in range(size)]
        numbers = sorted(number for mine in packs for pack in mine for number in pack)
        assert numbers == found.of(step).tolist()
        assert all(sum(found.tokens[pack]) <= 700 for mine in packs for pack in mine)
        assert all(pack for mine in packs for pack in mine)


def test_shares_are_balanced_and_packs_few():
    costs = [float(x) for x in np.random.default_rng(1).integers(10, 900, 64)]
    totals = [sum(costs[i] for i in mine) for mine in shares(costs, 4)]
    assert max(totals) - min(totals) < 0.02 * sum(costs)
    packs = best_fit([6, 5, 4, 3, 2], 10)
    assert sorted(map(sorted, packs)) == [[0, 2], [1, 3, 4]]  # 6+4, 5+3+2: both full
    assert best_fit([3, 4], 0) == [[0, 1]]
    assert best_fit([], 0) == []


def test_a_source_without_a_usable_sample_is_named(indexes):
    empty = index("b", [5, 6], bad=(0, 1))
    with pytest.raises(PumiceError, match=r"\[data.b\]: none of its 2 samples can be used"):
        plan(indexes | {"b": empty}, stage(), 0)


def test_passes_that_take_no_sample_are_an_error(indexes):
    with pytest.raises(PumiceError, match="passes over b take no sample"):
        plan(indexes, stage(data={"b": 0.01}), 0)


# training from a plan


@pytest.fixture
def made(root: Path, tokenizer, processor):  # noqa: F811
    """(run, feed of a stage): pictures, several pictures and text alone in one source."""
    records = [
        {"image": f"{'abcd'[i % 4]}.png", "conversations": said("<image>\nWhat?", "no " * i)} for i in range(1, 7)
    ]
    records += [{"conversations": said("Say it.", "it " * i)} for i in range(1, 4)]
    records += [{"image": ["a.png", "b.png"], "conversations": said("<image>\n<image>\nAlike?", "No.")}]
    write(root / "x.json", records)

    def make(chosen: Stage, world: World = ALONE) -> tuple[Run, PlannedFeed]:
        model = tiny_model(len(tokenizer))
        torch.manual_seed(1)
        learner = Learner(model, DenseHead(24, model.lm.config.vocab_size), tokenizer)
        run = Run(learner, processor, 0, root / "run", world, lambda *_: None)
        from pumice.data.index import build_index

        own = stage_processor(processor, chosen)
        source = open_source("a", DataConfig("llava", "x.json"), root)
        planned = plan({"a": build_index(source, "a", own, root / "cache")}, chosen, 0)
        return run, PlannedFeed(planned, {"a": source}, own, 10.0)

    return make


def trained(made, chosen: Stage) -> dict[str, torch.Tensor]:
    run, feed = made(chosen)
    run_stage(run, chosen, feed)
    return {name: value.detach() for name, value in run.learner.model.named_parameters()}


def test_a_step_in_several_passes_is_the_step_in_one(made):
    whole = stage(data={"a": 1.0}, batch=5, lr=RATES, warmup=1)
    once, several = trained(made, whole), trained(made, dataclasses.replace(whole, pack_tokens=130))
    _, feed = made(dataclasses.replace(whole, pack_tokens=130))
    assert max(len(step_batches(feed, step, 0, 1)) for step in range(feed.steps)) > 1
    for name, value in once.items():
        assert torch.allclose(value, several[name], atol=2e-5), name


def test_recomputed_activations_change_nothing(made):
    whole = stage(data={"a": 1.0}, batch=5, lr=RATES, warmup=1)
    once = trained(made, whole)
    again = trained(made, dataclasses.replace(whole, gradient_checkpointing=True))
    for name, value in once.items():
        assert torch.allclose(value, again[name], atol=1e-6), name


def test_a_worker_without_a_sample_takes_part(made):
    chosen = stage(data={"a": 1.0}, batch=2, lr=RATES)
    _, feed = made(chosen)
    assert step_batches(feed, 0, 2, 3) == []  # two samples, three workers: the third has none


def test_a_picture_that_breaks_after_the_index_is_left_out_and_named(made, root: Path):  # noqa: F811
    chosen = stage(data={"a": 1.0}, batch=10, lr=RATES, log_every=1)
    run, feed = made(chosen)
    data = (root / "c.png").read_bytes()
    (root / "c.png").write_bytes(data[: len(data) - 30])
    rows: list[dict] = []
    run.report = lambda _, row, __: rows.append(row)
    run.out.mkdir()
    run_stage(run, chosen, feed)
    assert rows[-1]["skipped"] == 2
    lines = sorted((run.out / "skipped-0.txt").read_text().splitlines())
    assert [line.split(": ")[1] for line in lines] == ["a-1", "a-5"]
    assert all("c.png" in line for line in lines)


def test_what_was_left_out_is_counted_and_named_over_stops_and_stages(made, root: Path):  # noqa: F811
    chosen = stage(data={"a": 1.0}, batch=2, lr=RATES, log_every=1, heldout=0.3, eval_every=5)
    run, feed = made(chosen)
    for name in "bc":
        data = (root / f"{name}.png").read_bytes()
        (root / f"{name}.png").write_bytes(data[: len(data) - 30])
    rows: list[dict] = []
    run.report = lambda _, row, __: rows.append(row)
    run.stop = lambda: len(rows) == 3
    feed.held = feed.plan
    run_stage(run, chosen, feed)
    names = (run.out / "skipped-0.txt").read_text()
    (saved,) = checkpoints(run.out / "checkpoints")
    again, feed = made(chosen)
    feed.held = feed.plan
    again.report = run.report
    load_training_state(saved, again.learner)
    run_stage(again, chosen, feed, 3, saved)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert (rows[-1]["skipped"], rows[-1]["heldout_skipped"]) == (5, 5)
    run_stage(again, dataclasses.replace(chosen, name="next"), made(chosen)[1])
    lines = (run.out / "skipped-0.txt").read_text()
    assert lines.startswith(names)
    for what in ("s", "s, held out", "next"):
        found = [line.split(": ")[1] for line in lines.splitlines() if line.startswith(f"{what}: ")]
        assert sorted(found) == ["a-0", "a-1", "a-4", "a-5", "a-9"], what


def test_cosine_falls_from_the_end_of_the_warmup():
    from pumice.train.optim import factor

    chosen = stage(schedule="cosine", warmup=0.1, floor=0.0)
    factors = [factor(chosen, step, 100) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == pytest.approx(1.0)
    assert factors[55] == pytest.approx(0.5, abs=0.01)
    assert factors[99] < 0.001
    assert all(a >= b for a, b in pairwise(factors[9:]))


def test_the_stage_changes_the_processor(processor):
    chosen = stage(template="plain", max_tokens=77, over_length="cut")
    own = stage_processor(processor, chosen)
    assert (own.template.name, own.max_tokens, own.cut) == ("plain", 77, True)
    assert stage_processor(processor, stage()) == processor


@pytest.mark.parametrize("objective", ["read", "align", "answer"])
def test_counts_before_the_forward_pass_are_those_after_it(objective, tokenizer, processor, tmp_path, monkeypatch):
    pytest.importorskip("faker")
    import test_train

    test_train.render_small(monkeypatch)
    model = tiny_model(len(tokenizer))
    learner = Learner(model, DenseHead(24, model.lm.config.vocab_size), tokenizer, dense_weight=0.5, align_weight=0.5)
    run = Run(learner, processor, 0, tmp_path, World(), lambda *_: None)
    batch = test_train.one_batch(run, test_train.stage(objective), 0)
    after = {term.name: float(term.count) for term in OBJECTIVES[objective](learner, batch)}
    before = {term.name: float(term.count) for term in term_counts(learner, objective, batch)}
    assert before == pytest.approx(after)
    assert all(count > 0 for count in after.values())


def test_many_supervised_rows_are_done_in_chunks(monkeypatch):
    from pumice.train import loss

    torch.manual_seed(0)
    head = torch.nn.Linear(8, 50)
    hidden, targets = torch.randn(37, 8, requires_grad=True), torch.randint(0, 50, (37,))
    whole, right = loss.token_loss(head, hidden, targets)
    whole.sum().backward()
    wanted = (hidden.grad.clone(), head.weight.grad.clone())
    hidden.grad = head.weight.grad = None
    monkeypatch.setattr(loss, "CHUNK", 10)
    chunked, found = loss.token_loss(head, hidden, targets)
    chunked.sum().backward()
    assert torch.allclose(chunked, whole)
    assert torch.equal(found, right)
    assert torch.allclose(hidden.grad, wanted[0], atol=1e-6)
    assert torch.allclose(head.weight.grad, wanted[1], atol=1e-6)
