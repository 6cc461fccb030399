"""Merged tables of a recipe to its dataclasses: what their annotations don't say.

tables ──RecipeReader──> stages by name, sources by name, presets of layouts, values that must agree ──> Recipe
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from pumice import toml
from pumice.config import NAME, SAMPLING, CheckpointConfig, DataConfig, ModelConfig, Module, Recipe, Stage
from pumice.data.render.registry import BOXED, DRAWN, PLAIN
from pumice.toml import Keys
from pumice.types import PumiceError
from pumice.vision.frames import VIDEO_PRESETS, VideoPolicy
from pumice.vision.layout import PRESETS, Policy

LAYOUTS: dict[Any, tuple[dict[str, Any], str]] = {
    Policy: (PRESETS, "policy"),
    VideoPolicy: (VIDEO_PRESETS, "video policy"),
}
"""Presets of each kind of layout, and how its errors begin."""
LOW_RANK: dict[Module, str] = {"lm": "lora", "tower": "tower_lora"}
"""What a stage calls the low-rank matrices of each module."""


class RecipeReader(toml.Reader):
    """Adds what a recipe's types don't say: stages by name, presets of layouts, and values that must agree."""

    sources: tuple[str, ...] = ()

    def value(self, hint: Any, value: Any, key: toml.Key, extra: Any = None) -> Any:
        if hint == tuple[Stage, ...]:
            return self.stages(value, key)
        if hint == dict[str, DataConfig]:
            return self.data(value, key)
        if hint == ModelConfig | CheckpointConfig:
            named = isinstance(value, dict) and "checkpoint" in value
            return super().value(CheckpointConfig if named else ModelConfig, value, key)
        if isinstance(extra, Keys) and extra.names == DRAWN:
            extra = Keys((*DRAWN, *self.sources))
        if hint in LAYOUTS and isinstance(value, dict):
            return self.layout(hint, value, key)
        return super().value(hint, value, key, extra)

    def recipe(self, data: dict[str, Any]) -> Recipe:
        self.sources = tuple(data["data"]) if isinstance(data.get("data"), dict) else ()
        recipe: Recipe = self.build(Recipe, data, ())
        if isinstance(recipe.model, ModelConfig):
            self.layouts(recipe.model, recipe.stages)
        elif recipe.start != "parts":
            raise self.error(("start",), "model.checkpoint brings its own weights: leave start out")
        self.low_rank(recipe.stages)
        for stage in recipe.stages[:-1]:
            if stage.patience:
                why = "the next stage would begin with the last weights and not with the best; make it two runs"
                raise self.error(("stages", stage.name, "patience"), why)
        for stage in recipe.stages:
            if recipe.parallel == "shard" and stage.lora and stage.lora.quantize:
                raise self.error(("stages", stage.name, "lora", "quantize"), "parallel = shard can't cut 4-bit weights")
            if stage.lora and stage.lora.start and recipe.start != "parts" and not recipe.start_folded:
                why = f"start = {recipe.start!r} has an update of its own: set start_folded, or leave this out"
                raise self.error(("stages", stage.name, "lora", "start"), why)
        used = {name for stage in recipe.stages for name in stage.data}
        return replace(recipe, data={name: source for name, source in recipe.data.items() if name in used})

    def layouts(self, model: ModelConfig, stages: tuple[Stage, ...]) -> None:
        """Refuse layouts of model and stages that differ in their tiles."""
        if model.layout.tile != model.tower.tile:
            sides = f"{model.layout.tile} pixels; the tower's tiles have {model.tower.tile}"
            raise self.error(("model", "layout", "tile"), sides)
        whole = (model.layout.tile, model.layout.side)
        for name in ("several", "video"):
            self.same_tiles(getattr(model, name), whole, ("model", name))
        for stage in stages:
            for name in ("layout", "several", "video"):
                self.same_tiles(getattr(stage, name), whole, ("stages", stage.name, name))

    def low_rank(self, stages: tuple[Stage, ...]) -> None:
        """Refuse stages of which one trains a module low-rank, and another whole or with other matrices."""
        for module, name in LOW_RANK.items():
            training = [stage for stage in stages if stage.lr.get(module)]
            for stage in training[1:]:
                if getattr(stage, name) != getattr(training[0], name):
                    other = f"stages.{training[0].name}.{name}"
                    advice = "a run trains a module one way: make it the same, or two runs (start = the first one's)"
                    raise self.error(("stages", stage.name, name), f"differs from {other}; {advice}")

    def same_tiles(self, policy: Policy | VideoPolicy | None, whole: tuple[int, int], key: toml.Key) -> None:
        """Refuse a layout that the model's tower and connector don't give."""
        if policy is not None and (policy.tile, policy.side) != whole:
            found = f"tiles of {policy.tile} pixels and {policy.side} tokens a side, model.layout's have {whole}"
            raise self.error(key, found)

    def data(self, data: Any, key: toml.Key) -> dict[str, DataConfig]:
        if not isinstance(data, dict):
            raise self.error(key, f"expected tables such as [data.mine], one a source, found {toml.shown(data)}")
        for name in data:
            if name in DRAWN:
                raise self.error((*key, name), f"the name of a kind that is drawn; call the source my_{name}, say")
            if not NAME.fullmatch(name):
                raise self.error((*key, name), "a source's name has letters, digits, - and _ only")
        found: dict[str, DataConfig] = {name: self.value(DataConfig, data[name], (*key, name)) for name in sorted(data)}
        for name, source in found.items():
            if not SAMPLING.fullmatch(source.sampling):
                wanted = "expected all, first:N, end:N or random:N, N a number or a percentage"
                raise self.error((*key, name, "sampling"), f"{wanted}, found {toml.shown(source.sampling)}")
        return found

    def stages(self, data: Any, key: toml.Key) -> tuple[Stage, ...]:
        if not isinstance(data, dict) or not data:
            raise self.error(key, f"expected tables such as [stages.read], one a stage, found {toml.shown(data)}")
        return tuple(self.stage(name, table) for name, table in data.items())

    def stage(self, name: str, data: Any) -> Stage:
        key = ("stages", name)
        if not NAME.fullmatch(name):
            raise self.error(key, "a stage's name has letters, digits, - and _ only: it names a folder")
        if isinstance(data, dict) and "name" in data:
            raise self.error((*key, "name"), f"the table's own name is the stage's: [stages.{name}]")
        stage: Stage = self.value(Stage, {**data, "name": name} if isinstance(data, dict) else data, key)
        stage = replace(stage, data={k: amount for k, amount in stage.data.items() if amount})
        if not any(stage.lr.values()):
            raise self.error((*key, "lr"), "nothing is trained; expected a learning rate above 0")
        if not stage.data:
            raise self.error((*key, "data"), "nothing to train on; expected a weight above 0")
        drawn = [kind for kind in DRAWN if kind in stage.data]
        if drawn and not stage.steps:
            raise self.error((*key, "steps"), f"missing; {drawn[0]} is rendered without end")
        if drawn and len(drawn) < len(stage.data) and stage.batch == 1:
            raise self.error((*key, "batch"), "1; rendered kinds and sources in one stage need one sample of each")
        self.drawn(stage, drawn, key)
        if stage.stream and len(drawn) == len(stage.data):
            raise self.error((*key, "stream"), "all of its data are rendered, and have no index; leave stream out")
        if stage.stream and (not stage.steps or stage.heldout):
            raise self.error((*key, "stream"), "a stream needs steps, and has no heldout: its end isn't known before")
        if (stage.batch > 0) == (stage.batch_tokens > 0) or (drawn and not stage.batch):
            raise self.error((*key, "batch"), "expected a number of samples, or batch_tokens in its place")
        if stage.patience and not (stage.eval_every and (stage.heldout or drawn)):
            raise self.error((*key, "patience"), "nothing is measured to wait for; set eval_every and heldout")
        for module, name in LOW_RANK.items():
            if getattr(stage, name) and not stage.lr.get(module):
                raise self.error((*key, name), f"lr.{module} is 0: set it above 0, or {name} = false")
        if stage.tower_lora and stage.tower_lora.quantize:
            raise self.error((*key, "tower_lora", "quantize"), "only the language model's weights go into 4 bits")
        if stage.tower_lora and stage.tower_lora.start:
            raise self.error((*key, "tower_lora", "start"), "only the language model's update can begin as another")
        return stage

    def drawn(self, stage: Stage, names: list[str], key: toml.Key) -> None:
        """Refuse kinds that an objective can't learn from, or a reader can't stand beside."""
        for name in names:
            if stage.objective in ("read", "align") and name not in BOXED:
                has = ", ".join(kind for kind in DRAWN if kind in BOXED)
                advice = f"of {name} no places of characters or things are known, which {stage.objective} learns from"
                raise self.error((*key, "data", name), f"{advice}; kinds that have them: {has}")
            if stage.reader and name not in PLAIN:
                raise self.error((*key, "data", name), f"a reader stands beside {', '.join(PLAIN)} only")
        if stage.reader and stage.answers:
            raise self.error((*key, "answers"), "a stage with a reader asks in its own way; leave one of them out")
        if stage.answers and not names:
            raise self.error((*key, "answers"), "nothing in its data is drawn; sources have answers of their own")

    def layout(self, kind: type[Policy] | type[VideoPolicy], data: dict[str, Any], key: toml.Key) -> Any:
        """A preset, the keys of a policy, or a preset with some keys changed."""
        presets, name = LAYOUTS[kind]
        self.known(data, ["preset", *(f.name for f in fields(kind))], key)
        preset = data.get("preset")
        if preset is not None and (not isinstance(preset, str) or preset not in presets):
            raise self.error((*key, "preset"), f"expected one of {', '.join(presets)}, found {toml.shown(preset)}")
        start = presets[preset].to_dict() if preset else {}
        try:
            return kind.from_dict({**start, **{k: v for k, v in data.items() if k != "preset"}})
        except PumiceError as error:
            raise self.error(key, str(error).removeprefix(f"{name}: ")) from error
