"""Documents to data: records in order, runs that are killed and go on, broken files among good ones, servers."""

from __future__ import annotations

import csv
import itertools
import json
import math
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from conftest import picture
from test_pdf import pdf
from test_video import film

import pumice
from pumice.cli import main
from pumice.engine.engine import Engine
from pumice.engine.request import Grammar
from pumice.evidence import evidence
from pumice.messages import question_messages
from pumice.read import printed
from pumice.read.ask import MISSING, Answer, Questions, Settled, assemble
from pumice.read.confidence import confidences
from pumice.read.fields import Fields, _matched
from pumice.read.journal import Journal, Output, entry_key
from pumice.read.pages import open_pages
from pumice.read.whole import Whole, form
from pumice.types import PumiceError

SCHEMA = {
    "type": "object",
    "properties": {
        "total": {"type": "string", "pattern": "^[0-9]{1,3}$", "description": "what was paid"},
        "paid": {"enum": ["cash", "card"]},
    },
    "required": ["total", "paid"],
    "additionalProperties": False,
}
QUESTIONS = "What is the total?\n\nWhich shop?\n"
SHORT = ["--max-tokens", "6", "--batch", "3"]


@pytest.fixture(scope="module")
def model(bases) -> str:
    return str(bases("next"))


@pytest.fixture
def files(tmp_path) -> list[str]:
    """A PDF of three pages, one that is broken, two pictures of which one is cut short, and one twice."""
    (tmp_path / "three.pdf").write_bytes(pdf([(200, 100)] * 3))
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.7\nnothing")
    picture(1, (60, 40)).save(tmp_path / "a.png")
    picture(2, (300, 300)).save(tmp_path / "b.png")
    whole = (tmp_path / "b.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "again.png").write_bytes((tmp_path / "a.png").read_bytes())
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    (tmp_path / "questions.txt").write_text(QUESTIONS)
    names = ("a.png", "three.pdf", "broken.pdf", "cut.png", "again.png", "gone.png")
    return [str(tmp_path / name) for name in names]


PLACES = [("a.png", None), *(("three.pdf", n) for n in (1, 2, 3)), ("broken.pdf", None), ("cut.png", None),
          ("again.png", None), ("gone.png", None)]  # fmt: skip


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def places(found: list[dict[str, Any]]) -> list[tuple[str, int | None]]:
    return [(Path(record["file"]).name, record.get("page")) for record in found]


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


def test_confidence_is_that_of_the_value_itself():
    text = '{"a": "x", "日本": [1, {"b": 2}], "c":null}'
    spans = {"a": '"x"', "日本": '[1, {"b": 2}]', "日本[0]": "1", "日本[1]": '{"b": 2}', "日本[1].b": "2", "c": "null"}
    # A token a character; those of inner values are likelier.
    chance = dict.fromkeys(range(len(text)), -9.0)
    for number, value in enumerate(spans.values(), 1):
        at = text.index(value)
        chance |= dict.fromkeys(range(at, at + len(value)), -0.1 * number)
    tokens = tuple((i + 1, chance[i]) for i in range(len(text)))
    found = confidences(text, tokens, -5.0)
    assert list(found) == list(spans)
    for name, value in spans.items():
        inside = [chance[i] for i in range(text.index(value), text.index(value) + len(value))]
        assert found[name] == pytest.approx(math.exp(sum(inside) / len(inside)), abs=1e-4)
    # One token over all of a value and what is around it counts for both.
    assert confidences(text, ((len(text), -1.0),), None) == dict.fromkeys(spans, 0.3679)
    # Where nothing is known of the tokens, all of the answer counts; where nothing is known at all, nothing is said.
    assert confidences(text, (), -2.0) == dict.fromkeys(spans, 0.1353)
    assert confidences(text, (), None) == {}
    assert confidences("  {}", ((4, -1.0),), -1.0) == {}
    assert confidences('{"a":' + "[" * 900 + "]" * 900 + "}", (), -1.0)  # not looked into for ever


@pytest.mark.parametrize(
    ("text", "finish", "error"),
    [
        ('{"total": "1"', "length", r"ended early \(length\)"),
        ("It is 12.", "stop", "isn't JSON"),
        ('{"total": NaN}', "stop", "NaN isn't a number"),
        ('{"total": 1e999}', "stop", "isn't JSON"),
        ("[1]", "stop", "is list; expected an object"),
        ('{"total": "1"}', "stop", "doesn't fit the schema: .*'paid' is a required property"),
        ('{"total": "1x", "paid": "card"}', "stop", r"doesn't fit the schema: \$.total: .*does not match"),
        ("[" * 100_000, "stop", "isn't JSON"),
    ],
)
def test_answers_that_are_not_what_was_asked_for_say_why(text, finish, error):
    ask = Whole(SCHEMA, "s")
    settled = ask.settle(ask.prompts[0], Answer(text, finish))
    said = settled.error or ask.check(assemble([settled]))
    assert re.search(error, said)
    assert len(said) < 400


def test_the_prompt_shows_the_form():
    assert form(SCHEMA) == {"total": "what was paid", "paid": "cash or card"}
    deep = {"type": "array", "items": {"properties": {"a": {"type": ["null", "array"], "items": {}}, "b": True}}}
    assert form(deep) == [{"a": [""], "b": ""}]


# Field by field

DEEP = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "total": {"type": "number"},
        "itemCount": {"type": "integer", "title": "Number of items"},
        "paid": {"type": ["boolean", "null"]},
        "method": {"enum": ["cash", "card", None]},
        "code": {"type": "string", "pattern": "^[A-C]{2}[0-9]$"},
        "note": {"type": "string", "x-question": "What is written below?"},
        "shop": {"$ref": "#/$defs/shop"},
        "items": {"type": "array", "maxItems": 1, "items": {"$ref": "#/$defs/item"}},
    },
    "required": ["total", "itemCount", "paid", "method", "code", "note", "shop", "items"],
    "additionalProperties": False,
    "$defs": {
        "shop": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "open": {"anyOf": [{"type": "boolean"}, {"type": "null"}]}},
            "required": ["name"],
        },
        "item": {
            "type": "object",
            "properties": {"price": {"type": "integer", "minimum": 0, "maximum": 9}},
            "required": ["price"],
            "additionalProperties": False,
        },
    },
}


