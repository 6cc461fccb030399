"""Recipes: one complete, diffable TOML file a run, read strictly.

    file.toml ──base = "other.toml"──> merged tables ──overrides──> checked against the dataclasses ──> Recipe

The dataclasses below are the schema: their annotations carry the limits that the reader checks. torch isn't imported.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import tomllib
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from pumice.types import PumiceError
from pumice.vision.layout import PRESETS, Policy

MODULES = ("tower", "connector", "newline", "lm", "head")
"""What can be trained; ``head`` is the reading head on the tower, used in training only."""
KINDS = ("wall", "lines", "receipts", "forms", "tables", "charts", "objects")
"""Kinds of rendered pictures."""


class Range(NamedTuple):
    """Limits of a number, both included; with ``above`` the lower one is not."""

    low: float
    high: float = math.inf
    above: bool = False

    def __str__(self) -> str:
        least = f"{'above' if self.above else 'of at least'} {self.low:g}"
        return least if self.high == math.inf else f"{least} and at most {self.high:g}"

    def holds(self, value: float) -> bool:
        """Whether a number is finite and within the limits."""
        return math.isfinite(value) and self.low <= value <= self.high and not (self.above and value == self.low)


class Keys(NamedTuple):
    """The keys that a table may have."""

    names: tuple[str, ...]


Count = Annotated[int, Range(1)]
Whole = Annotated[int, Range(0)]
Rate = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
Positive = Annotated[float, Range(0, above=True)]


@dataclass(frozen=True)
class TowerConfig:
    """Vision tower: its type, the pretrained part or folder it starts from, and the side of its tiles in pixels."""

    type: Literal["dinov2"]
    source: str
    tile: Count


@dataclass(frozen=True)
class ConnectorConfig:
    """From patches to tokens: ``shuffle`` x ``shuffle`` patches become one token through ``depth`` linear layers."""

    type: Literal["mlp"] = "mlp"
    shuffle: Count = 2
    depth: Count = 2


@dataclass(frozen=True)
class ModelConfig:
    """The assistant's parts. ``lm`` is the name of a pretrained part or a folder; ``template`` its chat format.

    In TOML ``layout`` is ``preset = "POCKET"`` (a name of vision.layout.PRESETS), keys of a Policy, or a preset with
    some keys changed.
    """

    lm: str
    tower: TowerConfig
    layout: Policy
    connector: ConnectorConfig = field(default_factory=ConnectorConfig)
    template: str = "chatml"


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank update of the language model: W + alpha / rank * B A."""

    rank: Count
    alpha: Positive


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    objective     read: the tower's patches name their characters · align: every visual token names the LM tokens
                  under it · answer: questions
    steps, batch  optimiser steps; pictures a step over all workers
    lr            peak learning rate of each of MODULES; absent or 0 is frozen
    lora          the language model trains low-rank; without it all of its weights do, if ``lr.lm`` is above 0
    data          mixture over KINDS; weights are relative
    dense_weight  weight of the reading loss beside the objective's own
    warmup        steps of linear warm-up
    decay, floor  share of the steps, at the end, over which the learning rate falls linearly to ``floor`` x peak
    clip          largest norm of the gradient
    checkpoint_minutes  time between checkpoints; log_every, eval_every in steps, 0 evaluates at the end only
    """

    name: str
    objective: Literal["read", "align", "answer"]
    steps: Count
    batch: Count
    lr: Annotated[dict[str, Rate], Keys(MODULES)]
    data: Annotated[dict[str, Rate], Keys(KINDS)]
    lora: LoraConfig | None = None
    dense_weight: Rate = 0.0
    warmup: Whole = 50
    decay: Share = 0.3
    floor: Share = 0.03
    weight_decay: Rate = 0.01
    betas: tuple[Share, Share] = (0.9, 0.98)
    clip: Positive = 1.0
    max_views: Count = 3
    checkpoint_minutes: Positive = 3.0
    log_every: Count = 10
    eval_every: Whole = 0


@dataclass(frozen=True)
class Recipe:
    """A whole run: the model and the stages that train it, in order. ``name`` is the file's unless it says another."""

    name: str
    seed: Whole
    model: ModelConfig
    stages: tuple[Stage, ...]


