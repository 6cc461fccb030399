"""POST /v1/evidence: the regions of a request's pictures that an answer was read from.

messages, answer ──prepare──> Prompt ──pixels, one forward pass beside the engine's──> {"regions": [...]}
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pumice.evidence import Region, answer_tokens, regions
from pumice.serve.answers import Prompt
from pumice.serve.errors import ApiError, from_error, invalid
from pumice.serve.media import Opener
from pumice.serve.parts import Said
from pumice.serve.schemas import context_error
from pumice.types import Features, PumiceError

WAITING = 16
"""Requests that may wait for the one that is at work: each is as much work as reading the whole prompt anew."""


def with_answer(said: Sequence[Said], answer: str) -> list[Said]:
    """A request's messages and the answer to them.

    Raises:
        ApiError: 400, the answer is blank.
    """
    if not answer.strip():
        raise invalid("expected the text whose evidence is wanted", "answer")
    return [*said, Said("assistant", (answer.strip(),))]


class Finder:
    """Finds evidence, for one request at a time."""

    def __init__(self, opener: Opener) -> None:
        self.opener, self.working = opener, 0
        self._thread = ThreadPoolExecutor(1, "evidence")

    async def find(self, prompt: Prompt) -> dict[str, Any]:
        """The body of the answer to messages that end in the text whose evidence is wanted.

        Raises:
            ApiError: 400, it is too long, or a picture can't be decoded; 429, too many wait.
        """
        model, laid = prompt.model, prompt.laid
        if not laid.placed:
            return {"regions": []}
        answer = await asyncio.to_thread(answer_tokens, prompt.opened.sample, model.processor)
        if answer.stop > model.limit:
            raise context_error(answer.start, answer.stop - answer.start, model.limit)
        if self.working > WAITING:
            raise ApiError(429, "queue_full", "evidence of other answers is looked for; try again", retry_after=5)
        self.working += 1
        try:
            await self.opener.room.take(laid.bytes)
            try:
                features = await self.opener.features(model.name, laid, prompt.opened, prompt.space)
                return {"regions": [region_json(one) for one in await self._regions(prompt, features, answer)]}
            finally:
                self.opener.room.give(laid.bytes)
        except PumiceError as error:
            raise from_error(error) from None
        finally:
            self.working -= 1

    async def _regions(self, prompt: Prompt, features: Features, answer: slice) -> list[Region]:
        job = self._thread.submit(regions, prompt.model.engine.model, features, answer)
        return await asyncio.wrap_future(job)

    def close(self) -> None:
        """Begin no more."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def region_json(region: Region) -> dict[str, Any]:
    """A region as README.md has it; ``frame`` is there for videos alone."""
    box = [round(edge, 5) for edge in region.box]
    frame = {} if region.frame is None else {"frame": region.frame}
    return {"media": region.media, **frame, "box": box, "weight": round(region.weight, 5)}
