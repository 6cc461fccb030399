"""Measurements in turns, each in a process of its own, kept as they are made.

    cells, in order ──those without a record──> a process each ──> records.json, after each; the same command goes on

A cell is a dictionary that names what is measured; its record is the cell and what the process printed last, as JSON,
with "load" and "wall" (seconds), or with "error". Nothing is begun once the time is over.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Cell = dict[str, Any]


def read_records(file: Path) -> list[Cell]:
    """What an earlier invocation kept."""
    return json.loads(file.read_text()) if file.is_file() else []


def run_cells(
    cells: Iterable[Cell], records: list[Cell], file: Path, minutes: float, command: Callable[[Cell], list[str]]
) -> bool:
    """Measure the cells that have no record yet, one after the other; False where time ran out.

    ``command`` gives a cell's module and arguments. A cell that took longer than what is left is still waited for.
    """
    began = time.monotonic()
    for cell in cells:
        if any(cell.items() <= record.items() for record in records):
            continue
        if time.monotonic() - began > minutes * 60:
            return False
        print(", ".join(f"{name} {value}" for name, value in cell.items()), flush=True)
        records.append(cell | run_worker(command(cell), cell["threads"]))
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        part.write_text(json.dumps(records, indent=1) + "\n")
        part.replace(file)
    return True


def run_worker(command: list[str], threads: int) -> Cell:
    """What a process printed last, or how it failed; it has ``threads`` threads."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    load, began = os.getloadavg()[0], time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", *command], env=environment, capture_output=True, text=True, check=False
    )
    taken = {"load": round(load, 2), "wall": round(time.monotonic() - began, 1)}
    if ended.returncode:
        return {"error": (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1], **taken}
    return {**json.loads(ended.stdout.splitlines()[-1]), **taken}
