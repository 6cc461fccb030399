"""config.json of Pumice's own form: everything about an assistant but its weights, tokenizer and chat template.

    {"model_type": "pumice", "format": 1, "tower", "connector", "text_config", ...} ──parse──> OwnConfig ──> Model

The dataclasses below are the schema. Every key of theirs is written, and none may be missing or unknown. What tower and
language model say of themselves (``config``, ``text_config``) is transformers' and is checked by building them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, get_args

from pumice import toml
from pumice.formats.section import Section, language_model
from pumice.formats.sizes import Connector, Model, TowerKind
from pumice.formats.tower_sizes import at_blocks, tower_sizes
from pumice.toml import Count, Positive, Range
from pumice.types import PumiceError
from pumice.vision.frames import VideoPolicy
from pumice.vision.layout import Policy

TYPE = "pumice"
FORMAT = 1
JINJA = "chat_template.jinja"
"""Where a chat template of the assistant's own lies."""

REFUSED = {
    "auto_map": "code of its own",
    "attn_implementation": "an attention kernel, which transformers may fetch from the hub",
    "_attn_implementation": "an attention kernel, which transformers may fetch from the hub",
    "quantization_config": "quantised weights",
}
"""Keys of transformers' configs that no part here may have, and what they stand for."""

Finite = Annotated[float, Range(-math.inf)]


@dataclass(frozen=True)
class OwnTower:
    """``type`` of pumice.model.towers.TOWERS, side of a tile in pixels, blocks that the connector sees, counted from 1.

    ``config`` are the fields of transformers' own config.
    """

    type: TowerKind
    tile: Count
    layers: tuple[Count, ...]
    config: dict[str, Any]


@dataclass(frozen=True)
class OwnConnector:
    """Arguments of pumice.model.connectors.MlpConnector."""

    type: Literal["mlp"]
    shuffle: Count
    depth: Count
    norm: bool


@dataclass(frozen=True)
class OwnPixels:
    """Statistics per channel: (pixel / 255 - mean) / std."""

    mean: tuple[Finite, Finite, Finite]
    std: tuple[Positive, Positive, Positive]


@dataclass(frozen=True)
class Marks:
    """What the template in chat_template.jinja writes for a picture and for a video."""

    image: str
    video: str


@dataclass(frozen=True)
class OwnConfig:
    """An assistant but for its weights, tokenizer and chat template.

    ``text_config`` are the fields of transformers' config of the language model, its ``model_type`` among them.
    ``layout``, ``several`` and ``video`` are the policies of pumice.encode.Processor. ``template`` is a name of
    pumice.templates.TEMPLATES, or the marks of the one that lies beside the config.
    """

    tower: OwnTower
    connector: OwnConnector
    text_config: dict[str, Any]
    pool_first: bool
    pixels: OwnPixels
    layout: Policy
    several: Policy | None
    video: VideoPolicy | None
    template: str | Marks
    max_tokens: Count

    def to_dict(self) -> dict[str, Any]:
        """The whole of config.json; `parse` reads it back equal."""
        return {"model_type": TYPE, "format": FORMAT, **asdict(self)}


def is_own(values: Mapping[str, Any]) -> bool:
    """Whether a config.json says that it is of this form."""
    return values.get("model_type") == TYPE


def parse(section: Section) -> OwnConfig:
    """Check a config.json.

    Raises:
        PumiceError: another version; a key that is missing or unknown, a value of a wrong type or out of range, or
            layouts that don't fit tower and connector; the key is named.
    """
    if section.values.get("format") != FORMAT:
        raise section.error("format", f"this version of Pumice reads {FORMAT}; a newer one may read it")
    reader = _Reader(section.where, {})
    data = {key: value for key, value in section.values.items() if key not in ("model_type", "format")}
    config: OwnConfig = reader.build(OwnConfig, data, ())
    for part, values in ((("tower", "config"), config.tower.config), (("text_config",), config.text_config)):
        for key in REFUSED.keys() & values.keys():
            raise reader.error((*part, key), f"{REFUSED[key]}; expected a part without")
    if not config.tower.layers:
        raise reader.error(("tower", "layers"), "expected at least one block")
    if config.layout.tile != config.tower.tile:
        raise reader.error(("layout", "tile"), f"{config.layout.tile} pixels; the tower's have {config.tower.tile}")
    for name in ("several", "video"):
        other, one = getattr(config, name), (config.layout.tile, config.layout.side)
        if other is not None and (other.tile, other.side) != one:
            found = f"tiles of {other.tile} pixels and {other.side} tokens a side, the layout's have {one}"
            raise reader.error((name,), found)
    return config


def read_own(name: str, section: Section) -> Model:
    """The sizes in a config.json of this form.

    Raises:
        PumiceError: as `parse`, or a tower or language model of a kind that can't be counted.
    """
    config = parse(section)
    whole = tower_sizes(config.tower.type, Section(f"{section.where}: tower.config", config.tower.config))
    tower = at_blocks(whole, config.tower.tile, config.tower.layers)
    check_side(section.where, config, tower.side)
    return Model(
        name,
        tower,
        Connector(config.connector.depth, norm=config.connector.norm),
        language_model(section.inner("text_config", {}), ""),
        config.layout,
        newline=True,
        video=config.video,
        pool_first=config.pool_first,
    )


def check_side(where: str, config: OwnConfig, side: int) -> None:
    """Whether the layout has the tokens that a tower of ``side`` patches a side and the connector give.

    Raises:
        PumiceError: it hasn't.
    """
    if config.layout.side * config.connector.shuffle != side:
        given = f"the tower gives {side} patches a side, the connector joins {config.connector.shuffle} of them"
        raise PumiceError(f"{where}: layout.side = {config.layout.side} tokens; {given}")


class _Reader(toml.Reader):
    """Objects for tables, null for what isn't there, layouts by their own rules, and every key is needed."""

    def build(self, kind: Any, data: dict[str, Any], key: toml.Key) -> Any:
        names = [field.name for field in fields(kind)]
        self.known(data, names, key)
        missing = [name for name in names if name not in data]
        if missing:
            raise PumiceError(f"{self.file}: missing {', '.join('.'.join((*key, name)) for name in missing)}")
        return super().build(kind, data, key)

    def value(self, hint: Any, value: Any, key: toml.Key, extra: Any = None) -> Any:
        if value is None and type(None) in get_args(hint):
            return None
        if hint == str | Marks:
            return self.value(str if isinstance(value, str) else Marks, value, key)
        if hint != dict[str, Any] and not is_dataclass(hint):
            return super().value(hint, value, key, extra)
        if not isinstance(value, dict):
            raise self.error(key, f"expected an object, found {toml.shown(value)}")
        if hint == dict[str, Any]:
            return value
        if hint not in (Policy, VideoPolicy):
            return self.build(hint, value, key)
        policy: Any = hint
        try:
            return policy.from_dict(value)
        except PumiceError as error:
            raise self.error(key, str(error)) from None
