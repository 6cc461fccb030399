"""Asks the pocket model the demo's questions and shows every answer, right or wrong.

demo/questions.json + demo/pictures ──ask──> Result ──> a table here, and the page demo/out/index.html
"""

from __future__ import annotations

import json
import sys
from itertools import groupby
from pathlib import Path

from page import Result, build, milliseconds
from rich.console import Console
from rich.table import Table

import pumice
from pumice.types import PumiceError

HERE = Path(__file__).parent
PAGE = HERE / "out" / "index.html"
MODEL = "pocket"
LONGEST = 48
"""Tokens of an answer at most; the answers of the demo are short."""


def main() -> None:
    """Ask all questions, print the table, write the page."""
    try:
        results = ask_all()
    except PumiceError as error:
        raise SystemExit(f"demo: {error}") from None
    Console().print(table(results))
    try:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(build(results, MODEL), encoding="utf8")
    except OSError as error:
        raise SystemExit(f"demo: {PAGE}: can't be written ({error.strerror or error})") from None
    print(f"The same with the pictures: {PAGE}")


def ask_all() -> list[Result]:
    """One Result a question of questions.json, in its order."""
    rows = json.loads((HERE / "questions.json").read_text(encoding="utf8"))
    assistant = pumice.load(MODEL)
    results: list[Result] = []
    for names, found in groupby(rows, key=lambda row: row["files"]):
        if sys.stderr.isatty():
            print(f"\rquestion {len(results) + 1} of {len(rows)}", end="", file=sys.stderr, flush=True)
        files, asked = tuple(HERE / "pictures" / name for name in names), list(found)
        # Questions about a picture that are asked together share the work on it.
        answers = assistant.ask_many([(list(files), row["question"]) for row in asked], max_tokens=LONGEST)
        results += [Result(files, row["question"], row["answer"], a) for row, a in zip(asked, answers, strict=True)]
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    return results


def table(results: list[Result]) -> Table:
    """The results as a table with a line of totals."""
    right = sum(result.right for result in results)
    total = milliseconds(results)
    out = Table(show_footer=True, footer_style="bold")
    out.add_column("shown", "total")
    out.add_column("question", f"{len(results)} questions")
    out.add_column("answer")
    out.add_column("correct answer")
    out.add_column("", f"{right} right")
    out.add_column("tokens", str(sum(result.answer.tokens for result in results)), justify="right")
    out.add_column("ms", f"{total:.0f}", justify="right")
    for result in results:
        mark = "[green]right[/]" if result.right else "[red]wrong[/]"
        texts = [result.name, result.question, result.answer.text, result.truth]
        # What a model says may look like markup.
        cells = [text.replace("[", r"\[") for text in texts]
        out.add_row(*cells, mark, str(result.answer.tokens), f"{result.answer.ms:.0f}")
    return out


if __name__ == "__main__":
    main()
