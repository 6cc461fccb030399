"""A server that speaks the page's API without a model, so that answers, delays and errors come on command.

Counts are real: files are opened and laid out by the package's own code. What is answered follows from the question.
"""

from __future__ import annotations

import base64
import io
import json
import sys
import threading
import time
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any

from pumice.serve.admission import HEADERS
from pumice.types import Media, PumiceError
from pumice.vision.frames import ONEVISION_VIDEO, video_layout
from pumice.vision.kinds import open_media
from pumice.vision.layout import POCKET, layout
from pumice.vision.media import read_data_uri
from pumice.vision.pdf import render_page

WEB = files("pumice.serve") / "web"
TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css",
    "js": "text/javascript",
    "svg": "image/svg+xml",
    "png": "image/png",
}
ANSWER = ["The ", "to", "tal", " is ", "3.", "69", " ", "\N{EURO SIGN}"]
MARKUP = "<b>bold</b> <img src=x onerror=\"document.title='run'\"> <script>document.title='run'</script>"
REFUSALS = {
    "flood": (429, "rate_limit_error", "rate_limit_exceeded", "60 requests a minute with this key"),
    "long": (400, "invalid_request_error", "context_length_exceeded", "9,000 tokens; the model reads 8,192"),
    "odd": (500, "server_error", "internal_error", "The server failed on this request"),
}


