"""What a tower's blocks still know of objects: a linear probe over drawings, base and trained towers side by side.

    python benchmarks/object_probe.py                  # DINOv2 and the shipped pocket
    python benchmarks/object_probe.py runs/mine/delta.safetensors

Ridge regression from each block's mean and largest features to the class, on up to six training drawings a class; share
of up to two held-out drawings a class that it names. Some 88 drawings: a difference below ten points says little.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pumice.config import load_recipe
from pumice.data.render.assets import Asset, library
from pumice.model.build import build_model, load_tower
from pumice.model.towers import IMAGENET, Tower
from pumice.model.weights import apply_tensors, read_delta
from pumice.pocket.parts import RECIPE, WEIGHTS

BLOCKS = (3, 6, 9, 12)
LIMITS = {"train": 6, "heldout": 2}
RIDGE = 300.0


def draw(asset: Asset) -> Tensor:
    """(3, 224, 224): the drawing, up to 150 pixels, in the middle of a white picture."""
    cut = library().picture(asset)
    cut.thumbnail((150, 150))
    picture = Image.new("RGB", (224, 224), (255, 255, 255))
    picture.paste(cut, ((224 - cut.width) // 2, (224 - cut.height) // 2), cut)
    pixels = (np.asarray(picture, np.float32) / 255 - np.array(IMAGENET.mean)) / np.array(IMAGENET.std)
    return torch.tensor(pixels).permute(2, 0, 1).float()


@torch.no_grad()
def features(tower: Tower, tiles: Tensor) -> Tensor:
    """(N, blocks, 2 C)."""
    found = torch.cat([tower.eval()(part) for part in tiles.split(32)]).unflatten(-1, (len(BLOCKS), -1))
    return torch.cat([found.mean(1), found.amax(1)], -1)


def shares(tower: Tower, tiles: Tensor, classes: Tensor, trains: Tensor) -> list[float]:
    """The share of held-out drawings that each block's probe names."""
    every, wanted = features(tower, tiles), torch.nn.functional.one_hot(classes).float()
    found = []
    for number in range(len(BLOCKS)):
        x = every[:, number]
        x = (x - x[trains].mean(0)) / (x[trains].std(0) + 1e-5)
        known = x[trains]
        weights = torch.linalg.solve(known @ known.T + RIDGE * torch.eye(len(known)), wanted[trains])
        named = (x[~trains] @ known.T @ weights).argmax(-1)
        found.append(float((named == classes[~trains]).float().mean()))
    return found


def drawings() -> tuple[Tensor, Tensor, Tensor]:
    """Drawings (N, 3, 224, 224), their classes (N,), and which of them (N,) are to train on."""
    names = library().shown
    rows = [
        (split, name, a) for split, n in LIMITS.items() for name in names for a in library().assets[split][name][:n]
    ]
    classes = torch.tensor([names.index(name) for _, name, _ in rows])
    trains = torch.tensor([split == "train" for split, _, _ in rows])
    return torch.stack([draw(asset) for _, _, asset in rows]), classes, trains


def wide_tower() -> Tower:
    """DINOv2 with all BLOCKS side by side."""
    return load_tower(load_recipe(RECIPE, [f"model.tower.layers={list(BLOCKS)}"]).model.tower)


def show(label: str, found: list[float]) -> None:
    """A line of shares."""
    print(f"{label}: " + ", ".join(f"block {b} {share:.0%}" for b, share in zip(BLOCKS, found, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("deltas", nargs="*", type=Path, default=[WEIGHTS])
    options = parser.parse_args()
    tiles, classes, trains = drawings()
    print(
        f"{int(classes.max()) + 1} classes, {int(trains.sum())} drawings to train on, {int((~trains).sum())} held out"
    )
    show("DINOv2", shares(wide_tower(), tiles, classes, trains))
    for path in options.deltas:
        model = build_model(load_recipe(RECIPE).model)
        tensors, _ = read_delta(path)
        apply_tensors(model, {name: value for name, value in tensors.items() if name.startswith("tower.")})
        tower = wide_tower()
        tower.load_state_dict(model.tower.state_dict())
        show(str(path), shares(tower, tiles, classes, trains))


if __name__ == "__main__":
    main()
