"""``pumice read``: pages, pictures and videos to records."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pumice.cli.parser import Parser, add_reader, make_parser, positive
from pumice.types import PumiceError

if TYPE_CHECKING:
    from pumice.read.ask import Ask
    from pumice.read.askers import Asker
    from pumice.read.run import Tally

FAILED = 1


def read_parser(name: str) -> Parser:
    parser = make_parser(
        name,
        "Turn documents into data: a record for every page of a PDF, every picture and every video. With --out the "
        "same command goes on where an earlier one was stopped. Exit code 1 when something couldn't be read.",
        """
pumice read invoices/*.pdf --schema invoice.json --out invoices.jsonl
pumice read invoices/*.pdf --schema invoice.json --out invoices.jsonl --evidence
pumice read receipts/*.jpg --ask questions.txt --out receipts.csv --csv
pumice read report.pdf#2-5 --ask questions.txt --reader
RAY_ADDRESS=10.0.0.1:6379 pumice read archive/*.pdf --schema form.json --out forms.jsonl --engine ray
OPENAI_API_KEY=... pumice read scans/*.png --schema form.json --out forms.jsonl --engine http://localhost:8000/v1""",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="PDFs (report.pdf#2-5: some pages), pictures, videos")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--schema", type=Path, metavar="FILE", help="JSON schema of an object that every page fills in")
    what.add_argument("--ask", type=Path, metavar="FILE", help="questions about every page, one a line")
    parser.add_argument(
        "--whole", action=argparse.BooleanOptionalAction, help="ask for all of the schema's object at once, or for "
        "each field by itself (default: each by itself; with --engine URL all at once)",
    )  # fmt: skip
    parser.add_argument("--evidence", action="store_true", help="add the boxes that each field was read from")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="records, JSON a line (default: standard output, which can't go on "
        "after a stop); beside it FILE.journal keeps the answers",
    )  # fmt: skip
    parser.add_argument("--csv", action="store_true", help="records as a table")
    add_reader(parser)
    parser.add_argument("--model", metavar="MODEL", help="a model's name or folder (default: pocket, or the server's)")
    parser.add_argument(
        "--engine", metavar="URL|ray", help="ask an OpenAI-compatible server, such as http://localhost:8000/v1; "
        "ray: the model on every machine of the Ray cluster that RAY_ADDRESS names, or on workers of this machine",
    )  # fmt: skip
    parser.add_argument("--workers", type=positive, metavar="N", help="of a Ray cluster, each with a model of its own "
                        "(default: one a GPU, or else a machine)")  # fmt: skip
    parser.add_argument(
        "--max-tokens", type=positive, default=512, metavar="N", help="longest answer (default: %(default)s)"
    )
    parser.add_argument(
        "--batch",
        type=positive,
        default=16,
        metavar="N",
        help="answers made at once, by each worker (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print counts and times as JSON at the end")
    return parser


def read_command(args: argparse.Namespace) -> int:
    _check(args)
    from pumice.read.ask import read_questions, read_schema
    from pumice.read.journal import Journal, Output
    from pumice.read.run import Run

    whole = args.whole if args.whole is not None else _is_server(args.engine)
    ask = read_schema(args.schema, whole) if args.schema is not None else read_questions(args.ask)
    journal = Journal(args.out and args.out.with_name(args.out.name + ".journal"))
    asker = _asker(args, ask)
    try:
        output = Output(args.out, ask.columns if args.csv else None)
        run = Run(ask, asker, journal, output, args.max_tokens, args.evidence, args.reader)
        with _progress(len(args.files)) as progress:
            tally = run.over(args.files, progress)
        output.close()
    finally:
        asker.close()
        journal.close()
    _report(tally, journal.broken, args)
    return FAILED if tally.failed else 0


def _check(args: argparse.Namespace) -> None:
    """Show mistakes before a model is loaded."""
    server = _is_server(args.engine)
    if args.engine not in (None, "ray") and not server:
        raise PumiceError(f"--engine {args.engine}: expected ray, or an address such as http://localhost:8000/v1")
    if args.reader and server:
        raise PumiceError("--reader doesn't go with --engine URL: start the server with it, pumice serve --reader")
    if args.workers is not None and args.engine != "ray":
        raise PumiceError("--workers is about --engine ray")
    if args.whole is not None and args.schema is None:
        raise PumiceError("--whole is about a schema: give one with --schema")
    if args.evidence and (server or args.whole):
        other = "--engine URL" if server else "--whole"
        raise PumiceError(f"--evidence doesn't go with {other}: it is found for one field, by a model of our own")
    if args.evidence and args.csv:
        raise PumiceError("--evidence doesn't go with --csv: boxes are in JSON records")
    if args.out is None:
        return
    if args.out.is_dir() or not args.out.parent.is_dir():
        raise PumiceError(f"{args.out}: can't be written; expected a file name in a folder that exists")
    if args.out.exists() and not args.out.with_name(args.out.name + ".journal").exists():
        raise PumiceError(f"{args.out}: there is such a file, and no journal to go on from; choose another --out")


def _is_server(engine: str | None) -> bool:
    return engine is not None and engine.startswith(("http://", "https://"))


def _asker(args: argparse.Namespace, ask: Ask) -> Asker:
    if _is_server(args.engine):
        from pumice.read.server import ServerAsker

        return ServerAsker(args.engine, args.model, args.max_tokens, args.batch)
    import pumice

    open_assistant = partial(pumice.load, args.model or "pocket", reader=args.reader)
    if args.engine == "ray":
        from pumice.read.cluster import ClusterAsker

        return ClusterAsker(open_assistant, args.max_tokens, args.batch, ask.prompts, args.workers)
    from pumice.read.askers import EngineAsker

    return EngineAsker(open_assistant(), args.max_tokens, args.batch, ask.prompts)


@contextmanager
def _progress(files: int) -> Iterator[Callable[[Tally], object]]:
    """A bar of files with the rate of records and the time left, on standard error if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("files", total=files, rate="")

        def step(tally: Tally) -> None:
            rate = f"{tally.records} records, {tally.records / max(tally.seconds, 1e-9):.1f}/s, {tally.failed} failed"
            bar.update(task, completed=tally.files, rate=rate)

        yield step


def _report(tally: Tally, broken: int, args: argparse.Namespace) -> None:
    """Counts, and what failed, where they don't meet the records."""
    stream = sys.stderr if args.out is None else sys.stdout
    if args.json:
        print(json.dumps({**tally.summary(), "broken_lines": broken}), file=stream)
        return
    for error in tally.errors:
        print(f"failed: {error}", file=sys.stderr)
    if tally.failed > len(tally.errors):
        print(f"failed: {tally.failed - len(tally.errors)} more; see their records", file=sys.stderr)
    again = f", {tally.found} answers from the journal" if tally.found else ""
    lost = f", {broken} lines of the journal unreadable" if broken else ""
    rate = tally.records / max(tally.seconds, 1e-9)
    print(
        f"{tally.records} records of {tally.files} files, {tally.failed} failed{again}{lost}; "
        f"{tally.seconds:.1f} s, {rate:.1f} records/s",
        file=sys.stderr,
    )
