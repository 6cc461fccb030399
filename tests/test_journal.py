"""Answers outlive the process that made them, and an old answer is never taken for a new one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import picture
from test_video import film

import pumice
from pumice.assistant import Assistant
from pumice.eval.public.answering import Answerer, Asked, cut, max_tokens, samples
from pumice.eval.public.prompts import to_messages
from pumice.formats.own import save_own
from pumice.journal import FolderJournal, entry_key, model_hash
from pumice.messages import question_messages, to_sample
from pumice.reader.reader import Reader
from pumice.templates import get_template
from pumice.types import PumiceError

SETTINGS = {"max_new_tokens": 6, "temperature": 0, "until": ["\n\n"]}


@pytest.fixture
def assistant(model, processor) -> Assistant:
    return Assistant(model, processor)


@pytest.fixture
def clip(tmp_path) -> Path:
    return film(tmp_path / "clip.mp4", frames=6, size=(48, 32))


def ask(*media: Any, text: str = "What?", settings: Any = None, doc: int = 0) -> Asked:
    """A question in lmms-eval's form: pictures are PIL images or paths, videos are paths of mp4 files."""
    kinds = ["video" if str(one).endswith("mp4") else "image" for one in media]
    content = [{"type": kind, "url": one} for kind, one in zip(kinds, media, strict=True)]
    message = {"role": "user", "content": [*content, {"type": "text", "text": text}]}
    return Asked(lambda: [message], settings or SETTINGS, "task", doc)


def mixed(clip: Path) -> list[Asked]:
    """None, one, several pictures and a video, of all shapes; two questions share a picture."""
    shared = picture(3, (40, 60))
    return [
        ask(picture(1, (30, 90)), doc=0), ask(text="Only text?", doc=1), ask(shared, doc=2),
        ask(shared, text="And the colour?", doc=3), ask(str(clip), text="What moves?", doc=4),
        ask(picture(4, (64, 20)), picture(5, (20, 64)), picture(6, (33, 33)), text="Which differs?", doc=5),
        ask(picture(7, (90, 90)), settings={"max_new_tokens": 3}, doc=6), ask(picture(8, (28, 28)), str(clip), doc=7),
    ]  # fmt: skip


def texts(answerer: Answerer, questions: list[Asked]) -> list[tuple[Any, ...]]:
    return [(one.text, one.input_tokens, one.output_tokens, one.finish) for one in answerer.answer(questions)]


def lines(folder: Path) -> int:
    return sum(len(path.read_bytes().splitlines()) for path in folder.glob("*.jsonl"))


@pytest.mark.parametrize("batch", [2, 4, 16])
def test_answers_of_mixed_media_are_those_of_one_at_a_time(assistant, clip, batch):
    alone = texts(Answerer(assistant, 1), mixed(clip))
    assert texts(Answerer(assistant, batch), mixed(clip)) == alone
    assert len({text for text, *_ in alone}) > 4, "answers hardly differ, so that a mix-up wouldn't show"
    for question, (text, *_) in zip(mixed(clip), alone, strict=True):
        sample = to_sample(to_messages(question.messages()))
        assert assistant.answer(sample, question.settings["max_new_tokens"]).text == text


def test_a_crash_leaves_what_was_answered_and_only_the_rest_is_asked(assistant, clip, tmp_path):
    questions, expected = mixed(clip), texts(Answerer(assistant, 1), mixed(clip))
    done = 0

    def crash(step: int) -> None:
        nonlocal done
        done += step
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Answerer(assistant, 1, FolderJournal(tmp_path / "kept")).answer(questions, crash)
    assert lines(tmp_path / "kept") == 3
    again = Answerer(assistant, 4, FolderJournal(tmp_path / "kept"))
    assert texts(again, questions) == expected
    assert (again.tally.total("replayed"), again.tally.total("asked")) == (3, len(questions) - 3)
    third = Answerer(assistant, 4, FolderJournal(tmp_path / "kept"))
    assert texts(third, questions) == expected
    assert third.tally.total("asked") == 0
    assert lines(tmp_path / "kept") == len(questions)


KILLED = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import pumice
from test_journal import ask
from conftest import picture
from pumice.eval.public.answering import Answerer
from pumice.journal import FolderJournal
import os, signal

done = 0
def progress(step):
    global done
    done += step
    if done >= 4:
        os.kill(os.getpid(), signal.SIGKILL)
