"""The weighted mean of several checkpoints of one ancestor (Wortsman et al. 2022: a soup).

    sources ──open_members──> Members, checked ──write_mean──> out: the mean in fp32, in the dtype of the first

A folder's weights are read and written one tensor at a time, so that memory doesn't grow with the model. What stands
beside the weights (config, tokenizer, processor, recipe) is the first member's.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pumice.config import load_recipe, resolved
from pumice.formats.alike import check_alike, check_related
from pumice.formats.folders import new_folder
from pumice.formats.members import Member, Module, Weight, open_member
from pumice.formats.shards import INDEXES, SINGLES
from pumice.model.weights import quantise_rows, read_delta, save_delta
from pumice.types import PumiceError

CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What safetensors calls a dtype."""
HEAVY = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
"""Endings of files with weights, which aren't copied."""


def merge(
    sources: Sequence[str],
    out: Path,
    weights: Sequence[float] | None = None,
    module: Module = "all",
    force: bool = False,
) -> list[str]:
    """Write the mean of ``sources`` to the new folder ``out``; returns what ``force`` let pass.

    ``sources`` are as in `open_member`; ``weights`` default to equal ones. Module tower averages the tower's weights
    alone and takes the others from the first.

    Raises:
        PumiceError: members that don't fit together (`check_alike`, `check_related`), impossible weights, or ``out``
            isn't empty or can't be written; nothing is left behind then.
    """
    shares = normalised(weights, len(sources))
    members, warnings = open_members(sources, module, force)
    write_mean(members, shares, out, module)
    return warnings


def open_members(sources: Sequence[str], module: Module, force: bool = False) -> tuple[list[Member], list[str]]:
    """(members that can be averaged, what ``force`` let pass). Raises as `merge`."""
    if len(sources) < 2:
        raise PumiceError(f"{len(sources)} checkpoint, expected at least two to average")
    members = [open_member(source) for source in sources]
    check_alike(members, module)
    return members, check_related(members, module, force)


def normalised(weights: Sequence[float] | None, count: int) -> list[float]:
    """``count`` weights with a sum of 1; None stands for equal ones.

    Raises:
        PumiceError: another number of weights, one that is negative or not finite, or nothing but zeros.
    """
    weights = [1.0] * count if weights is None else list(weights)
    listed = ", ".join(f"{weight:g}" for weight in weights)
    if len(weights) != count:
        raise PumiceError(f"{len(weights)} weights ({listed}) for {count} checkpoints; expected one each")
    if any(not math.isfinite(weight) or weight < 0 for weight in weights) or not sum(weights):
        raise PumiceError(f"weights {listed}; expected numbers of 0 or more, not all of them 0")
    return [weight / sum(weights) for weight in weights]


def write_mean(members: Sequence[Member], weights: Sequence[float], out: Path, module: Module = "all") -> None:
    """Write the mean of checked members to the new folder ``out``; ``weights`` sum to 1.

    Weights that are the same in all members that count stay the same to the bit.

    Raises:
        PumiceError: values that aren't finite, or ``out`` isn't empty or can't be written; nothing is left then.
    """
    counted = [(weight, member) for weight, member in zip(weights, members, strict=True) if weight > 0]
    note = " + ".join(f"{weight:.4g} {Path(member.source).name}" for weight, member in counted)
    with new_folder(out) as scratch:
        if members[0].recipe is not None:
            _write_delta(members[0], counted, scratch, module, note)
        else:
            _write_folder(members[0], counted, scratch, module, note)


Counted = Sequence[tuple[float, Member]]
"""Members with their weights, none of them 0."""


def weighted_mean(tensors: Iterable[Tensor], weights: Iterable[float]) -> Tensor:
    """sum of weight * tensor in fp32, one tensor after the other; where all are equal, the first itself."""
    first = total = None
    same = True
    for weight, tensor in zip(weights, tensors, strict=True):
        value = tensor.float()
        if first is None or total is None:
            first, total = value, value * weight
        else:
            same = same and torch.equal(first, value)
            total += value * weight
    if first is None or total is None:
        raise ValueError("no tensors, expected at least one")
    return first if same else total


def _mean(name: str, counted: Counted) -> Tensor:
    mean = weighted_mean((member.read(name) for _, member in counted), [weight for weight, _ in counted])
    if len(counted) > 1 and not mean.isfinite().all():
        bad = [member.source for _, member in counted if not member.read(name).isfinite().all()]
        raise PumiceError(f"{name}: values that aren't finite in {', '.join(bad) or 'the mean'}")
    return mean


# folders


