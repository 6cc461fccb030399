"""Questions as training asks them: free answers in sentences, fixed ones behind a format prompt, choices, yes or no.

    Question (text, short answer) ──forms that fit it──rng──> Exchange* (what is asked, what is answered)

The format prompts are LLaVA-1.5's (arXiv 2310.03744, which OneVision goes on with): without one an answer is a
sentence, with one a word, a phrase or a letter. A sentence is made by rule from the question; where no rule fits, the
answer stays short and says so in its prompt.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pumice.data.render.page import Question
from pumice.data.render.registry import Style

Form = Literal["plain", "phrase", "sentence", "choice", "yesno"]

PHRASE = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
ABSENT = "not in the document"
"""The answer to a question that the document doesn't answer; such questions have the task "absent"."""

LONG = 80
"""Characters from which an answer is a text of its own (a transcript, JSON, a table, a sum worked out), asked for as
it is."""
MOST = 10
"""Exchanges about one example."""

_SAID = (
    (r"Is there (.+) in the picture\?", "Yes, there is {0} in the picture.|No, there isn't {0} in the picture.", ""),
    (r"Are there (.+) in the picture\?", "Yes, there are {0} in the picture.|No, there aren't {0} in the picture.", ""),
    (r"Is (.+) (higher|larger) than ([^,?]+)(?:, yes or no)?\?", "Yes, {0} is {1} than {2}.|No, it isn't.", ""),
    (r"Which shop is this receipt from\?", "The receipt is from {a}.", "Is this receipt from {a}?"),
    (r"Where was this bought\?", "It was bought at {a}.", "Was this bought at {a}?"),
    (r"When was this bought\?", "It was bought on {a}.", "Was this bought on {a}?"),
    (r"In which city is the shop\?", "The shop is in {a}.", "Is the shop in {a}?"),
    (r"What colou?r is (the .+)\?", "{0} is {a}.", "Is {0} {a}?"),
    (r"What does (?!the)(.+) cost\?", "{0} costs {a}.", "Does {0} cost {a}?"),
    (r"How many (.+) are (there|listed|shown)\?", "There are {a} {0}.", "Are there {a} {0}?"),
    (r"Which picture (shows [^:]+|is the odd one out): .+\?", "The {a} picture {0}.", ""),
    (r"In which direction does (the .+) move: .+\?", "{0} moves {a}.", "Does {0} move {a}?"),
    (r"Which appears first: .+\?", "The {a} appears first.", ""),
    (r"Which is (higher|larger)(?: for [^,]+)?, .+\?", "{a} is {0}.", ""),
    (r"Which (?!object|shape|picture|field|label)\w+ ((?:has|costs|is) [^:?]+)\?", "{a} {0}.", ""),
    (r"Who is (the .+)\?", "{0} is {a}.", "Is {a} {0}?"),
    (r"(?:What|How much) is (the [^,:?]+)\?", "{0} is {a}.", "Is {0} {a}?"),
    (r"How much is (?!it\b)([^,:?]+)\?", "{0} is {a}.", "Is {0} {a}?"),
)
RULES = tuple((re.compile(pattern), sentence, check) for pattern, sentence, check in _SAID)
"""(question, the answer as a sentence, the same as a question for yes or no). {0} {1} are the pattern's groups, {a} the
answer. Two sentences between | are for yes and no. The first pattern that fits counts."""

BARE = frozenset({"naming", "class", "leftright", "difference", "where"})
"""Tasks whose answers are nouns without an article, which no sentence can be made of by rule."""


AS_IT_IS = frozenset({"text_only"})
"""Tasks whose questions say themselves what form the answer has."""


@dataclass(frozen=True)
class Exchange:
    """One question as asked, its answer, the task that it counts for, and the form of the answer."""

    question: str
    answer: str
    task: str
    form: Form


def dress(rng: random.Random, questions: Sequence[Question], style: Style = "papers") -> tuple[Exchange, ...]:
    """Exchanges about one example, no two of which ask the same.

    ``short`` asks everything as it is and answers in a few words, as the embedded evaluation does.
    """
    if style == "short":
        return tuple(Exchange(q.text, q.answer, q.task, "plain") for q in questions)[:MOST]
    out: dict[str, Exchange] = {}
    for question in questions:
        others = [q.answer for q in questions if q.task == question.task]
        for exchange in _dressed(rng, question, others):
            out.setdefault(exchange.question.lower(), exchange)
    # In any order, or the second question of a pair would tell what the first one's answer was.
    return tuple(rng.sample(list(out.values()), len(out)))[:MOST]


