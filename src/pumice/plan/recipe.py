"""The [model] table of a recipe to sizes.

    recipe.toml ──load_recipe──> parts by name, or folders with a config.json ──> Model

A recipe's model builds only the blocks that it uses, and no pooling head; CLIP's and SigLIP's features don't pass the
final norm, which isn't built either.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pumice.config import TowerConfig, load_recipe
from pumice.formats.config_hf import TOWER_DEFAULTS, TOWER_KEYS
from pumice.formats.section import Section, language_model, read_section
from pumice.formats.sizes import Connector, LanguageModel, Model, Tower
from pumice.plan.known import PART_LMS, PART_TOWERS
from pumice.types import PumiceError


def read_recipe(path: Path) -> Model:
    """The sizes of a recipe's model.

    Raises:
        PumiceError: what `load_recipe` raises; a tower or language model that is neither a known part nor a folder;
            a layout that tower and connector don't give.
    """
    recipe = load_recipe(path)
    config = recipe.model
    connector = Connector(config.connector.depth, norm=config.connector.norm)
    model = Model(recipe.name, _tower(config.tower), connector, _lm(config.lm), config.layout, newline=True)
    if model.policy.side * config.connector.shuffle != model.tower.side:
        given = f"{model.tower.side} patches a side, {config.connector.shuffle} of them a token"
        raise PumiceError(f"{path}: model.layout.side = {model.policy.side}; tower and connector give {given}")
    return model


def _tower(config: TowerConfig) -> Tower:
    tower = PART_TOWERS.get(config.source)
    if tower is None:
        read = {"clip": _llava_tower, "siglip": _llava_tower, "dinov2": _dinov2, "dinov3": _dinov3}[config.type]
        tower = read(_part(config.source, "model.tower.source", ", ".join(PART_TOWERS)))
    if tower.kind != config.type:
        raise PumiceError(f"model.tower.type = {config.type}; {config.source} is of type {tower.kind}")
    chosen = config.layers or (tower.layers,)
    if chosen[-1] > tower.layers:
        raise PumiceError(f"model.tower.layers = {list(chosen)}; {config.source} has {tower.layers} blocks")
    return replace(tower, tile=config.tile, layers=chosen[-1], used=chosen[-1], taken=len(chosen))


def _llava_tower(section: Section) -> Tower:
    """CLIP or SigLIP, as a folder of the vision model or of the whole."""
    kind = section.choice("model_type", ("clip", "siglip", *TOWER_DEFAULTS))
    named = kind if kind in TOWER_DEFAULTS else f"{kind}_vision_model"
    inner = section.inner("vision_config", section.values)
    defaults = zip(TOWER_KEYS, TOWER_DEFAULTS[named], strict=True)
    width, ffn, layers, tile, patch = (inner.count(key, default) for key, default in defaults)
    short = "clip" if named == "clip_vision_model" else "siglip"
    return Tower(short, width, layers, ffn, tile, patch, layers, final_norm=False)


def _dinov2(section: Section) -> Tower:
    section.choice("model_type", ("dinov2",))
    section.only("use_swiglu_ffn", False)
    width, layers = section.count("hidden_size", 768), section.count("num_hidden_layers", 12)
    ffn, patch = width * section.count("mlp_ratio", 4), section.count("patch_size", 14)
    return Tower("dinov2", width, layers, ffn, patch, patch, layers)


def _dinov3(section: Section) -> Tower:
    section.choice("model_type", ("dinov3_vit",))
    section.only("use_gated_mlp", False)
    section.only("key_bias", False)
    width, layers = section.count("hidden_size", 384), section.count("num_hidden_layers", 12)
    ffn, patch = section.count("intermediate_size", 1536), section.count("patch_size", 16)
    registers = section.count("num_register_tokens") if section.values.get("num_register_tokens") else 0
    return Tower("dinov3", width, layers, ffn, patch, patch, layers, registers=registers)


def _lm(source: str) -> LanguageModel:
    return PART_LMS.get(source) or language_model(_part(source, "model.lm", ", ".join(PART_LMS)), "llama")


def _part(source: str, key: str, known: str) -> Section:
    """The config.json of a pretrained part that the user has as a folder."""
    path = Path(source).expanduser() / "config.json"
    if not path.is_file():
        raise PumiceError(f"{key} = {source!r}; expected a known part ({known}) or a folder with a config.json")
    return read_section(path)
