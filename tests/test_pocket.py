"""The shipped pocket model: it opens, answers the same every time, and its formats are the tokenizer's own."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

import pumice
from pumice.assistant import Assistant
from pumice.encode import encode
from pumice.messages import question_messages
from pumice.pocket.parts import LM, WEIGHTS, get_part
from pumice.templates import get_template
from pumice.types import PumiceError, Sample, Turn

DEMO = Path(__file__).parents[1] / "demo"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pocket() -> Assistant:
    try:
        get_part(LM.name)
    except PumiceError as error:
        pytest.skip(str(error))
    return pumice.load("pocket", dtype="float32")


def test_the_weights_are_small_enough_to_ship():
    assert WEIGHTS.stat().st_size <= 60 * 2**20


def test_answers_are_the_same_alone_and_in_a_batch(pocket):
    rows = json.loads((DEMO / "questions.json").read_text())[::4]
    pairs = [([DEMO / "pictures" / name for name in row["files"]], row["question"]) for row in rows]
    together = pocket.ask_many(pairs, max_tokens=24)
    alone = [pocket.ask(paths, question, max_tokens=24) for paths, question in pairs]
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    assert all(answer.text and answer.finish == "stop" for answer in alone)


def test_the_picture_changes_what_is_likely(pocket):
    def first_word(name: str):
        messages = question_messages(DEMO / "pictures" / name, "What is in the picture?")
        return pocket.logits(messages)[-1].softmax(-1)

    # Total variation between the two distributions of the first token: 0 when no picture reaches the language model.
    assert 0.5 * float((first_word("cherry.png") - first_word("chart.png")).abs().sum()) > 0.005


def test_pages_are_read(pocket):
    asked = {("receipt.png", "Date?"): "2011/11/22", ("table.png", "What is the Votes of Fleury?"): "57"}
    for (name, question), truth in asked.items():
        assert pocket.ask(DEMO / "pictures" / name, question).text == truth
    swapped = pocket.ask(DEMO / "pictures" / "form.png", "Date?").text
    assert swapped != "2011/11/22"


def test_the_smollm2_template_is_the_tokenizers_own(pocket):
    processor = dataclasses.replace(pocket.processor, template=get_template("smollm2"))
    turns = (Turn("user", ("What is 2 + 2?\n",)), Turn("assistant", ("4.",)), Turn("user", (" And 3?",)))
    own = processor.tokenizer.apply_chat_template(
        [{"role": turn.role, "content": turn.content[0]} for turn in turns], add_generation_prompt=True
    )
    ids = own if isinstance(own, list) else own["input_ids"]
    assert encode(Sample(turns), processor, prompt=True).ids.tolist() == ids
