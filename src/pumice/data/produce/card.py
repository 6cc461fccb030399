"""The data card of a folder of shards: README.md, for people and for the hub.

Plan + facts of the shards ──> what it is, counts, licences, the command, versions, checksums
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pumice.data.produce import licences
from pumice.data.produce.counts import Counts, merge
from pumice.data.produce.plan import Plan
from pumice.data.produce.run import SHARDS
from pumice.data.produce.shards import write_whole
from pumice.data.render.kinds import KINDS

FORMATS = {"wds": "webdataset", "parquet": "parquet"}
"""What the forms of shards are called in a recipe."""


def write_card(plan: Plan, folder: Path, facts: Sequence[Mapping[str, Any]]) -> None:
    """Write README.md of a folder whose shards are whole."""
    counts = merge(fact["counts"] for fact in facts)
    parts = (_head(plan), _what(plan, counts), _tables(counts), _use(plan, folder), _made(plan), _sums(facts))
    write_whole(folder / "README.md", "\n".join(parts).encode())


def command(plan: Plan, folder: str = "DIR") -> str:
    """The command that makes these shards."""
    kinds = [kind if weight == 1 else f"{kind}={weight:g}" for kind, weight in plan.weights.items()]
    options = f"--n {plan.samples} --seed {plan.seed} --split {plan.split} --form {plan.form} --answers {plan.style}"
    options += f" --shard-mib {plan.shard_mib}"
    return f"pumice data render {shlex.join(kinds)} --out {folder} {options}"


def _head(plan: Plan) -> str:
    """The block that the HuggingFace hub reads."""
    ending = {"wds": "tar", "parquet": "parquet"}[plan.form]
    return f"""---
task_categories: [visual-question-answering, image-text-to-text]
tags: [synthetic]
configs:
  - config_name: default
    data_files: [{{split: {plan.split}, path: "{SHARDS}/*.{ending}"}}]
---
# Rendered examples: {", ".join(plan.weights)}
"""


def _what(plan: Plan, counts: Counts) -> str:
    asked, text = sum(counts.tasks.values()), counts.text
    split = "The train split" if plan.split == "train" else "The held-out split, not to be trained on"
    token = (
        f" They are {text['tokens of questions']:,} tokens of questions and {text['tokens of answers']:,} of answers."
        if "tokens of answers" in text
        else ""
    )
    style = (
        "Without a format prompt an answer is a sentence or a text of its own; LLaVA-1.5's prompts ask for a phrase or "
        "a letter."
        if plan.style == "papers"
        else "Answers are a few words, without format prompts."
    )
    amount = f"{text['characters of questions']:,} characters, answers of {text['characters of answers']:,}"
    return f"""Pictures and videos drawn by Pumice, with questions whose answers follow from what was drawn. No picture
is a photograph and no text was written by a model. {split}: its fonts, layouts, words and drawings aren't in the other.

{sum(counts.kinds.values()):,} records, {counts.media["pictures"]:,} pictures, {counts.media["videos"]:,} videos,
{asked:,} questions of {amount}.{token}
{style} What a document doesn't say (task `absent`) is answered "not in the document".
"""


def _tables(counts: Counts) -> str:
    kinds = [(name, KINDS[name].category, f"{count:,}", KINDS[name].what) for name, count in _most(counts.kinds)]
    whole = sum(counts.kinds.values())
    categories = [(name, f"{count:,}", f"{100 * count / whole:.1f}%") for name, count in _most(counts.categories)]
    tasks = [(name.split("/")[0], name.split("/")[1], f"{count:,}") for name, count in sorted(counts.tasks.items())]
    forms = [(name, f"{count:,}") for name, count in _most(counts.forms)]
    return "\n".join(
        (
            table(("kind", "category", "records", "shows"), kinds),
            table(("category (LLaVA-OneVision's)", "records", "share"), categories),
            table(("form of the answer", "questions"), forms),
            table(("kind", "task", "questions"), tasks),
        )
    )


def _most(counted: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counted.items(), key=lambda pair: (-pair[1], pair[0]))


def _use(plan: Plan, folder: Path) -> str:
    return f"""## Training on it

    [data.{plan.split}_{plan.seed}]
    format = "{FORMATS[plan.form]}"
    path = "{folder.name}/{SHARDS}"
    samples = {plan.samples}

`index.json` lists the shards in WebDataset's form, `contact/` shows some examples of every kind.
"""


def _made(plan: Plan) -> str:
    made = [("pumice", version("pumice")), *plan.made_with.items()]
    material = licences.rows(plan.weights, plan.split)
    return f"""## How it was made

    {command(plan)}

Record i is a function of seed, split, kind and i, and of what is installed:

{table(("part", "version or digest"), made)}
Pictures show material of these packages. Some licences ask for more than a notice: read them before you publish.

{table(("material", "packages", "licence"), material)}"""


def _sums(facts: Sequence[Mapping[str, Any]]) -> str:
    rows = [(fact["name"], f"{fact['samples']:,}", f"{fact['bytes']:,}", f"`{fact['sha256']}`") for fact in facts]
    return "## Shards\n\n" + table(("file", "records", "bytes", "sha256"), rows)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |\n" for line in lines)
