"""One object of a config.json, read with checks, and what both forms of checkpoints share: language model and grids.

    {"hidden_size": 4096, ...} ──Section──> LanguageModel · grids of tiles

Keys that a file leaves out have transformers' defaults, written here so that reading a file doesn't import it.
"""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pumice.formats.sizes import Block, LanguageModel, divisible
from pumice.types import MOST_LAYERS, PumiceError

MOST = 10_000_000
"""Beyond any model's sizes."""
LM_DEFAULTS: dict[str, dict[str, int | None]] = {
    "llama": {
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": None,
    },
    "mistral": {
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8,
    },
    "qwen2": {
        "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32,
    },
    "phi3": {
        "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": None,
    },
}  # fmt: skip
"""transformers' defaults of each type of language model; None: as many key-value heads as query heads."""

MEANS = {"clip": (122, 116, 104), "siglip": (127, 127, 127)}
"""Colour of a padded square, by kind of tower: the mean that its pixels are normalised with."""


@dataclass(frozen=True)
class Section:
    """An object of a config.json: values are checked as they are read. ``where`` is its file, or the key inside."""

    where: str
    values: dict[str, Any]

    def error(self, key: str, expected: str) -> PumiceError:
        """An error about a key, with the value found."""
        return PumiceError(f"{self.where}: {key} = {self.values.get(key)!r}; {expected}")

    def count(self, key: str, default: int | None = None, most: int = MOST) -> int:
        """A whole number from 1 to ``most``; the default where it is absent or null."""
        value = self.values.get(key)
        value = default if value is None else value
        if type(value) is not int or not 1 <= value <= most:
            raise self.error(key, f"expected a whole number from 1 to {most:,}")
        return value

    def choice(self, key: str, choices: tuple[str, ...], default: str | None = None) -> str:
        """One of some strings."""
        value = self.values.get(key, default)
        if not isinstance(value, str) or value not in choices:
            raise self.error(key, f"expected one of {', '.join(choices)}")
        return value

    def each(self, key: str, length: int) -> list[float]:
        """A list of so many numbers above 0."""
        value = self.values.get(key)
        if not isinstance(value, list) or len(value) != length:
            raise self.error(key, f"expected a list of {length} numbers, one a layer")
        if not all(type(number) in (int, float) and number > 0 for number in value):
            raise self.error(key, "expected numbers above 0")
        return value

    def only(self, key: str, value: bool) -> None:
        """An error where a switch isn't at the one position that is counted, its default."""
        if self.values.get(key, value) is not value:
            raise self.error(key, f"only {str(value).lower()} is counted")

    def inner(self, key: str, default: dict[str, Any]) -> Section:
        """The object inside of this one; ``default`` where it is absent or null."""
        value = self.values.get(key)
        value = default if value is None else value
        if not isinstance(value, dict):
            raise self.error(key, "expected an object")
        return Section(f"{self.where}: {key}", value)


def read_section(path: Path) -> Section:
    """A config.json as it lies.

    Raises:
        PumiceError: not a readable JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PumiceError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(data, dict):
        raise PumiceError(f"{path}: expected a JSON object, found {type(data).__name__}")
    return Section(str(path), data)


def language_model(section: Section, default: str, own_type: bool = True) -> LanguageModel:
    """A language model's sizes. Its `model_type` says the type, ``default`` where absent, or where it isn't its own."""
    kind = section.choice("model_type", (*LM_DEFAULTS, "openelm"), default) if own_type else default
    return _openelm(section) if kind == "openelm" else _uniform(section, kind)


def _uniform(section: Section, kind: str) -> LanguageModel:
    sizes = LM_DEFAULTS[kind]
    heads = section.count("num_attention_heads", sizes["num_attention_heads"])
    hidden = section.count("hidden_size", sizes["hidden_size"])
    if section.values.get("head_dim") is None and hidden % heads:
        raise section.error("num_attention_heads", f"expected a divisor of hidden_size = {hidden}")
    # A null in the file means as many as query heads, whatever the default of the type is.
    null = "num_key_value_heads" in section.values or sizes["num_key_value_heads"] is None
    kv_heads = section.count("num_key_value_heads", heads if null else sizes["num_key_value_heads"])
    section.only("attention_bias", False)
    section.only("mlp_bias", False)
    block = Block(heads, kv_heads, section.count("intermediate_size", sizes["intermediate_size"]))
    return LanguageModel(
        hidden,
        section.count("head_dim", hidden // heads),
        section.count("vocab_size", sizes["vocab_size"]),
        (block,) * section.count("num_hidden_layers", sizes["num_hidden_layers"], MOST_LAYERS),
        tied=section.values.get("tie_word_embeddings") is True,
        qkv_bias=kind == "qwen2",
    )


def _openelm(section: Section) -> LanguageModel:
    """OpenELM's published files give the heads and the width of the MLP of every block."""
    for key in ("ffn_with_glu", "normalize_qk_projections", "share_input_output_layers"):
        section.only(key, True)
    hidden, layers = section.count("model_dim"), section.count("num_transformer_layers", most=MOST_LAYERS)
    heads, kv_heads, multipliers = (
        section.each(key, layers) for key in ("num_query_heads", "num_kv_heads", "ffn_multipliers")
    )
    divisor = section.count("ffn_dim_divisor", 256)
    blocks = tuple(
        Block(int(q), int(kv), divisible(multiplier * hidden, divisor))
        for q, kv, multiplier in zip(heads, kv_heads, multipliers, strict=True)
    )
    head_dim, vocab = section.count("head_dim"), section.count("vocab_size", 32000)
    return LanguageModel(hidden, head_dim, vocab, blocks, tied=True, qk_norm=True)


def max_tiles(section: Section, key: str, default: str | None = None) -> int:
    """N of "anyres_max_N", 0 for a plain "anyres"."""
    value = section.values.get(key, default)
    found = re.fullmatch(r"anyres(?:_max_([1-9]\d*))?", value) if isinstance(value, str) else None
    if not found:
        raise section.error(key, "expected anyres or anyres_max_N (original files also pad or square)")
    return int(found[1] or 0)


def grids(section: Section, pairs: Any, tile: int) -> tuple[tuple[int, int], ...]:
    """`image_grid_pinpoints` in tiles: pairs of pixels, or "(1x1),...,(6x6)" for all grids between the two."""
    key = "image_grid_pinpoints"
    if isinstance(pairs, str):
        ends = [(int(a), int(b)) for a, b in re.findall(r"\((\d+)x(\d+)\)", pairs)]
        if ends:
            (a, b), (c, d) = ends[0], ends[-1]
            return tuple((i, j) for i in range(a, c + 1) for j in range(b, d + 1))
        try:
            pairs = ast.literal_eval(pairs)
        except (ValueError, SyntaxError):
            raise section.error(key, "expected pairs of pixels, or (1x1),...,(6x6)") from None
    if not isinstance(pairs, list | tuple) or not pairs or not all(_whole_tiles(pair, tile) for pair in pairs):
        raise section.error(key, f"expected pairs of multiples of the tower's {tile} pixels")
    return tuple((first // tile, second // tile) for first, second in pairs)


def _whole_tiles(pair: Any, tile: int) -> bool:
    pixels = isinstance(pair, list | tuple) and len(pair) == 2 and all(type(n) is int for n in pair)
    return pixels and all(n > 0 and n % tile == 0 for n in pair)
