"""A checkpoint as the two files that llama.cpp runs: the language model, and what sees.

    folder ──describe──> refused where llama.cpp would give other tokens
    weights by own names ──checked against transformers' classes──> q, k as llama.cpp turns them ──> model.gguf
                                                                └─> tower's blocks in use, connector ──> mmproj.gguf

The binary format and the names of weights are those of the `gguf` package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from pumice.chat_jinja import JinjaTemplate
from pumice.formats.describe import Description, describe
from pumice.formats.folders import new_folder
from pumice.formats.gguf_chat import llama_chat
from pumice.formats.gguf_file import Precision, Row, write
from pumice.formats.gguf_vocabulary import add_vocabulary, read_vocabulary
from pumice.formats.opening import by_part, find_template, open_tokenizer, own_names, some
from pumice.formats.shards import read_folder
from pumice.model import backbones
from pumice.templates import Template, get_template
from pumice.types import PumiceError

if TYPE_CHECKING:
    from gguf import GGUFWriter

MODEL, PROJECTOR = "model.gguf", "mmproj.gguf"
ARCHITECTURES = {"llama": "LLAMA", "mistral": "LLAMA", "qwen2": "QWEN2"}
"""llama.cpp's architecture, in `gguf.MODEL_ARCH`, by transformers' type of language model."""
TANH = {"quick_gelu": False, "gelu": True, "gelu_pytorch_tanh": True}
"""Activations of a CLIP tower: whether llama.cpp's is GELU (by tanh, whichever the tower was trained with)."""
SCALINGS = ("default", "linear")
"""Kinds of rotary positions."""
UNREAD = ("post_layernorm.", *backbones.BESIDE)
"""What a tower's files hold that features before the final norm don't need."""


def export_gguf(
    source: Path, out: Path, tower: Path | None = None, precision: Precision = "f16", template: str | None = None
) -> None:
    """Write model.gguf and mmproj.gguf of the checkpoint in ``source`` to the new folder ``out``.

    Matrices get ``precision``; vectors, and the tower's positions, stay fp32. q8_0 is for the language model: the
    other file is f16 then. ``tower`` is the folder of the tower where the checkpoint has none; ``template`` a name of
    pumice.templates.TEMPLATES, instead of the checkpoint's own conversation format.

    Tokens are those of `pumice.encode`, but for special tokens that a person types, which llama.cpp takes at their
    word. Pictures: llama.cpp makes them small before it pads them, and since May 2025 it runs CLIP with the class token
    behind the patches and all positions one off (its issue 25814). benchmarks/gguf_parity.py measures both.

    Raises:
        PumiceError: an unknown precision, ``out`` isn't empty, a model to which llama.cpp would show other tokens
            (the reason is given), a tokenizer that it doesn't know, weights that don't fit the config or the
            precision, no `gguf` package, or what `describe` and `read_folder` raise.
    """
    if precision not in get_args(Precision):
        raise PumiceError(f"unknown precision {precision!r}; known: {', '.join(get_args(Precision))}")
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise PumiceError("writing GGUF needs gguf: pip install 'pumice[gguf]'") from None
    description = describe(source)
    refusal = next((reason for wrong, reason in _refusals(description) if wrong), None)
    if refusal:
        raise PumiceError(f"{source}: not for llama.cpp: {refusal}")
    tokenizer = open_tokenizer(source)
    chat = get_template(template) if template else find_template(source, description, tokenizer)
    with new_folder(out) as folder:
        parts = by_part(_with_tower(own_names(read_folder(source), source), tower, source))
        try:
            write(folder / MODEL, *_language_model(description, parts["lm"], tokenizer, chat), precision)
            seeing = "f16" if precision == "q8_0" else precision
            write(folder / PROJECTOR, *_projector(description, parts["tower"], parts["connector"]), seeing)
        except PumiceError as error:
            raise PumiceError(f"{source}: {error}") from None


