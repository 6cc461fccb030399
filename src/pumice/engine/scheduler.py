"""Continuous batching: sequences join and leave between passes, and each pass takes what all of them need next.

    Job ──admit (room, known prefix)──> running ──pass: chunks of prompts being read + one token of each that answers──┐
     Choice of every answering sequence <──sampler── head <── rows of the latter <── Decoder.forward, once <───────────┘

The tree holds prompts without their last token. That one belongs to the sequence itself, so that even a prompt that is
wholly known has a token to run, and every answer's first token comes out of a pass like any other token's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pumice.engine.memory import Memory, cache_dtype
from pumice.engine.pictures import Picture, Pictures
from pumice.engine.prefix import Keys, Node, PrefixTree
from pumice.engine.sampler import Choice, Sampler, choose_all
from pumice.engine.segments import Decoder, Segment, Span
from pumice.model.assistant import AssistantModel
from pumice.types import IMAGE, Features, PumiceError


@dataclass(eq=False)
class Job:
    """A prompt to continue by up to ``max_tokens`` tokens, and where it stands.

    ids       (T,) int64 with IMAGE at visual tokens; ``pictures`` stand at ``places``
    keys      (T,) of the prefix tree
    node      its last node in the tree, None until it is admitted; ``own`` holds what follows
    fed       tokens that went into ``own``, the last of the prompt first; ``next`` is the one to go in
    cached    tokens that were in the tree when it came
    reading   whether tokens of the prompt are to be read before it can answer
    """

    ids: Tensor
    keys: Keys
    pictures: list[Picture]
    places: list[int]
    max_tokens: int
    sampler: Sampler
    space: str = ""
    node: Node | None = None
    own: Segment | None = None
    fed: list[int] = field(default_factory=list)
    next: int = 0
    cached: int = 0
    reading: bool = True

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Reading:
    """A part of a prompt that a pass reads: tokens ``first:last`` of the job's, into ``node``."""

    job: Job
    node: Node
    first: int
    last: int


class PassError(Exception):
    """A pass went wrong; ``jobs`` took part in it, and none of them went on."""

    def __init__(self, jobs: list[Job], cause: Exception) -> None:
        super().__init__(f"{type(cause).__name__}: {cause}")
        self.jobs, self.cause = jobs, cause


class Scheduler:
    """Jobs that run, on one model.

    ``budget`` is how many tokens are held in memory, ``batch`` how many jobs run at once, ``chunk`` how many tokens of
    prompts a pass reads, ``views`` how many tiles go through the tower before it, ``pictures`` the bytes of visual
    tokens that are remembered.
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
    ) -> None:
        self.model, self.decoder = model, decoder
        self.memory = Memory(model, budget, cache_dtype(model, decoder))
        self.tree = PrefixTree(self.memory)
        self.pictures = Pictures(model, pictures)
        self.batch, self.chunk, self.views = batch, chunk, views
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
        entered = self.tree.enter(job.space, job.keys[:-1], job.max_tokens)
        if entered is None:
            return False
        job.node, job.cached = entered
        job.own = self.memory.new(job.max_tokens, len(job) - 1)
        self.running.append(job)
        return True

    def remove(self, job: Job) -> None:
        """End a job, running or not. What was read of its prompt and what it answered stay in the tree."""
        self.pictures.release(job.pictures)
        job.pictures = []
        if job.node is not None:
            assert job.own is not None
            fed = np.array(job.fed[: job.own.length], np.int64)
            self.running.remove(job)
            node, own, job.node, job.own = job.node, job.own, None, None
            self.tree.leave(node, fed, own)

    def step(self) -> list[tuple[Job, Choice | PumiceError]]:
        """One pass: what was chosen for every job that answers, or why nothing could be.

        Raises:
            PassError: the pass failed. What was read before it is there, what it was to read isn't.
        """
        part: list[Job] = []
        try:
            for job in self.running:
                if job.reading and _unread(job) is None:
                    self._has_read(job)
            answering = [job for job in self.running if not job.reading]
            part += answering
            readings = self._readings(part)
            if not answering and not readings:
                return []
            hidden = self._forward(readings, answering)
            if not answering:
                return []
            chosen = choose_all([job.sampler for job in answering], self.decoder.head(hidden).float())
        except Exception as error:
            raise PassError(part, error) from error
        for job, choice in zip(answering, chosen, strict=True):
            if isinstance(choice, Choice):
                job.next = choice.id
        return list(zip(answering, chosen, strict=True))

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
            node = _unread(job) if job.reading else None
            if node is not None:
                turns.setdefault(node, job)
        if not turns:
            return []
        part += turns.values()
        self._look(turns)
        first, *others = turns
        room = self.chunk - min(_left(first), self.chunk // 2)
        readings = []
        for node in sorted(others, key=_left):
            readings.append(_reading(turns[node], node, room))
            room -= readings[-1].last - readings[-1].first
        used = sum(reading.last - reading.first for reading in readings)
        readings.append(_reading(turns[first], first, self.chunk - used))
        return [reading for reading in readings if reading.last > reading.first]

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

    def _forward(self, readings: Sequence[Reading], answering: Sequence[Job]) -> Tensor:
        """Run the new tokens and count them. Last hidden states (len(answering), H) of the jobs that answer."""
        spans: list[Span] = []
        positions: list[Tensor] = []
        row = 0
        for one in readings:
            spans.append(Span(row, row + one.last - one.first, _segments(one.node)))
            positions.append(torch.arange(one.first, one.last))
            row = spans[-1].last
        for number, job in enumerate(answering, row):
            assert job.node is not None
            assert job.own is not None
            spans.append(Span(number, number + 1, (*_segments(job.node), job.own)))
        positions.append(torch.tensor([job.own.end for job in answering if job.own is not None], dtype=torch.int64))
        embedded = self._embedded(readings, answering)
        hidden = self.decoder.forward(embedded, torch.cat(positions).to(embedded.device), spans)
        for one in readings:
            one.node.segment.length += one.last - one.first
        for job in answering:
            assert job.own is not None
            job.own.length += 1
            job.fed.append(job.next)
        return hidden[row:]

    def _embedded(self, readings: Sequence[Reading], answering: Sequence[Job]) -> Tensor:
        """Input embeddings (T, H) of the pass: words from the table, visual tokens from their pictures."""
        table = self.model.lm.get_input_embeddings()
        last = torch.tensor([job.next for job in answering], dtype=torch.int64)
        ids = torch.cat([*(one.job.ids[one.first : one.last] for one in readings), last])
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


def _unread(job: Job) -> Node | None:
    """The first node of a job's prompt that isn't read to its end."""
    assert job.node is not None
    return next((node for node in job.node.path() if not node.whole), None)


def _left(node: Node) -> int:
    """Tokens of a node that are still to be read."""
    return len(node.keys) - node.segment.length


def _segments(node: Node) -> tuple[Segment, ...]:
    return tuple(one.segment for one in node.path())


def _reading(job: Job, node: Node, room: int) -> Reading:
    """Up to ``room`` further tokens of a node, but none of a picture whose visual tokens aren't there."""
    first = node.segment.end
    last = first + min(room, _left(node))
    for place, picture in zip(job.places, job.pictures, strict=True):
        if picture.tokens is None and place < last and place + picture.layout.tokens > first:
            last = max(place, first)
            break
    return Reading(job, node, first, last)
