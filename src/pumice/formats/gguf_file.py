"""Tensors and metadata to one GGUF file, a tensor at a time.

[Row(name, value, heads)] ──turned, rounded──> the `gguf` package's writer
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from torch import Tensor

from pumice.types import PumiceError

if TYPE_CHECKING:
    from gguf import GGUFWriter

Precision = Literal["f32", "f16", "bf16", "q8_0"]


class Row(NamedTuple):
    """A tensor to write: llama.cpp's name, the source, the heads by which its rows are turned (0: as they are)."""

    name: str
    value: Tensor
    heads: int = 0


def write(
    path: Path, architecture: str, describe_to: Callable[[GGUFWriter], None], rows: Sequence[Row], precision: Precision
) -> None:
    """One file, a tensor at a time.

    There is no general.name: llama.cpp changes how it reads a vocabulary by what it finds in that.
    """
    from gguf import GGML_QUANT_SIZES, GGML_QUANT_VERSION, GGUFWriter, LlamaFileType

    kinds = {row.name: _kind(row, precision) for row in rows}
    writer = GGUFWriter(path, architecture)
    try:
        describe_to(writer)
        writer.add_quantization_version(GGML_QUANT_VERSION)
        writer.add_file_type(LlamaFileType["ALL_F32" if precision == "f32" else f"MOSTLY_{precision.upper()}"])
        for row in rows:
            block, size = GGML_QUANT_SIZES[kinds[row.name]]
            shape = tuple(row.value.shape)
            writer.add_tensor_info(
                row.name, shape, np.dtype(np.float32), row.value.numel() // block * size, kinds[row.name]
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for row in rows:
            writer.write_tensor_data(_values(row, kinds[row.name]))
    finally:
        writer.close()


def _kind(row: Row, precision: Precision) -> Any:
    """The type that a tensor is stored in."""
    from gguf import GGMLQuantizationType

    if row.value.dim() == 1 or row.name.startswith("v.position_embd"):
        return GGMLQuantizationType.F32
    # The convolution over patches has no bf16 in llama.cpp; rows that aren't whole blocks of 32 have no q8_0.
    if row.value.dim() > 2 and precision == "bf16":
        return GGMLQuantizationType.F32
    if precision == "q8_0" and row.value.shape[-1] % 32:
        return GGMLQuantizationType.F16
    return GGMLQuantizationType[precision.upper()]


def _values(row: Row, kind: Any) -> np.ndarray[Any, Any]:
    """The bytes of a tensor, turned if need be.

    In the architecture "llama", llama.cpp rotates channels 2i and 2i + 1 of a head together, transformers i and
    i + half.
    """
    from gguf import quants

    value = row.value.float()
    if row.heads:
        value = value.unflatten(0, (row.heads, 2, -1)).transpose(1, 2).reshape(value.shape)
    array = value.contiguous().numpy()
    with np.errstate(over="ignore"):
        found = quants.quantize(array, kind)
    if kind.name == "F16" and not np.isfinite(found).all():
        raise PumiceError(f"{row.name} has values beyond f16's range; write it as bf16 or f32")
    return found
