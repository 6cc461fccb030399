"""Checkpoints that are only a part of a model, put together with the rest of it.

    LoRA adapter (peft's, or the originals' with non_lora_trainables) + base ──┐
    mm_projector + language model ─────────────────────────────────────────────┴─fold─> own names ──> Assistant, export

The base is whole, in any published form, or for the originals' parts a plain language model: their config.json then
describes the model.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pumice.assistant import Assistant
from pumice.formats import lora, own
from pumice.formats.describe import describe
from pumice.formats.hub import HUB_ID, cached
from pumice.formats.keys import left_out, to_own
from pumice.formats.lora import Fault
from pumice.formats.opening import build, make_processor, own_names, some
from pumice.formats.section import read_section
from pumice.formats.shards import INDEXES, SINGLES, read_file, read_folder
from pumice.model.build import auto_dtype
from pumice.types import PumiceError

REST = ("non_lora_trainables.safetensors", "non_lora_trainables.bin")
PROJECTORS = ("mm_projector.safetensors", "mm_projector.bin")
PLAIN = ("model.layers.", "model.embed_tokens.", "model.norm.", "lm_head.", "transformer.")
"""Beginnings of the names in a language model's own checkpoint."""
HEAD, EMBEDDINGS = "lm.lm_head.weight", ("lm.model.embed_tokens.weight", "lm.transformer.token_embeddings.weight")


class Whole(NamedTuple):
    """A model put together: the folder whose config.json describes it, the folder of its tokenizer and chat template,
    and its weights by the assistant's own names."""

    config: Path
    tokens: Path
    weights: dict[str, Tensor]


def is_partial(folder: Path) -> bool:
    """Whether a folder holds only a part of a model: a peft adapter, or a connector alone."""
    if (folder / lora.CONFIG).is_file():
        return True
    whole = any((folder / name).is_file() for name in (*SINGLES, *INDEXES))
    return not whole and _first(folder, PROJECTORS) is not None


def open_partial(
    folder: Path,
    base: Path | None,
    dtype: torch.dtype | None,
    device: torch.device,
    tower: Path | None = None,
    template: str | None = None,
) -> Assistant:
    """The assistant that a part and its base make. Arguments as in `pumice.load`.

    Raises:
        PumiceError: as `merged`, or weights that don't fit the config: all of them are listed.
    """
    dtype = dtype or auto_dtype(device)
    whole = merged(folder, base, dtype)
    if own.is_own(whole.config):
        assistant = own.open_own(whole.config, dtype, device, template, whole.weights)
        return Assistant(assistant.model, assistant.processor, folder.name)
    description = describe(whole.config)
    model = build(description, whole.weights, dtype, tower, folder)
    return Assistant(model.to(device), make_processor(whole.tokens, description, template), folder.name)


def merged(folder: Path, base: Path | None = None, dtype: torch.dtype | None = None) -> Whole:
    """A part and its base as one model. ``dtype`` is that of the weights that change, by default the base's own.

    Without ``base`` the adapter's `base_model_name_or_path` counts: a folder, or a hub's model in the local cache.

    Raises:
        PumiceError: no base, or a part that doesn't fit it: what is missing, unknown or misshapen is listed.
    """
    if not is_partial(folder):
        raise PumiceError(f"{folder}: not an adapter or a connector alone, which base= is for")
    base = _find_base(folder, base)
    described = folder if _original(folder) else base
    weights = fold(_base_weights(base, alone=described is folder), folder, dtype)
    return Whole(described, _tokens(folder, base), weights)


