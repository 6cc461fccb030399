"""OpenELM: a decoder whose layers grow wider towards the output, in the classes of transformers, which has none.

    ids (B, T) ─embedding─> x (B, T, H) ─layer 0─ ... ─layer L-1─> norm ─> hidden (B, T, H) ─tied head─> (B, T, V)
    a layer:  x + out_proj(attention(rotary(norm(q)), rotary(norm(k)), v))  ──>  x + proj_2(silu(gate) * up)

Mehta et al. 2024, "OpenELM: An Efficient Language Model Family with Open Training and Inference Framework", arXiv
2404.14619. Module names are those of the published checkpoints and config keys those of their config.json, so that both
load as they are. Importing this module registers the classes with AutoConfig and AutoModelForCausalLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

from pumice.types import PumiceError

EPSILON = 1e-6
"""Of every RMSNorm; no config.json names it."""

ALWAYS = {
    "activation_fn_name": "swish",
    "ffn_with_glu": True,
    "normalization_layer_name": "rms_norm",
    "normalize_qk_projections": True,
    "share_input_output_layers": True,
}
"""Config values that all published checkpoints share: this is the one architecture written here."""


def make_divisible(value: float, divisor: int) -> int:
    """The multiple of ``divisor`` nearest to ``value`` (halves go up), but never 0 nor below 90 % of ``value``."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def spread(ends: Sequence[float], layers: int) -> list[float]:
    """``layers`` multipliers, evenly from the first end to the second, rounded to 2 decimals as published.

    Raises:
        PumiceError: not two ends.
    """
    if len(ends) != 2:
        raise PumiceError(f"OpenELM config: multipliers {list(ends)}, expected two: the first and the last layer's")
    first, last = ends
    return [round(first + (last - first) * layer / max(layers - 1, 1), 2) for layer in range(layers)]


class OpenELMConfig(PreTrainedConfig):
    """The config.json of OpenELM; the defaults are those of the 270M model.

    ``num_query_heads`` and ``num_kv_heads`` have one number a layer. Where they are empty they follow from
    ``qkv_multipliers`` (first layer, last layer), ``head_dim`` and ``num_gqa_groups`` (query heads per kv head).
    ``ffn_multipliers`` has one number a layer, or two for the first and the last. ``max_context_length`` is the length
    of training; ``rope_max_length`` sized a table of the original code and bounds nothing here.

    Raises:
        PumiceError: a list of another length than the number of layers, query heads that kv heads don't divide, or
            an architecture that no published checkpoint has (see ``ALWAYS``).
    """

    model_type = "openelm"
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "model_dim",
        "num_hidden_layers": "num_transformer_layers",
        "num_attention_heads": "num_query_heads",
        "num_key_value_heads": "num_kv_heads",
        "max_position_embeddings": "max_context_length",
        "tie_word_embeddings": "share_input_output_layers",
    }

    vocab_size: int = 32000
    max_context_length: int = 2048
    model_dim: int = 1280
    num_transformer_layers: int = 16
    head_dim: int = 64
    num_gqa_groups: int = 4
    qkv_multipliers: Sequence[float] = (0.5, 1.0)
    num_query_heads: Sequence[int] = ()
    num_kv_heads: Sequence[int] = ()
    ffn_multipliers: Sequence[float] = (0.5, 4.0)
    ffn_dim_divisor: int = 256
    activation_fn_name: str = "swish"
    ffn_with_glu: bool = True
    normalization_layer_name: str = "rms_norm"
    normalize_qk_projections: bool = True
    share_input_output_layers: bool = True
    rope_freq_constant: int = 10000
    rope_max_length: int = 4096
    initializer_range: float = 0.02
    use_cache: bool = True
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2

    def __post_init__(self, **kwargs: Any) -> None:
        for alias in self.attribute_map.keys() & kwargs.keys():  # before the lists are derived from what they set
            setattr(self, alias, kwargs.pop(alias))
        layers = self.num_transformer_layers
        unit = self.head_dim * self.num_gqa_groups
        widths = [make_divisible(m * self.model_dim, unit) for m in spread(self.qkv_multipliers, layers)]
        self.num_query_heads = list(self.num_query_heads) or [width // self.head_dim for width in widths]
        self.num_kv_heads = list(self.num_kv_heads) or [n // self.num_gqa_groups for n in self.num_query_heads]
        given = self.ffn_multipliers
        self.ffn_multipliers = spread(given, layers) if len(given) == 2 else list(given)
        self.qkv_multipliers = list(self.qkv_multipliers)
        self._check()
        super().__post_init__(**kwargs)

    def _check(self) -> None:
        for name, expected in ALWAYS.items():
            if (found := getattr(self, name)) != expected:
                raise PumiceError(f"OpenELM config: {name} is {found!r}; only {expected!r} is implemented")
        for name in ("num_query_heads", "num_kv_heads", "ffn_multipliers"):
            if (found := len(getattr(self, name))) != self.num_transformer_layers:
                raise PumiceError(
                    f"OpenELM config: {name} has {found} numbers, expected one for each of the "
                    f"{self.num_transformer_layers} layers"
                )
        for layer, (heads, shared) in enumerate(zip(self.num_query_heads, self.num_kv_heads, strict=True)):
            if shared < 1 or heads % shared:
                raise PumiceError(
                    f"OpenELM config: layer {layer} has {heads} query heads and {shared} kv heads; "
                    "expected a multiple of the kv heads"
                )

    @property
    def ffn_dims(self) -> list[int]:
        """Width of each layer's feed-forward network."""
        return [make_divisible(m * self.model_dim, self.ffn_dim_divisor) for m in self.ffn_multipliers]


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension (Zhang and Sennrich 2019), in fp32.

    torch's own refuses its fast path, with a warning, where autocast gives a 16-bit input to a fp32 weight.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to the same shape."""
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPSILON)).type_as(x)


