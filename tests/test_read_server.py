"""Documents to data by a server behind OpenAI's chat completions."""

from __future__ import annotations

import base64
import io
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from conftest import picture
from PIL import Image
from read_files import PLACES, SCHEMA, make_files, places, records
from test_pdf import pdf
from test_video import film

from pumice.cli import main


@pytest.fixture
def files(tmp_path) -> list[str]:
    return make_files(tmp_path)


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


def test_nobody_waits_for_a_server_after_ctrl_c(files, server, tmp_path):
    begun, over = threading.Event(), threading.Event()

    def reply(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        begun.set()
        over.wait(60)
        return server.good(number, body)

    server.reply = reply
    command = [sys.executable, "-m", "pumice.cli", *schema_command(files[:1], tmp_path, server)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as run:
        try:
            assert begun.wait(120)
            run.send_signal(signal.SIGINT)
            assert run.wait(30) == 130
        finally:
            over.set()
            run.kill()
        assert not run.stderr.read()


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


def test_a_video_is_sent_as_it_is_and_a_page_as_a_picture(server, tmp_path):
    movie, page = film(tmp_path / "a.mp4", frames=9), tmp_path / "page.pdf"
    page.write_bytes(pdf([(300, 100)]))
    (tmp_path / "questions.txt").write_text("What moves?")
    out = tmp_path / "out.jsonl"
    assert main(["read", str(movie), str(page), "--ask", str(tmp_path / "questions.txt"), "--out", str(out),
                 "--engine", server.url, "--batch", "1"]) == 0  # fmt: skip
    first, second = (body["messages"][0]["content"][0] for _, body in server.asked)
    assert first["type"] == "video_url"
    assert base64.b64decode(first["video_url"]["url"].removeprefix("data:video/mp4;base64,")) == movie.read_bytes()
    assert second["type"] == "image_url"
    shown = Image.open(io.BytesIO(base64.b64decode(second["image_url"]["url"].removeprefix("data:image/png;base64,"))))
    assert shown.size == (1250, 417)  # 300 dpi


def test_our_own_server_answers_as_the_model_itself(tokenizer, tmp_path, monkeypatch):
    """The whole way: every kind of file, over HTTP and not, has the same values."""
    from serve_client import make_assistant, running

    import pumice

    assistant = make_assistant(tokenizer)
    picture(1, (60, 40)).save(tmp_path / "a.png")
    film(tmp_path / "a.mp4", frames=9)
    (tmp_path / "questions.txt").write_text("What is it?")
    files = [str(tmp_path / name) for name in ("a.png", "a.mp4")]
    command = ["read", *files, "--ask", str(tmp_path / "questions.txt"), "--max-tokens", "6", "--out"]
    with running(assistant) as served:
        main([*command, str(tmp_path / "theirs"), "--engine", f"{served.url}/v1"])
    monkeypatch.setattr(pumice, "load", lambda *_, **__: assistant)
    main([*command, str(tmp_path / "own")])
    theirs, own = records(tmp_path / "theirs"), records(tmp_path / "own")
    assert [record["values"] for record in theirs] == [record["values"] for record in own]
    assert len({record["values"]["What is it?"] for record in own}) == 2
    for record, expected in zip(theirs, own, strict=True):
        assert record["confidence"] == pytest.approx(expected["confidence"], abs=2e-3)
