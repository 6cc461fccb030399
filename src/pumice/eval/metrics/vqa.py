"""Scores of short answers as the public benchmarks count them: ANLS and the two VQA accuracies. Pure Python.

    answer, references ──normaliser of the benchmark──> compare ──> 0 to 1 a question; a benchmark's score is the mean

Each equals the function of lmms-eval 0.7.3, slips included: a figure that differs from the published scripts can't be
set beside theirs. The slips are named where they are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pumice.eval.metrics.strings import levenshtein

NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6"}
NUMBERS |= {"seven": "7", "eight": "8", "nine": "9", "ten": "10"}
ARTICLES = frozenset({"a", "an", "the"})
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
"""In the order in which they are replaced."""

CONTRACTED = """
    ain't aren't can't couldn't didn't doesn't don't hadn't hasn't haven't isn't mightn't mustn't needn't oughtn't
    shan't shouldn't wasn't weren't won't wouldn't could've might've must've not've should've what've where've
    who've would've we've they've you've couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've
    somebody'd've someone'd've something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'd've you'd've
    he'd how'd it'd someone'd something'd there'd they'd where'd who'd you'd how'll it'll somebody'll someone'll
    something'll they'll what'll who'll why'll y'all'll you'll there're they're what're why're you're he's how's
    somebody's someone's that's there's what's when's where's who's why's ma'am o'clock 'twas y'all 'ow's'at
"""
MENDED = {word[:i] + word[i + 1 :]: word for word in CONTRACTED.split() for i, sign in enumerate(word) if sign == "'"}
"""A contraction without one of its apostrophes, to the whole. One entry of the published table runs backwards."""
MENDED["somebody'd"] = "somebodyd"

# Meant to spare the point after a digit: a mistyped look-behind, so that only the look-ahead works.
_POINT = re.compile(r"\.(?!\d)")
_DIGIT_COMMA = re.compile(r"\d,+\d")
_POINTS = 32
"""re.UNICODE, which the published code passes where ``sub`` takes a count: later points of an answer stay."""


def anls(prediction: str, references: Sequence[str], threshold: float = 0.5) -> float:
    """Average normalised Levenshtein similarity of one question (DocVQA, InfoVQA): the best over its references.

    Case and runs of white space don't count as edits, yet the length divided by is that of the texts as given, in
    capitals ("ß" counts 2). A similarity below ``threshold`` is 0; one of exactly 0.5 stays, other than in the paper.

    Raises:
        ValueError: there is no reference.
    """
    if not references:
        raise ValueError("no reference answers; ANLS needs at least one")
    similarity = 1 - min(_distance(prediction, reference) for reference in references)
    return similarity if similarity >= threshold else 0.0


def _distance(prediction: str, reference: str) -> float:
    length = max(len(prediction.upper()), len(reference.upper()))
    plain = (" ".join(text.strip().lower().split()) for text in (prediction, reference))
    return levenshtein(*plain) / length if length else 0.0


def vqa_accuracy(prediction: str, references: Sequence[str]) -> float:
    """VQA's soft accuracy of TextVQA and VizWiz: the mean over leaving out one human of min(others that agree / 3, 1).

    Of ten humans 1, 2, 3, 4 that agree give 0.3, 0.6, 0.9, 1. Both sides go through `normalise_textvqa`, always; the
    VQA server normalises the humans' answers less, and not at all where they are unanimous.

    Raises:
        ValueError: there is no reference.
    """
    return _soft([normalise_textvqa(text) for text in references], normalise_textvqa(prediction))


def vqav2_accuracy(prediction: str, references: Sequence[str]) -> float:
    """`vqa_accuracy` as VQAv2 normalises: see `normalise_vqav2`.

    Raises:
        ValueError: there is no reference.
    """
    return _soft([normalise_vqav2(text) for text in references], normalise_vqav2(prediction))


def _soft(references: list[str], prediction: str) -> float:
    if not references:
        raise ValueError("no reference answers; VQA accuracy needs at least one")
    agree, humans = references.count(prediction), len(references)
    # Leaving out one of those that agree leaves one fewer to agree with.
    return (agree * min(1, (agree - 1) / 3) + (humans - agree) * min(1, agree / 3)) / humans


def normalise_textvqa(text: str) -> str:
    """An answer as EvalAI's TextVQA and VizWiz compare it.

    Lower case, "," and "?" dropped, "'s" a word of its own; then as `normalise_vqav2`.
    """
    return normalise_vqav2(text.lower().replace(",", "").replace("?", "").replace("'s", " 's"))


def normalise_vqav2(text: str) -> str:
    """An answer as VQAv2 compares it: punctuation, case, number words to ten, articles, contractions.

    A sign of PUNCTUATION is dropped where the text has it beside a blank, or has a comma between digits anywhere; else
    it becomes a blank. A point is dropped unless a digit follows.
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    digits, out = bool(_DIGIT_COMMA.search(text)), text
    for sign in PUNCTUATION:
        beside = f"{sign} " in text or f" {sign}" in text
        out = out.replace(sign, "" if beside or digits else " ")
    words = [NUMBERS.get(word, word) for word in _POINT.sub("", out, count=_POINTS).lower().split()]
    return " ".join(MENDED.get(word, word) for word in words if word not in ARTICLES)
