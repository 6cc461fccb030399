"""What strangers may try: nothing of it takes the server down, and each gets an error that says what it is."""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import io
import json
import os
import random
import re
import signal
import socket
import struct
import time
import zlib

import httpx
import openai
import pytest
from serve_client import Running, ask, image, make_assistant, png, running, uri, wait_until
from test_pdf import pdf
from test_pdf import stream as pdf_stream
from test_video import film

from pumice.assistant import Assistant
from pumice.engine.settings import Settings
from pumice.serve.settings import ServeSettings
from pumice.vision.media import Limits

JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def assistant(tokenizer) -> Assistant:
    return make_assistant(tokenizer)


@pytest.fixture(scope="module")
def served(assistant):
    with running(assistant, ServeSettings(max_body=2**20, max_media=6)) as made:
        yield made
        wait_until(made.idle)
        wait_until(
            lambda: made.service.opener.room.held == made.server.admission.held == made.server.admission.working == 0
        )


def post(served: Running, body, path: str = "/v1/chat/completions", **options) -> httpx.Response:
    return httpx.post(served.url + path, json=body, timeout=30, **options)


def question(*parts, **given):
    return {"model": "tiny", "messages": ask("What?", *parts), "max_tokens": 4, **given}


def healthy(served: Running) -> bool:
    return post(served, question(image(png(1)))).status_code == 200


# files


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is as large as that, and is."""
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width // 8 + 1) * min(height, 2000)), 9)
    chunks = [(b"IHDR", head), (b"IDAT", rows), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


def gif_bomb(side: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", side, side) + b"\x80\0\0" + b"\0" * 6 + b"\x2c" + b"\0" * 9


HOSTILE = {
    "pixels": (bomb(60_000, 60_000), "too many pixels; at most 50,000,000"),
    "gif pixels": (gif_bomb(65_000), "starts like a GIF"),
    "cut": (png(1, (64, 64))[:-60], "damaged or cut short"),
    "html": (b"<html><script>alert(1)</script>", "HTML page"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
    "playlist": (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "not a picture"),
    "pdf": (b"%PDF-1.7\nnothing", "PDF"),
    "mp4": (b"\0\0\0\x18ftypmp42" + b"\0" * 400, "damaged or cut short"),
    "zip": (b"PK\x03\x04" + b"\0" * 100, "ZIP"),
    "zeros": (b"\0" * 1000, "not a picture"),
}


OPENING = {
    "/v1/chat/completions": lambda body: body,
    "/v1/responses": lambda body: {"model": "tiny", "input": body["messages"], "max_output_tokens": 4},
    "/tokenize": lambda body: {"model": "tiny", "messages": body["messages"]},
    "/v1/evidence": lambda body: {"model": "tiny", "messages": body["messages"], "answer": "12"},
    "/v1/previews": lambda body: {"messages": body["messages"]},
}
"""What opens files, and the form of its body."""


@pytest.mark.parametrize("path", OPENING)
@pytest.mark.parametrize("kind", ["image_url", "video_url", "file", "input_video"])
def test_every_path_refuses_every_kind_of_broken_file(served, path, kind):
    for name in ("pixels", "pdf", "mp4", "zeros"):
        data = HOSTILE[name][0]
        part = {
            "image_url": {"type": "image_url", "image_url": {"url": uri(data)}},
            "video_url": {"type": "video_url", "video_url": {"url": uri(data, "video/mp4")}},
            "input_video": {"type": "input_video", "input_video": {"data": base64.b64encode(data).decode()}},
            "file": {"type": "file", "file": {"file_data": uri(data, "application/pdf"), "filename": "a.pdf"}},
        }[kind]
        answer = post(served, OPENING[path](question(part)), path)
        said = answer.json()["error"]
        assert (answer.status_code, said["code"]) == (400, "media_unreadable"), said
        assert_own_words(said["message"])


def slow_pdf() -> bytes:
    """Ten levels of forms, each drawn ten times by the one above: 10 billion rectangles in 3 KB."""
    forms = [
        pdf_stream(
            b"/Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources << /XObject << /X %d 0 R >> >>" % (6 + level),
            b"/X Do " * 10 if level < 9 else b"0 0 5 5 re f",
        )
        for level in range(10)
    ]
    return pdf([(100, 100)], b"/X Do", b"/XObject << /X 5 0 R >>", more=forms)


def test_a_page_that_would_never_end_is_given_up(assistant):
    """By whatever renders it; what asks only for sizes isn't bothered."""
    part = {"type": "file", "file": {"file_data": uri(slow_pdf()), "filename": "a.pdf"}}
    with running(assistant, ServeSettings(workers=2, media=Limits(patience=1.0))) as served:
        for path, form in OPENING.items():
            began = time.monotonic()
            answer = post(served, form(question(part)), path)
            assert answer.status_code == (200 if path == "/tokenize" else 400), answer.text
            assert time.monotonic() - began < 20
        assert healthy(served)


