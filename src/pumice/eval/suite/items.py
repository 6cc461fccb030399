"""Which questions the embedded table asks: held-out rendered pictures, drawn from fixed seeds.

    tasks, n ──held-out renderers──> pictures ──one question a task and picture──> Suite

A picture is asked at most one question of each task, so that a task's items are independent and its interval holds;
only those of presence come in pairs. `posing` draws what isn't one picture of `pumice.data.rendered`.
"""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from PIL import Image

from pumice.data.rendered import renderer
from pumice.eval.suite import posing
from pumice.eval.suite.posing import Shown
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
    **{task: (task,) for task in posing.KINDS},
}
"""Tasks of the table (`Question.task` of the renderers) and the kinds of pictures that ask them."""

GROUPS: dict[str, tuple[str, ...]] = {
    "short fields": ("shop", "name", "city", "date"),
    "prices and amounts": ("price", "amount"),
    "codes": ("code",),
    "cells": ("cell",),
    "charts": ("chart_extreme", "chart_compare", "chart_value"),
    "objects": ("naming", "yesno", "counting", "colour", "leftright"),
    "receipt to JSON": ("receipt_json",),
    "multi-image": ("difference", "odd_one_out", "order"),
    "video": ("direction", "video_order", "video_count"),
    "text only": ("text_only",),
    "chinese": ("chinese_read", "chinese_value"),
    "hallucination": ("presence",),
}


@dataclass(frozen=True)
class Item:
    """One question. ``picture`` and ``other`` (the shuffled one) are keys of `Suite.pictures` or `Suite.shown`;
    ``other`` is "" where there is no picture to shuffle. ``chance`` is the share that guessing among the question's
    choices would get, where they are known.
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
    """Items in the order of their pictures, pictures as PNG and whatever else is shown by key, one hash over it all."""

    items: tuple[Item, ...]
    pictures: dict[str, bytes] = field(repr=False)
    sha256: str
    shown: dict[str, Shown] = field(default_factory=dict, repr=False)

    def media(self, key: str) -> Any:
        """What an assistant is given for a key: a picture, a list of several or none, or the bytes of a video."""
        return self.shown[key].media() if key in self.shown else self.open(key)

    def open(self, key: str) -> Image.Image:
        """The RGB picture of a key such as "charts-17"; of several, or of a video, a strip to look at."""
        if key in self.shown:
            return self.shown[key].strip()
        return Image.open(io.BytesIO(self.pictures[key])).convert("RGB")


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

    Picture i of a kind has the seed "eval-<kind>-<i>". A task's items don't depend on the other tasks, and those of a
    smaller n come first in a larger one; only the shuffled pictures differ.

    Raises:
        PumiceError: the renderers' packages are missing, they hardly ever ask one of the tasks, or none of the tasks
            can be asked on this machine.
    """
    missing: dict[str, int] = dict.fromkeys((task for task in tasks if task not in posing.KINDS), n)
    asked, pictures = [], {}
    index = 0
    while any(missing.values()):
        if index > 200 * (n + 5):
            raise PumiceError(f"the renderers ask too few questions of {', '.join(t for t in missing if missing[t])}")
        for kind in dict.fromkeys(kind for task in missing if missing[task] for kind in TASKS[task]):
            key = f"{kind}-{index}"
            picture = renderer(kind)(random.Random(f"eval-{key}"), "heldout")
            questions = _pick(key, picture.questions, [t for t in missing if missing[t] and kind in TASKS[t]])
            if questions:
                pictures[key] = _png(picture.image)
            for question in questions:
                missing[question.task] -= 1
                asked.append((kind, key, question, _chance(question, picture.questions)))
        index += 1
    shown: dict[str, Shown] = {}
    for task in (task for task in tasks if task in posing.KINDS):
        posed, more = posing.pose(task, n)
        asked += [(task, *question) for question in posed]
        shown |= more
    if not asked:
        raise PumiceError("; ".join(f"{task}: {posing.left_out(task)}" for task in tasks))
    return _suite(asked, pictures, shown)


def _suite(
    asked: list[tuple[str, str, Question, float | None]], pictures: dict[str, bytes], shown: dict[str, Shown]
) -> Suite:
    """Give every item a shuffled picture: the one half-way round the ring of its kind's pictures."""
    every = [*pictures, *shown]
    keys = {kind: [key for key in every if key.startswith(f"{kind}-")] for kind in {kind for kind, *_ in asked}}
    for kind, ring in keys.items():
        if len(ring) == 1:
            ring.append(f"{kind}-blind")
            if kind in posing.KINDS:
                shown[ring[1]] = posing.blind_twin(kind)
            else:
                pictures[ring[1]] = _png(renderer(kind)(random.Random(f"eval-{ring[1]}"), "heldout").image)
    keys["text_only"] = []
    other = {key: ring[(i + len(ring) // 2) % len(ring)] for ring in keys.values() for i, key in enumerate(ring)}
    items = [Item(q.task, kind, key, other.get(key, ""), q.text, q.answer, chance) for kind, key, q, chance in asked]
    items.sort(key=lambda item: list(TASKS).index(item.task))
    items.sort(key=lambda item: (item.kind, item.picture))
    digest = hashlib.sha256(repr(items).encode())
    for key in sorted(pictures):
        digest.update(Image.open(io.BytesIO(pictures[key])).tobytes())
    for key in sorted(shown):
        digest.update(shown[key].sha256.encode())
    return Suite(tuple(items), pictures, digest.hexdigest(), shown)


def _pick(key: str, questions: Sequence[Question], tasks: list[str]) -> list[Question]:
    """At most one question of each task; of lines, only a single one is read."""
    found = []
    for task in tasks:
        pool = [q for q in questions if q.task == task and not (task == "read" and "\n" in q.answer)]
        if pool:
            # A generator for each task, so that its items are the same whichever other tasks are asked.
            found.append(random.Random(f"eval-{key}-{task}").choice(pool))
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
