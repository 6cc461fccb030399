"""Captions made anew: filters, agreement, resumption, and what is kept beside them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pumice.assistant import Assistant
from pumice.cli import main
from pumice.config import DataConfig
from pumice.data.care.opening import open_path
from pumice.data.care.overlap import build_index
from pumice.data.care.texts import word_hashes
from pumice.data.importing.writing import write_entries
from pumice.data.knowledge import caption as captioning
from pumice.data.knowledge.caption import PROMPT, Run, caption
from pumice.data.knowledge.filtered import Filtered
from pumice.data.knowledge.filters import Filters, agreement, repetition
from pumice.data.knowledge.pictures import open_pictures
from pumice.data.sources import open_source
from pumice.read.ask import Answer, Prompt
from pumice.read.askers import EngineAsker
from pumice.types import Media, PumiceError

GOOD = "A small red boat lies beside a wooden pier."


class Scripted:
    """An asker whose answers are a function of the picture's width and the prompt; ``asked`` counts them."""

    digest, batch = "scripted", 2

    def __init__(self, answer: Callable[[int, str], Answer | PumiceError]) -> None:
        self.answer, self.asked = answer, 0

    def ask(self, media: Media, prompt: Prompt, done) -> None:
        self.asked += 1
        done(self.answer(media.size[0], prompt.text))

    def find_boxes(self, *_) -> None: ...
    def close(self) -> None: ...


def always(text: str, finish: str = "stop") -> Scripted:
    return Scripted(lambda width, prompt: Answer(text, finish))


def run(asker, prompts: tuple[str, ...] = (PROMPT,), **filters) -> Run:
    return Run(asker, tuple(map(Prompt, prompts)), 64, Filters(**filters))