@pytest.mark.parametrize("path", OPENING)
def test_a_process_that_is_killed_fails_its_own_request_on_every_path(assistant, path):
    with running(assistant, ServeSettings(workers=1)) as served:
        os.kill(served.service.pool.pids()[0], signal.SIGSTOP)
        with concurrent.futures.ThreadPoolExecutor(1) as threads:
            asked = threads.submit(post, served, OPENING[path](question(image(png(1)))), path)
            time.sleep(0.3)
            os.kill(served.service.pool.pids()[0], signal.SIGKILL)
            answer = asked.result(20)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "media_unreadable")
        assert healthy(served)


def test_a_video_of_too_many_frames_is_refused(assistant, tmp_path):
    data = film(tmp_path / "a.mp4", frames=40).read_bytes()
    part = {"type": "video_url", "video_url": {"url": uri(data, "video/mp4")}}
    with running(assistant, ServeSettings(media=Limits(max_frames=30))) as served:
        for path, form in OPENING.items():
            answer = post(served, form(question(part)), path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "media_unreadable"), answer.text


def test_a_pdf_of_too_many_pages_is_refused(assistant):
    part = {"type": "file", "file": {"file_data": uri(pdf([(200, 100)] * 9))}}
    with running(assistant, ServeSettings(media=Limits(max_pages=8))) as served:
        for path, form in OPENING.items():
            said = post(served, form(question(part)), path).json()["error"]
            assert "9 pages; at most 8" in said["message"], said


@pytest.mark.parametrize("name", HOSTILE)
def test_files_that_are_not_pictures_or_too_large(served, name):
    data, words = HOSTILE[name]
    answer = post(served, question(image(data)))
    said = answer.json()["error"]
    assert (answer.status_code, said["code"], said["param"]) == (400, "media_unreadable", "messages[0].content[0]")
    assert words in said["message"]
    assert_own_words(said["message"])


def assert_own_words(message: str) -> None:
    """Nothing that a library said: addresses, types, paths."""
    assert not re.search(r"0x[0-9a-f]{4}|object at|Error\b|/(?:work|root|usr|tmp)|\(|b'", message), message
    assert len(message) < 300


def test_fuzzed_files_get_a_400_in_our_own_words(served):
    chance = random.Random(0)
    seeds = [png(1, (40, 40)), png(2, (90, 20)), HOSTILE["mp4"][0], gif_bomb(20)]
    for mode, kind in (("RGB", "JPEG"), ("L", "TIFF"), ("P", "GIF"), ("RGB", "WEBP"), ("RGB", "BMP")):
        from conftest import picture

        buffer = io.BytesIO()
        picture(3, (30, 30)).convert(mode).save(buffer, kind)
        seeds.append(buffer.getvalue())
    bodies = []
    for number in range(90):
        data = bytearray(seeds[number % len(seeds)])
        for _ in range(chance.randint(1, 12)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        bodies.append(question(image(bytes(data[: chance.randint(8, len(data))])), max_tokens=1))
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda body: post(served, body), bodies))
    for answer in answers:
        assert answer.status_code in (200, 400), answer.text
        if answer.status_code == 400:
            assert_own_words(answer.json()["error"]["message"])
    assert sum(answer.status_code == 400 for answer in answers) > 30


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("data:image/png;base64,!!!!", "media_unreadable"),
        ("data:image/png;base64,iVBORw0KGgo", "media_unreadable"),
        ("data:image/png;base64,", "media_unreadable"),
        ("data:", "media_unreadable"),
        ("file:///etc/passwd", "remote_media_refused"),
        ("/etc/passwd", "remote_media_refused"),
        ("-", "remote_media_refused"),
        ("../tests/a.png#2", "remote_media_refused"),
        ("http://127.0.0.1/a.png", "remote_media_refused"),
        ("https://example.com/a.png", "remote_media_refused"),
    ],
)
def test_addresses_and_broken_base64(served, url, code):
    answer = post(served, question({"type": "image_url", "image_url": {"url": url}}))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)


