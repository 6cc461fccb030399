"""``pumice data ACTION`` and ``pumice inspect``: data made, checked and counted, and what a stage trains on.

argv ──ACTIONS──> the parser of one action ──> its command
"""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pumice.cli.caption import caption_command, caption_parser, filter_command, filter_parser
from pumice.cli.care import (
    add_work,
    bars,
    check_command,
    check_parser,
    clean_command,
    clean_parser,
    engine,
    workers,
)
from pumice.cli.importing import import_command, import_parser
from pumice.cli.parser import Parser, make_parser, positive
from pumice.cli.render import render_command, render_parser
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


def index_parser(name: str) -> Parser:
    parser = make_parser(
        name,
        "Index a recipe's sources: check every sample, count its tokens, and say what can't be used and why.",
        """
pumice data index recipes/llava-1.5-7b.toml --data path/to/data
pumice data index recipes/onevision-7b.toml --stage single_image --workers 16
RAY_ADDRESS=10.0.0.1:6379 pumice data index recipes/onevision-7b.toml --engine ray
pumice data index my.toml data.mine.sampling=first:1000 --json""",
    )
    parser.add_argument("recipe", metavar="RECIPE", help="the recipe's file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the recipe's")
    parser.add_argument("--stage", metavar="NAME", help="only this stage's sources (default: every stage)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the sources (default: PUMICE_DATA or data)")
    add_work(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def index_command(args: argparse.Namespace) -> int:
    from pumice.config import load_recipe
    from pumice.data.feed import open_indexes, rendered, stage_processor
    from pumice.data.index_report import print_report, summary
    from pumice.data.mixing import split_stage
    from pumice.model.build import build_processor
    from pumice.pocket.parts import cache_dir
    from pumice.train.run import data_root

    recipe = load_recipe(args.recipe, args.overrides)
    stages = [stage for stage in recipe.stages if args.stage in (None, stage.name)]
    if not stages:
        raise PumiceError(f"no stage {args.stage!r}; the recipe has {', '.join(stage.name for stage in recipe.stages)}")
    stages = [stage for stage in stages if any(name in recipe.data for name in stage.data)]
    if not stages:
        raise PumiceError(f"{args.recipe}: its stages draw their pictures; there is nothing to index")
    processor = build_processor(recipe.model)
    root, cache = data_root(args.data), cache_dir() / "index"
    shown: list[dict[str, Any]] = []
    with engine(args) as where:
        for stage in stages:
            own, stored = stage_processor(processor, stage), split_stage(stage)[1] if rendered(stage) else stage
            with bars() as told:
                _, indexes = open_indexes(recipe, stored, own, root, cache, workers(args), told, where, again=True)
            if args.json:
                shown += [{"stage": stage.name, **summary(index)} for index in indexes.values()]
                continue
            print(f"stage {stage.name}")
            print_report(indexes)
    if args.json:
        print(json.dumps(shown, indent=1))
    return 0


Action = tuple[Callable[[str], Parser], Callable[[argparse.Namespace], int], str]
ACTIONS: dict[str, Action] = {
    "index": (index_parser, index_command, "check every sample of a recipe's sources and count its tokens"),
    "render": (render_parser, render_command, "draw examples to train on, into shards with an index and a card"),
    "import": (import_parser, import_command, "check and convert a public data set's local copy"),
    "caption": (caption_parser, caption_command, "caption pictures anew"),
    "filter": (filter_parser, filter_command, "copy captions or instructions that are worth training on"),
    "check": (check_parser, check_command, "find near-duplicates, and what stands in test sets"),
    "clean": (clean_parser, clean_command, "copy data without what a check found, or without personal data"),
}
"""What follows ``pumice data``: (parser, command, what it does)."""


class _DataParser(Parser):
    """Hands everything after an action's name to the parser of that action."""

    def parse_intermixed_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:  # type: ignore[override]
        given = list(args or ())
        if not given or given[0].startswith("-"):
            self.parse_args(given)  # --help ends here
            self.error(f"which action? Choose one of {', '.join(ACTIONS)}")
        if given[0] not in ACTIONS:
            near = difflib.get_close_matches(given[0], ACTIONS, 1)
            hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(ACTIONS)}"
            raise PumiceError(f"unknown action {given[0]!r} of pumice data: {hint}")
        add, run, _ = ACTIONS[given[0]]
        parsed = add(f"data {given[0]}").parse_intermixed_args(given[1:], namespace)
        parsed.run = run
        return parsed


EXAMPLES = """\
  pumice data index recipes/llava-1.5-7b.toml --data path/to/data
  pumice data render receipts charts --n 10000 --out data/drawn
  pumice data check data/drawn --against embedded"""


def data_parser(name: str) -> Parser:
    listed = "\n".join(f"  {action:<10} {what}" for action, (_, _, what) in ACTIONS.items())
    return _DataParser(
        prog=f"pumice {name}",
        usage=f"pumice {name} ACTION ...",
        description="Make, check and count data to train on.",
        epilog=f"actions:\n{listed}\n\npumice {name} ACTION --help says more.\n\nexamples:\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def data_command(args: argparse.Namespace) -> int:
    return args.run(args)
