"""Prompt look-up (engine/lookup.py) against plain decoding: the same held-out questions, the same answers, both ways.

    python -m benchmarks.serve.lookup                        one thread; --minutes bounds it
    python -m benchmarks.serve.lookup --parts 1 --tasks form

    for each part: each task, with and without a reader, in a process of its own ──> results/lookup.json
    sums over all parts ──> results/lookup.md

From the repository's root. The same command goes on from the JSON. A part is FEW new pages of each task: pages of the
held-out split, each asked one question; with a reader the page's text is in the prompt. pocket answers greedily, up to
MOST tokens, with fp32 and with int8 weights. Every prompt is read first; then the answer is made plainly and by
look-up, where the two take turns at being first. An answer that differs fails its cell, and the table says so. Times
run from the request, whose prompt is known, to its end: the processor's time of the thread that runs the engine, and on
the wall, which other processes share.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.serve.turns import read_records, run_cells

RESULTS = Path(__file__).parent / "results"
FEW, MOST = 4, 128
TASKS = {
    "read": ("a line of text", ("read",)),
    "receipt": ("a receipt as JSON", ("receipt_json",)),
    "table": ("a table as Markdown, CSV or JSON", ("table_data",)),
    "form": ("a form as JSON", ("form_json",)),
    "field": ("a field of a receipt", ("shop", "date", "amount", "price", "city")),
}
"""What is asked, and the renderers' names of it."""
AT_ONCE = 4
"""Receipts that are also asked all together, where a token more in a pass costs more."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lookup", type=int, default=8, help="tokens up to which guesses fill a pass (default 8)")
    parser.add_argument("--parts", type=int, default=5, help=f"of {FEW} pages a task (default 5)")
    parser.add_argument("--tasks", default=",".join(TASKS), help=f"of {', '.join(TASKS)}")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=RESULTS / "lookup.json")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(measure(json.loads(args.worker))))
        return
    records = read_records(args.out)
    cells = [
        {"part": part, "reader": reader, "task": task, "at once": width, "lookup": args.lookup, "threads": 1}
        for part in range(args.parts)
        for reader in (True, False)
        for task in args.tasks.split(",")
        for width in ((1, AT_ONCE) if reader and task == "receipt" else (1,))
    ]
    finished = run_cells(
        cells, records, args.out, args.minutes, lambda cell: ["benchmarks.serve.lookup", "--worker", json.dumps(cell)]
    )
    args.out.with_suffix(".md").write_text(table([one for one in records if one["lookup"] == args.lookup]))
    print(f"{args.out.with_suffix('.md')}{'' if finished else ': not finished; the same command goes on'}")


def questions(task: str, part: int) -> Iterator[tuple[Any, str]]:
    """FEW pages with a question each."""
    from pumice.data.render import records
    from pumice.data.rendered import renderer

    made: dict[str, Callable[..., Any]] = {"read": renderer("lines"), "table": records.table, "form": records.form}
    found, index = 0, 0
    while found < FEW:
        rng = random.Random(f"lookup-{task}-{part}-{index}")
        page = made.get(task, records.receipt)(rng, "heldout")
        asked = [question for question in page.questions if question.task in TASKS[task][1]]
        if asked:
            found += 1
            yield page.image, rng.choice(asked).text
        index += 1


def measure(cell: dict[str, Any]) -> dict[str, Any]:
    """(In the process of its own.) Sums over the part's questions, by weights and way."""
    import torch

    import pumice
    from pumice.encode import encode
    from pumice.engine.engine import Engine
    from pumice.engine.settings import Settings
    from pumice.messages import question_messages, to_sample

    torch.set_num_threads(cell["threads"])
    assistant = pumice.load("pocket", reader=cell["reader"])
    samples = [assistant.prepared(to_sample(question_messages(*one))) for one in questions(cell["task"], cell["part"])]
    prompts = [encode(sample, assistant.processor, prompt=True) for sample in samples]
    width = cell["at once"]
    found: dict[str, Any] = {"prompt tokens": sum(map(len, prompts))}
    for weights in ("fp32", "int8"):
        engine = Engine(assistant.model, assistant.processor, Settings(weights=weights), start=False)
        sums: dict[str, dict[str, float]] = {"plain": {}, "look-up": {}}
        for first in range(0, len(prompts), width):
            runs = both_ways(engine, prompts[first : first + width], cell["lookup"], first % 2 == 1)
            for way, run in runs.items():
                sums[way] = {name: round(sums[way].get(name, 0) + value, 4) for name, value in run.items()}
            engine.forget()
        found[weights] = sums
    return found