def test_too_many_files_and_the_wrong_kind(served):
    said = post(served, question(*[image(png(1, (4, 4)))] * 7)).json()["error"]
    assert "7 files; at most 6" in said["message"]
    part = {"type": "video_url", "video_url": {"url": uri(png(1))}}
    assert "this file is a picture; expected a video" in post(served, question(part)).json()["error"]["message"]


def test_a_file_that_needs_too_much_memory_fails_alone(assistant):
    buffer = io.BytesIO()
    from PIL import Image

    Image.new("RGBA", (6000, 6000)).save(buffer, "PNG")  # 144 MB decoded, and as much again on white
    with running(assistant, ServeSettings(worker_memory=200 * 2**20, workers=1)) as served:
        answer = post(served, question(image(buffer.getvalue())))
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "media_unreadable")
        assert healthy(served)


def test_a_killed_process_fails_its_own_request_and_no_other(assistant):
    with running(assistant, ServeSettings(workers=2)) as served:
        assert healthy(served)
        first, second = served.service.pool.pids()
        os.kill(first, signal.SIGSTOP)  # it hangs with whatever it is given
        with concurrent.futures.ThreadPoolExecutor(12) as threads:
            bodies = [question(image(png(seed, (50, 50)))) for seed in range(100, 112)]
            answers = [threads.submit(post, served, body) for body in bodies]
            wait_until(lambda: sum(answer.done() for answer in answers) == 11, 30)
            os.kill(first, signal.SIGKILL)
            results = [answer.result(20) for answer in answers]
        assert sorted(answer.status_code for answer in results) == [200] * 11 + [400]
        lost = next(answer for answer in results if answer.status_code == 400)
        assert "given up" in lost.json()["error"]["message"]
        assert served.service.pool.lost == 1
        assert second in served.service.pool.pids()
        os.kill(second, signal.SIGKILL)  # while it has nothing to do: nobody notices
        time.sleep(0.1)
        for seed in range(120, 124):
            assert post(served, question(image(png(seed)))).status_code == 200
        assert served.service.pool.lost == 1


def test_a_file_that_takes_too_long_is_given_up(assistant):
    settings = ServeSettings(workers=1, media=Limits(patience=-4.0))  # five seconds later: one
    with running(assistant, settings) as served:
        os.kill(served.service.pool.pids()[0], signal.SIGSTOP)
        began = time.monotonic()
        answer = post(served, question(image(png(1))))
        assert answer.status_code == 400
        assert 0.5 < time.monotonic() - began < 10


# requests


def test_bodies_are_bounded_as_they_come_in(served):
    assert post(served, question(image(b"\x89PNG" + bytes(2**20)))).json()["error"]["code"] == "body_too_large"

    def endless():
        for _ in range(64):
            yield b" " * 65536

    answer = httpx.post(served.url + "/tokenize", content=endless(), headers=JSON, timeout=30)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


def test_a_body_that_trickles_in_is_given_up(assistant):
    with running(assistant, ServeSettings(body_seconds=0.5)) as served, connected(served) as sock:
        sock.sendall(head("/tokenize", length=1000) + b"{")
        assert b" 408 " in sock.recv(1000)
        wait_until(lambda: served.server.admission.held == 0)


