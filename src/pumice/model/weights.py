"""Weights on disk: an assistant as a small delta over its pretrained parts.

    trained model ──pack_delta──> tower: int8 difference per row · connector, newline: 16 bit · LM: low-rank pairs
    pretrained parts + delta ──apply_delta──> the trained model

All of it is safetensors; keys are the model's own names with a suffix (.q and .scale, .a and .b).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pumice.types import PumiceError

FORMAT = "pumice-delta-1"
HEAD = "head."
"""Prefix of the reading head, which `apply_delta` leaves out."""


def quantise_rows(delta: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 a row: (q with delta's shape, scale (rows,) fp32) with delta ~ q * scale."""
    rows = delta.reshape(delta.shape[0], -1)
    scale = rows.abs().amax(dim=1).clamp(min=1e-12) / 127.0
    return (rows / scale[:, None]).round().to(torch.int8).view_as(delta), scale


def pack_delta(
    model: nn.Module, base_tower: nn.Module, pairs: Mapping[str, tuple[Tensor, Tensor]], head: nn.Module | None = None
) -> dict[str, Tensor]:
    """The delta of a trained model.

    ``base_tower`` is the pretrained tower; ``pairs`` are the language model's low-rank updates (see lora_pairs);
    ``head`` is the reading head, which only a later training run needs.
    """
    packed: dict[str, Tensor] = {}
    base = base_tower.state_dict()
    for name, value in model.get_submodule("tower").state_dict().items():
        delta = value.float().cpu() - base[name].float()
        if delta.dim() >= 2 and delta.numel() > 4096:
            packed[f"tower.{name}.q"], packed[f"tower.{name}.scale"] = quantise_rows(delta)
        else:
            packed[f"tower.{name}"] = value.to(torch.float16)
    for name, value in model.get_submodule("connector").state_dict().items():
        packed[f"connector.{name}"] = value.to(torch.float16)
    packed["newline"] = model.get_parameter("newline").detach().to(torch.float16)
    if head is not None:
        packed |= {f"{HEAD}{name}": value.to(torch.float16) for name, value in head.state_dict().items()}
    for path, (a, b) in pairs.items():
        packed[f"lm.{path}.a"], packed[f"lm.{path}.b"] = a.to(torch.bfloat16), b.to(torch.bfloat16)
    return {name: value.cpu().contiguous() for name, value in packed.items()}


def save_delta(packed: dict[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write the delta atomically."""
    scratch = path.with_suffix(".tmp")
    save_file(packed, scratch, metadata={"format": FORMAT, **metadata})
    scratch.replace(path)


def read_delta(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a delta file.

    Raises:
        PumiceError: not a delta.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise PumiceError(f"{path}: not readable as safetensors ({error})") from None
    if metadata.get("format") != FORMAT:
        raise PumiceError(f"{path}: format {metadata.get('format')!r}, expected {FORMAT}")
    return tensors, metadata


def lm_pairs(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """The language model's low-rank updates in a delta, as `lora_pairs` gives them."""
    found = [name for name in tensors if name.startswith("lm.") and name.endswith(".a")]
    paths = sorted(name.removeprefix("lm.").removesuffix(".a") for name in found)
    return {path: (tensors[f"lm.{path}.a"], tensors[f"lm.{path}.b"]) for path in paths}


def apply_delta(model: nn.Module, path: Path) -> dict[str, str]:
    """Turn a model of pretrained parts into the trained one, in place; returns the file's metadata.

    Raises:
        PumiceError: not a delta, or its tensors don't fit the model: every name is listed.
    """
    tensors, metadata = read_delta(path)
    try:
        apply_tensors(model, {name: value for name, value in tensors.items() if not name.startswith(HEAD)})
    except PumiceError as error:
        raise PumiceError(f"{path}: {error}") from None
    return metadata


@torch.no_grad()
def apply_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Add or copy the tensors of a delta into a model; where low-rank matrices stand beside a weight, into that weight.

    Raises:
        PumiceError: tensors that don't fit the model, all of them listed; the model is then unchanged.
    """
    state = {name.replace(".base_layer.", "."): value for name, value in model.state_dict().items()}
    wrong = [k for k, target, value in _targets(tensors) if target not in state or state[target].shape != value.shape]
    if wrong:
        raise PumiceError(f"tensors that don't fit the model: {', '.join(wrong)}")
    for name, target, value in _targets(tensors):
        if name.endswith((".q", ".b")):
            state[target].add_(value.to(state[target].dtype))
        else:
            state[target].copy_(value)


def _targets(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, str, Tensor]]:
    """(key, name of the model's tensor, value: a difference for .q and .b keys, else the tensor itself)."""
    for name, value in tensors.items():
        stem, _, suffix = name.rpartition(".")
        if suffix == "q":
            scale = tensors[f"{stem}.scale"].view(-1, *[1] * (value.dim() - 1))
            yield name, stem, value.float() * scale
        elif suffix == "b" and f"{stem}.a" in tensors:
            yield name, f"{stem}.weight", value.float() @ tensors[f"{stem}.a"].float()
        elif suffix not in ("scale", "a"):
            yield name, name, value
