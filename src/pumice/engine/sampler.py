"""A token for every sequence from its logits, as its Sampling says.

    logits (V,) ──penalty──> ──grammar──> ──temperature, top_k, top_p, min_p──> a token ──> penalty and grammar go on
         └──log_softmax──> the token's log-probability, and those of the likeliest

Penalty and filters are those of transformers, in its order. Log-probabilities are the model's own: of the logits as
they came, whatever penalties, filters or a grammar made of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pumice.engine.grammar import GrammarState
from pumice.engine.request import Sampling
from pumice.types import PumiceError

MAX_LOGPROBS = 20
MAX_STOPS, MAX_STOP_LENGTH = 16, 256


@dataclass(frozen=True)
class Choice:
    """A token's id, its log-probability under the model, and the likeliest (id, log-probability), best first.

    ``last``: the grammar lets nothing follow it.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    last: bool = False


def check_sampling(sampling: Sampling) -> None:
    """Refuse what can't be done.

    Raises:
        PumiceError: a value is of the wrong kind or out of its range.
    """
    for name, low, high in (("max_tokens", 1, math.inf), ("top_k", 0, math.inf), ("seed", -(2**63), 2**64 - 1)):
        value = getattr(sampling, name)
        if not (name == "seed" and value is None):
            _check_number(name, value, low, high, whole=True)
    if sampling.logprobs is not None:
        _check_number("logprobs", sampling.logprobs, 0, MAX_LOGPROBS, whole=True)
    for name, high in (("temperature", math.inf), ("min_p", 1.0)):
        _check_number(name, getattr(sampling, name), 0.0, high)
    for name, high in (("top_p", 1.0), ("repetition_penalty", math.inf)):
        _check_number(name, getattr(sampling, name), 0.0, high, above=True)
    stop = sampling.stop
    if not isinstance(stop, tuple) or not all(isinstance(text, str) and text for text in stop):
        raise PumiceError(f"stop is {stop!r:.80}; expected texts that aren't empty")
    if len(stop) > MAX_STOPS or any(len(text) > MAX_STOP_LENGTH for text in stop):
        found = f"stop has {len(stop)} texts of up to {max(map(len, stop))} characters"
        raise PumiceError(f"{found}; at most {MAX_STOPS} of {MAX_STOP_LENGTH} are taken")


def _check_number(name: str, value: object, low: float, high: float, whole: bool = False, above: bool = False) -> None:
    kinds = int if whole else int | float
    fits = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value) and low <= value <= high
    if not fits or (above and value == low):
        least = f"more than {low:g}" if above else f"at least {low:g}" if low > -1 else "at least -2^63"
        most = "" if high == math.inf else " and less than 2^64" if high > 2**63 else f" and at most {high:g}"
        raise PumiceError(f"{name} is {value!r:.40}; expected a {'whole ' * whole}number of {least}{most}")


