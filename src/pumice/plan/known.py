"""The models of the line by exact name, as plain data.

    MODELS[name] ──> Model(tower, connector, language model, layout, video)

Sizes are those of the published configurations; vocabularies are the base language models' (checkpoints on the hub may
hold a few padded rows more). OpenELM's blocks follow the rule of its paper (arXiv 2404.14619).
"""

from __future__ import annotations

from dataclasses import replace

from pumice.formats.published import CLIP_B_32, CLIP_L_336, HUB_TOWERS, SIGLIP_SO400M
from pumice.formats.sizes import Block, Connector, LanguageModel, Model, Tower, divisible
from pumice.vision.frames import LLAVA_VIDEO_7B, LLAVA_VIDEO_72B, ONEVISION_VIDEO, VideoPolicy
from pumice.vision.layout import ELVA, LLAVA_15, NEXT_CLIP, ONEVISION, Policy


def uniform(
    hidden: int, layers: int, heads: int, kv_heads: int, ffn: int, vocab: int, tied: bool = False, qkv: bool = False
) -> LanguageModel:
    """A language model whose blocks are all alike."""
    blocks = (Block(heads, kv_heads, ffn),) * layers
    return LanguageModel(hidden, hidden // heads, vocab, blocks, tied=tied, qkv_bias=qkv)


def openelm(hidden: int, layers: int) -> LanguageModel:
    """OpenELM: heads grow from half of hidden / 64 to all of it over the layers, MLPs from 0.5 to 4 times hidden."""
    blocks = []
    for layer in range(layers):
        share = layer / (layers - 1)
        # Rounded to two places first, as the released configurations are; four query heads share a key-value head.
        heads = divisible(round(0.5 + 0.5 * share, 2) * hidden, 4 * 64) // 64
        blocks.append(Block(heads, heads // 4, divisible(round(0.5 + 3.5 * share, 2) * hidden, 256)))
    return LanguageModel(hidden, 64, 32000, tuple(blocks), tied=True, qk_norm=True)


VICUNA_7B = uniform(4096, 32, 32, 32, 11008, 32000)
VICUNA_13B = uniform(5120, 40, 40, 40, 13824, 32000)
MISTRAL_7B = uniform(4096, 32, 32, 8, 14336, 32000)
YI_34B = uniform(7168, 60, 56, 8, 20480, 64000)
LLAMA3_8B = uniform(4096, 32, 32, 8, 14336, 128256)
QWEN15_72B = uniform(8192, 80, 64, 64, 24576, 152064, qkv=True)
QWEN15_110B = uniform(8192, 80, 64, 8, 49152, 152064, qkv=True)
QWEN2_05B = uniform(896, 24, 14, 2, 4864, 151936, tied=True, qkv=True)
QWEN2_7B = uniform(3584, 28, 28, 4, 18944, 152064, qkv=True)
QWEN2_72B = uniform(8192, 80, 64, 8, 29568, 152064, qkv=True)
LLAMA_160M = uniform(768, 12, 12, 12, 3072, 32000)
TINY_VICUNA = uniform(2048, 22, 32, 4, 5632, 32000)
PHI3_MINI = uniform(3072, 32, 32, 32, 8192, 32064)

PART_LMS = {
    "smollm2-135m-instruct": uniform(576, 30, 9, 3, 1536, 49152, tied=True),
    "lmsys/vicuna-7b-v1.5": VICUNA_7B,
    "lmsys/vicuna-13b-v1.5": VICUNA_13B,
    "mistralai/Mistral-7B-Instruct-v0.2": MISTRAL_7B,
    "NousResearch/Nous-Hermes-2-Yi-34B": YI_34B,
    "Qwen/Qwen2-0.5B-Instruct": QWEN2_05B,
    "Qwen/Qwen2-7B-Instruct": QWEN2_7B,
    "Qwen/Qwen2-72B-Instruct": QWEN2_72B,
    "Felladrin/Llama-160M-Chat-v1": LLAMA_160M,
    "Jiayi-Pan/Tiny-Vicuna-1B": TINY_VICUNA,
    "microsoft/Phi-3-mini-4k-instruct": PHI3_MINI,
    "apple/OpenELM-270M-Instruct": openelm(1280, 16),
    "apple/OpenELM-450M-Instruct": openelm(1536, 20),
    "apple/OpenELM-1_1B-Instruct": openelm(2048, 28),
}
"""Language models that recipes name, as a pretrained part or on a hub: their sizes are known without a download."""

PART_TOWERS = {
    "dinov2-small-14": Tower("dinov2", width=384, layers=12, ffn=1536, tile=518, patch=14, used=12),
    # CLIP's and SigLIP's features don't pass the final norm, which a recipe's model doesn't build.
    **{name: replace(tower, final_norm=False) for name, tower in HUB_TOWERS.items()},
}
"""Towers that recipes name, as a pretrained part (pocket/parts.py) or on a hub; the recipe sets tile and blocks."""


def _line(
    prefix: str,
    tower: Tower,
    policy: Policy,
    lms: dict[str, LanguageModel],
    newline: bool = True,
    video: VideoPolicy | None = None,
) -> dict[str, Model]:
    return {
        f"{prefix}-{size}": Model(f"{prefix}-{size}", tower, Connector(), lm, policy, newline, video)
        for size, lm in lms.items()
    }


_NEXT = {
    "vicuna-7b": VICUNA_7B, "vicuna-13b": VICUNA_13B, "mistral-7b": MISTRAL_7B, "34b": YI_34B,
    "llama3-8b": LLAMA3_8B, "72b": QWEN15_72B, "110b": QWEN15_110B,
}  # fmt: skip
_ELVA = {
    "160m": LLAMA_160M, "270m": openelm(1280, 16), "450m": openelm(1536, 20), "1.1b": openelm(2048, 28),
    "tiny-vicuna-1.1b": TINY_VICUNA, "3.8b": PHI3_MINI, "7b": VICUNA_7B, "13b": VICUNA_13B,
}  # fmt: skip
_QWEN2 = {"0.5b": QWEN2_05B, "7b": QWEN2_7B, "72b": QWEN2_72B}

MODELS: dict[str, Model] = {
    **_line("llava-1.5", CLIP_L_336, LLAVA_15, {"7b": VICUNA_7B, "13b": VICUNA_13B}, newline=False),
    **_line("llava-next", CLIP_L_336, NEXT_CLIP, _NEXT),
    **_line("onevision", SIGLIP_SO400M, ONEVISION, _QWEN2, video=ONEVISION_VIDEO),
    **_line("llava-video", SIGLIP_SO400M, ONEVISION, {"7b": QWEN2_7B}, video=LLAVA_VIDEO_7B),
    **_line("llava-video", SIGLIP_SO400M, ONEVISION, {"72b": QWEN2_72B}, video=LLAVA_VIDEO_72B),
    **_line("elva", CLIP_B_32, ELVA, _ELVA, newline=False),
}  # fmt: skip
"""Every model but ``pocket``, whose sizes are read from the recipe that it ships with."""
