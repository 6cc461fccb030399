"""Speed and memory of training steps, ours and others': python -m benchmarks.train.run --shape elva-160m

    for each run: for each contender: a process of its own ──Record──> results/NAME.json ──> results/NAME.md

From the repository's root. README.md beside this file has the protocol. After ``--minutes`` no run is begun that
wouldn't end in time; the same command goes on from the JSON. ``--profile NAME`` says where one contender's time goes.
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
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.train.contenders import ABLATIONS, COMPARED, CONTENDERS, Job, Record, from_json, run_job
from benchmarks.train.samples import long_run
from benchmarks.train.shapes import SHAPES, write
from benchmarks.train.table import table
from pumice.formats.describe import describe

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"
TOLERANCE = 1e-4
"""Largest relative difference of losses at step 0."""


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
        if found["setting"] != self.setting:
            raise SystemExit(f"{self.path} has runs of another setting: {found['setting']}; move it, or give --json")
        self.machine, self.records = found["machine"], [from_json(values) for values in found["runs"]]

    def write(self) -> None:
        runs = [asdict(record) for record in self.records]
        self.path.write_text(json.dumps({"setting": self.setting, "machine": self.machine, "runs": runs}, indent=1))

    def add(self, record: Record) -> None:
        """Keep a record whose loss at step 0 is that of the others."""
        first = self.records[0].step0 if self.records else record.step0
        if abs(record.step0 - first) > TOLERANCE * abs(first):
            raise SystemExit(
                f"{record.contender}: loss {record.step0} at step 0, {self.records[0].contender}'s is {first}"
            )
        self.records.append(record)
        self.write()


def machine(threads: int) -> dict[str, Any]:
    """Processor and versions; ``peak`` is filled in by `matrix_peak`."""
    import torch
    import transformers

    import pumice

    cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": cpu[1] if cpu else "unknown", "cores": os.cpu_count(), "threads": threads, "peak": 0.0,
        "torch": torch.__version__, "transformers": transformers.__version__, "pumice": pumice.__version__,
        "python": sys.version.split()[0],
    }  # fmt: skip


def matrix_peak() -> float:
    """The best of benchmarks/matmul.py now, GFLOP/s: one thread's matrix products, fp32 or bf16."""
    command = [sys.executable, str(ROOT / "benchmarks" / "matmul.py")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return max(float(value) for value in re.findall(r"([\d.]+) GFLOP/s", printed))


def run_child(job: Job, folder: Path) -> Record:
    """`run_job` in a process of its own.

    Raises:
        SystemExit: it failed; what it wrote to stderr is shown.
    """
    threads = str(job.threads)
    environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "benchmarks.train.run", "--child", json.dumps(asdict(job)), str(folder)]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(f"{job.contender} failed with exit code {ran.returncode}:\n{ran.stderr[-4000:]}")
    return from_json(json.loads(ran.stdout.splitlines()[-1]))


def child(job: Job, folder: Path) -> None:
    """In the child: run, and print the record as JSON."""
    import torch

    torch.set_num_threads(job.threads)
    print(json.dumps(asdict(run_job(job, folder))))


def measure(session: Session, job: Job, names: Sequence[str], minutes: float) -> bool:
    """Do the runs that are missing, contenders in turn; whether all are done."""
    began, longest = time.monotonic(), 0.0
    with tempfile.TemporaryDirectory() as folder:
        write(SHAPES[job.shape], Path(folder))
        session.mixture = long_run(job.batch, describe(Path(folder)).policy)
        for run in range(job.runs):
            # Before every round, and the best counts: a shared processor isn't always as fast.
            session.machine["peak"] = max(session.machine["peak"], matrix_peak())
            session.write()
            for name in names:
                if any((record.contender, record.run) == (name, run) for record in session.records):
                    continue
                if minutes and time.monotonic() - began + longest > 60 * minutes:
                    return False
                started = time.monotonic()
                record = run_child(replace(job, contender=name, run=run), Path(folder))
                longest = max(longest, time.monotonic() - started)
                session.add(record)
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
    print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=45))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="elva-160m")
    parser.add_argument("--runs", type=int, default=5, help="runs of each contender")
    parser.add_argument("--updates", type=int, default=1, help="timed updates of a run, after one that warms up")
    parser.add_argument("--samples", type=int, default=8, help="samples of an update")
    parser.add_argument("--batch", type=int, default=8, help="samples of a padded forward pass; it divides --samples")
    parser.add_argument("--pack-tokens", type=int, default=1024, help="tokens of a packed forward pass")
    parser.add_argument("--threads", type=int, default=1)
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
    return args


def main() -> None:
    args = parse()
    if args.child:
        return child(Job(**json.loads(args.child[0])), Path(args.child[1]))
    names = args.contenders
    if args.ablations:
        names = [name for name in ABLATIONS if not (args.frozen_tower and name == "ours-tower")]
    job = Job(
        args.shape, "", 0, args.runs, args.updates, args.samples, args.batch, args.pack_tokens, args.threads,
        args.frozen_tower, args.seed,
    )  # fmt: skip
    if args.profile:
        return profile(replace(job, contender=args.profile))
    parts = [args.shape] + ["frozen"] * args.frozen_tower + ["ablations"] * args.ablations
    path = args.json or RESULTS / f"{'-'.join(parts)}.json"
    setting = {key: value for key, value in asdict(job).items() if key not in ("contender", "run")}
    session = Session(path, setting)
    session.read()
    session.machine = session.machine or machine(args.threads)
    path.parent.mkdir(parents=True, exist_ok=True)
    complete = measure(session, job, names, args.minutes)
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
