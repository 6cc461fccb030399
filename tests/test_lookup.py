"""Prompt look-up: guesses make passes fewer, and change no answer, whatever else runs, ends or is remembered."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from conftest import conversation, picture

from pumice.engine.attention_plan import SHORT
from pumice.engine.compiled import compiled_decoder
from pumice.engine.engine import Engine
from pumice.engine.lookup import Guesser, choose_guessed
from pumice.engine.memory import Memory
from pumice.engine.plain import PlainDecoder
from pumice.engine.request import Grammar, Outcome, Sampling
from pumice.engine.sampler import Choice, Sampler
from pumice.engine.segments import Span
from pumice.engine.settings import MOST_LOOKUP, Settings
from pumice.messages import question_messages, to_sample
from pumice.types import PumiceError, Sample

TEXTS = ["ab ab ab ab ab", "one, two, one, two, one", "the page says the page says", "xyxyxyxyxy"]
SAMPLES = [
    *(to_sample([{"role": "user", "content": text}]) for text in TEXTS),
    conversation(0, (60, 30), "What is it, what is it?", None),
    conversation(1, (90, 40), "Why so long, so long?", None),
]
LONG = Sampling(60, ignore_end=True)


@pytest.fixture(params=["plain", "fast"])
def make(request, model, processor):
    """A function that makes an engine without a thread."""

    def made(lookup: int = 8, decoder: Any = None, **settings: Any) -> Engine:
        chosen = PlainDecoder(model) if request.param == "plain" else None
        return Engine(model, processor, Settings(lookup=lookup, **settings), decoder or chosen, start=False)

    return made


@pytest.fixture
def wanted(make):
    """Answers without guesses, each asked of an engine of its own."""

    def asked(sampling: Sampling = LONG, samples: list[Sample] = SAMPLES) -> list[Outcome]:
        return [make(0).submit(sample, sampling).result() for sample in samples]

    return asked


def same(found: list[Outcome], wanted: list[Outcome]) -> bool:
    """Equal tokens, texts and ends, log-probabilities but for rounding."""
    for one, other in zip(found, wanted, strict=True):
        assert (one.ids, one.text, one.finish) == (other.ids, other.text, other.finish)
        assert one.logprob == pytest.approx(other.logprob, abs=2e-3)
    return True


class Watch:
    """A decoder that notes the tokens of each pass, sequence by sequence."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.passes = inner, []

    def forward(self, embedded: Any, positions: Any, spans: Any) -> Any:
        self.passes.append([span.last - span.first for span in spans])
        return self.inner.forward(embedded, positions, spans)

    def head(self, hidden: Any) -> Any:
        return self.inner.head(hidden)


# guesses


def test_a_guess_is_what_came_behind_the_longest_same_end_the_last_time():
    guesser = Guesser([1, 2, 3, 9, 5, 2, 3, 7, 1, 2, 3])
    assert guesser.guess(8) == [9]  # behind 1, 2, 3, not the later 2, 3
    guesser.learn(1, [9, 5])  # right
    assert guesser.guess(8) == [2, 3]
    guesser.learn(2, [2, 3, 4])
    assert guesser.guess(8) == []
    guesser.learn(0, [2, 3])
    assert guesser.guess(2) == [4, 2]  # behind the last 2, 3
    guesser = Guesser([7, 8, 7, 8, 7, 8])
    guesser.learn(1, [7, 8])
    guesser.learn(2, [7, 8, 7])
    assert guesser.guess(8) == [8, 7, 8, 7]  # it goes round


def test_a_wrong_guess_makes_the_next_one_shorter():
    guesser = Guesser([*range(30), 0, 1])
    lengths = []
    for right in (True, True, True, False, True):
        guess = guesser.guess(8)
        lengths.append(len(guess))
        said = [*guess, guess[-1] + 1] if right else [*guess[:2], 99, 0, 1]
        guesser.learn(len(guess), said if right else said[:3])
        if not right:
            guesser.learn(0, [0, 1])
    assert lengths == [1, 2, 4, 8, 2]


@pytest.mark.parametrize("ids", [[], [1], [1, 2], [1, 2, 3], [5, 6, -1, -1, -1, 5, 6]])
def test_nothing_is_guessed_of_pictures_or_where_nothing_was_said_twice(ids):
    assert Guesser(ids).guess(8) == []


@torch.inference_mode()
def test_choices_are_those_made_one_by_one_as_far_as_guesses_are_right():
    logits = torch.randn(8, 40, generator=torch.Generator().manual_seed(3))
    best = logits.argmax(-1).tolist()
    guesses = [best[:2], [], [best[4], 77, best[6]]]
    found = choose_guessed([Sampler(Sampling(logprobs=1), []) for _ in guesses], logits, guesses)
    ids = [[choice.id for choice in choices if isinstance(choice, Choice)] for choices in found]
    assert ids == [best[:3], best[3:4], best[4:6]]
    rows = [0, 1, 2, 3, 4, 5]
    for choice, row in zip([choice for choices in found for choice in choices], rows, strict=True):
        assert isinstance(choice, Choice)
        assert choice.logprob == pytest.approx(float(logits[row].log_softmax(0).max()), abs=1e-5)
        assert choice.top == ((choice.id, pytest.approx(choice.logprob, abs=1e-5)),)


