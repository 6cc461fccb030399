"""``pumice train``."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pumice.cli.parser import Parser, make_parser, positive, whole
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
        with tempfile.TemporaryDirectory() as room:  # nothing stays of what was only asked about
            path = finetune.write_recipe(args.model, args.data, Path(room) / out.name)
            return _dry_run(load_recipe(path, overrides), str(path), None, args)
    finetune.main(args.model, args.data, overrides, out, args.workers, args.loaders, _trackers(args))
    return 0
