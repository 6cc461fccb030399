"""Speed and memory of training steps, ours and others': python -m benchmarks.train.run --shape elva-160m

    for each run: for each contender: a process of its own ──Record──> results/NAME.json ──> results/NAME.md

From the repository's root. README.md beside this file has the protocol. After ``--minutes`` no run is begun that
wouldn't end in time; the same command goes on from the JSON. ``--profile NAME`` says where one contender's time goes.
``--device cuda`` runs all on one GPU; with ``--in-process`` no process is started for a run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.train.contenders import ABLATIONS, COMPARED, CONTENDERS, Job, Record, from_json, run_job
from benchmarks.train.device import gpu_name, gpu_peak, visible
from benchmarks.train.samples import long_run
from benchmarks.train.shapes import SHAPES, write
from benchmarks.train.table import table
from pumice.formats.describe import describe

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"
TOLERANCE = {"cpu": 1e-4, "cuda": 2e-2}
"""Largest relative difference of losses at step 0. On a GPU all run in bf16, which rounds each product to 1/256 of it:
sums in another order, as other lengths and kernels make them, then give losses that differ by more than 1e-4."""


class Failed(SystemExit):
    """A contender has no record: it broke off, or has another loss."""


@dataclass
class Session:
    """All that is known of a comparison so far, kept in a file."""

    path: Path
    setting: dict[str, Any]
    machine: dict[str, Any] = field(default_factory=dict)
    mixture: dict[str, float] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)

    def read(self) -> None:
        """Take over what an earlier invocation measured with the same setting."""
        if not self.path.is_file():
            return
        found = json.loads(self.path.read_text())
        # Files from before there was a choice of device name none.
        if {"device": "cpu", **found["setting"]} != {"device": "cpu", **self.setting}:
            raise SystemExit(f"{self.path} has runs of another setting: {found['setting']}; move it, or give --json")
        self.machine, self.records = found["machine"], [from_json(values) for values in found["runs"]]

    def write(self) -> None:
        runs = [asdict(record) for record in self.records]
        self.path.write_text(json.dumps({"setting": self.setting, "machine": self.machine, "runs": runs}, indent=1))

    def add(self, record: Record) -> None:
        """Keep a record whose loss at step 0 is that of the others."""
        first = self.records[0].step0 if self.records else record.step0
        # A loss that is no number is within no tolerance.
        if not abs(record.step0 - first) <= TOLERANCE[self.setting.get("device", "cpu")] * abs(first):
            other = self.records[0].contender if self.records else "none"
            raise Failed(f"{record.contender}: loss {record.step0} at step 0, {other}'s is {first}")
        self.records.append(record)
        self.write()

    def fail(self, name: str, reason: str) -> None:
        """Keep why a contender is left out from now on, and say it."""
        print(reason, file=sys.stderr, flush=True)
        self.machine.setdefault("failed", {})[name] = reason
        self.write()


def machine(threads: int, device: str) -> dict[str, Any]:
    """Processor, GPU where it is used, and versions; ``peak`` is filled in by `matrix_peak`."""
    import torch
    import transformers

    import pumice

    cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": cpu[1] if cpu else "unknown", "cores": os.cpu_count(), "threads": threads, "peak": 0.0,
        "torch": torch.__version__, "transformers": transformers.__version__, "pumice": pumice.__version__,
        "python": sys.version.split()[0],
    } | ({"gpu": gpu_name()} if device == "cuda" else {})  # fmt: skip


def matrix_peak(device: str, here: bool) -> float:
    """GFLOP/s of matrix products now: the best of benchmarks/matmul.py on one thread, or the GPU's in bf16.

    A process of its own measures, so that this one holds no memory of the GPU, unless ``here``.
    """
    if here:
        return gpu_peak()
    on_gpu, on_cpu = ["-m", "benchmarks.train.device"], [str(ROOT / "benchmarks" / "matmul.py")]
    command = [sys.executable, *(on_gpu if device == "cuda" else on_cpu)]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return max(float(value) for value in re.findall(r"([\d.]+) GFLOP/s", printed))


def run_child(job: Job, folder: Path) -> Record:
    """`run_job` in a process of its own.

    Raises:
        Failed: it did; what it wrote to stderr is shown.
    """
    threads, seen = str(job.threads), visible(job.device)
    environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "CUDA_VISIBLE_DEVICES": seen}
    command = [sys.executable, "-m", "benchmarks.train.run", "--child", json.dumps(asdict(job)), str(folder)]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if ran.returncode:
        raise Failed(f"{job.contender} failed with exit code {ran.returncode}:\n{ran.stderr[-4000:]}")
    return from_json(json.loads(ran.stdout.splitlines()[-1]))


def run_here(job: Job, folder: Path) -> Record:
    """`run_job` in this process.

    Raises:
        Failed: it did, whatever the reason. Raised apart from it, whose frames would keep the model on the GPU.
    """
    import torch

    torch.set_num_threads(job.threads)
    try:
        return run_job(job, folder)
    except Exception as error:
        traceback.print_exc()
        reason = f"{job.contender} failed: {type(error).__name__}: {' '.join(str(error).split())[:400]}"
    raise Failed(reason)


def child(job: Job, folder: Path) -> None:
    """In the child: run, and print the record as JSON."""
    import torch

    torch.set_num_threads(job.threads)
    print(json.dumps(asdict(run_job(job, folder))))


def measure(session: Session, job: Job, names: Sequence[str], minutes: float, here: bool = False) -> bool:
    """Do the runs that are missing, contenders in turn, each in a process of its own or ``here``; whether all are done.

    A contender that fails on a GPU is named in the table, and the others go on: such machines are lent by the minute.

    Raises:
        Failed: a contender did, on the CPU.
    """
    began, longest = time.monotonic(), 0.0
    run_one = run_here if here else run_child
    with tempfile.TemporaryDirectory() as folder:
        shape = SHAPES[job.shape]
        write(shape, Path(folder))
        session.mixture = long_run(job.batch, describe(Path(folder)).policy, shape.most_tokens)
        for run in range(job.runs):
            # Before every round, and the best counts: a shared processor isn't always as fast.
            session.machine["peak"] = max(session.machine["peak"], matrix_peak(job.device, here))
            session.write()
            for name in names:
                if any((record.contender, record.run) == (name, run) for record in session.records):
                    continue
                if name in session.machine.get("failed", {}):
                    continue
                if minutes and time.monotonic() - began + longest > 60 * minutes:
                    return False
                started = time.monotonic()
                try:
                    record = run_one(replace(job, contender=name, run=run), Path(folder))
                    session.add(record)
                except Failed as error:
                    if job.device == "cpu":
                        raise
                    session.fail(name, str(error))
                    continue
                longest = max(longest, time.monotonic() - started)
                speed = record.tokens / sum(update.wall for update in record.updates[1:])
                print(f"run {run + 1}/{job.runs} {name}: {speed:.1f} useful tokens/s", file=sys.stderr, flush=True)
    return True


def profile(job: Job) -> None:
    """Print the operators that take a contender's time, in this process; opening and the warm-up are in it."""
    import torch

    torch.set_num_threads(job.threads)
    with tempfile.TemporaryDirectory() as folder:
        write(SHAPES[job.shape], Path(folder))
        with torch.profiler.profile() as found:
            run_job(job, Path(folder))
    order = "self_cpu_time_total" if job.device == "cpu" else "self_cuda_time_total"
    print(found.key_averages().table(sort_by=order, row_limit=20, max_name_column_width=45))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="elva-160m")
    parser.add_argument("--runs", type=int, default=5, help="runs of each contender")
    parser.add_argument("--updates", type=int, default=1, help="timed updates of a run, after one that warms up")
    parser.add_argument("--samples", type=int, default=8, help="samples of an update")
    parser.add_argument("--batch", type=int, default=8, help="samples of a padded forward pass; it divides --samples")
    parser.add_argument("--pack-tokens", type=int, default=1024, help="tokens of a packed forward pass")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="the processor, or one GPU in bf16")
    parser.add_argument("--in-process", action="store_true", help="all runs in this process; with --device cuda only")
    parser.add_argument("--frozen-tower", action="store_true")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(COMPARED))
    parser.add_argument("--ablations", action="store_true", help="ours with one thing taken away a line")
    parser.add_argument("--minutes", type=float, default=9.0, help="begin no run that would end later; 0 is no limit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="raw runs; by default results/NAME.json, and the table beside it")
    parser.add_argument("--profile", choices=CONTENDERS, help="one run of one contender under torch's profiler")
    parser.add_argument("--child", nargs=2, metavar=("JOB", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.samples % args.batch:
        parser.error(f"--samples {args.samples} isn't a multiple of --batch {args.batch}")
    if args.in_process and args.device == "cpu":
        parser.error("--in-process goes with --device cuda: on the CPU a process's peak memory is that of all its runs")
    return args


def main() -> None:
    args = parse()
    if args.child:
        return child(Job(**json.loads(args.child[0])), Path(args.child[1]))
    os.environ["CUDA_VISIBLE_DEVICES"] = visible(args.device)
    names = args.contenders
    if args.ablations:
        names = [name for name in ABLATIONS if not (args.frozen_tower and name == "ours-tower")]
    job = Job(
        args.shape, "", 0, args.runs, args.updates, args.samples, args.batch, args.pack_tokens, args.threads,
        args.frozen_tower, args.seed, args.device,
    )  # fmt: skip
    if args.profile:
        return profile(replace(job, contender=args.profile))
    parts = [args.shape] + ["frozen"] * args.frozen_tower + ["ablations"] * args.ablations
    parts += ["cuda"] * (args.device == "cuda")
    path = args.json or RESULTS / f"{'-'.join(parts)}.json"
    setting = {key: value for key, value in asdict(job).items() if key not in ("contender", "run")}
    session = Session(path, setting)
    session.read()
    session.machine = session.machine or machine(args.threads, args.device)
    path.parent.mkdir(parents=True, exist_ok=True)
    complete = measure(session, job, names, args.minutes, args.in_process)
    text = table(
        session.records,
        session.machine,
        session.mixture,
        setting,
        f"python -m benchmarks.train.run {' '.join(sys.argv[1:])}".strip(),
    )
    print(text)
    path.with_suffix(".md").write_text(text)
    if not complete:
        print(f"{args.minutes:g} minutes are over before all runs were made: the same command goes on", file=sys.stderr)
        sys.exit(3)
    return None


if __name__ == "__main__":
    main()
