"""Pumice as a model of lmms-eval: ``lmms-eval eval --model pumice --model_args model=pocket,batch=8 --tasks ...``.

    lmms-eval's requests ──PumiceModel──> Asked* ──Answerer──> Given* ──> GenerationResult*, throughput

Several processes (torchrun, accelerate) each answer their share: lmms-eval deals the questions out and gathers scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts  # pyright: ignore[reportMissingImports]
from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
from lmms_eval.models.model_utils.gen_metrics import log_metrics  # pyright: ignore[reportMissingImports]
from loguru import logger  # pyright: ignore[reportMissingImports]
from tqdm import tqdm

import pumice
from pumice.eval.public.answering import Answerer, Asked, Given, Tally
from pumice.journal import FolderJournal
from pumice.types import PumiceError

AUTO_BATCH = 8
"""What lmms-eval's ``--batch_size auto`` means."""


class PumiceModel(lmms):
    """Any model that `pumice.load` opens, as one of lmms-eval's chat models.

    ``model`` is its name or folder; ``batch`` replaces lmms-eval's ``batch_size``; ``journal`` is the folder of the
    journal (`pumice.journal`), without which a run that was stopped starts anew; ``dtype``, ``template``,
    ``tower`` and ``base`` are those of `pumice.load`.

    Raises:
        PumiceError: an argument that isn't known, or a model that can't be opened.
    """

    is_simple = False

    def __init__(
        self,
        model: str = "pocket",
        batch: int | None = None,
        journal: str | None = None,
        dtype: str = "auto",
        template: str | None = None,
        tower: str | None = None,
        base: str | None = None,
        batch_size: int | str = 1,
        device: str | None = None,
        max_batch_size: int | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            known = "model, batch, journal, dtype, template, tower, base"
            raise PumiceError(f"--model_args has no {', '.join(unknown)}; expected one of {known}")
        cpu = not torch.cuda.is_available() or str(device) == "cpu"
        self.accelerator = Accelerator(cpu=cpu)
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        given = device if self._world_size == 1 else None
        self.device = torch.device(given) if given is not None else self.accelerator.device
        self.batch_size = int(batch or (AUTO_BATCH if str(batch_size).startswith("auto") else batch_size))
        assistant = pumice.load(str(model), dtype, str(self.device), tower, template, base)
        kept = FolderJournal(Path(journal).expanduser(), self._rank) if journal else None
        self.answerer = Answerer(assistant, self.batch_size, kept)
        self.tallies: list[Tally] = []
        """One a call of lmms-eval, of this process alone."""

    @property
    def tokenizer_name(self) -> str:
        """A name for lmms-eval's cache of prompts."""
        return self.answerer.assistant.name

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answers in the order of the requests; one that failed is empty, and is counted."""
        asked = []
        for request in requests:
            _, to_messages, settings, doc, task, split = request.args
            asked.append(Asked(self._first_turn(to_messages, task, split, doc), settings, task, doc))
        return [_result(given) for given in self._answer(asked)]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[list[str]]:
        """The answers of all rounds of each request; the task says after each round what is asked next."""
        outputs: list[list[str]] = [[] for _ in requests]
        going = list(range(len(requests)))
        states: dict[int, Any] = dict.fromkeys(going)
        while going:
            asked, still = [], []
            for index in going:
                _, to_messages, settings, doc, task, split = requests[index].args
                if not outputs[index]:
                    messages = self._first_turn(to_messages, task, split, doc)
                else:
                    following = to_messages(
                        self.task_dict[task][split][doc], round_idx=len(outputs[index]),
                        previous_output=list(outputs[index]), previous_round_info=states[index],
                    )  # fmt: skip
                    if not isinstance(following, tuple) or len(following) != 4 or following[1]:
                        continue
                    messages, states[index] = _constant(following[0]), following[3]
                still.append(index)
                asked.append(Asked(messages, settings, task, doc))
            for index, given in zip(still, self._answer(asked) if asked else [], strict=True):
                outputs[index].append(given.text)
            going = still
        return outputs

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """lmms-eval asks no chat model for likelihoods.

        Raises:
            PumiceError: always.
        """
        raise PumiceError("tasks scored by likelihood (_ppl) aren't answered; take the task that generates instead")

    def _first_turn(self, to_messages: Callable[[Any], Any], task: str, split: str, doc: int) -> Callable[[], Any]:
        return lambda: to_messages(self.task_dict[task][split][doc])

    def _answer(self, asked: Sequence[Asked]) -> list[Given]:
        with tqdm(total=len(asked), disable=self.rank != 0, desc="Answers") as bar:
            given = self.answerer.answer(asked, bar.update)
        tally = self.answerer.tally
        self.tallies.append(tally)
        for task, error in tally.errors.items():
            logger.warning(f"{task}: {tally.counts[task]['failed']} questions failed; the first: {error}")
        if tally.total("greedy"):
            logger.warning(f"{tally.total('greedy')} answers are greedy though their task samples")
        self._log(tally)
        return given

    def _log(self, tally: Tally) -> None:
        """Throughput of this process; lmms-eval reports that of the first."""
        counts = {name: tally.total(name) for name in ("asked", "replayed", "failed")}
        speed = tally.tokens / tally.seconds if tally.seconds else 0.0
        log_metrics(tally.seconds, tally.tokens, speed, {"rank": self.rank, **counts})


def _constant(value: Any) -> Callable[[], Any]:
    return lambda: value


def _result(given: Given) -> GenerationResult:
    return GenerationResult(given.text, TokenCounts(given.input_tokens, given.output_tokens))