class Sampler:
    """Chooses the tokens of one answer, one after the other.

    ``prompt_ids`` count for the repetition penalty; those that stand for pictures don't. Two samplers with the same
    seed choose the same tokens from the same logits. Without a seed each has one of its own.

    Raises:
        PumiceError: as `check_sampling`.
    """

    def __init__(self, sampling: Sampling, prompt_ids: Sequence[int], grammar: GrammarState | None = None) -> None:
        check_sampling(sampling)
        self.sampling, self.grammar = sampling, grammar
        self._prompt = prompt_ids
        self._seen: Tensor | None = None
        self._generator: torch.Generator | None = None
        if sampling.temperature > 0:
            self._generator = torch.Generator()
            if sampling.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(sampling.seed)

    @property
    def plain(self) -> bool:
        """It takes the likeliest token, whatever came before."""
        return self.grammar is None and self.sampling.temperature == 0 and self.sampling.repetition_penalty == 1

    def choose(self, logits: Tensor) -> Choice:
        """The next token by logits (V,) fp32, which are left as they are. The grammar and the penalty go on by it.

        Raises:
            PumiceError: the grammar takes more work than is allowed.
        """
        (choice,) = choose_all([self], logits[None])
        if isinstance(choice, PumiceError):
            raise choice
        return choice

    def pick(self, logits: Tensor) -> int:
        """As `choose`, the id alone; logits on the CPU."""
        scores = self._penalised(logits)
        if self.grammar is not None:
            scores = scores.masked_fill(~self.grammar.mask(len(scores)), -math.inf)
        token = int(scores.argmax()) if self._generator is None else _draw(scores, self.sampling, self._generator)
        if self.grammar is not None:
            self.grammar.accept(token)
        if self._seen is not None:
            self._seen[token] = True
        return token

    def _penalised(self, logits: Tensor) -> Tensor:
        penalty = self.sampling.repetition_penalty
        if penalty == 1:
            return logits
        if self._seen is None:
            self._seen = torch.zeros(len(logits), dtype=torch.bool)
            self._seen[[token for token in self._prompt if 0 <= token < len(logits)]] = True
        return torch.where(self._seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def choose_all(samplers: Sequence[Sampler], logits: Tensor) -> list[Choice | PumiceError]:
    """The next token of every sequence by logits (B, V) fp32, one row a sampler.

    Greedy rows cost an argmax and a log-sum-exp of the batch. A row whose grammar fails has the error in its place; the
    others don't notice.
    """
    best = logits.argmax(-1).tolist()
    chosen: list[int | PumiceError] = list(best)
    rows = [row for row, sampler in enumerate(samplers) if not sampler.plain]
    if rows:
        nearby = logits[rows].cpu() if logits.is_cuda else logits[rows]
        for row, scores in zip(rows, nearby, strict=True):
            try:
                chosen[row] = samplers[row].pick(scores)
            except PumiceError as error:
                chosen[row] = error
    ids = [best[row] if isinstance(token, PumiceError) else token for row, token in enumerate(chosen)]
    total = logits.logsumexp(-1)
    own = (logits.gather(1, torch.tensor(ids, device=logits.device)[:, None])[:, 0] - total).tolist()
    choices: list[Choice | PumiceError] = []
    for row, token in enumerate(chosen):
        if isinstance(token, PumiceError):
            choices.append(token)
        else:
            sampler = samplers[row]
            top = _likeliest(logits[row], total[row], sampler.sampling.logprobs or 0)
            choices.append(Choice(token, own[row], top, sampler.grammar is not None and sampler.grammar.finished))
    return choices


def _likeliest(logits: Tensor, total: Tensor, wanted: int) -> tuple[tuple[int, float], ...]:
    if not wanted:
        return ()
    values, ids = logits.topk(min(wanted, len(logits)))
    return tuple(zip(ids.tolist(), (values - total).tolist(), strict=True))


def _draw(scores: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """A token (V,) at random: one number of the generator a token, so that a seed gives the same answer anywhere."""
    ids, logprobs = warp(scores, sampling)
    weights = logprobs.double().exp().cumsum(0)
    drawn = torch.rand((), generator=generator, dtype=torch.float64) * weights[-1]
    return int(ids[min(int(torch.searchsorted(weights, drawn, right=True)), len(ids) - 1)])


def warp(scores: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Ids (K,) that temperature, top_k, top_p and min_p leave of scores (V,), and their log-probabilities up to a
    constant; at least the likeliest.
    """
    # Less the best, so that no temperature is too small; -inf stays what it is.
    scores = (scores - scores.max()) / max(sampling.temperature, 1e-30)
    ids = torch.arange(len(scores))
    if 0 < sampling.top_k < len(scores):
        ids = (scores >= scores.topk(sampling.top_k).values[-1]).nonzero()[:, 0]
        scores = scores[ids]
    if sampling.top_p < 1:
        kept = _nucleus(scores, sampling.top_p)
        ids, scores = ids[kept], scores[kept]
    if sampling.min_p > 0:
        kept = scores >= math.log(sampling.min_p)
        ids, scores = ids[kept], scores[kept]
    return ids, scores


def _nucleus(scores: Tensor, top_p: float) -> Tensor:
    """Which of the scores (K,) have less than ``top_p`` of the probability above them; equal ones together."""
    ordered = torch.from_numpy(np.sort(scores.numpy()))  # ten times faster than torch's
    below = ordered.double().softmax(0).cumsum(0)
    cut = int((below <= 1 - top_p).sum())
    return scores >= ordered[min(cut, len(ordered) - 1)]
