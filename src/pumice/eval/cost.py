"""What an answer costs: tokens, time, memory and FLOPs, measured on eight of the suite's own pictures.

    assistant + suite(TASKS, EACH) ──answers one at a time; all eight together──> Cost

Which pictures and questions is fixed, so that two models' costs compare; the times hold for one machine and one number
of threads, which stand beside them.
"""

from __future__ import annotations

import contextlib
import platform
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

import torch

from pumice.eval.suite.items import suite
from pumice.plan.costs import costs, prefill_flops
from pumice.plan.find import find_model
from pumice.plan.report import binary, scaled
from pumice.types import PumiceError

if TYPE_CHECKING:
    from PIL import Image

    from pumice.eval.suite.asking import Answers, Reply
    from pumice.formats.sizes import Model

TASKS = ("amount", "cell", "chart_extreme", "read")
"""Tasks whose first pictures are asked: of a receipt, a form, tables, charts, lines; none needs drawings of objects."""
EACH = 2
"""Pictures a task; eight in all, which is the batch of `Cost.pictures_per_s_8`."""
MAX_TOKENS = 32
"""Longest answer."""
RUNS, PATIENCE = 3, 10.0
"""Times that everything is asked; once only, where that took longer than so many seconds."""


@dataclass(frozen=True)
class Cost:
    """What the questions cost, medians over ``runs``, after a run that doesn't count.

    pictures         questions, each about a picture of its own
    visual_tokens    their mean, and the most of one
    first_ms         from the call to the first token, one question at a time, the picture's tiling included: median and
                     95th percentile over all questions and runs
    tokens_per_s     of decoding one answer, after its first token; None where answers don't tell or have one token
    pictures_per_s   whole answers of up to MAX_TOKENS tokens a second, one at a time and eight at a time
    memory           largest resident set of the process in bytes while it was measured, weights included; None unknown
    gpu_memory       most bytes that torch held on the GPU meanwhile; None without one
    flops            of tower, connector and the whole prompt, mean of the questions, as `pumice plan` counts; None
                     where the model's sizes aren't known
    """

    pictures: int
    runs: int
    visual_tokens: float
    visual_tokens_most: int
    first_ms: float
    first_ms_95: float
    tokens_per_s: float | None
    pictures_per_s_1: float
    pictures_per_s_8: float
    memory: int | None
    gpu_memory: int | None
    flops: float | None
    device: str
    dtype: str | None
    threads: int
    items_sha256: str


def measure(assistant: Answers, model: str | None = None) -> Cost:
    """Ask the fixed questions and time them: seconds for a small model. ``model`` is what `pumice.load` was given.

    Raises:
        PumiceError: as `suite` and the assistant, or one that answers too few or too many.
    """
    asked = suite(TASKS, EACH)
    pairs = [(asked.open(item.picture), item.question) for item in asked.items]
    place = _place(assistant)
    _timed(assistant, pairs[:1], MAX_TOKENS, 1)
    _timed(assistant, pairs, 1, len(pairs))
    _reset_peak(place)
    began, firsts, decoding, alone, together = time.perf_counter(), [], [], [], []
    replies: list[Reply] = []
    while not alone or (len(alone) < RUNS and (time.perf_counter() - began) / len(alone) < PATIENCE):
        times, given = zip(*(_timed(assistant, [pair], MAX_TOKENS, 1) for pair in pairs), strict=True)
        replies = [reply for (reply,) in given]
        firsts += [_first(assistant, *one) for one in zip(pairs, times, replies, strict=True)]
        decoding.append(_decoding(replies))
        alone.append(sum(times))
        together.append(_timed(assistant, pairs, MAX_TOKENS, len(pairs))[0])
    visual = [reply.visual_tokens for reply in replies]
    speeds = [speed for speed in decoding if speed]
    return Cost(
        pictures=len(pairs), runs=len(alone), visual_tokens=fmean(visual), visual_tokens_most=max(visual),
        first_ms=1000 * median(firsts), first_ms_95=1000 * percentile(firsts, 0.95),
        tokens_per_s=median(speeds) if speeds else None,
        pictures_per_s_1=len(pairs) / median(alone), pictures_per_s_8=len(pairs) / median(together),
        memory=_peak(), gpu_memory=torch.cuda.max_memory_allocated(place) if place.type == "cuda" else None,
        flops=_flops(model, [picture for picture, _ in pairs], replies),
        **machine(assistant), items_sha256=asked.sha256,
    )  # fmt: skip


