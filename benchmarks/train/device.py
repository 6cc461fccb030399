"""What a GPU needs that a CPU doesn't: waiting for it before a clock is read, its memory, its matrix peak.

device ──synchronize, start, memory──> seconds and bytes of one contender        python -m benchmarks.train.device: peak
"""

from __future__ import annotations

import gc
import os
import resource
from statistics import median

import torch

SIDE, WARM, TIMES = 8192, 5, 20
"""The matrix product whose rate is a GPU's peak: its side, products before timing, timed ones."""


def visible(device: str) -> str:
    """CUDA_VISIBLE_DEVICES for a run: nothing on the CPU; one GPU, since transformers' Trainer would use them all."""
    return "" if device == "cpu" else os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]


def gpu_name() -> str:
    """Name of the GPU.

    Raises:
        SystemExit: there is none that torch can use.
    """
    if not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch sees no GPU")
    return torch.cuda.get_device_name(0)


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done all that it was given: launches return long before their kernels end."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def start(device: torch.device) -> None:
    """Forget what an earlier contender of this process left on a GPU, so that the next one's peak is its own."""
    if device.type == "cuda":
        torch.cuda.init()
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def memory(device: torch.device) -> int:
    """Bytes at most: tensors on a GPU since `start`, or the process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def gpu_peak(side: int = SIDE) -> float:
    """GFLOP/s of a bf16 product of two square matrices, the median of TIMES.

    They are random: zeros take less power, and are multiplied faster than any model's numbers.
    """
    a, b = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    for _ in range(WARM):
        torch.mm(a, b, out=out)
    seconds = []
    for _ in range(TIMES):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        torch.mm(a, b, out=out)
        ended.record()
        ended.synchronize()
        seconds.append(began.elapsed_time(ended) / 1e3)
    return 2 * side**3 / median(seconds) / 1e9


if __name__ == "__main__":
    print(f"{gpu_name()}: {gpu_peak():.1f} GFLOP/s")
