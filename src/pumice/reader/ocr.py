"""The OCR engine of the reader: RapidOCR with the models inside its package, so that nothing is fetched.

RGB picture ──detection, recognition (onnxruntime, CPU)──> [(box, text)]
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from pumice.reader.lines import Line
from pumice.types import PumiceError

if TYPE_CHECKING:
    from PIL import Image

Read = Callable[["Image.Image"], list[Line]]
"""RGB picture to its lines of text, in any order."""


def check_installed() -> None:
    """Raise PumiceError unless RapidOCR and onnxruntime can be imported; it takes a second."""
    try:
        import onnxruntime  # noqa: F401
        import rapidocr  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise PumiceError(f"reading text needs RapidOCR ({error}): pip install 'pumice[reader]'") from None


def rapid_ocr(threads: int | None = None) -> Read:
    """RapidOCR on ``threads`` threads of the CPU, by default as many as torch has; not for several threads at once.

    Its models are opened when the first picture is read.

    Raises:
        PumiceError: RapidOCR or onnxruntime isn't installed.
    """
    check_installed()
    import numpy as np
    import torch
    from rapidocr import RapidOCR  # pyright: ignore[reportMissingImports]

    @cache
    def engine() -> Any:
        setting = "EngineConfig.onnxruntime.intra_op_num_threads"
        return RapidOCR(params={"Global.log_level": "error", setting: threads or torch.get_num_threads()})

    def read(picture: Image.Image) -> list[Line]:
        found: Any = engine()(np.asarray(picture)[:, :, ::-1])  # RapidOCR takes BGR
        if found.boxes is None or not found.txts:
            return []
        lows, highs = found.boxes.min(axis=1).tolist(), found.boxes.max(axis=1).tolist()  # (N, 4, 2) to (N, 2)
        return [((*low, *high), text) for low, high, text in zip(lows, highs, found.txts, strict=True)]

    return read
