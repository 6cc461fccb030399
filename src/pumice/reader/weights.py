"""The weights of the reader-assisted mode: a low-rank update of the language model, in 8 bits.

    a run's delta ──new_pairs──> {layer: (a, b)} ──save──> reader.safetensors ──add──> the language model's weights

Each row of a, and each column of b, has a scale of its own: they belong to one of the update's ranks, and ranks differ.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from pumice.model.weights import apply_tensors, lm_pairs, quantise_rows, read_delta, save_delta
from pumice.types import PumiceError

Pairs = Mapping[str, tuple[Tensor, Tensor]]
"""{module path: (a (r, in), b (out, r))}; the update is b @ a."""


def new_pairs(delta: Path, start: Path) -> Pairs:
    """What a run with ``start_folded`` trained: the ranks of its delta beyond those of its start's.

    Raises:
        PumiceError: either isn't a delta, or the run didn't begin from this start.
    """
    before, after = lm_pairs(read_delta(start)[0]), lm_pairs(read_delta(delta)[0])
    found = {}
    for path, (a, b) in after.items():
        ranks = before[path][0].shape[0] if path in before else 0
        if ranks >= a.shape[0] or (ranks and not torch.equal(a[:ranks], before[path][0])):
            raise PumiceError(f"{delta}: {path} isn't that of a run with start_folded from {start}")
        found[path] = a[ranks:], b[:, ranks:]
    return found


def save(pairs: Pairs, path: Path, metadata: Mapping[str, str]) -> None:
    """Write an update with its metadata, atomically."""
    packed: dict[str, Tensor] = {}
    for name, (a, b) in pairs.items():
        for part, value in (("a", a), ("b", b.t())):
            q, scale = quantise_rows(value.float())
            packed |= {f"lm.{name}.{part}.int8": q.contiguous(), f"lm.{name}.{part}.scale": scale.contiguous()}
    save_delta(packed, path, metadata)


def load(path: Path) -> dict[str, Tensor]:
    """An update as the tensors of a delta, ``lm.<layer>.a`` (r, in) and ``.b`` (out, r) fp32.

    Raises:
        PumiceError: it isn't one.
    """
    packed, _ = read_delta(path)
    if any(not name.endswith((".a.int8", ".a.scale", ".b.int8", ".b.scale")) for name in packed):
        raise PumiceError(f"{path}: not the weights of a reader-assisted mode")
    found = {}
    for name in (name.removesuffix(".int8") for name in packed if name.endswith(".int8")):
        value = packed[f"{name}.int8"].float() * packed[f"{name}.scale"][:, None]
        found[name] = value.t().contiguous() if name.endswith(".b") else value
    return found


def add(model: nn.Module, path: Path) -> None:
    """Add an update to the weights of the model that it was trained on, in place.

    Raises:
        PumiceError: it isn't one, or doesn't fit the model.
    """
    try:
        apply_tensors(model, load(path))
    except PumiceError as error:
        raise PumiceError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None


def main() -> None:
    """Write the update that a run over the shipped pocket trained, as the package ships it."""
    from pumice.pocket.parts import WEIGHTS

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run, which has come to its end")
    parser.add_argument("out", type=Path, metavar="FILE", help="such as src/pumice/pocket/weights/reader.safetensors")
    given = parser.parse_args()
    delta = given.run / "delta.safetensors"
    save(new_pairs(delta, WEIGHTS), given.out, {k: v for k, v in read_delta(delta)[1].items() if k != "format"})
    print(f"{given.out}: {given.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
