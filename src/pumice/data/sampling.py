"""Which rows of a source count: all, first:N, end:N, random:N; N is a number or a percentage."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np


def choose(count: int, sampling: str, rng: random.Random) -> np.ndarray:
    """Rows of a source of ``count`` that a sampling takes, in the file's order but for random, which shuffles.

    A percentage is rounded up, as in LLaVA-NeXT.
    """
    how, _, amount = sampling.partition(":")
    if how == "all":
        return np.arange(count)
    number = math.ceil(int(amount[:-1]) * count / 100) if amount.endswith("%") else int(amount)
    number = min(number, count)
    if how == "random":
        return np.array(rng.sample(range(count), number), dtype=np.int64)
    return np.arange(number) if how == "first" else np.arange(count - number, count)


def file_rng(seed: int, path: Path) -> random.Random:
    """Of its own for each file, so that another file in the mixture changes nothing."""
    return random.Random(f"{seed}-{path.name}")
