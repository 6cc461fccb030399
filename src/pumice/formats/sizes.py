"""The sizes that a model's costs follow from: no weights, no names of tensors.

    Tower (tile, patches, blocks) ──Connector──> LanguageModel (blocks, vocabulary)
    Policy (pictures to tiles and tokens), VideoPolicy (frames to tokens)  ──> Model

Field names are those of the papers: width of the tower, hidden size of the language model, ffn the inner width of a
block's MLP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from pumice.types import PumiceError
from pumice.vision.frames import VideoPolicy
from pumice.vision.layout import Policy

TowerKind = Literal["clip", "siglip", "dinov2", "dinov3"]


@dataclass(frozen=True)
class Tower:
    """A vision transformer. ``layers`` are stored, the first ``used`` of them run: what follows reaches no output.

    ``taken`` blocks' features are put side by side for the connector. ``head`` (SigLIP's attention pooling) and
    ``final_norm`` say what is stored behind the blocks. ``registers`` are DINOv3's tokens beside CLS and patches.
    """

    kind: TowerKind
    width: int
    layers: int
    ffn: int
    tile: int
    patch: int
    used: int
    taken: int = 1
    head: bool = False
    final_norm: bool = True
    registers: int = 0

    @property
    def side(self) -> int:
        """Patches per side of a tile; pixels that fill no whole patch are not seen."""
        return self.tile // self.patch

    @property
    def sequence(self) -> int:
        """Tokens inside of the tower for one tile: its patches, CLS where the kind has one, registers."""
        return self.side**2 + (self.kind != "siglip") + self.registers


@dataclass(frozen=True)
class Connector:
    """``depth`` linear layers with activations between them; with ``norm`` an RMS norm follows."""

    depth: int = 2
    bias: bool = True
    norm: bool = False


class Block(NamedTuple):
    """One block of a language model: query heads, key-value heads, inner width of its gated MLP."""

    heads: int
    kv_heads: int
    ffn: int


@dataclass(frozen=True)
class LanguageModel:
    """A decoder with rotary positions, RMS norms and gated MLPs; only OpenELM's blocks differ from each other."""

    hidden: int
    head_dim: int
    vocab: int
    blocks: tuple[Block, ...]
    tied: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False


@dataclass(frozen=True)
class Model:
    """A visual assistant's sizes. ``newline`` is the learned vector that ends rows.

    ``video`` is None for a model that was never trained on videos. ``pool_first`` pools frames before the
    connector, which then sees fewer tokens (LLaVA-NeXT-Video).

    Raises:
        PumiceError: the layout's tiles or tokens don't fit the tower.
    """

    name: str
    tower: Tower
    connector: Connector
    lm: LanguageModel
    policy: Policy
    newline: bool = False
    video: VideoPolicy | None = None
    pool_first: bool = False

    def __post_init__(self) -> None:
        if self.policy.tile != self.tower.tile or self.tower.side % self.policy.side:
            raise PumiceError(
                f"{self.name}: a layout with tiles of {self.policy.tile} px and {self.policy.side} tokens a side; "
                f"the tower gives {self.tower.tile} px and {self.tower.side} patches, or a divisor of them"
            )

    @property
    def connector_inputs(self) -> int:
        """Channels that enter the connector: of every chosen block, of all patches that one token joins."""
        shuffle = self.tower.side // self.policy.side
        return self.tower.width * self.tower.taken * shuffle**2


def divisible(value: float, divisor: int) -> int:
    """The multiple of ``divisor`` nearest to ``value``, but not more than a tenth below it."""
    near = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return near if near >= 0.9 * value else near + divisor