def silent(done: int, total: int) -> None: ...


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures of 20 to 60 pixels."""
    where = tmp_path / "pictures"
    (where / "more").mkdir(parents=True)
    for i in range(5):
        place = where / ("more" if i == 4 else "") / f"{i}.png"
        Image.new("RGB", (20 + 10 * i, 16), (40 * i, 9, 9)).save(place)
    return where


# filters


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (GOOD, ""),
        ("A boat.", "length"),
        ("word " * 30, "repetition"),
        ("the cat sat on the mat and the dog saw it " * 3, "repetition"),
        ("the the the the boat lies in the sun and sleeps", "repetition"),
        ("Ein kleines rotes Boot liegt neben einem hölzernen Steg.", "language"),
        ("Ask me: which of the eleven towers along the northern river was finished before the flood", "test text"),
    ],
)
def test_what_a_filter_drops(text, fault):
    pytest.importorskip("py3langid")
    leak = "which of the eleven towers along the northern river was finished before the flood"
    filters = Filters(words=(5, 60), languages=("en",), tests=build_index([leak]))
    assert filters.fault(text) == fault


def test_a_cut_end_is_a_fault_of_its_own():
    assert Filters().fault(GOOD, whole=False) == "cut"


def test_chinese_is_counted_by_its_characters_and_told_from_english():
    pytest.importorskip("py3langid")
    text = "一只红色的小船停在木码头旁边。水面很平静。"
    assert Filters(languages=("zh",)).fault(text) == ""
    assert Filters(languages=("en",)).fault(text) == "language"
    assert Filters(words=(15, 30)).fault(text) == ""


def test_repetition_is_the_share_of_words_said_again():
    assert repetition(word_hashes("a b c d e f g h i j")) == 0
    assert repetition(word_hashes("a b c d e a b c d e")) == 0.5
    assert repetition(word_hashes("a b")) == 0


def test_agreement_is_highest_for_the_text_in_the_middle():
    shares = agreement(["a red boat by a pier", "a red boat at sea", "two green birds"])
    assert max(shares) == shares[1] or shares[0] > shares[2]
    assert shares[2] == min(shares) == 0
    assert agreement([GOOD]) == [1.0]
    assert agreement([GOOD, GOOD]) == [1.0, 1.0]


# captioning


def test_captions_of_a_folder_name_its_pictures(folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    written = caption(open_pictures(folder), run(always(GOOD)), out, "pictures", silent)
    assert written.counts == {"written": 5}
    source = open_source("x", DataConfig("llava", str(written.path), str(written.media)), Path())
    assert [source.sample(i).media[0].size[0] for i in range(5)] == [20, 30, 40, 50, 60]
    assert source.sample(0).turns[1].content == (GOOD,)
    assert source.sample(0).turns[0].content[1] == PROMPT
    made = json.loads((out / "pictures.provenance.json").read_text())
    assert (made["model"], made["prompts"]) == ("scripted", [PROMPT])
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_a_tar_and_parquet_give_the_same_captions(folder, tmp_path):
    from pyarrow import Table
    from pyarrow.parquet import write_table

    files = sorted(folder.rglob("*.png"))
    with tarfile.open(tmp_path / "p.tar", "w") as tar:
        for file in files:
            tar.add(file, file.name)
    rows = [{"id": file.stem, "image": {"bytes": file.read_bytes(), "path": None}} for file in files]
    write_table(Table.from_pylist(rows), tmp_path / "q.parquet", row_group_size=2)
    for path in (tmp_path / "p.tar", tmp_path / "q.parquet"):
        out = tmp_path / f"out-{path.stem}"
        out.mkdir()
        written = caption(open_pictures(path), run(always(GOOD)), out, path.stem, silent)
        media = str(written.media) if written.media else "."
        source = open_source("x", DataConfig(written.format, str(written.path), media), Path())  # type: ignore[arg-type]
        assert [source.sample(i).media[0].size[0] for i in range(5)] == [20, 30, 40, 50, 60]
        assert source.sample(4).turns[1].content == (GOOD,)


def test_of_several_captions_the_agreeing_one_is_kept(folder, tmp_path):
    said = {
        "A": "a red boat lies at the old pier",
        "B": "a red boat lies at the pier today",
        "C": "birds fly over green hills far away",
    }
    asker = Scripted(lambda width, prompt: Answer(said[prompt], "stop"))
    written = caption(open_pictures(folder), run(asker, ("C", "A", "B")), tmp_path, "p", silent)
    lines = [json.loads(line) for line in written.path.read_text().splitlines()]
    assert {line["conversations"][1]["value"] for line in lines} <= {said["A"], said["B"]}
    assert written.counts["captions dropped: agreement"] == 5
    kept = [json.loads(line) for line in (tmp_path / "p.captions.jsonl").read_text().splitlines()]
    assert [one["dropped"] for one in kept[0]["captions"]] == ["agreement", "", ""]


def test_what_is_dropped_is_counted_by_filter(folder, tmp_path):
    said = {20: Answer("Boat.", "stop"), 30: Answer(GOOD, "length")}
    asker = Scripted(lambda width, prompt: said.get(width, Answer(GOOD, "stop")))
    (folder / "zz.png").write_bytes(b"\x89PNG no picture")
    written = caption(open_pictures(folder), run(asker), tmp_path, "p", silent)
    assert written.counts == {
        "written": 3, "captions dropped: length": 1, "captions dropped: cut": 1,
        "left out: length": 1, "left out: cut": 1, "left out: unreadable": 1,
    }  # fmt: skip


def test_a_stopped_run_asks_for_nothing_twice_and_ends_the_same(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(captioning, "PART", 2)
    whole = tmp_path / "whole"
    whole.mkdir()
    caption(open_pictures(folder), run(always(GOOD)), whole, "p", silent)

    class Stops(Scripted):
        def ask(self, media, prompt, done):
            if self.asked == 4:
                raise KeyboardInterrupt
            super().ask(media, prompt, done)

    out = tmp_path / "out"
    out.mkdir()
    first, second = Stops(lambda *_: Answer(GOOD, "stop")), always(GOOD)
    with pytest.raises(KeyboardInterrupt):
        caption(open_pictures(folder), run(first), out, "p", silent)
    caption(open_pictures(folder), run(second), out, "p", silent)
    assert first.asked + second.asked == 5
    with pytest.raises(PumiceError, match="there is such a file"):
        caption(open_pictures(folder), run(second), out, "p", silent)
    assert first.asked + second.asked == 5
    for name in ("p.jsonl", "p.captions.jsonl", "p.provenance.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_a_server_that_is_gone_stops_the_run_and_keeps_what_there_is(folder, tmp_path):
    asker = Scripted(lambda width, prompt: Answer(GOOD, "stop") if width < 40 else PumiceError("connection refused"))
    with pytest.raises(PumiceError, match="3 of 5 captions failed, such as: connection refused"):
        caption(open_pictures(folder), run(asker), tmp_path, "p", silent)
    again = always(GOOD)
    assert caption(open_pictures(folder), run(again), tmp_path, "p", silent).counts == {"written": 5}
    assert again.asked == 3


def test_another_runs_folder_is_refused(folder, tmp_path):
    caption(open_pictures(folder), run(always(GOOD)), tmp_path, "p", silent)
    (tmp_path / "p.jsonl").unlink()
    with pytest.raises(PumiceError, match="a run with other settings was begun here"):
        caption(open_pictures(folder), run(always(GOOD), ("Other?",)), tmp_path, "p", silent)


def test_a_model_of_ours_captions(model, processor, folder, tmp_path):
    assistant = Assistant(model, processor)
    asker = EngineAsker(assistant, 8, 2, ())
    try:
        written = caption(open_pictures(folder), run(asker, words=(0, 99)), tmp_path, "p", silent)
    finally:
        asker.close()
    kept = [json.loads(line) for line in (tmp_path / "p.captions.jsonl").read_text().splitlines()]
    alone = assistant.ask(folder / "0.png", PROMPT, max_tokens=8)
    assert kept[0]["captions"][0]["caption"] == alone.text.strip()
    assert sum(count for what, count in written.counts.items() if not what.startswith("captions")) == 5


# what is there already


def test_texts_that_exist_pass_the_same_filters(tmp_path):
    answers = [GOOD, "Yes.", "word " * 30, "还没有图片。只有文字的回答也要留下来。"]
    records = [
        {"id": str(i), "conversations": [{"from": "human", "value": "Go on."}, {"from": "gpt", "value": answer}]}
        for i, answer in enumerate(answers)
    ]
    path = tmp_path / "t.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    written = write_entries(Filtered(open_path(path, "t"), {}, None, Filters()), tmp_path / "out", "t")
    assert written.counts == {"written": 2, "left out: length": 1, "left out: repetition": 1}
    assert [json.loads(line)["id"] for line in written.path.read_text().splitlines()] == ["0", "3"]


def test_the_filter_command(tmp_path, capsys):
    turns = [{"from": "human", "value": "Go on."}, {"from": "gpt", "value": GOOD}]
    (tmp_path / "t.jsonl").write_text(json.dumps({"id": "a", "conversations": turns}))
    argv = ["data", "filter", str(tmp_path / "t.jsonl"), "--out", str(tmp_path / "o"), "--workers", "1"]
    assert main([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["t"]["counts"] == {"written": 1}


@pytest.mark.parametrize(
    ("argv", "wrong"),
    [
        (["caption", "{folder}", "--out", "o", "--engine", "localhost"], "expected ray, or an address"),
        (["caption", "nowhere", "--out", "{out}"], "no such file or folder"),
        (["caption", "{folder}", "--out", "{out}", "--language", "english"], "expected codes of two letters"),
        (["caption", "{folder}", "--out", "{out}", "--min-words", "9", "--max-words", "3"], "more than --max-words"),
        (["caption", "{folder}", "--out", "{out}", "--agreement", "2"], "a number from 0 to 1"),
        (["caption", "{folder}", "--out", "{out}", "--workers", "2"], "--workers is about --engine ray"),
    ],
)
def test_mistakes_are_one_line(argv, wrong, folder, tmp_path, capsys):
    named = {"{folder}": str(folder), "{out}": str(tmp_path / "o")}
    assert main(["data", *[named.get(word, word) for word in argv]]) == 2
    error = capsys.readouterr().err
    assert wrong in error
    assert error.count("\n") == 1


def test_embedded_pictures_must_be_there(tmp_path):
    from pyarrow import Table
    from pyarrow.parquet import write_table

    write_table(Table.from_pylist([{"text": "no picture"}]), tmp_path / "x.parquet")
    with pytest.raises(PumiceError, match="no column image"):
        open_pictures(tmp_path / "x.parquet")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("a.txt"), io.BytesIO())
    with pytest.raises(PumiceError, match="no picture in it"):
        open_pictures(tmp_path / "x.tar")
