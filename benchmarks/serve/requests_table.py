"""Runs of requests.py as Markdown: medians, ratios and the goals, a section a number of threads."""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import Any

Rows = dict[tuple[str, str], list[float]]
"""(contender, point) to seconds of each run."""
FIRST = [f"{kind}{more}" for kind in ("picture", "video") for more in ("", ", same again", ", another question")]
FIRST += ["pdf", "pdf, another question"]
LOADS = ["shared 1", "shared 8", "shared 32", "different 8", "different 32", "text 1", "text 8", "text 32"]
NAMES = {"shared": "one picture", "different": "a picture each", "text": "a text of about 730 tokens"}


def table(records: list[dict[str, Any]]) -> str:
    """The whole report."""
    lines = ["# Whole requests", ""]
    for threads in sorted({record["threads"] for record in records}):
        mine = [record for record in records if record["threads"] == threads]
        rows: Rows = defaultdict(list)
        for record in mine:
            for point, seconds in record.get("times", {}).items():
                rows[record["contender"], point] += seconds
        contenders = list(dict.fromkeys(record["contender"] for record in mine))
        busy = max(record["load"] for record in mine)
        lines += [f"## {threads} thread(s)", "", f"The machine's load before a run was {busy:.1f} at most.", ""]
        lines += [*_goals(rows, mine, contenders), "", *_first(rows, mine, contenders), ""]
        lines += [*_loads(rows, contenders), "", *_memory(mine, contenders), ""]
        failed = [f"- {r['contender']}, {r['group']}: {r['error']}" for r in mine if "error" in r]
        lines += ["Failed:", "", *failed, ""] if failed else []
    return "\n".join(lines)


def _median(rows: Rows, contender: str, point: str) -> float | None:
    times = rows.get((contender, point))
    return statistics.median(times) if times else None


def _rate(rows: Rows, contender: str, point: str) -> float | None:
    """Requests a second. transformers' are of its faster way: one after the other, or in batches of 8."""
    if contender.startswith("transformers"):
        kind = "text" if point.startswith("text") else "picture"
        alone, batch = (_median(rows, contender, f"{kind} {way}") for way in ("alone", "batch of 8"))
        rates = [n / t for n, t in ((1, alone), (8, batch)) if t is not None and (n == 1 or not point.endswith(" 1"))]
        return max(rates, default=None)
    seconds = _median(rows, contender, point)
    return int(point.split()[-1]) / seconds if seconds else None


def _first(rows: Rows, records: list[dict[str, Any]], contenders: list[str]) -> list[str]:
    """Seconds to the first token."""
    shown = [c for c in contenders if any((c, point) in rows for point in FIRST)]
    tokens: dict[str, dict[str, str]] = defaultdict(dict)
    for record in records:
        for point, note in record.get("notes", {}).items():
            if point in FIRST:
                of = f"{note['visual']} / {note['prompt']}"
                tokens[point][record["contender"].split("-")[0]] = of
    lines = ["Seconds to the first token, medians (runs); tokens are visual / of the whole prompt.", ""]
    lines += [f"| | tokens | {' | '.join(shown)} |", "|---" * (len(shown) + 2) + "|"]
    for point in FIRST:
        cells = []
        for contender in shown:
            times = rows.get((contender, point))
            cells.append(f"{statistics.median(times):.3f} ({len(times)})" if times else "")
        if any(cells):
            of = ", ".join(f"{who} {count}" for who, count in sorted(tokens[point].items()))
            lines.append(f"| {point} | {of} | {' | '.join(cells)} |")
    return lines


