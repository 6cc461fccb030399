"""When checkpoints are written: before the next step, or by a thread beside the steps.

weights, moments ──(copy in CPU memory, thread)──> write_whole | write_slices ──> checkpoints/STAGE-STEP/
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from pumice.train.checkpoint import write_whole
from pumice.train.checkpoint_slices import write_slices
from pumice.train.parallel import World, sharded

TIMEOUT = timedelta(hours=2)
"""How long a worker waits for the slowest one's files."""


class Saver:
    """Writes a run's checkpoints, at most one at a time; the newest ``keep`` stay.

    In the ``background`` weights and moments are copied to CPU memory at once, and a thread writes them. Its error is
    raised by the next `save` or `wait`; ``failed`` tells beforehand.
    """

    def __init__(self, keep: int = 2, background: bool = False) -> None:
        self.keep = keep
        self._thread = ThreadPoolExecutor(1, "checkpoint") if background else None
        self._flight: Future[Any] | None = None
        self._group: dist.ProcessGroup | None = None

    @property
    def failed(self) -> bool:
        """Whether the save in flight has ended with an error."""
        return self._flight is not None and self._flight.done() and self._flight.exception() is not None

    def wait(self) -> None:
        """Wait for the save in flight.

        Raises:
            PumiceError: it failed; older checkpoints are untouched.
        """
        flight, self._flight = self._flight, None
        if flight is not None:
            flight.result()

    def save(self, folder: Path, world: World, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Save `training_state` and `optimizer_state` together; all workers must ask.

        Whole weights are equal on all workers, and the first one writes them; of slices each writes its own.

        Raises:
            PumiceError: it can't be written, or the save before it wasn't; older checkpoints are untouched.
        """
        self.wait()
        write = write_whole
        if any(sharded(value) for value in tensors.values()):
            if self._group is None:  # a group of its own: the default one is in use by the steps, and may be NCCL's
                self._group = _gloo()
            write = partial(write_slices, group=self._group)
        elif not world.main:
            return
        if self._thread is None:
            write(folder, tensors, state, self.keep)
        else:
            copies = {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}
            self._flight = self._thread.submit(write, folder, copies, deepcopy(state), self.keep)


def _gloo() -> dist.ProcessGroup:
    group = dist.new_group(backend="gloo", timeout=TIMEOUT)
    assert isinstance(group, dist.ProcessGroup)
    return group
