"""Tiny random models of transformers' LLaVA classes, saved as folders with everything a published one has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from pumice.vision.layout import Policy, layout

TILE = 56
TINY = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
GRIDS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
OV_GRIDS = [[TILE * i, TILE * j] for i in range(1, 4) for j in range(1, 4)]
FAMILIES = ("llava", "llava-mistral", "next", "next-mistral", "next-video", "onevision")

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n{% elif part['type'] == 'video' %}"
    "<video>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer() -> Any:
    """Byte-level BPE without merges, with <image> and <video>."""
    from conftest import MARKS
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|im_end|>", padding_side="left"
    )
    made.add_special_tokens({"additional_special_tokens": [*MARKS, "<image>", "<video>"]})
    return made


def language_model(kind: str, vocabulary: int) -> Any:
    """Config of a tiny language model of a type."""
    import transformers

    fields = {**TINY, "num_hidden_layers": 2, "num_key_value_heads": 2, "vocab_size": vocabulary}
    fields |= {"max_position_embeddings": 4096, "tie_word_embeddings": False}
    made = {"llama": "LlamaConfig", "mistral": "MistralConfig", "qwen2": "Qwen2Config"}[kind]
    extra = {"sliding_window": None} if kind == "mistral" else {}
    return getattr(transformers, made)(**fields, **extra)


def make_model(family: str, tokenizer: Any, tied: bool = False) -> Any:
    """A random model far from uniform attention, so that a wrong place or order shows in the logits."""
    import transformers

    torch.manual_seed(0)
    siglip = family == "onevision"
    vision = {**TINY, "num_hidden_layers": 3, "image_size": TILE, "patch_size": 14}
    if siglip:
        tower = transformers.SiglipVisionConfig(**vision, vision_use_head=False)
    else:
        tower = transformers.CLIPVisionConfig(**vision)
    kind = "mistral" if family.endswith("mistral") else "qwen2" if siglip else "llama"
    text = language_model(kind, len(tokenizer))
    text.tie_word_embeddings = tied
    ids = {
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "image_seq_length": (TILE // 14) ** 2,
        "tie_word_embeddings": tied,
    }
    video = {"video_token_index": tokenizer.convert_tokens_to_ids("<video>")}
    name, extra = {
        "llava": ("Llava", {}),
        "next": ("LlavaNext", {"image_grid_pinpoints": GRIDS}),
        "next-video": ("LlavaNextVideo", {"image_grid_pinpoints": GRIDS, **video}),
        "onevision": ("LlavaOnevision", {"image_grid_pinpoints": OV_GRIDS, **video}),
    }[family.removesuffix("-mistral")]
    config = getattr(transformers, f"{name}Config")(vision_config=tower, text_config=text, **ids, **extra)
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0) if parameter.dim() > 1 else parameter.add_(0.1 * torch.randn_like(parameter))
    return model


class ByHand:
    """What stands for transformers' processors of models for videos, which can't be made without torchvision.

    Pictures pass transformers' own image processor. ``count`` says how many tokens each has, and the model refuses any
    number but its own.
    """

    def __init__(self, image_processor: Any, tokenizer: Any, count: Callable[[list[Any]], list[int]]) -> None:
        self.image_processor, self.tokenizer, self.count = image_processor, tokenizer, count

    def apply_chat_template(self, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        return self.tokenizer.apply_chat_template(
            messages, chat_template=CHAT, tokenize=False, add_generation_prompt=add_generation_prompt
        )

    def __call__(self, images: Any, text: list[str], return_tensors: str) -> dict[str, Any]:
        flat = images[0] if images and isinstance(images[0], list) else images or []
        before, *after = text[0].split("<image>")
        counts = self.count(flat)
        whole = before + "".join("<image>" * n + rest for n, rest in zip(counts, after, strict=True))
        inputs = dict(self.tokenizer([whole], return_tensors="pt", add_special_tokens=False))
        return inputs | (dict(self.image_processor(images=images, return_tensors="pt")) if images else {})


def make_processor(family: str, tokenizer: Any) -> Any:
    """transformers' processor with its PIL image processor."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.llava import LlavaProcessor
    from transformers.models.llava_next import LlavaNextProcessor
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
        LlavaOnevisionImageProcessorPil,
    )

    square, shortest = {"height": TILE, "width": TILE}, {"shortest_edge": TILE}
    common = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    common |= {"tokenizer": tokenizer, "chat_template": CHAT}
    base = family.removesuffix("-mistral")
    if base == "llava":
        return LlavaProcessor(CLIPImageProcessorPil(size=shortest, crop_size=square), **common)
    if base in ("next", "next-video"):
        images = LlavaNextImageProcessorPil(size=shortest, crop_size=square, image_grid_pinpoints=GRIDS)
        if base == "next":
            return LlavaNextProcessor(images, **common)
        return ByHand(images, tokenizer, lambda pictures: [_tokens(p.size, NEXT) for p in pictures])
    half = [0.5, 0.5, 0.5]
    images = LlavaOnevisionImageProcessorPil(
        size=square, image_grid_pinpoints=OV_GRIDS, image_mean=half, image_std=half
    )
    return ByHand(
        images, tokenizer, lambda pictures: [17 if len(pictures) > 1 else _tokens(p.size, ONEVISION) for p in pictures]
    )


NEXT = Policy(
    "anyres", TILE, 4, tuple((a // TILE, b // TILE) for a, b in GRIDS), newline=True, unpad=True,
    rounding="round7", grid_order="hw",
)  # fmt: skip
ONEVISION = replace(NEXT, grids=tuple((a // TILE, b // TILE) for a, b in OV_GRIDS), max_tiles=9)


def _tokens(size: tuple[int, int], policy: Policy) -> int:
    return layout(size, policy).tokens


def save_folder(folder: Path, family: str, tokenizer: Any, model: Any) -> None:
    """Weights, config, tokenizer, image processor and chat template, as in a published folder."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    make_processor(family, tokenizer).image_processor.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(CHAT)


def noise(seed: int, size: tuple[int, int]) -> Image.Image:
    """A picture of soft noise: hard noise would differ after two resizings for reasons that no photograph has."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.randint(0, 256, (max(1, size[1] // 8), max(1, size[0] // 8), 3), generator=generator)
    return Image.fromarray(small.to(torch.uint8).numpy()).resize(size)
