"""Tokens are chosen as transformers chooses them: its own processors and warpers are the oracle."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hf_models import make_tokenizer
from torch import Tensor
from transformers.generation import logits_process as hf

from pumice.engine.grammar import compile_grammar
from pumice.engine.request import Grammar, Sampling
from pumice.engine.sampler import Choice, Sampler, check_sampling, choose_all, warp
from pumice.types import IMAGE, PumiceError

V = 3000


def logits(seed: int, rows: int = 1, scale: float = 3.0) -> Tensor:
    return torch.randn(rows, V, generator=torch.Generator().manual_seed(seed)) * scale


def warped(scores: Tensor, sampling: Sampling) -> Tensor:
    """transformers' scores (V,), -inf where it takes a token out."""
    warpers: list[Any] = [hf.TemperatureLogitsWarper(sampling.temperature)]
    warpers += [hf.TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
    warpers += [hf.TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
    warpers += [hf.MinPLogitsWarper(sampling.min_p)] if sampling.min_p else []
    scores = scores[None]
    for warper in warpers:
        scores = warper(None, scores)
    return scores[0]


def kept(scores: Tensor) -> list[int]:
    return (scores > -math.inf).nonzero()[:, 0].tolist()


CASES = [
    Sampling(temperature=1.0),
    Sampling(temperature=0.3),
    Sampling(temperature=1.7, top_k=1),
    Sampling(temperature=0.8, top_k=40),
    Sampling(temperature=1.0, top_k=10 * V),
    Sampling(temperature=0.9, top_p=0.9),
    Sampling(temperature=1.0, top_p=0.05),
    Sampling(temperature=1.0, top_p=1e-6),
    Sampling(temperature=1.3, top_p=0.999),
    Sampling(temperature=1.0, min_p=0.1),
    Sampling(temperature=1.0, min_p=1.0),
    Sampling(temperature=0.7, top_k=50, top_p=0.8, min_p=0.05),
    Sampling(temperature=1.5, top_k=500, top_p=0.95),
]


@pytest.mark.parametrize("case", range(len(CASES)))
@pytest.mark.parametrize("scale", [0.5, 3.0, 12.0])
def test_filters_are_those_of_transformers(case, scale):
    for seed in range(20):
        scores = logits(seed, scale=scale)[0]
        expected = warped(scores, CASES[case])
        ids, logprobs = warp(scores, CASES[case])
        assert ids.tolist() == kept(expected)
        torch.testing.assert_close(logprobs.softmax(0), expected.softmax(0)[ids], atol=1e-6, rtol=1e-4)


def test_tokens_as_likely_as_the_last_one_stay_as_in_transformers():
    scores = torch.tensor([1.0, 2.0, 2.0, 0.5, 2.0, 1.0])
    for top_k in range(1, 7):
        ids, _ = warp(scores, Sampling(temperature=1.0, top_k=top_k))
        assert ids.tolist() == kept(warped(scores, Sampling(temperature=1.0, top_k=top_k)))


def test_draws_follow_the_probabilities():
    sampling = Sampling(temperature=1.0, top_k=20, seed=3)
    scores = logits(5)[0]
    expected = warped(scores, sampling).softmax(0)
    sampler, n = Sampler(sampling, []), 20_000
    drawn = torch.bincount(torch.tensor([sampler.pick(scores) for _ in range(n)]), minlength=V) / n
    assert (drawn[expected == 0] == 0).all()
    error = (expected * (1 - expected) / n).sqrt().clamp(min=1 / n)
    assert ((drawn - expected).abs() < 5 * error).all()


@pytest.mark.parametrize("penalty", [0.7, 1.0, 1.3])
def test_the_repetition_penalty_is_that_of_transformers_over_prompt_and_answer(penalty):
    prompt = [5, 7, 7, 11, IMAGE, V + 9]
    sampler = Sampler(Sampling(repetition_penalty=penalty), prompt)
    oracle = hf.RepetitionPenaltyLogitsProcessor(penalty)
    seen = [token for token in prompt if 0 <= token < V]
    for step in range(30):
        scores = logits(step, scale=0.2)
        scores[0, seen[-1]] += 1.0  # the likeliest was there before, so that the penalty decides
        scores -= 5.0 * (step % 2)  # above 0 and below
        before = scores.clone()
        token = int(oracle(torch.tensor([seen]), scores.clone()).argmax())
        choice = sampler.choose(scores[0])
        assert choice.id == token
        assert torch.equal(scores, before)
        assert choice.logprob == pytest.approx(float(scores.log_softmax(-1)[0, token]), abs=1e-4)
        seen.append(token)


def test_logprobs_are_the_models_own_whatever_is_done_to_the_logits():
    tokenizer = make_tokenizer()
    grammar = compile_grammar(Grammar("regex", "[a-z]{40}"), tokenizer)
    sampling = Sampling(temperature=0.7, top_k=5, repetition_penalty=1.5, seed=0, logprobs=4)
    sampler = Sampler(sampling, [1, 2, 3], grammar.start())
    for step in range(20):
        scores = logits(step)[0]
        own = scores.log_softmax(-1)
        choice = sampler.choose(scores)
        best = own.topk(4)
        assert choice.logprob == pytest.approx(float(own[choice.id]), abs=1e-4)
        assert [token for token, _ in choice.top] == best.indices.tolist()
        assert [value for _, value in choice.top] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert tokenizer.decode([choice.id]).islower()


def test_a_batch_is_as_each_alone():
    tokenizer = make_tokenizer()
    compiled = compile_grammar(Grammar("choice", "yes\nno\nperhaps"), tokenizer)
    kinds = [
        Sampling(),
        Sampling(logprobs=3),
        Sampling(repetition_penalty=1.2),
        Sampling(temperature=1.0, seed=1),
        Sampling(temperature=0.5, top_p=0.9, seed=2, logprobs=0),
        Sampling(temperature=1.0, seed=3, grammar=Grammar("choice", "yes\nno\nperhaps")),
        Sampling(grammar=Grammar("choice", "yes\nno\nperhaps")),
    ]

    def samplers() -> list[Sampler]:
        return [Sampler(kind, [4, 5], compiled.start() if kind.grammar else None) for kind in kinds]

    together, alone = samplers(), samplers()
    for step in range(6):
        scores = logits(step, rows=len(kinds))
        assert choose_all(together, scores) == [sampler.choose(row) for sampler, row in zip(alone, scores, strict=True)]


def test_a_seed_gives_the_same_tokens_whatever_else_is_drawn():
    def answer(seed: int | None, others: int) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.0, seed=seed), [])
        rest = [Sampler(Sampling(temperature=1.0), []) for _ in range(others)]
        ids = []
        for step in range(20):
            torch.rand(others)
            scores = logits(step, rows=1 + others)
            scores[0] = logits(99 + step)[0]
            choices = choose_all([*rest, sampler], scores.roll(-1, 0))
            assert isinstance(choices[-1], Choice)
            ids.append(choices[-1].id)
        return ids

    assert answer(7, 0) == answer(7, 3)
    assert answer(7, 0) != answer(8, 0)
    assert answer(None, 0) != answer(None, 0)
    assert answer(-(2**63), 0) != answer(2**64 - 1, 0)


