"""`pumice train --from MODEL --data FILE`: one's own documents, sound defaults, scores before and after.

mine.jsonl ──form by its first record──> recipe (written into the run's folder) ──train──> best weights
held-out tenth ──ask before, ask after──> exact match, character errors, loss
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pumice.config import DataConfig, Recipe, load_recipe
from pumice.data.feed import PlannedFeed
from pumice.data.records import Records
from pumice.data.sources import open_source
from pumice.eval.metrics import character_error_rate, exact_match
from pumice.pocket.parts import RECIPE
from pumice.types import PumiceError, Sample

STAGE = "finetune"
PASSES, ASKED = 10, 100
"""Most passes over the data (a run ends when the held-out loss no longer falls), and most questions asked of it."""

TEMPLATE = """# Written by `pumice train --from`; `pumice train` with this file does the same.
base = {base}
name = {name}
start = {start}

[data.mine]
format = {format}
path = {path}
media = {media}

[stages]
{dropped}

[stages.finetune]
objective = "answer"
data = {{ mine = {passes} }}
batch = {batch}
lr = {{ connector = 1e-4, newline = 1e-4, lm = 3e-4 }}
{lora}
warmup = 0.05
schedule = "cosine"
floor = 0.1
weight_decay = 0.0
heldout = {heldout}
patience = 3
eval_every = {every}
log_every = {log}
"""


@dataclass
class Scores:
    """Of answers to ``questions`` held-out questions: share answered exactly, mean character error rate."""

    questions: int
    exact: float
    character_errors: float


def write_recipe(model: str, data: Path, out: Path) -> Path:
    """The recipe of a fine-tuning run, in its folder.

    ``model`` is "pocket" or the folder of a run; ``data`` a file of LLaVA records, messages or parquet, or a folder of
    pictures with captions.

    Raises:
        PumiceError: a model that has no recipe, or data of no known form, or too few of it.
    """
    base = RECIPE if model == "pocket" else Path(model).expanduser() / "recipe.toml"
    start = "pocket" if model == "pocket" else str((Path(model).expanduser() / "delta.safetensors").resolve())
    if not base.is_file() or (start != "pocket" and not Path(start).is_file()):
        raise PumiceError(
            f"--from {model}: expected pocket, or the folder of a run with recipe.toml and delta.safetensors"
        )
    if not data.exists():
        raise PumiceError(f"--data {data}: no such file or folder")
    format, media = form_of(data), (data if data.is_dir() else data.parent).resolve()
    count = len(open_source("mine", DataConfig(format, str(data.resolve()), str(media)), Path()))
    stages = load_recipe(base).stages
    lora = next((stage.lora for stage in reversed(stages) if stage.lora), None)
    batch = 8 if count >= 80 else 2
    heldout = round(min(0.3, max(0.1, 5 / count)), 3)  # a handful at least
    every = max(1, round((1 - heldout) * count / batch / 2))
    text = TEMPLATE.format(
        base=_quoted(base.resolve()),
        name=_quoted(out.name),
        start=_quoted(start),
        format=_quoted(format),
        path=_quoted(data.resolve()),
        media=_quoted(media),
        dropped="\n".join(f"{stage.name} = false" for stage in stages),
        passes=PASSES,
        batch=batch,
        lora=f"lora = {{ rank = {lora.rank}, alpha = {lora.alpha} }}" if lora else "lora = { rank = 16, alpha = 32 }",
        every=every,
        heldout=heldout,
        log=max(1, min(10, every)),
    )
    out.mkdir(parents=True, exist_ok=True)
    path = out / "finetune.toml"
    path.write_text(text, encoding="utf-8")
    return path


def _quoted(value: Any) -> str:
    return json.dumps(str(value), ensure_ascii=False)


def form_of(data: Path) -> Literal["parquet", "captions", "llava", "messages"]:
    """Name of the form by what the data holds.

    Raises:
        PumiceError: none that is known.
    """
    if data.is_dir():
        return "parquet" if any(data.rglob("*.parquet")) else "captions"
    if data.suffix == ".parquet":
        return "parquet"
    if data.suffix in (".yaml", ".yml"):
        return "llava"
    records = Records(data)
    if not len(records):
        raise PumiceError(f"{data}: no record")
    keys = set(records[0])
    if "messages" in keys:
        return "messages"
    if "conversations" in keys:
        return "llava"
    raise PumiceError(
        f"{data}: its first record has {', '.join(sorted(keys)) or 'no key'}; expected messages "
        '([{"role": "user", "content": ...}, ...]) or conversations ([{"from": "human", "value": ...}, ...])'
    )


def score(assistant: Any, feed: PlannedFeed, most: int = ASKED) -> Scores:
    """Ask the held-out samples' questions, each with the true conversation before it, and compare."""
    held = feed.heldout()
    if not isinstance(held, PlannedFeed):
        raise PumiceError("nothing is held out; the data has too few samples that differ")
    exact, errors, asked = 0, 0.0, 0
    for sample, truth in _questions(held):
        if asked == most:
            break
        answer = assistant.answer(sample).text
        exact += exact_match(answer, truth)
        errors += min(1.0, character_error_rate(answer, truth))
        asked += 1
    return Scores(asked, exact / max(1, asked), errors / max(1, asked))


def _questions(held: PlannedFeed) -> Any:
    """(conversation up to a question, the true answer) of every held-out sample in order."""
    for number in range(len(held.plan.row)):
        sample = held.sample(number)
        for place, turn in enumerate(sample.turns):
            if turn.role == "assistant":
                truth = "".join(part for part in turn.content if isinstance(part, str))
                yield Sample(sample.turns[:place], id=sample.id), truth


def report(before: Scores, after: Scores, out: Path) -> None:
    """Both scores, printed and written into the run's folder."""
    (out / "scores.json").write_text(json.dumps({"before": asdict(before), "after": asdict(after)}, indent=1) + "\n")
    print(f"{before.questions} questions about held-out samples        before    after")
    print(f"  answered exactly                       {before.exact:9.1%}{after.exact:9.1%}")
    print(f"  characters wrong (of an answer)        {before.character_errors:9.1%}{after.character_errors:9.1%}")
    print(f"ask it: pumice ask --model {out} PICTURE QUESTION")


def main(model: str, data: Path, overrides: Sequence[str], out: Path, workers: int) -> None:
    """Fine-tune, or go on; then score both models on what was held out.

    Raises:
        PumiceError: as `write_recipe`, and what training raises.
    """
    import pumice
    from pumice.train import run
    from pumice.train.parallel import World

    path = write_recipe(model, data, out)
    run.main(str(path), overrides, out, workers)
    recipe: Recipe = load_recipe(path, list(overrides))
    before, after = pumice.load(model), pumice.load(str(out))
    feed = run.open_stage(recipe, recipe.stages[0], after.processor, run.data_root(None), World())
    if not isinstance(feed, PlannedFeed):
        raise PumiceError(f"{path}: not a recipe over data on disk")
    report(score(before, feed), score(after, feed), out)
