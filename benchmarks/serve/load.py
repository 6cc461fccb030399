"""Load on a server: many clients at once, each answer compared with the same request's when it was asked alone.

    python benchmarks/serve/load.py --model pocket --minutes 10 --clients 64 [--hostile 2000] [--out load.json]

It starts ``pumice serve`` itself, in a process of its own, asks every question of a mixed set alone (text, one picture,
several, a PDF, a video), then lets all clients stream questions of that set in random order until the time is over. An
answer that is lost, cut, doubled or another one's differs. Memory is that of the server and its children; its growth is
judged from after a fifth of the time on, when caches are full. With ``--hostile`` so many broken, fuzzed, oversized and
dropped requests are sent afterwards; only 4xx may come back, and the server must answer as before.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import psutil
from PIL import Image, ImageDraw

JSON = {"content-type": "application/json"}


@dataclass
class Tally:
    """What happened under load."""

    answers: int = 0
    wrong: list[dict[str, Any]] = field(default_factory=list)
    refused: Counter[int] = field(default_factory=Counter)
    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    tokens: int = 0
    memory: list[tuple[float, float]] = field(default_factory=list)


# what is asked


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    """A page with a few words and shapes."""
    chance = random.Random(seed)
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        x, y = chance.randrange(size[0]), chance.randrange(size[1])
        draw.rectangle((x, y, x + 30, y + 20), fill=tuple(chance.randrange(256) for _ in range(3)))
        draw.text((x, y), f"total {chance.randrange(1000)}", fill="black")
    return image


def encoded(image: Image.Image, kind: str) -> bytes:
    """A file of it."""
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def video(seed: int) -> bytes:
    """A second of film."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as file:
        stream: Any = file.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 160, 128, "yuv420p"
        for number in range(8):
            pixels = np.asarray(picture(seed + number // 4, (160, 128)))
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        file.mux(stream.encode(None))
    return buffer.getvalue()


def part(data: bytes) -> dict[str, Any]:
    """A part of a message that holds a file."""
    return {"type": "image_url", "image_url": {"url": "data:;base64," + base64.b64encode(data).decode()}}


def questions(model: str, tokens: int) -> list[dict[str, Any]]:
    """The mixed set."""
    sizes = [(320, 240), (200, 400), (640, 480), (90, 90), (800, 200)]
    kinds = ["PNG", "JPEG", "WEBP", "GIF", "BMP"]
    files = [encoded(picture(i, size), kind) for i, (size, kind) in enumerate(zip(sizes, kinds, strict=True))]
    media = [[], *[[file] for file in files], files[:2], [encoded(picture(7, (300, 400)), "PDF")], [video(3)]]
    texts = ["What is the total?", "Which colours are there?", "Describe it."]
    asked = []
    for number, (held, text) in enumerate((held, text) for held in media for text in texts):
        content = [*map(part, held), {"type": "text", "text": text}]
        body = {
            "model": model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": tokens,
            "stream": True,
        }
        if number % 4 == 3:
            body |= {"temperature": 1.0, "seed": number}
        if number % 7 == 5:
            body |= {"response_format": {"type": "json_object"}}
        asked.append(body)
    return asked


# one request


async def stream(client: httpx.AsyncClient, body: dict[str, Any]) -> tuple[str, str, float, float, int]:
    """(text, finish, seconds to the first text, to the end, pieces). Raises RuntimeError for a stream that is cut."""
    began, first, text, finish, pieces = time.perf_counter(), 0.0, "", "", 0
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            await answer.aread()
            raise httpx.HTTPStatusError("refused", request=answer.request, response=answer)
        done = False
        async for line in answer.aiter_lines():
            if done or not line:
                continue
            if line == "data: [DONE]":
                done = True
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise RuntimeError(event["error"]["message"])
            choice = event["choices"][0]
            said = choice["delta"].get("content") or ""
            first = first or (time.perf_counter() - began if said else 0.0)
            text, finish, pieces = text + said, choice["finish_reason"] or finish, pieces + bool(said)
    if not done:
        raise RuntimeError("the stream was cut")
    return text, finish, first, time.perf_counter() - began, pieces


async def client_loop(
    client: httpx.AsyncClient, asked: list[dict[str, Any]], alone: list[tuple[str, str]], until: float, tally: Tally,
    seed: int,
) -> None:  # fmt: skip
    """One client: questions in random order until the time is over."""
    chance = random.Random(seed)
    while time.monotonic() < until:
        number = chance.randrange(len(asked))
        try:
            text, finish, first, whole, pieces = await stream(client, asked[number])
        except httpx.HTTPStatusError as error:
            tally.refused[error.response.status_code] += 1
            await asyncio.sleep(float(error.response.headers.get("retry-after", 1)))
            continue
        except (RuntimeError, httpx.HTTPError) as error:
            tally.wrong.append({"question": number, "error": f"{type(error).__name__}: {error}"})
            continue
        tally.answers += 1
        tally.tokens += pieces
        tally.first.append(first)
        tally.whole.append(whole)
        if (text, finish) != alone[number]:
            tally.wrong.append({"question": number, "said": text, "alone": alone[number][0]})


async def watch(process: psutil.Process, until: float, tally: Tally) -> None:
    """The server's and its children's own memory in MiB, every two seconds."""
    began = time.monotonic()
    while time.monotonic() < until:
        tally.memory.append((time.monotonic() - began, memory(process)))
        await asyncio.sleep(2)


def memory(process: psutil.Process) -> float:
    """MiB that the server and its children have for themselves (a forked child shares most of its pages)."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_full_info().uss
        except psutil.Error:
            continue
    return total / 2**20


# hostile requests


async def hostile(client: httpx.AsyncClient, url: str, body: dict[str, Any], count: int) -> Counter[str]:
    """``count`` bad requests, 32 at once: statuses that came back."""
    seen: Counter[str] = Counter()
    gate = asyncio.Semaphore(32)

    async def one(number: int) -> None:
        chance = random.Random(number)
        async with gate:
            if number % 10 == 9:
                await drop(url, json.dumps(body).encode(), chance)
                seen["dropped"] += 1
                return
            try:
                answer = await client.post("/v1/chat/completions", content=spoilt(body, chance), headers=JSON)
                seen[str(answer.status_code)] += 1
            except httpx.HTTPError as error:
                seen[type(error).__name__] += 1

    await asyncio.gather(*(one(number) for number in range(count)))
    return seen


def spoilt(body: dict[str, Any], chance: random.Random) -> bytes:
    """One of several kinds of bad request."""
    kind = chance.randrange(6)
    whole = json.dumps({**body, "stream": False, "max_tokens": 1}).encode()
    if kind == 0:  # JSON with bytes changed
        data = bytearray(whole)
        for _ in range(20):
            data[chance.randrange(len(data))] = chance.randrange(256)
        return bytes(data)
    if kind == 1:
        return whole[: chance.randrange(len(whole))]
    if kind == 2:  # a field that is wrong
        wrong = chance.choice(
            [{"temperature": -1}, {"n": 10**9}, {"colour": 1}, {"messages": [[]]}, {"stop": [""] * 99}]
        )
        return json.dumps({**body, **wrong}).encode()
    if kind == 3:  # a picture that says it is huge
        image = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\xff\xff\0\0\xff\xff\x08\2\0\0\0" + chance.randbytes(300)
    elif kind == 4:  # a picture with bytes changed and its end cut off
        image = bytearray(
            encoded(picture(chance.randrange(5), (80, 60)), chance.choice(["PNG", "JPEG", "GIF", "TIFF"]))
        )
        for _ in range(30):
            image[chance.randrange(len(image))] = chance.randrange(256)
        image = bytes(image[: len(image) // 2])
    else:
        image = chance.choice([b"%PDF-1.7\n", b"\0\0\0\x18ftypmp42", b"RIFF", b"GIF89a", b""]) + chance.randbytes(2000)
    content = [part(image), {"type": "text", "text": "What?"}]
    return json.dumps({**body, "messages": [{"role": "user", "content": content}], "max_tokens": 1}).encode()


async def drop(url: str, body: bytes, chance: random.Random) -> None:
    """A connection that is closed in the middle of a request or of its answer."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    request = (head + f"content-length: {len(body)}\r\n\r\n").encode() + body
    writer.write(request[: chance.choice([30, len(request) // 2, len(request)])])
    await writer.drain()
    await asyncio.sleep(chance.random() / 5)
    writer.close()


# the run


def start(model: str, more: list[str]) -> tuple[subprocess.Popen[bytes], str]:
    """A server process and its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "pumice.cli", "serve", f"model={model}", "--port", str(port), *more]
    path = Path(tempfile.mkdtemp()) / "server.log"
    with path.open("wb") as log:
        process = subprocess.Popen(command, stderr=log)
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 300
    while time.monotonic() < deadline:
        try:
            if httpx.get(url + "/ready", timeout=5).status_code == 200:
                return process, url
        except httpx.TransportError:
            time.sleep(0.3)
        if process.poll() is not None:
            raise SystemExit(path.read_text())
    raise SystemExit("the server doesn't become ready")


async def run(args: argparse.Namespace, process: subprocess.Popen[bytes], url: str) -> dict[str, Any]:
    """Alone, together, hostile."""
    asked, tally = questions("model", args.tokens), Tally()
    limits = httpx.Limits(max_connections=args.clients + 8)
    async with httpx.AsyncClient(base_url=url, timeout=900, limits=limits) as client:
        alone = [(await stream(client, body))[:2] for body in asked]
        until = time.monotonic() + 60 * args.minutes
        clients = (client_loop(client, asked, alone, until, tally, seed) for seed in range(args.clients))
        began = time.monotonic()
        await asyncio.gather(watch(psutil.Process(process.pid), until, tally), *clients)
        result = summary(tally, time.monotonic() - began)
        if args.hostile:
            before = memory(psutil.Process(process.pid))
            result["hostile"] = dict(await hostile(client, url, asked[3], args.hostile))
            again = [(await stream(client, body))[:2] for body in asked]
            result["same after"] = again == alone
            result["memory after, MiB"] = round(memory(psutil.Process(process.pid)) - before, 1)
    return result


def summary(tally: Tally, seconds: float) -> dict[str, Any]:
    """Figures of the run."""
    late = [mib for at, mib in tally.memory if at > 0.2 * seconds]
    half = len(late) // 2
    return {
        "answers": tally.answers,
        "wrong": len(tally.wrong),
        "examples": tally.wrong[:5],
        "refused": dict(tally.refused),
        "answers a second": round(tally.answers / seconds, 2),
        "first text, median seconds": round(statistics.median(tally.first), 3) if tally.first else None,
        "whole, median seconds": round(statistics.median(tally.whole), 3) if tally.whole else None,
        "memory, MiB": [round(mib) for _, mib in tally.memory[:: max(1, len(tally.memory) // 20)]],
        "memory growth, MiB": round(statistics.median(late[half:]) - statistics.median(late[:half]), 1)
        if half
        else None,
    }


def main() -> None:
    """Parse, run, report. Exit code 1 for a wrong answer, or anything but 4xx for a hostile request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=24, help="longest answer")
    parser.add_argument("--hostile", type=int, default=0, metavar="N")
    parser.add_argument("--out", type=Path)
    args, more = parser.parse_known_args()
    process, url = start(args.model, more)
    try:
        result = asyncio.run(run(args, process, url))
    finally:
        process.terminate()
        process.wait(60)
    result["exit code"] = process.returncode
    text = json.dumps(result, indent=2, ensure_ascii=False)
    print(text)
    if args.out:
        args.out.write_text(text + "\n", "utf-8")
    bad = [
        status for status in result.get("hostile", {}) if status != "dropped" and not status.startswith(("4", "200"))
    ]
    raise SystemExit(bool(result["wrong"] or bad or not result.get("same after", True)))


if __name__ == "__main__":
    main()