def test_fields_are_asked_for_one_by_one_and_fit(model, tmp_path):
    """Whatever a model says, and a random one says anything: a number is one, a choice is one of them."""
    schema, out = tmp_path / "schema.json", tmp_path / "out.jsonl"
    schema.write_text(json.dumps(DEEP))
    sources = [str(tmp_path / f"{number}.png") for number in range(4)]
    for number, source in enumerate(sources):
        picture(number, (60 + number, 40)).save(source)
    command = ["read", *sources, "--schema", str(schema), "--model", model, "--max-tokens", "40"]
    main([*command, "--out", str(out)])
    found = records(out)
    assert len(found) == 4
    for record in found:
        values = record["values"]
        assert type(values.get("total")) in (int, float)
        assert type(values.get("itemCount")) is int
        assert values.get("method") in ("cash", "card", None)
        assert values.get("paid") in (True, False, None)
        assert re.fullmatch("[A-C]{2}[0-9]", values["code"])
        assert values["items"] == [] or list(values["items"][0]) == ["price"]
        assert set(record["confidence"]) >= {"total", "itemCount", "method", "paid", "code", "items"}
        assert all(0 <= sure <= 1 for sure in record["confidence"].values())
        if "error" in record:  # texts have no grammar and may go on for ever
            assert re.fullmatch(r"((note|shop.name): the answer ended early \(length\)(; )?)+", record["error"])
        else:
            jsonschema.validate(values, DEEP)
    main([*command, "--out", str(tmp_path / "out.csv"), "--csv"])
    with (tmp_path / "out.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head[2:11] == [*list(DEEP["properties"])[:6], "shop.name", "shop.open", "items"]
    assert [json.loads(row[2]) for row in rows] == [record["values"]["total"] for record in found]


def test_questions_come_from_the_schema():
    ask = Fields(DEEP, "s")
    texts = {".".join(map(str, prompt.at)): prompt.text for prompt in ask.prompts}
    assert texts == {
        "total": "What is the total?",
        "itemCount": "What is the number of items?",
        "paid": "Is it paid?",
        "method": "What is the method?",
        "code": "What is the code?",
        "note": "What is written below?",
        "shop.name": "What is the name of the shop?",
        "shop.open": "Is the shop open?",
        "items": 'Write this as JSON with texts as printed, in this form: {"items": [""]}',
    }
    described = {
        "a": {"description": "The day it was sent."},
        "is_VIP": {"type": "boolean"},
        "b": {"description": "Who?"},
        "has_tax": {"type": "boolean"},
        "c": {"description": "word " * 20},
        "dueDate2": {},
    }
    asked = [prompt.text for prompt in Fields({"properties": described}, "s").prompts]
    assert asked == ["What is the day it was sent?", "Is it VIP?", "Who?", "Is there tax?", "What is the c?",
                     "What is the due date2?"]  # fmt: skip


def test_null_is_for_fields_that_may_be_null():
    ask = Fields({"properties": {"a": {"type": ["number", "null"]}, "b": {"type": "number"}, "c": {"type": "string"}},
                  "required": ["a", "c"]}, "s")  # fmt: skip
    a, b, c = ask.prompts
    for text in ("none", "None.", "", "N/A"):
        assert ask.settle(a, Answer(text, "stop", (), -1.0)) == Settled({("a",): None}, {"a": 0.3679})
        assert ask.settle(b, Answer(text, "stop")) == Settled({("b",): MISSING}, {})  # not required: left out
        assert ask.settle(c, Answer(text, "stop")) == Settled({("c",): text}, {})
    choice = Fields({"properties": {"d": {"enum": ["some", "None"]}}}, "s")
    assert choice.settle(choice.prompts[0], Answer("None", "stop")).values == {("d",): "None"}
    assert assemble([Settled({("a", "b"): MISSING, ("c",): 1}, {})]) == {"a": {}, "c": 1}
    assert ask.settle(b, Answer("many", "stop")).error == "b: 'many' isn't a number"
    assert ask.check({"a": None, "c": ""}) == ""
    assert "'c' is a required property" in ask.check({"a": None})


def test_a_reference_that_goes_round_or_nowhere_ends():
    node = {"type": "object", "properties": {"name": {"type": "string"}, "next": {"$ref": "#/$defs/node"}}}
    schema = {"$defs": {"node": node, "loop": {"$ref": "#/$defs/loop"}}, **node}
    ask = Fields(schema, "s")
    assert 5 < len(ask.prompts) < 20
    assert ask.prompts[-1].grammar is not None
    schema["properties"] = {"a": {"$ref": "#/$defs/loop"}, "b": {"$ref": "#/$defs/none"}, "c": {"$ref": "https://x/y"}}
    assert [prompt.at for prompt in Fields(schema, "s").prompts] == [("a",), ("b",), ("c",)]


@pytest.mark.parametrize("pattern", ["^a+$", "a|b$", "^a|b$", "[0-9]{3}", "^x", r"y\$", "(a|b)c"])
def test_a_patterns_whole_line_matches_the_pattern(pattern):
    words = ["".join(word) for n in range(1, 4) for word in itertools.product("abcxy0$", repeat=n)]
    matched = [word for word in words if re.fullmatch(_matched(pattern), word)]
    assert pattern == "[0-9]{3}" or matched
    assert all(re.search(pattern, word) for word in matched)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("$1,234.50", 1234.5), ("1.234,50 EUR", 1234.5), ("CHF 1'234.05", 1234.05), ("1 234", 1234), ("12,5", 12.5),
        ("1,234", 1234), ("1.234", 1.234), ("1.234.567", 1234567), ("0,750", 0.75), ("-3", -3), ("$ -3.5", -3.5),
        ("-$5", -5), ("-EUR 5", -5), ("(12.00)", -12.0), ("INV-7", 7), (".50", 0.5), ("No.5", 5), ("12%", 12),
        ("\u22127", -7), ("007", 7), ("1234,567", 1234.567), ("1,234.567", 1234.567), ("$.", None), ("1 2 3", None),
        ("1,234,56", None), ("3 or 4", None), ("", None), ("9" * 5000, None),
    ],
)  # fmt: skip
def test_numbers_are_read_as_printed(text, value):
    if value is None:
        with pytest.raises(PumiceError, match="isn't a number"):
            printed.as_number(text)
    else:
        assert printed.as_number(text) == value
        assert type(printed.as_number(text)) is type(value)


