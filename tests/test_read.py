"""Documents to data: records in order, runs that are killed and go on, broken files among good ones, servers."""

from __future__ import annotations

import csv
import json
import math
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from conftest import picture
from test_pdf import pdf

import pumice
from pumice.cli import main
from pumice.read.ask import Answer, Questions, Schema, confidences, form
from pumice.read.journal import Journal, entry_key
from pumice.read.pages import open_pages
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
    assert main([*command, "--json"]) == 1
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
    command = ["read", *files, "--schema", str(tmp_path / "schema.json"), "--model", model, "--out", str(out), "--csv"]
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
    kept = {"a": Answer("x\ny \u2028 日本 \udc80", "stop", ((1, -0.5), (2, -1.0)), -0.75), "b": Answer("", "length")}
    journal = Journal(tmp_path / "j")
    for key, answer in kept.items():
        journal.add(key, answer)
    journal.close()
    again = Journal(tmp_path / "j")
    assert {key: again.get(key) for key in "ab"} == kept
    assert again.broken == 0


def test_a_key_holds_all_that_an_answer_depends_on(files, tmp_path):
    (page, second, _), (other,) = open_pages(files[1]), open_pages(files[0])
    ask, schema = Questions(["one", "two"]), Schema(SCHEMA, "s")
    one, two = ask.prompts

    def key(page=page, prompt=one, ask: Any = ask, limit=5, model="m") -> str:
        return entry_key(page, prompt, ask, limit, model)

    keys = [key(), key(second), key(other), key(prompt=two), key(ask=schema), key(limit=6), key(model="n")]
    assert len(set(keys)) == len(keys)
    moved = tmp_path / "moved.pdf"
    moved.write_bytes(Path(files[1]).read_bytes())
    assert entry_key(open_pages(str(moved))[0], one, ask, 5, "m") == key()


def test_confidence_is_that_of_the_value_itself():
    text = '{"a": "x", "日本": [1, {"b": 2}], "c":null}'
    spans = {"a": '"x"', "日本": '[1, {"b": 2}]', "c": "null"}
    # A token a character; those of a value are likelier the further on they are.
    chance = dict.fromkeys(range(len(text)), -9.0)
    for name, value in spans.items():
        at = text.index(value)
        chance |= dict.fromkeys(range(at, at + len(value)), -float(len(name)))
    answer = Answer(text, "stop", tuple((i + 1, chance[i]) for i in range(len(text))), -5.0)
    assert confidences(answer) == {name: round(math.exp(-len(name)), 4) for name in spans}
    # One token over all of a value and what is around it counts for both.
    assert confidences(Answer(text, "stop", ((len(text), -1.0),))) == dict.fromkeys(spans, 0.3679)
    # Where nothing is known of the tokens, all of the answer counts; where nothing is known at all, nothing is said.
    assert confidences(Answer(text, "stop", (), -2.0)) == dict.fromkeys(spans, 0.1353)
    assert confidences(Answer(text, "stop")) == {}
    assert confidences(Answer("  {}", "stop", ((4, -1.0),), -1.0)) == {}


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
    ask = Schema(SCHEMA, "s")
    settled = ask.settle(ask.prompts[0], Answer(text, finish))
    assert re.search(error, settled.error)
    assert len(settled.error) < 400


def test_the_prompt_shows_the_form():
    assert form(SCHEMA) == {"total": "what was paid", "paid": "cash or card"}
    deep = {"type": "array", "items": {"properties": {"a": {"type": ["null", "array"], "items": {}}, "b": True}}}
    assert form(deep) == [{"a": [""], "b": ""}]


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
    ],
)
def test_mistakes_are_one_line_before_a_model_is_loaded(words, error, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sources = {"list.json": "[]", "half.json": "{", "wrong.json": '{"type": "objekt"}', "empty.txt": " \n",
               "array.json": '{"type": "array"}', "S": json.dumps(SCHEMA)}  # fmt: skip
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
