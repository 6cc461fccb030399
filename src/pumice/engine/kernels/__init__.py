"""The compiled blocks of kernels.cpp, through ctypes: a library beside this file, where there was a compiler.

Structures mirror types.h, field by field. All tensors are fp32 and contiguous unless a kind says otherwise.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, byref, c_float, c_int, c_int32, c_int64, c_void_p
from enum import IntEnum
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor


class Kind(IntEnum):
    """What numbers are kept as."""

    FP32 = 0
    BF16 = 1
    FP16 = 2
    INT8 = 3
    INT4 = 4
    INT6 = 5


KINDS = {torch.float32: Kind.FP32, torch.bfloat16: Kind.BF16, torch.float16: Kind.FP16}


class MatrixStruct(Structure):
    _fields_ = (
        ("data", c_void_p), ("scales", c_void_p), ("bias", c_void_p),
        ("rows", c_int32), ("cols", c_int32), ("kind", c_int32), ("unused", c_int32),
    )  # fmt: skip


class LayerStruct(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("before", "after", "q_norm", "k_norm")),
        *((name, MatrixStruct) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        ("rope", c_int32), ("window", c_int32),
    )  # fmt: skip


class ModelStruct(Structure):
    _fields_ = (
        ("layers", POINTER(LayerStruct)), ("norm", c_void_p),
        *((name, c_int32) for name in ("count", "hidden", "heads", "kv", "width", "inner")),
        ("eps", c_float), ("scale", c_float),
    )  # fmt: skip


class BatchStruct(Structure):
    _fields_ = (
        *((name, c_int32) for name in ("rows", "task_count", "slot_count", "unused")),
        *(
            (name, c_void_p)
            for name in (
                "positions", "segment", "place", "cosine", "sine",
                "segments", "tasks", "chunks", "task_rows", "slot_starts", "slots",
            )
        ),
    )  # fmt: skip


class Kernels:
    """The functions of a built kernels.cpp; ``level`` 0 is any processor, 1 AVX2, 2 AVX-512 VNNI."""

    def __init__(self, file: Path) -> None:
        library = ctypes.CDLL(str(file))
        self._forward, self._attend = library.pumice_forward, library.pumice_attend
        self._linear, self._pages = library.pumice_linear, library.pumice_large_pages
        self._level = library.pumice_level
        self._forward.argtypes = (POINTER(ModelStruct), POINTER(BatchStruct), c_void_p, c_int, c_int)
        self._attend.argtypes = (
            POINTER(ModelStruct), c_int, POINTER(BatchStruct), c_void_p, c_void_p, c_void_p, c_int64, c_int
        )  # fmt: skip
        self._linear.argtypes = (POINTER(MatrixStruct), c_void_p, c_int, c_void_p, c_int, c_int)
        self._pages.argtypes = (c_void_p, c_int64)
        for function in (self._forward, self._attend, self._linear, self._pages):
            function.restype = None
        self.level = self.use_level(2)

    def use_level(self, most: int) -> int:
        """Use the best instruction set that is at most ``most``; returns which, for all decoders of the process."""
        self.level = int(self._level(most))
        return self.level

    def forward(self, model: ModelStruct, batch: BatchStruct, hidden: Tensor, panels: bool = False) -> None:
        """Embeddings (T, H) to last hidden states after the final norm, in place; ``panels`` as `linear`."""
        self._forward(byref(model), byref(batch), hidden.data_ptr(), panels, torch.get_num_threads())

    def attend(self, model: ModelStruct, layer: int, batch: BatchStruct, qkv: Tensor) -> None:
        """Queries, keys and values (T, (heads + 2 kv) d) of new tokens: stores the latter, answers in the queries."""
        q, size = qkv.data_ptr(), qkv.element_size()
        k = q + model.heads * model.width * size
        v = k + model.kv * model.width * size
        self._attend(byref(model), layer, byref(batch), q, k, v, qkv.shape[1], torch.get_num_threads())

    def linear(self, matrix: MatrixStruct, x: Tensor, panels: bool = False) -> Tensor:
        """x (T, cols) to (T, rows); with ``panels`` fp32 and bf16 weights are multiplied as panels.h says."""
        out = x.new_empty(x.shape[0], matrix.rows)
        self._linear(byref(matrix), x.data_ptr(), x.shape[0], out.data_ptr(), panels, torch.get_num_threads())
        return out

    def large_pages(self, data: Tensor) -> None:
        """Ask for large pages behind a tensor that nothing has been written to yet."""
        self._pages(data.data_ptr(), data.numel() * data.element_size())


@cache
def load_kernels() -> Kernels | None:
    """The compiled kernels, or None where the package was built without a compiler."""
    for suffix in EXTENSION_SUFFIXES:
        file = Path(__file__).with_name("_kernels" + suffix)
        if file.is_file():
            try:
                return Kernels(file)
            except (OSError, AttributeError):  # built for another system or from another version
                return None
    return None