class Stub(ThreadingHTTPServer):
    """``requests`` holds every (path, body); ``left`` is set when a client leaves a stream."""

    daemon_threads = True

    def __init__(self, models: tuple[str, ...] = ("alpha",), key: str = "", evidence: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.models, self.key, self.evidence = models, key, evidence
        self.requests: list[tuple[str, Any]] = []
        self.regions: list[dict[str, Any]] = [{"media": 0, "box": [0.5, 0.7, 1, 0.8], "weight": 0.9}]
        self.previews = True
        self.left = threading.Event()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that closes its window leaves: no news."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def bodies(self, path: str) -> list[Any]:
        """What was posted to a path, in order."""
        return [body for asked, body in self.requests if asked == path]


class Handler(BaseHTTPRequestHandler):
    server: Stub

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self.list_models()
            return
        name = self.path.lstrip("/") or "index.html"
        if (WEB / name).is_file():
            self.send((WEB / name).read_bytes(), 200, TYPES[name.rsplit(".", 1)[1]])
        else:
            self.refuse(404, "invalid_request_error", "not_found", f"nothing at /{name}")

    def list_models(self) -> None:
        if self.allowed():
            entry = {"object": "model", "max_tokens": 8192, "evidence": self.server.evidence}
            self.json(200, {"object": "list", "data": [{"id": name, **entry} for name in self.server.models]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.requests.append((self.path, body))
        if not self.allowed():
            return
        try:
            media = [one for data in media_parts(body["messages"]) for one in open_media(data)]
        except PumiceError as error:
            self.refuse(400, "invalid_request_error", "media_unreadable", str(error))
            return
        if self.path == "/v1/previews" and not self.server.previews:
            self.refuse(429, "rate_limit_error", "queue_full", "too many files wait to be read")
            return
        if self.path == "/v1/previews":
            pages = [{"message": 0, "part": 0, "page": one.page, "image": sheet(one)} for one in media]
            self.json(200, {"pages": pages})
            return
        shapes = [entry(one) for one in media]
        if self.path == "/tokenize":
            visual = sum(shape["tokens"] for shape in shapes)
            self.json(200, {"count": visual + 20, "visual_tokens": visual, "max_tokens": 8192, "media": shapes})
        elif self.path == "/v1/evidence":
            self.json(200, {"regions": self.server.regions})
        else:
            self.chat(body, sum(shape["tokens"] for shape in shapes))

    def chat(self, body: dict[str, Any], visual: int) -> None:
        question = body["messages"][-1]["content"][-1]["text"]
        if question in REFUSALS:
            self.refuse(*REFUSALS[question])
            return
        self.begin(200, "text/event-stream")
        pieces = [MARKUP] if question == "markup" else [f"{body['model']} "] * 400 if question == "slow" else ANSWER
        try:
            for index, piece in enumerate(pieces):
                self.event(chunk(piece, index))
                time.sleep(0.02)
                if question == "cut" and index == 2:
                    return
                if question == "fail" and index == 2:
                    self.event(
                        {"error": {"message": "The engine stopped", "type": "server_error", "code": "engine_error"}}
                    )
                    return
            self.event({"choices": [{"delta": {}, "finish_reason": "stop"}]})
            details = {"cached_tokens": 0, "visual_tokens": visual}
            usage = {"prompt_tokens": visual + 20, "completion_tokens": len(pieces), "prompt_tokens_details": details}
            self.event({"choices": [], "usage": usage})
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            self.server.left.set()

    def event(self, data: Any) -> None:
        self.wfile.write(f"data: {json.dumps(data)}\n\n".encode())
        self.wfile.flush()

    def allowed(self) -> bool:
        if not self.server.key or self.headers["authorization"] == f"Bearer {self.server.key}":
            return True
        self.refuse(401, "authentication_error", "invalid_api_key", "This server needs an API key")
        return False

    def refuse(self, status: int, kind: str, code: str, message: str) -> None:
        self.json(status, {"error": {"message": message, "type": kind, "param": None, "code": code}})

    def json(self, status: int, data: Any) -> None:
        self.send(json.dumps(data).encode(), status, "application/json")

    def send(self, data: bytes, status: int, kind: str) -> None:
        self.begin(status, kind)
        self.wfile.write(data)

    def begin(self, status: int, kind: str) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        for name, value in HEADERS.items():  # the policy that the page lives under
            self.send_header(name, value)
        self.send_header("x-request-id", "req-1")
        if status == 429:
            self.send_header("retry-after", "7")
        self.end_headers()


def chunk(piece: str, index: int) -> dict[str, Any]:
    """One event; tokens are less sure the later they come, and the euro sign is spread over two tokens."""
    data = piece.encode()
    parts = [data[:2], data[2:]] if piece == "\N{EURO SIGN}" else [data]
    logprobs = [
        {
            "token": part.decode(errors="replace"),
            "bytes": list(part),
            "logprob": -0.3 * index,
            "top_logprobs": [{"token": "other", "bytes": list(b"other"), "logprob": -2.0}],
        }
        for part in parts
    ]
    return {"choices": [{"delta": {"content": piece}, "logprobs": {"content": logprobs}, "finish_reason": None}]}


def media_parts(messages: list[Any]) -> list[bytes]:
    """The bytes of every file in messages, in reading order."""
    contents = [message["content"] for message in messages if isinstance(message["content"], list)]
    found = []
    for part in (part for content in contents for part in content):
        if part["type"] == "text":
            continue
        value = part[part["type"]]
        found.append(read_data_uri(value.get("url") or value["file_data"]))
    return found


def sheet(media: Media) -> str:
    """A page in small."""
    buffer = io.BytesIO()
    render_page(media, (media.size[0] // 4, media.size[1] // 4)).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def entry(media: Media) -> dict[str, Any]:
    """How a medium becomes tokens, as `/tokenize` says it."""
    if media.kind == "video":
        shape = video_layout(min(media.frames, 8), media.size, ONEVISION_VIDEO)
    else:
        shape = layout(media.size, POCKET)
    known = asdict(shape)
    tiles = {name: known.pop(name) for name in ("cols", "rows", "tile", "side", "overview")}
    if media.kind == "video":
        known["times"] = [index / media.fps for index in range(shape.frames)]
    known |= {"kind": media.kind, "message": 0, "part": 0, "page": media.page, "views": shape.views}
    return {**known, "tiles": tiles}
