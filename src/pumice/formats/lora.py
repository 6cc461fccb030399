"""LoRA adapters as peft saves them, folded into plain weights.

    adapter_config.json ──read_settings──> Settings (rank, alpha, what is refused)
    adapter_model.*     ──read_pieces────> modules' A and B, whole weights ──check, fold──> W + alpha / r * B A

It works on weights by the assistant's own names, before a model is built: opening and exporting share it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import count
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pumice.formats.keys import FORMS, to_own
from pumice.formats.section import Section, read_section
from pumice.formats.shards import read_file
from pumice.types import PumiceError

CONFIG = "adapter_config.json"
FILES = ("adapter_model.safetensors", "adapter_model.bin")

REFUSED = {
    "alora_invocation_tokens": "it acts on some tokens only",
    "arrow_config": "it chooses among adapters token by token",
    "fan_in_fan_out": "it is for transposed layers, which no language model of the line has",
    "kasa_config": "it cuts the base's weights first",
    "layer_replication": "it repeats layers of the base",
    "monteclora_config": "it samples its matrices",
    "target_parameters": "it adapts parameters instead of modules",
    "trainable_token_indices": "it trains single rows of the embedding",
    "use_bdlora": "its matrices are cut into blocks",
    "use_qalora": "its inputs are pooled",
}
"""Settings of peft with which W + alpha / r * B A isn't what the adapter computes, and why."""

CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Beginnings of `init_lora_weights` that take the first B A out of the base's weights."""

LORA, EMBEDDING = {"lora_A.weight", "lora_B.weight"}, {"lora_embedding_A", "lora_embedding_B"}
EXTRA = {"lora_B.bias", "lora_magnitude_vector"}
_PIECE = re.compile(
    r"(?P<module>.+)\.(?P<kind>lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector)(?:\.default)?(?P<leaf>\.weight|\.bias)?"
)
_WRAPPERS = re.compile(r"\.(?:base_layer|modules_to_save(?:\.default)?)(?=\.)")
LAYER = re.compile(r"(?P<before>.*?\.)(?P<number>\d+)(?P<after>\..+)")

Modules = dict[str, dict[str, Tensor]]
"""By a module's name in the trained model: its tensors by their kind, of LORA or EMBEDDING, and EXTRA."""


class Update(NamedTuple):
    """The low-rank update of one linear layer: its tensors by kind, as in Modules, and what B A is scaled by."""

    pieces: dict[str, Tensor]
    rank: int
    alpha: float

    @property
    def dora(self) -> bool:
        """Whether each row has a length of its own."""
        return "lora_magnitude_vector" in self.pieces

    def folded(self, weight: Tensor) -> Tensor:
        """A weight (out, in) with the update in it, in fp32."""
        return fold_weight(self.pieces, weight, self.alpha / self.rank)


