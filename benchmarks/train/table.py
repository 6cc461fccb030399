"""Records to a Markdown table: medians with the least and the most, and what ours is beside each.

[Record] ──table──> Markdown
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from benchmarks.train.contenders import CONTENDERS, Record

GOALS = {"padded": 2.0, "grouped": 1.5, "trainer": 1.5, "nanovlm": 1.1}
"""How many times as fast ours is meant to be."""
PEAK_GOAL, MEMORY_GOAL = 0.5, 0.7


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
    lines = [
        f"# {setting['shape']}, tower {'frozen' if setting['frozen'] else 'trained'}",
        "",
        f"    {command}",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} thread(s) a run; matrix peak of one thread "
        f"{machine['peak']:.1f} GFLOP/s (benchmarks/matmul.py). torch {machine['torch']}, transformers "
        f"{machine['transformers']}, Python {machine['python']}, Pumice {machine['pumice']}.",
        "",
        f"Runs: {counts}. A run is {setting['updates']} update(s) of {setting['samples']} samples after one that warms "
        f"up; padded passes have {setting['batch']} samples, packed ones up to {setting['pack_tokens']} tokens. "
        "Medians [least, most]; ratios are of runs with the same number.",
        "",
        f"Over thousands of samples of the mixture, {mixture['mean']:.0f} tokens each, batches of {setting['batch']} "
        f"have {mixture['shuffled']:.0%} padding in random order and {mixture['grouped']:.0%} grouped by length.",
        "",
        "| | useful tokens/s, wall | useful tokens/s, CPU | supervised tokens/s | padding | GFLOP/s | of peak | "
        "peak memory MiB | loss at step 0 | after it | ours is, wall | ours is, CPU |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
        *(_row(name, found, of.get("ours", []), machine["peak"]) for name, found in of.items()),
        "",
        "GFLOP/s are those that useful tokens need (README.md), over CPU seconds; padding, masked attention and rows "
        "without loss do no useful work.",
        "",
    ]
    return "\n".join(lines + _goals(of, machine["peak"]))


def _row(name: str, found: Sequence[Record], ours: Sequence[Record], peak: float) -> str:
    speed = [record.flops / cpu(record) / 1e9 for record in found]
    cells = [
        CONTENDERS[name][0],
        spread([record.tokens / wall(record) for record in found], ".1f"),
        spread([record.tokens / cpu(record) for record in found], ".1f"),
        spread([record.supervised / cpu(record) for record in found], ".1f"),
        f"{median(map(padding, found)):.0%}",
        spread(speed, ".1f"),
        f"{median(speed) / peak:.0%}",
        spread([record.memory / 2**20 for record in found], ".0f"),
        f"{found[0].step0:.6f}",
        f"{found[0].updates[-1].loss:.4f}",
    ]
    for seconds in (wall, cpu):
        ratios = paired(ours, found, seconds)
        cells.append(f"{spread(ratios, '.2f')}x" if ratios else "")
    return f"| {' | '.join(cells)} |"


def _goals(of: dict[str, list[Record]], peak: float) -> list[str]:
    """A line a goal, said by CPU time."""
    if "ours" not in of:
        return []
    ours = of["ours"]
    lines = []
    for name, goal in GOALS.items():
        ratios = paired(ours, of.get(name, []), cpu)
        if ratios:
            lines.append(_goal(f"times as fast as {CONTENDERS[name][0]}", median(ratios), goal))
    share = median(record.flops / cpu(record) / 1e9 for record in ours) / peak
    lines.append(_goal("of the matrix peak", share, PEAK_GOAL))
    if "trainer" in of:
        most = median(r.memory for r in ours) / median(r.memory for r in of["trainer"])
        lines.append(_goal("of (c)'s peak memory", most, MEMORY_GOAL, below=True))
    return ["Goals, by CPU time:", "", *lines, ""]


def _goal(what: str, found: float, goal: float, below: bool = False) -> str:
    met = found <= goal if below else found >= goal
    return f"- {found:.2f} {what}: {'reached' if met else 'missed'} ({'at most' if below else 'at least'} {goal:g})"