def both_ways(engine: Any, prompts: list[Any], lookup: int, swapped: bool) -> dict[str, dict[str, float]]:
    """Counts and times of the same answers, made plainly and by look-up, or the other way about.

    Raises:
        RuntimeError: they differ.
    """
    from pumice.engine.request import Sampling

    for ticket in [engine.submit(prompt, Sampling(1)) for prompt in prompts]:
        ticket.result()
    runs: dict[str, dict[str, float]] = {}
    answers: set[tuple[tuple[int, ...], ...]] = set()
    for way, tokens in sorted({"plain": 0, "look-up": lookup}.items(), reverse=not swapped):
        engine._scheduler.lookup = tokens
        before, wall, cpu = engine.stats(), time.perf_counter(), time.thread_time()
        tickets = [engine.submit(prompt, Sampling(MOST)) for prompt in prompts]
        ids = tuple(ticket.result().ids for ticket in tickets)
        wall, cpu, after = time.perf_counter() - wall, time.thread_time() - cpu, engine.stats()
        answers.add(ids)
        if len(answers) > 1:
            raise RuntimeError(f"look-up changed an answer: {answers}")
        counts = {
            name: getattr(after, f"{name}_tokens") - getattr(before, f"{name}_tokens")
            for name in ("generated", "guessed", "right")
        }
        runs[way] = {**counts, "passes": after.passes - before.passes, "cpu": cpu, "wall": wall}
    return runs


def table(records: list[dict[str, Any]]) -> str:
    """Markdown: a row a task, summed over its parts."""
    head = ["", "answers", "tokens", "fewer passes", "guesses right"]
    for weights in ("fp32", "int8"):
        head += [f"{weights}: plain, tokens/s", "look-up", "ratio", "on the wall"]
    lines = [head, ["---"] * len(head)]
    groups = dict.fromkeys((one["task"], one["reader"], one["at once"]) for one in records)
    for task, reader, width in groups:
        group = [one for one in records if (one["task"], one["reader"], one["at once"]) == (task, reader, width)]
        failed, group = [one for one in group if "error" in one], [one for one in group if "error" not in one]
        name = TASKS[task][0] + (", with its text" if reader else "") + (f", {width} at once" if width > 1 else "")
        name += f" ({len(failed)} failed)" if failed else ""
        lines.append([name, str(FEW * len(group)), *_figures(group)] if group else [name])
    return (
        f"Written by `python -m benchmarks.serve.lookup`, --lookup {records[0]['lookup']}; load of the machine "
        f"{min(one['load'] for one in records):.0f} to {max(one['load'] for one in records):.0f}.\n\n"
        + "".join(f"| {' | '.join(line)} |\n" for line in lines)
    )


def _figures(group: list[dict[str, Any]]) -> list[str]:
    def total(weights: str, way: str, name: str) -> float:
        return sum(one[weights][way][name] for one in group)

    tokens, guessed, right = (total("int8", "look-up", name) for name in ("generated", "guessed", "right"))
    fewer = total("int8", "plain", "passes") / total("int8", "look-up", "passes")
    found = [f"{tokens:.0f}", f"{fewer:.2f}x", f"{100 * right / max(guessed, 1):.0f}%"]
    for weights in ("fp32", "int8"):
        plain, looked = (total(weights, way, "cpu") for way in ("plain", "look-up"))
        said = total(weights, "plain", "generated")
        walls = total(weights, "plain", "wall") / total(weights, "look-up", "wall")
        found += [f"{said / plain:.1f}", f"{said / looked:.1f}", f"{plain / looked:.2f}x", f"{walls:.2f}x"]
    return found


if __name__ == "__main__":
    main()
