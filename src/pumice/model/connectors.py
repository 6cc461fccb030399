"""Connectors: a tower's patch features to the language model's width.

(N, side^2, C) ──space-to-depth (shuffle)──> (N, (side/s)^2, s*s*C) ──MLP, RMS norm──> (N, P^2, H)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pumice.types import PumiceError


def space_to_depth(features: Tensor, factor: int) -> Tensor:
    """(N, side^2, C) to (N, (side/factor)^2, factor^2 * C): each token keeps its neighbours' channels, row by row."""
    if factor == 1:
        return features
    n, patches, c = features.shape
    side = int(patches**0.5)
    if side * side != patches or side % factor:
        raise PumiceError(f"space-to-depth by {factor} needs a square of patches divisible by it, found {patches}")
    p = side // factor
    blocks = features.view(n, p, factor, p, factor, c).permute(0, 1, 3, 2, 4, 5)
    return blocks.reshape(n, p * p, factor * factor * c)


class MlpConnector(nn.Module):
    """Space-to-depth, then ``depth`` linear layers with GELU between them (LLaVA-1.5's mlp2x_gelu at depth 2).

    With ``norm`` an RMS norm follows: visual tokens then stay about as long as word embeddings, however large the
    features that they come from.
    """

    def __init__(self, width: int, hidden: int, shuffle: int = 1, depth: int = 2, norm: bool = False) -> None:
        super().__init__()
        self.shuffle = shuffle
        layers: list[nn.Module] = [nn.Linear(width * shuffle**2, hidden)]
        for _ in range(depth - 1):
            layers += [nn.GELU(), nn.Linear(hidden, hidden)]
        self.layers = nn.Sequential(*layers)
        self.norm = nn.RMSNorm(hidden, eps=1e-6) if norm else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        """(N, side^2, C) to (N, P^2, H)."""
        return self.norm(self.layers(space_to_depth(features, self.shuffle)))


CONNECTORS: dict[str, type[MlpConnector]] = {"mlp": MlpConnector}


def init_connector(connector: MlpConnector, scale: float, seed: int) -> None:
    """Seeded initialisation whose outputs start at about the size of word embeddings (``scale`` per entry)."""
    generator = torch.Generator().manual_seed(seed)
    linears = [module for module in connector.modules() if isinstance(module, nn.Linear)]
    with torch.no_grad():
        for linear in linears:
            linear.weight.normal_(0.0, linear.in_features**-0.5, generator=generator)
            linear.bias.zero_()
        if isinstance(connector.norm, nn.RMSNorm):
            connector.norm.weight.fill_(scale)
        else:
            linears[-1].weight.mul_(scale)
