"""``pumice data import``: a public data set's local copy checked, and turned into what training reads."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pumice.cli.care import add_work, bars, print_pairs, print_written, write_all
from pumice.cli.parser import Parser, make_parser
from pumice.types import PumiceError

if TYPE_CHECKING:
    from pumice.data.importing.sets import Looked, PublicSet

WRONG = 1
EXAMPLES = 3
"""Missing pictures that are named."""


def import_parser(name: str) -> Parser:
    parser = make_parser(
        name,
        "Check the local copy of a public data set: files, numbers of records, pictures that the records name. Print "
        "the lines that a recipe needs to train on it; sets in another form are converted first, and go on where that "
        "was stopped. Nothing is downloaded. Exit code 1 where something is missing.",
        """
pumice data import --list
pumice data import llava-pretrain path/to/LLaVA-Pretrain
pumice data import cauldron path/to/the_cauldron/tqa --out data
pumice data import docvqa path/to/docvqa --split val --out data
pumice data import llava-instruct path/to/data --manifest mix665k.json""",
    )
    parser.add_argument("set", nargs="?", metavar="NAME", help="the set: see --list")
    parser.add_argument("path", nargs="?", type=Path, metavar="PATH", help="its folder, or one file or folder of it")
    parser.add_argument("--list", action="store_true", help="print the sets, where they are published, their licences")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of what is converted")
    parser.add_argument("--split", default="train", metavar="NAME", help="part of a set to convert (default: train)")
    parser.add_argument(
        "--manifest", type=Path, metavar="FILE", help="sizes and SHA-256 of its files: written if it isn't there, else "
        "compared",
    )  # fmt: skip
    add_work(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def import_command(args: argparse.Namespace) -> int:
    if args.list:
        return _list(args.json)
    if args.set is None or args.path is None:
        raise PumiceError("expected NAME PATH, such as: pumice data import docvqa path/to/docvqa --out data")
    from pumice.data.importing.sets import find_set

    one = find_set(args.set)
    if not args.path.exists():
        raise PumiceError(f"{args.path}: no such file or folder; {one.title} is published at {one.url}")
    if not args.json:
        print_pairs([("set", one.title), ("licence", one.licence), *([("note", one.about)] if one.about else [])])
    changed = _manifest(one, args) if args.manifest else []
    right = _ready(one, args) if one.ready else _convert(one, args)
    return 0 if right and not changed else WRONG


def _list(as_json: bool) -> int:
    from pumice.data.importing.sets import public_sets

    sets = public_sets()
    if as_json:
        print(json.dumps({name: vars(one) for name, one in sets.items()}, default=vars, ensure_ascii=False, indent=1))
        return 0
    for name, one in sets.items():
        how = "read as it is" if one.ready else "converted"
        print_pairs([(name, f"{one.title} ({how})"), ("", one.url), ("", f"licence: {one.licence}")])
    return 0


def _ready(one: PublicSet, args: argparse.Namespace) -> bool:
    """Check a set that training reads as it is."""
    from pumice.data.importing.sets import look_at, recipe_lines

    with bars() as told:
        looked = look_at(one, args.path, told)
    lines = recipe_lines(one, args.path, looked)
    right = all(file.right for file in looked)
    if args.json:
        shown = [{**vars(file), "path": str(file.path), "missing": len(file.missing)} for file in looked]
        print(json.dumps({"set": one.name, "right": right, "files": shown, "recipe": lines}, indent=1))
        return right
    print_pairs([(str(file.path), _said(file)) for file in looked])
    print(f"\nNothing to convert: name it in a recipe like so\n\n{lines}")
    return right


def _said(file: Looked) -> str:
    if file.records < 0:
        return "not there" + ("; not all copies have it" if file.optional else "")
    found = f"{file.records:,} records"
    if file.expected:
        found += " as expected" if file.records == file.expected else f", {file.expected:,} expected"
    if file.faulty:
        found += f"; {file.faulty:,} can't be read"
    if file.missing:
        found += f"; {len(file.missing):,} pictures or videos aren't there: {', '.join(file.missing[:EXAMPLES])}"
        found += " ..." if len(file.missing) > EXAMPLES else ""
    return found


def _convert(one: PublicSet, args: argparse.Namespace) -> bool:
    """Convert a set of a form of its own."""
    if args.out is None:
        raise PumiceError(f"{one.name} is converted: give --out DIR for the result")
    from pumice.data.importing.forms import FORMS
    from pumice.data.importing.sets import set_lines
    from pumice.data.importing.writing import LEFT_OUT

    entries = FORMS[one.form](args.path, args.split)
    name = entries.source if args.split == "train" else f"{entries.source}-{args.split}"
    written = write_all({name: entries}, args)
    counts = written[name].counts
    print_written(written, args.json, set_lines(one, counts.get("written", 0)))
    expected = one.records if args.split == "train" else 0
    if expected and expected != len(entries) and not args.json:
        print_pairs([("records", f"{len(entries):,}; the set's part to train on has {expected:,}")])
    return expected in (0, len(entries)) and not any(what.startswith(LEFT_OUT) for what in counts)


def _manifest(one: PublicSet, args: argparse.Namespace) -> list[str]:
    """Write the manifest, or say what differs from it."""
    from pumice.data.importing.sets import compare, fingerprint
    from pumice.data.parts import write_whole

    folder = args.path if args.path.is_dir() else args.path.parent
    endings = (".json", ".jsonl", ".parquet", ".tar", ".zip")
    paths = [args.path] if args.path.is_file() else sorted(p for p in folder.rglob("*") if p.suffix in endings)
    with bars() as told:
        found: dict[str, Any] = fingerprint(paths, folder, told)
    if not args.manifest.exists():
        write_whole(args.manifest, json.dumps({"set": one.name, "files": found}, indent=1).encode())
        return []
    changed = compare(args.manifest, found)
    if not args.json:
        print_pairs([("manifest", line) for line in changed] or [("manifest", f"all {len(found)} files as before")])
    return changed
