"""The comparison of training steps compares like with like: one loss before and after a step, the same tokens."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("accelerate", reason="transformers' Trainer needs it")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.train.contenders import CONTENDERS, Job, Record, lay_out, run_job
from benchmarks.train.run import Session
from benchmarks.train.samples import drafts, padding, shuffled_updates, tokens
from benchmarks.train.shapes import SHAPES, write
from benchmarks.train.table import cpu, paired, table
from pumice.formats.describe import describe

JOB = Job("tiny", "", run=0, runs=1, updates=2, samples=8, batch=4, pack_tokens=512, threads=1, frozen=False, seed=0)
MACHINE = {
    "cpu": "?",
    "cores": 2,
    "threads": 1,
    "peak": 100.0,
    "torch": "",
    "transformers": "",
    "pumice": "",
    "python": "",
}


@pytest.fixture(scope="module", params=["tiny", "tiny-clip"])
def folder(request, tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("weights") / request.param
    write(SHAPES[request.param], made)
    return made


@pytest.fixture(scope="module")
def records(folder) -> dict[str, Record]:
    return {name: run_job(replace(JOB, shape=folder.name, contender=name), folder) for name in CONTENDERS}


def test_all_contenders_have_one_loss_at_step_0_and_after_steps(records):
    ours = records["ours"]
    for name, record in records.items():
        assert record.step0 == pytest.approx(ours.step0, rel=1e-4), name
        if name not in ("grouped", "nanovlm"):  # whose samples are others; whose samples see each other
            for mine, theirs in zip(ours.updates, record.updates, strict=True):
                assert theirs.loss == pytest.approx(mine.loss, rel=1e-4), name
    # Samples that see each other have another loss, by far more than the tolerance: the comparison can fail.
    assert abs(records["nanovlm"].updates[0].loss / ours.step0 - 1) > 5e-4
    assert records["grouped"].updates[0].loss == pytest.approx(ours.step0, rel=1e-4)


def test_useful_tokens_are_counted_from_the_data_and_agree(records, folder):
    policy = describe(folder).policy
    updates = shuffled_updates(JOB.samples, JOB.updates, JOB.runs, JOB.run, JOB.seed)
    useful = sum(draft.length(policy) for update in updates for draft in update)
    rows = {name: sum(update.rows for update in record.updates[1:]) for name, record in records.items()}
    for name, record in records.items():
        if name == "grouped":
            assert record.tokens == pytest.approx(useful, rel=0.1)
        else:
            assert (record.tokens, record.supervised) == (useful, records["ours"].supervised), name
        assert 0 < record.supervised < record.tokens <= rows[name]
    assert rows["ours"] == rows["ours-mask"] == rows["ours-head"] == useful
    assert rows["padded"] == rows["trainer"] == rows["ours-padding"] > 1.2 * useful
    assert records["ours-tower"].flops < records["ours"].flops == records["trainer"].flops


def test_length_grouping_pads_little_and_random_order_much(folder):
    description = describe(folder)
    job = replace(JOB, samples=16)
    mixed = lay_out(replace(job, contender="padded"), description)[1:]
    grouped = lay_out(replace(job, contender="grouped"), description)[1:]
    for mine, theirs in zip(mixed, grouped, strict=True):
        assert tokens(theirs) == pytest.approx(tokens(mine), rel=0.1)
        assert padding([len(one) for one in theirs], 4) < 0.1 < padding([len(one) for one in mine], 4)


def test_runs_share_out_one_pool():
    parts = [shuffled_updates(4, 2, 3, run, seed=1) for run in range(3)]
    assert [draft for updates in parts for update in updates for draft in update] == drafts(24, 1)


def test_another_loss_at_step_0_ends_the_comparison_and_runs_go_on_from_the_file(records, tmp_path):
    session = Session(tmp_path / "a.json", {"shape": "tiny"}, MACHINE)
    session.add(records["ours"])
    with pytest.raises(SystemExit, match="padded: loss"):
        session.add(replace(records["padded"], step0=records["ours"].step0 * 1.001))
    session.add(records["padded"])
    again = Session(tmp_path / "a.json", {"shape": "tiny"})
    again.read()
    assert again.records == [records["ours"], records["padded"]]
    assert again.machine == MACHINE
    with pytest.raises(SystemExit, match="another setting"):
        Session(tmp_path / "a.json", {"shape": "160m"}).read()


def test_ratios_are_of_runs_with_the_same_number(records):
    ours = [replace(records["ours"], run=i) for i in range(2)]
    slow = [replace(u, cpu=u.cpu * 3) for u in ours[1].updates]
    theirs = [ours[0], replace(ours[1], updates=slow)]
    assert paired(ours, theirs, cpu) == pytest.approx([1.0, 3.0])
    setting = {"shape": "tiny", "frozen": False, "updates": 2, "samples": 8, "batch": 4, "pack_tokens": 512}
    text = table(list(records.values()), MACHINE, {"mean": 1.0, "shuffled": 0.5, "grouped": 0.0}, setting, "run")
    for label, _, _ in CONTENDERS.values():
        assert f"| {label} |" in text
