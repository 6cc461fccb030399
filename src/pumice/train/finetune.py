"""`pumice train --from MODEL --data FILE`: one's own documents, sound defaults, scores before and after.

pocket | a run | a checkpoint ─┐
mine.jsonl ──form by its first record──> recipe (written into the run's folder) ──train──> best weights
held-out tenth ──ask before, ask after──> exact match, character errors, loss
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pumice.config import CheckpointConfig, DataConfig, LoraConfig, Recipe, load_recipe
from pumice.data.feed import PlannedFeed
from pumice.data.records import Records
from pumice.data.sources import open_source
from pumice.eval.metrics.strings import character_error_rate, exact_match
from pumice.formats.adapters import is_partial
from pumice.formats.hub import HUB_ID, checkpoint_folder
from pumice.pocket.parts import RECIPE
from pumice.types import PumiceError, Sample

STAGE = "finetune"
PASSES, ASKED = 10, 100
"""Most passes over the data (a run ends when the held-out loss no longer falls), and most questions asked of it."""

TEMPLATE = """# Written by `pumice train --from`; `pumice train` with this file does the same.
{begin}

[data.mine]
format = {format}
path = {path}
media = {media}

[stages.finetune]
objective = "answer"
data = {{ mine = {passes} }}
batch = {batch}
{learn}
warmup = 0.05
schedule = "cosine"
floor = 0.1
weight_decay = 0.0
heldout = {heldout}
patience = 3
eval_every = {every}
log_every = {log}
"""

# A small model that was shipped as a delta, or a run over it.
RUN = """base = {base}
name = {name}
start = {start}

[stages]
{dropped}"""
RUN_LEARN = """lr = {{ connector = 1e-4, newline = 1e-4, lm = 3e-4 }}
lora = {{ rank = {rank}, alpha = {alpha} }}"""

# A published checkpoint has thousands of tokens a picture; its connector has learned from millions of pairs.
CHECKPOINT = """name = {name}
seed = 0

