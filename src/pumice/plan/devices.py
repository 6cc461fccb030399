"""How long it takes: from costs to predicted seconds, on a device of the table or as this machine measures.

    DEVICES[name] or calibrate() ──> Device (FLOP/s, bytes/s) ── + Costs ──> Times

A step takes as long as its matrix products or its memory traffic, whichever is longer (the roofline model: Williams,
Waterman and Patterson 2009). Everything else (attention's softmax, norms, launches, decoding the file, the tokenizer)
is left out, so that small models on fast devices take longer than predicted.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pumice.plan.costs import DTYPE_BYTES, Costs, streamed_parameters, weight_bytes
from pumice.types import PumiceError

COMPUTE_EFFICIENCY = 0.5
"""Share of a published peak FLOP/s that the matrix products of a model are assumed to reach."""
BANDWIDTH_EFFICIENCY = 0.7
"""Share of a published memory bandwidth that reading weights and cache is assumed to reach."""

SECONDS = 0.4
"""Time that each of the two measurements of `calibrate` takes, after one round that doesn't count."""
READ_BYTES = 256_000_000
"""More than any cache holds."""


@dataclass(frozen=True)
class Device:
    """FLOP/s of dense matrix products in ``dtype``, bytes/s of memory, bytes of memory.

    Published peaks are multiplied by the two efficiencies above; what was ``measured`` on this machine is taken as it
    is.
    """

    name: str
    flops: float
    bandwidth: float
    memory: float
    dtype: str
    measured: bool = False

    @property
    def usable_flops(self) -> float:
        """FLOP/s that predictions count on."""
        return self.flops * (1.0 if self.measured else COMPUTE_EFFICIENCY)

    @property
    def usable_bandwidth(self) -> float:
        """Bytes/s that predictions count on."""
        return self.bandwidth * (1.0 if self.measured else BANDWIDTH_EFFICIENCY)


DEVICES = {
    device.name: device
    for device in (
        # NVIDIA's data sheets: 16-bit tensor cores with fp32 sums, without sparsity; SXM where there are several.
        Device("h200", 989.4e12, 4.8e12, 141e9, "bf16"),
        Device("h100", 989.4e12, 3.35e12, 80e9, "bf16"),
        Device("a100", 312e12, 2.039e12, 80e9, "bf16"),
        Device("l40s", 362e12, 864e9, 48e9, "bf16"),
        Device("l4", 121e12, 300e9, 24e9, "bf16"),
        Device("rtx4090", 165.2e12, 1.008e12, 24e9, "bf16"),
        Device("v100", 125e12, 900e9, 32e9, "fp16"),
        Device("t4", 65e12, 320e9, 16e9, "fp16"),
    )
}
"""Published peaks by exact name."""


@dataclass(frozen=True)
class Times:
    """Predicted seconds: tower and connector; prefill of the visual tokens; one token after them."""

    vision: float
    prefill: float
    decode: float

    @property
    def first_token(self) -> float:
        """Seconds from the decoded picture to the first token of an answer, were there no text before it."""
        return self.vision + self.prefill


def find_device(name: str) -> Device:
    """A device of the table.

    Raises:
        PumiceError: no such device.
    """
    if name not in DEVICES:
        raise PumiceError(
            f"unknown device {name!r}; known: {', '.join(DEVICES)}; without --device this machine is used"
        )
    return DEVICES[name]


def fits(costs: Costs, device: Device) -> bool:
    """Whether weights and cache of the visual tokens fit into the device's memory; activations come on top."""
    return costs.weight_bytes + costs.kv_bytes <= device.memory


def predict(costs: Costs, device: Device) -> Times:
    """Predicted times of one request at a time. Weights are read once a step."""
    lm, size = costs.model.lm, DTYPE_BYTES[costs.dtype]
    vision_bytes = (costs.tower_parameters + costs.connector_parameters) * size
    streamed = weight_bytes(streamed_parameters(lm), costs.dtype)
    return Times(
        vision=_longer(costs.tower_flops + costs.connector_flops, vision_bytes, device),
        prefill=_longer(costs.prefill_flops, streamed + costs.kv_bytes, device),
        decode=_longer(costs.decode_flops, streamed + costs.kv_bytes, device),
    )


def _longer(flops: int, moved: int, device: Device) -> float:
    return max(flops / device.usable_flops, moved / device.usable_bandwidth)


def calibrate() -> Device:
    """This machine as a Device: the first GPU, else the CPU, in the dtype that `pumice.load` would choose.

    Times a square matrix product (FLOP/s) and the product of a matrix of READ_BYTES with a vector, which reads as
    decoding does (bytes/s): about one second, nothing is kept.
    """
    import torch

    from pumice.model.build import auto_dtype

    place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = auto_dtype(place)
    short = {torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]
    n = 4096 if place.type == "cuda" else 1024
    square = torch.randn(n, n, device=place).to(dtype)
    flops = 2 * n**3 / _median_seconds(lambda: square @ square, place)
    rows = READ_BYTES // DTYPE_BYTES[short] // n
    wide = square.repeat(rows // n + 1, 1)[:rows].contiguous()
    vector = square[0].clone()
    bandwidth = wide.numel() * DTYPE_BYTES[short] / _median_seconds(lambda: wide @ vector, place)
    if place.type == "cuda":
        name, memory = torch.cuda.get_device_name(place), torch.cuda.get_device_properties(place).total_memory
    else:
        threads = torch.get_num_threads()
        name = f"this CPU, {threads} thread{'s' * (threads > 1)}"
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Device(name, flops, bandwidth, float(memory), short, measured=True)


def _median_seconds(work: Callable[[], Any], place: Any) -> float:
    """Median time of a call, over `SECONDS` and at least three calls."""
    import torch

    def timed() -> float:
        began = time.perf_counter()
        work()
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        return time.perf_counter() - began

    timed()
    taken: list[float] = []
    while sum(taken) < SECONDS or len(taken) < 3:
        taken.append(timed())
    return sorted(taken)[len(taken) // 2]
