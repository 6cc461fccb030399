"""The embedded table: a score on held-out rendered pictures that any machine can repeat offline.

    Suite ──assistant, over the real and over shuffled pictures──> Result* ──> Row* ──> Report ──> terminal, JSON, HTML

Fonts, layouts, names, tables and drawings are none that training sees, but the renderers are the same: it measures
what was taught, not documents at large.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

from pumice.eval.suite.asking import DEFAULT_LIMIT, LIMITS, Answers, Cause, Reply, Skipped, ask
from pumice.eval.suite.items import GROUPS, Item, Suite, check_tasks, suite
from pumice.eval.suite.scoring import Report, result_of, row_of
from pumice.types import PumiceError

if TYPE_CHECKING:
    from pathlib import Path

    from pumice.eval.cost import Cost

CHUNK = 64
"""Questions of one call to the assistant, between two steps of the progress bar."""

Progress = Callable[[int, int], None]
"""Called with (questions done, questions in all)."""


def evaluate(
    assistant: Answers,
    tasks: Sequence[str] = (),
    n: int = 200,
    blind: bool = True,
    progress: Progress | None = None,
    batch: int = 16,
) -> Report:
    """Ask the suite and score the answers. ``blind`` asks everything once more over shuffled pictures.

    Raises:
        PumiceError: unknown task, n below 1, missing packages, or an assistant that answers too few or too many.
    """
    if n < 1:
        raise PumiceError(f"{n} questions a task; expected at least 1")
    start = time.perf_counter()
    asked = suite(check_tasks(tasks), n)
    plan = [(item, item.picture) for item in asked.items]
    plan += [(item, item.other) for item in asked.items] if blind else []
    # All questions about a picture follow each other, so that an assistant which remembers it reads it once.
    order = sorted(range(len(plan)), key=lambda i: (plan[i][0].kind, plan[i][1]))
    found: dict[int, Reply] = {}
    for chunk in _chunks([plan[i] for i in order]):
        places = order[len(found) : len(found) + len(chunk)]
        found |= dict(zip(places, _ask(assistant, asked, chunk, batch), strict=True))
        if progress:
            progress(len(found), len(plan))
    replies = [found[i] for i in range(len(plan))]
    shuffled = replies[len(asked.items) :] or [None] * len(asked.items)
    results = [result_of(*row) for row in zip(asked.items, replies[: len(asked.items)], shuffled, strict=True)]
    rows = [row_of(task, results, (task,)) for task in check_tasks(tasks)]
    groups = [row_of(name, results, of) for name, of in GROUPS.items() if set(of) <= set(check_tasks(tasks))]
    return Report(tuple(rows), tuple(groups), tuple(results), asked, time.perf_counter() - start)


def _chunks(plan: list[tuple[Item, str]]) -> Iterator[list[tuple[Item, str]]]:
    """Runs of one kind of picture, CHUNK questions at most: they need about equally many tokens."""
    for _, run in groupby(plan, lambda pair: pair[0].kind):
        pairs = list(run)
        yield from (pairs[i : i + CHUNK] for i in range(0, len(pairs), CHUNK))


def _ask(assistant: Answers, asked: Suite, chunk: list[tuple[Item, str]], batch: int) -> Sequence[Reply]:
    """A reply for each item of a kind; where there is no picture to shuffle (key ""), nothing is asked."""
    opened = {key: asked.media(key) for _, key in chunk if key}  # one object a picture: its features can be shared
    limit = LIMITS.get(chunk[0][0].kind, DEFAULT_LIMIT)
    replies = iter(ask(assistant, [(opened[key], item.question) for item, key in chunk if key], limit, batch))
    return [next(replies) if key else Skipped("no picture to shuffle", Cause.NOTHING) for _, key in chunk]


def _ocr() -> Answers:
    from pumice.eval.suite.ocr import open_ocr

    return open_ocr()


BASELINES: dict[str, Callable[[], Answers]] = {"ocr": _ocr}
"""What `main` takes beside the names of models: a pipeline to compare them with."""


def open_asked(model: str, reader: bool = False, weights: str = "") -> Answers:
    """A model, or one of BASELINES, to be asked.

    Raises:
        PumiceError: as `pumice.load`, or options that a pipeline doesn't have.
    """
    import pumice

    if model not in BASELINES:
        assistant = pumice.load(model, reader=reader)
        assistant.weights = weights
        return assistant
    if reader or weights:
        raise PumiceError(f"{'--reader' if reader else '--weights'} is about a model; {model} is a pipeline of its own")
    return BASELINES[model]()


def main(
    model: str,
    tasks: Sequence[str] | None = None,
    n: int = 200,
    json_path: Path | None = None,
    html: Path | None = None,
    cost: bool = False,
    baseline: Path | None = None,
    kept: Path | None = None,
    reader: bool = False,
    weights: str = "",
    blind: bool = True,
) -> Report:
    """Load a model, evaluate it with a progress bar, print the table, and write the JSON and HTML that are asked for.

    Costs are measured for these files, and for a line below the table with ``cost``. ``baseline`` is the JSON of an
    earlier run, to which the differences are shown. Answers are kept in the folder ``kept`` as they are made. With
    ``reader`` the model answers beside one; ``weights`` are those that it decodes with (`engine.settings`); ``blind``
    as in `evaluate`.

    Raises:
        PumiceError: as `evaluate`, `pumice.load` and `baseline.read_baseline`.
    """
    from pumice.eval.report import baseline as beside
    from pumice.eval.report import summary as out
    from pumice.eval.report.page import to_html
    from pumice.eval.suite.remembered import remembering

    if baseline and n < 2:
        raise PumiceError(f"{n} question a task; a comparison with {baseline} needs at least 2")
    asked = suite(check_tasks(tasks or ()), n) if baseline else None
    earlier = beside.read_baseline(baseline, asked.sha256, len(asked.items)) if baseline and asked else None
    assistant = open_asked(model, reader, weights)
    # Before the questions: their long batches would count as its memory.
    measured = _measure(assistant, model) if cost or json_path or html else None
    with out.progress_bar() as step:
        report = evaluate(remembering(assistant, kept), tasks or (), n, blind, step)
    contrast = beside.contrast(report.results, report.rows, GROUPS, report.groups, earlier) if earlier else None
    report = replace(report, cost=measured, against=contrast)
    about = out.provenance(model, report, assistant)
    out.print_table(report, about, cost)
    if json_path:
        json_path.write_text(out.to_json(report, about), encoding="utf-8")
    if html:
        html.write_text(to_html(report, about), encoding="utf-8")
    return report


def _measure(assistant: Answers, model: str) -> Cost:
    from pumice.eval.cost import measure

    return measure(assistant, None if model in BASELINES else model)
