"""Whole requests to Pumice's engine, in process: from an encoded file and a question to the tokens.

measure(weights, group) ──> {"times": {point: [seconds]}, "notes": tokens, hits, memory}
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks.serve import requests_material as material
from pumice.engine.engine import Engine
from pumice.engine.request import Outcome, Sampling
from pumice.engine.settings import Settings
from pumice.messages import question_messages, to_sample
from pumice.pocket.model import load_pocket
from pumice.vision.frames import VideoPolicy

NEW = 16
"""Tokens of an answer under load."""
Measured = dict[str, Any]


def measure(weights: str, group: str, seed: int, most: int, repeats: int, threads: int) -> Measured:
    """One group of measurements; ``most`` bounds the clients, ``repeats`` are of "first"."""
    torch.set_num_threads(threads)
    engine = make_engine(weights)
    _warm(engine)
    if group == "first":
        return _first(engine, seed, repeats)
    return {"pdf": _pdf, "shared": _shared, "different": _different, "text": _text}[group](engine, seed, most)


def make_engine(weights: str) -> Engine:
    """The pocket model's, for videos of 16 frames that LLaVA-OneVision's classes give as many tokens."""
    assistant = load_pocket(torch.float32, torch.device("cpu"))
    policy = assistant.processor.policy
    video = VideoPolicy(tile=policy.tile, side=policy.side, frames=material.FRAMES, newline="one_token")
    return Engine(assistant.model, replace(assistant.processor, video=video), Settings(weights=weights))


def ask(engine: Engine, asked: Sequence[tuple[Any, str]], tokens: int) -> tuple[float, list[Outcome]]:
    """Seconds until all of these (file or None, question) asked at once are answered, and the answers."""
    began = time.perf_counter()
    sampling = Sampling(tokens, ignore_end=True)
    tickets = [engine.submit(to_sample(_messages(file, text)), sampling) for file, text in asked]
    outcomes = [ticket.result() for ticket in tickets]
    seconds = time.perf_counter() - began
    assert all(len(outcome.ids) == tokens for outcome in outcomes)
    return seconds, outcomes


def _messages(file: Any, text: str) -> list[dict[str, Any]]:
    return question_messages(file, text) if file is not None else [{"role": "user", "content": text}]


def _warm(engine: Engine) -> None:
    """Kernels, buffers and libraries that are made at first use."""
    ask(engine, [(material.encoded(material.page(0, (100, 100)), "PNG"), "Warm?")], 2)
    ask(engine, [(None, "Warm?"), (None, "Really?")], 2)
    engine.forget()


def _first(engine: Engine, seed: int, repeats: int) -> Measured:
    """Time to the first token: of something new, of the same again, of another question about it."""
    times: dict[str, list[float]] = defaultdict(list)
    notes: dict[str, Any] = {}
    for turn in range(seed, seed + repeats):
        for name, file in (("picture", material.picture(turn)), ("video", material.video(turn))):
            for point, number in ((name, 0), (f"{name}, same again", 0), (f"{name}, another question", 1)):
                seconds, (outcome,) = ask(engine, [(file, material.question(number))], 1)
                times[point].append(seconds)
                notes[point] = _tokens(outcome)
            engine.forget()
    return {"times": times, "notes": notes}


def _tokens(outcome: Outcome) -> dict[str, int]:
    return {"visual": outcome.visual_tokens, "prompt": outcome.prompt_tokens, "cached": outcome.cached_tokens}


def _pdf(engine: Engine, seed: int, most: int) -> Measured:
    """Time to the first token of two questions about a ten-page PDF."""
    file, times, notes = material.pdf(seed), {}, {}
    for number, point in enumerate(("pdf", "pdf, another question")):
        seconds, (outcome,) = ask(engine, [(file, material.question(number))], 1)
        times[point], notes[point] = [seconds], _tokens(outcome)
    return {"times": times, "notes": notes}


def _shared(engine: Engine, seed: int, most: int) -> Measured:
    """Clients that ask about one picture, which nobody has asked about before."""
    return _load(engine, "shared", most, lambda clients: [material.picture(seed)] * clients)


def _different(engine: Engine, seed: int, most: int) -> Measured:
    """Clients that ask about pictures of their own."""
    return _load(engine, "different", most, lambda n: [material.picture(seed * 100 + each) for each in range(n)])


def _text(engine: Engine, seed: int, most: int) -> Measured:
    """Clients whose questions begin with the same text of about 730 tokens."""
    return _load(engine, "text", most, lambda clients: [None] * clients, prefix(seed))


def prefix(seed: int) -> str:
    """About 730 tokens."""
    return material.text(seed, 690) + "\n"


def clients_of(group: str, most: int) -> list[int]:
    """How many clients ask at once; alone, a picture is one's own and shared alike."""
    return [clients for clients in ((8, 32) if group == "different" else (1, 8, 32)) if clients <= most]


