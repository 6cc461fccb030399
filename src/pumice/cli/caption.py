"""``pumice data caption`` and ``pumice data filter``: knowledge data, made by an assistant or there already."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pumice.cli.care import add_data, add_work, bars, open_given, print_written, write_all
from pumice.cli.parser import Parser, make_parser, positive
from pumice.types import PumiceError

if TYPE_CHECKING:
    from pumice.data.knowledge.filters import Filters
    from pumice.read.ask import Prompt
    from pumice.read.askers import Asker


def caption_parser(name: str) -> Parser:
    parser = make_parser(
        name,
        "Caption pictures anew, for the knowledge stage. Several prompts give several captions of a picture, of which "
        "the one that agrees best with the others is kept. The result is LLaVA's form; all captions, why some were "
        "dropped, and what they were made with stand beside it. Goes on where it was stopped.",
        """
pumice data caption pictures/ --out data
pumice data caption pictures.tar --engine http://localhost:8000/v1 --batch 64 --out data --against embedded
pumice data caption shards/ --model path/to/llava-onevision-7b --engine ray --out data
pumice data caption pictures/ --prompt "请详细描述这张图片。" --language zh --out data
pumice data caption pictures/ --prompt-file prompts.txt --agreement 0.3 --out data --json""",
    )
    parser.add_argument("path", type=Path, metavar="DIR|TAR|PARQUET", help="pictures; parquet in a column image")
    parser.add_argument("--model", metavar="MODEL", help="a model's name or folder (default: pocket, or the server's)")
    parser.add_argument("--engine", metavar="URL|ray", help="an OpenAI-compatible server, or a Ray cluster")
    parser.add_argument(
        "--workers", type=positive, metavar="N", help="of a Ray cluster (default: one a GPU or machine)"
    )
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="what is asked; again for a second caption")
    parser.add_argument("--prompt-file", type=Path, metavar="FILE", help="what is asked, a prompt a line")
    parser.add_argument("--max-tokens", type=positive, default=512, metavar="N", help="of a caption (%(default)s)")
    parser.add_argument("--batch", type=positive, default=16, metavar="N", help="captions at once (%(default)s)")
    _add_filters(parser)
    parser.add_argument(
        "--agreement", type=_share, default=0.2, metavar="SHARE", help="least mean F1 of a caption's words with the "
        "other captions', from 0 to 1 (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the result")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def filter_parser(name: str) -> Parser:
    parser = make_parser(
        name,
        "Copy captions or instructions, with pictures or text alone, all of whose answers pass the filters of new "
        "captions. Goes on where it was stopped.",
        """
pumice data filter evol_instruct.jsonl --min-words 1 --against embedded --out data
pumice data filter captions_zh.json --language zh --out data
pumice data filter recipes/onevision-7b.toml --data path/to/data --out data --workers 16 --json""",
    )
    add_data(parser)
    _add_filters(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the result")
    add_work(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _add_filters(parser: Parser) -> None:
    parser.add_argument("--min-words", type=positive, default=5, metavar="N", help="of a text (%(default)s)")
    parser.add_argument("--max-words", type=positive, default=1000, metavar="N", help="of a text (%(default)s)")
    parser.add_argument(
        "--language", default="", metavar="CODES", help="languages to keep, such as en,zh (default: any)"
    )
    parser.add_argument("--against", default="", metavar="LIST", help="test sets whose n-grams no text may have")


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, not {text!r}")
    return value


def caption_command(args: argparse.Namespace) -> int:
    if args.workers is not None and args.engine != "ray":
        raise PumiceError("--workers is about --engine ray")
    if args.engine not in (None, "ray") and not args.engine.startswith(("http://", "https://")):
        raise PumiceError(f"--engine {args.engine}: expected ray, or an address such as http://localhost:8000/v1")
    if args.out.exists() and not args.out.is_dir():
        raise PumiceError(f"{args.out}: a file; expected a folder, or none yet")
    prompts = _prompts(args)
    from pumice.data.knowledge.caption import Run, caption
    from pumice.data.knowledge.pictures import open_pictures

    pictures, filters = open_pictures(args.path), _filters(args, args.agreement)
    args.out.mkdir(parents=True, exist_ok=True)
    asker = _asker(args, prompts)
    name = args.path.resolve().stem
    try:
        with bars() as told:
            run = Run(asker, prompts, args.max_tokens, filters)
            written = caption(pictures, run, args.out, name, lambda done, total: told(name, done, total))
    finally:
        asker.close()
    print_written({name: written}, args.json)
    return 0


def filter_command(args: argparse.Namespace) -> int:
    from pumice.data.knowledge.filtered import Filtered

    filters = _filters(args, 0.0)
    written = write_all({name: Filtered(one, {}, None, filters) for name, one in open_given(args).items()}, args)
    print_written(written, args.json)
    return 0


def _filters(args: argparse.Namespace, agreement: float) -> Filters:
    from pumice.data.care.check import test_index
    from pumice.data.care.opening import open_tests
    from pumice.data.knowledge.filters import Filters, check_languages, language

    if args.min_words > args.max_words:
        raise PumiceError(f"--min-words {args.min_words}: more than --max-words {args.max_words}")
    languages = check_languages(args.language)
    if languages:
        language("a text, to see that the package is there")
    tests = open_tests([one for one in args.against.split(",") if one])
    return Filters((args.min_words, args.max_words), languages, test_index(tests) if tests else None, agreement)


def _prompts(args: argparse.Namespace) -> tuple[Prompt, ...]:
    from pumice.data.knowledge.caption import PROMPT
    from pumice.read.ask import Prompt, read_questions

    texts = list(args.prompt or ())
    if args.prompt_file:
        texts += [prompt.text for prompt in read_questions(args.prompt_file).prompts]
    return tuple(Prompt(text) for text in dict.fromkeys(texts or [PROMPT]))


def _asker(args: argparse.Namespace, prompts: tuple[Prompt, ...]) -> Asker:
    from functools import partial

    if args.engine not in (None, "ray"):
        from pumice.read.server import ServerAsker

        return ServerAsker(args.engine, args.model, args.max_tokens, args.batch)
    import pumice

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    model = partial(pumice.load, args.model or "pocket")
    if args.engine == "ray":
        from pumice.read.cluster import ClusterAsker

        return ClusterAsker(model, args.max_tokens, args.batch, prompts, args.workers)
    from pumice.read.askers import EngineAsker

    return EngineAsker(model(), args.max_tokens, args.batch, prompts)
