"""Pictures of requests that wait, decoded beside the passes.

    waiting requests, in their order ──as far as there is room for pixels──> threads ──encode──> Features, digests

Whoever submits doesn't wait for it (a server's event loop must not), and neither do the passes. What can't be decoded
becomes that request's error.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from pumice.encode import Processor, encode
from pumice.engine.counting import is_open
from pumice.engine.pictures import digests
from pumice.engine.ticket import Request
from pumice.types import Features, PumiceError

logger = logging.getLogger(__name__)


class MediaReader:
    """Decodes up to ``decoded`` bytes of pixels ahead, on ``threads`` threads; ``ready`` is called after each request.

    Without threads a request is decoded when it is asked for.
    """

    def __init__(self, processor: Processor, threads: int, decoded: int, ready: Callable[[], None]) -> None:
        self.processor, self.decoded, self.ready = processor, decoded, ready
        self._threads = ThreadPoolExecutor(threads, "pumice-reader") if threads else None

    def ahead(self, waiting: Iterable[Request]) -> None:
        """Begin with the requests that come next."""
        if self._threads is None:
            return
        room, side = self.decoded, self.processor.policy.tile
        for place, request in enumerate(waiting):
            room -= request.count.views * 3 * side**2 * 4
            if room < 0 and place:
                break
            if not request.reading:
                request.reading = True
                self._threads.submit(self._read, request)

    def read(self, request: Request) -> bool:
        """Whether a request is prepared, or has failed."""
        if self._threads is None and request.prepared is None:
            self._read(request)
        return request.prepared is not None

    def close(self) -> None:
        """Take no more."""
        if self._threads is not None:
            self._threads.shutdown(wait=False)

    def _read(self, request: Request) -> None:
        asked = request.asked
        if asked is None:
            return  # cancelled meanwhile
        try:
            prompt = asked if isinstance(asked, Features) else encode(asked, self.processor, is_open(asked))
            request.prepared = prompt, digests(prompt)
        except PumiceError as error:
            request.prepared = error
        except Exception as error:
            logger.exception("a request's pictures can't be decoded")
            request.prepared = PumiceError(f"a picture of the request can't be decoded ({type(error).__name__})")
        self.ready()
