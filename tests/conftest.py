"""A tiny random assistant, built in a moment: byte-level tokenizer, 2-layer DINOv2 and Llama."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import make_model, make_tokenizer, save_folder
from PIL import Image

from pumice.encode import Processor
from pumice.model.assistant import AssistantModel
from pumice.model.connectors import MlpConnector, init_connector
from pumice.model.towers import Dinov2Tower
from pumice.templates import get_template
from pumice.types import Media, Sample, Turn
from pumice.vision.layout import Policy

TILE = 28
MARKS = [
    "<|im_start|>",
    "<|im_end|>",
    "</s>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """Byte-level BPE with the templates' special tokens and no merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=core)
    made.add_special_tokens({"additional_special_tokens": MARKS})
    return made


@pytest.fixture
def policy() -> Policy:
    """The pocket's layout in small: tiles of 28 px, 2 x 2 tokens each."""
    return Policy(
        "anyres",
        tile=TILE,
        side=1,
        grids=((1, 1), (1, 2), (2, 1), (2, 2)),
        overview="multi",
        newline=True,
        unpad=True,
        fill=(255, 255, 255),
        rounding="cover",
    )


@pytest.fixture
def processor(tokenizer: Any, policy: Policy) -> Processor:
    """ChatML processor of the tiny model."""
    return Processor(tokenizer, get_template("chatml"), policy, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), max_tokens=1024)


@pytest.fixture
def model(tokenizer: Any) -> AssistantModel:
    """Random weights, fp32, eval mode."""
    return tiny_model(len(tokenizer))


def tiny_model(vocabulary: int) -> AssistantModel:
    """A random assistant of about 40k weights; grouped kv heads, so that a mix-up of heads shows."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tower = Dinov2Tower(
        {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2, "patch_size": 14}, TILE
    )
    lm = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            max_position_embeddings=1024,
        )
    )
    connector = MlpConnector(24, 32, shuffle=2)
    init_connector(connector, 0.3, 0)
    model = AssistantModel(tower, connector, lm)
    with torch.no_grad():
        model.newline.normal_(0.0, 0.3)
        for parameter in lm.parameters():
            parameter.mul_(3.0)  # far from uniform attention, so that a wrong mask changes the numbers
    return model.eval()


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    """A picture of noise."""
    noise = torch.randint(0, 256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(noise.to(torch.uint8).numpy())


def conversation(seed: int, size: tuple[int, int] | None, question: str, answer: str | None) -> Sample:
    """One question about a picture of noise (or about none)."""
    media = () if size is None else (Media(picture(seed, size), size),)
    turns = [Turn("user", (*media, question))]
    if answer is not None:
        turns.append(Turn("assistant", (answer,)))
    return Sample(tuple(turns), id=f"noise-{seed}")


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> Callable[[str], Path]:
    """Folder of a tiny random model of a llava-hf family, made once a file of tests."""

    @cache
    def made(family: str) -> Path:
        folder, tokenizer = tmp_path_factory.mktemp(family), make_tokenizer()
        save_folder(folder, family, tokenizer, make_model(family, tokenizer))
        return folder

    return made


@pytest.fixture(autouse=True, scope="module")
def browsers() -> Iterator[None]:
    """What drew screens ends its browser, so that the next file of tests can start one."""
    yield
    if (screens := sys.modules.get("pumice.data.render.screens")) is not None:
        screens.close()


@pytest.fixture(scope="module")
def local_ray():
    """One Ray cluster for all tests of a file: starting it takes seconds."""
    ray = pytest.importorskip("ray")
    ray.init("local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield ray
    ray.shutdown()
