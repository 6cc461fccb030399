"""Whether checkpoints can be averaged: what they hold, and whether they have an ancestor in common.

Members ──check_alike──> one kind, config, names, shapes ──check_related──> one ancestor, as far as weights show it
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pumice.formats.members import KINDS, Member, Module, Weight
from pumice.formats.opening import some
from pumice.formats.own import UNSAVED
from pumice.types import PumiceError

TOWER_KEYS = {
    "delta": "tower",
    "tower": "vision_config",
    "hf": "vision_config",
    "original": "mm_vision_tower",
    "pumice": "tower",
}
"""Where the config of a kind describes its tower; a tower's own config may be all about it."""
HISTORY = (
    *UNSAVED, "torch_dtype", "use_cache", "mm_projector_lr", "mm_vision_tower_lr", "mm_tunable_parts",
    "freeze_mm_mlp_adapter", "tune_mm_mlp_adapter", "tune_mm_vision_resampler", "unfreeze_mm_vision_tower",
)  # fmt: skip
"""Fields of configs that say how a model was trained and stored, in which members may differ."""
NEAR = 0.5
"""Cosine of two matrices below which they hardly come from one ancestor: fine-tunings are above 0.9, inits near 0."""


def check_alike(members: Sequence[Member], module: Module) -> None:
    """Members of one kind, whose averaged weights have the same names, shapes and config.

    Raises:
        PumiceError: one differs from the first; all that is wrong with it is listed.
    """
    first = members[0]
    for other in members[1:]:
        if other.kind != first.kind:
            raise PumiceError(
                f"{other.source} is {KINDS[other.kind]}, {first.source} {KINDS[first.kind]}; expected one kind"
            )
        faults = {what: names for what, names in _faults(first, other, module).items() if names}
        if faults:
            listed = "; ".join(f"{what}: {some(names)}" for what, names in faults.items())
            raise PumiceError(f"{other.source} can't be averaged with {first.source}: {listed}")
    if not first.names(module):
        raise PumiceError(f"{first.source}: no weights of a tower; expected some for module tower")


def _faults(first: Member, other: Member, module: Module) -> dict[str, list[str]]:
    mine, theirs = first.names(module), other.names(module)
    both = [name for name in mine if name in other.weights]
    a, b = first.weights, other.weights
    return {
        "config": list(_differences(_about(first, module), _about(other, module))),
        "missing weights": sorted(set(mine) - set(theirs)),
        "unknown weights": sorted(set(theirs) - set(mine)),
        "weights of another shape": [
            f"{name} {list(b[name].shape)}, expected {list(a[name].shape)}"
            for name in both
            if b[name].shape != a[name].shape
        ],
        "weights not of floating point that differ": [
            name
            for name in both
            if b[name].shape == a[name].shape
            and not (_floating(a[name]) and _floating(b[name]))
            and not torch.equal(first.read(name), other.read(name))
        ],
    }


def _floating(weight: Weight) -> bool:
    return weight.dtype.is_floating_point or weight.how != "plain"


def _about(member: Member, module: Module) -> dict[str, Any]:
    """The part of a config that describes the averaged weights."""
    key = TOWER_KEYS[member.kind]
    if module == "all":
        return member.config
    inner = member.config.get(key, member.config)
    return inner if isinstance(inner, dict) else {key: inner}


def _differences(a: Mapping[str, Any], b: Mapping[str, Any], inside: str = "") -> Iterator[str]:
    """The fields in which two configs differ, with both values: b's, then what a has."""
    for key in sorted(a.keys() | b.keys()):
        mine, theirs = a.get(key, "nothing"), b.get(key, "nothing")
        if key in HISTORY or mine == theirs:
            continue
        if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
            yield from _differences(mine, theirs, f"{inside}{key}.")
        else:
            yield f"{inside}{key} {_short(theirs)}, expected {_short(mine)}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def check_related(members: Sequence[Member], module: Module, force: bool = False) -> list[str]:
    """Members of one ancestor, as far as their weights show it; with ``force`` what speaks against it is returned.

    A part (tower, connector, lm, head) of a member is a stranger where most of its matrices have a cosine below NEAR
    with the first's. A delta's differences and low-rank updates say nothing of it: they are over the same parts.

    Raises:
        PumiceError: a stranger, and not ``force``; its matrices are named.
    """
    found = [text for other in members[1:] for text in _strange_parts(members[0], other, module)]
    if found and not force:
        raise PumiceError(f"{'; '.join(found)}: a mean of models without a common ancestor is noise (--force takes it)")
    return found


def _strange_parts(first: Member, other: Member, module: Module) -> Iterator[str]:
    parts: dict[str, dict[str, float]] = {}
    for name in first.names(module):
        weight = first.weights[name]
        if len(weight.shape) > 1 and weight.how == "plain" and weight.dtype.is_floating_point:
            parts.setdefault(name.partition(".")[0], {})[name] = _cosine(first.read(name), other.read(name))
    for part, cosines in parts.items():
        low = sorted((value, name) for name, value in cosines.items() if value < NEAR)
        if 2 * len(low) > len(cosines):
            listed = some([f"{name} {value:.2f}" for value, name in low])
            yield (
                f"{other.source}: {len(low)} of {len(cosines)} matrices of {part} have a cosine below {NEAR} "
                f"with those of {first.source} ({listed})"
            )


def _cosine(a: Tensor, b: Tensor) -> float:
    """Of all values of two tensors; 1 where one of them is all zeros, which shows nothing."""
    a, b = a.float().flatten(), b.float().flatten()
    scale = float(a.norm() * b.norm())
    return float(a @ b) / scale if scale > 0 else 1.0
