"""Guesses of what an answer says next, looked up in what has been said: prompt look-up decoding.

    prompt, answer so far ──Guesser: what followed the same last tokens──> guesses ──one pass──> logits of each
                                                      choices, as far as the guesses were right <──choose_guessed──┘

An answer that copies from its prompt (a page's text, JSON in the prompt's form) or repeats itself gets several tokens
out of a pass, which reads the weights once. Every token is chosen by its sampler from the model's own logits, so that
no guess changes an answer. After A. Saxena, "Prompt Lookup Decoding" (2023), and assisted generation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import cycle, islice

from torch import Tensor

from pumice.engine.sampler import Choice, Sampler, choose_all
from pumice.types import PumiceError

ALIKE = (3, 2)
"""How many last tokens have to have been said before, in the order of trying."""


class Guesser:
    """Guesses for one answer, behind the ``ids`` of its prompt; those of visual tokens are negative.

    It begins with one token a guess. A guess that was right to its end doubles the next one's length, and a wrong one
    cuts it to what was right.
    """

    def __init__(self, ids: Iterable[int]) -> None:
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # last tokens -> the place of what came after them, lately
        self._length = 1
        self._add(ids)

    def guess(self, most: int) -> list[int]:
        """Up to ``most`` tokens that may come next; none where there is nothing to go by.

        What has just been said twice is taken to go round.
        """
        for count in ALIKE:
            place = self._after.get(tuple(self._ids[-count:]))
            if place is not None:
                behind = self._ids[place : place + most]
                found = list(islice(cycle(behind), min(most, self._length)))
                return found[: next((n for n, token in enumerate(found) if token < 0), len(found))]
        return []

    def learn(self, guessed: int, said: Sequence[int]) -> None:
        """Go on by the tokens ``said``: all but the last were guessed right, of ``guessed`` in all."""
        if guessed:
            right = len(said) - 1
            self._length = 2 * self._length if right == guessed else max(1, right)
        self._add(said)

    def _add(self, ids: Iterable[int]) -> None:
        for token in ids:
            for count in ALIKE:
                if len(self._ids) >= count:
                    self._after[tuple(self._ids[-count:])] = len(self._ids)
            self._ids.append(token)


def choose_guessed(
    samplers: Sequence[Sampler], logits: Tensor, guesses: Sequence[Sequence[int]]
) -> list[list[Choice | PumiceError]]:
    """The next tokens of every sequence, at least one, by logits (R, V) fp32: 1 + len(guess) rows a sampler.

    The first row of each says what comes next, the one behind a guess what comes after it: it counts if the guess is
    what was chosen. An error is its sequence's last.
    """
    starts, row = [], 0
    for guess in guesses:
        starts.append(row)
        row += 1 + len(guess)
    chosen: list[list[Choice | PumiceError]] = [[] for _ in samplers]
    going, depth = list(range(len(samplers))), 0
    while going:
        rows = [starts[number] + depth for number in going]
        scores = logits if len(rows) == len(logits) else logits[rows]
        found = choose_all([samplers[number] for number in going], scores)
        for number, choice in zip(going, found, strict=True):
            chosen[number].append(choice)
        going = [number for number in going if _guessed(chosen[number][-1], guesses[number][depth : depth + 1])]
        depth += 1
    return chosen


def _guessed(choice: Choice | PumiceError, guess: Sequence[int]) -> bool:
    """Whether a choice is what was guessed for it, and an answer can go on behind it."""
    return isinstance(choice, Choice) and not choice.last and [choice.id] == list(guess)
