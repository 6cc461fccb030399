"""Answers of a server that speaks OpenAI's chat completions: Pumice's own, vLLM, SGLang, any other.

media ──data URI──> request, one of several at a time ──busy? again later──> Answer with its tokens' probabilities
"""

from __future__ import annotations

import base64
import codecs
import io
import json
import os
import threading
import urllib.error
import urllib.request
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from PIL import Image

from pumice.read.ask import Answer, Prompt
from pumice.read.askers import Done
from pumice.types import Media, PumiceError
from pumice.vision.media import decode
from pumice.vision.pdf import MAX_DPI, POINTS_PER_INCH, render_page

SIDE = 2000
"""Longest side in pixels of a PDF's page as it is sent."""
SECONDS = 600.0
TRIES = 6
BUSY = (408, 425, 429, 500, 502, 503, 504)
"""What is worth another try."""
_ORIENTATION = 0x0112


class RefusedError(PumiceError):
    """The server didn't take the request as it is (400, 422)."""


class ServerAsker:
    """A server at ``url`` (".../v1"), ``batch`` requests at a time; what it is busy with is asked again.

    Of grammars it is given JSON schemas alone, which is all that OpenAI's API knows.
    ``model`` None is the first that it names. The key, if it wants one, is in the environment's OPENAI_API_KEY.

    Raises:
        PumiceError: it isn't there, or names no model.
    """

    def __init__(self, url: str, model: str | None, max_tokens: int, batch: int) -> None:
        self.url = url.rstrip("/").removesuffix("/chat/completions")
        self.batch, self._closed = batch, threading.Event()
        model = model or self._first_model()
        self.digest = f"{self.url} {model}"
        self._settings: dict[str, Any] = {"model": model, "max_tokens": max_tokens, "temperature": 0}
        self._logprobs = True
        self._left: SimpleQueue[tuple[Media, Prompt, Done] | None] = SimpleQueue()
        # Daemons, unlike a pool's threads: nobody waits for a server's answer when the run has ended.
        for number in range(batch):
            threading.Thread(target=self._work, name=f"pumice-read-{number}", daemon=True).start()

    def ask(self, media: Media, prompt: Prompt, done: Done) -> None:
        """Ask as soon as one of the ``batch`` is free."""
        self._left.put((media, prompt, done))

    def find_boxes(self, media: Media, prompt: Prompt, answer: Answer, done: Done) -> None:
        done(PumiceError("a server doesn't say where it read an answer"))

    def close(self) -> None:
        """Ask nothing more."""
        self._closed.set()
        for _ in range(self.batch):
            self._left.put(None)

    def _work(self) -> None:
        """Ask one after the other."""
        while (asked := self._left.get()) is not None and not self._closed.is_set():
            self._ask(*asked)

    def _ask(self, media: Media, prompt: Prompt, done: Done) -> None:
        try:
            content = [_part(media), {"type": "text", "text": prompt.text}]
            asked = {**self._settings, "messages": [{"role": "user", "content": content}]}
            if prompt.grammar is not None and prompt.grammar.kind == "json_schema":
                wanted = {"name": "record", "schema": json.loads(prompt.grammar.source), "strict": True}
                asked["response_format"] = {"type": "json_schema", "json_schema": wanted}
            done(self._complete(asked))
        except PumiceError as error:
            done(error)
        except Exception as error:  # the run waits for an end of every request
            done(PumiceError(f"{self.url}: {type(error).__name__}: {error}"))

    def _complete(self, asked: dict[str, Any]) -> Answer:
        if self._logprobs:
            try:
                return self._answer(self._send("/chat/completions", {**asked, "logprobs": True}))
            except RefusedError:
                # Some servers have no log-probabilities, and refuse to be asked for them.
                answer = self._answer(self._send("/chat/completions", asked))
                self._logprobs = False
                return answer
        return self._answer(self._send("/chat/completions", asked))

    def _first_model(self) -> str:
        models = self._send("/models", None, tries=1).get("data")
        name = models[0].get("id") if isinstance(models, list) and models and isinstance(models[0], dict) else None
        if not isinstance(name, str):
            raise PumiceError(f"{self.url}: it names no model; say which with --model")
        return name

    def _answer(self, found: dict[str, Any]) -> Answer:
        try:
            (choice, *_) = found["choices"]
            text, finish = choice["message"]["content"], choice["finish_reason"]
            if not isinstance(text, str):
                raise TypeError
            tokens = _tokens((choice.get("logprobs") or {}).get("content") or ())
        except (KeyError, TypeError, ValueError, AttributeError):
            raise PumiceError(f"{self.url}: not a chat completion: {json.dumps(found)[:200]}") from None
        mean = sum(logprob for _, logprob in tokens) / len(tokens) if tokens else None
        return Answer(text, str(finish), tokens, mean)

    def _send(self, path: str, body: dict[str, Any] | None, tries: int = TRIES) -> dict[str, Any]:
        """The JSON object that a server answers with.

        Raises:
            RefusedError: it didn't take the request.
            PumiceError: any other failure, after so many tries.
        """
        data = None if body is None else json.dumps(body).encode()
        for attempt in range(1, tries + 1):
            wait = 0.25 * 2**attempt
            try:
                return self._fetch(path, data)
            except urllib.error.HTTPError as error:
                reason, code = f"{error.code} {_reason(error)}", error.code
                after = error.headers.get("Retry-After") or ""
                wait = float(after) if after.isdigit() else wait
            except (OSError, ValueError) as error:  # no connection, one that broke off, or no JSON
                reason, code = str(getattr(error, "reason", None) or error), None
            last = attempt == tries or (code is not None and code not in BUSY)
            if last or self._closed.wait(min(30.0, wait)):
                raise (RefusedError if code in (400, 422) else PumiceError)(
                    f"{self.url}: {' '.join(reason.split())[:300]}"
                )
        raise AssertionError("tries is at least 1")

    def _fetch(self, path: str, data: bytes | None) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {os.environ['OPENAI_API_KEY']}"
        request = urllib.request.Request(self.url + path, data, headers)
        with urllib.request.urlopen(request, timeout=SECONDS) as response:
            found = json.load(response)
        if not isinstance(found, dict):
            raise ValueError(f"{type(found).__name__} for an answer; expected an object")
        return found


