"""The ``pumice`` command: ask and chat about pictures, train, evaluate, plan, export.

    argv ──COMMANDS──> arguments ──check──> (only now torch is imported) ──> text or JSON on stdout

Everything that the user can get wrong is looked at before a model is loaded. A PumiceError is one line on stderr and
exit code 2; PUMICE_DEBUG=1 shows where it came from. Answers alone go to stdout, so that they can be piped.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pumice.cli.checkpoints import export_command, export_parser, plan_command, plan_parser
from pumice.cli.data import data_command, data_parser, inspect_command, inspect_parser
from pumice.cli.eval import eval_command, eval_parser
from pumice.cli.merge import merge_command, merge_parser
from pumice.cli.parser import Parser, add_reader, make_parser, positive
from pumice.cli.read import read_command, read_parser
from pumice.cli.serve import serve_command, serve_parser
from pumice.cli.train import train_command, train_parser
from pumice.talk import HELP, converse
from pumice.types import PumiceError

if TYPE_CHECKING:
    from pumice.assistant import Answer, Assistant

MISTAKE = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells count
PIPE_CLOSED = 141  # 128 + SIGPIPE


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns the exit code."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers draws a bar for every file it opens
    try:
        code = _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()  # a closed pipe shows here, not while the interpreter shuts down
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except KeyboardInterrupt:
        return INTERRUPTED
    except (PumiceError, OSError) as error:
        if os.environ.get("PUMICE_DEBUG") == "1":
            raise
        text = str(error)
        if isinstance(error, OSError) and error.strerror:
            text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        print(f"pumice: {' '.join(text.split())}", file=sys.stderr)
        return MISTAKE


def _run(argv: list[str]) -> int:
    """Find the command, parse what follows it, run it."""
    top = _top_parser()
    try:
        if not argv:
            top.print_help(sys.stderr)
            return MISTAKE
        if argv[0] in COMMANDS:
            add, run = COMMANDS[argv[0]]
            parser = add(argv[0])
            # Intermixed, so that options may also stand between pictures and question.
            return run(parser.parse_intermixed_args(argv[1:]))
        args = top.parse_args(argv[:1])
        if args.version:
            from importlib.metadata import version

            print(f"pumice {version('pumice')}")
            return 0
        near = difflib.get_close_matches(argv[0], COMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(COMMANDS)}"
        raise PumiceError(f"unknown command {argv[0]!r}: {hint}")
    except SystemExit as stop:  # argparse after --help
        return int(stop.code or 0)


def _top_parser() -> Parser:
    top = Parser(
        prog="pumice",
        description="Ask small visual assistants about pictures, train and evaluate them.",
        usage="pumice COMMAND ...",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""commands:
  ask     ask questions about pictures, print the answers
  chat    talk about pictures, answers appear as they are made
  read    turn documents into data, a record a page
  train   train a model as a recipe says
  eval    score a model on the built-in tasks
  serve   answer over an OpenAI-compatible API, and on a page
  plan    say what a picture costs, before any weight is loaded
  export  write a model in another form
  data    make, check and count data to train on
  inspect  show what a stage trains on, as the model sees it
  merge   average the weights of towers or models

examples:
  pumice ask receipt.png "What is the total?"
  pumice chat receipt.png
  pumice COMMAND --help

PUMICE_DEBUG=1 shows where an error came from.""",
    )
    top.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    top.add_argument("--version", action="store_true", help="print the version and exit")
    return top


def _add_model(parser: Parser, max_tokens: int) -> None:
    parser.add_argument("--model", default="pocket", help="a model's name or folder (default: %(default)s)")
    parser.add_argument(
        "--max-tokens",
        type=positive,
        default=max_tokens,
        metavar="N",
        help="longest answer in tokens (default: %(default)s)",
    )
    add_reader(parser)


# ask


