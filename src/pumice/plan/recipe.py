"""The [model] table of a recipe to sizes.

recipe.toml ──load_recipe──> parts by name, or folders with a config.json ──> Model
"""

from __future__ import annotations

from pathlib import Path

from pumice.config import CheckpointConfig, Recipe, TowerConfig, load_recipe
from pumice.formats.configs import read_config
from pumice.formats.hub import checkpoint_folder
from pumice.formats.section import Section, language_model, read_section
from pumice.formats.sizes import Connector, LanguageModel, Model, Tower
from pumice.formats.tower_sizes import at_blocks, tower_sizes
from pumice.plan.known import PART_LMS, PART_TOWERS
from pumice.types import PumiceError


def read_recipe(path: Path) -> Model:
    """The sizes of the model in a recipe's file.

    Raises:
        PumiceError: what `load_recipe` and `sizes_of` raise.
    """
    return sizes_of(load_recipe(path), path)


def sizes_of(recipe: Recipe, path: Path | str) -> Model:
    """The sizes of a recipe's model; ``path`` names it in errors.

    Raises:
        PumiceError: a tower or language model that is neither known nor a folder; a layout that tower and connector
            don't give.
    """
    config = recipe.model
    if isinstance(config, CheckpointConfig):
        return read_config(checkpoint_folder(config.checkpoint) / "config.json")
    connector = Connector(config.connector.depth, norm=config.connector.norm)
    model = Model(
        recipe.name, _tower(config.tower), connector, _lm(config.lm), config.layout, newline=True, video=config.video
    )
    if model.policy.side * config.connector.shuffle != model.tower.side:
        given = f"{model.tower.side} patches a side, {config.connector.shuffle} of them a token"
        raise PumiceError(f"{path}: model.layout.side = {model.policy.side}; tower and connector give {given}")
    return model


def _tower(config: TowerConfig) -> Tower:
    tower = PART_TOWERS.get(config.source)
    if tower is None:
        tower = tower_sizes(config.type, _part(config.source, "model.tower.source", ", ".join(PART_TOWERS)))
    if tower.kind != config.type:
        raise PumiceError(f"model.tower.type = {config.type}; {config.source} is of type {tower.kind}")
    chosen = config.layers or (tower.layers,)
    if chosen[-1] > tower.layers:
        raise PumiceError(f"model.tower.layers = {list(chosen)}; {config.source} has {tower.layers} blocks")
    return at_blocks(tower, config.tile, chosen)


def _lm(source: str) -> LanguageModel:
    return PART_LMS.get(source) or language_model(_part(source, "model.lm", ", ".join(PART_LMS)), "llama")


def _part(source: str, key: str, known: str) -> Section:
    """The config.json of a pretrained part that the user has as a folder."""
    path = Path(source).expanduser() / "config.json"
    if not path.is_file():
        raise PumiceError(f"{key} = {source!r}; expected a known part ({known}) or a folder with a config.json")
    return read_section(path)
