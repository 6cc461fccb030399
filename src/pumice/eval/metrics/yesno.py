"""Yes or no, and letters of multiple choice: answers read out of free text, and the scores of MME and POPE.

    text ──mme_answer | pope_answer | choice_letter──> yes | no | A .. H | nothing ──> score, and how many had nothing

A score whose answers mostly couldn't be read says little, so each comes with the count of those.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from pumice.types import PumiceError

PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


@dataclass(frozen=True)
class MmeRow:
    """One MME question: its category, the picture that it shares with its twin, the answer and the truth (yes | no)."""

    category: str
    picture: str
    prediction: str
    truth: str


@dataclass(frozen=True)
class MmeScore:
    """Sums of the categories' scores, each 0 to 200; ``unparsed`` answers are neither yes nor no and count as wrong."""

    perception: float
    cognition: float
    categories: dict[str, float]
    unparsed: int


def mme_answer(text: str) -> Literal["yes", "no", "other"]:
    """The answer by MME's rule: "y", "n", or yes/no within the first four characters.

    So "nope" and "not sure" are no, "Yeah" and "I think yes" other.
    """
    text = text.lower().strip().replace(".", "")
    if text in ("y", "n"):
        return "yes" if text == "y" else "no"
    return "yes" if "yes" in text[:4] else "no" if "no" in text[:4] else "other"


def mme_score(rows: Iterable[MmeRow]) -> MmeScore:
    """MME: in each category the mean over pictures of accuracy + (100 where both questions are right), in per cent.

    Raises:
        PumiceError: an unknown category, a truth that is neither yes nor no, or a picture without its two questions.
    """
    right: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    unparsed = 0
    for row in rows:
        if row.category not in PERCEPTION + COGNITION:
            known = ", ".join(PERCEPTION + COGNITION)
            raise PumiceError(f"MME has no category {row.category!r}; expected one of {known}")
        answer = mme_answer(row.prediction)
        unparsed += answer == "other"
        right[row.category][row.picture].append(answer == _truth(row.truth))
    categories = {name: fmean(_pair(name, *pair) for pair in of.items()) for name, of in right.items()}
    perception, cognition = (sum(categories.get(name, 0.0) for name in half) for half in (PERCEPTION, COGNITION))
    return MmeScore(perception, cognition, categories, unparsed)


def _pair(category: str, picture: str, right: list[bool]) -> float:
    if len(right) != 2:
        raise PumiceError(f"MME {category}, {picture}: {len(right)} answers; expected the two questions of a picture")
    return 50.0 * sum(right) + 100.0 * all(right)


def _truth(text: str) -> str:
    truth = text.lower().strip().replace(".", "")
    if truth not in ("yes", "no"):
        raise PumiceError(f"true answer {text!r}; expected yes or no")
    return truth


@dataclass(frozen=True)
class PopeScore:
    """POPE of one split, "yes" being positive, from 0 to 1. The line's papers report the mean F1 of the three splits.

    ``yes_ratio`` is the share of answers that are yes; ``unparsed`` ones say neither, and count as yes.
    """

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_ratio: float
    unparsed: int
    n: int


def pope_answer(text: str) -> Literal["yes", "no"]:
    """The answer by the official script: no if "No", "no" or "not" is a word of the first sentence, else yes."""
    return "no" if {"No", "no", "not"} & set(_first_sentence(text)) else "yes"


def _first_sentence(text: str) -> list[str]:
    return text.split(".")[0].replace(",", "").split(" ")


def pope_official(pairs: Iterable[tuple[str, str]]) -> PopeScore:
    """POPE over (prediction, truth) pairs as the official script and LLaVA's count it.

    lmms-eval's ``pope`` differs: there "Yes." is wrong and counts for neither precision nor recall, and the ratio of
    yes is the truths'. On answers that are exactly yes or no, all but that ratio are equal. A score without
    denominator is 0.

    Raises:
        PumiceError: no pairs, or a truth that is neither yes nor no.
    """
    seen = [(pope_answer(text) == "yes", _truth(truth) == "yes", text) for text, truth in pairs]
    if not seen:
        raise PumiceError("no POPE answers; expected at least one")
    hits = sum(said and true for said, true, _ in seen)
    said, true = sum(row[0] for row in seen), sum(row[1] for row in seen)
    unparsed = sum(answer and not re.search(r"\byes\b", text, re.IGNORECASE) for answer, _, text in seen)
    return PopeScore(
        accuracy=sum(answer == truth for answer, truth, _ in seen) / len(seen),
        precision=hits / said if said else 0.0,
        recall=hits / true if true else 0.0,
        f1=2 * hits / (said + true) if said + true else 0.0,
        yes_ratio=said / len(seen),
        unparsed=unparsed,
        n=len(seen),
    )


PHRASES = (
    *(
        f"{the}{what} is"
        for the in ("", "the ")
        for what in (
            "answer", "correct answer", "best answer", "correct option", "best option", "choice", "correct choice"
        )
    ),
    "i choose", "i select", "i pick", "my answer is", "my choice is",
    "옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは",
)  # fmt: skip


def choice_letter(text: str, choices: Sequence[str] = "ABCDEFGH") -> str | None:
    """The capital letter that an answer chooses, or None. Equal to lmms-eval's ``extract_mcq_answer``.

    The first of these that is found: the letter begins the text, ends it, follows a phrase such as "the answer is",
    stands as "(A)", "A.", "A:", "A)", "A ", or is there at all. Among several of one kind the last wins. Letters inside
    words count in all but the first two: "the answer is B. All ..." gives A, and "a dog" nothing.
    """
    text = text.strip()
    for sign in ",.!?;:'\"":
        text = text.strip(sign)
    bare = text.strip()
    ends = [c for c in choices if bare.startswith(c) and not bare[1:2].isalpha()]
    ends += [c for c in choices if bare.endswith(c) and not bare[-2:-1].isalpha()]
    if ends:
        return ends[0]
    padded = f" {text} "
    spots = _after_phrases(padded, choices)
    for form in ("({})", "{}.", "{}:", "{})", "{} ", "{}"):
        if spots:
            break
        spots = {c: at for c in choices if (at := padded.rfind(form.format(c))) >= 0}
    return max(spots, key=lambda c: spots[c]) if spots else None


def _after_phrases(text: str, choices: Sequence[str]) -> dict[str, int]:
    """Where each letter first stands after a phrase; the furthest of several phrases."""
    lower, spots = text.lower(), {}
    for phrase in PHRASES:
        start = lower.find(phrase)
        for c in choices if start >= 0 else ():
            at = text.find(c, start + len(phrase))
            if at >= 0:
                spots[c] = max(at, spots.get(c, 0))
    return spots


@dataclass(frozen=True)
class ChoiceScore:
    """Share of right letters, and how many answers named none: these count as wrong."""

    accuracy: float
    unparsed: int
    n: int


def choice_score(pairs: Iterable[tuple[str, str]], choices: Sequence[str] = "ABCDEFGH") -> ChoiceScore:
    """Multiple choice over (prediction, true letter) pairs.

    Raises:
        PumiceError: no pairs, or a truth that isn't among the choices.
    """
    seen = [(choice_letter(text, choices), truth) for text, truth in pairs]
    strange = [truth for _, truth in seen if truth not in list(choices)]
    if strange or not seen:
        found = f"true letter {strange[0]!r}" if strange else "no answers"
        raise PumiceError(f"multiple choice: {found}; expected letters among {', '.join(choices)}")
    right = sum(letter == truth for letter, truth in seen)
    return ChoiceScore(right / len(seen), sum(letter is None for letter, _ in seen), len(seen))
