"""Whole requests: Pumice's engine beside transformers' own classes and llama.cpp's server, on a CPU.

    python -m benchmarks.serve.whole_requests                      all, one thread; --minutes bounds it
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
- Pumice: the pocket model behind `Engine` in its own thread, default settings. int8 and int4 are the language model's
  weights; the tower multiplies integers of 13 and 14 bits beside int8, copies of 6 bits beside int4.
- transformers: LlavaNext- and LlavaOnevisionForConditionalGeneration with the same pretrained parts and a random
  projector of the same shape (but no norm), `generate`, sdpa. bf16 once: without AVX-512 it is far slower.
- llama.cpp's server (package xllamacpp) gets texts only, on eight slots: it has no DINOv2 towers. Files are written
  from the same weights.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.serve.requests_table import table
from benchmarks.serve.turns import read_records, run_cells, run_worker

RESULTS = Path(__file__).parent / "results"
OURS = ["pumice-fp32", "pumice-int8", "pumice-int4"]
LLAMA = ["llama.cpp-f16"]
CONTENDERS = [*OURS, "transformers-fp32", "transformers-bf16", *LLAMA]
ROUNDS: dict[str, dict[str, int]] = {
    "first": {"pumice-fp32": 2, "pumice-int8": 2, "pumice-int4": 2, "transformers-fp32": 2, "transformers-bf16": 1},
    "shared": {"pumice-fp32": 2, "pumice-int8": 2, "pumice-int4": 2},
    "different": {"pumice-fp32": 1, "pumice-int8": 1, "pumice-int4": 1, "transformers-fp32": 1},
    "text": {"pumice-fp32": 2, "pumice-int8": 2, "pumice-int4": 2, "transformers-fp32": 1, "llama.cpp-f16": 1},
    "pdf": {"pumice-fp32": 1, "pumice-int8": 1, "pumice-int4": 1},
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
    parser.add_argument("--minutes", type=float, default=25.0)
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
    records = read_records(args.out)
    finished = run_cells(cells(args), records, args.out, args.minutes, lambda cell: command(cell, args))
    args.out.with_suffix(".md").write_text(table(records))
    print(f"{args.out.with_suffix('.md')}{'' if finished else ': not finished; the same command goes on'}")


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


def command(cell: dict[str, Any], args: argparse.Namespace) -> list[str]:
    """A contender's process; llama.cpp's file is written by one before it, whose memory counts as nobody's."""
    if cell["contender"] in LLAMA:
        run_worker(_command({**cell, "group": "write"}, args), args.threads)
    return _command(cell, args)


def _command(cell: dict[str, Any], args: argparse.Namespace) -> list[str]:
    found = ["benchmarks.serve.whole_requests", "--worker", json.dumps(cell)]
    return [*found, "--work", str(args.work), "--threads", str(args.threads)]


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
