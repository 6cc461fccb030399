"""Recipes: one complete, diffable TOML file a run, read strictly.

    file.toml ──base = "other.toml"──> merged tables ──overrides──> checked against the dataclasses ──> Recipe

The dataclasses below are the schema: their annotations carry the limits that the reader checks. torch isn't imported.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pumice import toml
from pumice.data.render.registry import DRAWN, Style
from pumice.toml import Count, Keys, Positive, Rate, Share, Whole
from pumice.vision.frames import VideoPolicy
from pumice.vision.layout import Policy

Module = Literal["tower", "connector", "newline", "lm", "head"]
MODULES = get_args(Module)
"""What can be trained; ``head`` is the reading head on the tower, used in training only."""
SAMPLING = re.compile(r"all|(first|end|random):[1-9][0-9]*%?")
"""Which of a source's samples count, as in LLaVA-NeXT's mixtures."""
NAME = re.compile(r"[A-Za-z0-9_-]+")
"""Names of stages and sources: they name folders and files."""


@dataclass(frozen=True)
class TowerConfig:
    """Vision tower: its type, the pretrained part or folder it starts from, and the side of its tiles in pixels.

    ``layers`` are the blocks, counted from 1, whose features the connector gets side by side; by default the last.
    Later blocks aren't built. LLaVA's are [23] of CLIP ViT-L's 24 and [26] of SigLIP SO400M's 27; ELVA's are [11] of
    CLIP ViT-B's 12. Reading is taught at the first of them.
    """

    type: Literal["dinov2", "dinov3", "clip", "siglip"]
    source: str
    tile: Count
    layers: tuple[Count, ...] = ()


@dataclass(frozen=True)
class ConnectorConfig:
    """From patches to tokens: ``shuffle`` x ``shuffle`` patches become one token through ``depth`` linear layers.

    LLaVA-1.5, NeXT, OneVision and ELVA have ``shuffle`` 1 and ``depth`` 2; LLaVA's "linear" is depth 1.
    ``norm`` ends with an RMS norm whose gain starts at the size of word embeddings.
    """

    type: Literal["mlp"] = "mlp"
    shuffle: Count = 2
    depth: Count = 2
    norm: bool = False


@dataclass(frozen=True)
class ModelConfig:
    """The assistant's parts. ``lm`` is the name of a pretrained part, a folder, or a hub's model in the local cache.

    ``tokenizer`` is another place for its tokenizer, ``template`` its chat format.
    ``layout`` is that of one picture, ``several`` of each of several pictures (by default the same), ``video`` of
    videos. In TOML each is ``preset = "POCKET"`` (a name of vision.layout.PRESETS, or of vision.frames.VIDEO_PRESETS),
    keys of a Policy or VideoPolicy, or a preset with some keys changed.
    """

    lm: str
    tower: TowerConfig
    layout: Policy
    connector: ConnectorConfig = field(default_factory=ConnectorConfig)
    template: str = "chatml"
    tokenizer: str | None = None
    several: Policy | None = None
    video: VideoPolicy | None = None

    @property
    def title(self) -> str:
        """What the model is made of, in a few words."""
        return f"{self.lm} with {self.tower.source}"


@dataclass(frozen=True)
class CheckpointConfig:
    """A checkpoint as the whole model: its parts, its layouts, its chat template.

    ``checkpoint`` is a folder that `pumice.load` opens, or a hub's model in the local cache; ``tower`` and ``template``
    are what it lacks, as in `pumice.load`.
    """

    checkpoint: str
    tower: str | None = None
    template: str | None = None

    @property
    def title(self) -> str:
        """What the model is, in a few words."""
        return self.checkpoint


@dataclass(frozen=True)
class DataConfig:
    """A source of samples, ``[data.NAME]`` in TOML; stages name it in their ``data`` beside kinds.

    format    llava: LLaVA's JSON, JSONL, or a YAML mixture of them · messages: OpenAI-style messages, JSONL · parquet:
              LLaVA's conversations with embedded pictures · captions: a folder of pictures, each with a .txt beside it
              · webdataset: tar shards
    path      file or folder, relative to the data root
    media     where its pictures and videos lie: a folder, .tar, .zip or .lmdb likewise, or an address such as s3://
    sampling  all, first:N, end:N or random:N (seeded); N is a number or a percentage, 10%
    url, licence, samples   where it is published, under what terms, and how many samples it has there; 0 is unknown
    """

    format: Literal["llava", "messages", "parquet", "captions", "webdataset"]
    path: str
    media: str = "."
    sampling: str = "all"
    url: str | None = None
    licence: str | None = None
    samples: Whole = 0


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank update of a module's linear layers: W + alpha / rank * B A.

    With ``kind`` dora each row of the sum also has a length of its own, which trains. ``quantize`` nf4 holds W in 4
    bits (QLoRA). ``start`` is an update of the same rank that the language model's begins as: reader, the shipped one
    of the reader-assisted mode, or a path to such a file (`pumice.reader.weights`).
    """

    rank: Count
    alpha: Count
    kind: Literal["lora", "dora"] = "lora"
    quantize: Literal["nf4"] | None = None
    start: str | None = None


