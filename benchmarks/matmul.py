"""Speed of this machine's matrix products on one thread: torch's fp32 and bf16, and the engine's own.

    python benchmarks/matmul.py

"panels" are fp32 weights multiplied as integers of 13 and 14 bits, as in the tower and in prompts of bf16; "int8" and
"int4" are the engine's weights of few bits, "int6" a tower's beside int4. Contenders take turns; the best of nine runs
counts, in GFLOP/s.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pumice.engine.kernels import Kernels, load_kernels
from pumice.engine.packed_weights import Arena, Packed, arena_size, pack

SHAPES = ((1336, 576, 1536), (1336, 1536, 576), (1285, 384, 1536), (4112, 384, 1536))
"""(rows, in, out) of feed-forward layers: of language model and tower for a picture of five tiles, of the tower for 16
frames."""


def contenders(linear: nn.Linear, x: Tensor, kernels: Kernels | None) -> dict[str, Callable[[], Tensor]]:
    """The ways to multiply, by name."""
    half, few = linear.weight.detach().bfloat16(), x.bfloat16()
    ways: dict[str, Callable[[], Tensor]] = {
        "torch fp32": lambda: linear(x),
        "torch bf16": lambda: nn.functional.linear(few, half),
    }
    if kernels is not None:
        ways |= {"panels" if weights == "fp32" else weights: ours(linear, x, weights, kernels) for weights in OURS}
    return ways


OURS: tuple[Packed, ...] = ("fp32", "int8", "int6", "int4")


def ours(linear: nn.Linear, x: Tensor, weights: Packed, kernels: Kernels) -> Callable[[], Tensor]:
    """The engine's product with these weights."""
    matrix = pack(linear, weights, Arena(arena_size([linear], weights), kernels))
    return lambda: kernels.linear(matrix.struct, x, panels=weights == "fp32")


@torch.inference_mode()
def main() -> None:
    """Print a line a shape and contender."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    for rows, width, out in SHAPES:
        ways = contenders(nn.Linear(width, out, bias=False), torch.randn(rows, width), load_kernels())
        best = dict.fromkeys(ways, float("inf"))
        for _ in range(9):
            for name, multiply in ways.items():
                began = time.process_time()
                multiply()
                best[name] = min(best[name], time.process_time() - began)
        for name, seconds in best.items():
            speed, share = 2e-9 * rows * width * out / seconds, best["torch fp32"] / seconds
            print(f"{rows}x{width}x{out} {name}: {speed:.1f} GFLOP/s, {share:.2f}x torch fp32", flush=True)


if __name__ == "__main__":
    main()