def _refusals(description: Description) -> Iterator[tuple[bool, str]]:
    """Where llama.cpp would run a model on other tokens or numbers than it was trained with: (whether, why).

    One padded view of CLIP is what llama.cpp does by itself. llava-hf's LLaVA-1.5 crops by transformers' default, but
    was trained on padded pictures: it passes, and pictures that aren't square are then padded.
    """
    sizes, policy = description.sizes, description.policy
    tiles = "it cuts pictures into tiles, for which llama.cpp has other tokens: no newlines, nothing un-padded"
    yield policy.mode == "anyres", f"{tiles} (2880 where LLaVA-NeXT has 2928)"
    yield policy.newline, "a newline token ends its pictures, which llama.cpp doesn't write"
    yield sizes.video is not None, "it is a model for videos, whose frames llama.cpp doesn't pool"
    yield sizes.tower.kind != "clip", f"its tower is {sizes.tower.kind}; llama.cpp pads with the colour of CLIP's mean"
    cropped = policy.mode != "pad" and description.form == "original"
    yield cropped, f"it was trained on pictures made square otherwise ({policy.mode}); llama.cpp pads them"
    two = sizes.connector.depth == 2 and sizes.connector.bias
    yield not two, "its connector isn't two linear layers with biases, which llama.cpp's projector is"
    ordered = sorted(set(description.layers)) == list(description.layers)
    yield not ordered, f"it takes the tower's blocks in the order {list(description.layers)}; llama.cpp's is rising"
    act = description.tower.get("hidden_act", "quick_gelu")
    yield act not in TANH, f"the tower's activation is {act}; llama.cpp knows {', '.join(TANH)}"
    lm = description.lm
    known = ", ".join(ARCHITECTURES)
    yield lm.model_type not in ARCHITECTURES, f"its language model is {lm.model_type}; known here: {known}"
    yield lm.hidden_act != "silu", f"its language model's activation is {lm.hidden_act}; llama.cpp's is silu"
    scaling = lm.rope_parameters.get("rope_type", "default")
    yield scaling not in SCALINGS, f"its rotary positions are scaled by {scaling}; known here: {', '.join(SCALINGS)}"


def _with_tower(weights: dict[str, Tensor], tower: Path | None, source: Path) -> dict[str, Tensor]:
    if any(name.startswith("tower.") for name in weights):
        return weights
    if tower is None:
        raise PumiceError(f"{source}: the checkpoint has no tower; pass its folder as tower=")
    found = {name.removeprefix("vision_model."): value for name, value in read_folder(tower).items()}
    return weights | {f"tower.model.{name}": value for name, value in found.items()}


def _language_model(
    description: Description, state: dict[str, Tensor], tokenizer: Any, template: Template | JinjaTemplate
) -> tuple[str, Callable[[GGUFWriter], None], list[Row]]:
    """(architecture, what writes the metadata, weights) of the language model."""
    import gguf
    from transformers import AutoModelForCausalLM

    lm = description.lm
    with torch.device("meta"):
        expected = AutoModelForCausalLM.from_config(lm).state_dict()
    if lm.tie_word_embeddings:  # llama.cpp takes the embeddings where there is no output layer
        expected.pop("lm_head.weight")
        state = {name: value for name, value in state.items() if name != "lm_head.weight"}
    _check("language model", expected, state)
    chat, vocabulary = llama_chat(template, tokenizer), read_vocabulary(tokenizer, lm.vocab_size)
    architecture = gguf.MODEL_ARCH[ARCHITECTURES[lm.model_type]]
    names = gguf.get_tensor_name_map(architecture, lm.num_hidden_layers)
    turned = architecture is gguf.MODEL_ARCH.LLAMA

    def heads(name: str) -> int:
        query, key = ".q_proj." in name, ".k_proj." in name
        return turned * (query * lm.num_attention_heads + key * lm.num_key_value_heads)

    def describe_to(writer: GGUFWriter) -> None:
        writer.add_type("model")
        _sizes(writer, lm)
        add_vocabulary(writer, vocabulary, tokenizer, template.stop)
        writer.add_chat_template(chat)

    rows = [Row(_name(names, name), state[name], heads(name)) for name in expected]
    return gguf.MODEL_ARCH_NAMES[architecture], describe_to, rows


