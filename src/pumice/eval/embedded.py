"""The embedded table: questions about held-out rendered pictures, so that any machine can repeat a score offline.

    tasks, n ──held-out renderers──> Suite (items, pictures) ──assistant, real and shuffled pictures──> Results ──> Report

A picture is asked at most one question of each task, so that a task's items are independent and its interval holds.
Fonts, layouts, names, tables and drawings are none that training sees, but the renderers are the same: it measures
what was taught, not documents at large.
"""

from __future__ import annotations

import hashlib
import io
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING, Protocol

from PIL import Image

from pumice.data.source import renderer
from pumice.eval import metrics
from pumice.types import PumiceError

if TYPE_CHECKING:
    from pumice.data.render.page import Question

TASKS: dict[str, tuple[str, ...]] = {
    "shop": ("receipts", "forms"),
    "name": ("forms",),
    "city": ("receipts", "forms"),
    "date": ("receipts", "forms"),
    "price": ("receipts",),
    "amount": ("receipts", "forms"),
    "code": ("receipts", "forms"),
    "item": ("receipts", "forms"),
    "cell": ("tables",),
    "chart_extreme": ("charts",),
    "chart_compare": ("charts",),
    "chart_value": ("charts",),
    "naming": ("objects",),
    "yesno": ("objects",),
    "counting": ("objects",),
    "colour": ("objects",),
    "leftright": ("objects",),
    "read": ("lines",),
}
"""Tasks of the table (`Question.task` of the renderers) and the kinds of pictures that ask them."""

GROUPS: dict[str, tuple[str, ...]] = {
    "short fields": ("shop", "name", "city", "date"),
    "prices and amounts": ("price", "amount"),
    "codes": ("code",),
    "cells": ("cell",),
    "charts": ("chart_extreme", "chart_compare", "chart_value"),
    "objects": ("naming", "yesno", "counting", "colour", "leftright"),
}

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

    def ask_many(self, questions: list[tuple[Image.Image, str]], *, max_tokens: int, batch: int) -> Sequence[Reply]: ...


@dataclass(frozen=True)
class Item:
    """One question. ``picture`` and ``other`` (the shuffled one) are keys of `Suite.pictures`; ``chance`` is the share
    that guessing among the question's choices would get, where they are known.
    """

    task: str
    kind: str
    picture: str
    other: str
    question: str
    truth: str
    chance: float | None = None


@dataclass(frozen=True)
class Suite:
    """Items in the order of their pictures, pictures as PNG by key, and one hash over all of it."""

    items: tuple[Item, ...]
    pictures: dict[str, bytes] = field(repr=False)
    sha256: str

    def open(self, key: str) -> Image.Image:
        """The RGB picture of a key such as "charts-17"."""
        return Image.open(io.BytesIO(self.pictures[key])).convert("RGB")


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


def check_tasks(tasks: Sequence[str]) -> tuple[str, ...]:
    """The tasks without repeats, in the order of TASKS. None at all stands for all of them.

    Raises:
        PumiceError: a task or group that isn't there; the message lists them.
    """
    wanted: set[str] = set()
    for name in tasks or TASKS:
        if name not in TASKS and name not in GROUPS:
            raise PumiceError(f"no task {name!r}; tasks: {', '.join(TASKS)}; groups: {', '.join(GROUPS)}")
        wanted.update(GROUPS.get(name, (name,)))
    return tuple(task for task in TASKS if task in wanted)


@lru_cache(4)
def suite(tasks: tuple[str, ...], n: int) -> Suite:
    """``n`` held-out questions a task: a pure function of its arguments and the installed fonts and packages.

    Picture i of a kind has the seed "eval-<kind>-<i>". Raises PumiceError when the renderers' packages are missing.
    """
    missing, asked, pictures = dict.fromkeys(tasks, n), [], {}
    index = 0
    while any(missing.values()):
        if index > 200 * (n + 5):
            raise PumiceError(f"the renderers ask too few questions of {', '.join(t for t in missing if missing[t])}")
        for kind in dict.fromkeys(kind for task in tasks if missing[task] for kind in TASKS[task]):
            key = f"{kind}-{index}"
            picture = renderer(kind)(random.Random(f"eval-{key}"), "heldout")
            questions = _pick(key, picture.questions, [t for t in tasks if missing[t] and kind in TASKS[t]])
            if questions:
                pictures[key] = _png(picture.image)
            for question in questions:
                missing[question.task] -= 1
                asked.append((kind, key, question, _chance(question, picture.questions)))
        index += 1
    return _suite(asked, pictures)


def _suite(asked: list[tuple[str, str, Question, float | None]], pictures: dict[str, bytes]) -> Suite:
    """Give every item a shuffled picture: the one half-way round the ring of its kind's pictures."""
    keys = {kind: [key for key in pictures if key.startswith(f"{kind}-")] for kind in {kind for kind, *_ in asked}}
    for kind, ring in keys.items():
        if len(ring) == 1:
            ring.append(f"{kind}-blind")
            pictures[ring[1]] = _png(renderer(kind)(random.Random(f"eval-{ring[1]}"), "heldout").image)
    other = {key: ring[(i + len(ring) // 2) % len(ring)] for ring in keys.values() for i, key in enumerate(ring)}
    items = [Item(q.task, kind, key, other[key], q.text, q.answer, chance) for kind, key, q, chance in asked]
    items.sort(key=lambda item: list(TASKS).index(item.task))
    items.sort(key=lambda item: (item.kind, item.picture))
    digest = hashlib.sha256(repr(items).encode())
    for key in sorted(pictures):
        digest.update(Image.open(io.BytesIO(pictures[key])).tobytes())
    return Suite(tuple(items), pictures, digest.hexdigest())


def _pick(key: str, questions: Sequence[Question], tasks: list[str]) -> list[Question]:
    """At most one question of each task; of lines, only a single one is read."""
    rng, found = random.Random(f"eval-{key}-pick"), []
    for task in tasks:
        pool = [q for q in questions if q.task == task and not (task == "read" and "\n" in q.answer)]
        if pool:
            found.append(rng.choice(pool))
    return found


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _chance(question: Question, beside: Sequence[Question]) -> float | None:
    """1 / number of choices. A chart tells how many it has only where that is asked too."""
    if question.task in ("yesno", "chart_compare"):
        return 0.5
    counts = [int(q.answer) for q in beside if q.task == "chart_count"]
    return 1 / counts[0] if question.task == "chart_extreme" and counts else None


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
    return Result(
        item, reply.text, float(score(reply.text, item.truth)), blind and blind.text,
        blind and float(score(blind.text, item.truth)), reply.tokens, reply.visual_tokens, reply.ms,
    )  # fmt: skip


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
        "exact": _mean([metrics.exact_match(*pair) for pair in pairs]),
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
