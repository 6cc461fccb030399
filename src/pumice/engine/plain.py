"""The language model as transformers runs it, over paths of segments: the oracle, and the fallback for any family."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pumice.engine.segments import Span, attend_paths
from pumice.model.assistant import AssistantModel
from pumice.model.attention import Kind


class PlainDecoder:
    """A `Decoder` of transformers' own layers."""

    def __init__(self, model: AssistantModel) -> None:
        self.model = model

    def forward(self, embedded: Tensor, positions: Tensor, spans: Sequence[Span]) -> Tensor:
        """As `Decoder.forward`."""
        output = self.model.lm.model(
            inputs_embeds=embedded[None].to(self.model.newline.dtype),
            position_ids=positions[None],
            use_cache=False,
            cache=_Paths(spans),
        )
        return output.last_hidden_state[0]

    def head(self, hidden: Tensor) -> Tensor:
        """As `Decoder.head`."""
        return self.model.head(hidden)


class _Paths:
    """What a layer's attention asks of its cache."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self.spans = spans

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, kind: Kind) -> Tensor:
        return attend_paths(layer, q, k, v, self.spans, kind)