Key = tuple[str, ...]
Origins = dict[Key, str]
"""Where each value was written: a file, or an override."""


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, its bases, and overrides such as ``stages.read.steps=10`` (a bare word is a string).

    Tables of a file are merged into those of its base; ``false`` in place of a table drops the base's. Stages run in
    the order in which they first appear.

    Raises:
        PumiceError: a missing file, a cycle of bases, an unknown or missing key, a wrong type or value; the message
            names the file and the full key.
    """
    path = Path(path)
    origins: Origins = {}
    data = _read(path, (), origins)
    data.setdefault("name", path.stem)
    for text in overrides:
        _override(data, text, origins)
    return _Reader(str(path), origins).recipe(data)


def _read(path: Path, above: tuple[Path, ...], origins: Origins) -> dict[str, Any]:
    """The file's tables merged into its bases'."""
    path = path.resolve()
    if path in above:
        chain = " -> ".join(p.name for p in (*above, path))
        raise PumiceError(f"{path}: recipes that are each other's base: {chain}")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        beside = ", ".join(sorted(p.name for p in path.parent.glob("*.toml"))) or "no .toml file"
        raise PumiceError(f"{path}: {error.strerror}; {path.parent} has {beside}") from error
    except ValueError as error:
        raise PumiceError(f"{path}: not TOML: {error}") from error
    base = data.pop("base", None)
    if base is None:
        merged: dict[str, Any] = {}
    elif isinstance(base, str):
        merged = _read(path.parent / base, (*above, path), origins)
        merged.pop("name", None)  # or two runs would share a name without anyone saying so
    else:
        raise PumiceError(f"{path}: base = {base!r}; expected the name of a recipe file")
    _merge(merged, data, (), str(path), origins)
    return merged


def _merge(into: dict[str, Any], data: dict[str, Any], key: Key, source: str, origins: Origins) -> None:
    """Write ``data`` over ``into``, table by table."""
    for name, value in data.items():
        here, old = (*key, name), into.get(name)
        origins[here] = source
        if isinstance(value, dict):
            if not isinstance(old, dict):
                into[name] = old = {}
            _merge(old, value, here, source, origins)
        elif value is False and isinstance(old, dict):
            del into[name]
        else:
            into[name] = value


def _override(data: dict[str, Any], text: str, origins: Origins) -> None:
    """Write one ``dotted.key=value`` over the data."""
    dotted, equals, written = text.partition("=")
    names = [name.strip() for name in dotted.split(".")]
    if not equals or not all(names):
        raise PumiceError(f"override {text!r}; expected key=value, such as stages.read.steps=10")
    stages = data.get("stages", {})
    if names[0] == "stages" and len(names) > 1 and isinstance(stages, dict) and names[1] not in stages:
        raise PumiceError(f"override {text!r}: no stage {names[1]!r}; the recipe has {', '.join(stages)}")
    try:
        parsed = tomllib.loads(f"value = {written}")
    except tomllib.TOMLDecodeError as error:
        if not re.fullmatch(r"\s*[\w.~/:+-]+\s*", written):
            raise PumiceError(f"override {text!r}: the value isn't TOML: {error}") from error
        parsed = {"value": written.strip()}
    nested: Any = parsed["value"]
    for name in reversed(names):
        nested = {name: nested}
    _merge(data, nested, (), f"override {text!r}", origins)


class _Reader:
    """Builds the dataclasses from merged data; every error names where the value was written and its full key."""

    def __init__(self, file: str, origins: Origins) -> None:
        self.file, self.origins = file, origins

    def error(self, key: Key, message: str) -> PumiceError:
        """An error about a key, which may be missing: then its nearest table above says where."""
        source = next((self.origins[key[:n]] for n in range(len(key), 0, -1) if key[:n] in self.origins), self.file)
        return PumiceError(f"{source}: {'.'.join(key)}: {message}")

    def recipe(self, data: dict[str, Any]) -> Recipe:
        recipe: Recipe = self.build(Recipe, data, ())
        if recipe.model.layout.tile != recipe.model.tower.tile:
            sides = f"{recipe.model.layout.tile} pixels; the tower's tiles have {recipe.model.tower.tile}"
            raise self.error(("model", "layout", "tile"), sides)
        return recipe

    def stages(self, data: Any, key: Key) -> tuple[Stage, ...]:
        if not isinstance(data, dict) or not data:
            raise self.error(key, f"expected tables such as [stages.read], one a stage, found {_shown(data)}")
        return tuple(self.stage(name, table) for name, table in data.items())

    def stage(self, name: str, data: Any) -> Stage:
        key = ("stages", name)
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise self.error(key, "a stage's name has letters, digits, - and _ only: it names a folder")
        if isinstance(data, dict) and "name" in data:
            raise self.error((*key, "name"), f"the table's own name is the stage's: [stages.{name}]")
        stage: Stage = self.value(Stage, {**data, "name": name} if isinstance(data, dict) else data, key)
        if not any(stage.lr.values()):
            raise self.error((*key, "lr"), "nothing is trained; expected a learning rate above 0")
        if not any(stage.data.values()):
            raise self.error((*key, "data"), "nothing to train on; expected a weight above 0")
        if stage.lora and not stage.lr.get("lm"):
            raise self.error((*key, "lora"), "lr.lm is 0: set it above 0, or lora = false")
        return stage

    def known(self, data: dict[str, Any], names: Sequence[str], key: Key) -> None:
        for name in data:
            if name not in names:
                near = get_close_matches(name, names, 1, 0.0)[0]
                raise self.error((*key, name), f"unknown key; the nearest is {near!r} (known: {', '.join(names)})")

    def build(self, kind: Any, data: dict[str, Any], key: Key) -> Any:
        """The dataclass ``kind`` from a table."""
        hints = get_type_hints(kind, include_extras=True)
        self.known(data, list(hints), key)
        for f in fields(kind):
            if f.name not in data and f.default is MISSING and f.default_factory is MISSING:
                raise self.error((*key, f.name), "missing")
        return kind(**{name: self.value(hints[name], data[name], (*key, name)) for name in hints if name in data})

    def value(self, hint: Any, value: Any, key: Key, extra: Any = None) -> Any:
        """A value of the annotated type, or an error with what was expected and what was found."""
        origin, args = get_origin(hint), get_args(hint)
        if origin is Annotated:
            return self.value(args[0], value, key, args[1])
        if origin in (Union, UnionType):
            return self.value(args[0], value, key)
        if hint == tuple[Stage, ...]:
            return self.stages(value, key)
        if is_dataclass(hint) or origin is dict:
            if not isinstance(value, dict):
                raise self.error(key, f"expected a table, found {_shown(value)}")
            if origin is dict:
                self.known(value, extra.names, key)
                # In the order of the known names, so that the order in a file doesn't change the digest.
                return {k: self.value(args[1], value[k], (*key, k)) for k in extra.names if k in value}
            return self.policy(value, key) if hint is Policy else self.build(hint, value, key)
        if origin is tuple:
            if not isinstance(value, list) or len(value) != len(args):
                raise self.error(key, f"expected a list of {len(args)}, found {_shown(value)}")
            return tuple(self.value(arg, part, key) for arg, part in zip(args, value, strict=True))
        if origin is Literal:
            if value not in args:
                raise self.error(key, f"expected one of {', '.join(args)}, found {_shown(value)}")
            return value
        return self.scalar(hint, value, key, extra)

    def scalar(self, hint: type, value: Any, key: Key, limits: Range | None) -> Any:
        """A string or a number within its limits; an integer may stand for a float."""
        if hint is float and type(value) is int:
            value = float(value)
        name = {str: "a string", int: "an integer", float: "a number"}[hint]
        if type(value) is not hint or (limits and not limits.holds(value)):
            raise self.error(key, f"expected {name}{f' {limits}' if limits else ''}, found {_shown(value)}")
        if value == "":
            raise self.error(key, "expected a string that isn't empty")
        return value

    def policy(self, data: dict[str, Any], key: Key) -> Policy:
        """A preset, the keys of a policy, or a preset with some keys changed."""
        names = ["preset", *(f.name for f in fields(Policy))]
        self.known(data, names, key)
        preset = data.get("preset")
        if preset is not None and (not isinstance(preset, str) or preset not in PRESETS):
            raise self.error((*key, "preset"), f"expected one of {', '.join(PRESETS)}, found {_shown(preset)}")
        start = PRESETS[preset].to_dict() if preset else {}
        try:
            return Policy.from_dict({**start, **{k: v for k, v in data.items() if k != "preset"}})
        except PumiceError as error:
            raise self.error(key, str(error).removeprefix("policy: ")) from error


def _shown(value: Any) -> str:
    """A value as TOML would say it, short, with its type."""
    name = {str: "string", bool: "boolean", dict: "table", list: "list"}.get(type(value), type(value).__name__)
    text = json.dumps(value, default=str, ensure_ascii=False)
    return f"{name} {text[:60]}"


def resolved(recipe: Recipe) -> str:
    """The recipe as one complete TOML text: every default written out, no base. `load_recipe` reads it back equal."""
    lines: list[str] = []
    _write(_plain(recipe), (), lines)
    return "\n".join(lines).lstrip("\n") + "\n"


def digest(recipe: Recipe) -> str:
    """sha256 in hex of the resolved text: two recipes that differ in any value differ in it."""
    return hashlib.sha256(resolved(recipe).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """Dataclasses to tables; stages to a table by name."""
    if isinstance(value, Recipe):
        stages = {stage.name: {k: v for k, v in _plain(stage).items() if k != "name"} for stage in value.stages}
        return {"name": value.name, "seed": value.seed, "model": _plain(value.model), "stages": stages}
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value) if getattr(value, f.name) is not None}
    return value


def _write(table: dict[str, Any], key: Key, lines: list[str]) -> None:
    """A table's own values first, as TOML wants it, then the tables inside."""
    if key and not all(isinstance(value, dict) for value in table.values()):
        lines.append(f"\n[{'.'.join(key)}]")
    lines += [f"{name} = {_toml(value)}" for name, value in table.items() if not isinstance(value, dict)]
    for name, value in table.items():
        if isinstance(value, dict):
            _write(value, (*key, name), lines)


def _toml(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"[{', '.join(_toml(part) for part in value)}]"
    if isinstance(value, str):
        # JSON's strings are TOML's, but for the one control character that JSON leaves as it is.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)
