"""Read, then reason: a turn that reads the picture's text before the questions about it.

    user: picture, question ──share of the samples──> user: picture, READ · assistant: its text · user: question

ELVA's idea (arXiv 2406.11823): the answer's tokens follow those of the text that was read, and the reading is learned
too. At inference the question is asked plainly. The paper's wording and shares aren't public; these are Pumice's.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pumice.config import ReadConfig
from pumice.data.sources import Source
from pumice.tokens import tokenize
from pumice.types import Media, Sample, Turn

READ = "Read the text in the picture."


def read_first(sample: Sample, config: ReadConfig, tokenizer: Any, seed: int) -> Sample:
    """The sample with its reading before its questions, or as it was: which one follows from the seed and its id.

    Only samples about one picture of known text, which the user's first turn shows. What is longer than
    ``max_read_tokens`` is cut between words: a limit on the whole sample would cut the answer.
    """
    first = sample.turns[0]
    chosen = random.Random(f"{seed}-{sample.id}").random() < config.share
    if not chosen or not sample.reading or len(sample.media) != 1 or first.role != "user":
        return sample
    picture = tuple(part for part in first.content if isinstance(part, Media))
    question = tuple(part for part in first.content if not isinstance(part, Media))
    if not picture or not any(part.strip() for part in question):
        return sample
    reading = Turn("assistant", (shorten(sample.reading, config.max_read_tokens, tokenizer),))
    turns = (Turn("user", (*picture, READ)), reading, Turn("user", question), *sample.turns[1:])
    return Sample(turns, sample.id, sample.source, sample.task, sample.reading)


def shorten(text: str, limit: int, tokenizer: Any) -> str:
    """The first words of a text that are at most ``limit`` tokens."""
    words = text.split(" ")
    low, high = 0, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        fits = len(tokenize(tokenizer, " ".join(words[:middle]), markup=False)) <= limit
        low, high = (middle, high) if fits else (low, middle - 1)
    return " ".join(words[:low])


@dataclass
class ReadingSource:
    """A source whose samples read first. ``settings`` are part of its index's digest."""

    source: Source
    config: ReadConfig
    tokenizer: Any
    seed: int

    @property
    def files(self) -> list[Path]:
        return self.source.files

    @property
    def settings(self) -> str:
        return f"{self.source.settings} {self.config} {self.seed}"

    def __len__(self) -> int:
        return len(self.source)

    def sample(self, row: int) -> Sample:
        return read_first(self.source.sample(row), self.config, self.tokenizer, self.seed)
