"""Speed of this machine's matrix products, fp32 against bf16, on one thread: python benchmarks/matmul.py"""

from __future__ import annotations

import time

import torch

SHAPES = ((512, 576, 1536), (2056, 384, 1536))
"""(rows, in, out) of the language model's and the tower's feed-forward layers."""


def main() -> None:
    """Print GFLOP/s, the best of five runs each."""
    torch.set_num_threads(1)
    for rows, width, out in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            x, w = torch.randn(rows, width).to(dtype), torch.randn(out, width).to(dtype)
            best = float("inf")
            for _ in range(5):
                began = time.process_time()
                torch.nn.functional.linear(x, w)
                best = min(best, time.process_time() - began)
            speed = 2 * rows * width * out / best / 1e9
            print(f"{rows}x{width}x{out} {str(dtype).removeprefix('torch.')}: {speed:.1f} GFLOP/s")


if __name__ == "__main__":
    main()
