"""Weights, gradients and moments shared out over the workers (FSDP2), where one device can't hold them all.

    learner ──shard──> blocks of tower and language model, embeddings, head: a slice a worker
    full tensors ──put / gather──> checkpoints: the same files as without, so a run goes on on any number of workers

Small parts (connector, newline, norms, the reading head, tied embeddings) stay whole on every worker. Sums, not means,
are taken over workers, because the loop's normaliser is global already.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
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


def clip_gradients(trainable: Mapping[str, nn.Parameter], limit: float, world: World) -> tuple[float, dict[str, float]]:
    """Scale the gradients so that their norm over all workers' slices is at most ``limit``.

    Returns the norm before, and that of each module (the first part of the parameters' names).
    """
    grads = {name: parameter.grad for name, parameter in trainable.items() if parameter.grad is not None}
    local = {name: grad.to_local() if isinstance(grad, DTensor) else grad for name, grad in grads.items()}
    modules = sorted({name.partition(".")[0] for name in grads})
    squares = torch.zeros(2, len(modules), dtype=torch.float64, device=world.device)  # of slices; of whole ones
    parts: dict[tuple[int, int], list[Tensor]] = {}
    for name, grad in grads.items():
        place = int(not isinstance(grad, DTensor)), modules.index(name.partition(".")[0])
        parts.setdefault(place, []).append(local[name].detach())
    for place, tensors in parts.items():
        squares[place] = nn.utils.get_total_norm(tensors).double().square()
    if world.size > 1 and any(isinstance(grad, DTensor) for grad in grads.values()):
        slices = squares[0].clone()
        dist.all_reduce(slices)
        squares[0] = slices
    sums = squares.sum(0)
    norm = float(sums.sum().sqrt())
    if norm > limit:
        torch._foreach_mul_(list(local.values()), limit / (norm + 1e-6))  # pyright: ignore[reportPrivateImportUsage]
    return norm, dict(zip(modules, sums.sqrt().tolist(), strict=True))
