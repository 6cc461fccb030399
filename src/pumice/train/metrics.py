"""What a run says of itself: sums between two logged rows, over all workers.

terms and batches of each step ──Meter──gather──> row (losses, by source, throughput, waiting, memory) ──> JSONL, view
"""

from __future__ import annotations

import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from pumice.config import Stage
from pumice.plan.devices import DEVICES
from pumice.train.objectives import Term
from pumice.train.parallel import World, gather
from pumice.types import Batch

K = TypeVar("K")

Cost = Callable[[Stage, Batch], float]
"""FLOPs of both passes of a batch."""


class Sums(defaultdict[K, float]):
    """Sums of numbers by key."""

    def __init__(self) -> None:
        super().__init__(float)

    def add(self, more: Mapping[K, float]) -> None:
        for key, value in more.items():
            self[key] += value

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)  # what travels between workers


@dataclass
class Meter:
    """Sums since the last logged row. ``sums`` are keyed by (term, source, what); source "" is all of them."""

    began: float = field(default_factory=time.monotonic)
    waited: float = 0.0
    steps: int = 0
    norms: Sums[str] = field(default_factory=lambda: Sums())
    sums: Sums[tuple[str, str, str]] = field(default_factory=lambda: Sums())
    work: Sums[str] = field(default_factory=lambda: Sums())

    def step(self, norm: float, modules: Mapping[str, float]) -> None:
        """One optimiser step: the norm of its gradient before clipping, whole and of each module."""
        self.steps += 1
        self.norms.add({"norm": norm, **{f"norm:{module}": value for module, value in modules.items()}})

    def add(self, terms: Sequence[Term], batches: Sequence[Batch], flops: float = 0.0) -> None:
        """This worker's terms and batches of a step, and their FLOPs where known."""
        self.work["flops"] += flops
        for batch in batches:
            self.work["pictures"] += len(batch.layouts)
            self.work["tokens"] += len(batch.ids)
            self.work["supervised"] += batch.supervised
        for term in terms:
            found = {"total": float(term.total), "count": float(term.count), "right": term.right, "items": term.items}
            self.sums.add({(term.name, "", what): value for what, value in found.items()})
            for source, (total, right, items) in term.sources.items():
                found = {"total": total, "count": items, "right": right, "items": items}
                self.sums.add({(term.name, source, what): value for what, value in found.items()})

    def merge(self, world: World) -> Meter:
        """The meter with the sums of all workers; they must all ask."""
        merged = Meter(self.began, 0.0, self.steps, self.norms)
        for waited, sums, work in gather((self.waited, self.sums, self.work), world):
            merged.waited += waited / world.size
            merged.sums.add(sums)
            merged.work.add(work)
        return merged

    def loss(self, term: str, source: str = "") -> float:
        """Mean loss of a term."""
        return self.sums[term, source, "total"] / max(self.sums[term, source, "count"], 1.0)

    def losses(self) -> dict[str, float]:
        """Loss and accuracy of each term; of each source too where there are several, as loss:SOURCE."""
        row: dict[str, float] = {}
        names = list(dict.fromkeys((term, source) for term, source, _ in self.sums))
        several = len({source for _, source in names if source}) > 1
        for term, source in names:
            right = self.sums[term, source, "right"] / max(self.sums[term, source, "items"], 1.0)
            if not source:
                row[f"{term}_loss"] = round(self.loss(term), 4)
                if term != "keep":  # which has nothing to get right
                    row[f"{term}_accuracy"] = round(right, 4)
            elif several:
                row[f"loss:{source}"] = round(self.loss(term, source), 4)
                row[f"accuracy:{source}"] = round(right, 4)
        return dict(sorted(row.items(), key=lambda item: ":" in item[0]))

    def row(self, peak: float = 0.0) -> dict[str, Any]:
        """Losses; throughput of all workers; share of waiting for data; with a ``peak`` of FLOP/s, MFU."""
        seconds = time.monotonic() - self.began
        row: dict[str, Any] = self.losses()
        row["pictures_s"] = round(self.work["pictures"] / seconds, 3)
        row["tokens_s"] = round(self.work["tokens"] / seconds, 1)
        row["supervised_s"] = round(self.work["supervised"] / seconds, 1)
        if self.work["flops"]:
            row["gflops_s"] = round(self.work["flops"] / seconds / 1e9, 1)
            if peak:
                row["mfu"] = round(self.work["flops"] / seconds / peak, 4)
        row["wait"] = round(self.waited / seconds, 3)
        row |= {name: round(value / max(1, self.steps), 4) for name, value in self.norms.items()}
        row["step_s"] = round(seconds / max(1, self.steps), 3)
        return row


def peak_flops(world: World) -> float:
    """Published dense 16-bit peak of all workers' GPUs, 0 where it isn't known."""
    if world.device.type != "cuda":
        return 0.0
    name = torch.cuda.get_device_name(world.device).lower().replace(" ", "")
    found = [device.flops for known, device in DEVICES.items() if known in name]
    return max(found, default=0.0) * world.size


def peak_memory(world: World) -> float:
    """GiB that the worker with the most has held at once: of its GPU, else of its process."""
    if world.device.type == "cuda":
        held = float(torch.cuda.max_memory_allocated(world.device))
    else:
        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1.0 if sys.platform == "darwin" else 1024.0)
    return round(max(gather(held, world)) / 2**30, 3)
