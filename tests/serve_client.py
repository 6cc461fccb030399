"""A server of tiny random models in a thread, and the official OpenAI client."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import openai
from conftest import TILE, picture, tiny_model

from pumice.assistant import Assistant
from pumice.encode import Processor
from pumice.engine.engine import Engine
from pumice.engine.plain import PlainDecoder
from pumice.engine.settings import Settings
from pumice.serve.answers import Served
from pumice.serve.app import Service, make_app
from pumice.serve.fetch import Fetcher
from pumice.serve.keys import Keys
from pumice.serve.log import Log
from pumice.serve.server import Server, listen, serve
from pumice.serve.settings import ServeSettings
from pumice.templates import get_template
from pumice.vision.layout import Policy


@dataclass
class Running:
    """A server that answers at ``url``."""

    url: str
    service: Service
    server: Server
    engine: Engine
    log: io.StringIO
    pace: list[float]
    """Seconds that every pass of the engine takes longer."""
    http: httpx.Client
    """Shared by all clients, because making one takes long."""

    def client(self, key: str = "none") -> openai.OpenAI:
        """The official client, which asks once."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60, http_client=self.http)

    def lines(self) -> list[dict[str, Any]]:
        """What was logged."""
        return [json.loads(line) for line in self.log.getvalue().splitlines()]

    def idle(self) -> bool:
        """Whether the engine has nothing to do."""
        stats = self.engine.stats()
        return stats.running == stats.waiting == 0


class Paced(PlainDecoder):
    """The plain decoder, as slow as a test wants it."""

    pace: list[float]

    def forward(self, *arguments: Any) -> Any:
        time.sleep(self.pace[0])
        return super().forward(*arguments)


def make_assistant(tokenizer: Any) -> Assistant:
    """The tiny random model of conftest."""
    grids = ((1, 1), (1, 2), (2, 1), (2, 2))
    policy = Policy("anyres", TILE, 1, grids, "multi", newline=True, unpad=True, rounding="cover")
    processor = Processor(tokenizer, get_template("chatml"), policy, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), 1024)
    return Assistant(tiny_model(len(tokenizer)), processor)


@contextlib.contextmanager
def running(
    assistant: Assistant,
    settings: ServeSettings | None = None,
    keys: Keys | None = None,
    fetcher: Fetcher | None = None,
    engine: Settings | None = None,
) -> Iterator[Running]:
    """Serve two models, "tiny" and "other", which are the same."""
    settings = settings or ServeSettings()
    log, pace, models = io.StringIO(), [0.0], {}
    for name in ("tiny", "other"):
        decoder = Paced(assistant.model)
        decoder.pace = pace
        made = Engine(assistant.model, assistant.processor, engine or Settings(memory_mib=64), decoder)
        models[name] = Served.of(name, assistant, made)
    service = Service(models, settings, fetcher)
    admission = make_app(service, keys or Keys([]), Log(log))
    listening = listen("127.0.0.1", 0)
    server = Server(admission, settings, "127.0.0.1", 0)
    thread = threading.Thread(target=serve, args=(server, listening), daemon=True)
    thread.start()
    wait_until(lambda: server.started or not thread.is_alive(), 60)
    assert thread.is_alive(), log.getvalue()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    http = httpx.Client(limits=httpx.Limits(max_connections=100))
    try:
        yield Running(url, service, server, models["tiny"].engine, log, pace, http)
    finally:
        http.close()
        pace[0] = 0.0
        server.stop()
        thread.join(30)
        assert not thread.is_alive()


def wait_until(true: Callable[[], bool], seconds: float = 10) -> None:
    """Wait for something to become true, and fail if it doesn't."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it doesn't come true"
        time.sleep(0.01)


def png(seed: int, size: tuple[int, int] = (40, 30)) -> bytes:
    """An encoded picture of noise."""
    buffer = io.BytesIO()
    picture(seed, size).save(buffer, "PNG")
    return buffer.getvalue()


def uri(data: bytes, kind: str = "image/png") -> str:
    """A data: URI."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def image(data: bytes) -> dict[str, Any]:
    """A part that holds a picture."""
    return {"type": "image_url", "image_url": {"url": uri(data)}}


def ask(text: str, *parts: dict[str, Any]) -> list[Any]:
    """Messages of one question."""
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]
