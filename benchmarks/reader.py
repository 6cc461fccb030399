"""The reader-assisted mode: what an OCR engine misreads, and what a model answers with and without it.

    python -m benchmarks.reader noise -n 60
    python -m benchmarks.reader bars -n 400
    python -m benchmarks.reader score -n 50 --json reader.json
    python -m benchmarks.reader score -n 50 --modes plain,ocr --tasks fields,charts

``bars`` counts in how many drawn charts the values over bars join their labels, and in how many other pages anything
does (`pumice.reader.lines.charted`). ``noise`` compares RapidOCR's lines with those that were drawn, on pages of the
training split; the rates of `pumice.reader.noise` come from there. ``score`` asks held-out pages: fields of receipts
and forms (exact match), cells of tables (exact match), questions half of which the page doesn't answer (F1 of "not in
the document"), receipts as JSON (tree edit distance accuracy), and charts (their extremes, comparisons and values). Its
modes: reader (pocket beside a reader, with the mode's weights), untrained (the same with pocket's own), plain (pocket
alone), ocr (RapidOCR and SmolLM2-135M-Instruct as it was).
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from PIL import Image

from pumice.data.render import charts, records
from pumice.data.render.answers import ABSENT
from pumice.data.render.page import Question
from pumice.data.rendered import renderer
from pumice.eval.suite.asking import Answers
from pumice.eval.suite.embedded import evaluate
from pumice.reader.lines import Line, charted, rows
from pumice.reader.ocr import rapid_ocr

FIELDS = ("shop", "name", "city", "date", "price", "amount", "code")
CHARTS = ("chart_extreme", "chart_compare", "chart_value")
KINDS = {"receipts": records.receipt, "forms": records.form, "tables": records.table}
MODES = ("reader", "untrained", "plain", "ocr")


def open_mode(mode: str) -> Answers:
    """Who answers in a mode."""
    import pumice
    from pumice.eval.suite.ocr import open_ocr
    from pumice.reader.reader import open_reader

    if mode == "ocr":
        return open_ocr()
    assistant = pumice.load("pocket", reader=mode == "reader")
    if mode == "untrained":
        assistant.reader = open_reader(assistant.processor.tokenizer)
    return assistant


def absent_items(n: int) -> list[tuple[Image.Image, Question]]:
    """``n`` held-out questions in turns from receipts, forms and tables, half of them about what isn't there."""
    found: list[tuple[Image.Image, Question]] = []
    index = 0
    while len(found) < n:
        for kind, make in KINDS.items():
            rng = random.Random(f"eval-absent-{kind}-{index}")
            page = make(rng, "heldout")
            missing = [question for question in page.questions if question.task == "absent"]
            there = [question for question in page.questions if question.task in (*FIELDS, "cell")]
            if missing and there:
                found += [(page.image, rng.choice(missing)), (page.image, rng.choice(there))]
        index += 1
    return found[:n]


def absent_scores(assistant: Answers, n: int) -> dict[str, Any]:
    """Precision, recall and F1 of "not in the document" over `absent_items`."""
    items = absent_items(n)
    replies = assistant.ask_many([(image, question.text) for image, question in items], max_tokens=32, batch=8)
    said = [ABSENT in reply.text.lower() for reply in replies]
    is_so = [question.task == "absent" for _, question in items]
    both = sum(a and b for a, b in zip(said, is_so, strict=True))
    precision, recall = both / max(sum(said), 1), both / sum(is_so)
    return {
        "n": n, "precision": precision, "recall": recall,
        "F1": 2 * precision * recall / max(precision + recall, 1e-9),
    }  # fmt: skip


