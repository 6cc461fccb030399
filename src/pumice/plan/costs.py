"""Counts that follow from sizes alone: parameters, FLOPs, bytes.

    Model, picture (w, h), frames ──layout──> views, tokens ──> Costs

FLOPs are 2 per multiply-add of matrix products, convolutions and attention (scores, and their product with the values).
Not counted: norms, activations, softmax, biases, positions, the lookup of embeddings, resizing of pictures and maps.
"""

from __future__ import annotations

from dataclasses import dataclass

from pumice.formats.sizes import LanguageModel, Model, Tower
from pumice.types import Layout, PumiceError
from pumice.vision.frames import default_video, video_layout
from pumice.vision.layout import layout

DTYPE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
"""Bytes of one weight or of one cached number."""


@dataclass(frozen=True)
class Costs:
    """What one picture, one video, or both cost one model.

    layout, video  of the picture and of the video; None where there is none
    views         tiles and frames that go through the tower, the overview included
    unmerged      tokens of all views as the connector leaves them: before un-padding, scaling, pooling and newlines
    tokens        visual tokens that the language model gets
    *_parameters  stored weights; the newline vector is among the connector's
    tower_flops, connector_flops   of all views, through the blocks that run
    prefill_flops, prefill_2nt     of the visual tokens through the language model: counted, and as 2 * weights * tokens
    decode_flops  of the next token after the visual ones
    weight_bytes, kv_bytes_per_token, kv_bytes   in ``dtype``; kv_bytes is that of the visual tokens
    """

    model: Model
    dtype: str
    layout: Layout | None
    video: Layout | None
    views: int
    unmerged: int
    tokens: int
    tower_parameters: int
    connector_parameters: int
    lm_parameters: int
    tower_flops: int
    connector_flops: int
    prefill_flops: int
    prefill_2nt: int
    decode_flops: int
    weight_bytes: int
    kv_bytes_per_token: int
    kv_bytes: int

    @property
    def parameters(self) -> int:
        """Stored weights of the whole model."""
        return self.tower_parameters + self.connector_parameters + self.lm_parameters


def costs(model: Model, image: tuple[int, int] | None, frames: int, dtype: str) -> Costs:
    """Costs of a picture of (width, height) pixels, of a video of ``frames`` sampled frames, or of both in one prompt.

    A model that was never trained on videos gets frames as `vision.frames.default_video` lays them out.

    Raises:
        PumiceError: neither was given, or the picture has a side below 1.
    """
    if image is None and not frames:
        raise PumiceError("nothing to plan: give the picture's size, the frames of a video, or both")
    placed = layout(image, model.policy) if image else None
    video = _video(model, frames) if frames else None
    both = [part for part in (placed, video) if part]
    views, tokens = sum(part.views for part in both), sum(part.tokens for part in both)
    unmerged = views * model.policy.side**2
    connected = unmerged
    if video and model.pool_first:
        connected -= frames * (model.policy.side**2 - video.map[0] * video.map[1])
    in_tower, lm = tower_parameters(model.tower), lm_parameters(model.lm)
    in_connector = connector_parameters(model) + model.newline * model.lm.hidden
    per_token = kv_bytes_per_token(model.lm, dtype)
    return Costs(
        model=model, dtype=dtype, layout=placed, video=video, views=views, unmerged=unmerged, tokens=tokens,
        tower_parameters=in_tower, connector_parameters=in_connector, lm_parameters=lm,
        tower_flops=views * tower_flops(model.tower, model.tower.used),
        connector_flops=connected * connector_flops(model),
        prefill_flops=prefill_flops(model.lm, tokens), prefill_2nt=simple_flops(lm, tokens),
        decode_flops=decode_flops(model.lm, tokens + 1),
        weight_bytes=weight_bytes(in_tower + in_connector + lm, dtype),
        kv_bytes_per_token=per_token, kv_bytes=tokens * per_token,
    )  # fmt: skip


def _video(model: Model, frames: int) -> Layout:
    """The layout of a video; tokens don't depend on the size of its frames."""
    policy = model.video or default_video(model.policy)
    return video_layout(frames, (policy.tile, policy.tile), policy)


def filled(placed: Layout) -> float:
    """Share of the kept tokens' area that holds picture; the rest is canvas that takes tokens for nothing."""
    pixels = placed.tile / placed.side
    up, down, west, east = (n * pixels for n in placed.keep)
    x, y = placed.offset
    wide = min(east, x + placed.resized[0]) - max(west, x)
    high = min(down, y + placed.resized[1]) - max(up, y)
    return max(wide, 0.0) * max(high, 0.0) / ((east - west) * (down - up) or 1.0)


