"""``pumice data`` and ``pumice inspect``: what lies on disk for a recipe, and what a stage trains on."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from pumice.cli_parser import Parser, make_parser, positive
from pumice.types import PumiceError


def inspect_parser(name: str) -> Parser:
    parser = make_parser(
        name,
        "Show the first samples of a stage as the model will see them: tiles, tokens, what of them is learned.",
        """
pumice inspect recipes/pocket.toml --stage answer
pumice inspect recipes/llava-1.5-7b.toml --stage instruct --data /data --n 50 --out instruct.html
pumice inspect recipes/onevision-7b.toml data.mid.sampling=first:1000 --stage mid --json""",
    )
    parser.add_argument("recipe", metavar="RECIPE", help="the recipe's file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the recipe's")
    parser.add_argument("--stage", metavar="NAME", help="one of the recipe's stages (default: the first)")
    parser.add_argument(
        "-n", "--n", dest="count", type=positive, default=20, metavar="N", help="samples (default: %(default)s)"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the sources (default: PUMICE_DATA or data)")
    parser.add_argument(
        "--out", type=Path, default=Path("inspect.html"), metavar="FILE", help="the page (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a sample instead of the page")
    return parser


def inspect_command(args: argparse.Namespace) -> int:
    from pumice.config import load_recipe

    recipe = load_recipe(args.recipe, args.overrides)  # shows mistakes before torch is imported
    stages = {stage.name: stage for stage in recipe.stages}
    if args.stage is not None and args.stage not in stages:
        raise PumiceError(f"--stage {args.stage}: {args.recipe} has no such stage; its stages are {', '.join(stages)}")
    if not args.json and (args.out.is_dir() or not args.out.parent.is_dir()):
        raise PumiceError(f"{args.out}: can't be written; expected a file name in a folder that exists")
    from pumice.data import inspection_page
    from pumice.train.run import data_root

    stage = stages[args.stage] if args.stage is not None else recipe.stages[0]
    inspection_page.main(recipe, stage, args.count, data_root(args.data), None if args.json else args.out)
    return 0


def data_parser(name: str) -> Parser:
    parser = make_parser(
        name,
        "Index a recipe's sources: check every sample, count its tokens, and say what can't be used and why.",
        """
pumice data index recipes/llava-1.5-7b.toml --data path/to/data
pumice data index recipes/onevision-7b.toml --stage single_image --workers 16
pumice data index my.toml data.mine.sampling=first:1000 --json""",
    )
    parser.add_argument("action", choices=("index",), help="what to do")
    parser.add_argument("recipe", metavar="RECIPE", help="the recipe's file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the recipe's")
    parser.add_argument("--stage", metavar="NAME", help="only this stage's sources (default: every stage)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the sources (default: PUMICE_DATA or data)")
    cores = os.cpu_count() or 1
    parser.add_argument("--workers", type=positive, default=cores, metavar="N", help="processes (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def data_command(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from pumice.config import load_recipe
    from pumice.data.feed import open_indexes, rendered, stage_processor
    from pumice.data.index_report import print_report
    from pumice.model.build import build_processor
    from pumice.pocket.parts import cache_dir
    from pumice.train.run import data_root

    recipe = load_recipe(args.recipe, args.overrides)
    stages = [stage for stage in recipe.stages if args.stage in (None, stage.name)]
    if not stages:
        raise PumiceError(f"no stage {args.stage!r}; the recipe has {', '.join(stage.name for stage in recipe.stages)}")
    stages = [stage for stage in stages if not rendered(stage)]
    if not stages:
        raise PumiceError(f"{args.recipe}: its stages draw their pictures; there is nothing to index")
    processor = build_processor(recipe.model)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    for stage in stages:
        with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
            tasks: dict[str, int] = {}

            def tell(name: str, done: int, total: int, bars: Progress = bars, tasks: dict[str, int] = tasks) -> None:
                if name not in tasks:
                    tasks[name] = bars.add_task(name, total=total)
                bars.update(tasks[name], completed=done)  # type: ignore[arg-type]

            own = stage_processor(processor, stage)
            _, indexes = open_indexes(
                recipe, stage, own, data_root(args.data), cache_dir() / "index", args.workers, tell
            )
        if not args.json:
            print(f"stage {stage.name}")
        print_report(indexes, args.json)
    return 0
