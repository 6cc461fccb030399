"""Writing an adapter as peft does, complete: what was trained low-rank, and whole what was trained whole.

    updates, whole weights, by own names ──names of the base──> adapter_config.json · adapter_model.safetensors

`adapters` opens it over its base, and so does peft over transformers' class of a llava-hf checkpoint: modules that it
doesn't adapt lie there as its ``modules_to_save``, the newline as a plain weight.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pumice.formats.folders import new_folder
from pumice.formats.keys import left_out, recognise, to_form, to_own
from pumice.formats.lora import FILES, LAYER, Update
from pumice.formats.opening import own_names
from pumice.formats.shards import read_folder
from pumice.types import PumiceError

PREFIX = "base_model.model."
"""What peft puts before the names of its model's weights."""
SAVED = {
    "hf": {"connector": "multi_modal_projector", "tower": "vision_tower"},
    "original": {"connector": "mm_projector", "tower": "vision_tower"},
    "pumice": {"connector": "connector", "tower": "tower"},
}
"""What the classes of each form call the modules that are stored whole."""


def write_adapter(
    updates: Mapping[str, Update], whole: Mapping[str, Tensor], base: Path, named: str, out: Path
) -> None:
    """Write an adapter over the checkpoint in ``base`` to the new folder ``out``.

    ``updates`` are by the assistant's own names of layers, ``whole`` by those of weights; a newline is left out where
    the base has none. ``named`` is how the adapter calls its base.

    Raises:
        PumiceError: as `check_base`, or ``out`` isn't empty or can't be written.
    """
    check_base(updates, base)
    found = read_folder(base)
    form = recognise(found)
    own = own_names(found, base)
    name = _namer(found, form)
    rest = {n: value for n, value in own.items() if n.startswith("tower.") and "tower" in _parts(whole)}
    whole = rest | {n: value for n, value in whole.items() if n != "newline" or n in own}
    dora = any(update.dora for update in updates.values())
    tensors = {PREFIX + name(n): value for n, value in whole.items()}
    for layer, update in updates.items():
        module = name(f"{layer}.weight").removesuffix(".weight")
        pieces = update.pieces
        if dora and not update.dora:  # a length that changes nothing
            pieces = pieces | {"lora_magnitude_vector": torch.linalg.norm(update.folded(own[f"{layer}.weight"]), dim=1)}
        tensors |= {f"{PREFIX}{module}.{kind}": value for kind, value in pieces.items()}
    saved = SAVED[form.removesuffix("-modules")]
    settings = _settings({name(f"{layer}.weight").removesuffix(".weight"): u for layer, u in updates.items()})
    settings |= {"use_dora": dora, "modules_to_save": [saved[part] for part in saved if part in _parts(whole)]}
    with new_folder(out) as folder:
        _config(settings, named).save_pretrained(str(folder))
        save_file({n: v.detach().cpu().contiguous() for n, v in tensors.items()}, folder / FILES[0], {"format": "pt"})


def check_base(layers: Iterable[str], base: Path) -> None:
    """Whether a checkpoint has the weights of these layers, so that an adapter can stand over it.

    Raises:
        PumiceError: it lacks some, such as LLaVA-1.5's originals their tower.
    """
    own = own_names(read_folder(base), base)
    parts = {layer.partition(".")[0] for layer in layers if f"{layer}.weight" not in own}
    if parts:
        raise PumiceError(
            f"{base}: has no weights of its {' and '.join(sorted(parts))}, which low-rank matrices could stand beside: "
            "train all of it, or none"
        )


def _parts(names: Iterable[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def _namer(found: Iterable[str], form: str) -> Callable[[str], str]:
    """Own names to those of the modules that peft sees: transformers' own, or those of the base's files."""
    if form in ("hf", "hf-modules"):  # transformers 5 has no vision_model inside of the tower
        return lambda own: to_form(own, "hf-modules").replace("vision_tower.vision_model.", "vision_tower.")
    theirs = {to_own(name, form): name for name in found if not left_out(name)}
    return lambda own: theirs.get(own) or to_form(own, form)


def _settings(updates: Mapping[str, Update]) -> dict[str, Any]:
    """Which layers are adapted; rank and scale, those of the first stack of blocks, with patterns for others."""
    stacks: dict[str, tuple[set[int], set[str], Update]] = {}
    for module, update in updates.items():
        found = LAYER.fullmatch(module)
        if found is None:
            raise PumiceError(f"{module}: a layer outside of any block can't be part of an adapter")
        numbers, names, _ = stacks.setdefault(found["before"], (set(), set(), update))
        numbers.add(int(found["number"]))
        names.add(found["after"].removeprefix("."))
    targets = [
        rf"{re.escape(before)}({'|'.join(map(str, sorted(numbers)))})\.({'|'.join(map(re.escape, sorted(names)))})"
        for before, (numbers, names, _) in stacks.items()
    ]
    (_, first), *others = [(f"{re.escape(before)}.*", update) for before, (_, _, update) in stacks.items()]
    return {
        "r": first.rank,
        "lora_alpha": first.alpha,
        "target_modules": "|".join(targets),
        "rank_pattern": {pattern: update.rank for pattern, update in others},
        "alpha_pattern": {pattern: update.alpha for pattern, update in others},
    }


def _config(settings: dict[str, Any], named: str) -> Any:
    import peft

    return peft.LoraConfig(**settings, lora_dropout=0.0, base_model_name_or_path=named, inference_mode=True)