def test_what_a_number_s_grammar_allows_is_a_number():
    rng = random.Random(0)
    for source, whole in ((printed.NUMBER, False), (printed.INTEGER, True)):
        allowed = 0
        for _ in range(60_000):
            text = "".join(rng.choices("0123456789,.' -$(aE", k=rng.randint(1, 12)))
            if re.fullmatch(source, text):
                allowed += 1
                value = printed.as_number(text, whole)
                assert math.isfinite(value)
                assert not whole or type(value) is int
        assert allowed > 1000
    assert printed.as_number("1.234", whole=True) == 1234
    assert printed.as_number("3.00", whole=True) == 3
    with pytest.raises(PumiceError, match="isn't a whole number"):
        printed.as_number("3.50", whole=True)


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("2024-05-03", "2024-05-03"), ("3 May 2024", "2024-05-03"), ("May 3, 2024", "2024-05-03"),
        ("03.05.24", "2024-05-03"), ("25/12/2024", "2024-12-25"), ("12/25/2024", "2024-12-25"),
        ("4/4/1999", "1999-04-04"), ("Date: Sept. 9th 98", "1998-09-09"),
        ("9 Sept. 98", "1998-09-09"), ("2024/5/3", "2024-05-03"),
        ("3/4/2024", None), ("31 Feb 2024", None), ("May 2024", None), ("soon", None), ("99999 1 1", None),
    ],
)  # fmt: skip
def test_dates_are_read_as_printed(text, day):
    if day is None:
        with pytest.raises(PumiceError, match=r"isn't a date|either of two days"):
            printed.as_date(text)
    else:
        assert printed.as_date(text) == day


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
    assert places(found) == [*wanted, ("damaged.pdf#2-3", 2), ("damaged.pdf#2-3", 3), ("damaged.pdf#2", None)]
    assert found[1]["error"] == "20000x10 points; expected 1 to 14,400 a side"
    assert found[3]["error"] == "damaged; expected a page that can be read"
    assert found[4]["error"] == found[1]["error"]
    assert "values" not in found[1]
    assert all("Which shop?" in found[i]["values"] for i in (0, 2, 5))
    assert "20000x10 points" in found[6]["error"]


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


