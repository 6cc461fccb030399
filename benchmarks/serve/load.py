"""Load on a server: many clients at once, each answer compared with the same request's when it was asked alone.

    python -m benchmarks.serve.load --model pocket --minutes 10 --clients 64 --hostile 2000

It starts ``pumice serve`` itself, in a process of its own, asks every question of a mixed set alone (text, one picture,
several, a PDF, a video), then lets all clients stream questions of that set in random order until the time is over. An
answer that is lost, cut, doubled or another one's differs. With ``--hostile`` so many broken, fuzzed and dropped
requests are sent afterwards, over every path that opens files: only 4xx may come back (or 200, where what was changed
did no harm), and the server must answer as before.

Memory is what the server and its children have for themselves, every two seconds. It is flat if the straight line
through it, after the first fifth of the time, rises by less than a twentieth of its level, or 32 MiB.

What it doesn't know, such as ``--weights int8``, it hands to ``pumice serve``. Results go to results/load.{json,md}.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shlex
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

import httpx
import psutil

from benchmarks.serve.load_material import questions, spoilt

JSON = {"content-type": "application/json"}
DEADLINE = 900
"""Seconds that an answer may take: a small machine answers one or two a second, and all clients wait for it."""
RESULTS = Path(__file__).parent / "results"


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


async def hostile(client: httpx.AsyncClient, url: str, count: int) -> Counter[str]:
    """``count`` bad requests, 32 at once: statuses that came back."""
    body = questions("model", 1)[3]  # with a picture
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
                path, content = spoilt(body, chance)
                answer = await client.post(path, content=content, headers=JSON)
                seen[str(answer.status_code)] += 1
            except httpx.HTTPError as error:
                seen[type(error).__name__] += 1

    await asyncio.gather(*(one(number) for number in range(count)))
    return seen


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


def start(model: str, more: list[str], folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """A server process and its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "pumice.cli", "serve", f"model={model}", "--port", str(port)]
    path = folder / "server.log"
    with path.open("wb") as log:
        process = subprocess.Popen([*command, "--deadline", str(DEADLINE), *more], stderr=log)
    url, until = f"http://127.0.0.1:{port}", time.monotonic() + 300
    while time.monotonic() < until:
        try:
            if httpx.get(url + "/ready", timeout=5).status_code == 200:
                return process, url
        except httpx.TransportError:
            time.sleep(0.3)
        if process.poll() is not None:
            raise SystemExit(path.read_text())
    process.kill()
    raise SystemExit("the server doesn't become ready")


async def run(args: argparse.Namespace, process: subprocess.Popen[bytes], url: str) -> dict[str, Any]:
    """Alone, together, hostile."""
    asked, tally = questions("model", args.tokens), Tally()
    limits = httpx.Limits(max_connections=args.clients + 8)
    async with httpx.AsyncClient(base_url=url, timeout=2 * DEADLINE, limits=limits) as client:
        alone = [(await stream(client, body))[:2] for body in asked]
        print(f"{len(asked)} questions asked alone", file=sys.stderr)
        began = time.monotonic()
        until = began + 60 * args.minutes
        clients = (client_loop(client, asked, alone, until, tally, seed) for seed in range(args.clients))
        await asyncio.gather(watch(psutil.Process(process.pid), until, tally), *clients)
        result = summary(tally, time.monotonic() - began)
        if args.hostile:
            print(f"{result['answers']} answers under load; now {args.hostile} bad requests", file=sys.stderr)
            before = memory(psutil.Process(process.pid))
            result["hostile"] = dict(await hostile(client, url, args.hostile))
            again = [(await stream(client, body))[:2] for body in asked]
            result["same after"] = again == alone
            result["memory more after, MiB"] = round(memory(psutil.Process(process.pid)) - before, 1)
    return result


def summary(tally: Tally, seconds: float) -> dict[str, Any]:
    """Figures of the run."""
    return {
        "answers": tally.answers,
        "wrong": len(tally.wrong),
        "examples": tally.wrong[:5],
        "refused": dict(tally.refused),
        "answers a second": round(tally.answers / seconds, 2),
        "first text, median seconds": round(statistics.median(tally.first), 3) if tally.first else None,
        "whole, median seconds": round(statistics.median(tally.whole), 3) if tally.whole else None,
        "whole, longest seconds": round(max(tally.whole), 3) if tally.whole else None,
        "memory, MiB": [round(mib) for _, mib in tally.memory[:: max(1, len(tally.memory) // 20)]],
        **growth(tally.memory),
    }


def growth(memory: list[tuple[float, float]]) -> dict[str, Any]:
    """How much memory (second, MiB) rose after the first fifth of the time, and whether that counts as flat."""
    late = [point for point in memory if point[0] > 0.2 * memory[-1][0]]
    if len(late) < 3:
        return {"memory growth, MiB": None, "memory flat": None}
    line = statistics.linear_regression([at for at, _ in late], [mib for _, mib in late])
    risen, level = line.slope * (late[-1][0] - late[0][0]), statistics.median(mib for _, mib in late)
    allowed = max(32.0, level / 20)
    return {"memory growth, MiB": round(risen, 1), "allowed, MiB": round(allowed, 1), "memory flat": risen < allowed}


def faults(result: dict[str, Any]) -> list[str]:
    """What went wrong, in words; nothing where all is well."""
    found = [f"{result['wrong']} answers differ from those alone"] if result["wrong"] else []
    found += [] if result["answers"] else ["no answer at all"]
    bad = {
        status: n for status, n in result.get("hostile", {}).items() if not status.startswith(("4", "200", "dropped"))
    }
    found += [f"bad requests got {bad}"] if bad else []
    found += [] if result.get("same after", True) else ["answers differ after the bad requests"]
    found += ["memory grows"] if result["memory flat"] is False else []
    found += [f"the server ended with exit code {result['exit code']}"] if result["exit code"] else []
    return found


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    rows = [(name, value) for name, value in result.items() if name not in ("command", "examples", "faults")]
    lines = [f"| {name} | {json.dumps(value, ensure_ascii=False)} |" for name, value in rows]
    verdict = "All is well." if not result["faults"] else "Faults: " + "; ".join(result["faults"]) + "."
    head = f"# Load\n\n    {result['command']}\n\n{verdict}\n\n| | |\n|---|---|\n"
    return head + "\n".join(lines) + "\n"


def main() -> None:
    """Parse, run, report. Exit code 1 for any fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=24, help="longest answer")
    parser.add_argument("--hostile", type=int, default=0, metavar="N")
    parser.add_argument("--out", type=Path, default=RESULTS / "load", help="results go to OUT.json and OUT.md")
    args, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        process, url = start(args.model, more, Path(folder))
        try:
            result = asyncio.run(run(args, process, url))
        finally:
            process.terminate()
            process.wait(60)
    command = shlex.join(["python", "-m", "benchmarks.serve.load", *sys.argv[1:]])
    result = {"command": command, **result, "exit code": process.returncode}
    result["faults"] = faults(result)
    args.out.with_suffix(".json").write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", "utf-8")
    args.out.with_suffix(".md").write_text(table(result), "utf-8")
    print(table(result))
    raise SystemExit(bool(result["faults"]))


if __name__ == "__main__":
    main()
