"""The weights of Pumice's own form: what a config describes beside what a model or a folder has.

OwnConfig ──shapes──> names and shapes ──compare──> weights found ──assemble──> AssistantModel
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pumice.formats import opening
from pumice.formats.config_own import OwnConfig, check_side
from pumice.formats.shards import read_folder, weight_files
from pumice.model import openelm  # noqa: F401 (registers OpenELM with transformers)
from pumice.model.assistant import AssistantModel
from pumice.model.backbones import quiet
from pumice.model.build import cast
from pumice.model.connectors import CONNECTORS, MlpConnector
from pumice.model.towers import Tower, tower_class
from pumice.types import PumiceError

Shapes = dict[str, tuple[int, ...]]


def stored(model: AssistantModel) -> dict[str, Tensor]:
    """The model's weights by name, tied ones once, under the first of their names."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) not in seen:
            seen.add(id(value))
            found[name] = value.detach()
    return found


def shapes(config: OwnConfig, where: str) -> Shapes:
    """Names and shapes of the weights that a config describes; the model is built without memory.

    Raises:
        PumiceError: no model can be built from it.
    """
    from transformers import AutoModelForCausalLM

    try:
        with quiet(), torch.device("meta"):
            tower = tower_class(config.tower.type)(config.tower.config, config.tower.tile, config.tower.layers)
            lm = AutoModelForCausalLM.from_config(_lm_config(config))
            model = AssistantModel(tower, _connector(config, tower, lm.config.hidden_size), lm)
    except PumiceError as error:
        raise PumiceError(f"{where}: {error}") from None
    except Exception as error:  # transformers finds mistakes in a config wherever it first stumbles
        found = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise PumiceError(f"{where}: no model can be built from tower.config and text_config ({found})") from None
    check_side(where, config, tower.side)
    return {name: tuple(value.shape) for name, value in stored(model).items()}


def compare(shapes: Shapes, found: Mapping[str, Tensor], where: str) -> None:
    """Every weight of the model there, of its shape, and no other.

    Raises:
        PumiceError: all that is wrong.
    """
    both = [name for name in shapes if name in found]
    wrong = {
        "missing": [name for name in shapes if name not in found],
        "unknown": [name for name in found if name not in shapes],
        "of another shape": [
            f"{name} {list(found[name].shape)}, expected {list(shapes[name])}"
            for name in both
            if tuple(found[name].shape) != shapes[name]
        ],
        "not of floating point": [name for name in both if not found[name].is_floating_point()],
    }
    if any(wrong.values()):
        listed = "; ".join(f"{what}: {opening.some(names)}" for what, names in wrong.items() if names)
        raise PumiceError(f"{where}: weights that don't fit the config; {listed}")


def read_weights(folder: Path) -> dict[str, Tensor]:
    pickles = [path.name for path in weight_files(folder) if path.suffix != ".safetensors"]
    if pickles:
        raise PumiceError(f"{folder}: {opening.some(pickles)}; Pumice's own form has safetensors alone")
    return read_folder(folder)


def assemble(config: OwnConfig, weights: Mapping[str, Tensor], dtype: torch.dtype) -> AssistantModel:
    parts = opening.by_part(weights)
    inside = {name.removeprefix("model."): value for name, value in parts["tower"].items()}
    tower = tower_class(config.tower.type)(config.tower.config, config.tower.tile, config.tower.layers, inside)
    lm = opening.load_lm(_lm_config(config), parts["lm"], dtype)
    connector = opening.fill_connector(_connector(config, tower, lm.config.hidden_size), parts["connector"])
    model = AssistantModel(tower, connector, lm, pool_first=config.pool_first)
    model.newline = nn.Parameter(parts["newline"][""])
    return cast(model, dtype)


def _connector(config: OwnConfig, tower: Tower, hidden: int) -> MlpConnector:
    made = config.connector
    return CONNECTORS[made.type](tower.width, hidden, made.shuffle, made.depth, made.norm)


def _lm_config(config: OwnConfig) -> Any:
    from transformers import AutoConfig

    fields = dict(config.text_config)
    kind = fields.pop("model_type", None)
    if not isinstance(kind, str):
        raise PumiceError(f"text_config.model_type = {kind!r}; expected the type of a language model of transformers")
    return AutoConfig.for_model(kind, **fields)
