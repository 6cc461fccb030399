"""Tiny tokenizers of the two kinds that llama.cpp knows, and folders of LLaVA-1.5's layout with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_models import CHAT, language_model, make_model, save_folder

TEXTS = [
    "Look at the picture and say what is written on the sign next to the door of the shop.",
    "The receipt lists two coffees at 3.50 and one cake at 4.20; the total is 11.20 and it was paid by card.",
    "What is the title of the chart, and which year has the highest value? Answer with a single word or number.",
    "USER: Describe the picture. ASSISTANT: Yes, there are three people, a dog and a red bicycle in the park.",
] * 3


def byte_level(cut: str = "gpt-2") -> Any:
    """Byte-level BPE with merges, cut as GPT-2 or Qwen2 cut texts."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    core = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated", invert=False)
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut == "gpt-2")
    core.pre_tokenizer = pre_tokenizers.Sequence([split, plain]) if cut == "qwen2" else plain
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|im_end|>")
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<image>", "<video>"]})
    return made


def sentencepiece() -> Any:
    """Llama's kind: byte fallback, <s> before every text, merges that follow from the order of the pieces."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import LlamaTokenizer
    from transformers.tokenization_utils_base import generate_merges

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    core.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    learned = sorted(core.get_vocab(), key=core.get_vocab().__getitem__)
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces = [*first, *(p for p in learned if len(p) > 1), *(p for p in learned if len(p) == 1)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    made = LlamaTokenizer(vocab=vocabulary, merges=generate_merges(vocabulary, skip_tokens=set(first)))
    made.add_bos_token = True
    made.update_post_processor()
    made.add_special_tokens({"additional_special_tokens": ["<image>", "<video>"]})
    return made


def save_single_view(folder: Path, kind: str, tokenizer: Any, **changes: Any) -> Any:
    """A random model of LLaVA-1.5's layout around a language model of type ``kind``, saved as llava-hf's; its model.

    Its answers are far from each other, so that rounding doesn't turn them; ``changes`` are of the text config.
    """
    import torch
    import transformers

    seed = make_model("llava-mistral" if kind == "mistral" else "llava", tokenizer)
    config = seed.config
    text = language_model(kind, len(tokenizer))
    for key, value in {"tie_word_embeddings": False, **changes}.items():
        setattr(text, key, value)
    config.text_config, config.tie_word_embeddings = text, text.tie_word_embeddings
    torch.manual_seed(1)
    model = transformers.LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0) if parameter.dim() > 1 else parameter.add_(0.1 * torch.randn_like(parameter))
        model.get_output_embeddings().weight.mul_(4.0)
    save_folder(folder, "llava", tokenizer, model)
    (folder / "chat_template.jinja").write_text(CHAT)
    return model
