"""Weights, gradients and moments shared out over the workers (FSDP2), where one device can't hold them all.

    learner ──shard──> blocks of tower and language model, embeddings, head: a slice a worker
    full tensors ──put / gather──> checkpoints: the same files as without, so a run goes on on any number of workers

Small parts (connector, newline, norms, the reading head, tied embeddings) stay whole on every worker. Sums, not means,
are taken over workers, because the loop's normaliser is global already.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from pumice.train.objectives import Learner
from pumice.train.parallel import World


def shard(learner: Learner, world: World, dtype: torch.dtype) -> None:
    """Share out a learner's blocks in place; weights travel between workers in ``dtype``, gradients in fp32."""
    mesh = init_device_mesh(world.device.type, (world.size,))
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    model = learner.model
    lm = model.lm
    parts: list[nn.Module] = [*lm.get_decoder().layers]
    parts += [block for _, block in model.tower.model.get_submodule(model.tower.blocks).named_children()]
    if not lm.config.tie_word_embeddings:
        parts += [lm.get_input_embeddings(), lm.lm_head]
    for part in parts:
        fully_shard(part, mesh=mesh, mp_policy=policy)
    for part in parts:
        assert isinstance(part, FSDPModule)
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)
    learner.sharded = True


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float, world: World) -> float:
    """Scale the gradients so that their norm over all workers' slices is at most ``limit``; the norm before."""
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    local = [grad.to_local() if isinstance(grad, DTensor) else grad for grad in grads]
    squares = torch.zeros(2, dtype=torch.float64, device=world.device)  # of slices, of what every worker has whole
    for grad, mine in zip(grads, local, strict=True):
        squares[0 if isinstance(grad, DTensor) else 1] += mine.detach().double().square().sum()
    if world.size > 1 and any(isinstance(grad, DTensor) for grad in grads):
        slices = squares[:1].clone()
        dist.all_reduce(slices)
        squares[:1] = slices
    norm = float(squares.sum().sqrt())
    if norm > limit:
        for mine in local:
            mine.mul_(limit / (norm + 1e-6))
    return norm
