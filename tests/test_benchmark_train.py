"""The comparison of training steps compares like with like: one loss before and after a step, the same tokens."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("accelerate", reason="transformers' Trainer needs it")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.train.contenders import CONTENDERS, SETTLE, Job, Record, lay_out, run_job, run_settled
from benchmarks.train.device import visible
from benchmarks.train.run import Failed, Session, measure, parse
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
SETTING = {"shape": "tiny", "frozen": False, "updates": 2, "samples": 8, "batch": 4, "pack_tokens": 512}


@pytest.fixture(scope="module", params=["tiny", "tiny-clip", "tiny-qwen2"])
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
    policy, most = describe(folder).policy, SHAPES[folder.name].most_tokens
    updates = shuffled_updates(JOB.samples, JOB.updates, JOB.runs, JOB.run, JOB.seed)
    useful = sum(draft.length(policy, most) for update in updates for draft in update)
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
    text = table(list(records.values()), MACHINE, {"mean": 1.0, "shuffled": 0.5, "grouped": 0.0}, SETTING, "run")
    for label, _, _ in CONTENDERS.values():
        assert f"| {label} |" in text


def test_a_gpus_table_speaks_of_wall_time_alone(records):
    machine = MACHINE | {"gpu": "H100", "peak": 7e5, "failed": {"trainer": "Traceback\nOutOfMemoryError: no memory"}}
    slow = [replace(u, cpu=u.cpu * 100) for u in records["ours"].updates]
    found = [replace(records["ours"], updates=slow), records["padded"]]
    text = table(found, machine, {"mean": 1.0, "shuffled": 0.5, "grouped": 0.0}, SETTING, "run")
    assert "One H100" in text
    assert "700000 GFLOP/s" in text
    assert "CPU" not in text
    assert "Goals, by wall time:" in text
    assert "- Failed: (c) transformers' Trainer: OutOfMemoryError: no memory" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1
    on_cpu = table(found, MACHINE, {"mean": 1.0, "shuffled": 0.5, "grouped": 0.0}, SETTING, "run")
    assert on_cpu.count("CPU") == 4  # two columns, what GFLOP/s are over, the goals


def test_runs_in_one_process_are_for_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run", "--device", "cuda", "--in-process"])
    args = parse()
    assert (args.device, args.in_process) == ("cuda", True)
    monkeypatch.setattr(sys, "argv", ["run", "--in-process"])
    with pytest.raises(SystemExit):
        parse()
    assert "--in-process goes with --device cuda" in capsys.readouterr().err


def test_one_gpu_is_seen_and_on_the_cpu_none(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert (visible("cuda"), visible("cpu")) == ("3", "")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert visible("cuda") == "0"


def test_updates_that_settle_are_run_and_not_kept(records):
    ran = []

    class Counting:
        def run(self, updates):
            ran.extend(updates)
            return [replace(records["ours"].updates[0], rows=i) for i in range(len(updates))]

    kept = run_settled(Counting(), [["warm"], ["a"]], SETTLE["cuda"])
    assert ran == [["warm"], ["a"], ["a"], ["a"]]
    assert [update.rows for update in kept] == [0, 3]


def test_on_a_gpu_a_contender_that_fails_is_left_out_and_the_others_go_on(records, tmp_path, monkeypatch):
    ran = []

    def run_here(job, _):
        ran.append((job.contender, job.run))
        if job.contender == "padded":
            raise Failed("padded failed: OutOfMemoryError: no memory")
        loss = records["ours"].step0 * (1.01 if job.contender == "trainer" else float(job.contender == "ours"))
        return replace(records["ours"], contender=job.contender, run=job.run, step0=loss)

    monkeypatch.setattr("benchmarks.train.run.run_here", run_here)
    monkeypatch.setattr("benchmarks.train.run.matrix_peak", lambda *_: 1.0)
    session = Session(tmp_path / "a.json", {"device": "cuda"}, dict(MACHINE))
    job = replace(JOB, runs=2, device="cuda")
    assert measure(session, job, ["ours", "padded", "trainer", "nanovlm"], 0, here=True)
    assert ran == [(n, 0) for n in ("ours", "padded", "trainer", "nanovlm")] + [("ours", 1), ("trainer", 1)]
    assert sorted(session.machine["failed"]) == ["nanovlm", "padded"]  # 1% off is rounding in bf16, all of it isn't
    with pytest.raises(Failed):
        measure(Session(tmp_path / "b.json", {}, dict(MACHINE)), replace(job, device="cpu"), ["padded"], 0, here=True)