def _sizes(writer: GGUFWriter, lm: Any) -> None:
    from gguf import RopeScalingType

    head = getattr(lm, "head_dim", None) or lm.hidden_size // lm.num_attention_heads
    rope = lm.rope_parameters
    # llama.cpp attends to everything: within a sliding window that is the same.
    window = getattr(lm, "sliding_window", None) or lm.max_position_embeddings
    writer.add_vocab_size(lm.vocab_size)
    writer.add_context_length(min(lm.max_position_embeddings, window))
    writer.add_embedding_length(lm.hidden_size)
    writer.add_block_count(lm.num_hidden_layers)
    writer.add_feed_forward_length(lm.intermediate_size)
    writer.add_head_count(lm.num_attention_heads)
    writer.add_head_count_kv(lm.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(lm.rms_norm_eps)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def _projector(
    description: Description, tower: dict[str, Tensor], connector: dict[str, Tensor]
) -> tuple[str, Callable[[GGUFWriter], None], list[Row]]:
    """(architecture, what writes the metadata, weights) of tower and connector."""
    import gguf
    from transformers import CLIPVisionModel

    fields, hidden = {"image_size": description.policy.tile}, description.lm.hidden_size
    config = backbones.settle(CLIPVisionModel, description.tower, description.layers, fields)
    with torch.device("meta"):
        seen = {n: v for n, v in CLIPVisionModel(config).state_dict().items() if not n.startswith(UNREAD)}
    state = {name.removeprefix("model."): value for name, value in tower.items()}
    used = {name: value for name, value in state.items() if _used(name, config.num_hidden_layers)}
    _check("tower", seen, used)
    width = config.hidden_size * len(description.layers)
    shapes = {"layers.0.weight": (hidden, width), "layers.2.weight": (hidden, hidden)}
    shapes |= {"layers.0.bias": (hidden,), "layers.2.bias": (hidden,)}
    _check("connector", {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, connector)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, config.num_hidden_layers)
    joint = gguf.TENSOR_NAMES[gguf.MODEL_TENSOR.V_MMPROJ]

    def describe_to(writer: GGUFWriter) -> None:
        writer.add_type("mmproj")
        _views(writer, description, config, hidden)

    rows = [Row(_name(names, f"vision_tower.vision_model.{name}"), used[name]) for name in seen]
    for name, value in connector.items():
        _, number, leaf = name.split(".")
        rows.append(Row(f"{joint.format(bid=number)}.{leaf}", value))
    return gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.MMPROJ], describe_to, rows


def _views(writer: GGUFWriter, description: Description, config: Any, hidden: int) -> None:
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("mlp")
    writer.add_vision_image_size(config.image_size)
    writer.add_vision_patch_size(config.patch_size)
    writer.add_vision_embedding_length(config.hidden_size)
    writer.add_vision_feed_forward_length(config.intermediate_size)
    writer.add_vision_head_count(config.num_attention_heads)
    writer.add_vision_attention_layernorm_eps(config.layer_norm_eps)
    writer.add_vision_projection_dim(hidden)
    writer.add_vision_use_gelu(TANH[config.hidden_act])
    writer.add_vision_image_mean(description.mean)
    writer.add_vision_image_std(description.std)
    # Without its own key, llama.cpp would stop one block before the last that is stored.
    writer.add_vision_block_count(config.num_hidden_layers)
    writer.add_array("clip.vision.feature_layer", list(description.layers))


def _used(name: str, blocks: int) -> bool:
    """Whether a tower's weight is needed; blocks after the last used and what stands beside the tower aren't."""
    stem, _, rest = name.partition("encoder.layers.")
    number = rest.partition(".")[0]
    if not stem and number.isdecimal():
        return int(number) < blocks
    return not name.startswith(UNREAD) and not name.endswith(".position_ids")


def _check(part: str, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Refuse weights that are missing, unknown or of another shape, all in one error."""
    other = [name for name in expected.keys() & found.keys() if expected[name].shape != found[name].shape]
    wrong = sorted(expected.keys() ^ found.keys()) + sorted(other)
    if wrong:
        raise PumiceError(f"weights of the {part} that are missing, unknown or of another shape: {some(wrong)}")


def _name(names: Any, name: str) -> str:
    found = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if found is None:
        raise PumiceError(f"weight {name}: llama.cpp has no place for it")
    return found
