"""A run beside an earlier one on the same items: differences with intervals, and the items that changed.

earlier run's JSON ──read_run, read_baseline──> Earlier ── + results ──contrast──> Contrast
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from pumice.eval.metrics.stats import Paired, compare
from pumice.eval.suite.scoring import metric_of
from pumice.types import PumiceError

if TYPE_CHECKING:
    from pumice.eval.suite.scoring import Result, Row


@dataclass(frozen=True)
class Earlier:
    """An earlier run: its file and provenance, and an answer and a score for each item, in the items' order.

    ``skipped`` are the places of the items that it has no answer to.
    """

    path: Path
    about: Mapping[str, Any]
    answers: tuple[str, ...]
    scores: tuple[float, ...]
    skipped: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Difference:
    """A task's or group's mean score before, and what changed; an error rate that falls has a negative difference."""

    name: str
    metric: str
    before: float
    paired: Paired

    @property
    def low_is_good(self) -> bool:
        """Whether the score is an error rate."""
        return self.metric == "CER"


@dataclass(frozen=True)
class Contrast:
    """Differences by task and by group; places of the items that were right and no longer are, and the reverse."""

    earlier: Earlier
    rows: tuple[Difference, ...]
    groups: tuple[Difference, ...]
    lost: tuple[int, ...]
    won: tuple[int, ...]

    def plain(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            "file": str(self.earlier.path),
            "about": dict(self.earlier.about),
            "rows": [asdict(row) for row in self.rows],
            "groups": [asdict(row) for row in self.groups],
            "lost": self.lost,
            "won": self.won,
        }


def read_run(path: Path) -> dict[str, Any]:
    """What ``pumice eval --json`` wrote.

    Raises:
        PumiceError: no such file, or another one.
    """
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PumiceError(f"{path}: can't be read ({error.strerror or error})") from None
    except ValueError:
        body = None
    if not isinstance(body, dict) or not all(key in body for key in ("about", "rows", "groups", "items")):
        raise PumiceError(f"{path}: not a run's scores; expected a file that `pumice eval MODEL --json FILE` wrote")
    return body


def read_baseline(path: Path, items_sha256: str, count: int) -> Earlier:
    """The earlier run in a file, if it was asked the items of this hash, ``count`` of them.

    Raises:
        PumiceError: as `read_run`, or the run was asked other items.
    """
    body = read_run(path)
    found = body["about"].get("items_sha256")
    if found != items_sha256 or len(body["items"]) != count:
        raise PumiceError(
            f"{path}: items {found}, this run's are {items_sha256}; a baseline needs the same ones: evaluate it with "
            "the same --tasks and -n, versions of Pumice and of Pillow, and fonts"
        )
    answers, scores = (tuple(item[key] for item in body["items"]) for key in ("answer", "score"))
    skipped = frozenset(place for place, item in enumerate(body["items"]) if item.get("skipped"))
    return Earlier(path, body["about"], answers, scores, skipped)


def contrast(
    results: Sequence[Result], rows: Sequence[Row], groups: Mapping[str, Sequence[str]], of_groups: Sequence[Row],
    earlier: Earlier,
) -> Contrast:  # fmt: skip
    """The results against the earlier run's, over the items that both have an answer to. ``groups`` names the tasks of
    each row in ``of_groups``.

    A row of a single such item has no difference: nothing tells how much it varies.
    """
    both = [i for i, result in enumerate(results) if not result.skipped and i not in earlier.skipped]
    scores = [result.score for result in results]

    def differences(rows: Sequence[Row], tasks: Mapping[str, Sequence[str]]) -> Iterator[Difference]:
        for row in rows:
            mine = [i for i in both if results[i].item.task in tasks[row.name]]
            if len(mine) > 1:
                now, before = ({str(i): score[i] for i in mine} for score in (scores, earlier.scores))
                yield Difference(row.name, row.metric, fmean(before.values()), compare(now, before))

    was, now = ([i for i in both if right(score[i], results[i].item.task)] for score in (earlier.scores, scores))
    return Contrast(
        earlier,
        tuple(differences(rows, {row.name: (row.name,) for row in rows})),
        tuple(differences(of_groups, groups)),
        tuple(sorted({*was} - {*now})),
        tuple(sorted({*now} - {*was})),
    )


def right(score: float, task: str) -> bool:
    """Whether an item's score is the best there is."""
    return score == (0 if metric_of(task) == "CER" else 1)


HEAD = ("task", "n", "before %", "now %", "difference", "95%", "p", "better", "worse")


def cells(row: Difference) -> tuple[str, ...]:
    """A row's texts under HEAD. Of an error rate, better means lower."""
    paired = row.paired
    low, high = paired.interval
    if not row.low_is_good:  # Student's interval of few items reaches beyond what a score can change
        low, high = max(low, -1.0), min(high, 1.0)
    ups = (paired.worse, paired.better) if row.low_is_good else (paired.better, paired.worse)
    return (
        row.name + " (low is good)" * row.low_is_good, f"{paired.n}", f"{100 * row.before:.1f}",
        f"{100 * (row.before + paired.difference):.1f}", f"{100 * paired.difference:+.1f}",
        f"{100 * low:+.1f} to {100 * high:+.1f}", f"{paired.p:.3f}" if paired.p >= 0.001 else "< 0.001",
        *(f"{count}" for count in ups),
    )  # fmt: skip


def title(found: Contrast) -> str:
    """What is compared with what."""
    about = found.earlier.about
    weights = about.get("weights_sha256")
    of = f", weights {weights[:12]}" if weights else ""
    return f"Against {about.get('model')} of {about.get('date', '')[:10]}{of} ({found.earlier.path})"


NOTE = (
    "Means of the items' own scores, paired by item; what either run has no answer to is left out. p: exact McNemar "
    "for right and wrong, else a paired t test; with many tasks one in twenty is below 0.05 by chance."
)
