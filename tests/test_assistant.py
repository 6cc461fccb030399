"""Messages in, answers out: history, errors that say where, determinism, log-probabilities."""

from __future__ import annotations

import io

import pytest
import torch
from conftest import picture

import pumice
from pumice.assistant import Assistant
from pumice.messages import question_messages, to_sample
from pumice.types import Media, PumiceError


@pytest.fixture
def assistant(model, processor) -> Assistant:
    return Assistant(model, processor)


def test_a_picture_may_be_a_path_bytes_or_pil(assistant, tmp_path):
    image = picture(3, (40, 30))
    path, buffer = tmp_path / "p.png", io.BytesIO()
    image.save(path)
    image.save(buffer, "PNG")
    answers = [assistant.ask(p, "What?", max_tokens=5) for p in (path, str(path), buffer.getvalue(), image)]
    assert len({(answer.text, answer.logprob) for answer in answers}) == 1
    assert answers[0].visual_tokens > 0
    assert answers[0].prompt_tokens > answers[0].visual_tokens
    assert 0 < answers[0].first_ms <= answers[0].ms


def test_several_pictures_come_before_the_question_in_their_order():
    images = [picture(i, (20, 20)) for i in range(2)]
    (turn,) = to_sample(question_messages(images, "Which is larger?")).turns
    first, second, text = turn.content
    assert isinstance(first, Media)
    assert isinstance(second, Media)
    assert (first.reference, second.reference, text) == (images[0], images[1], "Which is larger?")


def test_history_changes_the_prompt_and_the_answer(assistant):
    first = question_messages(picture(1, (30, 30)), "What?")
    later = [*first, {"role": "assistant", "content": "A cat."}, {"role": "user", "content": "Sure?"}]
    assert assistant.chat(later, max_tokens=3).prompt_tokens > assistant.chat(first, max_tokens=3).prompt_tokens


def test_logits_cover_the_laid_out_sequence_and_give_the_first_token(assistant):
    messages = question_messages(picture(1, (30, 30)), "What?")
    logits = assistant.logits(messages)
    answer = assistant.chat(messages, max_tokens=1)
    assert logits.shape == (answer.prompt_tokens, assistant.model.lm.config.vocab_size)
    best = float(logits[-1].log_softmax(-1).max())
    assert answer.logprob == pytest.approx(best, abs=1e-3)
    assert logits.dtype == torch.float32


def test_text_alone_is_fine(assistant):
    answer = assistant.chat([{"role": "user", "content": "Hello"}], max_tokens=4)
    assert answer.visual_tokens == 0
    assert answer.tokens <= 4


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([], "messages is empty"),
        ([{"role": "robot", "content": "x"}], r"messages\[0\]: role 'robot'"),
        ([{"role": "user", "content": 3}], r"messages\[0\]: content is int"),
        ([{"role": "user", "content": [{"type": "video"}]}], r"messages\[0\].content\[0\]: expected"),
        ([{"role": "user", "content": [{"type": "image", "image": "no-such.png"}]}], "no-such.png"),
    ],
)
def test_malformed_messages_say_what_is_wrong_and_where(assistant, messages, error):
    with pytest.raises(PumiceError, match=error):
        assistant.chat(messages)


def test_answers_that_cannot_fit_are_refused(assistant):
    with pytest.raises(PumiceError, match="more than the model's 1024 positions"):
        assistant.chat([{"role": "user", "content": "x" * 900}], max_tokens=500)
    with pytest.raises(PumiceError, match="max_tokens is 0"):
        assistant.chat([{"role": "user", "content": "x"}], max_tokens=0)


def test_loading_names_what_it_expects(tmp_path):
    with pytest.raises(PumiceError, match="unknown model 'pokcet'"):
        pumice.load("pokcet")
    with pytest.raises(PumiceError, match="dtype 'int3'; expected one of auto"):
        pumice.load("pocket", dtype="int3")
    with pytest.raises(PumiceError, match="device 'toaster'"):
        pumice.load("pocket", device="toaster")
