"""Prompts on their way to answers, and what a pass takes of them.

Job ──its first unread node──> Reading: a part of its prompt ──the end is read──> Writing: its answer goes on
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from pumice.engine.lookup import Guesser
from pumice.engine.pictures import Picture
from pumice.engine.prefix import Keys, Node
from pumice.engine.sampler import Sampler
from pumice.engine.segments import Segment


@dataclass(eq=False)
class Job:
    """A prompt to continue by up to ``max_tokens`` tokens, and where it stands.

    ids       (T,) int64 with IMAGE at visual tokens; ``pictures`` stand at ``places``
    keys      (T,) of the prefix tree
    node      its last node in the tree, None until it is admitted; ``own`` holds what follows
    fed       tokens that went into ``own``; ``next`` goes in then: the prompt's last, or the one chosen last
    cached    tokens that were in the tree when it came
    reading   whether tokens of the prompt are to be read into the tree before it can answer
    guesser   guesses its answer's tokens, where they are looked up
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
    guesser: Guesser | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def unread(self) -> Node | None:
        """The first node of its prompt that isn't read to its end."""
        assert self.node is not None
        return next((node for node in self.node.path() if not node.whole), None)


@dataclass(frozen=True)
class Reading:
    """A part of a prompt that a pass reads: tokens ``first:last`` of the job's, into ``node``."""

    job: Job
    node: Node
    first: int
    last: int

    @property
    def ends(self) -> bool:
        """Whether it reads the prompt's end: the answer begins."""
        return self.last == len(self.job)


@dataclass(frozen=True)
class Writing:
    """What a pass takes of an answer: the token chosen last, and guesses of those that follow; nothing as it begins."""

    job: Job
    ids: list[int]

    @property
    def guess(self) -> list[int]:
        """Those that are guesses."""
        return self.ids[1:]


def reading_of(job: Job, node: Node, room: int) -> Reading:
    """Up to ``room`` further tokens of a node, but none of a picture whose visual tokens aren't there."""
    first = node.segment.end
    last = first + min(room, node.left)
    for place, picture in zip(job.places, job.pictures, strict=True):
        if picture.tokens is None and place < last and place + picture.layout.tokens > first:
            last = max(place, first)
            break
    return Reading(job, node, first, last)