@dataclass(frozen=True)
class ReadConfig:
    """ELVA's read-and-reason: this share of the samples first reads its picture, at most so many tokens of it."""

    share: Share
    max_read_tokens: Count = 256


@dataclass(frozen=True)
class ReaderConfig:
    """Rendered pages with their text in the prompt, as a reader's lines with its mistakes (reader/teach.py).

    ``blind`` is the share of the pages whose text stands without the picture, ``bare`` of the others that have the
    picture without text. ``arranged`` is the share of the receipts and forms that are text alone, in an arrangement
    drawn at random (reader/arrange.py).
    """

    blind: Share = 0.0
    bare: Share = 0.0
    arranged: Share = 0.0


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    objective     read: the tower's patches name their characters · align: every visual token names the LM tokens
                  under it · answer: questions
    steps         optimiser steps; 0 is one pass over the data
    batch, batch_tokens  an optimiser step over all workers: so many samples, or as many as fit into so many tokens
    pack_tokens   most tokens of one forward pass; a worker's share of a step beyond it is accumulated. 0 is no limit.
                  How long a drawn sample is isn't known before: a pass has as many as fit if all have ``max_tokens``
    stream        samples of sources aren't indexed before but laid out as they come, and wait in a window of so many
                  from which steps are filled; 0 indexes them
    lr            peak learning rate of each of MODULES; absent or 0 is frozen
    lora          the language model trains low-rank; without it all of its weights do, if ``lr.lm`` is above 0
    tower_lora    likewise of the tower
    data          mixture over kinds that are drawn (data/render/registry.py) and the recipe's sources. With ``steps``
                  the values are relative weights; without, how often each source is passed over: 1 is every sample
                  once, 0.5 a random half
    answers       papers or short: all names of kinds mean what `pumice data render` draws, asked in that style.
                  Without it the names in registry.PLAIN mean its plain pages; the others are drawn as with papers
    dense_weight, align_weight  weights of the reading and alignment losses beside the objective's own
    keep_weight   weight of a loss that holds the tower's last features of pictures without known characters to what
                  they were before training: learning to read else costs the tower what it knew of things
    template, layout, several, video  instead of the model's own, in this stage
    max_tokens    longest sample, 0 is what the model takes; over_length says what becomes of longer ones: left out and
                  counted (drawn ones are drawn again), or cut at the right as the originals do (never inside of a
                  picture)
    warmup        linear warm-up: below 1 a share of the steps, else steps
    optimizer     adamw, or muon: the matrices of blocks and connector by Muon at the same rates, the rest by AdamW
    layer_decay   of ``tower`` or ``lm``: each block's rate is that of the next one times this (as in BEiT)
    ema           decay of an average of the trained weights, which is what is measured, kept and goes on to the next
                  stage; 0 is none
    schedule      wsd: a plateau, then a linear fall over the last ``decay`` of the steps · cosine: no plateau
    floor         the last learning rate as a share of the peak
    clip          largest norm of the gradient
    max_views     drawn samples with more views, over all their pictures or frames, are counted and drawn again; 0 is
                  any
    rr            read, then reason: a turn that reads the picture before the questions about it (data/reading.py)
    reader        a reader's lines beside the rendered pages (reader/teach.py)
    heldout       share of every source that isn't trained on but measured at every evaluation; rendered pictures have a
                  split of their own
    patience      of the last stage: evaluations without a lower held-out loss after which it ends, and its best weights
                  count; 0 is never
    checkpoint_minutes  time between checkpoints; log_every, eval_every in steps, 0 is never
    """

    name: str
    objective: Literal["read", "align", "answer"]
    lr: Annotated[dict[str, Rate], Keys(MODULES)]
    data: Annotated[dict[str, Rate], Keys(DRAWN)]
    answers: Style | None = None
    steps: Whole = 0
    batch: Whole = 0
    batch_tokens: Whole = 0
    pack_tokens: Whole = 0
    stream: Whole = 0
    lora: LoraConfig | None = None
    tower_lora: LoraConfig | None = None
    dense_weight: Rate = 0.0
    align_weight: Rate = 0.0
    keep_weight: Rate = 0.0
    template: str | None = None
    layout: Policy | None = None
    several: Policy | None = None
    video: VideoPolicy | None = None
    max_tokens: Whole = 0
    over_length: Literal["skip", "cut"] = "skip"
    warmup: Rate = 50.0
    optimizer: Literal["adamw", "muon"] = "adamw"
    layer_decay: Annotated[dict[str, Share], Keys(("tower", "lm"))] = field(default_factory=dict)
    ema: Share = 0.0
    schedule: Literal["wsd", "cosine"] = "wsd"
    decay: Share = 0.3
    floor: Share = 0.03
    weight_decay: Rate = 0.01
    betas: tuple[Share, Share] = (0.9, 0.98)
    eps: Positive = 1e-8
    clip: Positive = 1.0
    max_views: Whole = 0
    gradient_checkpointing: bool = False
    rr: ReadConfig | None = None
    reader: ReaderConfig | None = None
    heldout: Share = 0.0
    patience: Whole = 0
    checkpoint_minutes: Positive = 3.0
    log_every: Count = 10
    eval_every: Whole = 0

    @property
    def low_rank(self) -> dict[Module, LoraConfig]:
        """What trains low-rank, by module."""
        found: dict[Module, LoraConfig | None] = {"lm": self.lora, "tower": self.tower_lora}
        return {module: config for module, config in found.items() if config is not None}


@dataclass(frozen=True)
class Recipe:
    """A whole run: the model and the stages that train it, in order. ``name`` is the file's unless it says another.

    ``precision`` is that of matrix products (weights stay fp32); auto is bf16 where the hardware multiplies it fast.
    ``compile`` compiles the blocks of tower and language model, for GPUs.
    With ``parallel`` replicate every worker holds all weights, with shard a slice of them (FSDP).
    The newest ``keep_checkpoints`` stay. With ``save_checkpoints`` wait the next step waits until one is written; with
    background a thread writes a copy in CPU memory meanwhile.
    ``start`` are the weights to begin from: parts (pretrained parts alone), pocket (the shipped weights), a path to a
    run's delta.safetensors, or a checkpoint's folder or name on a hub. ``start_modules`` are the modules taken from
    there; the others begin anew. A model that is a checkpoint begins from it. With ``start_folded`` the low-rank update
    in ``start`` becomes part of the language model's weights, and the run trains one beside it.
    ``data`` are the sources on disk that stages name.
    """

    name: str
    seed: Whole
    model: ModelConfig | CheckpointConfig
    stages: tuple[Stage, ...]
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False
    parallel: Literal["replicate", "shard"] = "replicate"
    keep_checkpoints: Count = 2
    save_checkpoints: Literal["wait", "background"] = "wait"
    start: str = "parts"
    start_modules: tuple[Module, ...] = MODULES
    start_folded: bool = False
    data: dict[str, DataConfig] = field(default_factory=dict)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, its bases, and overrides such as ``stages.read.steps=10`` (a bare word is a string).

    Tables of a file are merged into those of its base; ``false`` in place of a table drops the base's. Stages run in
    the order in which they first appear.

    Raises:
        PumiceError: a missing file, a cycle of bases, an unknown or missing key, a wrong type or value; the message
            names the file and the full key.
    """
    path = Path(path)
    origins: toml.Origins = {}
    data = toml.read(path, (), origins)
    data.setdefault("name", path.stem)
    for text in overrides:
        toml.override(data, text, origins)
    from pumice.recipe_reader import RecipeReader  # which needs the dataclasses above

    return RecipeReader(str(path), origins).recipe(data)


def resolved(recipe: Recipe) -> str:
    """The recipe as one complete TOML text: every default written out, no base. `load_recipe` reads it back equal."""
    lines: list[str] = []
    toml.write(_plain(recipe), (), lines)
    return "\n".join(lines).lstrip("\n") + "\n"


def digest(recipe: Recipe) -> str:
    """sha256 in hex of the resolved text: two recipes that differ in any value differ in it."""
    return hashlib.sha256(resolved(recipe).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """Dataclasses to tables; stages to a table by name."""
    if isinstance(value, Recipe):
        stages = {stage.name: {k: v for k, v in _plain(stage).items() if k != "name"} for stage in value.stages}
        inner = ("model", "data", "stages")
        head = {f.name: getattr(value, f.name) for f in fields(value) if f.name not in inner}
        data = {name: _plain(source) for name, source in value.data.items()}
        return {**head, "model": _plain(value.model), "data": data, "stages": stages}
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value) if getattr(value, f.name) is not None}
    return value
