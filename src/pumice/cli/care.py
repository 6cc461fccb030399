"""``pumice data check`` and ``pumice data clean``: what data repeats, and a copy without it."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pumice.cli.parser import Parser, make_parser, positive
from pumice.cores import usable_cores
from pumice.types import PumiceError

if TYPE_CHECKING:
    from pumice.data.care.personal import Scrubber
    from pumice.data.importing.writing import Entries, Written
    from pumice.data.pool import Where
    from pumice.data.sources import Source

FORMS = "a recipe, or files and folders: JSON, JSONL, YAML, .parquet, .tar, pictures with or without a .txt beside each"


def check_parser(name: str) -> Parser:
    parser = make_parser(
        name,
        "Find near-duplicates inside of data and what of it stands in test sets, and say how it is balanced. Pictures "
        "are compared by perceptual hashes, texts by n-grams of words. What was looked at is kept in the cache: a "
        "stopped check goes on, and another one against more test sets begins with it.",
        """
pumice data check recipes/llava-1.5-7b.toml --data path/to/data --against embedded
pumice data check mine.jsonl --against embedded,path/to/exam.jsonl,path/to/its/pictures --html check.html
pumice data check shards/ --against embedded:50 --write-clean drop.jsonl --personal
RAY_ADDRESS=10.0.0.1:6379 pumice data check recipes/onevision-7b.toml --engine ray --json > check.json""",
    )
    add_data(parser)
    parser.add_argument(
        "--against", default="", metavar="LIST", help="test sets: embedded (or embedded:N, N questions a task), files, "
        "folders; several with commas",
    )  # fmt: skip
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with the pairs side by side")
    parser.add_argument(
        "--write-clean", type=Path, metavar="FILE", help="write what to drop, JSON a line, for pumice data clean"
    )
    add_personal(parser, "--personal", "count e-mail addresses, phone, card and bank account numbers")
    add_work(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def add_data(parser: Parser) -> None:
    """What data is named by."""
    parser.add_argument("given", nargs="+", metavar="RECIPE|PATH", help=FORMS)
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of a recipe's sources (PUMICE_DATA or data)")


def add_personal(parser: Parser, flag: str, help: str) -> None:
    """The option to look for personal data."""
    parser.add_argument(
        flag, dest="personal", nargs="?", const="", metavar="REGION", help=f"{help}; a region such as DE adds phone "
        "numbers without a country's code",
    )  # fmt: skip


def add_work(parser: Parser) -> None:
    """Where long work is done."""
    parser.add_argument("--workers", type=positive, metavar="N", help="processes (default: one a core)")
    parser.add_argument(
        "--engine", choices=("here", "ray"), default="here", help="processes here, or those of the Ray cluster that "
        "RAY_ADDRESS names; without one a cluster of this machine (default: %(default)s)",
    )  # fmt: skip


def workers(args: argparse.Namespace) -> int:
    """How many processes here, as named or one a core."""
    return args.workers or usable_cores()


@contextmanager
def engine(args: argparse.Namespace) -> Iterator[Where]:
    """Where a command's work is done; a cluster's workers are kept for all of it."""
    if args.engine == "here":
        yield "here"
        return
    from pumice.data.pool import RayPool

    with RayPool(args.workers) as pool:
        yield pool


def open_given(args: argparse.Namespace) -> dict[str, Source]:
    """The sources that a command names: a recipe's with its overrides, or paths."""
    from pumice.data.care.opening import open_paths, open_recipe
    from pumice.train.run import data_root

    first, *rest = args.given
    if first.endswith(".toml"):
        return open_recipe(first, rest, data_root(args.data))
    return open_paths([Path(one) for one in args.given])


def scrubber(args: argparse.Namespace) -> Scrubber | None:
    """What looks for personal data, if that is wanted."""
    from pumice.data.care.personal import Scrubber

    return None if args.personal is None else Scrubber(args.personal or None)


def writable(*paths: Path | None) -> None:
    """Show mistakes before any work is done."""
    for path in paths:
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise PumiceError(f"{path}: can't be written; expected a file name in a folder that exists")