class Settings(NamedTuple):
    """What an adapter_config.json says. ``where`` is its path; patterns map regular expressions to numbers."""

    where: str
    rank: int
    alpha: float
    ranks: dict[str, float]
    alphas: dict[str, float]
    rooted: bool
    dora: bool
    targets: tuple[str, ...] | str

    def scale(self, module: str) -> tuple[int, float]:
        """(rank r, factor of B A) of a module: alpha / r, or alpha / sqrt(r) of rank-stabilised LoRA."""
        rank = int(self._number(self.ranks, module, self.rank))
        return rank, self._number(self.alphas, module, self.alpha) / (rank**0.5 if self.rooted else rank)

    def _number(self, patterns: dict[str, float], module: str, default: float) -> float:
        try:  # the first pattern that fits the end of the name, as peft has it
            return next((n for key, n in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)
        except re.error as error:
            raise PumiceError(f"{self.where}: rank_pattern or alpha_pattern isn't an expression ({error})") from None

    def targeted(self, module: str) -> bool:
        """Whether a module should be adapted. False where that can't be told from its name alone."""
        if isinstance(self.targets, tuple):
            return any(module == target or module.endswith(f".{target}") for target in self.targets)
        try:
            return re.fullmatch(self.targets, module) is not None
        except re.error as error:
            raise PumiceError(f"{self.where}: target_modules isn't an expression ({error})") from None


def read_settings(folder: Path) -> Settings:
    """A folder's adapter_config.json.

    Raises:
        PumiceError: an adapter of another method than LoRA, a setting with which it can't be folded, or a bad value.
    """
    section = read_section(folder / CONFIG)
    values = section.values
    if values.get("peft_type") != "LORA":
        raise section.error("peft_type", "only LORA adapters can be folded into a base's weights")
    for key, reason in REFUSED.items():
        if values.get(key):
            raise section.error(key, f"such an adapter can't be folded into a base's weights: {reason}")
    if str(values.get("init_lora_weights")).lower().startswith(CHANGES_BASE):
        advice = "save the adapter with peft's path_initial_model_for_weight_conversion"
        raise section.error("init_lora_weights", f"it changed the base's weights when training began; {advice}")
    alpha = values.get("lora_alpha", 8)
    if type(alpha) not in (int, float):
        raise section.error("lora_alpha", "expected a number")
    # Which modules of a stack these leave out isn't checked.
    partial = any(values.get(key) for key in ("exclude_modules", "layers_to_transform", "layers_pattern"))
    targets = values.get("target_modules")
    if isinstance(targets, list):
        targets = tuple(str(target) for target in targets)
    return Settings(
        section.where, section.count("r", 8), float(alpha), _pattern(section, "rank_pattern"),
        _pattern(section, "alpha_pattern"), values.get("use_rslora") is True, values.get("use_dora") is True,
        targets if isinstance(targets, tuple | str) and not partial else (),
    )  # fmt: skip


def _pattern(section: Section, key: str) -> dict[str, float]:
    found = section.values.get(key) or {}
    if not isinstance(found, dict) or not all(type(n) in (int, float) and n > 0 for n in found.values()):
        raise section.error(key, "expected an object of numbers above 0")
    return found


def read_pieces(folder: Path) -> tuple[Modules, dict[str, Tensor]]:
    """(low-rank tensors by module, whole weights by name), without peft's wrappers in the names.

    Raises:
        PumiceError: no low-rank weights, or a file that can't be read.
    """
    path = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if path is None:
        raise PumiceError(f"{folder}: no weights of the adapter; expected {' or '.join(FILES)}")
    modules: Modules = {}
    whole: dict[str, Tensor] = {}
    for name, value in read_file(path).items():
        name = name.removeprefix("base_model.model.")
        piece = _PIECE.fullmatch(name)
        if piece is None:
            whole[unwrapped(name)] = value
            continue
        kind, leaf = piece["kind"], piece["leaf"] or ""
        kind = kind if kind == "lora_magnitude_vector" else kind + leaf
        modules.setdefault(piece["module"], {})[kind] = value
    if not modules:
        raise PumiceError(f"{path}: no low-rank weights among its {len(whole)}; the adapter was saved without them")
    return modules, whole


def unwrapped(name: str) -> str:
    """A weight's name without the modules that peft puts around the trained ones."""
    return _WRAPPERS.sub("", name)


def likeliest_form(names: Iterable[str], base: Mapping[str, Tensor]) -> str:
    """The form of names under which most of them are weights of the base: adapters needn't hold a connector's."""
    names = list(names)
    return max(FORMS, key=lambda form: sum(to_own(name, form) in base for name in names))


class Fault(NamedTuple):
    """Why an adapter doesn't fit its base: what (missing, unknown, of another shape), and which weight."""

    what: str
    name: str


def check(modules: Modules, form: str, base: Mapping[str, Tensor], settings: Settings) -> list[Fault]:
    """Everything about the low-rank tensors that doesn't fit the base's weights."""
    faults: list[Fault] = []
    for module, pieces in modules.items():
        weight = base.get(to_own(f"{module}.weight", form) or "")
        needed = EMBEDDING if EMBEDDING & pieces.keys() else LORA
        if settings.dora and needed is LORA:
            needed = needed | {"lora_magnitude_vector"}
        faults += [Fault("missing", f"{module}.{kind}") for kind in sorted(needed - pieces.keys())]
        known = needed | ({"lora_B.bias"} if needed is not EMBEDDING else set())
        faults += [Fault("unknown", f"{module}.{kind}") for kind in sorted(pieces.keys() - known)]
        if weight is None:
            faults.append(Fault("unknown", module))
        elif needed <= pieces.keys():
            faults += _misshapen(module, pieces, weight, settings.scale(module)[0])
        if weight is not None and "lora_B.bias" in pieces:
            bias = base.get(to_own(f"{module}.bias", form) or "")
            if bias is None or bias.shape != pieces["lora_B.bias"].shape:
                faults.append(Fault("unknown" if bias is None else "of another shape", f"{module}.lora_B.bias"))
    return faults + [Fault("missing", name) for name in _holes(modules, form, base, settings)]


def _misshapen(module: str, pieces: dict[str, Tensor], weight: Tensor, rank: int) -> list[Fault]:
    if pieces.keys() >= EMBEDDING:
        a, b = pieces["lora_embedding_A"], pieces["lora_embedding_B"]
        fits = tuple(weight.shape) == (*a.shape[1:], *b.shape[:1])
    else:
        a, b = pieces["lora_A.weight"], pieces["lora_B.weight"]
        fits = tuple(weight.shape) == (*b.shape[:1], *a.shape[1:])
    long = pieces.get("lora_magnitude_vector")
    fits = fits and weight.dim() == 2 and weight.is_floating_point() and (long is None or long.shape == b.shape[:1])
    if fits and tuple(a.shape[:1]) == tuple(b.shape[1:]) == (rank,):
        return []
    sizes = f"A {list(a.shape)}, B {list(b.shape)}" + ("" if long is None else f", magnitude {list(long.shape)}")
    expected = f"rank {rank} beside {list(weight.shape)} of {str(weight.dtype).removeprefix('torch.')}"
    return [Fault("of another shape", f"{module} ({sizes}; expected {expected})")]


def _holes(modules: Modules, form: str, base: Mapping[str, Tensor], settings: Settings) -> list[str]:
    """Modules of the base that should be adapted as those of the same name in other layers are, but aren't."""
    stacks = {(m["before"], m["after"]) for m in map(LAYER.fullmatch, modules) if m}
    holes: list[str] = []
    for before, after in sorted(stacks):
        for number in count():
            name = f"{before}{number}{after}"
            if to_own(f"{name}.weight", form) not in base:
                break
            if name not in modules and settings.targeted(name):
                holes.append(name)
    return holes


@torch.no_grad()
def fold(
    modules: Modules, form: str, base: Mapping[str, Tensor], settings: Settings, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """The base's weights that change, by their own names, in ``dtype``, by default the base's. `check` comes first."""
    changed: dict[str, Tensor] = {}
    for module, pieces in modules.items():
        factor = settings.scale(module)[1]
        name = str(to_own(f"{module}.weight", form))
        changed[name] = fold_weight(pieces, base[name], factor).to(dtype or base[name].dtype)
        if "lora_B.bias" in pieces:
            name = str(to_own(f"{module}.bias", form))
            value = base[name].float() + factor * pieces["lora_B.bias"].float()
            changed[name] = value.to(dtype or base[name].dtype)
    return changed


def fold_weight(pieces: Mapping[str, Tensor], weight: Tensor, factor: float) -> Tensor:
    """A module's weight (out, in) with its low-rank tensors in it, ``factor`` times B A, in fp32.

    DoRA (Liu et al. 2024) then gives each row the length that the magnitude vector says.
    """
    if pieces.keys() >= EMBEDDING:  # stored transposed: A (r, V), B (H, r), weight (V, H)
        b, a = pieces["lora_embedding_A"].T, pieces["lora_embedding_B"].T
    else:
        b, a = pieces["lora_B.weight"], pieces["lora_A.weight"]
    folded = torch.addmm(weight.float(), b.float(), a.float(), alpha=factor)
    if "lora_magnitude_vector" in pieces:
        folded *= (pieces["lora_magnitude_vector"].float() / torch.linalg.norm(folded, dim=1))[:, None]
    return folded
