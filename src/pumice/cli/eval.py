"""``pumice eval``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pumice.cli.parser import Parser, add_reader, make_parser, positive
from pumice.cli.serve import WEIGHTS
from pumice.types import PumiceError


def eval_parser(name: str) -> Parser:
    parser = make_parser(
        name,
        "Score a model on the built-in tasks: rendered pages and pictures that no model was trained on; with --suite "
        "on public benchmarks, through lmms-eval.",
        """
pumice eval pocket
pumice eval pocket --tasks shop,city,objects -n 20
pumice eval pocket --reader --tasks "short fields,cells"
pumice eval pocket --weights int8 --tasks read,cell --no-blind --json int8.json
pumice eval pocket --suite smoke --html smoke.html
pumice eval runs/pocket --json scores.json --html scores.html
pumice eval runs/pocket-2 --baseline scores.json --html changes.html
pumice eval --frontier scores.json scores-2.json --html frontier.html
pumice eval runs/pocket --suite llava15 --out scores/pocket
pumice eval http://localhost:8000/v1 --suite docvqa,ocrbench -n 100""",
    )
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="a model's name or folder, or ocr; with --suite a server's URL too"
    )
    add_reader(parser)
    parser.add_argument("--tasks", metavar="A,B", help="only these tasks or groups of tasks (default: all)")
    parser.add_argument(
        "-n", type=positive, metavar="N", help="questions a task (default: 200, of public benchmarks all)"
    )
    parser.add_argument(
        "--suite",
        metavar="A,B",
        default="embedded",
        help="embedded (the built-in tasks), smoke (a few photographs and scans, answers without scores), llava15, "
        "next, onevision, elva, benchmarks, or tasks of lmms-eval",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of results, answers and journal (with "
        "--suite by default scores/ and the model's or server's name); the same command again asks only what is left",
    )  # fmt: skip
    parser.add_argument("--batch", type=positive, metavar="N", help="with --suite: questions at a time (default: 8)")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="with --suite: folder of cord_instruct.jsonl or parsing_bench.jsonl"
    )
    parser.add_argument("--include", type=Path, metavar="DIR", help="with --suite: folder of your own lmms-eval tasks")
    parser.add_argument(
        "--no-blind", action="store_true", help="don't ask everything once more over another picture: half of the time"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the scores as JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write a page with pictures and answers")
    parser.add_argument(
        "--weights",
        choices=WEIGHTS,
        default="",
        help="of the language model (default: its own); int4 rounds the tower's too",
    )
    parser.add_argument("--cost", action="store_true", help="also print times, memory and FLOPs of eight questions")
    parser.add_argument(
        "--baseline", type=Path, metavar="FILE", help="compare with an earlier run of the same tasks: its --json file"
    )
    parser.add_argument(
        "--frontier", type=Path, nargs="+", metavar="FILE", help="draw quality against cost of runs' --json files"
    )
    return parser


def eval_command(args: argparse.Namespace) -> int:
    if args.frontier is not None:
        return _frontier(args)
    if args.model is None:
        raise PumiceError("the following arguments are required: MODEL, or --frontier with files (see --help)")
    if args.suite not in ("embedded", "smoke"):
        return _eval_public(args)
    for name in ("batch", "data", "include"):
        if getattr(args, name) is not None:
            raise PumiceError(f"--{name} is about lmms-eval's tasks: it goes with --suite llava15, docvqa and so on")
    if args.suite == "smoke":
        return _smoke(args)
    tasks = [task.strip() for task in args.tasks.split(",") if task.strip()] if args.tasks is not None else None
    if tasks == []:
        raise PumiceError("--tasks is empty; expected names with commas between them")
    _check_writable(args)
    from pumice.eval.suite import embedded
    from pumice.eval.suite.items import check_tasks

    check_tasks(tasks or [])  # before the model is loaded
    given = {
        "cost": args.cost, "baseline": args.baseline, "kept": _folder(args, "embedded"), "reader": args.reader,
        "weights": args.weights,
    }  # fmt: skip
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value}
    if args.no_blind:
        chosen["blind"] = False
    report = embedded.main(args.model, tasks, args.n or 200, args.json, args.html, **chosen)
    if report.failed:
        first = report.failed[0]
        print(
            f"{len(report.failed)} questions failed, first: {first.item.question!r}: {first.skipped}", file=sys.stderr
        )
    return 1 if report.failed else 0


def _folder(args: argparse.Namespace, name: str) -> Path | None:
    """The journal's folder below --out, if there is one, where JSON and page go, too."""
    if args.out is None:
        return None
    args.out.mkdir(parents=True, exist_ok=True)
    args.json, args.html = args.json or args.out / f"{name}.json", args.html or args.out / f"{name}.html"
    return args.out / "journal"


def _smoke(args: argparse.Namespace) -> int:
    if args.tasks is not None or args.n is not None or args.cost or args.baseline or args.no_blind:
        raise PumiceError("--suite smoke asks all it has and scores nothing; it takes --out, --json and --html only")
    _check_writable(args)
    from pumice.eval.smoke import page
    from pumice.eval.suite.embedded import open_asked
    from pumice.eval.suite.remembered import remembering

    kept = _folder(args, "smoke")
    assistant = open_asked(args.model, args.reader, args.weights)
    told = page.main(args.model, remembering(assistant, kept), args.json, args.html, assistant)
    return int(any(one.failed for one in told))


def _check_writable(args: argparse.Namespace) -> None:
    for path in (args.json, args.html):
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise PumiceError(f"{path}: can't be written; expected a file name in a folder that exists")


def _frontier(args: argparse.Namespace) -> int:
    given = {
        "MODEL": args.model, "--tasks": args.tasks, "-n": args.n, "--baseline": args.baseline, "--out": args.out,
        "--batch": args.batch, "--data": args.data, "--include": args.include, "--weights": args.weights or None,
        "--reader": args.reader or None,
    }  # fmt: skip
    beside = [name for name, value in given.items() if value is not None]
    if beside or args.cost or args.no_blind or args.suite != "embedded":
        other = (beside or ["--cost, --no-blind or --suite"])[0]
        raise PumiceError(f"--frontier takes runs' --json files, --json and --html only, not {other}")
    _check_writable(args)
    from pumice.eval.report import frontier

    frontier.main(args.frontier, args.json, args.html)
    return 0


def _eval_public(args: argparse.Namespace) -> int:
    names = [name.strip() for name in args.suite.split(",") if name.strip()]
    embedded = (args.tasks, args.json, args.html, args.baseline, args.reader or None, args.weights or None)
    if not names or args.no_blind or any(one is not None for one in embedded):
        raise PumiceError(
            "--suite takes names with commas between them, and --out instead of --tasks, --json, --html, --baseline, "
            "--reader, --weights and --no-blind"
        )
    for folder in (args.data, args.include):
        if folder is not None and not folder.is_dir():
            raise PumiceError(f"{folder}: no such folder")
    from pumice.eval.public import runner

    runner.check_installed()  # before torch is imported
    host = urlsplit(args.model).netloc.replace(":", "-")  # of a server; else two that end in /v1 would share a folder
    out = args.out or Path("scores") / (host or Path(args.model).name or "model")
    options = runner.Options(out, args.batch or 8, args.n, args.data, args.include, args.cost)
    return runner.main(args.model, names, options)
