"""The tensors of a folder, by name, read where they lie.

    model.safetensors | model-00001-of-0000N.safetensors + index | pytorch_model*.bin ──> {name: tensor}

safetensors are mapped into memory: a tensor takes room only while it is used. Pickled files are read with torch's
restricted unpickler, which makes tensors and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pumice.types import PumiceError

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLES = ("model.safetensors", "pytorch_model.bin")


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights: those of its index, or the single one; safetensors before pickles.

    Raises:
        PumiceError: there are none, the index is damaged, or files that it names are missing (all are listed).
    """
    for index, single in zip(INDEXES, SINGLES, strict=True):
        if (folder / index).is_file():
            return _indexed(folder / index)
        if (folder / single).is_file():
            return [folder / single]
    raise PumiceError(f"{folder}: no weights; expected {', '.join((*SINGLES, *INDEXES))}")


def _indexed(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise PumiceError(f"{index}: not an index of weights ({error!r})") from None
    # A name with a folder in it could point anywhere on the disk.
    strange = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    missing = [name for name in names if name not in strange and not (index.parent / name).is_file()]
    if strange or missing:
        raise PumiceError(f"{index}: names files that aren't beside it: {', '.join(map(str, strange + missing))}")
    return [index.parent / name for name in names]


def read_file(path: Path, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """All tensors of one file by name; those of safetensors are backed by the file itself.

    With ``dtype`` the floating ones of another dtype are cast as they are read, one by one.

    Raises:
        PumiceError: the file is damaged, cut short, or holds something other than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                mapped = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return {name: _cast_from(path, name, value, dtype) for name, value in mapped.items()}
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError) as error:
        raise PumiceError(f"{path}: not readable ({' '.join(str(error).split())[:200]})") from None
    except Exception as error:  # the unpickler's own error class is private
        raise PumiceError(f"{path}: refused ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise PumiceError(f"{path}: holds a {type(found).__name__}, expected tensors by name")
    return {name: value.to(dtype) if _differs(value, dtype) else value for name, value in found.items()}


def _differs(value: Tensor, dtype: torch.dtype | None) -> bool:
    return dtype is not None and value.is_floating_point() and value.dtype != dtype


def _cast_from(path: Path, name: str, value: Tensor, dtype: torch.dtype | None) -> Tensor:
    """``value``, which hasn't been read yet, or where its dtype differs the cast of it.

    What is cast is mapped anew: that mapping goes with it, while pages of the file's own would stay in memory beside
    the cast tensors until the last of them is read.
    """
    if not _differs(value, dtype):
        return value
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name).to(dtype)


def read_folder(folder: Path, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """All tensors of a folder by name; ``dtype`` as in `read_file`.

    Raises:
        PumiceError: as `weight_files` and `read_file`, or a name that is in two files.
    """
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        found = read_file(path, dtype)
        twice = tensors.keys() & found.keys()
        if twice:
            raise PumiceError(f"{path}: tensors that another file holds too: {', '.join(sorted(twice)[:8])}")
        tensors |= found
    return tensors


def stored_dtype(folder: Path) -> str:
    """The floating dtype of most of a folder's numbers, as `pumice.load` names it; float32 for others.

    Raises:
        PumiceError: as `read_folder`.
    """
    sizes: dict[torch.dtype, int] = {}
    for value in read_folder(folder).values():
        if value.is_floating_point():
            sizes[value.dtype] = sizes.get(value.dtype, 0) + value.numel()
    most = max(sizes, key=sizes.__getitem__, default=torch.float32)
    return {torch.bfloat16: "bfloat16", torch.float16: "float16"}.get(most, "float32")
