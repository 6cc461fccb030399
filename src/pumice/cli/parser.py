"""Parsers of the ``pumice`` command: errors of one line, examples at the end of every help."""

from __future__ import annotations

import argparse
from typing import NoReturn

from pumice.types import PumiceError


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are a PumiceError: one line, like every other mistake."""

    def error(self, message: str) -> NoReturn:
        raise PumiceError(f"{message} (see {self.prog} --help)")


def make_parser(name: str, description: str, examples: str, usage: str | None = None) -> Parser:
    """An empty parser of one command. ``examples`` are shown at the end of its help."""
    lines = "\n".join(f"  {line}" for line in examples.strip().splitlines())
    return Parser(
        prog=f"pumice {name}",
        usage=usage,
        description=description,
        epilog=f"examples:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_reader(parser: argparse.ArgumentParser) -> None:
    """The option --reader."""
    parser.add_argument(
        "--reader", action="store_true", help="put the text that an OCR engine finds into the prompts; needs "
        "pumice[reader]",
    )  # fmt: skip


def whole(text: str) -> int:
    """A whole number of 0 or more, for argparse."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a whole number of 0 or more, not {text!r}")
    return int(text)


def positive(text: str) -> int:
    """A whole number of 1 or more, for argparse."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, not {text!r}")
    return int(text)
