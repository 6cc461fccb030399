"""Rendering shards with many processes, so that a run that was killed goes on without a lost or a doubled record.

    numbers ──chunks──> processes here or a cluster's ──records, in order──> one writer ──> shard, and what is in it

The writer takes chunks in the order of their numbers, so that a shard's bytes don't depend on who was faster. A shard
and its facts are renamed into place when they are whole; a run begins at the first shard that isn't there.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pumice.data.pool import Where, map_over
from pumice.data.produce.counts import Counts
from pumice.data.produce.plan import Plan, check_tools, settle_plan
from pumice.data.produce.records import Record
from pumice.data.produce.shards import FORMS, settle, sha256, write_whole
from pumice.folder_lock import alone
from pumice.types import PumiceError

CHUNK = 32
"""Records that a worker renders before it hands them over."""
SHARDS = "shards"


@dataclass
class Tally:
    """How far a run is: records in all, those written by it and found from before, its seconds, and by kind (records,
    seconds of one core).
    """

    samples: int
    written: int = 0
    found: int = 0
    seconds: float = 0.0
    spent: dict[str, tuple[int, float]] = field(default_factory=dict)

    def took(self, kind: str, seconds: float) -> None:
        """Add a record's time."""
        count, before = self.spent.get(kind, (0, 0.0))
        self.spent[kind] = (count + 1, before + seconds)

    @property
    def rates(self) -> dict[str, float]:
        """Records a second and core, by kind."""
        return {kind: count / seconds for kind, (count, seconds) in sorted(self.spent.items()) if seconds}


Progress = Callable[[Tally], object]
Rendered = tuple[Record, tuple[int, int] | None, float]
"""A record, tokens of its questions and answers where they are counted, and the seconds that it took."""


def render_shards(
    plan: Plan,
    folder: Path,
    workers: int = 1,
    tokenizer: str | None = None,
    progress: Progress = lambda tally: None,
    where: Where = "here",
) -> Tally:
    """Render what is missing of a plan into ``folder``, with processes here or a Ray cluster's.

    Raises:
        PumiceError: a record can't be drawn, another run is at work here, the folder is another plan's, a process died,
            or the cluster isn't there or draws otherwise. The same call goes on from the shards that are whole.
    """
    with alone(folder):
        settle_plan(folder, plan)
        (folder / SHARDS).mkdir(exist_ok=True)
        tally = Tally(plan.samples)
        missing = [shard for shard in range(plan.shards) if read_facts(folder, plan, shard) is None]
        tally.found = plan.samples - sum(len(plan.range(shard)) for shard in missing)
        progress(tally)
        began = time.monotonic()

        def told() -> None:
            tally.seconds = time.monotonic() - began
            progress(tally)

        chunks = [chunk for shard in missing for chunk in _chunks(plan.range(shard))]
        with closing(_rendered(plan, chunks, workers, tokenizer, where)) as records:
            for shard in missing:
                _write_shard(folder, plan, shard, records, tally, told)
        return tally


def _chunks(numbers: range) -> list[range]:
    return [numbers[at : at + CHUNK] for at in range(0, len(numbers), CHUNK)]


def _write_shard(
    folder: Path, plan: Plan, shard: int, records: Iterator[Rendered], tally: Tally, told: Callable[[], None]
) -> None:
    """Write one shard from the next records; its facts come first, so that a shard never lies there without them."""
    path = folder / SHARDS / plan.name(shard)
    scratch = path.with_name(f"{path.name}.tmp")
    counts, numbers = Counts(), plan.range(shard)
    writer = FORMS[plan.form][1](scratch)
    for _, (record, tokens, seconds) in zip(numbers, records, strict=False):
        writer.add(record)
        counts.add(record, tokens)
        tally.took(record.said["data_source"], seconds)
        tally.written += 1
        told()
    writer.close()
    facts = {
        "name": path.name,
        "samples": len(numbers),
        "first": numbers.start,
        "bytes": scratch.stat().st_size,
        "sha256": sha256(scratch),
        "counts": counts.as_dict(),
    }
    write_whole(_facts(path), json.dumps(facts, ensure_ascii=False).encode())
    settle(scratch, path)


def _facts(path: Path) -> Path:
    return path.with_suffix(".json")


def read_facts(folder: Path, plan: Plan, shard: int) -> dict[str, Any] | None:
    """What is in a shard: name, samples, first, bytes, sha256, counts; None where it isn't there whole."""
    path = folder / SHARDS / plan.name(shard)
    try:
        facts = json.loads(_facts(path).read_text(encoding="utf-8"))
        whole = path.stat().st_size == facts["bytes"] and facts["samples"] == len(plan.range(shard))
    except (OSError, ValueError, KeyError):
        return None
    return facts if whole else None


def _rendered(
    plan: Plan, chunks: Sequence[range], workers: int, tokenizer: str | None, where: Where
) -> Generator[Rendered, None, None]:
    """The records of all chunks in their order."""
    if tokenizer:
        _load_tokenizer(tokenizer)  # shows a wrong one before processes start
    make = partial(_Renderer, plan, tokenizer)
    # Threads show the progress and a browser may have drawn here: neither outlives a fork.
    for _, records in map_over(make, chunks, workers, where, ordered=True, fresh=True):
        yield from records


class _Renderer:
    """Draws chunks of records.

    Raises:
        PumiceError: this machine has other fonts or packages than the plan's, or not the tokenizer.
    """

    def __init__(self, plan: Plan, tokenizer: str | None) -> None:
        check_tools(plan)
        self.plan, self.tokenizer = plan, _load_tokenizer(tokenizer) if tokenizer else None

    def __call__(self, chunk: range) -> list[Rendered]:
        out = []
        for number in chunk:
            began = time.process_time()
            record = self.plan.record(number)
            out.append((record, _tokens(record, self.tokenizer), time.process_time() - began))
        return out


def _load_tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError) as error:
        raise PumiceError(f"--tokenizer {name}: not a local tokenizer ({' '.join(str(error).split())[:120]})") from None


def _tokens(record: Record, tokenizer: Any) -> tuple[int, int] | None:
    """Tokens of questions and of answers, without those of templates and pictures."""
    if tokenizer is None:
        return None
    counted: Counter[str] = Counter()
    for turn in record.said["conversations"]:
        counted[turn["from"]] += len(tokenizer(turn["value"], add_special_tokens=False)["input_ids"])
    return counted["human"], counted["gpt"]
