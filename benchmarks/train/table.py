"""Records to a Markdown table: medians with the least and the most, and what ours is beside each.

[Record] ──table──> Markdown

Where a GPU did the work, only wall time says something: the columns and goals of CPU time fall away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from benchmarks.train.contenders import CONTENDERS, SETTLE, Record

GOALS = {"padded": 2.0, "grouped": 1.5, "trainer": 1.5, "nanovlm": 1.1}
"""How many times as fast ours is meant to be."""
PEAK_GOAL, MEMORY_GOAL = 0.5, 0.7
HEADER = (
    "useful tokens/s, wall", "useful tokens/s, CPU", "supervised tokens/s", "padding", "GFLOP/s", "of peak",
    "peak memory MiB", "loss at step 0", "after it", "ours is, wall", "ours is, CPU",
)  # fmt: skip
HEADER_GPU = ("useful tokens/s", *(name for name in HEADER[2:-2]), "ours is")


def cpu(record: Record) -> float:
    """CPU seconds of the timed updates, of all threads."""
    return sum(update.cpu for update in record.updates[1:])


def wall(record: Record) -> float:
    return sum(update.wall for update in record.updates[1:])


def padding(record: Record) -> float:
    """Share of the rows through the language model that were no useful token."""
    return 1.0 - record.tokens / sum(update.rows for update in record.updates[1:])


def spread(values: Sequence[float], form: str) -> str:
    """Median [least, most]."""
    return f"{median(values):{form}} [{min(values):{form}}, {max(values):{form}}]"


def paired(ours: Sequence[Record], theirs: Sequence[Record], seconds: Callable[[Record], float]) -> list[float]:
    """How many times as fast ours is, in each run that both have."""
    by_run = {record.run: record.tokens / seconds(record) for record in theirs}
    return [r.tokens / seconds(r) / by_run[r.run] for r in ours if r.run in by_run]


def table(
    records: Sequence[Record], machine: dict[str, Any], mixture: dict[str, float], setting: dict[str, Any], command: str
) -> str:
    """The whole page of a comparison; ``mixture`` is `samples.long_run`'s."""
    names = list(dict.fromkeys(record.contender for record in records))
    of = {name: [record for record in records if record.contender == name] for name in names}
    counts = ", ".join(f"{name} {len(found)}" for name, found in of.items())
    gpu = "gpu" in machine
    header = " | ".join(HEADER_GPU if gpu else HEADER)
    lines = [
        f"# {setting['shape']}, tower {'frozen' if setting['frozen'] else 'trained'}",
        "",
        f"    {command}",
        "",
        f"{_where(machine)} torch {machine['torch']}, transformers {machine['transformers']}, Python "
        f"{machine['python']}, Pumice {machine['pumice']}.",
        "",
        f"Runs: {counts}. A run is {setting['updates']} update(s) of {setting['samples']} samples after {_warm(gpu)} "
        f"up; padded passes have {setting['batch']} samples, packed ones up to {setting['pack_tokens']} tokens. "
        "Medians [least, most]; ratios are of runs with the same number.",
        "",
        f"Over thousands of samples of the mixture, {mixture['mean']:.0f} tokens each, batches of {setting['batch']} "
        f"have {mixture['shuffled']:.0%} padding in random order and {mixture['grouped']:.0%} grouped by length.",
        "",
        f"| | {header} |",
        "|---" * (1 + len(HEADER_GPU if gpu else HEADER)) + "|",
        *(_row(name, found, of.get("ours", []), machine["peak"], gpu) for name, found in of.items()),
        "",
        f"GFLOP/s are those that useful tokens need (README.md), over {'wall' if gpu else 'CPU'} seconds; padding, "
        "masked attention and rows without loss do no useful work.",
        "",
        *_failed(machine.get("failed", {})),
    ]
    return "\n".join(lines + _goals(of, machine["peak"], gpu))


def _where(machine: dict[str, Any]) -> str:
    """What did the work, and its peak."""
    if "gpu" in machine:
        return (
            f"One {machine['gpu']}, beside {machine['cores']} cores of {machine['cpu']}, of which {machine['threads']} "
            f"thread(s) were used; bf16 autocast over fp32 weights; measured bf16 matrix peak "
            f"{machine['peak']:.0f} GFLOP/s (benchmarks/train/device.py)."
        )
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} thread(s) a run; matrix peak of one thread "
        f"{machine['peak']:.1f} GFLOP/s (benchmarks/matmul.py)."
    )


def _warm(gpu: bool) -> str:
    return f"{1 + SETTLE['cuda']} that warm" if gpu else "one that warms"


def _failed(reasons: dict[str, str]) -> list[str]:
    """A line a contender that has no (more) runs: the end of what it said, which Python makes the error."""
    lines = [f"- Failed: {CONTENDERS[name][0]}: {reason.strip().splitlines()[-1]}" for name, reason in reasons.items()]
    return [*lines, ""] if lines else []


def _row(name: str, found: Sequence[Record], ours: Sequence[Record], peak: float, gpu: bool) -> str:
    seconds = wall if gpu else cpu
    speed = [record.flops / seconds(record) / 1e9 for record in found]
    cells = [
        CONTENDERS[name][0],
        spread([record.tokens / wall(record) for record in found], ".1f"),
        *([] if gpu else [spread([record.tokens / cpu(record) for record in found], ".1f")]),
        spread([record.supervised / seconds(record) for record in found], ".1f"),
        f"{median(map(padding, found)):.0%}",
        spread(speed, ".1f"),
        f"{median(speed) / peak:.0%}",
        spread([record.memory / 2**20 for record in found], ".0f"),
        f"{found[0].step0:.6f}",
        f"{found[0].updates[-1].loss:.4f}",
    ]
    for over in (wall,) if gpu else (wall, cpu):
        ratios = paired(ours, found, over)
        cells.append(f"{spread(ratios, '.2f')}x" if ratios else "")
    return f"| {' | '.join(cells)} |"


def _goals(of: dict[str, list[Record]], peak: float, gpu: bool) -> list[str]:
    """A line a goal, said by CPU time, or by wall time on a GPU."""
    if "ours" not in of:
        return []
    ours, seconds = of["ours"], wall if gpu else cpu
    lines = []
    for name, goal in GOALS.items():
        ratios = paired(ours, of.get(name, []), seconds)
        if ratios:
            lines.append(_goal(f"times as fast as {CONTENDERS[name][0]}", median(ratios), goal))
    share = median(record.flops / seconds(record) / 1e9 for record in ours) / peak
    lines.append(_goal("of the matrix peak", share, PEAK_GOAL))
    if "trainer" in of:
        most = median(r.memory for r in ours) / median(r.memory for r in of["trainer"])
        lines.append(_goal("of (c)'s peak memory", most, MEMORY_GOAL, below=True))
    return [f"Goals, by {'wall' if gpu else 'CPU'} time:", "", *lines, ""]


def _goal(what: str, found: float, goal: float, below: bool = False) -> str:
    met = found <= goal if below else found >= goal
    return f"- {found:.2f} {what}: {'reached' if met else 'missed'} ({'at most' if below else 'at least'} {goal:g})"