def _timed(
    assistant: Answers, pairs: list[tuple[Image.Image, str]], limit: int, batch: int
) -> tuple[float, Sequence[Reply]]:
    """Seconds of a call, and its replies."""
    forget = getattr(assistant, "forget", None)  # pipelines keep what they read of a picture
    if forget:
        forget()
    began = time.perf_counter()
    replies = assistant.ask_many(pairs, max_tokens=limit, batch=batch)
    seconds = time.perf_counter() - began
    if len(replies) != len(pairs):
        raise PumiceError(f"the assistant gave {len(replies)} answers to {len(pairs)} questions")
    return seconds, replies


def _first(assistant: Answers, pair: tuple[Image.Image, str], seconds: float, reply: Any) -> float:
    """Seconds to the first token: the call without its decoding, or where the reply doesn't tell, a call for one token.

    A reply's own ``first_ms`` begins after the pictures were opened and tiled.
    """
    if getattr(reply, "first_ms", None) is None:
        return _timed(assistant, [pair], 1, 1)[0]
    return seconds - (reply.ms - reply.first_ms) / 1000


def _decoding(replies: Sequence[Any]) -> float | None:
    """Tokens a second after the first one. The stop token is decoded like any other."""
    told = [reply for reply in replies if getattr(reply, "first_ms", None) is not None]
    steps = sum(max(reply.tokens - (reply.finish == "length"), 0) for reply in told)
    ms = sum(reply.ms - reply.first_ms for reply in told)
    return 1000 * steps / ms if ms > 0 else None


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of the values don't exceed."""
    ranked = sorted(values)
    return ranked[max(0, -int(-share * len(ranked) // 1) - 1)]


def _flops(name: str | None, pictures: Sequence[Image.Image], replies: Sequence[Any]) -> float | None:
    """Mean FLOPs up to the first token, where the sizes are known and give the visual tokens that there were."""
    try:
        model: Model | None = find_model(name) if name else None
    except PumiceError:  # a pipeline, or weights without a config
        return None
    if model is None:
        return None
    found = []
    for picture, reply in zip(pictures, replies, strict=True):
        plan = costs(model, picture.size, 0, "fp32")
        if plan.tokens != reply.visual_tokens:  # it was loaded with another layout than its config's
            return None
        read = getattr(reply, "prompt_tokens", plan.tokens)
        found.append(plan.tower_flops + plan.connector_flops + prefill_flops(model.lm, read))
    return fmean(found)


def machine(assistant: object) -> dict[str, Any]:
    """Where an assistant computes: name of the device, dtype of the weights (None unknown), threads of torch."""
    place, model = _place(assistant), _model(assistant)
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else _cpu()
    dtype = str(model.newline.dtype).removeprefix("torch.") if model is not None else None
    return {"device": name, "dtype": dtype, "threads": torch.get_num_threads()}


def _model(assistant: object) -> Any:
    """The model of an Assistant, or of the Assistant inside a pipeline."""
    return getattr(getattr(assistant, "assistant", assistant), "model", None)


def _place(assistant: object) -> torch.device:
    model = _model(assistant)
    return torch.device("cpu") if model is None else model.device


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()


def _reset_peak(place: torch.device) -> None:
    """Loading takes more memory than asking: its peak is forgotten, where the system can do that (Linux)."""
    if place.type == "cuda":
        torch.cuda.reset_peak_memory_stats(place)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int | None:
    """Largest resident set in bytes."""
    status = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(), re.MULTILINE) if status.is_file() else None
    if found:
        return int(found[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def lines(cost: Cost) -> list[tuple[str, str]]:
    """(what, how much) as texts, for tables."""
    return [
        ("visual tokens", f"{cost.visual_tokens:.0f} (most {cost.visual_tokens_most})"),
        ("first token", f"{cost.first_ms:.0f} ms (95% within {cost.first_ms_95:.0f} ms)"),
        ("decoding", "unknown" if cost.tokens_per_s is None else f"{cost.tokens_per_s:.1f} tokens/s"),
        ("pictures", f"{cost.pictures_per_s_1:.2f}/s alone, {cost.pictures_per_s_8:.2f}/s eight at a time"),
        ("peak memory", "unknown" if cost.memory is None else binary(cost.memory)),
        *([] if cost.gpu_memory is None else [("on the GPU", binary(cost.gpu_memory))]),
        ("to the first token", "FLOPs unknown" if cost.flops is None else scaled(cost.flops, "FLOPs")),
        ("measured on", basis(cost)),
    ]


def basis(cost: Cost) -> str:
    """What the times hold for: pictures, runs, device, dtype and threads."""
    runs = f"{cost.runs} run{'s' * (cost.runs > 1)}"
    threads = f"{cost.threads} thread{'s' * (cost.threads > 1)}"
    return ", ".join([f"{cost.pictures} pictures, {runs}", cost.device, *([cost.dtype] if cost.dtype else []), threads])


def sentence(cost: Cost) -> str:
    """All of it in a line."""
    return "cost: " + "; ".join(f"{what} {much}" for what, much in lines(cost))
