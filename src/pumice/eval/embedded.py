"""The embedded table: a score on held-out rendered pictures that any machine can repeat offline.

    Suite ──assistant, over the real and over shuffled pictures──> Result* ──> Row* ──> Report ──> terminal, JSON, HTML

Fonts, layouts, names, tables and drawings are none that training sees, but the renderers are the same: it measures
what was taught, not documents at large.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Protocol

from pumice.eval import metrics
from pumice.eval.suite import GROUPS, Item, Suite, check_tasks, suite
from pumice.types import PumiceError

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image

METRICS: dict[str, Callable[[str, str], float]] = {
    "exact": metrics.exact_match,
    "relaxed": metrics.relaxed_match,
    "CER": metrics.character_error_rate,
}
"""How a task is scored: ``relaxed`` for chart_value, ``CER`` (lower is better) for read, ``exact`` for the others."""

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
    """Anything that answers questions about pictures; greedily, or two runs differ."""

    def ask_many(self, pairs: list[tuple[Image.Image, str]], /, *, max_tokens: int, batch: int) -> Sequence[Reply]: ...


@dataclass(frozen=True)
class Result:
    """An item with its answer, the answer to the same question over the shuffled picture, and both scores."""

    item: Item
    answer: str
    score: float
    blind_answer: str | None
    blind_score: float | None
    tokens: int
    visual_tokens: int
    ms: float


@dataclass(frozen=True)
class Row:
    """One line of the table; scores from 0 to 1, or the error rate of CER.

    interval   Wilson's 95% of an accuracy. A group's items share pictures, so that its interval is a little too narrow
    blind      the score with shuffled pictures: what the question alone gives away
    constant   the best score of one answer to all of the task's questions (for CER of an empty answer)
    chance     guessing among the choices, None where they aren't known
    also       further scores: exact beside relaxed; exact and CER by line beside CER
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
    """Rows by task and by group, every answer, the suite they belong to, and the seconds it took."""

    rows: tuple[Row, ...]
    groups: tuple[Row, ...]
    results: tuple[Result, ...]
    suite: Suite
    seconds: float

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
    replies: list[Reply] = []
    for chunk in _chunks(plan):
        replies += _ask(assistant, asked, chunk, batch)
        if progress:
            progress(len(replies), len(plan))
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
    opened = {key: asked.open(key) for _, key in chunk}  # one object a picture, so that its features can be shared
    limit = 64 if chunk[0][0].kind == "lines" else 32
    questions = [(opened[key], item.question) for item, key in chunk]
    replies = assistant.ask_many(questions, max_tokens=limit, batch=batch)
    if len(replies) != len(questions):
        raise PumiceError(f"the assistant gave {len(replies)} answers to {len(questions)} questions")
    return replies


def metric_of(task: str) -> str:
    """The name of the task's metric; see METRICS."""
    return {"chart_value": "relaxed", "read": "CER"}.get(task, "exact")


def _result(item: Item, reply: Reply, blind: Reply | None) -> Result:
    score = METRICS[metric_of(item.task)]
    blind_text = blind.text if blind else None
    blind_score = float(score(blind.text, item.truth)) if blind else None
    right = float(score(reply.text, item.truth))
    return Result(item, reply.text, right, blind_text, blind_score, reply.tokens, reply.visual_tokens, reply.ms)


def exact(result: Result) -> bool:
    """Whether the answer matches exactly, whatever the task's own metric is."""
    return metrics.exact_match(result.answer, result.item.truth)


def _row(name: str, results: Sequence[Result], tasks: tuple[str, ...]) -> Row:
    """The row of a task, or of a group of tasks whose items weigh the same."""
    mine = [result for result in results if result.item.task in tasks]
    if tasks == ("read",):
        return _read_row(name, mine)
    right, n = round(sum(result.score for result in mine)), len(mine)
    blind = [result.blind_score for result in mine if result.blind_score is not None]
    truths = [[result.item.truth for result in mine if result.item.task == task] for task in tasks]
    constant = sum(_constant(task, of) * len(of) for task, of in zip(tasks, truths, strict=True)) / n
    chances = [result.item.chance for result in mine if result.item.chance is not None]
    also = (
        {"exact": _mean([metrics.exact_match(r.answer, r.item.truth) for r in mine])} if "chart_value" in tasks else {}
    )
    return Row(
        name, "+".join(sorted({metric_of(task) for task in tasks})), n, right / n, metrics.wilson(right, n),
        _mean(blind) if blind else None, constant, _mean(chances) if chances and len(tasks) == 1 else None, also,
    )  # fmt: skip


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
    """The best share that one of the true answers gets when it is given to every question."""
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
) -> Report:
    """Load a model, evaluate it with a progress bar, print the table, and write the JSON and HTML that are asked for.

    Raises:
        PumiceError: as `evaluate` and `pumice.load`.
    """
    import pumice
    from pumice.eval import report as out

    assistant = BASELINES[model]() if model in BASELINES else pumice.load(model)
    with out.progress_bar() as step:
        report = evaluate(assistant, tasks or (), n, progress=step)
    about = out.provenance(model, report)
    out.print_table(report, about)
    if json_path:
        json_path.write_text(out.to_json(report, about), encoding="utf-8")
    if html:
        html.write_text(out.to_html(report, about), encoding="utf-8")
    return report