@pytest.mark.parametrize("temperature", [1e-320, 1e-30, 1e-4, 1e6])
def test_no_temperature_is_too_low_or_too_high(temperature):
    scores = logits(1)[0]
    tokens = {Sampler(Sampling(temperature=temperature), []).pick(scores) for _ in range(20)}
    assert len(tokens) > 15 if temperature > 1 else tokens == {int(scores.argmax())}


def test_masked_logits_and_the_last_token_are_drawn():
    scores = torch.full((V,), -math.inf)
    scores[V - 1] = 0.0
    for sampling in (CASES[0], CASES[5], CASES[3], CASES[9]):
        assert Sampler(sampling, []).pick(scores) == V - 1


def test_a_grammar_that_fails_leaves_the_others_alone():
    class Failing:
        def mask(self, size: int) -> Tensor:
            raise PumiceError("too much work")

    bad = Sampler(Sampling(), [])
    bad.grammar = Failing()  # type: ignore[assignment]
    scores = logits(0, rows=3)
    first, failed, last = choose_all([Sampler(Sampling(), []), bad, Sampler(Sampling(), [])], scores)
    assert isinstance(failed, PumiceError)
    assert [first, last] == [
        Choice(int(row.argmax()), pytest.approx(float(row.log_softmax(0).max()), abs=1e-4)) for row in scores[::2]
    ]
    with pytest.raises(PumiceError, match="too much work"):
        bad.choose(scores[0])


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"max_tokens": 0}, "max_tokens is 0; expected a whole number of at least 1"),
        ({"max_tokens": 2.5}, "max_tokens is 2.5; expected a whole number"),
        ({"max_tokens": True}, "max_tokens is True"),
        ({"temperature": -0.1}, "temperature is -0.1; expected a number of at least 0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"top_p": 0}, "top_p is 0; expected a number of more than 0 and at most 1"),
        ({"top_p": 1.01}, "top_p is 1.01"),
        ({"top_k": -1}, "top_k is -1; expected a whole number of at least 0"),
        ({"min_p": 2}, "min_p is 2; expected a number of at least 0 and at most 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0; expected a number of more than 0"),
        ({"seed": 2**64}, "seed is 18446744073709551616; expected a whole number of at least -2.63 and less than 2.64"),
        ({"seed": "x"}, "seed is 'x'"),
        ({"logprobs": 21}, "logprobs is 21; expected a whole number of at least 0 and at most 20"),
        ({"stop": ("",)}, r"stop is \(''\,\); expected texts that aren't empty"),
        ({"stop": "END"}, "stop is 'END'; expected texts"),
        ({"stop": ("x" * 300,)}, "stop has 1 texts of up to 300 characters; at most 16 of 256"),
        ({"stop": ("x",) * 17}, "stop has 17 texts"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(change, error):
    with pytest.raises(PumiceError, match=error):
        check_sampling(replace(Sampling(), **change))
    with pytest.raises(PumiceError, match=error):
        Sampler(replace(Sampling(), **change), [])


def test_the_ends_of_the_ranges_are_taken():
    for sampling in (
        Sampling(max_tokens=1, temperature=0, top_p=1, top_k=0, min_p=0, seed=0, logprobs=0, stop=("x" * 256,) * 16),
        Sampling(temperature=5, top_p=1e-9, top_k=10**9, min_p=1, seed=2**64 - 1, logprobs=20, repetition_penalty=9),
    ):
        check_sampling(sampling)
