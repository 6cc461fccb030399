"""Greedy continuations of prompts as token ids: the scheduler without texts, tickets and threads.

[Features] ──jobs──> Scheduler, until all have ended ──> Completion a prompt
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from pumice.engine.jobs import Job
from pumice.engine.pictures import digests
from pumice.engine.plain import PlainDecoder
from pumice.engine.request import Sampling
from pumice.engine.sampler import Choice, Sampler
from pumice.engine.scheduler import Scheduler
from pumice.engine.segments import Decoder
from pumice.model.assistant import AssistantModel
from pumice.types import Features


@dataclass
class Completion:
    """What was generated for one prompt: token ids without the stop token, and their log-probabilities.

    ``logprob`` sums over the answer and its stop token.
    """

    ids: list[int] = field(default_factory=list)
    logprob: float = 0.0
    finish: Literal["stop", "length"] = "length"


@torch.inference_mode()
def complete(
    model: AssistantModel,
    prompts: Sequence[Features],
    stop_ids: Sequence[int],
    max_tokens: int,
    decoder: Decoder | None = None,
) -> list[Completion]:
    """Greedy answers to a batch of prompts, by `PlainDecoder` unless another is given.

    Raises:
        PumiceError: ``max_tokens`` < 1, or visual tokens that don't match the layouts.
    """
    room = sum(len(prompt) + max_tokens for prompt in prompts)
    scheduler = Scheduler(model, decoder or PlainDecoder(model), room, len(prompts), 2048, 64)
    done: dict[Job, Completion] = {}
    for prompt in prompts:
        sampler = Sampler(Sampling(max_tokens), prompt.ids.tolist())
        job = scheduler.job(prompt, digests(prompt), max_tokens, sampler)
        scheduler.admit(job)
        done[job] = Completion()
    while scheduler.running:
        for job, (choice,) in scheduler.step():
            assert isinstance(choice, Choice)
            answer = done[job]
            answer.logprob += choice.logprob
            if choice.id in stop_ids:
                answer.finish = "stop"
            else:
                answer.ids.append(choice.id)
            if answer.finish == "stop" or len(answer.ids) == max_tokens:
                scheduler.remove(job)
    return list(done.values())
