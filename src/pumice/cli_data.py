"""``pumice inspect``: what a stage trains on, to be looked at before it does."""

from __future__ import annotations

import argparse
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
