"""``pumice train`` and ``pumice eval``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pumice.cli_parser import Parser, make_parser, positive, whole
from pumice.types import PumiceError

if TYPE_CHECKING:
    from pumice.config import Recipe


def train_parser(name: str) -> Parser:
    parser = make_parser(
        name,
        "Train a model as a recipe (a TOML file) says. Stopped, the same command goes on from the last checkpoint.",
        """
pumice train recipes/pocket.toml --out runs/pocket
pumice train recipes/pocket.toml seed=1 stages.read.steps=1800 --out runs/longer
pumice train recipes/pocket.toml --out runs/pocket --resume --track tensorboard
pumice train recipes/onevision-7b.toml --dry-run --device h100 --devices 64
pumice train --from pocket --data mine.jsonl --out runs/mine
pumice train --from path/to/llava-1.5-7b-hf --data mine.jsonl --out runs/mine
pumice train --from path/to/llava-1.5-7b-hf --data mine.jsonl stages.finetune.lora.quantize=nf4""",
    )
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="the recipe's file; none with --from")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the recipe's")
    parser.add_argument(
        "--from", dest="model", metavar="MODEL", help="fine-tune pocket, a run or a checkpoint on --data; score both"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the run (default: runs/ and the recipe's name)"
    )
    parser.add_argument("--resume", action="store_true", help="start nothing new: an error unless DIR holds a run")
    parser.add_argument("--workers", type=positive, default=1, metavar="N", help="processes (default: %(default)s)")
    parser.add_argument(
        "--data", type=Path, metavar="PATH", help="folder of the sources (default: PUMICE_DATA or data); with --from, "
        "a JSON, JSONL or parquet file, or a folder of pictures with captions",
    )  # fmt: skip
    parser.add_argument(
        "--loaders",
        type=whole,
        metavar="N",
        help="processes of each worker that read ahead (default: with a GPU its share of the cores)",
    )
    parser.add_argument(
        "--track", metavar="A,B", default="", help="also log to tensorboard, trackio or wandb, beside the run's own log"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what it will take, and train nothing")
    parser.add_argument("--device", metavar="NAME", help="with --dry-run: predict hours on this kind, such as h100")
    parser.add_argument("--devices", type=positive, default=1, metavar="N", help="with --dry-run: how many of them")
    parser.add_argument("--json", action="store_true", help="with --dry-run: print JSON")
    return parser


def train_command(args: argparse.Namespace) -> int:
    from pumice.config import load_recipe

    if args.model is not None:
        return _finetune(args)
    if args.recipe is None:
        raise PumiceError("RECIPE is missing; or fine-tune with --from MODEL --data FILE (see pumice train --help)")
    recipe = load_recipe(args.recipe, args.overrides)  # shows mistakes before torch is imported
    if args.dry_run:
        return _dry_run(recipe, args.recipe, args.data, args)
    out = args.out or Path("runs") / Path(args.recipe).stem
    _check_resume(args, out)
    from pumice.train import run

    run.main(args.recipe, args.overrides, out, args.workers, args.data, args.loaders, _trackers(args))
    return 0


def _dry_run(recipe: Recipe, path: str, data: Path | None, args: argparse.Namespace) -> int:
    from pumice.plan.recipe import sizes_of
    from pumice.train import course
    from pumice.train.run import data_root

    sizes, root = sizes_of(recipe, path), data_root(data)
    course.main(recipe, Path(path), sizes, root, args.device, args.devices, args.workers, args.json)
    return 0


def _check_resume(args: argparse.Namespace, out: Path) -> None:
    if args.resume and not (out / "recipe.toml").is_file():
        raise PumiceError(f"{out}: no run to resume; leave --resume out to start one")


def _trackers(args: argparse.Namespace) -> list[str]:
    return [name.strip() for name in args.track.split(",") if name.strip()]


def _finetune(args: argparse.Namespace) -> int:
    if args.data is None:
        raise PumiceError("--from needs --data: a JSON, JSONL or parquet file, or a folder of pictures with captions")
    # Without a recipe's file the first setting stands in its place.
    overrides = [*([args.recipe] if args.recipe else []), *args.overrides]
    if any("=" not in text for text in overrides):
        raise PumiceError(f"{args.recipe}: --from takes no recipe; it writes one into the folder of --out")
    out = args.out or Path("runs") / args.data.stem
    _check_resume(args, out)
    from pumice.config import load_recipe
    from pumice.train import finetune

    if args.dry_run:
        path = finetune.write_recipe(args.model, args.data, out)
        return _dry_run(load_recipe(path, overrides), str(path), None, args)
    finetune.main(args.model, args.data, overrides, out, args.workers, args.loaders, _trackers(args))
    return 0


def eval_parser(name: str) -> Parser:
    parser = make_parser(
        name,
        "Score a model on the built-in tasks: rendered pages and pictures that no model was trained on; with --suite "
        "on public benchmarks, through lmms-eval.",
        """
