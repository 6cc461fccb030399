"""Several workers, one model: plain data parallelism over gloo or NCCL with a global normaliser.

counts of all workers ──sum──> loss = sum / global count ──backward──> gradients ──sum──> the same step everywhere
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class World:
    """This worker's rank and the number of workers."""

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """Where this worker trains: its own GPU, or the CPU."""
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def join_world() -> World:
    """Join the group that torchrun (or `pumice train --workers`) set up; alone when there is none."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return World(dist.get_rank(), size)


@contextmanager
def main_first(world: World) -> Iterator[None]:
    """A block that the first worker runs alone, then the others: what it writes, they find."""
    if world.size > 1 and not world.main:
        dist.barrier()
    yield
    if world.size > 1 and world.main:
        dist.barrier()


def leave_world(world: World) -> None:
    """Leave the group together: a worker that ends while another still talks to it may abort."""
    if world.size > 1 and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def sum_counts(counts: Sequence[Tensor], world: World) -> list[float]:
    """Each count summed over the workers."""
    stacked = torch.stack([count.detach().double().to(world.device) for count in counts])
    if world.size > 1:
        dist.all_reduce(stacked)
    return stacked.tolist()


def sum_gradients(parameters: Iterable[nn.Parameter], world: World) -> None:
    """Sum the gradients over the workers in one message; a parameter that this batch didn't touch counts as zero."""
    parameters = list(parameters)
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    if world.size == 1:
        return
    parameters = [parameter for parameter in parameters if not isinstance(parameter, DTensor)]  # summed already
    if not parameters:
        return
    flat = torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])
    dist.all_reduce(flat)
    start = 0
    for parameter in parameters:
        parameter.grad = flat[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()


def gather(value: Any, world: World) -> list[Any]:
    """Every worker's ``value``, in order, on every worker: figures for the log, nothing large."""
    if world.size == 1:
        return [value]
    found: list[Any] = [None] * world.size
    dist.all_gather_object(found, value)
    return found


def any_worker(flag: bool, world: World) -> bool:
    """Whether ``flag`` holds on some worker: all of them must stop after the same step, or the others would wait."""
    if world.size == 1:
        return flag
    asked = torch.tensor([float(flag)], device=world.device)
    dist.all_reduce(asked)
    return bool(asked.item())


def sharded(tensor: Tensor) -> bool:
    """Whether a worker holds only a slice of a tensor."""
    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on every worker: they must all ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
