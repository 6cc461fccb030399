"""Checkpoints that are to be averaged, read tensor by tensor.

    folder, tower, run ──open_member──> Member: weights by own names, none of them read

Names are the assistant's own, so that files that differ only in how their weights are called can be averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pumice.config import load_recipe
from pumice.formats.adapters import is_partial
from pumice.formats.config_original import local_tower
from pumice.formats.describe import TOWER_TYPES
from pumice.formats.keys import left_out, recognise, to_own
from pumice.formats.opening import some
from pumice.formats.section import Section, read_section
from pumice.formats.shards import read_file, weight_files
from pumice.model.backbones import BESIDE, quiet
from pumice.model.weights import read_delta
from pumice.pocket.parts import RECIPE, WEIGHTS
from pumice.types import PumiceError

Module = Literal["all", "tower"]
KINDS = {
    "delta": "a run of pumice train",
    "tower": "a tower",
    "hf": "a checkpoint in llava-hf's form",
    "original": "a checkpoint in the originals' form",
    "pumice": "a checkpoint in Pumice's own form",
}
"""Kinds of members, as messages call them."""


class Weight(NamedTuple):
    """Where a weight lies: a file, and in it one tensor, or two that make the weight.

    rows   a delta's difference, int8 (.q) times a scale a row (.scale)
    pair   a delta's low-rank update, .b (out, r) times .a (r, in)
    """

    file: Path
    names: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    how: Literal["plain", "rows", "pair"] = "plain"


@dataclass(frozen=True)
class Member:
    """A checkpoint. ``source`` is what the user called it, ``folder`` holds its config, or its recipe at ``recipe``."""

    source: str
    kind: str
    folder: Path
    config: dict[str, Any] = field(repr=False)
    weights: dict[str, Weight] = field(repr=False)
    recipe: Path | None = None

    def names(self, module: Module) -> list[str]:
        """The weights that are averaged: all, or the tower's; not what is computed anew when a model is built."""
        return [name for name in self.weights if not left_out(name) and (module == "all" or name.startswith("tower."))]

    def stored(self, name: str) -> tuple[Tensor, ...]:
        """The tensors of a weight as they lie in the file, mapped anew: they take memory only while they are held.

        Raises:
            PumiceError: the file can't be read any more.
        """
        weight = self.weights[name]
        try:
            if weight.file.suffix == ".safetensors":
                with safe_open(weight.file, framework="pt") as file:
                    return tuple(file.get_tensor(key) for key in weight.names)
        except (OSError, SafetensorError) as error:
            raise PumiceError(f"{weight.file}: not readable ({error})") from None
        found = read_file(weight.file)
        return tuple(found[key] for key in weight.names)

    def read(self, name: str) -> Tensor:
        """A weight; of a delta the difference or update that it stands for, in fp32."""
        found, how = self.stored(name), self.weights[name].how
        if how == "plain":
            return found[0]
        if how == "pair":
            return found[1].float() @ found[0].float()
        return found[0].float() * found[1].view(-1, *[1] * (found[0].dim() - 1))


def open_member(source: str) -> Member:
    """A member by what the user calls it: "pocket", a run's folder or delta file, or a folder with a config.json.

    Raises:
        PumiceError: none of these, an adapter, or files that can't be read.
    """
    path = Path(source).expanduser()
    if source == "pocket":
        return _delta(source, WEIGHTS, RECIPE)
    if path.is_file() or (path / "delta.safetensors").is_file():
        file = path if path.is_file() else path / "delta.safetensors"
        return _delta(source, file, file.parent / "recipe.toml")
    if is_partial(path):
        raise PumiceError(f"{source}: only a part of a model (an adapter, or a connector alone), expected a whole one")
    if not (path / "config.json").is_file():
        raise PumiceError(
            f"{source}: expected a checkpoint's or tower's folder (config.json), or a run's (recipe.toml, "
            "delta.safetensors)"
        )
    return _folder(source, path)


def _delta(source: str, file: Path, recipe: Path) -> Member:
    if not recipe.is_file():
        raise PumiceError(f"{source}: no recipe.toml beside the delta; it says over which parts the delta is")
    tensors, _ = read_delta(file)
    weights: dict[str, Weight] = {}
    for name, value in tensors.items():
        stem, _, suffix = name.rpartition(".")
        shape = tuple(value.shape)
        if suffix == "q":
            weights[stem] = Weight(file, (name, f"{stem}.scale"), shape, value.dtype, "rows")
        elif suffix == "b" and f"{stem}.a" in tensors:
            shape = (shape[0], tensors[f"{stem}.a"].shape[1])
            weights[f"{stem}.weight"] = Weight(file, (f"{stem}.a", name), shape, value.dtype, "pair")
        elif suffix not in ("scale", "a"):
            weights[name] = Weight(file, (name,), shape, value.dtype)
    return Member(source, "delta", file.parent, asdict(load_recipe(recipe).model), weights, recipe)


def _folder(source: str, folder: Path) -> Member:
    found = {
        name: Weight(file, (name,), tuple(value.shape), value.dtype)
        for file in weight_files(folder)
        for name, value in read_file(file).items()
    }
    section = read_section(folder / "config.json")
    if section.values.get("model_type") in TOWER_TYPES:
        own, kind = {name: _tower_name(name) for name in found}, "tower"
    else:
        own, kind = _own_names(source, list(found))
    config = _filled(folder) if kind in ("tower", "hf") else _raw(section)
    return Member(source, kind, folder, config, {own[name]: weight for name, weight in found.items()})


def _tower_name(name: str) -> str:
    """What a tower's folder calls a weight, with the beginning that it has in an assistant unless it stands beside."""
    bare = name.removeprefix("vision_model.")
    return bare if bare.startswith(BESIDE) else f"tower.model.{bare}"


def _own_names(source: str, names: Sequence[str]) -> tuple[dict[str, str], str]:
    """(own name by the file's, kind)."""
    try:
        form = recognise(names)
    except PumiceError as error:
        raise PumiceError(f"{source}: neither a tower nor an assistant of the line: {error}") from None
    own = {name: to_own(name, form) or (name if left_out(name) else "") for name in names}
    strange = [name for name in names if not own[name]]
    if strange:
        raise PumiceError(f"{source}: {len(strange)} weights that the {form} form doesn't have: {some(strange)}")
    return own, form.removesuffix("-modules")


def _raw(section: Section) -> dict[str, Any]:
    """A config as it is written; a tower in a folder beside it is described by its content, not by its place."""
    tower = local_tower(section) if "mm_vision_tower" in section.values else None
    return section.values | ({"mm_vision_tower": tower.values} if tower else {})


def _filled(folder: Path) -> dict[str, Any]:
    """A config as transformers reads it: what a file leaves out has its default, what it doesn't know is dropped.

    Files of one model differ in both, by the version that wrote them.
    """
    from transformers import AutoConfig, PreTrainedConfig

    def known(config: Any) -> dict[str, Any]:
        fields = type(config)().to_dict()
        return {
            name: known(value) if isinstance(value, PreTrainedConfig) else value
            for name in fields
            if (value := getattr(config, name, None)) is not None
        }

    try:
        with quiet():
            return known(AutoConfig.from_pretrained(folder, trust_remote_code=False))
    except Exception as error:  # transformers finds mistakes in a config wherever it first stumbles
        raise PumiceError(f"{folder / 'config.json'}: not readable ({' '.join(str(error).split())[:200]})") from None
