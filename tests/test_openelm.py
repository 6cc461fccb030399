"""OpenELM: sizes and names as published, numbers as calculated by hand, the same ones packed, cached and reloaded."""

from __future__ import annotations

import json
import warnings
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from conftest import conversation
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from pumice.config import LoraConfig
from pumice.data.batch import pack
from pumice.encode import encode
from pumice.engine.runner import complete
from pumice.model.assistant import AssistantModel
from pumice.model.attention import Kind, attend_packed
from pumice.model.openelm import OpenELMConfig, OpenELMForCausalLM, make_divisible
from pumice.train.lowrank import add_lora, lora_pairs
from pumice.types import Features, PumiceError

# model_dim, layers, head_dim; (query heads, layers that have them); parameters. Those of 270M and 450M are half the
# bytes that the index of their 16-bit files states; those of 1.1B and 3B agree with the published, rounded file sizes.
SIZES = {
    "270M": (1280, 16, 64, [(12, 5), (16, 7), (20, 4)], 271_527_168),
    "450M": (1536, 20, 64, [(12, 3), (16, 7), (20, 6), (24, 4)], 457_179_136),
    "1.1B": (2048, 28, 64, [(16, 3), (20, 7), (24, 8), (28, 6), (32, 4)], 1_079_891_456),
    "3B": (3072, 36, 128, [(12, 4), (16, 14), (20, 12), (24, 6)], 3_036_647_424),
}
# fmt: off
MULTIPLIERS_450M = [
    0.5, 0.68, 0.87, 1.05, 1.24, 1.42, 1.61, 1.79, 1.97, 2.16,
    2.34, 2.53, 2.71, 2.89, 3.08, 3.26, 3.45, 3.63, 3.82, 4.0,
]
# config.json of apple/OpenELM-270M, without its code map
PUBLISHED_270M = {
    "activation_fn_name": "swish", "architectures": ["OpenELMForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
    "ffn_dim_divisor": 256,
    "ffn_multipliers": [
        0.5, 0.73, 0.97, 1.2, 1.43, 1.67, 1.9, 2.13, 2.37, 2.6, 2.83, 3.07, 3.3, 3.53, 3.77, 4.0,
    ],
    "ffn_with_glu": True, "head_dim": 64, "initializer_range": 0.02, "max_context_length": 2048, "model_dim": 1280,
    "model_type": "openelm", "normalization_layer_name": "rms_norm", "normalize_qk_projections": True,
    "num_gqa_groups": 4, "num_kv_heads": [3, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4, 5, 5, 5, 5],
    "num_query_heads": [12, 12, 12, 12, 12, 16, 16, 16, 16, 16, 16, 16, 20, 20, 20, 20],
    "num_transformer_layers": 16, "qkv_multipliers": [0.5, 1.0], "rope_freq_constant": 10000, "rope_max_length": 4096,
    "share_input_output_layers": True, "torch_dtype": "float32", "use_cache": True, "vocab_size": 32000,
}
# fmt: on
CODE = {
    "AutoConfig": "configuration_openelm.OpenELMConfig",
    "AutoModelForCausalLM": "modeling_openelm.OpenELMForCausalLM",
}
TINY = {
    "vocab_size": 263,
    "model_dim": 32,
    "num_transformer_layers": 3,
    "head_dim": 8,
    "num_query_heads": [2, 4, 6],
    "num_kv_heads": [1, 2, 2],
    "ffn_multipliers": [0.5, 1.0, 2.0],
    "ffn_dim_divisor": 24,
    "max_context_length": 1024,
}


def random_model(**changes: Any) -> OpenELMForCausalLM:
    """Random weights, far from uniform attention and with norms that matter, so that a mix-up changes the numbers."""
    torch.manual_seed(0)
    model = OpenELMForCausalLM(OpenELMConfig(**{**TINY, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0, 0.4) if parameter.dim() == 1 else parameter.normal_(0.0, 0.2)
    return model.eval()


def published_names(layers: int) -> set[str]:
    """Tensor names in the published files."""
    parts = ["attn.k_norm", "attn.out_proj", "attn.q_norm", "attn.qkv_proj", "attn_norm", "ffn.proj_1", "ffn.proj_2"]
    names = {f"transformer.layers.{i}.{part}.weight" for i in range(layers) for part in [*parts, "ffn_norm"]}
    return names | {"transformer.token_embeddings.weight", "transformer.norm.weight"}


def tensors(model: OpenELMForCausalLM) -> dict[str, Tensor]:
    """Weights under the published names."""
    return {name: value.clone() for name, value in model.state_dict().items() if name != "lm_head.weight"}


@pytest.mark.parametrize("size", SIZES)
def test_sizes_are_the_published_ones(size):
    width, layers, head_dim, runs, parameters = SIZES[size]
    config = OpenELMConfig(model_dim=width, num_transformer_layers=layers, head_dim=head_dim)
    heads = [number for number, times in runs for _ in range(times)]
    assert config.num_query_heads == heads
    assert config.num_kv_heads == [number // 4 for number in heads]
    with torch.device("meta"):
        model = OpenELMForCausalLM(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_the_270m_config_follows_from_the_rule():
    derived, read = OpenELMConfig(), OpenELMConfig(**PUBLISHED_270M)
    for name, value in PUBLISHED_270M.items():
        if name not in ("architectures", "torch_dtype"):
            assert getattr(derived, name) == getattr(read, name) == value, name
    inner = [768, 1024, 1280, 1536, 1792, 2048, 2560, 2816, 3072, 3328, 3584, 3840, 4352, 4608, 4864, 5120]
    assert read.ffn_dims == inner
    with torch.device("meta"):
        layers: Any = OpenELMForCausalLM(read).model.layers
    assert [layer.ffn.proj_1.out_features for layer in layers] == [2 * width for width in inner]
    assert [layer.attn.qkv_proj.out_features for layer in layers] == [64 * 6 * kv for kv in read.num_kv_heads]


def test_multipliers_are_rounded_as_published():
    assert OpenELMConfig(model_dim=1536, num_transformer_layers=20).ffn_multipliers == MULTIPLIERS_450M


@pytest.mark.parametrize(
    ("value", "divisor", "expected"),
    [(640, 256, 768), (2431, 256, 2304), (2432, 256, 2560), (1, 8, 8), (350, 256, 512), (284, 256, 256)],
)
def test_make_divisible(value, divisor, expected):
    assert make_divisible(value, divisor) == expected  # 350: the nearest, 256, would lose more than a tenth


def test_the_names_that_other_models_use_are_aliases():
    config = OpenELMConfig(hidden_size=1536, num_hidden_layers=20)
    assert (config.model_dim, config.num_transformer_layers) == (1536, 20)
    assert config.num_attention_heads[-1] == 24  # derived from the alias' value, not from the default's
    assert config.num_key_value_heads == config.num_kv_heads
    assert (config.max_position_embeddings, config.tie_word_embeddings) == (2048, True)
    assert OpenELMConfig(num_key_value_heads=[6] * 16, num_attention_heads=[12] * 16).num_kv_heads == [6] * 16


def rms(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weight


def turned(vector: np.ndarray, position: int) -> np.ndarray:
    """Pairs (j, j + d/2) as complex numbers, turned by position * 10000^(-2j/d)."""
    half = len(vector) // 2
    angles = position * 10000.0 ** (-np.arange(half) / half)
    pairs = (vector[:half] + 1j * vector[half:]) * np.exp(1j * angles)
    return np.concatenate([pairs.real, pairs.imag])


def by_hand(weights: dict[str, np.ndarray], ids: list[int]) -> np.ndarray:
    """Logits (T, V) in float64, a token and a head at a time, of the layers of TINY."""
    x = weights["transformer.token_embeddings.weight"][ids]
    d = 8
    for layer, (heads, shared, inner) in enumerate([(2, 1, 24), (4, 2, 48), (6, 2, 72)]):
        w = {name.split(".", 3)[3]: v for name, v in weights.items() if name.startswith(f"transformer.layers.{layer}.")}
        normed = rms(x, w["attn_norm.weight"])
        qkv = normed @ w["attn.qkv_proj.weight"].T
        assert qkv.shape[1] == (heads + 2 * shared) * d
        mixed = np.zeros((len(ids), heads * d))
        for head in range(heads):
            group = head // (heads // shared)
            q = qkv[:, head * d : (head + 1) * d]
            k = qkv[:, (heads + group) * d : (heads + group + 1) * d]
            v = qkv[:, (heads + shared + group) * d : (heads + shared + group + 1) * d]
            q = np.stack([turned(rms(row, w["attn.q_norm.weight"]), t) for t, row in enumerate(q)])
            k = np.stack([turned(rms(row, w["attn.k_norm.weight"]), t) for t, row in enumerate(k)])
            for t in range(len(ids)):
                scores = np.exp(k[: t + 1] @ q[t] / np.sqrt(d))
                mixed[t, head * d : (head + 1) * d] = scores / scores.sum() @ v[: t + 1]
        x = x + mixed @ w["attn.out_proj.weight"].T
        both = rms(x, w["ffn_norm.weight"]) @ w["ffn.proj_1.weight"].T
        gate, up = both[:, :inner], both[:, inner:]
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w["ffn.proj_2.weight"].T
    return rms(x, weights["transformer.norm.weight"]) @ weights["transformer.token_embeddings.weight"].T


@pytest.mark.parametrize("implementation", ["pumice", "sdpa", "eager"])
def test_logits_equal_a_calculation_by_hand(implementation):
    model = random_model()
    model.set_attn_implementation(implementation)
    ids = [5, 17, 5, 200, 3, 42, 42, 9, 250, 0, 31]
    expected = by_hand({name: value.double().numpy() for name, value in tensors(model).items()}, ids)
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0]
    assert np.abs(expected).max() > 3
    assert np.abs(logits.numpy() - expected).max() < 1e-5


def test_with_equal_layers_the_logits_are_those_of_qwen3():
    """Qwen3 is the decoder of transformers with the same parts: norms of q and k, GQA, SwiGLU, tied head."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    model = random_model(num_query_heads=[4] * 3, num_kv_heads=[2] * 3, ffn_multipliers=[1.5] * 3)
    reference = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=263,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            rms_norm_eps=1e-6,
            tie_word_embeddings=True,
        )
    ).eval()
    state = {"model.embed_tokens.weight": model.lm_head.weight, "lm_head.weight": model.lm_head.weight}
    state["model.norm.weight"] = model.model.norm.weight
    for i in range(3):
        layer: Any = model.model.layers[i]
        q, k, v = layer.attn.qkv_proj.weight.split([32, 16, 16])
        gate, up = layer.ffn.proj_1.weight.chunk(2)
        parts = {"self_attn.q_proj": q, "self_attn.k_proj": k, "self_attn.v_proj": v, "mlp.gate_proj": gate}
        parts |= {
            "mlp.up_proj": up,
            "mlp.down_proj": layer.ffn.proj_2.weight,
            "input_layernorm": layer.attn_norm.weight,
        }
        parts |= {"self_attn.o_proj": layer.attn.out_proj.weight, "post_attention_layernorm": layer.ffn_norm.weight}
        parts |= {"self_attn.q_norm": layer.attn.q_norm.weight, "self_attn.k_norm": layer.attn.k_norm.weight}
        state |= {f"model.layers.{i}.{name}.weight": value for name, value in parts.items()}
    reference.load_state_dict(state)
    ids = torch.randint(0, 263, (2, 40), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :10] = 0  # on the left, where a causal mask alone would let it be seen
    with torch.inference_mode():
        ours, theirs = model(ids, attention_mask=mask).logits, reference(ids, attention_mask=mask).logits
    assert torch.allclose(ours[mask.bool()], theirs[mask.bool()], atol=1e-5)


def test_a_published_folder_loads_without_its_code(tmp_path):
    model = random_model()
    fields = {name: value for name, value in model.config.to_dict().items() if name in PUBLISHED_270M}
    (tmp_path / "config.json").write_text(json.dumps({**fields, "auto_map": CODE, "torch_dtype": "float32"}))
    weights = tensors(model)
    assert weights.keys() == published_names(3)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is OpenELMForCausalLM
    assert not any(report.values()), report
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
    ids = torch.arange(20)[None]
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_the_270m_has_the_published_tensors():
    with torch.device("meta"):
        model = OpenELMForCausalLM(OpenELMConfig())
    assert model.state_dict().keys() - {"lm_head.weight"} == published_names(16)


def test_saved_and_loaded_again_it_is_the_same(tmp_path):
    model = random_model()
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == published_names(3)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["num_kv_heads"] == [1, 2, 2]
    assert written["model_type"] == "openelm"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert AutoConfig.from_pretrained(tmp_path).ffn_dims == model.config.ffn_dims == [24, 48, 72]
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    default = OpenELMConfig()
    default.save_pretrained(tmp_path)  # the class' own defaults must be written too, for other readers of the file
    assert (
        PUBLISHED_270M.keys() - {"torch_dtype", "architectures"}
        <= json.loads((tmp_path / "config.json").read_text()).keys()
    )


@pytest.fixture
def assistant(model, tokenizer) -> AssistantModel:
    """The tests' tiny assistant with OpenELM for its language model."""
    made = AssistantModel(model.tower, model.connector, random_model(vocab_size=len(tokenizer))).eval()
    with torch.no_grad():
        made.newline.normal_(0.0, 0.3)
    return made


@pytest.fixture
def documents(processor):
    cases = [((28, 28), "Hi?", "yes"), (None, "No picture", "none at all"), ((20, 90), "x", "12.50")]
    return [encode(conversation(i, *case), processor) for i, case in enumerate(cases)]


def test_packed_equals_separate(assistant, documents):
    def run(batches):
        assistant.zero_grad()
        terms = [assistant.answer_loss(pack(batch)) for batch in batches]
        (sum(loss for loss, _ in terms) / sum(count for _, count in terms)).backward()
        return {name: p.grad.clone() for name, p in assistant.named_parameters() if p.grad is not None}

    together = assistant.logits(pack(documents))
    apart = torch.cat([assistant.logits(pack([document])) for document in documents])
    assert torch.allclose(together, apart, atol=1e-5), (together - apart).abs().max()
    packed, separate = run([documents]), run([[document] for document in documents])
    assert {f"lm.{name}" for name in published_names(3)} <= packed.keys() == separate.keys()
    for name in packed:
        assert torch.allclose(packed[name], separate[name], atol=1e-5), name


def test_positions_that_restart_pack_with_sdpa_too(assistant, documents):
    batch = pack(documents)
    expected = assistant.logits(batch)
    embedded = assistant.embed(batch)[None]
    assistant.lm.set_attn_implementation("sdpa")
    logits = assistant.lm(inputs_embeds=embedded, position_ids=batch.positions[None]).logits[0]
    assert torch.allclose(logits, expected, atol=1e-5)


class Kept:
    """Keys and values of one sequence, layer by layer because their heads differ."""

    def __init__(self) -> None:
        self.held: dict[int, tuple[Tensor, Tensor]] = {}

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, kind: Kind) -> Tensor:
        if layer not in self.held:
            self.held[layer] = (k, v)
            return attend_packed(q, k, v, [0, q.shape[1]], kind)
        k, v = (torch.cat([old, new], dim=1) for old, new in zip(self.held[layer], (k, v), strict=True))
        self.held[layer] = (k, v)
        return F.scaled_dot_product_attention(q[None], k[None], v[None], scale=kind.scale, enable_gqa=True)[0]


def test_cached_steps_equal_recomputing():
    model = random_model()
    model.set_attn_implementation("pumice")
    ids = torch.randint(0, 263, (1, 24), generator=torch.Generator().manual_seed(2))
    cache = Kept()
    steps = [0, 15, *range(16, 25)]
    with torch.inference_mode():
        expected = model(ids).logits[0]
        parts = [
            model.model(
                inputs_embeds=model.get_input_embeddings()(ids[:, a:b]),
                position_ids=torch.arange(a, b)[None],
                use_cache=False,
                cache=cache,
            ).last_hidden_state[0]
            for a, b in pairwise(steps)
        ]
        logits = model.lm_head(torch.cat(parts))
    assert [cache.held[layer][0].shape[0] for layer in range(3)] == [1, 2, 2]
    assert torch.allclose(logits, expected, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning")
def test_recomputing_activations_changes_no_gradient():
    model = random_model().train()
    ids = torch.arange(12)[None]

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        model(ids).logits.square().mean().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    model.gradient_checkpointing_enable()
    calls: list[int] = []
    layers: Any = model.model.layers
    layers[0].attn.register_forward_pre_hook(lambda module, args: calls.append(1))
    again = gradients()
    assert len(calls) == 2
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_half_precision():
    model = random_model()
    ids = torch.arange(30)[None]
    exact = model(ids).logits
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = model(ids).logits
    half = model.bfloat16()(ids).logits
    assert half.dtype == torch.bfloat16
    for logits in (mixed.float(), half.float()):
        assert F.cosine_similarity(logits.flatten(), exact.flatten(), dim=0) > 0.999


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"normalize_qk_projections": False}, "normalize_qk_projections is False; only True is implemented"),
        ({"share_input_output_layers": False}, "share_input_output_layers is False; only True is implemented"),
        ({"activation_fn_name": "gelu"}, "activation_fn_name is 'gelu'; only 'swish' is implemented"),
        ({"num_query_heads": [4, 4]}, "num_query_heads has 2 numbers, expected one for each of the 16 layers"),
        ({"ffn_multipliers": [1.0] * 3}, "ffn_multipliers has 3 numbers, expected one for each of the 16 layers"),
        ({"num_query_heads": [2] * 16}, "layer 0 has 2 query heads and 0 kv heads; expected a multiple"),
        ({"num_kv_heads": [3] * 15 + [7]}, "layer 5 has 16 query heads and 3 kv heads; expected a multiple"),
        ({"qkv_multipliers": [0.5]}, "multipliers [0.5], expected two"),
    ],
)
def test_configs_that_it_cannot_be(fields, message):
    with pytest.raises(PumiceError) as caught:
        OpenELMConfig(**fields)
    assert message in str(caught.value)


def test_calls_that_it_cannot_answer():
    model = random_model()
    ids = torch.arange(3)[None]
    with pytest.raises(PumiceError, match="either input_ids or inputs_embeds"):
        model()
    with pytest.raises(PumiceError, match="either input_ids or inputs_embeds"):
        model(ids, inputs_embeds=model.get_input_embeddings()(ids))
    with pytest.raises(PumiceError, match="no cache of its own"):
        model(ids, use_cache=True)


def test_a_folder_that_lies_about_its_layers_is_refused(tmp_path):
    random_model().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_kv_heads": [1, 2]}))
    with pytest.raises(PumiceError, match="num_kv_heads has 2 numbers, expected one for each of the 3 layers"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_the_engine_decodes_layers_of_different_heads(assistant, processor):
    prompts = [
        encode(conversation(i, size, question, None), processor, prompt=True)
        for i, (size, question) in enumerate([((28, 28), "Hi?"), ((60, 30), "What is it?"), (None, "No picture")])
    ]
    assert len(set(assistant.lm.config.num_key_value_heads)) > 1
    for prompt, answer in zip(prompts, complete(assistant, prompts, stop_ids=(), max_tokens=6), strict=True):
        ids = prompt.ids
        for _ in range(6):
            document = Features(ids, torch.full_like(ids, -100), prompt.tiles, prompt.layouts)
            ids = torch.cat([ids, assistant.logits(pack([document]))[-1].argmax()[None]])
        assert ids[len(prompt) :].tolist() == answer.ids


def test_low_rank_training_finds_its_joined_layers(assistant):
    pytest.importorskip("peft")
    add_lora(assistant.lm, LoraConfig(rank=2, alpha=2), 0)
    paths = lora_pairs(assistant.lm)
    assert len(paths) == 4 * assistant.lm.config.num_hidden_layers
    assert {path.rpartition(".")[2] for path in paths} == {"qkv_proj", "out_proj", "proj_1", "proj_2"}