def _dressed(rng: random.Random, question: Question, others: Sequence[str]) -> list[Exchange]:
    """One question in a form that fits it; a pair, where it becomes one of yes and one of no."""
    answer = question.answer
    whole = len(answer) > LONG or "\n" in answer or " = " in answer or answer[:1] in "{[<|"
    if whole or question.task in AS_IT_IS:
        return [Exchange(question.text, answer, question.task, "plain")]
    wrong = wrong_answers(rng, question, others)
    makers = {"phrase": 4, "sentence": 3, "yesno": 2 * bool(wrong), "choice": 2 * bool(wrong)}
    for form in _order(rng, makers):
        if found := _as(rng, form, question, wrong):
            return found
    return [_phrase(question)]


def _order(rng: random.Random, weights: dict[str, int]) -> list[str]:
    """The names in a random order, those of more weight rather first."""
    left = {name: weight for name, weight in weights.items() if weight}
    order = []
    while left:
        order.append(rng.choices(list(left), list(left.values()))[0])
        del left[order[-1]]
    return order


def _as(rng: random.Random, form: str, question: Question, wrong: list[str]) -> list[Exchange]:
    """The question in one form, or nothing where it can't have it."""
    if form == "sentence":
        text = sentence(question)
        return [Exchange(question.text, text, question.task, "sentence")] if text else []
    if form == "choice":
        return [_choice(rng, question, wrong)]
    if form == "yesno":
        return _pair(rng, question, wrong[0])
    return [_phrase(question)]


def _phrase(question: Question) -> Exchange:
    return Exchange(f"{question.text}\n{PHRASE}", question.answer, question.task, "phrase")


def _choice(rng: random.Random, question: Question, wrong: list[str]) -> Exchange:
    options = rng.sample([question.answer, *wrong[:3]], 1 + len(wrong[:3]))
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip("ABCD", options, strict=False))
    letter = "ABCD"[options.index(question.answer)]
    return Exchange(f"{question.text}\n{listed}\n{LETTER}", letter, question.task, "choice")


def _pair(rng: random.Random, question: Question, wrong: str) -> list[Exchange]:
    """The right answer and a wrong one, each with yes or no; in random order."""
    texts = [(check(question, value), said) for value, said in ((question.answer, "Yes"), (wrong, "No"))]
    if not texts[0][0]:
        return []
    rng.shuffle(texts)
    return [Exchange(f"{text}\n{PHRASE}", said, question.task, "yesno") for text, said in texts]


def sentence(question: Question) -> str:
    """The answer as a sentence, or nothing where no rule fits the question."""
    if question.task == "absent":
        return f"It is {ABSENT}."
    if question.task in BARE:
        return ""
    for pattern, said, _ in RULES:
        if found := pattern.fullmatch(question.text):
            yes, _, no = said.partition("|")
            said = no if question.answer.lower() == "no" else yes
            if "{a}" in said and question.answer.lower() in ("yes", "no", "0", "1"):
                return ""
            return _filled(said, found, question.answer)
    return ""


def check(question: Question, value: str) -> str:
    """The question whether a value is the answer, or nothing where no rule fits."""
    for pattern, _, asked in RULES:
        if found := pattern.fullmatch(question.text):
            return _filled(asked, found, value)
    return ""


def _filled(text: str, found: re.Match[str], value: str) -> str:
    text = text.format(*found.groups(), a=value)
    return (text[:1].upper() + text[1:]).replace("..", ".")


def wrong_answers(rng: random.Random, question: Question, others: Sequence[str]) -> list[str]:
    """Answers that are wrong but near, best first: other things of the same sort in the picture, then a digit off."""
    answer, numeric = question.answer, question.task.startswith("chart")
    if question.task == "absent" or answer.lower() in ("yes", "no") or answer.lower() in question.text.lower():
        return []
    found = dict.fromkeys(rng.sample(list(others), len(others)))
    found |= dict.fromkeys(_digit_off(rng, answer) for _ in range(4))
    return [text for text in found if text.lower() != answer.lower() and _apart(text, answer, numeric)]


def _digit_off(rng: random.Random, text: str) -> str:
    """The text with the last digit of one of its numbers one higher or lower (9 below 0)."""
    ends = [match.end() - 1 for match in re.finditer(r"\d+", text)]
    if not ends:
        return text
    at = rng.choice(ends)
    return f"{text[:at]}{(int(text[at]) + rng.choice((1, 9))) % 10}{text[at + 1 :]}"


def _apart(a: str, b: str, numeric: bool) -> bool:
    """Whether nobody would take one for the other: values that are read off an axis aren't exact."""
    try:
        first, second = (float(text.rstrip("%").replace(",", "")) for text in (a, b))
    except ValueError:
        return True
    return not numeric or abs(first - second) > 0.15 * max(abs(first), abs(second))