def _reason(error: urllib.error.HTTPError) -> str:
    """The message of an error in OpenAI's form, or its text."""
    text = error.read(10_000).decode(errors="replace")
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text or error.reason


def _tokens(items: Any) -> tuple[tuple[int, float], ...]:
    """(end in characters, log-probability) of a completion's tokens; those that are part of a character have bytes."""
    decoder, end, tokens = codecs.getincrementaldecoder("utf-8")("replace"), 0, []
    for item in items:
        raw = item.get("bytes")
        end += len(decoder.decode(bytes(raw) if isinstance(raw, list) else item["token"].encode()))
        tokens.append((end, round(float(item["logprob"]), 4)))
    return tuple(tokens)


def _part(media: Media) -> dict[str, Any]:
    """A message's part with a medium in it; pages are sent as pictures.

    Raises:
        PumiceError: it can't be decoded.
    """
    if media.kind == "video":
        return _uri("video_url", "video/mp4", _bytes(media))
    if media.kind == "page":
        scale = min(SIDE / max(media.size), MAX_DPI / POINTS_PER_INCH)
        return _picture(render_page(media, (round(media.size[0] * scale) or 1, round(media.size[1] * scale) or 1)))
    picture, data = decode(media), _bytes(media)
    if data.startswith(b"\xff\xd8\xff") and Image.open(io.BytesIO(data)).getexif().get(_ORIENTATION, 1) == 1:
        return _uri("image_url", "image/jpeg", data)
    return _picture(picture)


def _picture(picture: Image.Image) -> dict[str, Any]:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return _uri("image_url", "image/png", buffer.getvalue())


def _bytes(media: Media) -> bytes:
    return media.reference if isinstance(media.reference, bytes) else Path(media.reference).read_bytes()


def _uri(kind: str, mime: str, data: bytes) -> dict[str, Any]:
    return {"type": kind, kind: {"url": f"data:{mime};base64,{base64.b64encode(data).decode()}"}}