questions = [ask(picture(i, (30 + i, 40)), doc=i) for i in range(9)]
Answerer(pumice.load({folder!r}, "float32", "cpu"), 2, FolderJournal(Path({kept!r}))).answer(questions, progress)
"""


def test_a_killed_process_leaves_its_answers(assistant, tmp_path):
    kept, folder = tmp_path / "kept", tmp_path / "model"
    save_own(assistant, folder)
    code = KILLED.format(tests=str(Path(__file__).parent), kept=str(kept), folder=str(folder))
    killed = subprocess.run([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert lines(kept) == 4
    with next(kept.glob("*.jsonl")).open("ab") as file:
        file.write(b'{"key": "abc", "text": "cut in the mi')
    questions = [ask(picture(i, (30 + i, 40)), doc=i) for i in range(9)]
    journal = FolderJournal(kept)
    assert (len(journal), journal.broken) == (4, 1)
    resumed = Answerer(pumice.load(str(folder), "float32", "cpu"), 2, journal)
    assert texts(resumed, questions) == texts(Answerer(assistant, 1), questions)
    assert (resumed.tally.total("replayed"), resumed.tally.total("asked")) == (4, 5)


def test_every_process_writes_a_file_of_its_own(tmp_path):
    journals = [FolderJournal(tmp_path, rank) for rank in (0, 0, 1)]
    for number, journal in enumerate(journals):
        journal.add(f"key {number}", {"text": "é\n\u2028" * number})
    assert len(list(tmp_path.glob("*.jsonl"))) == 3
    read = FolderJournal(tmp_path)
    assert [read.get(f"key {number}") for number in range(3)] == [{"text": "é\n\u2028" * number} for number in range(3)]
    assert read.broken == 0


def test_lines_that_hold_no_answer_are_passed_over(tmp_path):
    rows = ["[1]", "7", '{"key": "a"}', '{"text": "b"}', "", "\0\0", '{"key": "good", "text": "c"}', '{"key": "a", "te']
    (tmp_path / "answers-0-x.jsonl").write_text("\n".join(rows))
    journal = FolderJournal(tmp_path)
    assert (len(journal), journal.get("good"), journal.broken) == (1, {"text": "c"}, 7)


def test_a_journal_that_cannot_be_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PumiceError, match="journal of answers can't be read"):
        FolderJournal(tmp_path / "file")


def test_a_key_holds_everything_that_an_answer_depends_on(tmp_path, clip):
    image = picture(1, (30, 40))
    other = image.copy()
    other.putpixel((7, 9), tuple(255 - value for value in image.getpixel((7, 9))))

    def key(*media: Any, text: str = "What?", settings: Any = SETTINGS, model: str = "m") -> str:
        return entry_key(to_sample(to_messages(ask(*media, text=text).messages())), settings, model)

    first, second = picture(2, (9, 9)), picture(3, (9, 9))
    keys = {
        "it": key(image), "pixel": key(other), "turned": key(image.transpose(2)), "text": key(image, text="What"),
        "model": key(image, model="n"), "limit": key(image, settings={**SETTINGS, "max_new_tokens": 7}),
        "stop": key(image, settings={**SETTINGS, "until": ["x"]}), "none": key(), "two": key(first, second),
        "order": key(second, first), "more": key(first, second, second), "video": key(str(clip)),
        "marks": key(first, second, text="<image> or <image>?"),
    }  # fmt: skip
    assert len(set(keys.values())) == len(keys)
    image.save(tmp_path / "it.png")
    assert key(str(tmp_path / "it.png")) == key(image.copy()) == keys["it"], "the same pixels make the same key"
    shape = entry_key(to_sample(question_messages(picture(1, (20, 60)), "?")), {}, "m")
    assert shape != entry_key(to_sample(question_messages(picture(1, (60, 20)), "?")), {}, "m")


def test_a_rewritten_file_is_asked_again(assistant, tmp_path, clip):
    path = tmp_path / "a.png"
    picture(1, (30, 40)).save(path)
    questions = [ask(str(path)), ask(str(clip))]
    Answerer(assistant, 1, FolderJournal(tmp_path / "kept")).answer(questions)
    picture(2, (30, 40)).save(path)
    film(clip, frames=6, size=(48, 32), rotation=180)
    again = Answerer(assistant, 1, FolderJournal(tmp_path / "kept"))
    assert texts(again, questions) == texts(Answerer(assistant, 1), questions)
    assert again.tally.total("asked") == 2


def test_the_model_hash_is_of_the_weights_not_of_the_name(model, processor):
    before = model_hash(Assistant(model, processor, "one"))
    assert model_hash(Assistant(model, processor, "two")) == before
    others = {model_hash(Assistant(model, replace(processor, template=get_template("qwen_1_5"))))}
    others.add(model_hash(Assistant(model, replace(processor, max_tokens=1000))))
    others.add(model_hash(Assistant(model, replace(processor, mean=(0.5, 0.5, 0.4)))))
    others.add(model_hash(Assistant(model, replace(processor, policy=replace(processor.policy, unpad=False)))))
    weight = model.lm.model.layers[1].mlp.up_proj.weight
    with torch.no_grad():
        held = weight[3, 5].clone()
        weight[3, 5] = torch.nextafter(held, torch.tensor(9.0))
        others.add(model_hash(Assistant(model, processor)))
        weight[3, 5] = held
        assert model_hash(Assistant(model, processor)) == before
        model.newline[0] += 1e-3
        others.add(model_hash(Assistant(model, processor)))
    coarse, reading, less = (Assistant(model, processor) for _ in range(3))
    coarse.weights = "int8"
    reading.reader, less.reader = (Reader(lambda _: [], len, most=most) for most in (400, 300))
    others |= {model_hash(coarse), model_hash(reading), model_hash(less)}
    others.add(model_hash(Assistant(model.to(torch.bfloat16), processor)))
    assert len(others - {before}) == 10


def test_other_weights_never_get_the_old_answers(assistant, tmp_path):
    questions = [ask(picture(i, (30, 40)), doc=i) for i in range(4)]
    Answerer(assistant, 4, FolderJournal(tmp_path)).answer(questions)
    with torch.no_grad():
        assistant.model.lm.model.embed_tokens.weight.mul_(-1.5)
    changed = Answerer(assistant, 4, FolderJournal(tmp_path))
    assert texts(changed, questions) == texts(Answerer(assistant, 4), questions)
    assert changed.tally.total("replayed") == 0


def test_what_cannot_be_asked_is_counted_and_asked_again(assistant, tmp_path):
    def broken() -> Any:
        raise FileNotFoundError("picture 7")

    sound = [{"role": "user", "content": [{"type": "audio", "url": "a.wav"}, {"type": "text", "text": "?"}]}]
    clip = [{"role": "user", "content": [{"type": "video", "url": {"url": "a.mp4", "video_start": 1}}]}]
    questions = [
        ask(picture(1, (30, 40)), doc=0), Asked(broken, {}, "task", 1), Asked(lambda: sound, {}, "task", 2),
        ask(str(tmp_path / "gone.png"), doc=3), ask(text="long " * 2000, doc=4), Asked(lambda: clip, {}, "task", 5),
        ask(text="?", settings={"max_new_tokens": 0}, doc=6), ask(picture(2, (30, 40)), doc=7),
    ]  # fmt: skip
    answerer = Answerer(assistant, 4, FolderJournal(tmp_path / "kept"))
    given = answerer.answer(questions)
    assert [bool(one.error) for one in given] == [False, True, True, True, True, True, True, False]
    assert all(one.text == "" and one.output_tokens is None for one in given if one.error)
    assert answerer.tally.counts["task"]["failed"] == 6
    assert "picture 7" in answerer.tally.errors["task"]
    assert lines(tmp_path / "kept") == 2
    assert texts(Answerer(assistant, 1), questions[7:]) == [
        (given[7].text, given[7].input_tokens, given[7].output_tokens, given[7].finish)
    ]


def test_a_limit_beyond_the_models_positions_is_cut_to_the_room_that_is_left(assistant):
    limit = assistant.model.lm.config.max_position_embeddings
    long = {"max_new_tokens": limit - 60}
    questions = [ask(text="a " * 300, settings=long, doc=0), ask(text="b " * 310, settings=long, doc=1)]
    answerer = Answerer(assistant, 2)
    given = answerer.answer(questions)
    assert answerer.tally.total("shortened") == 2
    assert all(one.input_tokens + one.output_tokens <= limit for one in given)
    alone = [Answerer(assistant, 1).answer([question])[0].text for question in questions]
    assert [one.text for one in given] == alone


def test_stops_limits_and_sampling():
    assert cut("Yes. ASSISTANT: no", ["\n\n", "ASSISTANT:"]) == "Yes."
    assert cut("one\n\ntwo", ["\n\n"]) == "one\n\ntwo"
    assert cut("one STOP two", "STOP") == "one"
    assert cut("one", None) == "one"
    assert max_tokens({}) == 1024
    assert max_tokens({"max_new_tokens": 5}) == 5
    with pytest.raises(PumiceError, match="max_new_tokens is 'many'"):
        max_tokens({"max_new_tokens": "many"})
    assert samples({"temperature": 0.2})
    assert not samples({"temperature": 0.2, "do_sample": False})
    assert not samples({"temperature": 0, "do_sample": True})
    assert not samples({})


def test_marks_in_a_question_are_where_its_pictures_stand():
    a, b = picture(1, (9, 9)), picture(2, (9, 9))

    def parts(*content: Any) -> list[Any]:
        made = [{"type": "text", "text": c} if isinstance(c, str) else {"type": "image", "url": c} for c in content]
        found = to_messages([{"role": "user", "content": made}])[0]["content"]
        return [part.get("text", part.get("image")) for part in found]

    assert parts(a, b, "What?") == [a, b, "What?"]
    assert parts(a, b, "Is <image>\nlike <image>?") == ["Is ", a, "like ", b, "?"]
    assert parts(a, b, "Is <image> new?") == [a, b, "Is <image> new?"]
    assert parts("<image>?") == ["<image>?"]
    assert to_messages([{"role": "user", "content": "plain"}])[0]["content"] == [{"type": "text", "text": "plain"}]


def test_the_lines_of_a_journal_say_what_was_answered(assistant, tmp_path):
    Answerer(assistant, 1, FolderJournal(tmp_path)).answer([ask(picture(1, (30, 40)), doc=5)])
    entry = json.loads(next(tmp_path.glob("*.jsonl")).read_text())
    answer = assistant.ask(picture(1, (30, 40)), "What?", 6)
    assert (entry["task"], entry["doc"], entry["text"]) == ("task", 5, answer.text)
    assert (entry["input_tokens"], entry["output_tokens"]) == (answer.prompt_tokens, answer.tokens)
    assert entry["visual_tokens"] == answer.visual_tokens
    assert entry["ms"] >= entry["first_ms"] > 0
