"""Answers to scores: a result a question, a row a task or group, the report of a run.

Item + Reply ──result──> Result* ──row, groups──> Row* ──> Report
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pumice.eval.metrics import stats, strings
from pumice.eval.metrics.further import further, pope_right, tree_accuracy
from pumice.eval.suite.asking import Cause, Reply, Skipped
from pumice.eval.suite.items import Item, Suite
from pumice.eval.suite.posing import left_out

if TYPE_CHECKING:
    from pumice.eval.cost import Cost
    from pumice.eval.report.baseline import Contrast

METRICS: dict[str, Callable[[str, str], float]] = {
    "exact": strings.exact_match,
    "relaxed": strings.relaxed_match,
    "CER": strings.character_error_rate,
    "TED": tree_accuracy,
    "POPE": pope_right,
}
"""How a task is scored: ``relaxed`` for chart_value, ``CER`` (lower is better) for read, ``TED`` (tree edit distance
accuracy) for receipt_json, ``POPE`` for presence, ``exact`` for the others."""


@dataclass(frozen=True)
class Result:
    """An item with its answer, the answer to the same question over the shuffled picture, and both scores.

    ``skipped`` says why there is no answer, ``cause`` of which kind that is; such an item counts in no row's score.
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
    cause: Cause | None = None


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

    ``cost`` and ``against`` (an earlier run) are there where `embedded.main` was asked for them.
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
        return [result for result in self.results if result.cause is Cause.REFUSED]

    def __getitem__(self, name: str) -> Row:
        """The row of a task or group."""
        return {row.name: row for row in (*self.rows, *self.groups)}[name]


def metric_of(task: str) -> str:
    """The name of the task's metric; see METRICS."""
    special = {"chart_value": "relaxed", "read": "CER", "receipt_json": "TED", "presence": "POPE"}
    return special.get(task, "exact")


def result_of(item: Item, reply: Reply, blind: Reply | None) -> Result:
    """An item's answer and score; ``blind`` is the reply over the shuffled picture, if that was asked."""
    score = METRICS[metric_of(item.task)]
    blind = None if isinstance(blind, Skipped) else blind
    blind_text = blind.text if blind else None
    blind_score = float(score(blind.text, item.truth)) if blind else None
    why, cause = (reply.why, reply.cause) if isinstance(reply, Skipped) else ("", None)
    right = 0.0 if cause else float(score(reply.text, item.truth))
    cost = reply.tokens, reply.visual_tokens, reply.ms
    return Result(item, reply.text, right, blind_text, blind_score, *cost, why, cause)


def exact(result: Result) -> bool:
    """Whether the answer matches exactly, whatever the task's own metric is."""
    return strings.exact_match(result.answer, result.item.truth)


def row_of(name: str, results: Sequence[Result], tasks: tuple[str, ...]) -> Row:
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
    interval = None if metric == "TED" else stats.wilson(round(total), n)
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
        "CER by line": _mean([rate for pair in pairs for rate in strings.line_error_rates(*pair)]),
    }
    rate = strings.pooled_error_rate
    return Row(name, "CER", len(mine), rate(pairs), None, rate(blind) if blind else None, 1.0, None, also)


def _constant(task: str, truths: Sequence[str]) -> float:
    """The best share that one of the true answers gets when it is given to every question; of TED an empty answer's."""
    if metric_of(task) == "TED":
        return 0.0
    if metric_of(task) == "exact":
        return Counter(map(strings.normalise, truths)).most_common(1)[0][1] / len(truths)
    score = METRICS[metric_of(task)]
    return max(_mean([score(answer, truth) for truth in truths]) for answer in set(truths))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
