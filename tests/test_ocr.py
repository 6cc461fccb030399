"""The OCR baseline: reading order, what the language model is asked, and the real models on a drawn page."""

from __future__ import annotations

import random
import socket
import sys
import time

import pytest
from PIL import Image, ImageDraw, ImageFont

import pumice
from pumice.assistant import Answer
from pumice.eval.suite import embedded, ocr
from pumice.types import PumiceError


def box(left, top, width=40, height=16):
    return (left, top, left + width, top + height)


def laid_out(lines):
    """What the baseline's language model is shown of recognised lines."""
    return ocr.OcrPipeline(lambda picture: lines, None).text(Image.new("RGB", (9, 9)))[0]  # type: ignore[arg-type]


def test_reading_order():
    lines = [
        (box(10, 0), "Shop"),
        (box(10, 40), "Tea"), (box(150, 43), "3.20"),
        (box(10, 60), "Bread"), (box(90, 58), "x2"), (box(150, 62), "5.00"),
        (box(10, 100, height=30), "TOTAL"), (box(150, 106), "8.20"),
    ]  # fmt: skip
    wanted = "Shop\nTea  3.20\nBread  x2  5.00\nTOTAL  8.20"
    for seed in range(10):
        assert laid_out(random.Random(seed).sample(lines, len(lines))) == wanted
    # A row that slopes by more than its height over its length stays one row.
    assert laid_out([(box(i * 50, i * 6), str(i)) for i in range(5)]) == "0  1  2  3  4"
    assert laid_out([]) == ""


class Talker:
    """Stands in for the language model: repeats the last line of what it is asked."""

    def __init__(self):
        self.asked = []

    def chat(self, messages, max_tokens):
        self.asked.append(messages)
        last = messages[-1]["content"].splitlines()[-1]
        return Answer(last, 3, 0, 90, ms=10.0, first_ms=5.0, logprob=-1.0, finish="stop")


def test_the_language_model_is_asked_about_the_text():
    read = []

    def reader(picture):
        read.append(picture.size)
        time.sleep(0.005)
        return [(box(0, 0), "{Total}"), (box(90, 0), "$8.20")]

    talker = Talker()
    pipeline = ocr.OcrPipeline(reader, talker)  # type: ignore[arg-type]
    picture, other = Image.new("RGB", (60, 40), "white"), Image.new("L", (60, 40), 0)
    answers = pipeline.ask_many([(picture, "How much?"), (picture.copy(), "Where?"), (other, "Why?")], max_tokens=8)
    assert [answer.text for answer in answers] == ["Question: How much?", "Question: Where?", "Question: Why?"]
    assert read == [(60, 40)] * 2  # equal pictures are read once
    assert all(answer.ms > 10 and answer.first_ms > 5 for answer in answers)
    asked = talker.asked[0]
    assert [turn["role"] for turn in asked] == ["user", "assistant"] * len(ocr.EXAMPLES) + ["user"]
    assert "{Total}  $8.20" in asked[-1]["content"]


def test_eval_knows_the_baseline_by_name(monkeypatch, capsys):
    monkeypatch.setattr(ocr, "open_ocr", lambda: ocr.OcrPipeline(lambda picture: [], Talker()))
    monkeypatch.setattr(pumice, "load", lambda name: pytest.fail("not a model"), raising=False)
    report = embedded.main("ocr", ["cell"], 2)
    assert report["cell"].n == 2
    assert "ocr" in capsys.readouterr().out


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(PumiceError, match=r"needs RapidOCR .*pip install 'pumice\[reader\]'"):
        ocr.open_ocr()


def test_rapidocr_reads_a_drawn_page_without_a_network(monkeypatch):
    pytest.importorskip("rapidocr")

    def refuse(*args, **options):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    page = Image.new("RGB", (420, 160), "white")
    pen = ImageDraw.Draw(page)
    for at, text in (((20, 20), "Corner Cafe"), ((20, 90), "Total"), ((280, 90), "18.50")):
        pen.text(at, text, fill="black", font=ImageFont.load_default(32))
    read = ocr.rapid_ocr()
    assert laid_out(read(page)) == "Corner Cafe\nTotal  18.50"
    assert read(Image.new("RGB", (64, 64), "white")) == []


def test_the_language_model_answers_from_the_text():
    from pumice.pocket import parts

    if not all(parts.verify(parts.cache_dir() / name) for name in parts.PARTS):
        pytest.skip("the pocket model's parts aren't here")
    text = "Green Street Books\n3 May 2019\nMap  12.00\nTotal  $12.00"
    pipeline = ocr.OcrPipeline(
        lambda picture: [(box(0, 20 * i), line) for i, line in enumerate(text.splitlines())], ocr.load_reader()
    )
    (answer,) = pipeline.ask_many([(Image.new("RGB", (8, 8)), "How much is the total?")], max_tokens=16)
    assert "12.00" in answer.text
    assert answer.visual_tokens == 0
    assert answer.prompt_tokens > 100


def test_a_stopped_run_of_the_baseline_asks_only_what_is_left(monkeypatch, tmp_path):
    first, second, other = Talker(), Talker(), Talker()
    hashes = {id(first): "a", id(second): "a", id(other): "b"}
    monkeypatch.setattr(ocr, "model_hash", lambda talker: hashes[id(talker)])
    reports = []
    for talker in (first, second, other):
        monkeypatch.setattr(ocr, "open_ocr", lambda talker=talker: ocr.OcrPipeline(lambda picture: [], talker))
        reports.append(embedded.main("ocr", ["cell"], 2, kept=tmp_path, blind=False))
    assert [len(talker.asked) for talker in (first, second, other)] == [2, 0, 2]
    assert all(
        [one.answer for one in report.results] == [one.answer for one in reports[0].results] for report in reports
    )