def tower_parameters(tower: Tower) -> int:
    """Stored weights of a tower, as transformers' CLIPVisionModel, SiglipVisionModel, Dinov2Model, DINOv3ViTModel."""
    C, F, patches, kind = tower.width, tower.ffn, tower.side**2, tower.kind
    norm, dino = 2 * C, kind in ("dinov2", "dinov3")
    biases = (3 if kind == "dinov3" else 4) * C + F + C  # DINOv3's keys have none
    # DINO scales both branches of a block by a vector each.
    block = 4 * C * C + 2 * C * F + biases + 2 * norm + dino * 2 * C
    patch = 3 * tower.patch**2 * C + (kind != "clip") * C
    # CLS; DINO's mask token, used in its training only
    vectors = {"clip": 1, "siglip": 0, "dinov2": 2, "dinov3": 2}[kind] + tower.registers
    positions = {"clip": patches + 1, "siglip": patches, "dinov2": patches + 1, "dinov3": 0}[kind]
    norms = (kind == "clip") + tower.final_norm  # CLIP has one before the blocks too
    head = C + 4 * (C * C + C) + norm + 2 * C * F + F + C  # a query, attention, a norm, an MLP
    return patch + (vectors + positions) * C + tower.layers * block + norms * norm + tower.head * head


def tower_flops(tower: Tower, blocks: int) -> int:
    """FLOPs of the first ``blocks`` blocks for one tile, patch embedding included."""
    C, n = tower.width, tower.sequence
    products = n * (4 * C * C + 2 * C * tower.ffn)
    attention = 2 * n * n * C
    return 2 * (tower.side**2 * 3 * tower.patch**2 * C + blocks * (products + attention))


def connector_parameters(model: Model) -> int:
    """Weights of the connector, without the newline vector."""
    H, connector = model.lm.hidden, model.connector
    return connector_matrices(model) + connector.bias * connector.depth * H + connector.norm * H


def connector_flops(model: Model) -> int:
    """FLOPs of the connector for one token."""
    return 2 * connector_matrices(model)


def connector_matrices(model: Model) -> int:
    """Entries of the connector's matrices: inputs x H, then H x H."""
    return model.lm.hidden * (model.connector_inputs + (model.connector.depth - 1) * model.lm.hidden)


def lm_parameters(lm: LanguageModel) -> int:
    """Stored weights of a language model; a head that is tied to the embeddings counts once."""
    H, d = lm.hidden, lm.head_dim
    total = lm.vocab * H * (1 if lm.tied else 2) + H
    for block in lm.blocks:
        biases = lm.qkv_bias * (block.heads + 2 * block.kv_heads) * d
        total += _block_matrices(lm, block) + biases + lm.qk_norm * 2 * d + 2 * H
    return total


def _block_matrices(lm: LanguageModel, block: tuple[int, int, int]) -> int:
    """Entries of a block's matrices: queries, keys, values, output; gate, up, down."""
    heads, kv_heads, ffn = block
    return lm.hidden * (lm.head_dim * 2 * (heads + kv_heads) + 3 * ffn)


def decode_flops(lm: LanguageModel, context: int) -> int:
    """FLOPs of one token that attends to ``context`` tokens, itself included, and through the LM head."""
    return _token_flops(lm) + context * _attention_flops(lm) + 2 * lm.vocab * lm.hidden


def prefill_flops(lm: LanguageModel, tokens: int) -> int:
    """FLOPs of ``tokens`` tokens under causal attention (the masked half isn't counted), the last through the LM head.

    Equals the sum of `decode_flops` over contexts 1 to ``tokens`` less the LM head of all but the last.
    """
    seen = tokens * (tokens + 1) // 2
    return tokens * _token_flops(lm) + seen * _attention_flops(lm) + 2 * lm.vocab * lm.hidden


def _token_flops(lm: LanguageModel) -> int:
    return 2 * sum(_block_matrices(lm, block) for block in lm.blocks)


def _attention_flops(lm: LanguageModel) -> int:
    """FLOPs of one query with one key, and of their score with one value, over all heads and blocks."""
    return 4 * lm.head_dim * sum(block.heads for block in lm.blocks)


def simple_flops(parameters: int, tokens: int) -> int:
    """The usual estimate 2 * N * T: every weight multiplies once a token; no attention scores."""
    return 2 * parameters * tokens


def weight_bytes(parameters: int, dtype: str) -> int:
    """Bytes of that many weights."""
    return parameters * DTYPE_BYTES[dtype]


def streamed_parameters(lm: LanguageModel) -> int:
    """Weights that are read for every decoded token: all but the embedding table, unless it is the head too."""
    return lm_parameters(lm) - (0 if lm.tied else lm.vocab * lm.hidden)


def kv_bytes_per_token(lm: LanguageModel, dtype: str) -> int:
    """Bytes of a token's keys and values over all blocks."""
    return 2 * lm.head_dim * sum(block.kv_heads for block in lm.blocks) * DTYPE_BYTES[dtype]