def fold(tensors: Mapping[str, Tensor], adapter: Path, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """A base's weights, by the assistant's own names, with the part in the folder ``adapter`` in them.

    A weight that the part changes has ``dtype``, by default the base's own; the others are the tensors that came in.

    Raises:
        PumiceError: weights that are missing, unknown or of another shape (all of them are listed), an adapter that
            can't be folded, or files that can't be read.
    """
    low_rank = (adapter / lora.CONFIG).is_file()
    settings = lora.read_settings(adapter) if low_rank else None
    path = _first(adapter, REST if low_rank else PROJECTORS)
    replaced: dict[str, Tensor] = {}
    faults: list[Fault] = []
    if path is not None:
        faults += _place(replaced, read_file(path), "original", tensors)
    modules: lora.Modules = {}
    form = "original"
    if settings is not None:
        modules, whole = lora.read_pieces(adapter)
        form = lora.likeliest_form((*(f"{module}.weight" for module in modules), *whole), tensors)
        faults += _place(replaced, whole, form, tensors)
        faults += lora.check(modules, form, tensors, settings)
    if faults:
        kinds = sorted({fault.what for fault in faults})
        listed = "; ".join(f"{kind}: {some([f.name for f in faults if f.what == kind])}" for kind in kinds)
        raise PumiceError(f"{adapter}: doesn't fit the weights of its base; {listed}")
    changed = {name: value.to(dtype or tensors.get(name, value).dtype) for name, value in replaced.items()}
    if settings is not None:
        changed |= lora.fold(modules, form, ChainMap(replaced, dict(tensors)), settings, dtype)
    return {**tensors, **_tied(changed, tensors, adapter)}


def _place(
    placed: dict[str, Tensor], found: Mapping[str, Tensor], form: str, base: Mapping[str, Tensor]
) -> list[Fault]:
    """Put weights that replace the base's into ``placed``; the rest are faults.

    Originals may bring what a plain language model lacks. A head that the base lacks is placed: `_tied` judges it.
    """
    faults: list[Fault] = []
    for name, value in found.items():
        if left_out(name):
            continue
        own = to_own(_bare(name) if form == "original" else name, form) or ""
        beside = form == "original" and (own.startswith(("connector.", "tower.")) or own == "newline")
        if own in base and base[own].shape != value.shape:
            faults.append(Fault("of another shape", f"{name} ({list(value.shape)}, expected {list(base[own].shape)})"))
        elif own in base or own == HEAD or beside:
            placed[own] = value
        else:
            faults.append(Fault("unknown", name))
    return faults


def _bare(name: str) -> str:
    """An original part's name as whole checkpoints have it: without peft's beginning, once or twice `model.`."""
    name = name.removeprefix("base_model.").removeprefix("model.")
    name = name if name.startswith(("model.", "lm_head.", "transformer.")) else f"model.{name}"
    return lora.unwrapped(name)


def _tied(changed: dict[str, Tensor], base: Mapping[str, Tensor], where: Path) -> dict[str, Tensor]:
    """``changed``, if the embedding and the LM head that share one weight in the base still do.

    Raises:
        PumiceError: only one of the two changes, so that they would need a weight each.
    """
    table = next((name for name in EMBEDDINGS if name in base), None)
    if table is None or not {table, HEAD} & changed.keys():
        return changed
    if HEAD in base and (base[HEAD].shape != base[table].shape or not torch.equal(base[HEAD], base[table])):
        return changed
    if not {table, HEAD} <= changed.keys() or not torch.equal(changed[table], changed[HEAD]):
        raise PumiceError(
            f"{where}: changes the embedding or the LM head, which share one weight in the base; folded into it, both "
            "would change. Train the adapter without embed_tokens and lm_head, or with peft's ensure_weight_tying"
        )
    return {name: value for name, value in changed.items() if name in base or name != HEAD}


def _find_base(folder: Path, given: Path | None) -> Path:
    if given is not None:
        found = _folder(str(given))
        if found is None:
            raise PumiceError(f"{given}: no such folder, expected the base model of {folder}")
    else:
        config = folder / lora.CONFIG
        named = read_section(config).values.get("base_model_name_or_path") if config.is_file() else None
        found = _folder(named) if isinstance(named, str) and named else None
        if found is None:
            why = f"its base {named!r} is no folder here, and nothing is fetched" if named else "it names no base"
            raise PumiceError(f"{folder}: only a part of a model; {why}: pass the base model's folder as base=")
    if is_partial(found):
        raise PumiceError(f"{found}: itself only a part of a model; base= takes a whole one")
    return found


def _folder(named: str) -> Path | None:
    """The folder of that name, or of a hub's model in the local cache."""
    path = Path(named).expanduser()
    if path.exists() or not HUB_ID.fullmatch(named):
        return path if path.is_dir() else None
    try:
        return cached(named)
    except PumiceError:
        return None


def _original(folder: Path) -> bool:
    """Whether a part brings the config.json of an original checkpoint, which then describes the whole model."""
    path = folder / "config.json"
    return path.is_file() and "mm_vision_tower" in read_section(path).values


def _base_weights(base: Path, alone: bool) -> dict[str, Tensor]:
    """The base's weights by own names; with ``alone`` it may be a language model and nothing else."""
    tensors = read_folder(base)
    if not alone or not all(name.startswith(PLAIN) or left_out(name) for name in tensors):
        return own_names(tensors, base)
    own = {to_own(name, "original"): value for name, value in tensors.items() if not left_out(name)}
    return {name: value for name, value in own.items() if name is not None}


def _tokens(folder: Path, base: Path) -> Path:
    """The part's folder where it has a tokenizer, and the chat template that llava-hf's form needs; else the base."""
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return base
    templated = any(folder.glob("chat_template.*")) or "chat_template" in read_section(path).values
    return folder if templated or _original(folder) else base


def _first(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)
