"""The engine on a tiny random model: whatever shares a pass, a prefix or a picture, answers are those given alone."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
import torch
from conftest import conversation, picture, tiny_model

from pumice.assistant import Assistant
from pumice.data.batch import pack
from pumice.encode import encode
from pumice.engine.decoders import make_decoder
from pumice.engine.engine import Engine
from pumice.engine.memory import token_bytes
from pumice.engine.plain import PlainDecoder
from pumice.engine.request import Grammar, Outcome, Piece, Sampling
from pumice.engine.settings import Full, Settings
from pumice.messages import question_messages, to_sample
from pumice.types import Features, Media, PumiceError, Sample, Turn

CASES = [
    ((28, 28), "Hi?"),
    ((60, 30), "What is it?"),
    (None, "No picture"),
    ((20, 90), "x"),
    ((90, 40), "Why so long?"),
]
SAMPLES = [conversation(seed, size, question, None) for seed, (size, question) in enumerate(CASES)]


def about(image: Any, question: str) -> Sample:
    return to_sample(question_messages(image, question))


@pytest.fixture(params=["plain", "fast"])
def make(request, model, processor):
    """A function that makes an engine without a thread."""

    def made(decoder: Any = None, **settings: Any) -> Engine:
        chosen = PlainDecoder(model) if request.param == "plain" else None
        return Engine(model, processor, Settings(**settings), decoder or chosen, start=False)

    return made


@pytest.fixture
def alone(make):
    """Outcomes of samples, each asked of an engine of its own."""

    def asked(samples: list[Sample], sampling: Sampling = Sampling(9)) -> list[Outcome]:  # noqa: B008
        return [make().submit(sample, sampling).result() for sample in samples]

    return asked


def same(found: list[Outcome], wanted: list[Outcome]) -> bool:
    """Equal tokens, texts and counts, log-probabilities but for rounding."""
    for one, other in zip(found, wanted, strict=True):
        assert (one.ids, one.text, one.finish) == (other.ids, other.text, other.finish)
        assert (one.prompt_tokens, one.visual_tokens) == (other.prompt_tokens, other.visual_tokens)
        assert one.logprob == pytest.approx(other.logprob, abs=2e-3)
    return True


class Watch:
    """A decoder that notes the tokens of each pass, sequence by sequence."""

    def __init__(self, model: Any) -> None:
        self.inner, self.passes = PlainDecoder(model), []
        self.fail: Exception | None = None

    def forward(self, embedded: Any, positions: Any, spans: Any) -> Any:
        if self.fail is not None:
            raise self.fail
        self.passes.append([span.last - span.first for span in spans])
        return self.inner.forward(embedded, positions, spans)

    def head(self, hidden: Any) -> Any:
        return self.inner.head(hidden)

    @property
    def tokens(self) -> int:
        return sum(map(sum, self.passes))


@contextmanager
def tiles_seen(model: Any) -> Iterator[list[int]]:
    """Tiles of every pass through the tower."""
    seen: list[int] = []
    hook = model.tower.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    yield seen
    hook.remove()


# the same answers


@torch.inference_mode()
def test_answers_are_those_of_recomputing_everything(make, model, processor):
    for sample, outcome in zip(SAMPLES, [make().submit(s, Sampling(9)).result() for s in SAMPLES], strict=True):
        prompt = encode(sample, processor, prompt=True)
        ids, logprob = prompt.ids, 0.0
        for _ in range(9):
            document = Features(ids, torch.full_like(ids, -100), prompt.tiles, prompt.layouts)
            scores = model.logits(pack([document]))[-1].log_softmax(-1)
            ids, logprob = torch.cat([ids, scores.argmax()[None]]), logprob + float(scores.max())
        assert ids[len(prompt) :].tolist() == list(outcome.ids)
        assert outcome.logprob == pytest.approx(logprob, abs=2e-3)
        assert (outcome.prompt_tokens, outcome.cached_tokens) == (len(prompt), 0)
        assert outcome.visual_tokens == sum(placed.tokens for placed in prompt.layouts)


def test_batched_answers_are_those_given_alone(make, alone):
    engine = make()
    tickets = [engine.submit(sample, Sampling(9)) for sample in SAMPLES]
    assert same([ticket.result() for ticket in tickets], alone(SAMPLES))


@pytest.mark.parametrize("settings", [{"chunk": 1}, {"chunk": 7, "views": 1}, {"batch": 2}, {"pictures_mib": 0}])
def test_how_passes_are_cut_changes_nothing(make, alone, settings):
    engine = make(**settings)
    tickets = [engine.submit(sample, Sampling(9)) for sample in SAMPLES]
    assert same([ticket.result() for ticket in tickets], alone(SAMPLES))


def test_who_joins_or_leaves_midway_changes_nothing(make, alone):
    engine, tickets = make(chunk=16), []
    for sample in SAMPLES:
        tickets.append(engine.submit(sample, Sampling(9)))
        left = engine.submit(about(picture(77, (50, 50)), "Who leaves?"), Sampling(50))
        for _ in range(3):
            engine.step()
        left.cancel()
    assert same([ticket.result() for ticket in tickets], alone(SAMPLES))


def test_a_known_beginning_changes_nothing(make, alone):
    image, engine = picture(5, (60, 60)), make()
    samples = [about(image, question) for question in ("What?", "What is it?", "What is it?", "Why?")]
    outcomes = [engine.submit(sample, Sampling(9)).result() for sample in samples]
    assert same(outcomes, alone(samples))
    shared = outcomes[0].visual_tokens
    assert [outcome.cached_tokens > shared for outcome in outcomes] == [False, True, True, True]
    assert outcomes[2].cached_tokens == outcomes[2].prompt_tokens - 1
    assert engine.stats().cached_tokens == sum(outcome.cached_tokens for outcome in outcomes)


def test_a_conversation_reads_only_what_is_new(make, alone):
    engine, image = make(), picture(5, (60, 60))
    messages = question_messages(image, "What?")
    first = engine.submit(to_sample(messages), Sampling(9)).result()
    messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "Sure?"}]
    second = to_sample(messages)
    outcome = engine.submit(second, Sampling(9)).result()
    assert same([outcome], alone([second]))
    assert outcome.cached_tokens >= first.prompt_tokens


def test_eight_questions_at_once_read_their_picture_once(model, make):
    image, watch = picture(5, (60, 60)), Watch(model)
    samples = [about(image, "of them? " * 30 + str(n)) for n in range(8)]
    with tiles_seen(model) as seen:
        engine = make(watch, chunk=16)
        tickets = [engine.submit(sample, Sampling(1)) for sample in samples]
        outcomes = [ticket.result() for ticket in tickets]
    prompt, own = outcomes[0].prompt_tokens, 30
    assert sum(seen) == engine.count(samples[0]).views
    assert prompt + 8 < watch.tokens < prompt + 8 * own
    assert all(outcome.cached_tokens > prompt - own for outcome in outcomes[1:])


def test_the_same_picture_passes_the_tower_once_and_another_never_stands_for_it(make, alone, model):
    one, other = picture(1, (40, 30)), picture(2, (40, 30))
    samples = [about(one, "a"), about(other, "a"), about([other, one], "a"), about(one, "a")]
    with tiles_seen(model) as seen:
        engine = make()
        outcomes = [engine.submit(sample, Sampling(9)).result() for sample in samples]
        views = engine.count(samples[0]).views
    assert sum(seen) == 2 * views
    stats = engine.stats()
    assert (stats.pictures, stats.picture_hits, stats.picture_misses) == (2, 3, 2)
    assert same(outcomes, alone(samples))
    assert outcomes[0].ids != outcomes[1].ids
    assert outcomes[1].cached_tokens < outcomes[1].visual_tokens


def test_spaces_share_nothing(make, model):
    sample = about(picture(1, (40, 30)), "a")
    with tiles_seen(model) as seen:
        engine = make()
        cached = [engine.submit(sample, Sampling(3), space=s).result().cached_tokens for s in ("a", "b", "a")]
        views = engine.count(sample).views
    prompt = engine.count(sample).prompt_tokens
    assert cached == [0, 0, prompt - 1]
    assert sum(seen) == 2 * views


def test_a_seed_gives_the_same_answer_whatever_else_runs(make, alone):
    samplings = [Sampling(12, temperature=1.5, seed=seed) for seed in range(4)]
    wanted = [alone(SAMPLES[:1], sampling)[0] for sampling in samplings]
    engine = make()
    tickets = [engine.submit(SAMPLES[0], sampling) for sampling in samplings]
    others = [engine.submit(sample, Sampling(12, temperature=2.0)) for sample in SAMPLES[1:]]
    assert same([ticket.result() for ticket in tickets], wanted)
    assert len({outcome.ids for outcome in wanted}) == 4
    assert all(ticket.result().finish in ("stop", "length") for ticket in others)


def test_the_pass_that_reads_a_prompt_s_end_begins_its_answer(make, model):
    watch = Watch(model)
    engine = make(watch, chunk=16)
    words = "x" * 40
    tokens = engine.count(text(words)).prompt_tokens
    ends = [16] * (tokens // 16) + [tokens % 16]
    engine.submit(text(words), Sampling(1)).result()
    assert watch.passes == [[count] for count in ends]
    watch.passes.clear()
    engine.submit(text(words), Sampling(2)).result()  # known to its end: the last token is read again
    assert watch.passes == [[1], [1]]
    watch.passes.clear()
    known = engine.submit(text(words[:-1] + "y"), Sampling(2)).result().cached_tokens
    assert watch.passes == [[tokens - known], [1]]


def test_the_same_prompt_asked_twice_at_once_is_read_once(make, model, alone):
    watch = Watch(model)
    engine = make(watch, chunk=16)
    tickets = [engine.submit(SAMPLES[2], Sampling(9)) for _ in range(3)]
    assert same([ticket.result() for ticket in tickets], alone(SAMPLES[2:3]) * 3)
    prompt = engine.count(SAMPLES[2]).prompt_tokens
    assert watch.tokens == prompt + 2 + 3 * 8  # the two others read the last token again


# order and room


def room(engine: Engine, sample: Sample, max_tokens: int) -> int:
    return engine.count(sample).prompt_tokens - 1 + max_tokens


def mib(model: Any, tokens: int) -> float:
    return tokens * token_bytes(model, torch.float32) / 2**20


def test_a_long_document_does_not_hold_up_a_short_question(make, model):
    watch = Watch(model)
    engine = make(watch, chunk=16)
    long = engine.submit(text("y" * 600), Sampling(2))
    engine.step()
    short = engine.submit(text("short?"), Sampling(2))
    for _ in range(12):
        engine.step()
    assert short.over
    assert not long.over
    assert all(sum(one) <= 16 + 2 for one in watch.passes)
    assert long.result().finish == "length"


def text(words: str) -> Sample:
    return Sample((Turn("user", (words,)),))


def test_a_big_request_is_not_overtaken_for_ever_by_small_ones(make, model):
    engine = make(memory_mib=mib(model, 400), batch=8)
    small = [engine.submit(text(f"{n}" * 100), Sampling(9)) for n in range(2)]
    engine.step()
    big = engine.submit(text("z" * 300), Sampling(9))
    late = [engine.submit(text(f"late {n}"), Sampling(9)) for n in range(4)]
    waited = 0
    while engine.step():
        waiting = {request.ticket for request in engine._waiting}
        if big in waiting:
            waited += 1
            assert waiting >= set(late)  # they would fit
            assert engine.stats().tokens_held < 400 - 60
    assert waited > 3
    assert {ticket.result().finish for ticket in [*small, big, *late]} <= {"stop", "length"}


def test_requests_run_in_the_order_of_asking(make):
    engine = make(batch=1)
    tickets = [engine.submit(sample, Sampling(2)) for sample in SAMPLES]
    order = []
    while engine.step():
        order += [n for n, ticket in enumerate(tickets) if ticket.over and n not in order]
    assert order == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("words", "max_tokens", "settings", "error"),
    [
        ("x" * 900, 500, {}, r"the prompt has 9\d\d tokens; .* up to 500 that is more than the model's 1024 positions"),
        ("x" * 2000, 5, {}, r"the prompt has 20\d\d tokens; the model takes 1024"),
        ("x" * 90, 50, {"memory_mib": 0.025}, r"more than the 102 tokens for which there is memory \(0.025 MiB\)"),
        ("x", 0, {}, "max_tokens is 0"),
    ],
)
def test_what_cannot_fit_is_refused_with_its_counts(make, words, max_tokens, settings, error):
    engine = make(**settings)
    with pytest.raises(PumiceError, match=error):
        engine.submit(text(words), Sampling(max_tokens))
    assert engine.stats().waiting == 0


def test_pictures_are_counted_before_they_are_decoded(make):
    engine, unreadable = make(), Media(b"not a picture", (90, 40))
    sample = Sample((Turn("user", (unreadable, "What?")),))
    count = engine.count(sample)
    assert count.visual_tokens == engine.count(about(picture(1, (90, 40)), "What?")).visual_tokens > 0
    with pytest.raises(PumiceError, match=rf"{count.visual_tokens} of them visual; with an answer of up to 1023"):
        engine.submit(sample, Sampling(1023))


def test_a_full_queue_says_so(make):
    engine = make(queue=2, batch=1)
    tickets = [engine.submit(SAMPLES[2], Sampling(2)) for _ in range(2)]
    with pytest.raises(Full, match="2 requests wait"):
        engine.submit(SAMPLES[2], Sampling(2))
    engine.step()
    tickets.append(engine.submit(SAMPLES[2], Sampling(2)))
    assert len({ticket.result().ids for ticket in tickets}) == 1


# what goes wrong


def broken() -> Sample:
    """A picture whose header is fine."""
    file = io.BytesIO()
    picture(1, (60, 60)).save(file, "PNG")
    return about(file.getvalue()[:400], "What?")


@pytest.mark.parametrize("threaded", [False, True])
def test_broken_pictures_are_their_own_request_s_error(model, processor, alone, threaded):
    with closing(Engine(model, processor, start=threaded)) as engine:
        tickets = [engine.submit(sample, Sampling(5)) for sample in (SAMPLES[0], broken(), SAMPLES[1])]
        with pytest.raises(PumiceError, match="damaged or cut short"):
            tickets[1].result(30)
        with pytest.raises(PumiceError, match="damaged or cut short"):
            list(tickets[1])
        assert same([tickets[0].result(30), tickets[2].result(30)], alone(SAMPLES[:2], Sampling(5)))
        assert engine.stats().failed == 1


def test_a_failing_pass_fails_who_took_part_and_no_one_else(make, model, alone, caplog):
    watch = Watch(model)
    engine = make(watch, batch=2)
    tickets = [engine.submit(sample, Sampling(5)) for sample in SAMPLES]
    engine.step()
    engine.step()
    watch.fail = RuntimeError("out of\nluck")
    engine.step()
    watch.fail = None
    for ticket in tickets[:2]:
        with pytest.raises(PumiceError, match="the engine failed on this request: RuntimeError: out of luck"):
            ticket.result()
    assert same([ticket.result() for ticket in tickets[2:]], alone(SAMPLES[2:], Sampling(5)))
    assert same([engine.submit(SAMPLES[0], Sampling(5)).result()], alone(SAMPLES[:1], Sampling(5)))
    engine.forget()
    assert engine.stats().tokens_held == 0
    assert "out of" in caplog.text


def test_an_interruption_drops_everything_and_goes_on(make, model, alone):
    watch = Watch(model)
    engine = make(watch)
    ticket = engine.submit(SAMPLES[0], Sampling(5))
    engine.step()
    watch.fail = KeyboardInterrupt()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        ticket.result()
    watch.fail = None
    assert (engine.stats().tokens_held, engine.stats().running) == (0, 0)
    assert same([engine.submit(SAMPLES[0], Sampling(5)).result()], alone(SAMPLES[:1], Sampling(5)))


def test_cancelling_frees_what_was_taken_and_keeps_what_was_read(make):
    engine = make(chunk=16)
    before = engine.stats().tokens_held
    tickets = [engine.submit(sample, Sampling(40)) for sample in SAMPLES]
    for _ in range(12):
        engine.step()
    assert engine.stats().tokens_held > 5 * 40
    partial = [ticket for ticket in tickets if not ticket.over]
    for ticket in tickets:
        ticket.cancel()
    outcomes = [ticket.result() for ticket in partial]
    assert {outcome.finish for outcome in outcomes} == {"cancelled"}
    assert any(outcome.ids for outcome in outcomes)
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.cancelled) == (0, 0, len(partial))
    assert stats.tokens_held == sum(len(node.keys) for node in engine._scheduler.tree.nodes()) > 0
    assert engine.submit(SAMPLES[0], Sampling(1)).result().cached_tokens > 0
    engine.forget()
    assert engine.stats().tokens_held == before == 0
    assert engine.stats().pictures == 0
    tickets[0].cancel()  # once more does nothing


def test_room_is_made_by_forgetting(make, model):
    engine = make(memory_mib=mib(model, 200))
    for n in range(6):
        engine.submit(text(f"{n} of these " * 8), Sampling(5)).result()
        assert engine.stats().tokens_held <= 200
    assert engine.submit(text("5 of these " * 8), Sampling(5)).result().cached_tokens > 80
    assert engine.submit(text("0 of these " * 8), Sampling(5)).result().cached_tokens < 40


@pytest.mark.parametrize("drain", [True, False])
@pytest.mark.parametrize("threaded", [True, False])
def test_closing_answers_or_cancels_what_there_is(model, processor, drain, threaded):
    engine = Engine(model, processor, Settings(batch=2), start=threaded)
    tickets = [engine.submit(sample, Sampling(60 if not drain else 5)) for sample in SAMPLES * 2]
    engine.close(drain)
    finishes = {ticket.result(30).finish for ticket in tickets}
    assert finishes <= ({"stop", "length"} if drain else {"stop", "length", "cancelled"})
    assert drain or "cancelled" in finishes
    with pytest.raises(PumiceError, match="the engine is closed"):
        engine.submit(SAMPLES[0])
    assert engine.stats().tokens_held == 0
    engine.close()


# from other threads


def test_a_thread_answers_many(model, processor, alone):
    wanted = alone(SAMPLES, Sampling(5))
    found: dict[int, list[Outcome]] = {}
    with closing(Engine(model, processor, Settings(batch=4, chunk=32))) as engine:

        def client(number: int) -> None:
            tickets = [engine.submit(sample, Sampling(5)) for sample in SAMPLES]
            found[number] = [ticket.result(60) for ticket in tickets]

        clients = [threading.Thread(target=client, args=(number,)) for number in range(6)]
        for one in clients:
            one.start()
        for one in clients:
            one.join()
        assert engine.stats().finished == 30
    assert all(same(found[number], wanted) for number in range(6))


def test_threads_may_share_an_engine_without_one(make, alone):
    wanted, engine = alone(SAMPLES, Sampling(5)), make()
    found: dict[int, Outcome] = {}
    clients = [
        threading.Thread(target=lambda n=n: found.update({n: engine.submit(SAMPLES[n], Sampling(5)).result(60)}))
        for n in range(len(SAMPLES))
    ]
    for one in clients:
        one.start()
    for one in clients:
        one.join()
    assert same([found[n] for n in range(len(SAMPLES))], wanted)


def test_callbacks_get_every_piece_and_the_end_and_may_fail(model, processor, alone):
    events: list[Any] = []
    over = threading.Event()

    def done(event: Any) -> None:
        events.append(event)
        if not isinstance(event, Piece):
            over.set()
        raise RuntimeError("a careless callback")

    with closing(Engine(model, processor)) as engine:
        ticket = engine.submit(SAMPLES[1], Sampling(9), done=done)
        assert over.wait(30)
        assert ticket.result().text == "".join(piece.text for piece in events[:-1]) == alone([SAMPLES[1]])[0].text


def test_pieces_are_the_answer_and_carry_its_tokens(make):
    ticket = make().submit(SAMPLES[1], Sampling(9, logprobs=2))
    pieces = list(ticket)
    outcome = ticket.result()
    tokens = [token for piece in pieces for token in piece.tokens]
    assert "".join(piece.text for piece in pieces) == outcome.text
    assert tuple(token.id for token in tokens) == outcome.ids
    assert outcome.logprob == pytest.approx(sum(token.logprob for token in tokens), abs=1e-4)
    assert all(len(token.top) == 2 and token.top[0][1] >= token.top[1][1] for token in tokens)
    assert list(ticket) == []  # they are given once


def test_stop_texts_and_grammars_end_answers(make):
    whole = make().submit(SAMPLES[1], Sampling(40)).result()
    middle = whole.text[5:8]
    cut = make().submit(SAMPLES[1], Sampling(40, stop=(middle,))).result()
    assert (cut.text, cut.finish) == (whole.text[: whole.text.index(middle)], "stop")
    engine = make()
    sampling = Sampling(40, temperature=2.0, grammar=Grammar("choice", "yes\nno\nperhaps"))
    tickets = [engine.submit(sample, sampling) for sample in SAMPLES]
    plain = engine.submit(SAMPLES[1], Sampling(40))
    assert {ticket.result().text for ticket in tickets} <= {"yes", "no", "perhaps"}
    assert {ticket.result().finish for ticket in tickets} == {"stop"}
    assert same([plain.result()], [whole])
    schema = json.dumps({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]})
    cut = engine.submit(SAMPLES[1], Sampling(6, grammar=Grammar("json_schema", schema))).result()
    assert cut.finish in ("length", "stop")
    with pytest.raises(PumiceError, match="JSON schema"):
        engine.submit(SAMPLES[1], Sampling(6, grammar=Grammar("json_schema", "{")))


def test_the_model_s_own_end_can_be_ignored(make, model, processor, monkeypatch):
    sample = about(picture(3, (28, 28)), "Hi?")
    first = make().submit(sample, Sampling(6)).result().ids
    monkeypatch.setattr(type(processor), "stop_ids", (first[2],))
    assert make().submit(sample, Sampling(6)).result().ids == first[: first.index(first[2])]
    ignoring = make().submit(sample, Sampling(6, ignore_end=True)).result()
    assert (ignoring.ids, ignoring.finish) == (first, "length")


def test_weights_that_a_model_cannot_have_are_refused(model, processor):
    with pytest.raises(PumiceError, match="weights 'int3'; expected one of fp32, bf16, int8, int4"):
        make_decoder(model, "int3")
    assert Engine(model, processor, Settings(weights="int8"), start=False).submit(SAMPLES[0], Sampling(3)).result().ids


# the assistant


def test_an_assistant_remembers_until_its_weights_change(tokenizer, processor):
    model = tiny_model(len(tokenizer))
    assistant, image = Assistant(model, processor), picture(3, (60, 40))
    first = assistant.ask(image, "What?", 6)
    with tiles_seen(model) as seen:
        assert assistant.ask(image, "What?", 6).text == first.text
        assert seen == []
        assistant.forget()
        assert assistant.ask(image, "What?", 6).text == first.text
        assert len(seen) == 1
    with torch.no_grad():
        model.lm.model.layers[1].mlp.down_proj.weight.mul_(-1.0)
    changed = assistant.ask(image, "What?", 6)
    again = Assistant(model, processor).ask(image, "What?", 6)
    assert (changed.text, changed.logprob) == (again.text, again.logprob)
    assert changed.logprob != first.logprob


def test_a_stream_that_nobody_listens_to_any_more_ends(model, processor):
    assistant = Assistant(model, processor)
    stream = assistant.chat(question_messages(picture(1, (40, 40)), "?"), stream=True, max_tokens=200)
    next(stream)
    assert assistant.engine.stats().running == 1
    stream.close()  # type: ignore[attr-defined]
    assert (assistant.engine.stats().running, assistant.engine.stats().cancelled) == (0, 1)


def test_an_error_among_many_questions_leaves_nothing_running(model, processor):
    assistant = Assistant(model, processor)
    file = io.BytesIO()
    picture(1, (60, 60)).save(file, "PNG")
    pairs = [(picture(1, (40, 40)), "a"), (file.getvalue()[:400], "b"), (picture(2, (40, 40)), "c")]
    with pytest.raises(PumiceError, match="damaged"):
        assistant.ask_many(pairs, 50)
    stats = assistant.engine.stats()
    assert (stats.running, stats.waiting) == (0, 0)


LEAVING = """
import atexit, sys
atexit.register(lambda: print(engine.closed, ticket.result(0).finish))  # runs last
import pumice
from pumice.engine.engine import Engine
from pumice.engine.request import Sampling
from pumice.messages import to_sample

assistant = pumice.load(sys.argv[1])
engine = Engine(assistant.model, assistant.processor)
ticket = engine.submit(to_sample([{"role": "user", "content": "Go on."}]), Sampling(200, ignore_end=True))
next(iter(ticket))
"""


def test_a_process_that_ends_while_an_answer_is_made_ends_well(bases):
    """A thread in torch's code when the interpreter is gone would abort."""
    ran = subprocess.run([sys.executable, "-c", LEAVING, bases("llava")], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, "True cancelled\n"), ran.stderr
