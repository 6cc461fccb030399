"""From the length and size of a video to its frames and tokens, in integers: nothing is decoded, torch isn't imported.

    frames, fps ──sample_indices──> F frames, (w, h) ──video_layout──> Layout (F views, pooled maps, newlines)

A video's Layout is read by the same code as a picture's: each sampled frame is one view of one tile. The facts are
those of LLaVA-OneVision, LLaVA-NeXT-Video and LLaVA-Video as their published code has them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from pumice.types import Layout, PoolMode, PumiceError
from pumice.vision.layout import Policy, checked_keys, layout

if TYPE_CHECKING:
    from collections.abc import Mapping

CHOICES = {
    "mode": ("square", "crop"),
    "pool": ("bilinear", "average", "max"),
    "newline": ("one_token", "grid", "frame", "no_token"),
}
UNPOOLED = 196  # tokens a frame that a model which never saw a video takes as they are: those of a frame in OneVision


@dataclass(frozen=True)
class VideoPolicy:
    """Which frames of a video are looked at, and how they become tokens. Plain data, as a Policy is.

    tile, side        S pixels and P tokens a side of one frame, P counted after the connector and before pooling
    frames            at most so many frames; more are spread evenly over the whole video (`linspace`)
    fps               frames a second of video while they are no more than `frames`
    force_sample      always `frames` frames, evenly spread: a shorter video repeats some
    mode              square: a frame is squashed to S x S · crop: shortest side to S, the centre cut out (CLIP's own)
    pool, stride      the map of a frame becomes smaller: bilinear to ceil(P / stride) a side, average and max to
                      floor(P / stride); stride 1 keeps it
    newline           one_token: one at the end of the video · grid: one a row · frame: one after each frame · no_token
    slow_every        every so many-th frame, the first included, is pooled by `stride`, those between by 2 * stride
                      (LLaVA-Video's slow and fast frames); 1 treats all alike, as every released checkpoint does
    time_instruction  a sentence after the video says when its frames are (`instruction`)

    Raises PumiceError when a value has the wrong type or range.
    """

    tile: int
    side: int
    frames: int = 32
    fps: float = 1.0
    force_sample: bool = False
    mode: str = "square"
    pool: PoolMode = "bilinear"
    stride: int = 2
    newline: str = "one_token"
    slow_every: int = 1
    time_instruction: bool = False

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise PumiceError(f"video policy: {name} = {value!r}; expected one of {', '.join(choices)}")
        for name in ("tile", "side", "frames", "stride", "slow_every"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise PumiceError(f"video policy: {name} = {value!r}; expected an integer of at least 1")
        if type(self.fps) not in (int, float) or not 0 < self.fps < float("inf"):
            raise PumiceError(f"video policy: fps = {self.fps!r}; expected a number above 0")
        for name in ("force_sample", "time_instruction"):
            if type(getattr(self, name)) is not bool:
                raise PumiceError(f"video policy: {name} = {getattr(self, name)!r}; expected true or false")
        widest = self.stride * (2 if self.slow_every > 1 else 1)
        try:
            pooled_side(self.side, self.pool, widest)
        except PumiceError as error:
            raise PumiceError(f"video policy: stride {self.stride}: {error}") from None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> VideoPolicy:
        """Policy from parsed TOML or JSON. Raises PumiceError naming an unknown or missing key."""
        return cls(**checked_keys(cls, data, "video policy"))

    def to_dict(self) -> dict[str, Any]:
        """Plain dict that `from_dict` and any TOML or JSON writer accept; every key is there."""
        return asdict(self)


def pooled_side(side: int, mode: PoolMode, stride: int) -> int:
    """Tokens Q per side of a map of P = ``side`` after `model.connectors.pool`.

    bilinear rounds P / stride up, average and max round it down.

    Raises:
        PumiceError: an unknown mode, a stride below 1, or nothing left.
    """
    if mode not in get_args(PoolMode):
        raise PumiceError(f"unknown pooling {mode!r}; known: {', '.join(get_args(PoolMode))}")
    most = side if mode != "bilinear" else None
    if stride < 1 or (most is not None and stride > most):
        limit = f" to {most}" if most is not None else ""
        raise PumiceError(f"{mode} pooling of {side} tokens a side: expected a stride from 1{limit}, found {stride}")
    return -(-side // stride) if mode == "bilinear" else side // stride


def sample_indices(frames: int, fps: float, policy: VideoPolicy) -> list[int]:
    """Indices, in rising order, of the frames to look at in a video of so many frames at `fps` a second.

    Source: `process_video_with_decord` of LLaVA-NeXT, which fails on videos below half a frame a second; here the step
    between frames is at least 1. Raises PumiceError for a video without frames or rate.
    """
    if frames < 1 or not 0 < fps < float("inf"):
        raise PumiceError(f"a video of {frames} frames at {fps:g} a second; expected both above 0")
    if _spread(frames, fps, policy):
        # int truncates, as in the originals' own call
        return np.linspace(0, frames - 1, policy.frames, dtype=int).tolist()
    return list(range(0, frames, _step(fps, policy)))


def sample_times(frames: int, fps: float, policy: VideoPolicy) -> list[float]:
    """Seconds of the sampled frames as the instruction names them.

    Frames that are a step apart are named as exactly 1 / policy.fps apart (29.97 a second count as 30), as in the
    originals.
    """
    indices = sample_indices(frames, fps, policy)
    rate = fps if _spread(frames, fps, policy) else _step(fps, policy) * policy.fps
    return [index / rate for index in indices]


def _step(fps: float, policy: VideoPolicy) -> int:
    return max(1, round(fps / policy.fps))


def _spread(frames: int, fps: float, policy: VideoPolicy) -> bool:
    """Whether frames are spread evenly over the whole video instead of being a step apart."""
    return policy.force_sample or len(range(0, frames, _step(fps, policy))) > policy.frames


def instruction(frames: int, fps: float, policy: VideoPolicy) -> str:
    """LLaVA-Video's sentences on the times of the sampled frames (its `add_time_instruction`), word for word."""
    seconds = sample_times(frames, fps, policy)
    places = ",".join(f"{second:.2f}s" for second in seconds)
    return (
        f"The video lasts for {frames / fps:.2f} seconds, and {len(seconds)} frames are uniformly sampled from it. "
        f"These frames are located at {places}.Please answer the following questions related to this video."
    )


def video_layout(frames: int, size: tuple[int, int], policy: VideoPolicy) -> Layout:
    """Views and tokens of `frames` sampled frames of (width, height) pixels.

    `tokens` = slow * Q * (Q + newline) + fast * Q' * (Q' + newline) + ends, where Q' is the side pooled by 2 * stride.
    Raises PumiceError for no frame or a side below 1.
    """
    if frames < 1:
        raise PumiceError(f"a video of {frames} frames; expected at least 1")
    one = layout(size, Policy(policy.mode, policy.tile, policy.side))
    side = pooled_side(policy.side, policy.pool, policy.stride)
    fast_side = pooled_side(policy.side, policy.pool, 2 * policy.stride) if policy.slow_every > 1 else 0
    slow = -(-frames // policy.slow_every)
    rows_end = policy.newline == "grid"
    ends = {"one_token": 1, "frame": frames}.get(policy.newline, 0)
    tokens = slow * side * (side + rows_end) + (frames - slow) * fast_side * (fast_side + rows_end) + ends
    return replace(
        one, map=(side, side), newline=rows_end, tokens=tokens, ends=ends, frames=frames, pool=policy.pool,
        stride=policy.stride, slow_every=policy.slow_every,
    )  # fmt: skip


def default_video(policy: Policy) -> VideoPolicy:
    """Frames for a model that has never seen a video: eight views, each ending in a newline if its pictures do."""
    stride = 1 if policy.side**2 <= UNPOOLED else 2
    newline = "frame" if policy.newline else "no_token"
    return VideoPolicy(policy.tile, policy.side, frames=8, stride=stride, newline=newline)


ONEVISION_VIDEO = VideoPolicy(tile=384, side=27)
"""LLaVA-OneVision: 196 tokens a frame and one at the end; 6273 for 32 frames."""

LLAVA_VIDEO_7B = VideoPolicy(
    tile=384, side=27, frames=64, force_sample=True, newline="grid", time_instruction=True
)  # fmt: skip
"""LLaVA-Video 7B: 13,440 tokens. Whether it was trained with bilinear or average pooling (11,648) isn't established."""

LLAVA_VIDEO_72B = replace(LLAVA_VIDEO_7B, frames=32)
"""LLaVA-Video 72B, as its training script has it: 6720 tokens."""

NEXT_VIDEO = VideoPolicy(
    tile=336, side=24, frames=32, force_sample=True, mode="crop", pool="average", newline="no_token"
)  # fmt: skip
"""LLaVA-NeXT-Video: 144 tokens a frame, pooled before the projector. The bound of 32 frames is this project's."""

VIDEO_PRESETS = {
    "ONEVISION_VIDEO": ONEVISION_VIDEO,
    "LLAVA_VIDEO_7B": LLAVA_VIDEO_7B,
    "LLAVA_VIDEO_72B": LLAVA_VIDEO_72B,
    "NEXT_VIDEO": NEXT_VIDEO,
}
"""Video policies by name."""