def _write_folder(first: Member, counted: Counted, scratch: Path, module: Module, note: str) -> None:
    averaged = set(first.names(module))

    def value(own: str) -> Tensor:
        weight = first.weights[own]
        if own not in averaged or not weight.dtype.is_floating_point:
            return first.read(own)
        return _mean(own, counted).to(weight.dtype)

    files: dict[str, list[str]] = {}
    for own, weight in first.weights.items():
        files.setdefault(_safe_name(weight.file), []).append(own)
    for name, owns in files.items():
        write_tensors(
            scratch / name, {own: first.weights[own] for own in owns}, value, {"format": "pt", "merged": note}
        )
    if len(files) > 1:
        _write_index(scratch / INDEXES[0], files, first)
    for path in sorted(first.folder.iterdir()):
        # Subfolders aren't the model's: checkpoints of its training, caches.
        if path.is_file() and path.suffix not in HEAVY and path.name not in INDEXES and path.name[0] != ".":
            shutil.copyfile(path, scratch / path.name)


def _safe_name(file: Path) -> str:
    """A file's name, of a pickled one the name that safetensors have."""
    old, new = (Path(single).stem for single in reversed(SINGLES))
    return file.name if file.suffix == ".safetensors" else f"{new}{file.stem.removeprefix(old)}.safetensors"


def _write_index(path: Path, files: Mapping[str, Sequence[str]], first: Member) -> None:
    size = sum(_bytes(weight) for weight in first.weights.values())
    places = {first.weights[own].names[0]: file for file, owns in files.items() for own in owns}
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _bytes(weight: Weight) -> int:
    return weight.dtype.itemsize * math.prod(weight.shape)


def write_tensors(
    path: Path, weights: Mapping[str, Weight], value: Callable[[str], Tensor], metadata: Mapping[str, str]
) -> None:
    """A safetensors file, written one tensor at a time: ``value`` of each key of ``weights``, under its stored name.

    safetensors' own writer takes all tensors at once. The format is the header's length (8 bytes, little-endian), the
    header as JSON, and the tensors without gaps, the widest dtypes first so that all of them are aligned.
    """
    order = sorted(weights, key=lambda key: (-weights[key].dtype.itemsize, weights[key].names[0]))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for key in order:
        weight, begin = weights[key], end
        if weight.dtype not in CODES:
            raise PumiceError(f"{weight.file}: {weight.names[0]} is {weight.dtype}, which can't be written")
        end += _bytes(weight)
        described = {"dtype": CODES[weight.dtype], "shape": list(weight.shape), "data_offsets": [begin, end]}
        header[weight.names[0]] = described
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key in order:
            file.write(value(key).contiguous().reshape(-1).view(torch.uint8).numpy().data)


# deltas


def _write_delta(first: Member, counted: Counted, scratch: Path, module: Module, note: str) -> None:
    averaged, packed = set(first.names(module)), {}
    for name in first.weights:
        kept = counted if name in averaged else [(1.0, first)]
        packed |= _delta_mean(name, kept)
    assert first.recipe is not None  # how deltas are told from folders
    _, metadata = read_delta(next(iter(first.weights.values())).file)
    # Tensors that share the memory of one mapped file are refused by the writer.
    packed = {name: value.clone() for name, value in packed.items()}
    save_delta(packed, scratch / "delta.safetensors", {**metadata, "merged": note})
    (scratch / "recipe.toml").write_text(resolved(load_recipe(first.recipe)), encoding="utf-8")


def _delta_mean(name: str, counted: Counted) -> dict[str, Tensor]:
    """The mean of a weight as a delta stores it, by the names there."""
    member = counted[0][1]
    weight, stored = member.weights[name], member.stored(name)
    others = [other.stored(name) for _, other in counted[1:]]
    if all(len(a) == len(b) and all(map(torch.equal, a, b)) for a, b in ((stored, other) for other in others)):
        return dict(zip(weight.names, stored, strict=True))
    if weight.how == "pair":
        pairs = [stored, *others]
        return dict(zip(weight.names, _pair_mean(pairs, [share for share, _ in counted]), strict=True))
    mean = _mean(name, counted)
    values = quantise_rows(mean) if weight.how == "rows" else (mean.to(weight.dtype),)
    return dict(zip(weight.names, values, strict=True))


def _pair_mean(pairs: Sequence[tuple[Tensor, ...]], weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Low-rank matrices a (r, in), b (out, r) whose product is the mean of the pairs' products.

    The mean of the matrices themselves is another one. Side by side they give it, at the sum of their ranks; where
    that is more than the product can have, the product takes the place of one of them.
    """
    dtype, (width, height) = pairs[0][0].dtype, (pairs[0][0].shape[1], pairs[0][1].shape[0])
    a = torch.cat([pair[0].float() for pair in pairs])
    b = torch.cat([pair[1].float() * weight for pair, weight in zip(pairs, weights, strict=True)], dim=1)
    if len(a) > min(width, height):
        a, b = (b @ a, torch.eye(height)) if height <= width else (torch.eye(width), b @ a)
    return a.to(dtype), b.to(dtype)