def _ask_parser(name: str) -> Parser:
    parser = make_parser(
        name,
        "Ask questions about one picture, or about several at once. Prints the answers alone.",
        """
pumice ask receipt.png "What is the total?"
pumice ask receipt.png -q "Which shop?" -q "What is the date?"
pumice ask before.png after.png "What has changed?"
pumice ask invoice.pdf "What is the total?" --reader
pumice ask - "Which city?" --json < form.png""",
        usage="pumice ask [options] PICTURE... QUESTION",
    )
    parser.add_argument(
        "words",
        nargs="+",
        metavar="PICTURE... QUESTION",
        help="picture files (- is standard input), then the question; with -q the question may be left out",
    )
    parser.add_argument(
        "-q", "--question", action="append", default=[], metavar="TEXT", help="one more question; may be repeated"
    )
    _add_model(parser, 128)
    parser.add_argument("--json", action="store_true", help="print one JSON object a question, each on a line")
    return parser


def _ask(args: argparse.Namespace) -> int:
    names, questions = _split_words(args.words, args.question)
    pictures = _read_pictures(names)
    assistant = _load(args)
    for question in questions:
        answer = assistant.ask(pictures, question, max_tokens=args.max_tokens)
        if answer.left_out:
            print(f"pumice: {answer.left_out} lines of text had no room in the prompt", file=sys.stderr)
        if args.json:
            print(json.dumps(_row(names, question, answer)), flush=True)
        else:
            # Of several answers each has its line, so that line n answers question n.
            print(answer.text if len(questions) == 1 else " ".join(answer.text.split()), flush=True)
    return 0


def _split_words(words: list[str], more: list[str]) -> tuple[list[str], list[str]]:
    """(pictures, questions) of the positional arguments and of ``-q``."""
    last = words[-1]
    is_file = last == "-" or (len(last) < 4096 and Path(last).is_file())
    if more and (is_file or len(words) == 1):
        names, questions = words, more
    elif is_file:
        raise PumiceError(f'no question: the last argument, {last}, is a file; say pumice ask {last} "What is this?"')
    elif len(words) == 1:
        raise PumiceError(f'no picture: expected pumice ask PICTURE "question", got only {last!r}')
    else:
        names, questions = words[:-1], [last, *more]
    if any(not question.strip() for question in questions):
        raise PumiceError("a question is empty; expected some text")
    return names, questions


def _read_pictures(names: list[str]) -> list[Any]:
    """Pictures decoded, since a file cut short shows only then; pages of PDFs and videos as they were opened."""
    from pumice.vision.kinds import open_media
    from pumice.vision.media import decode

    if names.count("-") > 1:
        raise PumiceError("standard input (-) can be read only once; name the other pictures' files")
    opened = [media for name in names for media in open_media(name)]
    return [decode(media) if media.kind == "image" else media for media in opened]


def _row(names: list[str], question: str, answer: Answer) -> dict[str, Any]:
    return {
        "pictures": names,
        "question": question,
        "text": answer.text,
        "tokens": answer.tokens,
        "visual_tokens": answer.visual_tokens,
        "ms": round(answer.ms, 1),
        "logprob": round(answer.logprob, 4),
        "reader": answer.reader,
    }


def _load(args: argparse.Namespace) -> Assistant:
    import pumice

    return pumice.load(args.model, reader=args.reader)


# chat


def _chat_parser(name: str) -> Parser:
    parser = make_parser(
        name,
        "Talk about pictures. Answers appear as they are made, and earlier questions are remembered.\n\n" + HELP,
        """
pumice chat receipt.png
pumice chat invoice.pdf --reader
pumice chat before.png after.png --max-tokens 64""",
    )
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="picture files")
    _add_model(parser, 256)
    return parser


def _chat(args: argparse.Namespace) -> int:
    if "-" in args.pictures:
        raise PumiceError("chat reads your questions from standard input: name the picture's file instead of -")
    pictures = _read_pictures(args.pictures)
    return converse(_load(args), pictures, args.max_tokens)


Command = tuple[Callable[[str], Parser], Callable[[argparse.Namespace], int]]


COMMANDS: dict[str, Command] = {
    "ask": (_ask_parser, _ask),
    "chat": (_chat_parser, _chat),
    "read": (read_parser, read_command),
    "train": (train_parser, train_command),
    "eval": (eval_parser, eval_command),
    "serve": (serve_parser, serve_command),
    "plan": (plan_parser, plan_command),
    "export": (export_parser, export_command),
    "merge": (merge_parser, merge_command),
    "data": (data_parser, data_command),
    "inspect": (inspect_parser, inspect_command),
}
