"""Names of all contenders, and one run of one of them.

Job (setting, contender, run) ──run_job──> Record (seconds, losses, counts, memory)      in a process of its own
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.train import device, samples
from benchmarks.train.measure import Contender, Setting, Update
from benchmarks.train.shapes import SHAPES, write
from pumice.formats.describe import Description, describe
from pumice.model.build import auto_dtype
from pumice.types import Features

CONTENDERS = {
    "ours": ("Pumice", "ours", "Ours"),
    "padded": ("(a) LLaVA-style loop, padded to the longest", "padded", "PaddedLoop"),
    "grouped": ("(b) the same, grouped by length", "padded", "PaddedLoop"),
    "trainer": ("(c) transformers' Trainer", "hf_trainer", "HfTrainer"),
    "nanovlm": ("(d) nanoVLM's packing", "nanovlm", "NanoVlm"),
    "nanovlm-apart": ("(d) nanoVLM's packing, samples apart", "nanovlm", "NanoVlmApart"),
    "ours-padding": ("Pumice, padded instead of packed", "ours", "Padded"),
    "ours-mask": ("Pumice, one dense mask instead of attention by document", "ours", "OneMask"),
    "ours-head": ("Pumice, all rows through the head", "ours", "AllRows"),
    "ours-tower": ("Pumice, the tower frozen", "ours", "Frozen"),
}
"""Label, module and class by name."""
SETTLE = {"cpu": 0, "cuda": 2}
"""Updates between the warm-up and the timed ones. The warm-up's samples are short; a GPU's allocator has what it needs,
and its kernels are loaded, only after some of full length."""
COMPARED = ("ours", "padded", "grouped", "trainer", "nanovlm")
ABLATIONS = ("ours", "ours-padding", "ours-mask", "ours-head", "ours-tower")


@dataclass(frozen=True)
class Job:
    """One run. ``samples`` an update, ``batch`` samples of a padded pass, ``pack_tokens`` tokens of a packed one.

    ``device`` is cpu or cuda.
    """

    shape: str
    contender: str
    run: int
    runs: int
    updates: int
    samples: int
    batch: int
    pack_tokens: int
    threads: int
    frozen: bool
    seed: int
    device: str = "cpu"


@dataclass(frozen=True)
class Record:
    """What a run gave. ``step0`` is the loss before the first step, of samples that don't see each other.

    ``updates`` has the warm-up first; the counts are those of the timed updates, taken from the data. ``memory`` is the
    peak in bytes, of the process's resident set or of tensors on a GPU.
    """

    contender: str
    run: int
    step0: float
    updates: list[Update]
    tokens: int
    supervised: int
    flops: float
    memory: int


def run_job(job: Job, folder: Path | None = None) -> Record:
    """Run a contender in this process, on the weights in ``folder``; without one they are made for this run alone."""
    if folder is None:
        with tempfile.TemporaryDirectory() as made:
            write(SHAPES[job.shape], Path(made))
            return run_job(job, Path(made))
    from benchmarks.train.ours import block_mask

    description = describe(folder)
    updates = lay_out(job, description)
    where = torch.device(job.device)
    block_mask.cache_clear()
    device.start(where)
    setting = Setting(SHAPES[job.shape], folder, job.batch, job.pack_tokens, job.frozen, auto_dtype(where), where)
    _, module, name = CONTENDERS[job.contender]
    contender: Contender = getattr(import_module(f"benchmarks.train.{module}"), name)(setting)
    done = run_settled(contender, updates, SETTLE[job.device])
    timed = [document for documents in updates[1:] for document in documents]
    return Record(
        job.contender, job.run, getattr(contender, "proof", done[0].loss), done, samples.tokens(timed),
        samples.supervised(timed), useful_flops(timed, description, job.frozen or job.contender == "ours-tower"),
        device.memory(where),
    )  # fmt: skip


def run_settled(contender: Contender, updates: Sequence[Sequence[Features]], settle: int) -> list[Update]:
    """Run all updates, with ``settle`` of the timed ones also between the warm-up and them; those aren't returned."""
    first, *timed = updates
    done = contender.run([first, *(timed[i % len(timed)] for i in range(settle)), *timed])
    return [done[0], *done[1 + settle :]]


def lay_out(job: Job, description: Description) -> list[list[Features]]:
    """The warm-up and the timed updates of a run."""
    most = SHAPES[job.shape].most_tokens
    updates = samples.shuffled_updates(job.samples, job.updates, job.runs, job.run, job.seed)
    if job.contender == "grouped":
        seeds = range(job.seed + 1000 * (job.run + 1), job.seed + 1000 * (job.run + 1) + job.updates)
        updates = [
            samples.grouped_update(job.batch, like, description.policy, seed, most)
            for like, seed in zip(updates, seeds, strict=True)
        ]
    vocabulary = description.lm.vocab_size
    every = [samples.warm_up(job.samples), *updates]
    return [[draft.lay_out(description.policy, vocabulary, most) for draft in drafts] for drafts in every]


def useful_flops(documents: Sequence[Features], description: Description, frozen: bool) -> float:
    """What `pumice train --dry-run` counts: FLOPs of both passes over useful tokens alone.

    Attention is causal in each sample, the head is counted at supervised places, the tower up to the last used block.
    """
    from benchmarks.train.ours import make_stage
    from pumice.train.flops import training_flops

    lengths = np.array([len(document) for document in documents])
    count, seen = samples.supervised(documents), samples.views(documents)
    return float(training_flops(make_stage(frozen), description.sizes, lengths, seen, count))


def from_json(values: dict[str, Any]) -> Record:
    """A record that was written with `dataclasses.asdict`."""
    return Record(**{**values, "updates": [Update(**update) for update in values["updates"]]})
