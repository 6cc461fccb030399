"""Documents to data: records in order, runs that are killed and go on, broken files among good ones."""

from __future__ import annotations

import csv
import io
import json
import math
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from conftest import picture
from read_files import PLACES, QUESTIONS, SCHEMA, SHORT, make_files, places, records
from test_pdf import pdf
from test_video import film

import pumice
from pumice.cli import main
from pumice.engine.engine import Engine
from pumice.engine.request import Grammar
from pumice.evidence import evidence
from pumice.messages import question_messages
from pumice.read.ask import Answer, Questions
from pumice.read.journal import Journal, Output, entry_key
from pumice.read.pages import open_pages
from pumice.types import PumiceError


@pytest.fixture(scope="module")
def model(bases) -> str:
    return str(bases("next"))


@pytest.fixture
def files(tmp_path) -> list[str]:
    return make_files(tmp_path)


def test_a_schema_makes_a_record_of_every_page_that_fits_it(files, model, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    command = ["read", *files, "--schema", str(tmp_path / "schema.json"), "--out", str(out), "--model", model]
    assert main([*command, "--json", "--whole"]) == 1
    found = records(out)
    assert places(found) == PLACES
    for record in found:
        name = Path(record["file"]).name
        if name in ("broken.pdf", "cut.png", "gone.png"):
            assert "\n" not in record["error"]
            assert not record["error"].startswith(record["file"])
            assert not record.get("values")
        else:
            assert "error" not in record
            jsonschema.validate(record["values"], SCHEMA)
            assert list(record["confidence"]) == ["total", "paid"]
            assert all(0 < value <= 1 for value in record["confidence"].values())
    assert {key: value for key, value in found[0].items() if key != "file"} == {
        key: value for key, value in found[6].items() if key != "file"
    }
    summary = json.loads(capsys.readouterr().out)
    assert (summary["files"], summary["records"], summary["failed"]) == (6, 8, 3)
    assert summary["asked"] == 5  # the same bytes are asked about once
    assert len(summary["errors"]) == 3
    assert "no such file" in summary["errors"][2]


def test_questions_are_answered_as_the_assistant_answers_them(files, model, tmp_path, capsys):
    """Also on standard output; the confidence is the answer's mean probability."""
    command = ["read", files[0], files[1] + "#2-3", "--ask", str(tmp_path / "questions.txt"), "--model", model, *SHORT]
    main(command)
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert places(found) == [("a.png", None), ("three.pdf#2-3", 2), ("three.pdf#2-3", 3)]
    assistant = pumice.load(model)
    for record, source in zip(found, (files[0], files[1] + "#2", files[1] + "#3"), strict=True):
        assert list(record["values"]) == ["What is the total?", "Which shop?"]
        for question, text in record["values"].items():
            answer = assistant.ask(source, question, max_tokens=6)
            assert text == answer.text
            if answer.finish == "stop":
                assert "error" not in record
            else:
                assert f"'{question}': the answer ended early (length)" in record["error"]
                mean = math.exp(answer.logprob / answer.tokens)
                assert record["confidence"][question] == pytest.approx(mean, abs=2e-3)


def test_a_table_has_a_row_a_record(files, model, tmp_path):
    out = tmp_path / "out.csv"
    command = ["read", *files, "--schema", str(tmp_path / "schema.json"), "--model", model, "--out", str(out), "--csv",
               "--whole"]  # fmt: skip
    assert main(command) == 1
    with out.open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["file", "page", "total", "paid", "total (confidence)", "paid (confidence)", "error"]
    assert [(Path(row[0]).name, int(row[1]) if row[1] else None) for row in rows] == PLACES
    assert all(bool(row[-1]) != bool(row[2]) for row in rows)


def test_the_same_command_asks_only_what_is_left(files, model, tmp_path, capsys):
    out, journal = tmp_path / "out.jsonl", tmp_path / "out.jsonl.journal"
    command = ["read", *files, "--ask", str(tmp_path / "questions.txt"), "--out", str(out), "--model", model, *SHORT]
    main([*command, "--json"])
    assert json.loads(capsys.readouterr().out)["asked"] == 10
    whole, lines = out.read_bytes(), journal.read_bytes().splitlines(keepends=True)
    assert len(lines) == 8  # the picture that is cut short has no answers
    # A journal whose last line is half written, and with one that is damaged.
    journal.write_bytes(b"".join(lines[:3]) + b'{"key": 3}\n' + lines[3] + lines[4][: len(lines[4]) // 2])
    main([*command, "--json"])
    summary = json.loads(capsys.readouterr().out)
    assert (summary["asked"], summary["broken_lines"]) == (4 + 2, 1)
    assert out.read_bytes() == whole
    main([*command, "--json"])
    summary = json.loads(capsys.readouterr().out)
    assert summary["asked"] == 2  # what failed is tried again
    assert out.read_bytes() == whole
    # Another question asks that one alone; another length, all.
    (tmp_path / "questions.txt").write_text(QUESTIONS + "What day?\n")
    main([*command, "--json"])
    assert json.loads(capsys.readouterr().out)["asked"] == 4 + 3
    main([*command, "--json", "--max-tokens", "5"])
    assert json.loads(capsys.readouterr().out)["asked"] == 5 * 3


@pytest.mark.slow
def test_killed_again_and_again_a_run_loses_and_doubles_nothing(model, tmp_path):
    files = []
    for number in range(12):
        files.append(str(tmp_path / f"{number}.png"))
        picture(number, (50 + number, 40)).save(files[-1])
    (tmp_path / "questions.txt").write_text(QUESTIONS)
    command = [sys.executable, "-m", "pumice.cli", "read", *files, "--ask", str(tmp_path / "questions.txt"),
               "--model", model, "--max-tokens", "40", "--batch", "2"]  # fmt: skip
    whole = subprocess.run([*command, "--out", str(tmp_path / "whole.jsonl")], capture_output=True, check=False)
    assert whole.returncode in (0, 1), whole.stderr.decode()[-2000:]
    out, journal = tmp_path / "out.jsonl", tmp_path / "out.jsonl.journal"
    for kept in (1, 13):
        process = subprocess.Popen([*command, "--out", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < kept):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, process.stderr and process.stderr.read()[-2000:]
        if out.exists():
            shown = out.read_bytes()
            assert (tmp_path / "whole.jsonl").read_bytes().startswith(shown)
    done = subprocess.run([*command, "--out", str(out), "--json"], capture_output=True, check=False)
    summary = json.loads(done.stdout)
    assert summary["found"] >= 13
    assert summary["asked"] + summary["found"] == 24
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_two_runs_do_not_write_one_journal(tmp_path):
    first = Journal(tmp_path / "j")
    with pytest.raises(PumiceError, match="another run is writing it"):
        Journal(tmp_path / "j")
    first.close()
    Journal(tmp_path / "j").close()


def test_the_journal_gives_back_what_was_kept(tmp_path):
    boxes = (((0.1, 0.2, 0.3, 1.0), 0.75, None), ((0.0, 0.0, 1.0, 1.0), 0.25, 3))
    odd = Answer("x\ny \u2028 日本 \udc80", "stop", ((1, -0.5), (2, -1.0)), -0.75, boxes)
    kept = {"a": odd, "b": Answer("", "length"), "c": Answer("", "stop", boxes=())}
    journal = Journal(tmp_path / "j")
    for key, answer in kept.items():
        journal.add(key, answer)
    journal.close()
    again = Journal(tmp_path / "j")
    assert {key: again.get(key) for key in "abc"} == kept
    assert again.broken == 0


def test_a_key_holds_all_that_an_answer_depends_on(files, tmp_path):
    (page, second, _), (other,) = open_pages(files[1]), open_pages(files[0])
    one, two = Questions(["one", "two"]).prompts
    held = [replace(one, grammar=Grammar("choice", choices)) for choices in ("a", "b")]

    def key(page=page, prompt=one, limit=5, model="m") -> str:
        return entry_key(page, prompt, limit, model)

    prompts = [key(prompt=prompt) for prompt in (two, *held)]
    keys = [key(), key(second), key(other), *prompts, key(limit=6), key(model="n")]
    assert len(set(keys)) == len(keys)
    moved = tmp_path / "moved.pdf"
    moved.write_bytes(Path(files[1]).read_bytes())
    assert entry_key(open_pages(str(moved))[0], one, 5, "m") == key()


def test_one_changed_field_asks_for_that_field_alone(files, model, tmp_path, capsys):
    schema = tmp_path / "fields.json"
    fields: dict[str, Any] = {"paid": {"type": "boolean"}, "total": {"type": "number"}, "number": {"type": "integer"}}
    command = ["read", files[0], files[1], "--schema", str(schema), "--model", model, "--out", str(tmp_path / "o"),
               "--json"]  # fmt: skip
    asked = []
    for change in ({}, {}, {"total": {"type": "number", "title": "sum"}}, {"paid": {"enum": ["a", "b"]}}):
        fields |= change
        schema.write_text(json.dumps({"type": "object", "properties": fields}))
        assert main(command) == 0
        asked.append(json.loads(capsys.readouterr().out)["asked"])
    assert asked == [12, 0, 4, 4]


def test_evidence_is_boxes_for_each_field(files, model, tmp_path, capsys):
    """An earlier run's answers are kept: only where they were read is looked for."""
    schema, out = tmp_path / "fields.json", tmp_path / "out.jsonl"
    fields = {"total": {"type": "number"}, "paid": {"type": "boolean"}, "gone": {"enum": [None]}}
    schema.write_text(json.dumps({"properties": fields, "required": ["total", "paid"]}))
    command = ["read", *files[:2], "--schema", str(schema), "--model", model, "--out", str(out), "--json"]
    counts = []
    for more in ([], ["--evidence"], ["--evidence"]):
        assert main([*command, *more]) == 0
        summary = json.loads(capsys.readouterr().out)
        counts.append((summary["asked"], summary["found"]))
        plain = records(out)
        assert all(("evidence" in record) == bool(more) for record in plain)
    assert counts == [(12, 0), (0, 12), (0, 12)]
    for record in plain:
        assert list(record["evidence"]) == ["total", "paid"]  # what isn't there was read nowhere
        assert record["values"]["gone"] is None
        for regions in record["evidence"].values():
            assert regions
            assert sum(region["weight"] for region in regions) == pytest.approx(1, abs=1e-3)
            for x0, y0, x1, y1 in (region["box"] for region in regions):
                assert 0 <= x0 < x1 <= 1
                assert 0 <= y0 < y1 <= 1
    assistant = pumice.load(model)
    text = next(answer for answer in map(json.loads, Path(f"{out}.journal").read_text().splitlines()))["text"]
    (first, *_) = evidence(assistant, question_messages(files[0], "What is the total?"), text)
    assert plain[0]["evidence"]["total"][0]["box"] == pytest.approx(first.box, abs=1e-4)


def test_one_damaged_page_fails_alone(model, tmp_path):
    path, out = tmp_path / "damaged.pdf", tmp_path / "out.jsonl"
    path.write_bytes(pdf([(200, 100), (20_000, 10), (200, 100)]).replace(b"/Count 3", b"/Count 4"))
    (tmp_path / "questions.txt").write_text("Which shop?")
    command = ["read", str(path), str(path) + "#2-3", str(path) + "#2", "--ask", str(tmp_path / "questions.txt"),
               "--model", model, "--out", str(out), *SHORT]  # fmt: skip
    assert main(command) == 1
    found = records(out)
    wanted = [("damaged.pdf", 1), ("damaged.pdf", 2), ("damaged.pdf", 3), ("damaged.pdf", 4)]
    assert places(found) == [*wanted, ("damaged.pdf#2-3", 2), ("damaged.pdf#2-3", 3), ("damaged.pdf#2", 2)]
    assert found[1]["error"] == "20000x10 points; expected 1 to 14,400 a side"
    assert found[3]["error"] == "damaged; expected a page that can be read"
    assert found[4]["error"] == found[1]["error"]
    assert "values" not in found[1]
    assert all("Which shop?" in found[i]["values"] for i in (0, 2, 5))
    assert found[6]["error"] == found[1]["error"]


def test_a_video_is_one_record(bases, tmp_path):
    movie, out = film(tmp_path / "a.mp4", frames=9), tmp_path / "out.jsonl"
    (tmp_path / "schema.json").write_text('{"properties": {"count": {"type": "integer"}}}')
    command = ["read", str(movie), "--schema", str(tmp_path / "schema.json"), "--model", str(bases("onevision")),
               "--out", str(out), "--evidence"]  # fmt: skip
    assert main(command) == 0
    (record,) = records(out)
    assert places([record]) == [("a.mp4", None)]
    assert type(record["values"]["count"]) is int
    assert all(0 <= region["frame"] < 9 for region in record["evidence"]["count"])
    # Cut short, it is an error of its own.
    movie.write_bytes(movie.read_bytes()[:600])
    assert main([*command[:-3], "--out", str(tmp_path / "cut.jsonl")]) == 1
    assert "error" in records(tmp_path / "cut.jsonl")[0]


def test_cells_that_a_spreadsheet_would_run_are_harmless(tmp_path):
    values = {"a": '=HYPERLINK("x")', "b": "-12.50", "c": "@x", "d": "+41 79 1", "e": "\t=1", "f": "-1+cmd", "g": -3,
              "h": "12", "i": "+5%", "j": ["=1"], "k": {"l": "=2"}, "=m": None}  # fmt: skip
    columns: list[Any] = [*((name,) for name in values if name != "k"), ("k", "l")]
    output = Output(tmp_path / "t.csv", columns)
    output.write({"file": "=x.png", "values": values, "confidence": {"a": 0.5}, "error": "-bad"})
    output.close()
    with (tmp_path / "t.csv").open(newline="") as file:
        head, row = csv.reader(file)
    assert head[2:14] == [*"abcdefghij", "'=m", "k.l"]
    assert row[:14] == ["'=x.png", "", "'=HYPERLINK(\"x\")", "-12.50", "'@x", "'+41 79 1", "'\t=1", "'-1+cmd", "-3",
                        "12", "+5%", '["=1"]', "", "'=2"]  # fmt: skip
    assert (row[14], row[-1]) == ("0.5", "'-bad")


@pytest.mark.parametrize("table", [False, True])
def test_a_files_name_need_not_be_unicode(table, tmp_path, monkeypatch):
    """Not on standard output, either, which a locale may have as strict UTF-8."""
    record = {"file": "n\udcff\N{SNOWMAN}.png", "values": {"a": "\xe9"}, "confidence": {}}
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="")
    monkeypatch.setattr(sys, "stdout", stream)
    for path in (tmp_path / "records", None):
        output = Output(path, [("a",)] if table else None)
        output.write(record)
        output.close()
    stream.flush()
    told = stream.buffer.getvalue().decode()
    assert told == (tmp_path / "records").read_bytes().decode()
    assert "n\\udcff\N{SNOWMAN}.png" in told
    assert table or json.loads(told) == record


def test_records_that_can_not_be_written_name_their_file(tmp_path):
    output = Output(tmp_path / "t.jsonl")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, hard))
    try:
        with pytest.raises(PumiceError, match=r"t\.jsonl: can't be written \("):
            output.write({"file": "a" * 100})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_one_engine_answers(files, model, tmp_path, monkeypatch):
    """The assistant's own isn't made beside it, and any prompt that the model takes fits into its memory."""
    made = []
    opened = pumice.load(model)
    opened.model.lm.config.max_position_embeddings = 2**22
    monkeypatch.setattr(pumice, "load", lambda *_, **__: opened)
    start = Engine.__init__
    monkeypatch.setattr(Engine, "__init__", lambda self, *a, **k: (made.append(self), start(self, *a, **k))[1])
    main(["read", files[0], "--ask", str(tmp_path / "questions.txt"), "--model", model, *SHORT, "--evidence"])
    assert len(made) == 1
    assert made[0].stats().tokens_budget >= 2**22
    assert made[0].stats().picture_misses == 1  # two questions about one page, which is read once
    assert made[0].stats().cached_tokens > 0
    assert made[0].closed
