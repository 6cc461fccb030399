"""Checkpoints of weights that are shared out: each worker writes its slices, nothing is gathered.

    worker 0, 1, ... ──torch.distributed.checkpoint──> scratch folder: shard-0000W-model-0000F-of-0000N.safetensors
    all written and flushed ──worker 0──> state.json, renamed

The files are safetensors whose headers say where in its tensor each slice begins. DCP's own form has its index in a
pickle; the writer and reader of Hugging Face's form do without. Workers tell each other what they wrote over gloo, in
a group of their own, so that a thread can do so while the others train.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import DTensor

from pumice.train.checkpoint import clear, commit, not_written, scratch_of
from pumice.types import PumiceError

FILE_BYTES = 2**30
"""A worker's file is about so large: it is put together in memory, twice, before it is written."""


class SliceWriter(HuggingFaceStorageWriter):
    """DCP's writer of safetensors, whose files become a checkpoint when every worker has written its own."""

    def __init__(self, scratch: Path, files: Mapping[str, int], state: dict[str, Any], keep: int) -> None:
        super().__init__(str(scratch), fqn_to_index_mapping=dict(files), save_distributed=True)
        self.scratch, self.state, self.keep = scratch, state, keep

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """On worker 0, when none has written yet: what a killed save left, perhaps of more workers, goes."""
        clear(self.scratch)
        return super().prepare_global_plan(plans)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On worker 0, when all have written and flushed."""
        names = {written.storage_data.relative_path for worker in results for written in worker}
        missing = sorted(name for name in names if not (self.scratch / name).is_file())
        if missing:
            raise PumiceError(
                f"{self.scratch.parent}: {missing[0]} of another worker isn't here; expected a folder that all nodes "
                "share: choose another --out"
            )
        commit(self.scratch, self.state, self.keep)


def write_slices(
    folder: Path, tensors: dict[str, Tensor], state: dict[str, Any], keep: int, group: dist.ProcessGroup
) -> None:
    """Write one checkpoint, each worker of ``group`` its slices; the other arguments are those of `write_whole`.

    Raises:
        PumiceError: some worker can't write; all of them raise, and the older checkpoints are untouched.
    """
    writer = SliceWriter(scratch_of(folder, state), _files(tensors), state, keep)
    planner = DefaultSavePlanner(flatten_state_dict=False)
    try:
        save(tensors, storage_writer=writer, planner=planner, process_group=group)
    except CheckpointException as error:
        worker, (cause, _) = next(iter(error.failures.items()))
        if isinstance(cause, PumiceError):
            raise cause from None
        raise not_written(writer.scratch, f"worker {worker}: {cause}") from None
    except RuntimeError as error:  # another worker is gone
        raise not_written(writer.scratch, str(error)) from None


def _files(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The number of the file, from 1, that each tensor's slices go into."""
    files: dict[str, int] = {}
    held, number = 0, 1
    for name, value in tensors.items():
        size = value.nbytes // (value.device_mesh.size() if isinstance(value, DTensor) else 1)
        if held and held + size > FILE_BYTES:
            held, number = 0, number + 1
        held, files[name] = held + size, number
    return files
