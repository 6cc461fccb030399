"""Merged tables of a recipe to its dataclasses: what their annotations don't say.

tables ──RecipeReader──> stages by name, sources by name, presets of layouts, values that must agree ──> Recipe
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from pumice import toml
from pumice.config import KINDS, NAME, SAMPLING, DataConfig, Recipe, Stage
from pumice.toml import Keys
from pumice.types import PumiceError
from pumice.vision.frames import VIDEO_PRESETS, VideoPolicy
from pumice.vision.layout import PRESETS, Policy

LAYOUTS: dict[Any, tuple[dict[str, Any], str]] = {
    Policy: (PRESETS, "policy"),
    VideoPolicy: (VIDEO_PRESETS, "video policy"),
}
"""Presets of each kind of layout, and how its errors begin."""


class RecipeReader(toml.Reader):
    """Adds what a recipe's types don't say: stages by name, presets of layouts, and values that must agree."""

    sources: tuple[str, ...] = ()

    def value(self, hint: Any, value: Any, key: toml.Key, extra: Any = None) -> Any:
        if hint == tuple[Stage, ...]:
            return self.stages(value, key)
        if hint == dict[str, DataConfig]:
            return self.data(value, key)
        if isinstance(extra, Keys) and extra.names == KINDS:
            extra = Keys((*KINDS, *self.sources))
        if hint in LAYOUTS and isinstance(value, dict):
            return self.layout(hint, value, key)
        return super().value(hint, value, key, extra)

    def recipe(self, data: dict[str, Any]) -> Recipe:
        self.sources = tuple(data["data"]) if isinstance(data.get("data"), dict) else ()
        recipe: Recipe = self.build(Recipe, data, ())
        if recipe.model.layout.tile != recipe.model.tower.tile:
            sides = f"{recipe.model.layout.tile} pixels; the tower's tiles have {recipe.model.tower.tile}"
            raise self.error(("model", "layout", "tile"), sides)
        whole = (recipe.model.layout.tile, recipe.model.layout.side)
        for name in ("several", "video"):
            other = getattr(recipe.model, name)
            self.same_tiles(other, whole, ("model", name))
        for stage in recipe.stages:
            for name in ("layout", "several", "video"):
                self.same_tiles(getattr(stage, name), whole, ("stages", stage.name, name))
        used = {name for stage in recipe.stages for name in stage.data}
        return replace(recipe, data={name: source for name, source in recipe.data.items() if name in used})

    def same_tiles(self, policy: Policy | VideoPolicy | None, whole: tuple[int, int], key: toml.Key) -> None:
        """Refuse a layout that the model's tower and connector don't give."""
        if policy is not None and (policy.tile, policy.side) != whole:
            found = f"tiles of {policy.tile} pixels and {policy.side} tokens a side, model.layout's have {whole}"
            raise self.error(key, found)

    def data(self, data: Any, key: toml.Key) -> dict[str, DataConfig]:
        if not isinstance(data, dict):
            raise self.error(key, f"expected tables such as [data.mine], one a source, found {toml.shown(data)}")
        for name in data:
            if name in KINDS or not NAME.fullmatch(name):
                raise self.error((*key, name), "a source's name has letters, digits, - and _; rendered kinds are taken")
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
        drawn = [kind for kind in KINDS if kind in stage.data]
        if drawn and not stage.steps:
            raise self.error((*key, "steps"), f"missing; {drawn[0]} is rendered without end")
        if drawn and len(drawn) < len(stage.data):
            raise self.error((*key, "data"), "rendered kinds and sources on disk in one stage aren't supported")
        if (stage.batch > 0) == (stage.batch_tokens > 0) or (drawn and not stage.batch):
            raise self.error((*key, "batch"), "expected a number of samples, or batch_tokens in its place")
        if stage.lora and not stage.lr.get("lm"):
            raise self.error((*key, "lora"), "lr.lm is 0: set it above 0, or lora = false")
        return stage

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