def test_one_engine_answers(files, model, tmp_path, monkeypatch):
    """The assistant's own isn't made beside it, and any prompt that the model takes fits into its memory."""
    made = []
    opened = pumice.load(model)
    opened.model.lm.config.max_position_embeddings = 2**22
    monkeypatch.setattr(pumice, "load", lambda name: opened)
    start = Engine.__init__
    monkeypatch.setattr(Engine, "__init__", lambda self, *a, **k: (made.append(self), start(self, *a, **k))[1])
    main(["read", files[0], "--ask", str(tmp_path / "questions.txt"), "--model", model, *SHORT, "--evidence"])
    assert len(made) == 1
    assert made[0].stats().tokens_budget >= 2**22
    assert made[0].stats().picture_misses == 1  # two questions about one page, which is read once
    assert made[0].stats().cached_tokens > 0
    assert made[0].closed


# A server


class Stub(BaseHTTPRequestHandler):
    """Answers as OpenAI's API would, and remembers what it was asked."""

    server: StubServer

    def do_GET(self) -> None:
        self._reply(200, {"data": [{"id": "stub-model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append((dict(self.headers), body))
            number = len(self.server.asked)
        status, reply = self.server.reply(number, body)
        self._reply(status, reply)

    def _reply(self, status: int, reply: Any) -> None:
        data = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Retry-After", "0")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class StubServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Stub)
        self.lock, self.asked = threading.Lock(), []
        self.reply = self.good

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def good(self, number: int, body: dict[str, Any]) -> tuple[int, Any]:
        text = '{"total": "1é", "paid": "card"}'.replace("é", "2")
        content = [{"token": char, "bytes": list(char.encode()), "logprob": -0.1} for char in text]
        logprobs = {"content": content} if body.get("logprobs") else None
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop", "logprobs": logprobs}
        return 200, {"choices": [choice]}


@pytest.fixture
def server() -> Iterator[StubServer]:
    with StubServer() as stub:
        thread = threading.Thread(target=stub.serve_forever, daemon=True)
        thread.start()
        yield stub
        stub.shutdown()
        thread.join()


def schema_command(files, tmp_path, server, *more: str) -> list[str]:
    schema, out = str(tmp_path / "schema.json"), str(tmp_path / "out.jsonl")
    return ["read", *files, "--schema", schema, "--out", out, "--engine", server.url, *more]


def test_a_server_is_asked_the_same(files, server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    assert main(schema_command(files, tmp_path, server, "--max-tokens", "9")) == 1
    found = records(tmp_path / "out.jsonl")
    assert places(found) == PLACES
    good = [record for record in found if "error" not in record]
    assert len(good) == 5
    for record in good:
        assert record["values"] == {"total": "12", "paid": "card"}
        assert record["confidence"] == {"total": 0.9048, "paid": 0.9048}
    assert len(server.asked) == 4
    for headers, body in server.asked:
        assert headers["Authorization"] == "Bearer secret"
        assert (body["model"], body["max_tokens"], body["temperature"], body["logprobs"]) == ("stub-model", 9, 0, True)
        assert body["response_format"]["json_schema"]["schema"] == SCHEMA
        image, text = body["messages"][0]["content"]
        assert image["image_url"]["url"].startswith("data:image/png;base64,")
        assert "what was paid" in text["text"]
    assert "secret" not in (tmp_path / "out.jsonl.journal").read_text()
    main(schema_command(files, tmp_path, server, "--max-tokens", "9"))
    assert len(server.asked) == 4


def test_a_server_may_be_asked_field_by_field(files, server, tmp_path):
    """Plain questions, whose answers are read as printed; a list is asked for in JSON."""
    fields = {"total": {"type": "number"}, "paid": {"enum": ["cash", "Card"]}, "tags": {"type": "array"}}
    (tmp_path / "schema.json").write_text(json.dumps({"type": "object", "properties": fields, "required": ["paid"]}))

    def reply(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        asked = body["messages"][0]["content"][1]["text"]
        text = '{"tags": [1]}' if "tags" in asked else "It is $1,200.50." if "total" in asked else "card"
        assert ("response_format" in body) == ("tags" in asked)
        return 200, {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}

    server.reply = reply
    assert main(schema_command(files[:1], tmp_path, server, "--no-whole", "--batch", "1")) == 0
    (record,) = records(tmp_path / "out.jsonl")
    assert record["values"] == {"total": 1200.5, "paid": "Card", "tags": [1]}


def test_a_server_that_is_busy_or_breaks_off_is_asked_again(files, server, tmp_path):
    def reply(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        if number % 3 == 1:
            return 429, {"error": {"message": "busy"}}
        if number % 3 == 2:
            return 200, ["not", "an", "answer"]
        return server.good(number, body)

    server.reply = reply
    main(schema_command(files[:2], tmp_path, server, "--batch", "1"))
    found = records(tmp_path / "out.jsonl")
    assert [record.get("error") for record in found] == [None] * 4
    assert len(server.asked) == 12


def test_a_server_without_logprobs_is_asked_without(files, server, tmp_path):
    def reply(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        if "logprobs" in body:
            return 400, {"error": {"message": "logprobs is not supported"}}
        return server.good(number, body)

    server.reply = reply
    assert main(schema_command(files[:2], tmp_path, server, "--batch", "1", "--model", "theirs")) == 0
    found = records(tmp_path / "out.jsonl")
    assert [record["confidence"] for record in found] == [{}] * 4
    assert len(server.asked) == 5  # refused once
    assert {body["model"] for _, body in server.asked} == {"theirs"}


def test_what_a_server_refuses_is_an_error_of_that_record(files, server, tmp_path, capsys):
    def reply(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        if number <= 2:
            return 400, {"error": {"message": "too\nmany pixels"}}
        if number == 3:
            return 200, {"choices": []}
        if number == 4:
            return 401, {"detail": "no"}
        return server.good(number, body)

    server.reply = reply
    assert main(schema_command(files[:2], tmp_path, server, "--batch", "1")) == 1
    errors = [record.get("error", "") for record in records(tmp_path / "out.jsonl")]
    assert "400 too many pixels" in errors[0]
    assert "not a chat completion" in errors[1]
    assert "401" in errors[2]
    assert errors[3] == ""
    assert "failed: " in capsys.readouterr().err
    # What failed is asked again the next time, and only that.
    server.reply = server.good
    assert main(schema_command(files[:2], tmp_path, server, "--batch", "1")) == 0
    assert len(server.asked) == 5 + 3


# Mistakes


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--schema", "S", "--ask", "S"], "not allowed with"),
        ([], "one of the arguments --schema --ask is required"),
        (["--schema", "list.json"], "list.json: list; expected a JSON schema"),
        (["--schema", "half.json"], "half.json: not JSON"),
        (["--schema", "wrong.json"], r"wrong.json: \$.type: 'objekt'"),
        (["--schema", "array.json"], "array.json: a schema of 'array'; expected 'object'"),
        (["--schema", "gone.json"], "gone.json: No such file"),
        (["--ask", "empty.txt"], "empty.txt: no question"),
        (["--schema", "S", "--engine", "ray"], "--engine ray: expected an address"),
        (["--schema", "S", "--engine", "http://127.0.0.1:9/v1"], "127.0.0.1:9/v1: .*refused"),
        (["--schema", "S", "--out", "nowhere/out.jsonl"], "nowhere/out.jsonl: can't be written"),
        (["--schema", "S", "--out", "empty.txt"], "empty.txt: there is such a file, and no journal"),
        (["--schema", "S", "--batch", "0"], "--batch"),
        (["--schema", "bare.json"], "bare.json: it names no properties .* --whole"),
        (["--ask", "empty.txt", "--whole"], "--whole is about a schema"),
        (["--schema", "S", "--whole", "--evidence"], "--evidence doesn't go with --whole"),
        (["--schema", "S", "--evidence", "--csv"], "--evidence doesn't go with --csv"),
        (["--schema", "S", "--evidence", "--engine", "http://x"], "--evidence doesn't go with --engine"),
    ],
)
def test_mistakes_are_one_line_before_a_model_is_loaded(words, error, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sources = {"list.json": "[]", "half.json": "{", "wrong.json": '{"type": "objekt"}', "empty.txt": " \n",
               "array.json": '{"type": "array"}', "S": json.dumps(SCHEMA),
               "bare.json": '{"type": "object"}'}  # fmt: skip
    for name, text in sources.items():
        Path(name).write_text(text)
    monkeypatch.setattr(pumice, "load", lambda *_: pytest.fail("a model was loaded"))
    assert main(["read", "a.png", *words]) == 2
    said = capsys.readouterr()
    assert re.search(error, said.err)
    assert said.err.count("\n") == 1
    assert not said.out


def test_help_has_examples(capsys):
    assert main(["read", "--help"]) == 0
    assert "pumice read invoices/*.pdf --schema invoice.json --out invoices.jsonl" in capsys.readouterr().out
