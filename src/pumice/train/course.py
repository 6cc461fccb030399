"""What a run will take, before it starts: `pumice train RECIPE --dry-run`.

    recipe ──sizes──> parameters, FLOPs, memory        sources on disk ──index, plan──> exact samples, steps, tokens

A source that isn't on this machine counts with the samples that the recipe says it has; its tokens are then unknown,
and so is what follows from them. Of samples that are drawn a few tell how large they are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from pumice.config import LoraConfig, ModelConfig, Recipe, Stage
from pumice.data.drawn import RenderedFeed, Size, size_of
from pumice.data.feed import PlannedFeed, open_feed, rendered, stage_processor
from pumice.data.index import Progress
from pumice.data.mixing import split_stage
from pumice.data.plan import Plan
from pumice.data.render.registry import DRAWN
from pumice.encode import Processor
from pumice.formats.sizes import Model
from pumice.plan.costs import connector_parameters, lm_parameters
from pumice.plan.costs import tower_parameters as count_tower
from pumice.plan.devices import Device
from pumice.pocket.parts import PARTS, cache_dir, verify
from pumice.train.flops import objective_flops, training_flops
from pumice.train.provenance import Difference, differences
from pumice.types import PumiceError


def state_bytes(stage: Stage) -> int:
    """Bytes beside a trained fp32 weight: its gradient, AdamW's two moments (Muon has one), its average."""
    return 4 + (4 if stage.optimizer == "muon" else 8) + (4 if stage.ema else 0)


PROBES = 48
"""Draws that tell how large the samples of a stage are."""
NF4_BYTES = 0.516
"""Bytes of a weight in 4 bits with its share of the scales: 8 bits for 64 weights, and fp32 for 256 of those."""


@dataclass
class Course:
    """One stage's. ``tokens``, ``views``, ``supervised`` are totals, None where unknown; FLOPs of all passes.

    ``longest`` are the most tokens of a sample. ``memory`` are bytes of weights, gradients and moments on one device;
    activations come on top. Where totals are ``estimated``, PROBES draws stand for all; ``note`` says why there are
    none.
    """

    stage: str
    objective: str
    samples: int
    steps: int
    parameters: int
    trained: int
    memory: int
    tokens: int | None = None
    views: int | None = None
    supervised: int | None = None
    longest: int | None = None
    flops: float | None = None
    seconds: float | None = None
    missing: list[str] = field(default_factory=list)
    sources: dict[str, int] = field(default_factory=dict)
    estimated: bool = False
    note: str = ""


def course(
    recipe: Recipe,
    model: Model,
    make_processor: Callable[[], Processor],
    root: Path,
    cache: Path,
    device: Device | None = None,
    devices: int = 1,
    workers: int = 1,
    progress: Progress | None = None,
) -> list[Course]:
    """The course of every stage. The tokenizer is asked for only where a source is on this machine, or samples are
    drawn and it is in the cache.

    Raises:
        PumiceError: a source that is there but can't be indexed or planned.
    """
    found = []
    for stage in recipe.stages:
        one = _begin(recipe, stage, model)
        missing = [name for name in stage.data if name in recipe.data and not (root / recipe.data[name].path).exists()]
        if all(name in DRAWN for name in stage.data):
            _estimate(one, recipe, stage, model, make_processor)
        elif not missing:
            drawn, stored = split_stage(stage) if rendered(stage) else (None, stage)
            feed = open_feed(recipe, stored, make_processor(), root, cache, workers, progress)
            if isinstance(feed, PlannedFeed) and isinstance(feed.plan, Plan):
                _count(one, stage, model, feed.plan)
                if drawn is not None:
                    part = _begin(recipe, drawn, model)
                    _estimate(part, recipe, drawn, model, make_processor)
                    _add(one, part)
        one.missing = missing
        if device is not None and one.flops is not None:
            one.seconds = one.flops / (device.usable_flops * devices)
        found.append(one)
    return found


