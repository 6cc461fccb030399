"""Connectors: a tower's patch features to the language model's width.

(N, side^2, C) ──space-to-depth (shuffle)──> (N, (side/s)^2, s*s*C) ──MLP, RMS norm──> (N, P^2, H) ──pool──> (N, Q^2, H)

Frames of a video are pooled: after the connector (LLaVA-OneVision), or before it (LLaVA-NeXT-Video), where `pool` takes
the tower's features. Pictures of the same model aren't, so that pooling isn't a part of the connector.
"""

from __future__ import annotations

from math import isqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pumice.types import PoolMode, PumiceError
from pumice.vision.frames import pooled_side


def space_to_depth(features: Tensor, factor: int) -> Tensor:
    """(N, side^2, C) to (N, (side/factor)^2, factor^2 * C): each token keeps its neighbours' channels, row by row.

    Raises:
        PumiceError: not a square of patches that ``factor`` divides.
    """
    if factor == 1:
        return features
    n, patches, c = features.shape
    side = isqrt(patches)
    if side * side != patches or side % factor:
        raise PumiceError(f"space-to-depth by {factor} needs a square of patches divisible by it, found {patches}")
    p = side // factor
    blocks = features.view(n, p, factor, p, factor, c).permute(0, 1, 3, 2, 4, 5)
    return blocks.reshape(n, p * p, factor * factor * c)


class MlpConnector(nn.Module):
    """Space-to-depth, then ``depth`` linear layers with exact GELU between them.

    Depth 1 is LLaVA's ``linear`` projector, depth 2 the ``mlp2x_gelu`` of LLaVA-1.5, NeXT, OneVision and ELVA.
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


def pool(views: Tensor, mode: PoolMode, stride: int) -> Tensor:
    """Views (N, P^2, H) to (N, Q^2, H), Q = `pooled_side`; H may be the tower's channels as well.

    bilinear is LLaVA-OneVision's for video (27 to 14: corners not aligned, no antialias), average that of
    LLaVA-NeXT-Video (24 to 12); average and max drop the last rows and columns that don't fill a window.

    Raises:
        PumiceError: as `pooled_side`, or views that aren't square.
    """
    n, tokens, width = views.shape
    side = isqrt(tokens)
    if side * side != tokens:
        raise PumiceError(f"pooling needs a square of tokens, found {tokens}")
    pooled = pooled_side(side, mode, stride)
    if stride == 1:
        return views
    maps = views.transpose(1, 2).view(n, width, side, side)
    if mode == "bilinear":
        maps = F.interpolate(maps, size=(pooled, pooled), mode="bilinear", align_corners=False)
    else:
        maps = (F.avg_pool2d if mode == "average" else F.max_pool2d)(maps, stride)
    return maps.flatten(2).transpose(1, 2)


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
