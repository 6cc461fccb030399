"""Speed of a language model alone, Pumice's decoder beside transformers and llama.cpp, on a CPU.

    python -m benchmarks.serve.decode                      all contenders, one thread and two, in turns
    python -m benchmarks.serve.decode --threads 1 --only pumice-int8,llama.cpp-q8_0 --rounds 3 --seconds 2

    for each round: for each number of threads: each contender in a process of its own ──> results/decode.json
    medians of all rounds ──> results/decode.md

From the repository's root. After ``--minutes`` no process is begun; the same command goes on from the JSON. llama.cpp
comes from the package xllamacpp, its files are written here from the same weights. README.md has the protocol.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.serve.contenders import CONTENDERS, DECODES, PREFILL, SHARED, bandwidth, rates
from benchmarks.serve.turns import read_records, run_cells

RESULTS = Path(__file__).parent / "results"
MODEL = Path.home() / ".cache/pumice/smollm2-135m-instruct"
PAIRS = {
    "fp32": ["llama.cpp-f16"],
    "bf16": ["llama.cpp-f16"],
    "int8": ["llama.cpp-q8_0"],
    "int4": ["llama.cpp-q4_1", "llama.cpp-q4_0"],
}
"""What a contender of ours is held against. q4_1 is what int4 is, five bits a weight; q4_0 is four and a half."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL, help="folder of a transformers causal LM")
    parser.add_argument("--only", default=",".join(CONTENDERS), help=f"of {', '.join(CONTENDERS)}")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="about how long a figure is measured")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--out", type=Path, default=RESULTS / "decode.json")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "pumice-decode", help="GGUF files")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        found = rates(args.worker, args.model, args.work, int(args.threads), args.seconds)
        print(json.dumps({**found, "bandwidth": bandwidth()}))
        return
    records = read_records(args.out)
    cells = [
        {"round": turn, "threads": threads, "contender": contender}
        for turn in range(args.rounds)
        for threads in map(int, args.threads.split(","))
        for contender in args.only.split(",")
    ]
    finished = run_cells(cells, records, args.out, args.minutes, lambda cell: command(cell, args))
    args.out.with_suffix(".md").write_text(table(records))
    print(f"{args.out.with_suffix('.md')}{'' if finished else ': not finished; the same command goes on'}")


def command(cell: dict[str, Any], args: argparse.Namespace) -> list[str]:
    """A contender's process."""
    found = ["benchmarks.serve.decode", "--worker", cell["contender"], "--threads", str(cell["threads"])]
    return [*found, "--model", str(args.model), "--work", str(args.work), "--seconds", str(args.seconds)]


def table(records: list[dict[str, Any]]) -> str:
    """Medians in Markdown, a table a number of threads, with ratios to the two peers."""
    found: dict[tuple[int, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        for point, rate in record.get("rates", {}).items():
            found[record["threads"], record["contender"]][point].append(rate)
    medians = {key: {p: statistics.median(r) for p, r in points.items()} for key, points in found.items()}
    points = [PREFILL, *DECODES, SHARED]
    lines = ["# Decoding, tokens a second", ""]
    for threads in sorted({threads for threads, _ in medians}):
        rows = {c: medians[threads, c] for c in CONTENDERS if (threads, c) in medians}
        counts = [len(r) for c in rows for r in found[threads, c].values()]
        read = statistics.median(r["bandwidth"] for r in records if r["threads"] == threads and "bandwidth" in r)
        bytes_of = {r["contender"]: r["bytes"] for r in records if r.get("bytes")}
        lines += [f"## {threads} thread(s)", ""]
        lines += [f"Medians of {min(counts)} to {max(counts)} runs. Memory is read at {read:.1f} GB/s.", ""]
        lines += [f"| | {' | '.join(points)} | bound b1 |", "|---" * (len(points) + 2) + "|"]
        for contender, row in rows.items():
            bound = f"{read * 1e9 / bytes_of[contender]:.0f}" if contender in bytes_of else ""
            cells = [f"{row[p]:.1f}" if p in row else "" for p in points]
            lines.append(f"| {contender} | {' | '.join(cells)} | {bound} |")
        lines += ["", *ratios(rows, points), ""]
    failed = [f"- {r['contender']}, {r['threads']} thread(s): {r['error']}" for r in records if "error" in r]
    return "\n".join(lines + (["Failed:", "", *failed, ""] if failed else []))


def ratios(rows: dict[str, dict[str, float]], points: list[str]) -> list[str]:
    """Ours against the faster of transformers' two, and against llama.cpp's of the same bits."""
    theirs = [row for contender, row in rows.items() if contender.startswith("transformers")]
    lines = [f"| ratio | {' | '.join(points)} |", "|---" * (len(points) + 1) + "|"]
    for contender, row in rows.items():
        if not contender.startswith("pumice"):
            continue
        best = {p: max(t[p] for t in theirs if p in t) for p in points if any(p in t for t in theirs)}
        peers = [(name, rows[name]) for name in PAIRS[contender.removeprefix("pumice-")] if name in rows]
        for name, other in [("transformers, the faster", best), *peers]:
            cells = [f"{row[p] / other[p]:.2f}" if p in row and p in other else "" for p in points]
            lines.append(f"| {contender} / {name} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