def check_command(args: argparse.Namespace) -> int:
    writable(args.html, args.write_clean)
    from pumice.data.care.check import Work, check, drop_lines
    from pumice.data.care.opening import open_tests
    from pumice.data.care.page import summary, to_html, to_json
    from pumice.data.parts import write_whole
    from pumice.pocket.parts import cache_dir

    looking = scrubber(args)
    sources, tests = open_given(args), open_tests([one for one in args.against.split(",") if one])
    with bars() as told, engine(args) as where:
        findings = check(sources, tests, Work(cache_dir() / "care", workers(args), where, told), looking)
    if args.html:
        write_whole(args.html, to_html(findings, "pumice " + shlex.join(sys.argv[1:])).encode())
    if args.write_clean:
        lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in drop_lines(findings))
        write_whole(args.write_clean, "".join(lines).encode())
    if args.json:
        print(json.dumps(to_json(findings), ensure_ascii=False, indent=1))
    else:
        print_pairs(summary(findings))
    return 0


def clean_parser(name: str) -> Parser:
    parser = make_parser(
        name,
        "Copy data without the samples that pumice data check found, and with stand-ins for personal data. The copy is "
        "in LLaVA's form; pictures that are files stay where they are. Goes on where it was stopped.",
        """
pumice data clean mine.jsonl --drop drop.jsonl --out clean
pumice data clean recipes/llava-1.5-7b.toml --data path/to/data --drop drop.jsonl --scrub --out clean
pumice data clean shards/ --scrub DE --out clean --workers 16 --json""",
    )
    add_data(parser)
    parser.add_argument("--drop", type=Path, metavar="FILE", help="what pumice data check --write-clean wrote")
    add_personal(parser, "--scrub", "replace e-mail addresses, phone, card and bank account numbers in texts")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the copy")
    add_work(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def clean_command(args: argparse.Namespace) -> int:
    if args.drop is None and args.personal is None:
        raise PumiceError("nothing to do: give --drop FILE, --scrub, or both")
    from pumice.data.care.clean import Cleaned, read_drops

    looking = scrubber(args)
    sources = open_given(args)
    dropped = read_drops(args.drop, list(sources)) if args.drop else {name: {} for name in sources}
    written = write_all({name: Cleaned(one, dropped[name], looking) for name, one in sources.items()}, args)
    print_written(written, args.json)
    return 0


def write_all(entries: Mapping[str, Entries], args: argparse.Namespace) -> dict[str, Written]:
    """Write entries by name to ``args.out`` with bars."""
    from pumice.data.importing.writing import write_entries

    if args.out.exists() and not args.out.is_dir():
        raise PumiceError(f"{args.out}: a file; expected a folder, or none yet")
    args.out.mkdir(parents=True, exist_ok=True)
    with bars() as told, engine(args) as where:
        return {
            name: write_entries(one, args.out, name, workers(args), where, partial(told, name))
            for name, one in entries.items()
        }


def print_written(written: Mapping[str, Written], as_json: bool, more: Sequence[str] = ()) -> None:
    """What was written and counted, and the lines of a recipe that name it."""
    if as_json:
        print(json.dumps({name: vars(one) for name, one in written.items()}, ensure_ascii=False, indent=1, default=str))
        return
    for name, one in written.items():
        print_pairs([(what, f"{count:,}") for what, count in sorted(one.counts.items()) if count])
        print(f"\n{one.lines(name, more)}")


def print_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    """(what, how much) as a table on standard output."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    for what, how in pairs:
        table.add_row(escape(what), escape(how))
    Console().print(table)


@contextmanager
def bars() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each piece of work with rows a second and the time left, on standard error if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    console = Console(stderr=True)
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as shown:
        begun: dict[str, tuple[object, int, float]] = {}

        def told(what: str, done: int, total: int) -> None:
            if what not in begun:
                begun[what] = shown.add_task(what, total=total, rate=""), done, time.monotonic()
            task, before, start = begun[what]
            rate = (done - before) / max(time.monotonic() - start, 1e-9)
            shown.update(task, completed=done, rate=f"{rate:,.1f}/s" if done > before else "")  # type: ignore[arg-type]

        yield told
