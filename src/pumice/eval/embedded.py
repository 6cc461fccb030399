"""The embedded table: a score on held-out rendered pictures that any machine can repeat offline.

    Suite ──assistant, over the real and over shuffled pictures──> Result* ──> Row* ──> Report ──> terminal, JSON, HTML

Fonts, layouts, names, tables and drawings are none that training sees, but the renderers are the same: it measures
what was taught, not documents at large.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol

from pumice.eval import metrics
from pumice.eval.asking import DEFAULT_LIMIT, DOES_NOT_TAKE, LIMITS, Skipped, ask
from pumice.eval.further import further, pope_right, tree_accuracy
from pumice.eval.suite import GROUPS, Item, Suite, check_tasks, suite
from pumice.eval.suite_media import left_out
from pumice.types import PumiceError

if TYPE_CHECKING:
    from pathlib import Path

    from pumice.eval.baseline import Contrast
    from pumice.eval.cost import Cost

METRICS: dict[str, Callable[[str, str], float]] = {
    "exact": metrics.exact_match,
    "relaxed": metrics.relaxed_match,
    "CER": metrics.character_error_rate,
    "TED": tree_accuracy,
    "POPE": pope_right,
}
"""How a task is scored: ``relaxed`` for chart_value, ``CER`` (lower is better) for read, ``TED`` (tree edit distance
accuracy) for receipt_json, ``POPE`` for presence, ``exact`` for the others."""

CHUNK = 64
"""Questions of one call to the assistant, between two steps of the progress bar."""


class Reply(Protocol):
    """What the assistant answers: text, generated and visual tokens, and the milliseconds that it took."""

    @property
    def text(self) -> str: ...
    @property
    def tokens(self) -> int: ...
    @property
    def visual_tokens(self) -> int: ...
    @property
    def ms(self) -> float: ...


class Answers(Protocol):
    """Anything that answers questions about a picture, or a list of them, or a video's bytes; greedily, or two runs
    differ. What doesn't take all of `asking.SHOWN` says what it takes in ``takes``.
    """

    def ask_many(self, pairs: list[tuple[Any, str]], /, *, max_tokens: int, batch: int) -> Sequence[Reply]: ...


@dataclass(frozen=True)
class Result:
    """An item with its answer, the answer to the same question over the shuffled picture, and both scores.

    ``skipped`` says why there is no answer; such an item counts in no row's score.
    """

    item: Item
    answer: str
    score: float
    blind_answer: str | None
    blind_score: float | None
    tokens: int
    visual_tokens: int
    ms: float
    skipped: str = ""


@dataclass(frozen=True)
class Row:
    """One line of the table; scores from 0 to 1, or the error rate of CER.

    interval   Wilson's 95% of an accuracy. A group's items share pictures, so that its interval is a little too narrow
    blind      the score with shuffled pictures: what the question alone gives away
    constant   the best score of one answer to all of the task's questions (for CER and TED of an empty answer)
    chance     guessing among the choices, None where they aren't known
    also       further scores (`further.further`), and the share of questions that were skipped, with the reason

    With ``n`` 0 nothing could be asked, and the score of 0 says nothing.
    """

    name: str
    metric: str
    n: int
    score: float
    interval: tuple[float, float] | None
    blind: float | None
    constant: float
    chance: float | None
    also: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """Rows by task and by group, every answer, the suite they belong to, and the seconds it took.

    ``cost`` and ``against`` (an earlier run) are there where `main` was asked for them.
    """

    rows: tuple[Row, ...]
    groups: tuple[Row, ...]
    results: tuple[Result, ...]
    suite: Suite
    seconds: float
    cost: Cost | None = None
    against: Contrast | None = None

    @property
    def failed(self) -> list[Result]:
        """Questions that got no answer though the model takes what they come with."""
        return [result for result in self.results if result.skipped and not result.skipped.startswith(DOES_NOT_TAKE)]

    def __getitem__(self, name: str) -> Row:
        """The row of a task or group."""
        return {row.name: row for row in (*self.rows, *self.groups)}[name]


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
    results = [_result(*row) for row in zip(asked.items, replies[: len(asked.items)], shuffled, strict=True)]
    rows = [_row(task, results, (task,)) for task in check_tasks(tasks)]
    groups = [_row(name, results, of) for name, of in GROUPS.items() if set(of) <= set(check_tasks(tasks))]
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
    return [next(replies) if key else Skipped("no picture to shuffle") for _, key in chunk]


def metric_of(task: str) -> str:
    """The name of the task's metric; see METRICS."""
    special = {"chart_value": "relaxed", "read": "CER", "receipt_json": "TED", "presence": "POPE"}
    return special.get(task, "exact")


def _result(item: Item, reply: Reply, blind: Reply | None) -> Result:
    score = METRICS[metric_of(item.task)]
    blind = None if isinstance(blind, Skipped) else blind
    blind_text = blind.text if blind else None
    blind_score = float(score(blind.text, item.truth)) if blind else None
    why = reply.why if isinstance(reply, Skipped) else ""
    right = 0.0 if why else float(score(reply.text, item.truth))
    cost = reply.tokens, reply.visual_tokens, reply.ms
    return Result(item, reply.text, right, blind_text, blind_score, *cost, skipped=why)