def _load(
    engine: Engine, group: str, most: int, files: Callable[[int], list[bytes | None]], before: str = ""
) -> Measured:
    times: dict[str, list[float]] = {}
    notes: dict[str, Any] = {"budget MiB": engine.settings.memory_mib}
    for clients in clients_of(group, most):
        asked = [(file, before + material.question(number)) for number, file in enumerate(files(clients))]
        point = f"{group} {clients}"
        seen = engine.stats()
        seconds, outcomes = ask(engine, asked, NEW)
        times[point] = [seconds]
        now = engine.stats()
        notes[point] = {
            "prompt": max(outcome.prompt_tokens for outcome in outcomes),
            "visual": outcomes[0].visual_tokens,
            "tokens in memory after": now.tokens_held,
            "most that memory takes": now.tokens_budget,
            "passes": now.passes - seen.passes,
            "prompt tokens": now.prompt_tokens - seen.prompt_tokens,
            "cached": now.cached_tokens - seen.cached_tokens,
        }
        engine.forget()
    return {"times": times, "notes": notes}


# where the time goes


def profile(weights: str, threads: int, seed: int, rounds: int) -> dict[str, dict[str, float]]:
    """{"picture" or "video": {stage: milliseconds}} of a first token, medians; "rest" is what no stage accounts for."""
    import pumice.engine.lookup as lookup
    import pumice.engine.media as media
    import pumice.engine.scheduler as scheduler
    from pumice import encode

    torch.set_num_threads(threads)
    engine = make_engine(weights)
    spent: dict[str, float] = defaultdict(float)

    def timed(owner: Any, name: str, stage: str) -> None:
        inner = getattr(owner, name)

        def outer(*given: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return inner(*given, **named)
            finally:
                spent[stage] += time.perf_counter() - began

        setattr(owner, name, outer)

    own = scheduler.Scheduler
    for owner, name, stage in (
        (encode, "decode", "decode"), (encode, "to_tiles", "tile"), (encode, "frame_tiles", "decode and tile frames"),
        (media, "encode", "(encode, whole)"), (media, "digests", "digest"), (engine, "count", "count"),
        (engine.tower, "forward", "tower"), (engine.model, "visual", "connector, merge"),
        (engine.decoder, "forward", "language model"), (engine.decoder, "head", "head"),
        (lookup, "choose_all", "sample"), (own, "_embedded", "embed"), (own, "admit", "admit"),
    ):  # fmt: skip
        timed(owner, name, stage)
    _warm(engine)
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for turn in range(rounds):
        for kind, file in (("picture", material.picture(seed + turn)), ("video", material.video(seed + turn))):
            spent.clear()
            whole, _ = ask(engine, [(file, material.question(turn))], 1)
            parts = dict(spent)
            inside = sum(parts.get(stage, 0.0) for stage in ("decode", "tile", "decode and tile frames"))
            parts["tokenise, lay out"] = parts.pop("(encode, whole)") - inside
            for stage, seconds in {**parts, "rest": whole - sum(parts.values()), "whole": whole}.items():
                found[kind][stage].append(1000 * seconds)
            engine.forget()
    return {kind: {s: sorted(v)[len(v) // 2] for s, v in stages.items()} for kind, stages in found.items()}
