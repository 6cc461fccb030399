"""``pumice data render``: shards of rendered examples with an index, a card and contact sheets."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from pumice.cli.care import add_work, bars, engine, workers
from pumice.cli.parser import Parser, make_parser, positive, whole
from pumice.types import PumiceError

MIB = 1 << 20


def render_parser(name: str) -> Parser:
    parser = make_parser(
        name,
        "Draw examples to train on and write them as shards, with an index, a data card and a contact sheet a kind. "
        "The same command goes on where it was stopped, and ends with the same shards.",
        """
pumice data render --list
pumice data render receipts invoices --out data/bills --n 10000
pumice data render all --out data/mixed --n 4000000 --workers 64 --shard-mib 512
RAY_ADDRESS=10.0.0.1:6379 pumice data render all --out data/mixed --n 4000000 --engine ray
pumice data render receipts=3 charts tables --out data/mine --n 50000 --form parquet --seed 7
pumice data render receipts forms --out data/pocket --n 20000 --answers short --json""",
    )
    parser.add_argument("kinds", nargs="*", metavar="KIND[=WEIGHT]", help="kinds to draw, or all; see --list")
    parser.add_argument("--list", action="store_true", help="print the kinds, and what any of them lacks here")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the shards: empty, or that of a stopped run")
    parser.add_argument(
        "--n", type=positive, default=10_000, metavar="N", help="records of all kinds (default: %(default)s)"
    )
    parser.add_argument("--seed", type=whole, default=0, metavar="N", help="another seed, other records")
    parser.add_argument("--split", choices=("train", "heldout"), default="train", help="whose fonts and words")
    parser.add_argument(
        "--form", choices=("wds", "parquet"), default="wds", help="tar in WebDataset's form, or parquet with pictures"
    )
    parser.add_argument(
        "--answers", choices=("papers", "short"), default="papers", help="papers: sentences, and short answers behind "
        "LLaVA's format prompts (default); short: a few words and no prompt, as the built-in tasks ask",
    )  # fmt: skip
    add_work(parser)
    parser.add_argument(
        "--shard-mib", type=positive, default=256, metavar="MIB", help="size of a shard, about (default: %(default)s)"
    )
    parser.add_argument("--tokenizer", metavar="DIR", help="count tokens with this tokenizer, for the card")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def render_command(args: argparse.Namespace) -> int:
    if args.list:
        return _list(args.json)
    if not args.kinds:
        raise PumiceError("which kinds? Name some, or all (pumice data render --list shows them)")
    if args.out is None:
        raise PumiceError("--out DIR is missing: the folder that the shards go to")
    if args.out.exists() and not args.out.is_dir():
        raise PumiceError(f"{args.out}: a file; expected a folder, or none yet")
    from rich.console import Console

    from pumice.data.produce.finish import finish
    from pumice.data.produce.plan import make_plan, spread
    from pumice.data.produce.run import Tally, render_shards

    weights, left_out = _present(spread(args.kinds))
    for kind, why in left_out.items():
        print(f"left out: {kind} ({why})", file=sys.stderr)
    given = (args.n, args.seed, args.split, args.answers, args.form, args.shard_mib)
    console = Console(stderr=True)
    with console.status("measuring a few records of each kind"):
        plan = make_plan(weights, *given)
    with bars() as told, engine(args) as where:

        def progress(tally: Tally) -> None:
            told("rendering", tally.found + tally.written, tally.samples)

        tally = render_shards(plan, args.out, workers(args), args.tokenizer, progress, where)
    with console.status("drawing contact sheets"):
        facts = finish(plan, args.out)
    report = {
        "out": str(args.out),
        "shards": len(facts),
        "samples": plan.samples,
        "written": tally.written,
        "found": tally.found,
        "bytes": sum(fact["bytes"] for fact in facts),
        "seconds": round(tally.seconds, 1),
        "per_core_second": {kind: round(rate, 2) for kind, rate in tally.rates.items()},
        "left_out": left_out,
    }
    print(json.dumps(report, ensure_ascii=False) if args.json else _said(report))
    return 0


def _present(weights: dict[str, float]) -> tuple[dict[str, float], dict[str, str]]:
    """(the kinds that can be drawn here, why the others can't)."""
    from pumice.data.render.kinds import missing

    lacking = {kind: why for kind in weights if (why := missing(kind))}
    present = {kind: weight for kind, weight in weights.items() if kind not in lacking}
    if not present:
        raise PumiceError("nothing to draw: " + "; ".join(f"{kind}: {why}" for kind, why in lacking.items()))
    return present, lacking


def _list(as_json: bool) -> int:
    from pumice.data.render.kinds import KINDS, missing

    rows = [
        {"kind": kind.name, "category": kind.category, "shows": kind.what, "lacks": missing(kind.name)}
        for kind in KINDS.values()
    ]
    if as_json:
        print(json.dumps(rows, ensure_ascii=False))
        return 0
    for row in rows:
        lacks = f" (left out: {row['lacks']})" if row["lacks"] else ""
        print(f"{row['kind']:<15} {row['category']:<17} {row['shows']}{lacks}")
    return 0


def _said(report: dict) -> str:
    """The report for people."""
    lines = [
        f"{report['samples']} records in {report['shards']} shards, {report['bytes'] / MIB:.1f} MiB: {report['out']}"
    ]
    if report["written"]:
        again = f", {report['found']} were there" if report["found"] else ""
        lines.append(
            f"{report['written']} written in {report['seconds']:.1f} s, "
            f"{report['written'] / max(report['seconds'], 1e-9):.1f}/s{again}"
        )
        lines.append("records a second and core:")
        lines += [f"  {kind:<15} {rate:8.2f}" for kind, rate in report["per_core_second"].items()]
    else:
        lines.append("nothing was missing")
    return "\n".join(lines)