@pytest.mark.parametrize("sent", [b"", b"POST /tokenize HTTP/1.1\r\nhost: 127"])
def test_a_connection_without_a_request_is_closed(sent, assistant):
    with running(assistant, ServeSettings(body_seconds=1.0)) as served, connected(served) as sock:
        sock.sendall(head("/nowhere", 0))
        assert b" 404 " in sock.recv(10_000)
        sock.sendall(sent)  # the second request of a connection
        with connected(served) as fresh:
            fresh.sendall(sent)
            assert fresh.recv(1000) == b""  # else it times out
        assert not sent or sock.recv(1000) == b""


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="no limit of the system's")
def test_a_client_that_takes_nothing_loses_its_connection(assistant):
    with running(assistant, ServeSettings(body_seconds=1.0)) as served, connected(served) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        connections = served.server.server_state.connections
        wait_until(lambda: len(connections) == 1)
        sock.sendall(b"GET /openapi.json HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n" * 400)
        wait_until(lambda: not connections, 20)


def connected(served: Running) -> socket.socket:
    host, port = served.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def head(path: str, length: int, extra: str = "") -> bytes:
    lines = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n{extra}"
    return (lines + f"content-length: {length}\r\n\r\n").encode()


def test_a_full_queue_is_a_429_that_says_when_to_come_back(assistant):
    with running(assistant, engine=Settings(memory_mib=64, batch=1, queue=2)) as served:
        served.pace[0] = 0.02
        with concurrent.futures.ThreadPoolExecutor(12) as threads:
            body = question(image(png(1)), max_tokens=30)
            answers = list(threads.map(lambda _: post(served, body), range(12)))
        refused = [answer for answer in answers if answer.status_code == 429]
        assert {answer.status_code for answer in answers} == {200, 429}
        assert all(answer.json()["error"]["code"] == "queue_full" for answer in refused)
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        with concurrent.futures.ThreadPoolExecutor(12) as threads:
            create = served.client().chat.completions.create
            errors = [work.exception() for work in [threads.submit(create, **body) for _ in range(12)]]
        assert {type(error) for error in errors} == {type(None), openai.RateLimitError}
        wait_until(served.idle)


def test_who_leaves_is_not_answered(served):
    for stream in (True, False):
        served.pace[0] = 0.02
        body = json.dumps(question(image(png(1)), max_tokens=900 - 100, stream=stream)).encode()
        with connected(served) as sock:
            sock.sendall(head("/v1/chat/completions", len(body)) + body)
            wait_until(lambda: served.engine.stats().running == 1)
            time.sleep(0.1)
        wait_until(served.idle, 3)
        wait_until(lambda: any(line.get("gone") for line in served.lines()))
    served.pace[0] = 0
    assert served.engine.stats().cancelled >= 2


def test_who_leaves_while_a_file_is_read_frees_its_process(assistant):
    with running(assistant, ServeSettings(workers=1)) as served:
        os.kill(served.service.pool.pids()[0], signal.SIGSTOP)
        body = json.dumps(question(image(png(1)))).encode()
        with connected(served) as sock:
            sock.sendall(head("/v1/chat/completions", len(body)) + body)
            time.sleep(0.3)
        assert healthy(served)


def test_a_deadline_ends_an_answer_and_a_stream(assistant):
    with running(assistant, ServeSettings(deadline=0.6)) as served:
        assert healthy(served)
        served.pace[0] = 0.03
        with pytest.raises(openai.InternalServerError) as caught:
            served.client().chat.completions.create(**question(image(png(1)), max_tokens=500))
        assert (caught.value.status_code, caught.value.code) == (504, "deadline_exceeded")
        with pytest.raises(openai.APIError, match="took more than"):
            list(served.client().chat.completions.create(**question(image(png(1)), max_tokens=500, stream=True)))
        wait_until(served.idle, 3)


def test_a_client_that_does_not_read_is_let_go(assistant):
    with running(assistant, ServeSettings(deadline=1.0)) as served, connected(served) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        body = json.dumps(question(max_tokens=900, stream=True, n=8, logprobs=True, top_logprobs=20)).encode()
        sock.sendall(head("/v1/chat/completions", len(body)) + body)
        wait_until(lambda: any(line["event"] == "request" for line in served.lines()), 10)
        wait_until(served.idle, 5)


