"""Pretrained backbones of towers: a folder or a state dict to a transformers vision model with the blocks in use.

    config fields ──settle──> config of the blocks in use ─┐
    folder, state dict ──resize_positions──> weights ──────┴─load──> backbone, every weight accounted for

transformers knows the older names of weights and builds without initialising twice; what it would only warn of
(weights that are missing or left over) is checked here.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pumice.types import MOST_LAYERS, PumiceError

BESIDE = ("text_model.", "text_projection.", "visual_projection.", "logit_scale", "logit_bias", "head.", "classifier.")
"""What folders hold beside the backbone, by the beginning of the weights' names: CLIP's text side, heads."""
MASK = "embeddings.mask_token"
"""Used in DINO's pretraining only, so that a folder may lack it."""
STAGES = ("out_features", "out_indices", "stage_names")
"""Fields of DINO's configs that name blocks, also those that aren't built; a tower doesn't read them."""


def model_type(folder: Path) -> Any:
    """``model_type`` of a folder's config.json.

    Raises:
        PumiceError: no readable config.
    """
    path = folder / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise PumiceError(f"{path}: not readable as a model's config ({error})") from None


def settle(model_class: Any, fields: Mapping[str, Any], layers: Sequence[int], own: Mapping[str, Any]) -> Any:
    """transformers' config of a backbone that ends with the last of ``layers``; ``own`` fields go before others.

    Raises:
        PumiceError: fields that transformers refuses, or ``layers`` that aren't rising numbers of blocks, counted from
            1, that the backbone has.
    """
    known = {key: value for key, value in fields.items() if key not in STAGES}
    asked = known.get("num_hidden_layers", 1)
    if type(asked) is not int or not 1 <= asked <= MOST_LAYERS:  # DINO's configs name every block
        raise PumiceError(f"the tower's config: num_hidden_layers = {asked!r}; expected 1 to {MOST_LAYERS:,}")
    try:
        count = model_class.config_class(**known).num_hidden_layers
    except Exception as error:  # transformers finds mistakes in a config wherever it first stumbles
        raise PumiceError(f"the tower's config: {' '.join(str(error).split())[:300]}") from None
    if layers and (sorted(set(layers)) != list(layers) or layers[0] < 1 or layers[-1] > count):
        raise PumiceError(f"tower layers {list(layers)}: expected rising numbers up to {count}, the first at least 1")
    own = {**own, "num_hidden_layers": layers[-1] if layers else count, "attn_implementation": "sdpa"}
    return model_class.config_class(**{**known, **own})


def load(
    model_class: Any, config: Any, blocks: str, unused: tuple[str, ...], source: Path | Mapping[str, Tensor]
) -> Any:
    """The backbone of ``config`` in fp32 with the weights of a folder or of a state dict.

    ``blocks`` names its list of blocks: those after the config's last are left out, as is what stands beside a
    backbone (BESIDE). Weights whose names begin with one of ``unused`` may be missing. The tensors of a state dict are
    taken over without a copy where they are fp32.

    Raises:
        PumiceError: weights that are missing, unknown or of another shape, or no weights.
    """
    where, folder, state = ("weights", None, source) if isinstance(source, Mapping) else (source, source, None)
    kinds = {value.dtype for value in (state or {}).values() if value.is_floating_point()} or {torch.float32}
    widest = functools.reduce(torch.promote_types, kinds)
    with quiet():
        try:
            # Of weights of another shape transformers' error says nothing, its report all.
            model, report = model_class.from_pretrained(
                folder, config=config, state_dict=state, dtype=widest, output_loading_info=True,
                ignore_mismatched_sizes=True,
            )  # fmt: skip
        except Exception as error:  # as above: a config may be at fault as well as weights
            found = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise PumiceError(f"{where}: don't load as {model_class.__name__}: {found}") from None
    missing = sorted(name for name in report["missing_keys"] if not name.startswith((MASK, *unused)))
    unknown = sorted(
        name for name in report["unexpected_keys"] if not _left_out(name, blocks, config.num_hidden_layers)
    )
    misshapen = other_shapes(report)
    if missing or unknown or misshapen:
        raise PumiceError(
            f"{where}: not the weights of the {model_class.__name__} that their config describes; "
            f"missing: {', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}; "
            f"of another shape: {', '.join(misshapen) or 'none'}"
        )
    return model


def other_shapes(report: Mapping[str, Any]) -> list[str]:
    """The weights of another shape in transformers' report of a loading, each with both shapes."""
    found = sorted(report["mismatched_keys"])
    return [f"{name} {list(stored)}, expected {list(expected)}" for name, stored, expected in found]


def _left_out(name: str, blocks: str, count: int) -> bool:
    """Whether a weight belongs to a block after the first ``count``, or stands beside the backbone."""
    stem, _, rest = name.partition(f"{blocks}.")
    if stem or not rest:
        return name.startswith(BESIDE)
    number = rest.partition(".")[0]
    return number.isdecimal() and int(number) >= count


def resize_positions(table: Tensor, prefix: int, side: int) -> Tensor:
    """A position table, (prefix + n^2, C) or (1, prefix + n^2, C), for side^2 patches: the first ``prefix`` rows stay.

    Bicubic in fp32 on the grid of patches, as CLIP, SigLIP and DINOv2 all do in transformers. A table of the right size
    comes back as it is.

    Raises:
        PumiceError: the rows after the prefix aren't a square.
    """
    rows = table.flatten(0, -2)
    before = isqrt(max(len(rows) - prefix, 0))
    if before == 0 or before**2 != len(rows) - prefix:
        raise PumiceError(f"a position table of {len(rows)} rows: expected {prefix} and a square number of patches")
    if before == side:
        return table
    grid = rows[prefix:].float().view(1, before, before, -1).permute(0, 3, 1, 2)
    sized = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    patches = sized.permute(0, 2, 3, 1).flatten(0, 2).to(table.dtype)
    return torch.cat([rows[:prefix], patches]).view(*table.shape[:-2], prefix + side**2, -1)


@contextmanager
def quiet() -> Iterator[None]:
    """transformers without its warnings."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
