"""Whole requests: Pumice's engine beside transformers' own classes and llama.cpp's server, on a CPU.

    python -m benchmarks.serve.whole_requests                      all, one thread: about ten minutes on an idle machine
    python -m benchmarks.serve.whole_requests --threads 2
    python -m benchmarks.serve.whole_requests --quick [--only CONTENDERS] [--groups GROUPS]
    python -m benchmarks.serve.whole_requests --profile            where the time to Pumice's first token goes

    for each round: for each group: each contender in a process of its own ──> results/requests.json
    medians, ratios and goals of all rounds ──> results/requests.md

From the repository's root. After ``--minutes`` no process is begun; the same command goes on from the JSON, which holds
every run, failed ones too (delete a record to have it run again).

- A request begins with an encoded file and a question in text, and ends with the first token or with 16; answers never
  end earlier. A picture is 1,312 visual tokens to everyone (four tiles, an overview, rows' ends), a video 1,025 (16
  frames). Kernels and libraries are warm; pictures and texts are new to the process unless a row says otherwise.
- Pumice: the pocket model behind `Engine` in its own thread, default settings. int8 is of the language model's weights.
- transformers: LlavaNext- and LlavaOnevisionForConditionalGeneration with the same pretrained parts and a random
  projector of the same shape (but no norm), `generate`, sdpa. bf16 once: without AVX-512 it is far slower.
- llama.cpp's server (package xllamacpp) gets texts only, on eight slots: it has no DINOv2 towers. Files are written
  from the same weights.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.serve.requests_table import table

RESULTS = Path(__file__).parent / "results"
OURS = ["pumice-fp32", "pumice-int8"]
LLAMA = ["llama.cpp-f16"]
CONTENDERS = [*OURS, "transformers-fp32", "transformers-bf16", *LLAMA]
ROUNDS: dict[str, dict[str, int]] = {
    "first": {"pumice-fp32": 2, "pumice-int8": 2, "transformers-fp32": 2, "transformers-bf16": 1},
    "shared": {"pumice-fp32": 2, "pumice-int8": 2},
    "different": {"pumice-fp32": 1, "pumice-int8": 1, "transformers-fp32": 1},
    "text": {"pumice-fp32": 2, "pumice-int8": 2, "transformers-fp32": 1, "llama.cpp-f16": 1},
    "pdf": {"pumice-fp32": 2, "pumice-int8": 2},
}
"""Rounds of each group and of the contenders in it. A run of "first" measures three times, in bf16 once."""
MOST = {("different", "pumice-fp32"): 8}
"""Clients at most, where not 32: a picture each for 32 takes minutes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default=",".join(CONTENDERS), help=f"of {', '.join(CONTENDERS)}")
    parser.add_argument("--groups", default=",".join(ROUNDS), help=f"of {', '.join(ROUNDS)}")
    parser.add_argument("--quick", action="store_true", help="one round, 8 clients at most, no bf16; kept elsewhere")
    parser.add_argument("--profile", action="store_true", help="print where the time to the first token goes")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--out", type=Path, default=RESULTS / "requests.json")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "pumice-requests", help="GGUF files")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(work(json.loads(args.worker), args)))
        return
    if args.profile:
        print_profile(args)
        return
    if args.quick and args.out == RESULTS / "requests.json":
        args.out = args.work / "quick.json"
    records = json.loads(args.out.read_text()) if args.out.is_file() else []
    finished = run_all(args, records)
    args.out.with_suffix(".md").write_text(table(records))
    print(f"{args.out.with_suffix('.md')}{'' if finished else ': not finished; the same command goes on'}")


def run_all(args: argparse.Namespace, records: list[dict[str, Any]]) -> bool:
    """Measure what isn't in ``records`` yet, and keep it; False where time ran out."""
    began = time.monotonic()
    done = {(r["round"], r["threads"], r["group"], r["contender"]) for r in records}
    for cell in cells(args):
        if (cell["round"], cell["threads"], cell["group"], cell["contender"]) in done:
            continue
        if time.monotonic() - began > args.minutes * 60:
            return False
        records.append(cell | run_one(args, cell))
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(records, indent=1) + "\n")
    return True


def cells(args: argparse.Namespace) -> list[dict[str, Any]]:
    """What is to be run, in turns."""
    found = []
    only, groups = args.only.split(","), args.groups.split(",")
    for turn in range(1 if args.quick else max(n for rounds in ROUNDS.values() for n in rounds.values())):
        for group in groups:
            for contender, rounds in ROUNDS[group].items():
                most = 8 if args.quick else MOST.get((group, contender), 32)
                skipped = args.quick and contender.endswith("bf16")
                if contender in only and turn < rounds and not skipped:
                    cell = {"round": turn, "threads": args.threads, "group": group, "contender": contender}
                    found.append({**cell, "most": most, "repeats": 1 if args.quick else 3})
    return found


def run_one(args: argparse.Namespace, cell: dict[str, Any]) -> dict[str, Any]:
    """One contender's measurements of a group, from a process of its own."""
    print(f"round {cell['round'] + 1}: {cell['group']}, {cell['contender']}", flush=True)
    if cell["contender"] in LLAMA:
        _worker(args, {**cell, "group": "write"})  # once; reading the model counts as nobody's memory
    load, began = os.getloadavg()[0], time.monotonic()
    ended = _worker(args, cell)
    taken = {"load": round(load, 2), "wall": round(time.monotonic() - began, 1)}
    if ended.returncode:
        return {"error": (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1], **taken}
    return {**json.loads(ended.stdout.splitlines()[-1]), **taken}


def _worker(args: argparse.Namespace, cell: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.serve.whole_requests", "--worker", json.dumps(cell)]
    command += ["--work", str(args.work), "--threads", str(args.threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "MKL_NUM_THREADS": str(args.threads)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def work(cell: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """(In the process of its own.) Times by point, notes, and the most memory that the process had, in MiB."""
    from benchmarks.serve import requests_ours, requests_peers

    contender, group, seed = cell["contender"], cell["group"], 10 * cell["round"] + 1
    if group == "write":
        requests_peers.gguf(args.work, contender.rsplit("-", 1)[1])
        return {}
    if contender in OURS:
        weights = contender.removeprefix("pumice-")
        found = requests_ours.measure(weights, group, seed, cell["most"], cell["repeats"], args.threads)
    else:
        found = requests_peers.measure(contender, group, seed, cell["most"], cell["repeats"], args.threads, args.work)
    return {**found, "peak MiB": peak(), "cpu": round(time.process_time(), 1)}


def peak() -> float:
    """The most memory that this process has had, in MiB."""
    status = Path("/proc/self/status").read_text()
    return round(int(status.split("VmHWM:")[1].split()[0]) / 1024)


def print_profile(args: argparse.Namespace) -> None:
    """Milliseconds of each stage, by weights and by what is asked about."""
    import torch

    from benchmarks.serve.requests_ours import profile

    torch.set_num_threads(args.threads)
    for contender in (name for name in OURS if name in args.only.split(",")):
        rounds = 1 if args.quick else 5
        for kind, stages in profile(contender.removeprefix("pumice-"), args.threads, 1, rounds).items():
            print(f"\n{contender}, {kind}, {args.threads} thread(s), median of {rounds}, ms")
            for stage, spent in sorted(stages.items(), key=lambda pair: -pair[1]):
                print(f"  {spent:9.1f}  {100 * spent / stages['whole']:5.1f}%  {stage}")


if __name__ == "__main__":
    main()