def _begin(recipe: Recipe, stage: Stage, model: Model) -> Course:
    """What is known without the data."""
    passes = {name: recipe.data[name].samples * amount for name, amount in stage.data.items() if name in recipe.data}
    samples = stage.steps * stage.batch if stage.steps else round(sum(passes.values()))
    steps = stage.steps or (math.ceil(samples / stage.batch) if stage.batch else 0)
    sizes = {
        "tower": count_tower(model.tower),
        "connector": connector_parameters(model),
        "newline": model.newline * model.lm.hidden,
        "lm": lm_parameters(model.lm),
    }
    trained = sum(size for name, size in sizes.items() if stage.lr.get(name))
    added = {name: lora_parameters(model, name, config) for name, config in stage.low_rank.items()}
    trained += sum(size - sizes[name] for name, size in added.items())
    total = sum(sizes.values()) + sum(added.values())
    memory = 4 * total + state_bytes(stage) * trained
    if stage.lora and stage.lora.quantize:
        memory -= round((4 - NF4_BYTES) * sum(rows * columns for rows, columns in linear_layers(model, "lm")))
    return Course(stage.name, stage.objective, samples, steps, total, trained, memory)


def lora_parameters(model: Model, module: str, config: LoraConfig) -> int:
    """Weights of low-rank matrices beside every linear layer of a module's blocks."""
    lengths = config.kind == "dora"
    return sum(config.rank * (rows + columns) + rows * lengths for rows, columns in linear_layers(model, module))


def linear_layers(model: Model, module: str) -> list[tuple[int, int]]:
    """(outputs, inputs) of the linear layers in the blocks of the tower or the language model."""
    if module == "tower":
        W, ffn = model.tower.width, model.tower.ffn
        return [*[(W, W)] * 4, (ffn, W), (W, ffn)] * model.tower.used
    H, d = model.lm.hidden, model.lm.head_dim
    found: list[tuple[int, int]] = []
    for heads, kv_heads, ffn in model.lm.blocks:
        found += [(heads * d, H), (H, heads * d), *[(kv_heads * d, H)] * 2, *[(ffn, H)] * 2, (H, ffn)]
    return found


def _count(one: Course, stage: Stage, model: Model, planned: Plan) -> None:
    """Fill in what follows from a plan."""
    one.samples, one.steps = len(planned.row), planned.steps
    one.tokens, one.views = int(planned.tokens.sum()), int(planned.views.sum())
    one.supervised, one.longest = int(planned.supervised.sum()), int(planned.tokens.max())
    counts = np.bincount(planned.source, minlength=len(planned.names))
    one.sources = {name: int(count) for name, count in zip(planned.names, counts, strict=True)}
    one.flops = training_flops(stage, model, planned.tokens, one.views, one.supervised)


def _add(one: Course, drawn: Course) -> None:
    """Add the drawn part of a stage to the course of its sources; what isn't known of one isn't known of both."""
    one.samples, one.steps = one.samples + drawn.samples, max(one.steps, drawn.steps)
    for name in ("tokens", "views", "supervised", "flops"):
        a, b = getattr(one, name), getattr(drawn, name)
        setattr(one, name, None if a is None or b is None else a + b)
    one.longest = max(one.longest, drawn.longest) if one.longest and drawn.longest else None
    one.estimated, one.note = drawn.estimated, drawn.note


def _estimate(one: Course, recipe: Recipe, stage: Stage, model: Model, make_processor: Callable[[], Processor]) -> None:
    """Fill in what PROBES draws of a stage tell, or why they can't."""
    config = recipe.model
    if isinstance(config, ModelConfig) and config.lm in PARTS and not verify(cache_dir() / config.lm):
        one.note = f"{config.lm} isn't in the cache of this machine: how long drawn samples are isn't known"
        return
    try:
        feed = RenderedFeed(stage, stage_processor(make_processor(), stage), recipe.seed)
        sizes = [size_of(feed.sample(number), feed.processor) for number in range(PROBES)]
    except PumiceError as error:
        one.note = str(error)
        return
    whole = Size(*(sum(column) for column in zip(*sizes, strict=True)))
    asked = np.array([size.tokens for size in sizes if size.supervised])
    first = config.tower.layers[0] if isinstance(config, ModelConfig) and config.tower.layers else 0
    flops = objective_flops(model, stage, asked, whole.views, whole.visual, whole.supervised, first)
    scale = one.samples / PROBES
    one.tokens, one.views, one.supervised = (round(scale * n) for n in (whole.tokens, whole.views, whole.supervised))
    one.flops, one.estimated, one.longest = scale * flops, True, max(size.tokens for size in sizes)


