"""How sure a model was of a value: the mean probability of its tokens, exp(mean log-probability).

{"items": [{"price": "1.50"}]} ──spans──> items 10:29, items[0].price 21:27 ──tokens that overlap──> confidence by label
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

DEEP = 32
"""Levels of an answer that are looked into."""


def label(steps: Sequence[str | int]) -> str:
    """Where a value is, as it is written: items[0].price."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    return text.removeprefix(".")


def confidences(text: str, tokens: Sequence[tuple[int, float]], logprob: float | None) -> dict[str, float]:
    """Confidence of every value in a valid JSON object, inner ones too, by label.

    ``tokens`` are (end in characters, log-probability); without any, ``logprob`` stands for all.
    """
    found: dict[str, float] = {}
    for steps, first, last in _spans(text):
        begins, own = 0, []
        for ends, chance in tokens:
            if begins < last and ends > first:
                own.append(chance)
            begins = ends
        confidence = mean(own) if own else sure(logprob)
        if confidence is not None:
            found[label(steps)] = confidence
    return found


def mean(logprobs: Any) -> float | None:
    """exp(mean) of log-probabilities; None of none."""
    values = list(logprobs)
    return sure(math.fsum(values) / len(values)) if values else None


def sure(logprob: float | None) -> float | None:
    """exp of a log-probability, to four digits."""
    return None if logprob is None else round(math.exp(logprob), 4)


def _spans(text: str) -> Iterator[tuple[tuple[str | int, ...], int, int]]:
    """(steps, first, last character + 1) of the values in a JSON object, outer ones before inner ones."""
    decoder = json.JSONDecoder()
    waiting: list[tuple[tuple[str | int, ...], int]] = [((), _skip(text, 0))]
    while waiting:
        steps, first = waiting.pop()
        value, last = decoder.raw_decode(text, first)
        if steps:
            yield steps, first, last
        if isinstance(value, dict | list) and len(steps) < DEEP:
            inner = _members(text, first, decoder)
            waiting += reversed([((*steps, step), place) for step, place in inner])


def _members(text: str, place: int, decoder: json.JSONDecoder) -> list[tuple[str | int, int]]:
    """(name or number, first character) of what the object or list at ``place`` holds."""
    named, found = text[place] == "{", []
    place = _skip(text, place + 1)
    while text[place] not in "}]":
        step: str | int = len(found)
        if named:
            step, place = decoder.raw_decode(text, place)
            place = _skip(text, _skip(text, place) + 1)  # behind the colon
        found.append((step, place))
        _, place = decoder.raw_decode(text, place)
        place = _skip(text, place)
        place = _skip(text, place + 1) if text[place] == "," else place
    return found


def _skip(text: str, place: int) -> int:
    while text[place] in " \t\r\n":
        place += 1
    return place
