"""Answers of a model on many machines: a worker of a Ray cluster is an engine of its own.

medium ──its file's bytes, put once──> a worker, the same for all prompts about it while it has room ──> Answer

Answers come back and are kept here, so that a worker that is killed costs only what it was at work on; that is asked
again. The journal's keys are those of a run without a cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from pumice.ray_cluster import Workers
from pumice.read.ask import Answer, Prompt
from pumice.read.askers import Done, EngineAsker
from pumice.types import Media, PumiceError
from pumice.vision.media import Limits

LARGEST = Limits().max_bytes
"""Bytes of a file that are sent; larger ones (videos) are opened by their path, on a disk that all machines share."""


class ClusterAsker:
    """``count`` workers (None: one a GPU, or else a machine), each with a model and ``batch`` answers at a time.

    ``open_assistant`` is called in every worker.

    Raises:
        PumiceError: no cluster, or a worker can't open the model or use a prompt's grammar.
    """

    def __init__(
        self,
        open_assistant: Callable[[], Any],
        max_tokens: int,
        batch: int,
        prompts: Sequence[Prompt],
        count: int | None = None,
    ) -> None:
        def make() -> Callable[..., Any]:
            asker = EngineAsker(open_assistant(), max_tokens, batch, prompts)
            return lambda task, *args: task(asker, *args)

        self._workers = Workers(make, count, slots=batch)
        self.batch = batch * self._workers.count
        self._file: tuple[Any, Any] | None = None
        ends: SimpleQueue[Any] = SimpleQueue()
        self._workers.submit(ends.put, _digest)
        self.digest = ends.get()

    def ask(self, media: Media, prompt: Prompt, done: Done) -> None:
        """Ask as soon as a worker has room."""
        self._submit(done, _ask, media, prompt)

    def find_boxes(self, media: Media, prompt: Prompt, answer: Answer, done: Done) -> None:
        self._submit(done, _find_boxes, media, prompt, answer)

    def close(self) -> None:
        """End the workers."""
        self._workers.close()

    def _submit(self, done: Done, task: Callable[..., Any], media: Media, *args: Any) -> None:
        media, data = self._sent(media)
        self._workers.submit(done, task, self.digest, data, media, *args, near=media.name)

    def _sent(self, media: Media) -> tuple[Media, Any]:
        """A medium without its file, and what stands for the file's bytes; those of one file are sent once.

        Raises:
            PumiceError: the file can't be read any more.
        """
        reference = media.reference
        try:
            if not isinstance(reference, bytes) and Path(reference).stat().st_size > LARGEST:
                return replace(media, reference=str(Path(reference).absolute())), None
            if self._file is None or self._file[0] is not reference:
                data = reference if isinstance(reference, bytes) else Path(reference).read_bytes()
                self._file = (reference, self._workers.put(data))
        except OSError as error:
            raise PumiceError(f"{media.name}: {error.strerror or error}") from None
        return replace(media, reference=b""), self._file[1]


# What a worker does. It is given the run's digest, because a machine may have other weights under the same name.


def _digest(asker: EngineAsker) -> str:
    return asker.digest


def _ask(asker: EngineAsker, digest: str, data: bytes | None, media: Media, prompt: Prompt) -> Answer:
    return _ended(asker, digest, lambda done: asker.ask(_with(media, data), prompt, done))


def _find_boxes(
    asker: EngineAsker, digest: str, data: bytes | None, media: Media, prompt: Prompt, answer: Answer
) -> Answer:
    return _ended(asker, digest, lambda done: asker.find_boxes(_with(media, data), prompt, answer, done))


def _with(media: Media, data: bytes | None) -> Media:
    return media if data is None else replace(media, reference=data)


def _ended(asker: EngineAsker, digest: str, begin: Callable[[Done], None]) -> Answer:
    if asker.digest != digest:
        raise PumiceError("a machine of the cluster has other weights under the model's name than the others")
    ends: SimpleQueue[Answer | PumiceError] = SimpleQueue()
    begin(ends.put)
    end = ends.get()
    if isinstance(end, PumiceError):
        raise end
    return end
