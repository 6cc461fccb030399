"""Questions without a picture, each with one right answer: whether the language model still works.

rng ──sum | longer word | code to copy | opposite──> (Question, chance)
"""

from __future__ import annotations

import random

from pumice.data.render import values
from pumice.data.render.fonts import Split
from pumice.data.render.page import Question
from pumice.data.render.scenes import Posed

OPPOSITES = (
    ("hot", "cold"),
    ("big", "small"),
    ("up", "down"),
    ("left", "right"),
    ("day", "night"),
    ("open", "closed"),
    ("old", "young"),
    ("rich", "poor"),
    ("full", "empty"),
    ("wet", "dry"),
    ("fast", "slow"),
    ("strong", "weak"),
    ("early", "late"),
    ("black", "white"),
    ("true", "false"),
    ("long", "short"),
    ("heavy", "light"),
    ("yes", "no"),
    ("first", "last"),
    ("love", "hate"),
)
"""Words whose opposite is asked for beside one that isn't it, so that there is one right answer."""


def text_only(rng: random.Random, split: Split) -> Posed:
    """One question, and nothing to look at."""
    return Posed((), (question(rng, split),))


def question(rng: random.Random, split: Split) -> tuple[Question, float | None]:
    """One question and the share that guessing among its choices gets, where it has choices."""
    text, answer, chance = rng.choice((arithmetic, arithmetic, longer, copy, opposite))(rng, split)
    return Question(text, answer, "text_only"), chance


def arithmetic(rng: random.Random, split: Split) -> tuple[str, str, float | None]:
    """A sum, difference or product of small numbers; none is negative."""
    del split
    sign = rng.choice("+-x")
    a, b = (rng.randint(2, 9), rng.randint(2, 9)) if sign == "x" else (rng.randint(2, 50), rng.randint(2, 50))
    a, b = (max(a, b), min(a, b)) if sign == "-" else (a, b)
    result = {"+": a + b, "-": a - b, "x": a * b}[sign]
    return f"What is {a} {sign} {b}? Answer with the number only.", str(result), None


def longer(rng: random.Random, split: Split) -> tuple[str, str, float | None]:
    """The longer of two words, by two letters at least."""
    words = values.vocabulary("common", split)
    while True:
        a, b = rng.sample(words, 2)
        if abs(len(a) - len(b)) >= 2:
            text = f"Which word is longer: {a} or {b}? Answer with the word only."
            return text, max(a, b, key=len), 0.5


def copy(rng: random.Random, split: Split) -> tuple[str, str, float | None]:
    """A code to be given back as it is."""
    code = values.code(rng, split)
    return f"Copy this code and write nothing else: {code}", code, None


def opposite(rng: random.Random, split: Split) -> tuple[str, str, float | None]:
    """The opposite of a word, out of two."""
    del split
    (word, answer), wrong = rng.choice(OPPOSITES), rng.choice(OPPOSITES)
    while word in wrong:
        wrong = rng.choice(OPPOSITES)
    word, answer = (word, answer) if rng.random() < 0.5 else (answer, word)
    a, b = rng.sample((answer, rng.choice(wrong)), 2)
    return f"Which word is the opposite of {word}: {a} or {b}? Answer with the word only.", answer, 0.5
