"""What lies in shards, counted as they are written; sums over shards make the card.

Record ──add──> Counts (records, media, questions by task and form, characters, tokens) ──merge──> Counts
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pumice.data.produce.records import Record


@dataclass
class Counts:
    """Records by kind and by category; pictures and videos; questions by "kind/task" and by form of the answer;
    characters and, with a tokenizer, tokens of questions and of answers.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    categories: Counter[str] = field(default_factory=Counter)
    media: Counter[str] = field(default_factory=Counter)
    tasks: Counter[str] = field(default_factory=Counter)
    forms: Counter[str] = field(default_factory=Counter)
    text: Counter[str] = field(default_factory=Counter)

    def add(self, record: Record, tokens: tuple[int, int] | None = None) -> None:
        """Count one record; ``tokens`` are those of its questions and of its answers."""
        said = record.said
        kind = said["data_source"]
        self.kinds[kind] += 1
        self.categories[said["category"]] += 1
        self.media.update("videos" if ending == "mp4" else "pictures" for ending, _ in record.media)
        self.tasks.update(f"{kind}/{task}" for task in said["tasks"])
        self.forms.update(said["forms"])
        for who, name in (("human", "questions"), ("gpt", "answers")):
            texts = [turn["value"] for turn in said["conversations"] if turn["from"] == who]
            self.text[f"characters of {name}"] += sum(map(len, texts))
        for name, count in zip(("questions", "answers"), tokens or (), strict=False):
            self.text[f"tokens of {name}"] += count

    def as_dict(self) -> dict[str, dict[str, int]]:
        """Plain dictionaries with sorted keys, to be written as JSON."""
        return {name: dict(sorted(counted.items())) for name, counted in vars(self).items()}


def merge(parts: Iterable[Mapping[str, Any]]) -> Counts:
    """The sum of what several `as_dict` gave."""
    whole = Counts()
    for part in parts:
        for name, counted in part.items():
            getattr(whole, name).update(counted)
    return whole
