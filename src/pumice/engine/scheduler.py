"""Continuous batching: sequences join and leave between passes, and each pass takes what all of them need next.

    Job ──admit (room, known prefix)──> running ──pass: chunks of prompts being read + tokens of each that answers──┐
     choices for every sequence that goes on <──samplers── head <── their rows <── Decoder.forward, once <──────────┘

A prompt is read into the tree, and the pass that reads its end chooses the answer's first token. Of a prompt that is
known to its end the last token is read again, as the sequence's own, so that there is a pass to choose it in. An answer
takes the token chosen last, and guesses of those behind it (lookup.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from pumice.engine.jobs import Job, Reading, Writing, reading_of
from pumice.engine.lookup import Guesser, choose_guessed
from pumice.engine.memory import Memory, cache_dtype
from pumice.engine.pictures import Picture, Pictures
from pumice.engine.prefix import Node, PrefixTree
from pumice.engine.sampler import Choice, Sampler
from pumice.engine.segments import Decoder, Span
from pumice.model.assistant import AssistantModel
from pumice.types import IMAGE, Features, PumiceError


class PassError(Exception):
    """A pass went wrong; ``jobs`` took part in it, and none of them went on."""

    def __init__(self, jobs: list[Job], cause: Exception) -> None:
        super().__init__(f"{type(cause).__name__}: {cause}")
        self.jobs, self.cause = jobs, cause


class Scheduler:
    """Jobs that run, on one model.

    ``budget`` is how many tokens are held in memory, ``batch`` how many jobs run at once, ``chunk`` how many tokens of
    prompts a pass reads, ``views`` how many tiles go through the tower before it, ``pictures`` the bytes of visual
    tokens that are remembered, ``tower`` what stands for the model's. Guesses fill a pass up to 1 + ``lookup`` tokens;
    ``guessed`` were made, ``right`` of them were right.
    """

    def __init__(
        self,
        model: AssistantModel,
        decoder: Decoder,
        budget: int,
        batch: int = 32,
        chunk: int = 512,
        views: int = 16,
        pictures: int = 256 * 2**20,
        tower: Callable[[Tensor], Tensor] | None = None,
        lookup: int = 0,
    ) -> None:
        self.model, self.decoder = model, decoder
        self.memory = Memory(model, budget, cache_dtype(model, decoder))
        self.tree = PrefixTree(self.memory)
        self.pictures = Pictures(model, pictures, tower)
        self.batch, self.chunk, self.views, self.lookup = batch, chunk, views, lookup
        self.guessed, self.right = 0, 0
        self.running: list[Job] = []

    def job(self, prompt: Features, names: Sequence[bytes], max_tokens: int, sampler: Sampler, space: str = "") -> Job:
        """A job of a prompt whose pictures' `digests` are ``names``. It holds its pictures until it is removed.

        Raises:
            PumiceError: visual tokens in the prompt's ids and in its layouts differ in number.
        """
        keys, places, count = prompt.ids.numpy().copy(), [], 0
        seen, expected = np.flatnonzero(keys == IMAGE), sum(placed.tokens for placed in prompt.layouts)
        if len(seen) != expected:
            raise PumiceError(f"the prompt has {len(seen)} visual tokens, its layouts {expected}")
        pictures = self.pictures.take(space, prompt, names)
        for picture in pictures:
            tokens = picture.layout.tokens
            keys[seen[count : count + tokens]] = np.arange(picture.key, picture.key - tokens, -1)
            places.append(int(seen[count]))
            count += tokens
        return Job(prompt.ids, keys, pictures, places, max_tokens, sampler, space, next=int(prompt.ids[-1]))

    def admit(self, job: Job) -> bool:
        """Let a job run, if there is room for all that it may need."""
        if len(self.running) >= self.batch:
            return False
        again = int(self.tree.known(job.space, job.keys) == len(job))
        keys, room = job.keys[: len(job) - again], job.max_tokens - 1 + again
        entered = self.tree.enter(job.space, keys, room)
        if entered is None:
            return False
        job.node, job.cached = entered
        job.own = self.memory.new(room, len(keys))
        job.guesser = Guesser(job.ids.tolist()) if self.lookup else None
        self.running.append(job)
        return True

    def remove(self, job: Job) -> None:
        """End a job, running or not. What was read of its prompt and what it answered stay in the tree."""
        self.pictures.release(job.pictures)
        job.pictures = []
        if job.node is not None:
            assert job.own is not None
            fed = np.array(job.fed, np.int64)
            self.running.remove(job)
            node, own, job.node, job.own = job.node, job.own, None, None
            self.tree.leave(node, fed, own)

    def step(self) -> list[tuple[Job, list[Choice | PumiceError]]]:
        """One pass: the tokens chosen for every job that goes on, at least one each, or as the last why none could be.

        Raises:
            PassError: the pass failed. What was read before it is there, what it was to read isn't.
        """
        part: list[Job] = []
        try:
            for job in self.running:
                if job.reading and job.unread() is None:
                    self._has_read(job)
            answering = [job for job in self.running if not job.reading]
            part += answering
            readings = self._readings(part)
            if not answering and not readings:
                return []
            writings = self._writings(answering, sum(one.last - one.first for one in readings))
            hidden = self._forward(readings, writings)
            going = [*(Writing(one.job, []) for one in readings if one.ends), *writings]
            if not going:
                return []
            scores = self.decoder.head(hidden).float()
            chosen = choose_guessed([one.job.sampler for one in going], scores, [one.guess for one in going])
        except Exception as error:
            raise PassError(part, error) from error
        for one, choices in zip(going, chosen, strict=True):
            self._go_on(one, choices)
        return [(one.job, choices) for one, choices in zip(going, chosen, strict=True)]

    def _go_on(self, writing: Writing, choices: Sequence[Choice | PumiceError]) -> None:
        """Keep of what went into an answer as much as was guessed right, and what was chosen behind it."""
        job, said = writing.job, [choice.id for choice in choices if isinstance(choice, Choice)]
        assert job.own is not None
        if job.reading:
            self._has_read(job)
        job.fed += writing.ids[: len(choices)]
        job.own.length = len(job.fed)
        job.next = said[-1] if said else job.next
        self.guessed += len(writing.guess)
        self.right += len(choices) - 1
        if job.guesser is not None:
            job.guesser.learn(len(writing.guess), said)

    def _has_read(self, job: Job) -> None:
        """The prompt has been read: its pictures aren't needed any more."""
        self.pictures.release(job.pictures)
        job.pictures, job.reading = [], False

    def _readings(self, part: list[Job]) -> list[Reading]:
        """What the pass reads. Each node is read by the first job that needs it, which joins ``part``.

        The job that came first gets half of the chunk and what is left over, so that it is done some time; the rest
        goes to those that have the least left to read, so that a question needn't wait for a long document.
        """
        turns: dict[Node, Job] = {}
        for job in self.running:
            node = job.unread() if job.reading else None
            if node is not None:
                turns.setdefault(node, job)
        if not turns:
            return []
        part += turns.values()
        self._look(turns)
        first, *others = turns
        room = self.chunk - min(first.left, self.chunk // 2)
        readings = []
        for node in sorted(others, key=lambda node: node.left):
            readings.append(reading_of(turns[node], node, room))
            room -= readings[-1].last - readings[-1].first
        used = sum(reading.last - reading.first for reading in readings)
        readings.append(reading_of(turns[first], first, self.chunk - used))
        return [reading for reading in readings if reading.last > reading.first]

    def _writings(self, answering: Sequence[Job], reading: int) -> list[Writing]:
        """What goes on of the answers, beside so many tokens ``reading``.

        A token more costs a pass little only where it has few: guesses share what is left of 1 + ``lookup``.
        """
        each = max(0, 1 + self.lookup - reading - len(answering)) // max(1, len(answering))
        writings = []
        for job in answering:
            assert job.own is not None
            room = min(each, job.own.capacity - job.own.length - 1)
            guess = job.guesser.guess(room) if job.guesser is not None and room > 0 else []
            writings.append(Writing(job, [job.next, *guess]))
        return writings

    def _look(self, turns: dict[Node, Job]) -> None:
        """Run the tower for pictures that are about to be read, and with what is left for those further behind."""
        soon: list[Picture] = []
        later: list[Picture] = []
        for node, job in turns.items():
            for place, picture in zip(job.places, job.pictures, strict=True):
                if place + picture.layout.tokens > node.segment.end:
                    (soon if place < node.segment.end + self.chunk else later).append(picture)
        if any(picture.tokens is None for picture in soon):
            self.pictures.look([*soon, *later], self.views)

    def _forward(self, readings: Sequence[Reading], writings: Sequence[Writing]) -> Tensor:
        """Run the new tokens, and count those of prompts. Last hidden states (R, H) of prompts' ends and of answers."""
        spans: list[Span] = []
        positions: list[Tensor] = []
        ends: list[int] = []
        row = 0
        for one in readings:
            spans.append(Span(row, row + one.last - one.first, one.node.segments()))
            positions.append(torch.arange(one.first, one.last))
            row = spans[-1].last
            ends += [row - 1] * one.ends
        ends += range(row, row + sum(len(one.ids) for one in writings))
        for one in writings:
            assert one.job.node is not None
            assert one.job.own is not None
            spans.append(Span(row, row + len(one.ids), (*one.job.node.segments(), one.job.own)))
            positions.append(torch.arange(one.job.own.end, one.job.own.end + len(one.ids)))
            row = spans[-1].last
        embedded = self._embedded(readings, writings)
        hidden = self.decoder.forward(embedded, torch.cat(positions).to(embedded.device), spans)
        for one in readings:
            one.node.segment.length += one.last - one.first
        return hidden[ends]

    def _embedded(self, readings: Sequence[Reading], writings: Sequence[Writing]) -> Tensor:
        """Input embeddings (T, H) of the pass: words from the table, visual tokens from their pictures."""
        table = self.model.lm.get_input_embeddings()
        said = torch.tensor([token for one in writings for token in one.ids], dtype=torch.int64)
        ids = torch.cat([*(one.job.ids[one.first : one.last] for one in readings), said])
        embedded = table(ids.clamp(min=0).to(self.model.device))
        row = 0
        for one in readings:
            for place, picture in zip(one.job.places, one.job.pictures, strict=True):
                a, b = max(place, one.first), min(place + picture.layout.tokens, one.last)
                if a < b:
                    assert picture.tokens is not None
                    embedded[row + a - one.first : row + b - one.first] = picture.tokens[a - place : b - place]
            row += one.last - one.first
        return embedded
