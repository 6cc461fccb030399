"""Every family of language models: packed, cached and alone, each gives what transformers' own attention gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import tiny_model
from hf_models import TINY

from pumice.data.batch import pack
from pumice.engine.runner import complete
from pumice.model.assistant import AssistantModel
from pumice.types import IGNORE, Features

SHAPE = {**TINY, "num_hidden_layers": 4, "num_key_value_heads": 2, "vocab_size": 60, "max_position_embeddings": 256}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mistral": {"sliding_window": None},
    "Mistral, sliding": {"sliding_window": 7},
    "Qwen2": {},
    "Qwen2, sliding": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2},
    "Qwen3": {"head_dim": 16},
    "Phi3": {"pad_token_id": 0, "sliding_window": None},
    "Phi3, sliding": {"pad_token_id": 0, "sliding_window": 6},
    "SmolLM3": {"pad_token_id": 0, "no_rope_layer_interval": 2},
    "Gemma": {"head_dim": 16},
    "Gemma2": {"head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 16},
    "Gemma3": {"head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 16, "sliding_window_pattern": 2},
    "Granite": {"logits_scaling": 1.0, "residual_multiplier": 0.7, "embedding_multiplier": 3.0},
}
LENGTHS = (23, 1, 9)


def language_model(family: str) -> Any:
    import transformers

    name = family.partition(",")[0]
    text = "Gemma3Text" if name == "Gemma3" else name
    config = getattr(transformers, f"{text}Config")(**{**SHAPE, **FAMILIES[family]})
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.25)  # far from uniform attention
    return model


def assistant(lm: Any) -> AssistantModel:
    parts = tiny_model(SHAPE["vocab_size"])
    return AssistantModel(parts.tower, parts.connector, lm).eval()


def document(length: int, seed: int) -> Features:
    ids = torch.randint(0, 60, (length,), generator=torch.Generator().manual_seed(seed))
    return Features(ids, torch.full_like(ids, IGNORE), torch.zeros(0, 3, 28, 28), ())


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_packed_documents_have_transformers_logits(family):
    documents = [document(length, seed) for seed, length in enumerate(LENGTHS)]
    wanted = torch.cat([language_model(family)(input_ids=d.ids[None]).logits[0] for d in documents])
    found = assistant(language_model(family)).logits(pack(documents))
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()
    assert wanted.std() > 0.05


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_cached_decoding_is_transformers_greedy_search(family):
    prompts = [document(length, seed) for seed, length in enumerate(LENGTHS)]
    reference, steps = language_model(family), 14
    wanted = []
    for prompt in prompts:
        ids = prompt.ids
        for _ in range(steps):
            ids = torch.cat([ids, reference(input_ids=ids[None]).logits[0, -1:].argmax(-1)])
        wanted.append(ids[len(prompt.ids) :].tolist())
    found = complete(assistant(language_model(family)), prompts, (), steps)
    assert [one.ids for one in found] == wanted