def measures(n: int, receipts: int) -> dict[str, Callable[[Answers], dict[str, Any]]]:
    """What each task asks. As many fields and charts as cells: their kinds share them."""
    return {
        "fields": lambda who: exact(who, FIELDS, -(-n // len(FIELDS))),
        "cells": lambda who: exact(who, ("cell",), n),
        "absent": lambda who: absent_scores(who, n),
        "receipt_json": lambda who: exact(who, ("receipt_json",), receipts),
        "charts": lambda who: exact(who, CHARTS, -(-n // len(CHARTS))),
    }


def score(modes: Sequence[str], tasks: Sequence[str], n: int, receipts: int, path: Path | None) -> None:
    """Print a row a mode and task as they are measured, and write them as JSON with what was answered wrong."""
    rows_: list[dict[str, Any]] = []
    measured = measures(n, receipts)
    for mode in modes:
        assistant = open_mode(mode)
        for task in tasks:
            began = time.perf_counter()
            row = {"mode": mode, "task": task, **measured[task](assistant)}
            rows_.append(row | {"seconds": round(time.perf_counter() - began)})
            shown = {k: v for k, v in rows_[-1].items() if k != "wrong"}
            print(
                "  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items()),
                flush=True,
            )
            if path:
                path.write_text(json.dumps(rows_, indent=1) + "\n", encoding="utf-8")


def exact(assistant: Answers, tasks: Sequence[str], each: int) -> dict[str, Any]:
    """The mean of the items' own scores over ``each`` held-out questions of some tasks, of each task where they are
    several, and what was said wrong.
    """
    report = evaluate(assistant, tasks, each, blind=False)
    results, row = report.results, {row.name: row.score for row in report.rows}
    wrong = [(r.item.task, r.item.question, r.item.truth, r.answer) for r in results if r.score < 1]
    mean = sum(r.score for r in results) / len(results)
    return {"n": len(results), "score": mean, **(row if len(row) > 1 else {}), "wrong": wrong}


def noise(n: int) -> None:
    """Print how RapidOCR's lines differ from the drawn ones, over ``n`` pages of each kind of the training split."""
    read, total, seconds = rapid_ocr(), Counter[str](), 0.0
    for kind in ("receipts", "forms", "tables", "lines"):
        for index in range(n):
            page = renderer(kind)(random.Random(f"noise-{kind}-{index}"), "train")
            began = time.perf_counter()
            found = read(page.image)
            seconds += time.perf_counter() - began
            total += differences(page.lines, found)
    print(f"{4 * n} pages, {total['drawn']} lines drawn, {total['found']} found; {seconds / (4 * n):.2f} s a page")
    pairs = (
        ("characters wrong or missing", "characters"),
        ("blanks lost", "blanks"),
        ("short lines not as drawn", "short lines"),
        ("long lines not as drawn", "long lines"),
    )
    for what, of in pairs:
        print(f"{what} {total[what] / max(total[of], 1):.4f} of {total[of]}")


def differences(drawn: Sequence[Line], found: Sequence[Line]) -> Counter[str]:
    """Counts of what was drawn and what of it isn't found. A line is short that has one or two characters."""
    page, said = ("\n".join(" ".join(text for _, text in row) for row in rows(lines)) for lines in (drawn, found))
    bare, bare_said = page.replace(" ", ""), said.replace(" ", "")
    same = sum(block.size for block in SequenceMatcher(None, bare, bare_said, False).get_matching_blocks())
    total = Counter({"drawn": len(drawn), "found": len(found), "characters": len(bare), "blanks": page.count(" ")})
    total["characters wrong or missing"] = len(bare) - same
    total["blanks lost"] = max(0, page.count(" ") - said.count(" "))
    for _, text in drawn:
        size = "short lines" if len(text) < 3 else "long lines"
        total[size] += 1
        total[f"{size} not as drawn"] += text.replace(" ", "") not in bare_said
    return total


def bars(n: int) -> None:
    """Print what `charted` makes of ``n`` charts, receipts, forms and tables of each split."""
    for split in ("train", "heldout"):
        upright = joined = others = changed = 0
        for index in range(n):
            chart, page = charts.describe(random.Random(f"bars {index}"), split)
            cells = [text for row in charted(rows(page.lines)) for _, text in row]
            pairs = [f"{label}: {chart.show(i)}" for i, label in enumerate(chart.numbers.labels)]
            if chart.labels and chart.look.sort in ("bars", "line"):
                upright += 1
                joined += set(pairs) <= set(cells)
            for make in KINDS.values():
                found = rows(make(random.Random(f"bars {index}"), split).lines)
                others += 1
                changed += charted(found) != found
        print(f"{split}: {joined} of {upright} charts with values over bars; {changed} of {others} other pages")


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("noise", "bars", "score"))
    parser.add_argument("-n", type=int, default=50, help="questions a task, or pages of a kind")
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--tasks", default=",".join(measures(0, 0)), help="some of %(default)s")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--receipts", type=int, metavar="N", help="receipts as JSON, which take long (default: as -n)")
    options = parser.parse_args()
    if options.what == "noise":
        noise(options.n)
    elif options.what == "bars":
        bars(options.n)
    else:
        modes, tasks = options.modes.split(","), options.tasks.split(",")
        if unknown := set(modes) - set(MODES) | set(tasks) - set(measures(0, 0)):
            parser.error(f"neither a mode nor a task: {', '.join(sorted(unknown))}")
        score(modes, tasks, options.n, options.receipts or options.n, options.json)


if __name__ == "__main__":
    main()
