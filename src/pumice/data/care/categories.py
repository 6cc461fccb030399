"""How a sample counts in the balance of a mixture: visual input, instruction, response, as OneVision's data is sorted.

The paper sorts by hand. Here the visual input is counted, the instruction's category follows from the name of the set
(`categories.toml`), and a response is of fixed form where all of its answers are a few words.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from pumice.data.care.texts import words
from pumice.data.render.kinds import KINDS
from pumice.types import Sample

SHORT = 5
"""Words of the longest answer that counts as of fixed form: a word, an option's letter, a number, a name."""
OTHER = "other"


@cache
def _table() -> dict[str, Any]:
    text = files("pumice.data.care").joinpath("categories.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


@cache
def _by_name() -> dict[str, str]:
    """Title of a category by the names of its sets, and of rendered kinds."""
    public = {name: kind["title"] for kind in _table().values() for name in kind.get("names", ())}
    return public | {name: kind.category for name, kind in KINDS.items()}


def paper_shares() -> dict[str, float]:
    """Shares of the categories in OneVision's single-image stage, by title."""
    return {kind["title"]: kind["share"] for kind in _table().values() if "share" in kind}


def paper_visual_shares() -> dict[str, float]:
    """Shares of visual inputs in OneVision's last stage."""
    return dict(_table()["visual"])


def visual_input(sample: Sample) -> str:
    """ "text", "one picture", "several pictures" or "video"; a PDF's pages are pictures."""
    media = sample.media
    if any(one.kind == "video" for one in media):
        return "video"
    return ("text", "one picture")[len(media)] if len(media) < 2 else "several pictures"


def category(sample: Sample, name: str) -> str:
    """The category of the set that a sample is from: as the sample names it, or else as its source or file is called.
    What has no picture is language; a set that isn't known is `OTHER`.
    """
    known = _by_name()
    title = known.get(sample.source) or known.get(name)
    return title or (OTHER if sample.media else _table()["language"]["title"])


def response(sample: Sample) -> str:
    """ "fixed" where every answer is at most SHORT words, else "free"; "none" without an answer."""
    answers = [part for turn in sample.turns if turn.role == "assistant" for part in turn.content]
    if not answers:
        return "none"
    return "fixed" if all(len(words(str(answer))) <= SHORT for answer in answers) else "free"


@dataclass(frozen=True)
class Balance:
    """How many samples there are of each (visual input, category, response)."""

    counts: Counter[tuple[str, str, str]]

    @property
    def total(self) -> int:
        return self.counts.total()

    def share(self, place: int, name: str) -> float:
        """Share of the samples whose visual input (place 0), category (1) or response (2) is ``name``."""
        return sum(count for key, count in self.counts.items() if key[place] == name) / max(1, self.total)

    def rows(self, place: int, paper: dict[str, float]) -> list[tuple[str, int, float, float | None]]:
        """(name, samples, share, the paper's share) of all names at a place: the paper's first, in its order."""
        here = Counter[str]()
        for key, count in self.counts.items():
            here[key[place]] += count
        names = [*paper, *sorted(set(here) - set(paper))]
        return [(name, here[name], self.share(place, name), paper.get(name)) for name in names]

    def to_json(self) -> dict[str, Any]:
        """For scripts: each way to count, and all three together."""
        tables = {"visual": self.rows(0, paper_visual_shares()), "category": self.rows(1, paper_shares())}
        tables["response"] = self.rows(2, {})
        keys, parts = ("name", "samples", "share", "paper"), ("visual", "category", "response", "samples")
        shown = {name: [dict(zip(keys, row, strict=True)) for row in rows] for name, rows in tables.items()}
        every = [dict(zip(parts, (*key, count), strict=True)) for key, count in sorted(self.counts.items())]
        return shown | {"all": every}
