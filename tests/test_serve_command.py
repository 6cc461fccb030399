"""Keys, the command, a real process with SIGTERM, and the OpenAPI document."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import socket
import stat
import subprocess
import sys

import httpx
import pytest
from conftest import tiny_model
from serve_client import image, make_assistant, png, running, wait_until

from pumice.cli import main
from pumice.cli.serve import host_name, is_loopback, named
from pumice.engine.engine import Engine
from pumice.engine.settings import Settings
from pumice.serve.answers import Served
from pumice.serve.app import Service, make_app
from pumice.serve.errors import ApiError, clean
from pumice.serve.keys import Caller, Keys, new_key, read_keys
from pumice.serve.log import Log
from pumice.serve.run import check_room
from pumice.serve.server import Server, listen, serve
from pumice.serve.settings import ServeSettings
from pumice.types import PumiceError

# memory


def test_a_memory_that_holds_no_picture_is_refused_with_what_would_do(tokenizer):
    assistant = make_assistant(tokenizer)
    engine = Engine(assistant.model, assistant.processor, Settings(memory_mib=1), start=False)
    held = engine.stats().tokens_budget
    check_room("m", engine, held)
    with pytest.raises(PumiceError, match=rf"m: --memory 1 holds {held} tokens, .* takes {2 * held}: raise it to 2 or"):
        check_room("m", engine, 2 * held)


# keys


def test_a_new_key_is_only_stored_as_its_hash(tmp_path, capsys):
    path = tmp_path / "keys.toml"
    assert main(["serve", "--new-key", "team-a", "--api-keys", str(path)]) == 0
    key = capsys.readouterr().out.strip()
    assert key not in path.read_text()
    assert hashlib.sha256(key.encode()).hexdigest() in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    other = new_key(path, "team-b")
    keys = read_keys(path)
    assert keys.find(f"Bearer {key}").name == "team-a"
    assert keys.find(f"bearer {other}").name == "team-b"
    for header in (None, "", key, f"Basic {key}", "Bearer", "Bearer x", f"Bearer {key}x", "Bearer \u00e4"):
        with pytest.raises(ApiError) as caught:
            keys.find(header)
        assert caught.value.status == 401
    with pytest.raises(PumiceError, match="there is a key 'team-a' already"):
        new_key(path, "team-a")
    with pytest.raises(PumiceError, match="expected up to 64"):
        new_key(path, 'a"\n[[key]]')


@pytest.mark.parametrize("text", ["", "# none left\n", "[[key]]\nname = 'a'\nsha256 = '" + "0" * 64 + "'"])
def test_a_new_key_goes_into_a_file_without_keys_or_without_a_last_line_s_end(tmp_path, text):
    path = tmp_path / "keys.toml"
    path.write_text(text)
    key = new_key(path, "b")
    assert read_keys(path).find(f"Bearer {key}").name == "b"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no key"),
        ("[[key]]\nname = 'a'\nsha256 = 'pm-secret'", "isn't 64 hexadecimal"),
        ("[[key]]\nname = 'a'\nkey = 'pm-secret'", "key = 'pm-secret'; expected name"),
        ("[[key]]\nname = 'a'\nsha256 = '" + "0" * 64 + "'\nconcurrent = -1", "0 \\(no limit\\) or more"),
        ("[[key]]\nname = 7", "name = 7; expected"),
        ("key = 1", "no key"),
        ("[[key", "expected a file of API keys"),
    ],
)
def test_files_of_keys_that_are_wrong(tmp_path, text, words):
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(PumiceError, match=words):
        read_keys(path)


def test_an_allowance_refills_steadily():
    now = [100.0]
    caller = Caller(requests_per_minute=6, clock=lambda: now[0])
    for _ in range(6):
        caller.count()
    with pytest.raises(ApiError) as caught:
        caller.count()
    assert caught.value.headers() == {"retry-after": "10"}
    now[0] += 9.9
    with pytest.raises(ApiError):
        caller.count()
    now[0] += 0.2
    caller.count()
    now[0] += 1000
    for _ in range(6):
        caller.count()
    with pytest.raises(ApiError):
        caller.count()


# errors


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "bytes: damaged (cannot identify <_io.BytesIO object at 0x7f12>); expected a PNG",
            "bytes: damaged; expected a PNG",
        ),
        ("a (b (c) d) e", "a e"),
        ("a\nb\x1b[2J\u202ec", "a b [2J c"),
        ("x" * 900, "x" * 400),
    ],
)
def test_only_our_own_words_are_told(text, said):
    assert clean(text) == said


# the command


def test_names_of_models():
    assert named(["pocket", "runs/mine", "b=runs/b/model"]) == {
        "pocket": "pocket",
        "mine": "runs/mine",
        "b": "runs/b/model",
    }
    with pytest.raises(PumiceError, match="two models are called 'model'"):
        named(["a/model", "b/model"])


@pytest.mark.parametrize("option", ["--allowed-host", "--remote-host"])
def test_hosts_that_no_request_could_match_are_refused(option, capsys):
    assert [host_name(text) for text in ("Example.com.", "10.0.0.1", "[::1]", "my_host")] == [
        "example.com", "10.0.0.1", "::1", "my_host",
    ]  # fmt: skip
    for wrong in ("http://example.com/", "example.com:8000", "example.com/a", "*.example.com", ""):
        assert main(["serve", "no-such-model", option, wrong]) == 2
        assert "a name or address alone" in capsys.readouterr().err


def test_a_server_that_others_can_reach_needs_keys(capsys):
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "::", "example.com")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip
    assert main(["serve", "--host", "0.0.0.0"]) == 2
    assert "can be reached by others" in capsys.readouterr().err
    assert main(["serve", "--new-key", "a"]) == 2
    assert "--new-key needs --api-keys" in capsys.readouterr().err


def test_a_taken_port_is_said_before_a_model_is_opened(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", "no-such-model", "--port", str(taken.getsockname()[1])]) == 2
    assert "choose another --host or --port" in capsys.readouterr().err
    assert main(["serve", "no-such-model", "--port", "99999"]) == 2
    assert "at most 65535" in capsys.readouterr().err


@pytest.fixture
def process(tmp_path, tokenizer):
    """A server in a process of its own, with two names of a tiny model, and its address."""
    from pumice.formats.own import save_own

    assistant = make_assistant(tokenizer)
    assistant.model = tiny_model(len(tokenizer))
    save_own(assistant, tmp_path / "tiny")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "pumice.cli",
        "serve",
        str(tmp_path / "tiny"),
        f"second={tmp_path / 'tiny'}",
        "--port",
        str(port),
        "--threads",
        "1",
    ]
    started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: started.poll() is not None or answers(url), 120)
        yield started, url
    finally:
        started.kill()
        started.wait()


def test_a_server_that_cannot_start_fails(tokenizer, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    log, listening = io.StringIO(), listen("127.0.0.1", 0)
    assistant, settings = make_assistant(tokenizer), ServeSettings()
    engine = Engine(assistant.model, assistant.processor, Settings(memory_mib=64))
    service = Service({"tiny": Served.of("tiny", assistant, engine)}, settings)
    started: list[bool] = []
    made = Server(make_app(service, Keys([]), Log(log)), settings, "127.0.0.1", 0, lambda: started.append(True))
    with listening, pytest.raises(SystemExit) as ended:
        serve(made, listening)
    assert ended.value.code
    assert not started  # else it would have said that it listens
    engine.close()


INTERRUPTED = """
import os, signal, time
from pumice.serve.fork_server import ForkServer
signal.signal(signal.SIGINT, lambda *_: None)
server = ForkServer()
server._start()
time.sleep(0.5)
os.killpg(0, signal.SIGINT)
connection, pid = server.new()
print(pid > 0)
server.close()
"""


def test_ctrl_c_is_for_the_server_alone():
    """A terminal sends it to all processes; one that only begins would end with a traceback."""
    command = [sys.executable, "-c", INTERRUPTED]
    ended = subprocess.run(command, capture_output=True, text=True, start_new_session=True, timeout=120)
    assert (ended.stdout, ended.stderr) == ("True\n", "")


def chat(**given):
    return {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 3, **given}


def test_a_process_serves_folders_and_ends_at_sigterm(process):
    process, url = process
    texts = []
    for name in ("tiny", "second"):
        answer = httpx.post(url + "/v1/chat/completions", json=chat(model=name), timeout=30)
        assert answer.status_code == 200
        texts.append(answer.json()["choices"][0]["message"]["content"])
    assert texts[0] == texts[1]
    assert [one["id"] for one in httpx.get(url + "/v1/models").json()["data"]] == ["tiny", "second"]
    assert httpx.get(url + "/v1/models", headers={"host": "evil.example"}).status_code == 400
    children = read_children(process.pid)
    assert children
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    lines = [json.loads(line) for line in errors.splitlines()]
    assert lines[0]["event"] == "listening"
    assert any(line["event"] == "request" and line["status"] == 200 for line in lines)
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in children))  # noqa: PTH110


def test_sigterm_under_running_answers(process):
    """Streams end as they would have, new requests get 503 meanwhile, and the exit code is 0."""
    process, url = process
    children = read_children(process.pid)
    for child in children:
        os.kill(child, signal.SIGTERM)  # as systemd does with all of a service's
    picture = {"role": "user", "content": [image(png(1))]}
    answer = httpx.post(url + "/v1/chat/completions", json=chat(messages=[picture]), timeout=30)
    assert answer.status_code == 200
    assert read_children(process.pid) == children
    asked = chat(max_tokens=900, n=8, stream=True, temperature=1.5, seed=1)
    alone = httpx.post(url + "/v1/chat/completions", json=asked, timeout=120).text
    with httpx.stream("POST", url + "/v1/chat/completions", json=asked, timeout=120) as answer:
        lines = answer.iter_lines()
        first = [next(lines) for _ in range(20)]
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: httpx.get(url + "/ready").status_code == 503, 5)
        refused = httpx.post(url + "/v1/chat/completions", json=chat(), timeout=30)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert int(refused.headers["retry-after"]) >= 1
        rest = list(lines)
    assert said([*first, *rest]) == said(alone.splitlines())
    assert rest[-2] == "data: [DONE]"
    process.communicate(timeout=30)
    assert process.returncode == 0


def said(lines: list[str]) -> list[tuple[str, str]]:
    """(text, finish) of each choice of a stream."""
    texts, ends = [""] * 8, [""] * 8
    for line in lines:
        if line.startswith("data: {"):
            for choice in json.loads(line.removeprefix("data: "))["choices"]:
                texts[choice["index"]] += choice["delta"].get("content") or ""
                ends[choice["index"]] = choice["finish_reason"] or ends[choice["index"]]
    return list(zip(texts, ends, strict=True))


def answers(url: str) -> bool:
    try:
        return httpx.get(url + "/ready", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def read_children(pid: int) -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


# the document


def test_requests_made_up_from_the_document_are_answered_as_it_says(tokenizer):
    schemathesis = pytest.importorskip("schemathesis")
    import hypothesis
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    with running(make_assistant(tokenizer)) as served:
        schema = schemathesis.openapi.from_url(served.url + "/openapi.json")
        settings = hypothesis.settings(
            max_examples=15,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        wanted = (
            not_a_server_error, checks.status_code_conformance, checks.content_type_conformance,
            checks.response_schema_conformance,
        )  # fmt: skip
        tried = []
        for result in schema.get_all_operations():
            operation = result.ok()

            @hypothesis.given(case=operation.as_strategy())
            @settings
            def check(case):
                tried.append(case.path)
                case.call_and_validate(checks=wanted, timeout=20)

            check()
        assert set(tried) == set(schema.raw_schema["paths"])
        assert {"/v1/chat/completions", "/v1/responses", "/v1/evidence", "/v1/previews", "/tokenize"} <= set(tried)
        assert httpx.get(served.url + "/health").status_code == 200