def exact(result: Result) -> bool:
    """Whether the answer matches exactly, whatever the task's own metric is."""
    return metrics.exact_match(result.answer, result.item.truth)


def _row(name: str, results: Sequence[Result], tasks: tuple[str, ...]) -> Row:
    """The row of a task, or of a group of tasks whose items weigh the same."""
    mine = [result for result in results if result.item.task in tasks and not result.skipped]
    notes, metric = _notes(results, tasks), "+".join(sorted({metric_of(task) for task in tasks}))
    if not mine:
        return Row(name, metric, 0, 0.0, None, None, 0.0, None, notes)
    if tasks == ("read",):
        return _read_row(name, mine)
    total, n = sum(result.score for result in mine), len(mine)
    blind = [result.blind_score for result in mine if result.blind_score is not None]
    truths = [[result.item.truth for result in mine if result.item.task == task] for task in tasks]
    constant = sum(_constant(task, of) * len(of) for task, of in zip(tasks, truths, strict=True) if of) / n
    chances = [result.item.chance for result in mine if result.item.chance is not None]
    interval = None if metric == "TED" else metrics.wilson(round(total), n)
    also = further(tasks, [(result.answer, result.item.truth) for result in mine])
    return Row(
        name, metric, n, total / n, interval, _mean(blind) if blind else None, constant,
        _mean(chances) if chances and len(tasks) == 1 else None, also | notes,
    )  # fmt: skip


def _notes(results: Sequence[Result], tasks: Sequence[str]) -> dict[str, float]:
    """Why questions are missing from a row, and which share of the row's tasks or questions they are."""
    mine = [result for result in results if result.item.task in tasks]
    skipped = [result.skipped for result in mine if result.skipped]
    absent = [why for why in map(left_out, tasks) if why]
    notes = {f"left out ({absent[0]})": len(absent) / len(tasks)} if absent else {}
    return notes | ({f"skipped ({skipped[0]})": len(skipped) / len(mine)} if skipped else {})


def _read_row(name: str, mine: Sequence[Result]) -> Row:
    pairs = [(result.answer, result.item.truth) for result in mine]
    blind = [(r.blind_answer, r.item.truth) for r in mine if r.blind_answer is not None]
    also = {
        "exact": _mean([exact(result) for result in mine]),
        "CER by line": _mean([rate for pair in pairs for rate in metrics.line_error_rates(*pair)]),
    }
    rate = metrics.pooled_error_rate
    return Row(name, "CER", len(mine), rate(pairs), None, rate(blind) if blind else None, 1.0, None, also)


def _constant(task: str, truths: Sequence[str]) -> float:
    """The best share that one of the true answers gets when it is given to every question; of TED an empty answer's."""
    if metric_of(task) == "TED":
        return 0.0
    if metric_of(task) == "exact":
        return Counter(map(metrics.normalise, truths)).most_common(1)[0][1] / len(truths)
    score = METRICS[metric_of(task)]
    return max(_mean([score(answer, truth) for truth in truths]) for answer in set(truths))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _ocr() -> Answers:
    from pumice.eval.ocr import open_ocr

    return open_ocr()


BASELINES: dict[str, Callable[[], Answers]] = {"ocr": _ocr}
"""What `main` takes beside the names of models: a pipeline to compare them with."""


def main(
    model: str,
    tasks: Sequence[str] | None = None,
    n: int = 200,
    json_path: Path | None = None,
    html: Path | None = None,
    cost: bool = False,
    baseline: Path | None = None,
    kept: Path | None = None,
) -> Report:
    """Load a model, evaluate it with a progress bar, print the table, and write the JSON and HTML that are asked for.

    Costs are measured for these files, and for a line below the table with ``cost``. ``baseline`` is the JSON of an
    earlier run, to which the differences are shown. Answers are kept in the folder ``kept`` as they are made.

    Raises:
        PumiceError: as `evaluate`, `pumice.load` and `baseline.read_baseline`.
    """
    import pumice
    from pumice.eval import baseline as beside
    from pumice.eval import report as out
    from pumice.eval.remembered import remembering
    from pumice.eval.report_html import to_html

    if baseline and n < 2:
        raise PumiceError(f"{n} question a task; a comparison with {baseline} needs at least 2")
    asked = suite(check_tasks(tasks or ()), n) if baseline else None
    earlier = beside.read_baseline(baseline, asked.sha256, len(asked.items)) if baseline and asked else None
    assistant = BASELINES[model]() if model in BASELINES else pumice.load(model)
    # Before the questions: their long batches would count as its memory.
    measured = _measure(assistant, model) if cost or json_path or html else None
    with out.progress_bar() as step:
        report = evaluate(remembering(assistant, kept), tasks or (), n, progress=step)
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
