"""Whether features know where in a tile they are: a linear map from each patch's features to its row and column.

    python -m benchmarks.position_probe --pictures 60

Fitted by ridge regression on two thirds of the pictures (charts and drawings of the training split, each resized to one
tile), measured on the others: R2, and the mean error in patches of the tile's 16, of what the reading tower gives and
of what the connector makes of it for the language model.
"""

from __future__ import annotations

import argparse
import random

import numpy as np
import torch
from torch import Tensor

from pumice.data.rendered import renderer
from pumice.model.assistant import AssistantModel
from pumice.pocket.model import load_pocket


def features(model: AssistantModel, count: int) -> tuple[Tensor, Tensor]:
    """What tower and connector give for the patches of ``count`` pictures: (count, patches, width) each."""
    side, pixels = model.tower.tile, model.tower.pixels
    mean, std = (torch.tensor(value)[:, None, None] for value in (pixels.mean, pixels.std))
    towers, connectors = [], []
    for i in range(count):
        drawn = renderer(("charts", "objects")[i % 2])(random.Random(f"probe {i}"), "train").image
        picture = np.array(drawn.convert("RGB").resize((side, side)))
        tile = ((torch.from_numpy(picture).permute(2, 0, 1) / 255 - mean) / std)[None]
        with torch.inference_mode():
            seen = model.tower(tile)
            towers.append(seen.flatten(0, -2))
            connectors.append(model.connector(seen).flatten(0, -2))
    return torch.stack(towers), torch.stack(connectors)


def probe(found: Tensor) -> tuple[Tensor, Tensor]:
    """(R2, mean error in patches) of rows and columns on the last third of the pictures."""
    count, patches, width = found.shape
    side, cut = round(patches**0.5), 2 * count // 3
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side)).double()
    x = torch.cat([found.double(), torch.ones(count, patches, 1)], 2)
    x[..., :width] -= x[:cut, :, :width].mean((0, 1))
    x[..., :width] /= x[:cut, :, :width].std((0, 1)) + 1e-6
    known, rest = x[:cut].flatten(0, 1), x[cut:].flatten(0, 1)
    weights = torch.linalg.solve(known.T @ known + 10 * torch.eye(width + 1), known.T @ places.repeat(cut, 1))
    wrong = rest @ weights - places.repeat(count - cut, 1)
    return 1 - wrong.square().mean(0) / places.var(0), wrong.abs().mean(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=60)
    model = load_pocket(torch.float32, torch.device("cpu")).model
    print("| features | R2 of row, column | mean error in patches |\n|---|---|---|")
    for name, found in zip(("tower", "connector"), features(model, parser.parse_args().pictures), strict=True):
        r2, error = probe(found)
        print(f"| {name} | {r2[0]:.2f}, {r2[1]:.2f} | {error[0]:.1f}, {error[1]:.1f} |")


if __name__ == "__main__":
    main()