@torch.inference_mode()
def test_a_guess_costs_a_seeded_sampler_no_number():
    """Numbers are drawn for tokens that are chosen, not for those that a wrong guess led to."""
    logits = torch.randn(6, 40, generator=torch.Generator().manual_seed(4))
    sampling = Sampling(temperature=1.0, repetition_penalty=1.3, seed=5)
    single = Sampler(sampling, [1, 2])
    one_by_one = [single.choose(row).id for row in logits]
    twice = Sampler(sampling, [1, 2])
    first = choose_guessed([twice], logits[:4], [[*one_by_one[:2], -5]])[0]
    rest = choose_guessed([twice], logits[3:], [one_by_one[3:5]])[0]
    assert [choice.id for choice in (*first, *rest) if isinstance(choice, Choice)] == one_by_one


# the same answers


@pytest.mark.parametrize(
    "settings", [{}, {"chunk": 7, "views": 1}, {"batch": 2}, {"lookup": MOST_LOOKUP}, {"lookup": 1}]
)
def test_answers_are_those_without_guesses_in_fewer_passes(make, wanted, settings):
    alone = make(**settings)
    assert same([alone.submit(sample, LONG).result() for sample in SAMPLES], wanted())
    stats = alone.stats()
    assert stats.guessed_tokens >= stats.right_tokens > 60
    assert stats.generated_tokens == 60 * len(SAMPLES)
    together = make(**settings)
    tickets = [together.submit(sample, LONG) for sample in SAMPLES]
    assert same([ticket.result() for ticket in tickets], wanted())


def test_a_pass_is_filled_with_guesses_and_no_further(model, make, wanted):
    """A prompt's end begins its answer; then up to nine tokens, or what of them is each one's among three."""
    watch = Watch(PlainDecoder(model))
    engine = make(8, watch)
    assert same([engine.submit(SAMPLES[3], LONG).result()], wanted()[3:4])
    first, *rest = watch.passes
    assert first == [engine.count(SAMPLES[3]).prompt_tokens]
    assert {len(one) for one in rest} == {1}
    assert {1, 2, 3, 5, 9} <= {one[0] for one in rest} <= set(range(1, 10))
    assert len(rest) == 59 - engine.stats().right_tokens
    watch.passes.clear()
    tickets = [engine.submit(sample, LONG) for sample in (SAMPLES[2], *SAMPLES[4:])]
    assert same([ticket.result() for ticket in tickets], [wanted()[2], *wanted()[4:]])
    three = [one for one in watch.passes if len(one) == 3 and max(one) <= 9]
    assert {count for one in three for count in one} == {1, 2, 3}


def test_nothing_is_guessed_while_a_prompt_is_read(model, make):
    watch = Watch(PlainDecoder(model))
    engine = make(8, watch, chunk=9)
    engine.submit(SAMPLES[3], LONG)
    for _ in range(16):
        engine.step()
    assert max(watch.passes[-1]) > 1
    begun = len(watch.passes)
    engine.submit(SAMPLES[2], LONG)
    while engine.step():
        pass
    beside = [one for one in watch.passes[begun:] if 9 in one and len(one) == 2][:4]
    assert beside == [[9, 1]] * 4


def test_who_joins_or_leaves_midway_changes_nothing_and_all_memory_comes_back(make, wanted):
    engine, tickets = make(chunk=16), []
    for sample in SAMPLES:
        tickets.append(engine.submit(sample, LONG))
        left = engine.submit(to_sample(question_messages(picture(77, (50, 50)), "Who, who leaves?")), Sampling(50))
        for _ in range(6):
            engine.step()
        left.cancel()
    assert same([ticket.result() for ticket in tickets], wanted())
    assert engine.stats().right_tokens > 0
    engine.forget()
    assert (engine.stats().tokens_held, engine.stats().pictures) == (0, 0)


def test_cancelled_answers_are_beginnings_and_what_they_leave_can_be_gone_on_with(make, wanted):
    engine = make()
    for sample, whole in zip(SAMPLES, wanted(), strict=True):
        ticket = engine.submit(sample, LONG)
        for _ in range(14):
            engine.step()
        ticket.cancel()
        outcome = ticket.result()
        assert outcome.finish == "cancelled"
        assert outcome.ids == whole.ids[: len(outcome.ids)]
        again = engine.submit(sample, LONG).result()
        assert same([again], [whole])
        assert again.cached_tokens == again.prompt_tokens - 1
    assert engine.stats().right_tokens > 0