def rotary_angles(positions: Tensor, width: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines (B, 1, T, width / 2) fp32 of positions (B, T): Su et al. 2021, RoFormer, equation 15."""
    steps = torch.arange(0, width, 2, dtype=torch.float32, device=positions.device)
    angles = positions[:, None, :, None].float() * base ** (-steps / width)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[j], x[j + d/2]) of x (B, heads, T, d) by its angle, in fp32."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class OpenELMAttention(nn.Module):
    """Grouped-query attention with normalised queries and keys. transformers' functions read its plain attributes."""

    def __init__(self, config: OpenELMConfig, layer: int) -> None:
        super().__init__()
        heads, shared = config.num_query_heads[layer], config.num_kv_heads[layer]
        self.config, self.layer_idx = config, layer
        self.parts = (heads, shared, shared)
        self.num_key_value_groups = heads // shared
        self.is_causal = True
        self.qkv_proj = nn.Linear(config.model_dim, sum(self.parts) * config.head_dim, bias=False)
        self.q_norm = RMSNorm(config.head_dim)
        self.k_norm = RMSNorm(config.head_dim)
        self.out_proj = nn.Linear(heads * config.head_dim, config.model_dim, bias=False)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None, **kwargs: Any) -> Tensor:
        """(B, T, H) to (B, T, H)."""
        batch, tokens, _ = x.shape
        qkv = self.qkv_proj(x).view(batch, tokens, sum(self.parts), self.config.head_dim).transpose(1, 2)
        q, k, v = qkv.split(self.parts, dim=1)
        q, k = rotate(self.q_norm(q), *rotary).type_as(v), rotate(self.k_norm(k), *rotary).type_as(v)
        # transformers looks for this very call in the source before it lets anyone change the implementation.
        implementation = str(self.config._attn_implementation)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        out, _ = attend(self, q, k, v, mask, scaling=self.config.head_dim**-0.5, dropout=0.0, **kwargs)
        return self.out_proj(out.reshape(batch, tokens, -1))