[model]
checkpoint = {checkpoint}"""
CHECKPOINT_LEARN = """lr = { connector = 2e-5, newline = 2e-5, lm = 2e-4 }
lora = { rank = 32, alpha = 64 }
gradient_checkpointing = true
max_tokens = 16384
pack_tokens = 16384"""


@dataclass
class Scores:
    """Of answers to ``questions`` held-out questions: share answered exactly, mean character error rate."""

    questions: int
    exact: float
    character_errors: float


def write_recipe(model: str, data: Path, out: Path) -> Path:
    """The recipe of a fine-tuning run, in its folder.

    ``model`` is "pocket", the folder of a run, or a checkpoint: its folder, or its name on a hub. ``data`` is a file of
    LLaVA records, messages or parquet, or a folder of pictures with captions.

    Raises:
        PumiceError: no such model, only a part of one, or data of no known form, or too few of it.
    """
    begin, learn = _origin(model, out.name)
    if not data.exists():
        raise PumiceError(f"--data {data}: no such file or folder")
    format, media = form_of(data), (data if data.is_dir() else data.parent).resolve()
    count = len(open_source("mine", DataConfig(format, str(data.resolve()), str(media)), Path()))
    if not count:
        raise PumiceError(f"--data {data}: no sample in it")
    batch = 8 if count >= 80 else 2
    heldout = round(min(0.3, max(0.1, 5 / count)), 3)  # a handful at least
    every = max(1, round((1 - heldout) * count / batch / 2))
    text = TEMPLATE.format(
        begin=begin,
        format=_quoted(format),
        path=_quoted(data.resolve()),
        media=_quoted(media),
        passes=PASSES,
        batch=batch,
        learn=learn,
        every=every,
        heldout=heldout,
        log=max(1, min(10, every)),
    )
    out.mkdir(parents=True, exist_ok=True)
    path = out / "finetune.toml"
    scratch = path.with_suffix(f".{os.getpid()}")  # every worker writes it, and reads it whole
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)
    return path


def _origin(model: str, name: str) -> tuple[str, str]:
    """(what the recipe says of the model, what of how it learns)."""
    if model == "pocket":
        return _over_run(RECIPE, "pocket", name)
    folder = Path(model).expanduser()
    recipe, delta = folder / "recipe.toml", folder / "delta.safetensors"
    if recipe.is_file() and delta.is_file():
        return _over_run(recipe, str(delta.resolve()), name)
    if recipe.is_file() and (folder / "adapter").is_dir():
        folder = folder / "adapter"
    if is_partial(folder):
        raise PumiceError(
            f"--from {model}: an adapter, or a connector alone; make it whole first: pumice export {folder} --merge "
            "--to hf --out NEW (over Pumice's own form --to pumice), then --from NEW"
        )
    if recipe.is_file() and (folder / "model").is_dir():  # of a run that trained the whole language model
        folder = folder / "model"
    if not folder.exists() and not HUB_ID.fullmatch(model):
        raise PumiceError(
            f"--from {model}: expected pocket, the folder of a run, or a checkpoint: a folder with a config.json, or a "
            "hub's model in the cache on this machine"
        )
    found = checkpoint_folder(str(folder))
    checkpoint = str(found.resolve()) if folder.exists() else model
    return CHECKPOINT.format(name=_quoted(name), checkpoint=_quoted(checkpoint)), CHECKPOINT_LEARN


def _over_run(recipe: Path, start: str, name: str) -> tuple[str, str]:
    """What continues a run: its model and its trained weights, none of its stages."""
    stages = load_recipe(recipe).stages
    lora = next((stage.lora for stage in reversed(stages) if stage.lora), LoraConfig(16, 32))
    dropped = "\n".join(f"{stage.name} = false" for stage in stages)
    begin = RUN.format(base=_quoted(recipe.resolve()), name=_quoted(name), start=_quoted(start), dropped=dropped)
    return begin, RUN_LEARN.format(rank=lora.rank, alpha=lora.alpha)


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
    """Ask the held-out samples' questions, each with the true conversation before it, and compare.

    Samples that can't be decoded after all are left out, as in training.

    Raises:
        PumiceError: nothing is held out.
    """
    exact, errors, asked = 0, 0.0, 0
    for sample, truth in _questions(held_out(feed)):
        if asked == most:
            break
        try:
            answer = assistant.answer(sample).text
        except PumiceError as error:
            print(f"not scored: {sample.id}: {error}")
            continue
        exact += exact_match(answer, truth)
        errors += min(1.0, character_error_rate(answer, truth))
        asked += 1
    return Scores(asked, exact / max(1, asked), errors / max(1, asked))


def held_out(feed: PlannedFeed) -> PlannedFeed:
    """The samples that a feed holds out.

    Raises:
        PumiceError: there are none.
    """
    held = feed.heldout()
    if not isinstance(held, PlannedFeed):
        advice = f"raise stages.{STAGE}.heldout, or set it and patience to 0 to train on all of them without scores"
        raise PumiceError(f"nothing is held out of {len(feed.plan.row)} samples, duplicates counted; {advice}")
    return held


def _questions(held: PlannedFeed) -> Any:
    """(conversation up to a question, the true answer) of every held-out sample in order."""
    for number in range(len(held.plan.row)):
        try:
            sample = held.sample(number)
        except PumiceError as error:
            print(f"not scored: {held.name(number)}: {error}")
            continue
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


def main(
    model: str,
    data: Path,
    overrides: Sequence[str],
    out: Path,
    workers: int,
    loaders: int | None = None,
    track: Sequence[str] = (),
) -> None:
    """Fine-tune, or go on; at the end, score both models on what was held out. ``loaders``, ``track`` as in `run.main`.

    Raises:
        PumiceError: as `write_recipe`, and what training raises.
    """
    from pumice.train import run

    path = write_recipe(model, data, out)
    recipe = load_recipe(path, list(overrides))
    main_worker = os.environ.get("RANK", "0") == "0"
    if main_worker and recipe.stages[0].heldout:
        held_out(open_data(recipe))  # said before hours of training, not after
    starts_others = workers > 1 and "WORLD_SIZE" not in os.environ
    run.main(str(path), overrides, out, workers, None, loaders, track)
    if main_worker and not starts_others:  # else the first of the others has done what follows
        compare(recipe, model, out)


def open_data(recipe: Recipe) -> PlannedFeed:
    """The samples of a fine-tuning recipe.

    Raises:
        PumiceError: they can't be indexed, or the recipe streams them.
    """
    from pumice.model.build import build_processor
    from pumice.train import run
    from pumice.train.parallel import World

    feed = run.open_stage(recipe, recipe.stages[0], build_processor(recipe.model), run.data_root(None), World())
    if not isinstance(feed, PlannedFeed):
        raise PumiceError(f"{recipe.name}: held-out samples are found by an index: leave stream out")
    return feed


def compare(recipe: Recipe, model: str, out: Path) -> None:
    """Score both models of a run that is done, if it holds anything out; of one that was stopped, say how it goes on.

    Raises:
        PumiceError: a model can't be opened.
    """
    import pumice
    from pumice.train.checkpoint import checkpoints, read_state

    feed = open_data(recipe)
    done = read_state(checkpoints(out / "checkpoints")[-1])["step"]
    if done < feed.steps:
        print(f"stopped after step {done} of {feed.steps}; the same command goes on")
        return
    if not recipe.stages[0].heldout:
        print(f"ask it: pumice ask --model {out} PICTURE QUESTION")
        return
    config = recipe.model
    if isinstance(config, CheckpointConfig):
        folder = str(checkpoint_folder(config.checkpoint))
        before = score(pumice.load(folder, tower=config.tower, template=config.template), feed)
    else:
        before = score(pumice.load(model), feed)
    report(before, score(pumice.load(str(out)), feed), out)