def test_a_conversation_goes_on_from_an_answer_made_by_guesses(make, wanted):
    engine, messages = make(), [{"role": "user", "content": TEXTS[0]}]
    first = engine.submit(to_sample(messages), Sampling(30, ignore_end=True)).result()
    assert engine.stats().right_tokens > 0
    messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "Sure, sure?"}]
    second = to_sample(messages)
    outcome = engine.submit(second, LONG).result()
    assert same([outcome], wanted(samples=[second]))
    assert outcome.cached_tokens >= first.prompt_tokens


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(40, temperature=0.05, seed=7, ignore_end=True),
        Sampling(40, temperature=1.5, top_p=0.9, seed=7, ignore_end=True),
        Sampling(40, repetition_penalty=1.1, ignore_end=True),
        Sampling(40, grammar=Grammar("regex", "(ab|ba)+")),
        Sampling(9, grammar=Grammar("choice", "abababab\nbabababa")),
        Sampling(40, grammar=Grammar("json_schema", json.dumps({"type": "array", "items": {"enum": [1, 2]}}))),
    ],
    ids=lambda sampling: sampling.grammar.kind if sampling.grammar else f"t{sampling.temperature}",
)
def test_any_sampling_gives_the_same_answer(make, wanted, sampling):
    engine = make()
    tickets = [engine.submit(sample, sampling) for sample in SAMPLES[:2]]
    assert same([ticket.result() for ticket in tickets], wanted(sampling, SAMPLES[:2]))
    if sampling.grammar is not None or sampling.temperature == 0.05:
        assert engine.stats().right_tokens > 0


# where answers end


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 10, 12, 13, 15, 18, 25])
def test_no_answer_is_longer_than_asked_for(make, wanted, max_tokens):
    engine, sampling = make(), Sampling(max_tokens, ignore_end=True)
    outcomes = [engine.submit(SAMPLES[3], sampling).result() for _ in range(2)]  # then all of the prompt is known
    assert same(outcomes, wanted(sampling, SAMPLES[3:4]) * 2)
    assert {len(outcome.ids) for outcome in outcomes} == {max_tokens}
    assert engine.stats().generated_tokens == 2 * max_tokens


def test_stop_texts_end_answers_among_tokens_guessed_right(make, wanted):
    whole, beyond = wanted(samples=SAMPLES[3:4])[0].text, set()
    for length in range(3, 15):
        stop = whole[10 : 10 + length]
        engine, sampling = make(), Sampling(60, stop=(stop,), ignore_end=True)
        outcome = engine.submit(SAMPLES[3], sampling).result()
        assert (outcome.text, outcome.finish) == (whole[: whole.index(stop)], "stop")
        assert same([outcome], wanted(sampling, SAMPLES[3:4]))
        stats = engine.stats()
        beyond.add(stats.passes + stats.right_tokens - stats.generated_tokens)
        engine.forget()
        assert engine.stats().tokens_held == 0
    assert max(beyond) > 0  # right, but behind the stop
    assert min(beyond) == 0


def test_pieces_come_in_order_and_carry_every_token(make, wanted):
    engine, sampling = make(), Sampling(60, logprobs=2, ignore_end=True)
    ticket = engine.submit(SAMPLES[0], sampling)
    tokens = [token for piece in ticket for token in piece.tokens]
    plain = make(0).submit(SAMPLES[0], sampling)
    others = [token for piece in plain for token in piece.tokens]
    assert engine.stats().right_tokens > 0
    assert [(token.id, token.text) for token in tokens] == [(token.id, token.text) for token in others]
    for token, other in zip(tokens, others, strict=True):
        assert token.logprob == pytest.approx(other.logprob, abs=1e-3)
        assert [text for text, _ in token.top] == [text for text, _ in other.top]
    assert same([ticket.result()], [plain.result()])


# the decoder and the settings


@torch.inference_mode()
@pytest.mark.parametrize("held", [3, 505, 511])
def test_a_span_of_guesses_gives_each_token_the_numbers_that_it_has_alone(model, held):
    """The compiled attention cuts keys at 512: some of a span's tokens see the second part, others don't."""
    decoder = compiled_decoder(model, "fp32")
    assert decoder is not None
    memory, rows = Memory(model, 10**4, torch.float32), torch.randn(held + SHORT, model.lm.config.hidden_size)
    together, apart = memory.new(held + SHORT, 0), memory.new(held + SHORT, 0)
    for own in (together, apart):
        decoder.forward(rows[:held], torch.arange(held), [Span(0, held, (own,))])
        own.length = held
    found = decoder.forward(rows[held:], torch.arange(held, held + SHORT), [Span(0, SHORT, (together,))])
    for place in range(held, held + SHORT):
        one = decoder.forward(rows[place : place + 1], torch.tensor([place]), [Span(0, 1, (apart,))])
        apart.length += 1
        assert torch.equal(one[0], found[place - held])


def test_how_much_may_be_guessed(model):
    assert MOST_LOOKUP + 1 == SHORT  # decoders take what is longer as a prompt
    for wrong in (-1, MOST_LOOKUP + 1):
        with pytest.raises(PumiceError, match=rf"the engine's lookup is {wrong}; expected 0 \(none\) to 15 tokens"):
            Settings(lookup=wrong)
