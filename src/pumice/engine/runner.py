"""Answering: prefill a batch of prompts packed side by side, then decode one token a step for each.

    [Features] ──pack──> prefill ──> first tokens ──> decode, decode, ... ──> Completion a prompt

Prompts of different lengths and picture sizes share a batch without padding, and several questions about one picture
share the work on it. Decoding is greedy.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from pumice.data.batch import pack
from pumice.engine.cache import KVCache
from pumice.model.assistant import AssistantModel
from pumice.types import IMAGE, Batch, Features, PumiceError


@dataclass
class Completion:
    """What was generated for one prompt: token ids without the stop token, and their log-probabilities.

    ``logprob`` sums over the answer and its stop token; ``first_ms`` and ``ms`` count from the batch's start.
    """

    ids: list[int] = field(default_factory=list)
    logprob: float = 0.0
    finish: Literal["stop", "length"] = "length"
    first_ms: float = 0.0
    ms: float = 0.0


@torch.inference_mode()
def generate(
    model: AssistantModel, prompts: Sequence[Features], stop_ids: Sequence[int], max_tokens: int
) -> Iterator[tuple[int, int, Completion]]:
    """Greedy answers to a batch of prompts: yields (index of the prompt, token id or -1 at its end, Completion so far).

    Raises:
        PumiceError: a prompt and its answer don't fit the model's positions, or ``max_tokens`` < 1.
    """
    began = time.perf_counter()
    if max_tokens < 1:
        raise PumiceError(f"max_tokens is {max_tokens}; expected at least 1")
    cache = _make_cache(model, prompts, max_tokens)
    logits = _prefill(model, prompts, cache)
    done = [Completion() for _ in prompts]
    active = list(range(len(prompts)))
    while active:
        logprobs = logits.float().log_softmax(-1)
        chosen = logprobs.argmax(-1)
        now = (time.perf_counter() - began) * 1000
        going: list[int] = []
        for row, index in enumerate(active):
            token, answer = int(chosen[row]), done[index]
            answer.logprob += float(logprobs[row, token])
            answer.first_ms, answer.ms = answer.first_ms or now, now
            if token in stop_ids:
                answer.finish = "stop"
                yield index, -1, answer
                continue
            answer.ids.append(token)
            yield index, token, answer
            if len(answer.ids) < max_tokens:
                going.append(index)
            else:
                yield index, -1, answer
        active = going
        if active:
            logits = _decode(model, [done[index].ids[-1] for index in active], active, cache)


def complete(
    model: AssistantModel, prompts: Sequence[Features], stop_ids: Sequence[int], max_tokens: int
) -> list[Completion]:
    """Greedy answers to a batch of prompts, all at once."""
    done: dict[int, Completion] = {}
    for index, _, answer in generate(model, prompts, stop_ids, max_tokens):
        done[index] = answer
    return [done[index] for index in range(len(prompts))]


def _make_cache(model: AssistantModel, prompts: Sequence[Features], max_tokens: int) -> KVCache:
    config = model.lm.config
    capacity = max(len(prompt) for prompt in prompts) + max_tokens
    if capacity > config.max_position_embeddings:
        raise PumiceError(
            f"the prompt has {capacity - max_tokens} tokens; with an answer of up to {max_tokens} that is more than "
            f"the model's {config.max_position_embeddings} positions"
        )
    heads = config.num_key_value_heads  # one number, or one a layer (OpenELM)
    return KVCache(
        slots=len(prompts),
        heads=[heads] * config.num_hidden_layers if isinstance(heads, int) else heads,
        capacity=capacity,
        width=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        dtype=model.newline.dtype,
        device=model.device,
    )


def _prefill(model: AssistantModel, prompts: Sequence[Features], cache: KVCache) -> Tensor:
    """Logits (D, V) after each prompt. Prompts with the same beginning, pictures included, share the work on it."""
    owners = [_first_alike(prompts, index) for index in range(len(prompts))]
    alone = len(set(owners)) == len(prompts)
    cuts = [0 if alone else _beginning(prompt) for prompt in prompts]
    if not alone:
        first = [owner for owner in sorted(set(owners)) if cuts[owner]]
        batch = pack([_part(prompts[index], 0, cuts[index]) for index in first])
        cache.begin(first, batch.starts.tolist())
        _forward(model, batch, batch.positions, cache)
        for slot, owner in enumerate(owners):
            if slot != owner:
                cache.copy(owner, slot)
    batch = pack([_part(prompt, cut, len(prompt)) for prompt, cut in zip(prompts, cuts, strict=True)])
    starts = batch.starts.tolist()
    cache.begin(range(len(prompts)), starts)
    shift = torch.tensor(cuts).repeat_interleave(batch.starts.long().diff())
    hidden = _forward(model, batch, batch.positions + shift, cache)
    return model.head(hidden[[end - 1 for end in starts[1:]]])


def _beginning(prompt: Features) -> int:
    """Tokens up to the last one that stands for a picture."""
    places = (prompt.ids == IMAGE).nonzero()
    return int(places[-1]) + 1 if len(places) else 0


def _first_alike(prompts: Sequence[Features], index: int) -> int:
    """The first prompt that begins with the same tokens and pictures as prompt ``index``, or the prompt itself."""
    mine, cut = prompts[index], _beginning(prompts[index])
    for other in range(index if cut else 0):
        theirs = prompts[other]
        alike = theirs.layouts == mine.layouts and torch.equal(theirs.ids[:cut], mine.ids[:cut])
        if alike and _beginning(theirs) == cut and torch.equal(theirs.tiles, mine.tiles):
            return other
    return index


def _part(prompt: Features, start: int, end: int) -> Features:
    """Tokens start:end of a prompt; its pictures belong to the part that begins it."""
    ids, labels = prompt.ids[start:end], prompt.labels[start:end]
    if start:
        return Features(ids, labels, prompt.tiles[:0], ())
    return Features(ids, labels, prompt.tiles, prompt.layouts)


def _decode(model: AssistantModel, tokens: list[int], active: list[int], cache: KVCache) -> Tensor:
    """Logits (len(active), V) after one more token for each active sequence."""
    cache.begin(active, range(len(active) + 1))
    ids = torch.tensor(tokens)
    batch = pack([Features(ids, ids, torch.zeros(0), ())])
    positions = torch.tensor([cache.lengths[slot] for slot in active])
    return model.head(_forward(model, batch, positions, cache))


def _forward(model: AssistantModel, batch: Batch, positions: Tensor, cache: KVCache) -> Tensor:
    """Decoder layers over new tokens to (T, H); the cache stores them."""
    embedded, positions = model.embed(batch.to(model.device)), positions.to(model.device)
    output = model.lm.model(
        inputs_embeds=embedded[None].to(model.newline.dtype), position_ids=positions[None], use_cache=False, cache=cache
    )
    cache.advance()
    return output.last_hidden_state[0]