def print_course(
    recipe: Recipe, found: Sequence[Course], base: str, changed: Sequence[Difference], as_json: bool = False
) -> None:
    """The courses, and what the recipe changes of its base, as a table for a person, or as JSON."""
    if as_json:
        stages, differing = [asdict(one) for one in found], [asdict(one) for one in changed]
        print(
            json.dumps(
                {"recipe": recipe.name, "stages": stages, "base": base, "changed": differing},
                indent=1,
            )
        )
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{recipe.name}: {recipe.model.title}", title_justify="left")
    table.add_column("stage")
    for one in found:
        table.add_column(one.stage, justify="right")
    for row in zip(ROWS, *(_cells(one) for one in found), strict=True):
        table.add_row(*row)
    console = Console()
    console.print(table)
    for one in found:
        for name in one.missing:
            where = recipe.data[name].url or "nowhere that the recipe names"
            console.print(f"{one.stage}: {name} isn't on this machine, its count is the recipe's; published at {where}")
        if one.note:
            console.print(f"{one.stage}: {one.note}", markup=False, soft_wrap=True)
    if any(one.estimated for one in found):
        console.print(f"~ is what {PROBES} draws of the stage's samples tell.")
    if changed:
        console.print(f"Differs from {base} in:")
        for line in change_lines(changed):
            console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)


def change_lines(changed: Sequence[Difference]) -> Iterator[str]:
    """A line for each key that differs, but one for a whole stage that only one side has."""
    whole = {}
    for one in changed:
        if one.key.startswith("stages.") and one.key.endswith(".objective") and None in (one.before, one.after):
            whole[one.key.removesuffix("objective")] = "new" if one.before is None else "left out"
    for one in changed:
        stage = next((stage for stage in whole if one.key.startswith(stage)), None)
        if stage is None:
            before, after = ("nothing" if value is None else json.dumps(value) for value in (one.before, one.after))
            yield f"{one.key}: {before} -> {after}"
        elif one.key == f"{stage}objective":
            yield f"{stage[:-1]}: {whole[stage]}"


ROWS = (
    "objective",
    "samples",
    "steps",
    "tokens",
    "supervised",
    "longest",
    "views",
    "weights",
    "trained",
    "state",
    "EFLOPs",
    "hours",
)


def _cells(one: Course) -> list[str]:
    share = f"{one.supervised / one.tokens:.0%}" if one.tokens and one.supervised is not None else "?"

    about = "~" * one.estimated

    def number(value: float | None, form: str = ",.0f", unit: str = "") -> str:
        return f"{value:{form}}{unit}" if value is not None else "?"

    return [
        one.objective,
        number(one.samples),
        number(one.steps or None),
        f"~{number(one.tokens / 1e6, ',.1f', ' M')}" if one.estimated and one.tokens else number(one.tokens),
        about + share,
        about + number(one.longest),
        about + number(one.views),
        number(one.parameters / 1e6, ",.1f", " M"),
        number(one.trained / 1e6, ",.1f", " M"),
        number(one.memory / 2**30, ",.1f", " GiB"),
        about + number(one.flops and one.flops / 1e18, ",.3g"),
        (about if one.seconds else "") + number(one.seconds and one.seconds / 3600, ",.2f"),
    ]


def main(
    recipe: Recipe, path: Path, model: Model, root: Path, device: str | None, devices: int, workers: int, as_json: bool
) -> None:
    """Print what the run of a recipe's file will take on ``devices`` of a kind; without a kind no hours are said."""
    from pumice.model.build import build_processor
    from pumice.plan.devices import find_device

    chosen = find_device(device) if device else None
    made: list[Processor] = []

    def processor() -> Processor:
        if not made:
            made.append(build_processor(recipe.model))
        return made[0]

    found = course(recipe, model, processor, root, cache_dir() / "index", chosen, devices, workers)
    print_course(recipe, found, *differences(recipe, path), as_json)