def test_sigterm_lets_answers_end_and_takes_no_more(assistant):
    with running(assistant, ServeSettings(drain=20)) as served:
        served.pace[0] = 0.02
        client = served.client()
        stream = iter(client.chat.completions.create(**question(image(png(1)), max_tokens=60, stream=True)))
        chunks = [next(stream)]
        with connected(served) as kept:  # a connection that was open before
            kept.sendall(b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
            said = b""
            while not said.endswith(b"}"):
                said += kept.recv(2000)
            assert b" 200 " in said
            served.server.stop()
            body = json.dumps(question()).encode()
            kept.sendall(head("/tokenize", len(body)) + body)
            assert b" 503 " in kept.recv(2000)
        for path, word in (("/v1/models", "draining"), ("/ready", "draining")):  # also on new connections
            answer = httpx.get(served.url + path)
            assert answer.status_code == 503
            assert word in answer.text
        assert int(httpx.get(served.url + "/v1/models").headers["retry-after"]) >= 1
        assert httpx.get(served.url + "/health").status_code == 200
        chunks += stream
        assert chunks[-1].choices[0].finish_reason == "length"
        wait_until(lambda: refuses(served))


def refuses(served: Running) -> bool:
    try:
        httpx.get(served.url + "/health")
    except httpx.ConnectError:
        return True
    return False


def test_a_drain_that_takes_too_long_cancels(assistant):
    with running(assistant, ServeSettings(drain=1)) as served:
        served.pace[0] = 0.05
        stream = served.client().chat.completions.create(**question(image(png(1)), max_tokens=400, stream=True))
        next(iter(stream))
        served.server.stop()
        wait_until(lambda: refuses(served) and served.idle(), 10)


def test_names_under_which_the_server_may_be_asked(assistant):
    with running(assistant, ServeSettings(hosts=frozenset({"127.0.0.1", "localhost", "::1"}))) as served:
        assert healthy(served)
        for host, status in (
            ("localhost:8000", 200),
            ("[::1]:8000", 200),
            ("evil.example", 400),
            ("127.0.0.1.evil", 400),
        ):
            assert httpx.get(served.url + "/v1/models", headers={"host": host}).status_code == status


def test_fuzzed_bodies_only_ever_get_a_4xx(served):
    chance = random.Random(1)
    whole = json.dumps(question(image(png(1, (8, 8))), stop=["a"], response_format={"type": "json_object"})).encode()
    for _ in range(150):
        body = bytearray(whole)
        for _ in range(chance.randint(1, 6)):
            place = chance.randrange(len(body))
            body[place : place + chance.randint(0, 3)] = bytes(
                chance.randrange(256) for _ in range(chance.randint(0, 3))
            )
        answer = served.http.post(served.url + "/v1/chat/completions", content=bytes(body), headers=JSON, timeout=30)
        assert answer.status_code == 200 or 400 <= answer.status_code < 500, (answer.text, bytes(body))
    assert healthy(served)


def test_hostile_schemas_are_refused_in_time(served):
    deep: dict = {"type": "object"}
    for _ in range(300):
        deep = {"type": "object", "properties": {"a": deep}}
    wide = {"type": "string", "pattern": "(a|b|c|d)*" * 400 + "{1,9999}"}
    unknown = {"$ref": "http://127.0.0.1/schema.json"}
    for schema, statuses in ((deep, {200, 400}), (wide, {200, 400}), (unknown, {400}), ({"type": 7}, {400})):
        style = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        began = time.monotonic()
        answer = post(served, question(response_format=style))
        assert answer.status_code in statuses, answer.text
        assert answer.status_code == 200 or answer.json()["error"]["code"] in ("invalid_schema", "invalid_json")
        assert time.monotonic() - began < 15
    assert healthy(served)


def test_dropped_connections_leave_nothing_behind(served):
    tasks = count_tasks(served)
    for cut in (10, 60, 150, 400):
        body = json.dumps(question(image(png(1)))).encode()
        for _ in range(5):
            with connected(served) as sock:
                sock.sendall((head("/v1/chat/completions", len(body)) + body)[:cut])
    wait_until(lambda: served.server.admission.held == 0 and served.idle())
    wait_until(lambda: count_tasks(served) <= tasks)
    assert healthy(served)


def count_tasks(served: Running) -> int:
    async def count() -> int:
        return len(asyncio.all_tasks())

    return asyncio.run_coroutine_threadsafe(count(), served.service.loop).result(5)
