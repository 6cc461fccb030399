"""The engine: requests from any thread, answered together.

    submit ──layout: counted, refused or taken──> queue ──pixels decoded beside the passes──> ready ──room──> running
                                                                                                              │ passes
    Ticket <── pieces, Outcome <──────────────────────────────────────────────────────────────────────────────┘

Pictures are decoded by a few threads, ahead of the passes but not far: decoded ones are much larger than their files.
One thread runs the passes, or, with ``start=False``, whoever waits for an answer does.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections import Counter
from collections.abc import Sequence
from weakref import WeakSet

import torch

from pumice.encode import Processor
from pumice.engine.counting import Count, check_memory, check_model, count_tokens
from pumice.engine.decoders import make_decoder, make_tower
from pumice.engine.detokenise import Detokeniser
from pumice.engine.grammar import compile_grammar
from pumice.engine.jobs import Job
from pumice.engine.media import MediaReader
from pumice.engine.memory import cache_dtype, token_bytes
from pumice.engine.request import Finish, Sampling
from pumice.engine.sampler import Choice, Sampler, check_sampling
from pumice.engine.scheduler import PassError, Scheduler
from pumice.engine.segments import Decoder
from pumice.engine.settings import Full, Settings, Stats
from pumice.engine.ticket import Done, Request, Ticket, failure
from pumice.model.assistant import AssistantModel
from pumice.types import Features, PumiceError, Sample

logger = logging.getLogger(__name__)
_started: WeakSet[Engine] = WeakSet()


class Engine:
    """Answers requests about a model; `submit`, `count`, `stats` and `close` may be called from any thread.

    ``decoder`` is chosen by the settings where it isn't given. The weights must not change while there is an engine.

    Raises:
        PumiceError: weights that the model can't have.
    """

    def __init__(
        self,
        model: AssistantModel,
        processor: Processor,
        settings: Settings = Settings(),  # noqa: B008 (frozen)
        decoder: Decoder | None = None,
        start: bool = True,
    ) -> None:
        self.model, self.processor, self.settings = model, processor, settings
        self.decoder = decoder or make_decoder(model, settings.weights)
        self.tower = make_tower(model, settings.weights)
        self.threaded = start
        self._scheduler = self._new_scheduler()
        self._budget = self._scheduler.memory.budget
        self._waiting: list[Request] = []
        self._running: dict[Job, Request] = {}
        self._cancelled: set[Ticket] = set()
        self._counts: Counter[str] = Counter()
        self._gate = threading.Lock()  # of the queue, the cancelled and `closed`
        self._passing = threading.RLock()  # of all else
        self._inside = False
        self._wake = threading.Event()
        self.closed = False
        decoded = int(settings.decoded_mib * 2**20)
        self._reader = MediaReader(processor, settings.readers if start else 0, decoded, self._wake.set)
        self._thread = threading.Thread(target=self._run, name="pumice-engine", daemon=True)
        if start:
            self._thread.start()
            _started.add(self)

    def _new_scheduler(self) -> Scheduler:
        chosen, mib = self.settings, 2**20
        each = token_bytes(self.model, cache_dtype(self.model, self.decoder))
        return Scheduler(
            self.model, self.decoder, int(chosen.memory_mib * mib) // each, chosen.batch, chosen.chunk, chosen.views,
            int(chosen.pictures_mib * mib), self.tower, chosen.lookup,
        )  # fmt: skip

    def submit(
        self,
        asked: Sample | Features,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
        *,
        space: str = "",
        done: Done | None = None,
        strip: bool = False,
    ) -> Ticket:
        """Take a request. Nothing is decoded yet.

        What was read for one ``space`` isn't reused for another. ``done`` is called with every piece and with the end,
        from the engine's thread, and has to be quick; the ticket then gives the end only. ``strip`` leaves out white
        space around the answer.

        Raises:
            PumiceError: more tokens than the model or the memory takes, an unusable sampling, or a closed engine.
            Full: too many requests wait.
        """
        check_sampling(sampling)
        count = self.count(asked)
        check_model(count, sampling.max_tokens, self.processor.max_tokens, self.model.lm.config.max_position_embeddings)
        check_memory(count, sampling.max_tokens, self._budget, self.settings.memory_mib)
        tokenizer = self.processor.tokenizer
        stop_ids = () if sampling.ignore_end else self.processor.stop_ids
        grammar = sampling.grammar and compile_grammar(sampling.grammar, tokenizer, stop_ids)
        text = Detokeniser(tokenizer, sampling.stop, stop_ids, strip)
        request = Request(Ticket(self, done), asked, sampling, space, count, text, grammar, stop_ids)
        with self._gate:
            if self.closed:
                raise PumiceError("the engine is closed")
            if len(self._waiting) >= self.settings.queue:
                raise Full(f"{len(self._waiting)} requests wait already; try again later")
            self._waiting.append(request)
        self._wake.set()
        return request.ticket

    def count(self, asked: Sample | Features) -> Count:
        """Tokens of a prompt, from its layout: no pixel is decoded.

        Raises:
            PumiceError: a text that isn't Unicode, or a picture whose layout can't be made.
        """
        return count_tokens(asked, self.processor)

    def stats(self) -> Stats:
        """Figures of this moment; those of a pass that runs may be half in."""
        scheduler, counts = self._scheduler, self._counts
        return Stats(
            running=len(self._running), waiting=len(self._waiting), tokens_held=scheduler.memory.held,
            tokens_budget=self._budget, pictures=len(scheduler.pictures), picture_hits=scheduler.pictures.hits,
            picture_misses=scheduler.pictures.misses, prompt_tokens=counts["prompt"], cached_tokens=counts["cached"],
            generated_tokens=counts["generated"], passes=counts["passes"], guessed_tokens=scheduler.guessed,
            right_tokens=scheduler.right, finished=counts["finished"], cancelled=counts["cancelled"],
            failed=counts["failed"],
        )  # fmt: skip

    @torch.inference_mode()
    def cancel(self, ticket: Ticket) -> None:
        """As `Ticket.cancel`."""
        with self._gate:
            if ticket.over:
                return
            self._cancelled.add(ticket)
        self._wake.set()
        if not self.threaded:
            with self._passing:
                if not self._inside:  # else the pass that called sees to it
                    self._drop_cancelled()

    @torch.inference_mode()
    def forget(self) -> None:
        """Drop all that is remembered and not in use: prompts, answers, pictures."""
        with self._passing:
            self._scheduler.tree.clear()
            self._scheduler.pictures.clear()

    def close(self, drain: bool = True) -> None:
        """Take no more requests; with ``drain`` answer those that there are, else cancel them. Returns when all ended.

        Called again, it waits for the same end.
        """
        with self._gate:
            self.closed = True
            if not drain:
                self._cancelled.update(request.ticket for request in [*self._waiting, *self._running.values()])
        self._wake.set()
        if not self.threaded:
            while self.step():
                pass
        elif threading.current_thread() is not self._thread:
            self._thread.join()
        self._reader.close()
        self.forget()

    def _run(self) -> None:
        """The engine's thread."""
        while True:
            self._wake.clear()
            if self.step():
                continue
            with self._gate:
                if self.closed and not self._waiting and not self._running:
                    break
            self._wake.wait()

    @torch.inference_mode()
    def step(self) -> bool:
        """One pass, with what comes before and after it. False when there was nothing to do.

        Nothing that goes wrong inside ends the engine: what took part fails. What an interruption (Ctrl-C) left half
        done is dropped before it goes on.
        """
        with self._passing:
            self._inside = True
            try:
                dropped, admitted = self._drop_cancelled(), self._admit()
                return self._pass() or dropped or admitted
            except BaseException as error:
                self._abandon(error)
                if not isinstance(error, Exception):
                    raise
                return True
            finally:
                self._inside = False

    def _drop_cancelled(self) -> bool:
        with self._gate:
            cancelled, self._cancelled = self._cancelled, set()
            found = [one for one in [*self._waiting, *self._running.values()] if one.ticket in cancelled]
        for request in found:
            self._end(request, "cancelled")
        return bool(found)

    def _admit(self) -> bool:
        """Begin what is ready and has room, in the order of asking. The first without room makes the others wait."""
        self._reader.ahead(self._waiting)
        changed, room = False, True
        for request in list(self._waiting):
            if not self._reader.read(request):
                continue  # its pictures are being decoded: it has no claim to room yet
            if isinstance(request.prepared, PumiceError):
                self._end(request, request.prepared)
            elif room:
                try:
                    room = self._begin(request)
                except PumiceError as error:
                    self._end(request, error)
                except Exception as error:
                    self._waiting.remove(request)  # or it would fail again and again
                    request.ticket.end(failure(error))
                    raise
            changed = changed or room
            if not room and not self.threaded:
                break  # nothing is decoded ahead
        return changed

    def _begin(self, request: Request) -> bool:
        """Let a prepared request run; False if there isn't room."""
        if len(self._running) >= self.settings.batch:
            return False
        if request.job is None:
            assert isinstance(request.prepared, tuple)
            prompt, names = request.prepared
            sampler = Sampler(request.sampling, prompt.ids.tolist(), request.grammar and request.grammar.start())
            request.job = self._scheduler.job(prompt, names, request.sampling.max_tokens, sampler, request.space)
        if not self._scheduler.admit(request.job):
            return False
        request.admitted, request.asked, request.prepared = time.perf_counter(), None, None
        with self._gate:
            self._waiting.remove(request)
            self._running[request.job] = request
        self._counts.update(prompt=len(request.job), cached=request.job.cached)
        return True

    def _pass(self) -> bool:
        """Run the scheduler once, and hand out what it chose."""
        if not self._running:
            return False
        self._counts["passes"] += 1
        try:
            chosen = self._scheduler.step()
        except PassError as failed:
            if not failed.jobs:
                raise
            logger.error("a pass failed", exc_info=failed.cause)
            for job in failed.jobs:
                self._end(self._running[job], failure(failed.cause))
            return True
        for job, choices in chosen:
            self._answer(self._running[job], choices)
        return True

    def _answer(self, request: Request, choices: Sequence[Choice | PumiceError]) -> None:
        """Go on with an answer by the tokens chosen for it, as far as it goes."""
        for choice in choices:
            if not isinstance(choice, Choice):
                self._end(request, choice)
                return
            self._counts["generated"] += 1
            try:
                finish = request.take(choice, self.processor.tokenizer)
            except Exception as error:
                logger.exception("an answer can't be written")
                self._end(request, failure(error))
                return
            if finish is not None:
                self._end(request, finish)
                return

    def _end(self, request: Request, end: Finish | PumiceError) -> None:
        """Take a request out, free what it held, and tell whoever waits."""
        if request.job is not None:
            self._scheduler.remove(request.job)
        with self._gate:
            if request in self._waiting:
                self._waiting.remove(request)
            elif request.job is not None:
                self._running.pop(request.job, None)
            self._cancelled.discard(request.ticket)
        request.asked = request.prepared = None
        failed = isinstance(end, PumiceError)
        self._counts["failed" if failed else "cancelled" if end == "cancelled" else "finished"] += 1
        request.ticket.end(end if failed else request.end(end))

    def _abandon(self, error: BaseException) -> None:
        """Fail what runs and begin with empty memory: nobody knows how far a step came that broke off."""
        if isinstance(error, Exception):
            logger.error("a step of the engine failed", exc_info=error)
        with self._gate:
            lost, self._running = list(self._running.values()), {}
        self._scheduler = self._new_scheduler()
        for request in self._waiting:
            request.job = None
        for request in lost:
            request.job = None
            self._end(request, failure(error))


@atexit.register
def _close_started() -> None:
    """End every pass first: a thread inside of one when the interpreter goes away aborts the process."""
    for engine in list(_started):
        engine.close(drain=False)