def _loads(rows: Rows, contenders: list[str]) -> list[str]:
    """Requests a second of clients that ask at once."""
    shown = [c for c in contenders if any(_rate(rows, c, point) for point in LOADS)]
    if not shown:
        return []
    lines = [
        "Requests a second, 16 tokens each, of clients that ask at once (runs). transformers answers one after the"
    ]
    lines += [
        "the other or eight as a padded batch, whichever is faster, and keeps nothing: one picture is like many.",
        "",
    ]
    lines += [f"| clients, about | {' | '.join(shown)} |", "|---" * (len(shown) + 1) + "|"]
    for point in LOADS:
        rates = [_rate(rows, contender, point) for contender in shown]
        counts = [len(rows.get((contender, point), [])) for contender in shown]
        if any(rates):
            cells = [f"{r:.2f}" + (f" ({n})" if n else "") if r else "" for r, n in zip(rates, counts, strict=True)]
            kind, clients = point.split()
            lines.append(f"| {clients}, {NAMES[kind]} | {' | '.join(cells)} |")
    ways = [(c, p) for c, p in rows if p.endswith(("alone", "batch of 8"))]
    lines += ["", *(f"- {c}, {p}: {_median(rows, c, p):.2f} s ({len(rows[c, p])})" for c, p in ways)]
    return lines


def _memory(records: list[dict[str, Any]], contenders: list[str]) -> list[str]:
    """The most memory of a process, by what it was asked."""
    peaks: dict[tuple[str, str], float] = defaultdict(float)
    for record in records:
        key = record["contender"], record["group"]
        peaks[key] = max(peaks[key], record.get("peak MiB", 0.0))
    groups = list(dict.fromkeys(record["group"] for record in records))
    lines = ["Peak resident memory of the process, MiB, most of all runs.", ""]
    lines += [f"| | {' | '.join(groups)} |", "|---" * (len(groups) + 1) + "|"]
    for contender in contenders:
        cells = [f"{peaks[contender, g]:.0f}" if peaks.get((contender, g)) else "" for g in groups]
        lines.append(f"| {contender} | {' | '.join(cells)} |")
    return lines


def _goals(rows: Rows, records: list[dict[str, Any]], contenders: list[str]) -> list[str]:
    """Each goal, what was found, and whether it is reached."""
    lines = ["| goal | contender | found | |", "|---|---|---|---|"]

    def add(goal: str, contender: str, found: float | None, limit: float, least: bool, unit: str = "x") -> None:
        if found is not None:
            reached = found >= limit if least else found <= limit
            shown = f"{'>=' if least else '<='} {limit:g}{unit}"
            digits = 3 if not least else 2
            lines.append(f"| {goal}, {shown} | {contender} | {found:.{digits}f}{unit} | {'yes' if reached else 'no'} |")

    peers = [c for c in contenders if c.startswith("transformers")]
    llamas = [c for c in contenders if c.startswith("llama.cpp")]
    for ours in (c for c in contenders if c.startswith("pumice")):
        for kind in ("picture", "video"):
            best = min(filter(None, (_median(rows, peer, kind) for peer in peers)), default=None)
            add(f"first token, {kind}, to transformers", ours, _over(_median(rows, ours, kind), best), 0.6, False)
        add("first token, same picture again", ours, _median(rows, ours, "picture, same again"), 0.1, False, " s")
        second, first = _median(rows, ours, "pdf, another question"), _median(rows, ours, "pdf")
        add("first token, PDF again, to the first", ours, _over(second, first), 0.05, False)
        for point in LOADS[1:]:
            kind, clients = point.split()
            for name, others in (("transformers", peers), ("llama.cpp", llamas)):
                best = max(filter(None, (_rate(rows, other, point) for other in others)), default=None)
                found, limit = _over(_rate(rows, ours, point), best), 1.3 if kind == "different" else 10.0
                if clients != "1":
                    add(f"requests/s, {clients} about {NAMES[kind]}, to {name}", ours, found, limit, True)
        held = [
            note["tokens in memory after"] / note["most that memory takes"]
            for record in records
            if record["contender"] == ours
            for note in record.get("notes", {}).values()
            if isinstance(note, dict) and "most that memory takes" in note
        ]
        add("tokens held, to the memory's budget", ours, max(held, default=None), 1.0, False)
    return lines


def _over(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b else None
