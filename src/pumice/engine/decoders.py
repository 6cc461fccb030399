"""Which decoder a model gets: compiled kernels where they know it, else transformers' own layers."""

from __future__ import annotations

from typing import cast, get_args

import torch

from pumice.engine.lean import lean_decoder
from pumice.engine.lean_weights import Weights
from pumice.engine.plain import PlainDecoder
from pumice.engine.segments import Decoder
from pumice.model.assistant import AssistantModel
from pumice.types import PumiceError


def make_decoder(model: AssistantModel, weights: str) -> Decoder:
    """The fastest decoder that the model has; with ``weights`` "" for those that it has as they are.

    Raises:
        PumiceError: weights that it can't have.
    """
    if weights not in ("", *get_args(Weights)):
        raise PumiceError(f"weights {weights!r}; expected one of {', '.join(get_args(Weights))}")
    own = {torch.float32: "fp32", torch.bfloat16: "bf16"}.get(model.newline.dtype, "")
    decoder = lean_decoder(model, cast(Weights, weights or own)) if weights or own else None
    if decoder is None and weights not in ("", own):
        raise PumiceError(
            f"weights {weights!r} need a CPU, a language model of Llama's kind and Pumice's compiled kernels; "
            f"this model answers with its own ({own or model.newline.dtype})"
        )
    return decoder or PlainDecoder(model)
