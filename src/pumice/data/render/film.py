"""Frames to a video file in memory."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from PIL import Image

from pumice.types import PumiceError


def film(frames: Sequence[Image.Image], fps: int) -> bytes:
    """The frames as an MP4; MPEG-4 part 2, which every build of FFmpeg writes. The same frames give the same bytes.

    Raises:
        PumiceError: there is no frame.
    """
    import av

    if not frames:
        raise PumiceError("a video needs at least one frame")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as file:
        stream: Any = file.add_stream("mpeg4", rate=fps)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"qmin": "2", "qmax": "4"}
        for image in frames:
            file.mux(stream.encode(av.VideoFrame.from_image(image)))
        file.mux(stream.encode())
    return buffer.getvalue()