pumice eval pocket
pumice eval pocket --tasks shop,city,objects -n 20
pumice eval runs/pocket --json scores.json --html scores.html
pumice eval runs/pocket-2 --baseline scores.json --html changes.html
pumice eval --frontier scores.json scores-2.json --html frontier.html
pumice eval runs/pocket --suite llava15 --out scores/pocket
pumice eval http://localhost:8000/v1 --suite docvqa,ocrbench -n 100""",
    )
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="a model's name or folder, or ocr; with --suite a server's URL too"
    )
    parser.add_argument("--tasks", metavar="A,B", help="only these tasks or groups of tasks (default: all)")
    parser.add_argument(
        "-n", type=positive, metavar="N", help="questions a task (default: 200, of public benchmarks all)"
    )
    parser.add_argument(
        "--suite",
        metavar="A,B",
        default="embedded",
        help="embedded (the built-in tasks), llava15, next, onevision, elva, benchmarks, or tasks of lmms-eval",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of results, answers and journal (with "
        "--suite by default scores/ and the model's name); the same command again asks only what is left",
    )  # fmt: skip
    parser.add_argument("--batch", type=positive, default=8, metavar="N", help="with --suite: questions at a time")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="with --suite: folder of cord_instruct.jsonl or parsing_bench.jsonl"
    )
    parser.add_argument("--include", type=Path, metavar="DIR", help="with --suite: folder of your own lmms-eval tasks")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the scores as JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write a page with pictures and answers")
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
    if args.suite != "embedded":
        return _eval_public(args)
    tasks = [task.strip() for task in args.tasks.split(",") if task.strip()] if args.tasks is not None else None
    if tasks == []:
        raise PumiceError("--tasks is empty; expected names with commas between them")
    _check_writable(args)
    from pumice.eval import embedded
    from pumice.eval.suite import check_tasks

    check_tasks(tasks or [])  # before the model is loaded
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        args.json, args.html = args.json or args.out / "embedded.json", args.html or args.out / "embedded.html"
    kept = args.out and args.out / "journal"
    chosen = {n: value for n, value in (("cost", args.cost), ("baseline", args.baseline), ("kept", kept)) if value}
    report = embedded.main(args.model, tasks, args.n or 200, args.json, args.html, **chosen)
    if report.failed:
        first = report.failed[0]
        print(
            f"{len(report.failed)} questions failed, first: {first.item.question!r}: {first.skipped}", file=sys.stderr
        )
    return 1 if report.failed else 0


def _check_writable(args: argparse.Namespace) -> None:
    for path in (args.json, args.html):
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise PumiceError(f"{path}: can't be written; expected a file name in a folder that exists")


def _frontier(args: argparse.Namespace) -> int:
    given = {"MODEL": args.model, "--tasks": args.tasks, "-n": args.n, "--baseline": args.baseline, "--out": args.out}
    beside = [name for name, value in given.items() if value is not None]
    if beside or args.cost or args.suite != "embedded":
        raise PumiceError(
            f"--frontier takes runs' --json files, --json and --html only, not {(beside or ['--cost or --suite'])[0]}"
        )
    _check_writable(args)
    from pumice.eval import frontier

    frontier.main(args.frontier, args.json, args.html)
    return 0


def _eval_public(args: argparse.Namespace) -> int:
    names = [name.strip() for name in args.suite.split(",") if name.strip()]
    if not names or args.tasks is not None or args.json or args.html or args.cost or args.baseline:
        raise PumiceError(
            "--suite takes names with commas between them, and --out instead of --tasks, --json, --html, --cost and "
            "--baseline"
        )
    for folder in (args.data, args.include):
        if folder is not None and not folder.is_dir():
            raise PumiceError(f"{folder}: no such folder")
    from pumice.eval import public

    public.check_installed()  # before torch is imported
    out = args.out or Path("scores") / (Path(args.model).name or "model")
    return public.main(args.model, names, public.Options(out, args.batch, args.n, args.data, args.include))
