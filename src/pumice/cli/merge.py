"""``pumice merge``: the mean of checkpoints, of all or of those that make it better."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pumice.cli.parser import Parser, make_parser, positive
from pumice.types import PumiceError

POINTS = (0.0, 0.25, 0.5, 0.75, 1.0)


def merge_parser(name: str) -> Parser:
    parser = make_parser(
        name,
        "Average the weights of checkpoints of one ancestor: runs, checkpoints of the line, towers. The mean costs no "
        "more than one of them. Nothing is written over.",
        """
pumice merge runs/seed0 runs/seed1 runs/seed2 --out runs/mean
pumice merge path/to/clip path/to/reader --weights 0.3,0.7 --out path/to/tower
pumice merge runs/seed0 runs/seed1 runs/seed2 --greedy cells,objects -n 100 --out runs/soup
pumice merge --sweep runs/general runs/reader --module tower --tasks read,code --against objects --plot sweep.svg""",
    )
    parser.add_argument("members", nargs="+", metavar="MEMBER", help="folders of checkpoints, towers or runs; pocket")
    parser.add_argument("--out", type=Path, metavar="NEW", help="a new folder for the mean")
    parser.add_argument("--weights", type=_numbers, metavar="W,W", help="one a member (default: equal ones)")
    parser.add_argument(
        "--module", choices=("all", "tower"), default="all",
        help="average all weights, or the tower's and take the rest from the first (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="also where nothing shows a common ancestor")
    parser.add_argument(
        "--greedy", metavar="A,B", help="add members one by one while the score on these tasks doesn't fall"
    )
    parser.add_argument("--sweep", action="store_true", help="score the way from the first member to the second")
    parser.add_argument("--tasks", metavar="A,B", help="with --sweep: what the second member learned")
    parser.add_argument("--against", metavar="A,B", help="with --sweep: what it may have lost")
    parser.add_argument(
        "--points", type=_numbers, metavar="A,A", help="with --sweep: shares of the second (default: 0,.25,.5,.75,1)"
    )
    parser.add_argument("-n", type=positive, default=200, metavar="N", help="questions a task (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="with --greedy or --sweep: print JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="with --sweep: draw it as .png or .svg")
    return parser


def merge_command(args: argparse.Namespace) -> int:
    _check(args)
    if args.greedy is not None or args.sweep:
        _scored(args)
    else:
        from pumice.formats.soup import merge

        _warn(merge(args.members, args.out, args.weights, args.module, args.force))
    if args.out is not None and not args.json:
        print(args.out)
    return 0


def _scored(args: argparse.Namespace) -> None:
    from pumice.eval import soups
    from pumice.eval.suite.items import check_tasks
    from pumice.formats.soup import open_members

    chosen = {"--greedy": args.greedy, "--tasks": args.tasks, "--against": args.against}
    groups = [_names(text, option) for option, text in chosen.items() if text is not None]
    for tasks in groups:
        check_tasks(tasks)  # before anything is read
    members, warnings = open_members(args.members, args.module, args.force)
    _warn(warnings)
    if args.sweep:
        points, both = sorted(set(args.points or POINTS)), (groups[0], groups[1])
        soups.main_sweep(members, args.module, both, points, args.n, args.out, args.json, args.plot)
    else:
        soups.main_greedy(members, args.module, groups[0], args.n, args.out, args.json)


def _warn(warnings: list[str]) -> None:
    for warning in warnings:
        print(f"pumice: {warning}", file=sys.stderr)


def _check(args: argparse.Namespace) -> None:
    """What needs no file to be opened."""
    if len(args.members) < 2:
        raise PumiceError(f"only {args.members[0]}; expected at least two checkpoints to average")
    scored = args.greedy is not None or args.sweep
    if args.greedy is not None and args.sweep:
        raise PumiceError("--greedy and --sweep are two ways to choose; expected one of them")
    if scored and args.weights is not None:
        raise PumiceError("--weights are chosen by --greedy and --sweep; leave one of them out")
    if not scored and args.out is None:
        raise PumiceError("--out is missing; expected a new folder for the mean")
    if args.json and not scored:
        raise PumiceError("--json is for --greedy and --sweep")
    if args.sweep and len(args.members) != 2:
        raise PumiceError(f"--sweep goes from one checkpoint to another; expected two, got {len(args.members)}")
    if args.sweep and (args.tasks is None or args.against is None):
        raise PumiceError("--sweep weighs two groups of tasks; expected both --tasks and --against")
    alone = {"--tasks": args.tasks, "--against": args.against, "--points": args.points, "--plot": args.plot}
    if not args.sweep and (strange := [name for name, value in alone.items() if value is not None]):
        raise PumiceError(f"{', '.join(strange)}: only for --sweep")
    if args.points is not None and not all(0 <= a <= 1 for a in args.points):
        raise PumiceError("--points: expected shares of the second member, from 0 to 1")
    _check_files(args.out, args.plot)


def _check_files(out: Path | None, plot: Path | None) -> None:
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PumiceError(f"{out}: {'not empty' if out.is_dir() else 'a file'}; nothing is written over")
    if plot is not None and (plot.suffix not in (".png", ".svg") or plot.is_dir() or not plot.parent.is_dir()):
        raise PumiceError(f"{plot}: expected a name that ends in .png or .svg, in a folder that exists")


def _names(text: str, option: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise PumiceError(f"{option} is empty; expected names of tasks with commas between them")
    return names


def _numbers(text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers with commas between them, not {text!r}") from None