class OpenELMFeedForward(nn.Module):
    """SwiGLU (Shazeer 2020) with gate and up projection in one matrix, the gate's rows first."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj_1 = nn.Linear(width, 2 * inner, bias=False)
        self.proj_2 = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, H) to (B, T, H)."""
        gate, up = self.proj_1(x).chunk(2, dim=-1)
        return self.proj_2(F.silu(gate) * up)


class OpenELMLayer(GradientCheckpointingLayer):
    """One pre-norm decoder layer."""

    def __init__(self, config: OpenELMConfig, layer: int) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(config.model_dim)
        self.attn = OpenELMAttention(config, layer)
        self.ffn_norm = RMSNorm(config.model_dim)
        self.ffn = OpenELMFeedForward(config.model_dim, config.ffn_dims[layer])

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None, **kwargs: Any) -> Tensor:
        """(B, T, H) to (B, T, H)."""
        x = x + self.attn(self.attn_norm(x), rotary, mask, **kwargs)
        return x + self.ffn(self.ffn_norm(x))


class OpenELMPreTrainedModel(PreTrainedModel):
    """What both models tell transformers about loading."""

    config_class = OpenELMConfig
    config: OpenELMConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _input_embed_layer = "token_embeddings"
    _supports_sdpa = True
    _supports_attention_backend = True


class OpenELMModel(OpenELMPreTrainedModel):
    """The decoder without its head."""

    def __init__(self, config: OpenELMConfig) -> None:
        super().__init__(config)
        self.token_embeddings = nn.Embedding(config.vocab_size, config.model_dim)
        self.layers = nn.ModuleList(OpenELMLayer(config, layer) for layer in range(config.num_transformer_layers))
        self.norm = RMSNorm(config.model_dim)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool = False,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """Last hidden states (B, T, H) of ``input_ids`` (B, T) or ``inputs_embeds`` (B, T, H).

        ``position_ids`` (B, T) count from 0 where they are not given. The other keyword arguments reach the attention
        function: ``starts`` or ``cache`` of "pumice".

        Raises:
            PumiceError: both or none of ids and embeddings, or a cache of transformers' kind.
        """
        if use_cache:
            raise PumiceError("OpenELM keeps no cache of its own; decode with cache= and the 'pumice' attention")
        if (input_ids is None) == (inputs_embeds is None):
            raise PumiceError("OpenELM takes either input_ids or inputs_embeds")
        x = self.token_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if position_ids is None:
            position_ids = torch.arange(x.shape[1], device=x.device)[None]
        mask = create_causal_mask(self.config, x, attention_mask, past_key_values=None, position_ids=position_ids)
        rotary = rotary_angles(position_ids, self.config.head_dim, self.config.rope_freq_constant)
        for layer in self.layers:
            x = layer(x, rotary, mask, **kwargs)
        return BaseModelOutput(last_hidden_state=self.norm(x))


class OpenELMForCausalLM(OpenELMPreTrainedModel):
    """The language model; its head is the embedding table."""

    _tied_weights_keys = {"lm_head.weight": "transformer.token_embeddings.weight"}  # noqa: RUF012

    def __init__(self, config: OpenELMConfig) -> None:
        super().__init__(config)
        self.transformer = OpenELMModel(config)
        self.lm_head = nn.Linear(config.model_dim, config.vocab_size, bias=False)
        self.post_init()

    @property
    def model(self) -> OpenELMModel:
        """The decoder, under the name that other language models of transformers give it."""
        return self.transformer

    def forward(self, input_ids: Tensor | None = None, **kwargs: Any) -> CausalLMOutput:
        """Logits (B, T, V); arguments as for `OpenELMModel.forward`."""
        return CausalLMOutput(logits=self.lm_head(self.transformer(input_ids, **kwargs).last_hidden_state))


# exist_ok: a later transformers may bring classes of this name; these stay in charge.
AutoConfig.register(OpenELMConfig.model_type, OpenELMConfig, exist_ok=True)
AutoModelForCausalLM.register(OpenELMConfig, OpenELMForCausalLM, exist_ok=True)
