"""Which lever buys what, on pocket, without training: tiles, tokens a tile, the tower's weights, a reading turn first.

    python -m benchmarks.study run study --n 40             # the same command goes on after a stop
    python -m benchmarks.study run study --n 40 --only tiles-1,twice-9
    python -m benchmarks.study run study --towers t1 t2 t3  # runs of recipes/pocket-towers.toml with seed=1, 2, 3
    python -m benchmarks.study table study                  # Markdown of what there is, as in docs/study.md
    python -m benchmarks.study plot study docs/figures/study.png

    cells x items of the embedded suite ──one question at a time──> journal ──> study.json ──> table, plot

Every round asks all cells the next few items, so that a run that is stopped early has compared all of them on as many.
Times are CPU time of the process on one thread, from the question to its first text: they hold on a shared machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

import pumice
from benchmarks import object_probe, study_report
from benchmarks.study_cells import BUDGETS, CELLS, MEMBERS, Cell
from benchmarks.study_report import load
from pumice.assistant import Assistant
from pumice.config import load_recipe
from pumice.eval.report.summary import progress_bar
from pumice.eval.suite.asking import DEFAULT_LIMIT, LIMITS
from pumice.eval.suite.items import Item, Suite, suite
from pumice.journal import FolderJournal, digest_of, model_hash
from pumice.messages import question_messages
from pumice.model.build import load_tower
from pumice.model.connectors import pool
from pumice.pocket.parts import RECIPE

STEP = 5
"""Items of each task in a round."""
READ_FIRST, READ_TOKENS = "Read the page.", 160
"""The turn before the question, as pocket was taught it, and its longest answer."""


class Pooled(nn.Module):
    """A connector whose tokens are averaged over squares of ``stride`` x ``stride``; nothing was trained for that."""

    def __init__(self, connector: nn.Module, stride: int) -> None:
        super().__init__()
        self.connector, self.stride = connector, stride

    def forward(self, features: Tensor) -> Tensor:
        """(N, side^2, C) to (N, (side/stride)^2, H)."""
        return pool(self.connector(features), "average", self.stride)


class Bench:
    """Pocket, its trained and its untouched tower, and how to turn it into a cell."""

    def __init__(self, runs: Sequence[Path] = ()) -> None:
        self.members = [pumice.load(str(run), dtype="float32", device="cpu") for run in runs]
        self._digests = [model_hash(member) for member in self.members]
        self.assistant = pumice.load("pocket", dtype="float32", device="cpu")
        model = self.assistant.model
        self.digest = model_hash(self.assistant)
        self._policy, self._connector = self.assistant.processor.policy, model.connector
        self._trained = {name: value.clone() for name, value in model.tower.state_dict().items()}
        self._base = load_tower(load_recipe(RECIPE).model.tower).state_dict()

    def tower(self, a: float) -> dict[str, Tensor]:
        """(1 - a) DINOv2 + a trained tower."""
        return {name: torch.lerp(self._base[name].float(), value, a) for name, value in self._trained.items()}

    def mean(self, members: Sequence[int]) -> dict[str, Tensor]:
        """The mean of some runs' towers."""
        states = [self.members[i].model.tower.state_dict() for i in members]
        return {name: torch.stack([state[name].float() for state in states]).mean(0) for name in states[0]}

    def weights(self, cell: Cell) -> str:
        """Hashes of what a cell's answers come from."""
        return "-".join([self.digest, *(self._digests[i] for i in cell.members)])

    def become(self, cell: Cell) -> None:
        """Change the assistant to what the cell has."""
        model, policy = self.assistant.model, self._policy
        grids = BUDGETS[cell.tiles] if cell.tiles < 4 else (*policy.grids, *BUDGETS[cell.tiles])
        policy = replace(policy, grids=grids, side=policy.side // cell.stride)
        self.assistant.processor = replace(self.assistant.processor, policy=policy)
        model.connector = self._connector if cell.stride == 1 else Pooled(self._connector, cell.stride)  # type: ignore[assignment]
        model.tower.load_state_dict(self.mean(cell.members) if cell.members else self.tower(cell.a))


def ask(assistant: Assistant, cell: Cell, asked: Suite, item: Item) -> dict[str, Any]:
    """The answer to an item and what it cost, nothing being remembered from before."""
    assistant.forget()
    began = time.process_time()
    image = asked.open(item.picture)
    if cell.scale != 1:
        image = image.resize((cell.scale * image.width, cell.scale * image.height), Image.Resampling.BICUBIC)
    messages = question_messages(image, READ_FIRST if cell.reads else item.question)
    if cell.reads:
        read = assistant.chat(messages, max_tokens=READ_TOKENS).text
        messages += [{"role": "assistant", "content": read}, {"role": "user", "content": item.question}]
    first, answer = 0.0, None
    for piece in assistant.chat(messages, stream=True, max_tokens=LIMITS.get(item.kind, DEFAULT_LIMIT)):
        first = first or time.process_time() - began
        answer = piece
    if isinstance(answer, str) or answer is None:
        raise RuntimeError("the stream ended without its answer")
    return {"text": answer.text, "visual": answer.visual_tokens, "first_ms": round(1000 * first, 1)}


def rounds(cells: Sequence[Cell], n: int) -> Iterator[tuple[Cell, list[tuple[Item, Suite]]]]:
    """Each cell with its next items, STEP a task, until all have had ``n`` a task."""
    tasks = tuple(dict.fromkeys(task for cell in cells for task in cell.tasks))
    suites = {task: suite((task,), n) for task in tasks}
    for start in range(0, n, STEP):
        for cell in cells:
            some = [suites[task] for task in cell.tasks]
            yield cell, [(item, of) for of in some for item in of.items[start : min(start + STEP, n)]]


def key_of(digest: str, cell: Cell, item: Item, picture: bytes) -> str:
    """What an answer depends on: Pumice's version, the model, the cell's changes, the question and the picture."""
    asked = [pumice.__version__, digest, cell.changes, item.question]
    return digest_of(json.dumps(asked, sort_keys=True).encode(), picture)


def run(out: Path, cells: Sequence[Cell], n: int, towers: Sequence[Path]) -> None:
    """Ask what the journal in ``out`` hasn't got, and keep ``out``/study.json up to date."""
    bench, journal = Bench(towers), FolderJournal(out / "journal")
    plan = []
    for cell, items in rounds(cells, n):
        keys = [key_of(bench.weights(cell), cell, item, of.pictures[item.picture]) for item, of in items]
        plan.append((cell, [(key, *one) for key, one in zip(keys, items, strict=True)]))
    collect(out, plan, journal)
    done, total = 0, sum(len(items) for _, items in plan)
    with progress_bar() as step:
        for cell, items in plan:
            left = [one for one in items if journal.get(one[0]) is None]
            done += len(items) - len(left)
            if left:
                bench.become(cell)
            for key, item, of in left:
                entry = {"cell": cell.name, "task": item.task, "picture": item.picture, "truth": item.truth}
                journal.add(key, entry | ask(bench.assistant, cell, of, item))
                done += 1
                step(done, total)
            collect(out, plan, journal)


def collect(out: Path, plan: Sequence[tuple[Cell, list[tuple[str, Item, Suite]]]], journal: FolderJournal) -> None:
    """Write all answers that there are to study.json."""
    found: dict[str, list[dict[str, Any]]] = {}
    for cell, items in plan:
        found.setdefault(cell.name, []).extend(filter(None, (journal.get(key) for key, *_ in items)))
    save(out, "answers", {name: rows for name, rows in found.items() if rows})


def probe(out: Path) -> None:
    """Add the shares of `object_probe` along the line from DINOv2 to the trained tower."""
    known, tower = load(out).get("probe", {}), Bench().tower
    tiles, classes, trains = object_probe.drawings()
    for a in (0.0, 0.25, 0.5, 0.75, 1.0):
        if f"{a:g}" not in known:
            wide = object_probe.wide_tower()
            wide.load_state_dict(tower(a))
            known[f"{a:g}"] = object_probe.shares(wide, tiles, classes, trains)
            save(out, "probe", known)
            print(f"probe at a = {a:g} done", file=sys.stderr)


def save(out: Path, part: str, value: Any) -> None:
    """Put a part into study.json, which is replaced whole."""
    scratch = out / "study.json.part"
    old = load(out)
    merged = {**old.get(part, {}), **value}
    scratch.write_text(json.dumps(old | {part: merged}, indent=1) + "\n", encoding="utf-8")
    scratch.replace(out / "study.json")


def main() -> None:
    """Parse and run one of run, table and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table", "plot"))
    parser.add_argument("out", type=Path, help="folder of journal and study.json")
    parser.add_argument("figure", type=Path, nargs="?", help="of plot")
    parser.add_argument("--n", type=int, default=40, help="questions a task (default: %(default)s)")
    parser.add_argument("--towers", type=Path, nargs=MEMBERS, metavar="RUN", default=(), help="for seed-1 to mean")
    parser.add_argument("--only", help=f"some of {', '.join(cell.name for cell in CELLS)}, probe")
    options = parser.parse_args()
    if options.what == "table":
        print(study_report.tables(options.out), end="")
    elif options.what == "plot":
        study_report.plot(options.out, options.figure)
    else:
        names = [*(cell.name for cell in CELLS), "probe"]
        wanted = options.only.split(",") if options.only else names
        unknown = set(wanted) - set(names)
        if unknown or options.n < 1:
            parser.error(f"no cell {', '.join(sorted(unknown))}" if unknown else "--n is at least 1")
        torch.set_num_threads(1)
        options.out.mkdir(parents=True, exist_ok=True)
        cells = [cell for cell in CELLS if cell.name in wanted and (options.towers or not cell.members)]
        if cells:
            run(options.out, cells, options.n, options.towers)
        if "probe" in wanted:
            probe(options.out)


if __name__ == "__main__":
    main()
