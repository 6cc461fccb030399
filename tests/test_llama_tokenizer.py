"""Conversations have the ids of one string with tokenizers that put a blank before a text, as Llama's kind does.

Spans are tokenised one by one, so that labels need no search. Here they are held to the same tokenizer on the whole
string: transformers' own for a checkpoint's chat template, and cut at pictures for the originals' formats.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from conftest import picture
from gguf_models import TEXTS, sentencepiece
from hf_models import make_model, make_processor, noise, save_folder
from test_chat import MISTRAL, PHI_3, VICUNA_HF, VICUNA_SYSTEM, written

import pumice
from pumice.chat_jinja import JinjaTemplate
from pumice.encode import Processor, encode, lay_out, tokenize
from pumice.templates import get_template
from pumice.types import IGNORE, IMAGE, Media, Sample, Turn
from pumice.vision.layout import Policy

SIZE = (30, 30)
PICTURE = Media(picture(0, SIZE), SIZE)
SQUARE = Policy("square", 28, 2)  # 4 tokens
NAMES = ("v1", "llava_v1", "mistral_instruct", "llava_llama_2", "plain", "phi3")
PHI = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")


def scheme(kind: str, split: bool = False) -> Any:
    """Llama's tokenizer with a blank put before: the first text, every one, none ("never")."""
    from tokenizers import pre_tokenizers

    made = sentencepiece()
    made.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind, split=split)
    return made


def prepending() -> Any:
    """As published tokenizer.json files have it: a normalizer puts the blank, even before a blank."""
    from tokenizers import normalizers
    from transformers import PreTrainedTokenizerFast

    core = sentencepiece().backend_tokenizer
    core.pre_tokenizer = None
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, **tokens)


def unigram(kind: str) -> Any:
    """Unigram, whose vocabulary holds special tokens as words; it takes the likeliest cut of a whole text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind, split=True)
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.UnigramTrainer(vocab_size=600, special_tokens=first, unk_token="<unk>", show_progress=False)
    core.train_from_iterator(TEXTS, trainer)
    pieces = [(core.id_to_token(i), -float(i > 258) * (1 + i / 100)) for i in range(core.get_vocab_size())]
    fresh = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    fresh.pre_tokenizer = core.pre_tokenizer
    fresh.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=kind), decoders.Fuse()])
    fresh.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=fresh, **tokens)


def llama(legacy: bool) -> Any:
    """transformers' own class."""
    from transformers import LlamaTokenizer
    from transformers.tokenization_utils_base import generate_merges

    vocabulary = dict(sorted(sentencepiece().get_vocab().items(), key=lambda item: item[1]))
    for mark in ("<image>", "<video>"):
        vocabulary.pop(mark)
    merges = generate_merges(vocabulary, skip_tokens={"<unk>", "<s>", "</s>"})
    return LlamaTokenizer(vocab=vocabulary, merges=merges, legacy=legacy, add_bos_token=True)


KINDS: dict[str, Callable[[], Any]] = {
    "first": lambda: scheme("first"),
    "always": lambda: scheme("always"),
    "never": lambda: scheme("never"),
    "first, words alone": lambda: scheme("first", split=True),
    "prepending": prepending,
    "legacy": lambda: llama(legacy=True),
    "not legacy": lambda: llama(legacy=False),
    "Unigram, first": lambda: unigram("first"),
    "Unigram, always": lambda: unigram("always"),
}


@cache
def made(kind: str, swallow: bool = True) -> Any:
    """A tokenizer of a kind, with the marks of Phi-3, which swallow the white space behind them, and <image>."""
    from transformers import AddedToken

    tokenizer = KINDS[kind]()
    tokenizer.add_tokens([AddedToken(mark, rstrip=swallow, normalized=False, special=True) for mark in PHI])
    tokenizer.add_tokens([AddedToken("<image>", normalized=False, special=True)])
    return tokenizer


def processor(tokenizer: Any, template: Any) -> Processor:
    return Processor(tokenizer, template, SQUARE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), max_tokens=100_000)


def talk(rounds: int, prompt: bool, seed: int = 0, pictures: bool = False) -> tuple[Turn, ...]:
    """Rounds of random words, with pictures before, within and after the questions; ``prompt`` leaves the last open."""
    rng = random.Random(seed)
    words = " ".join(TEXTS).split() + ["\n", "naïve", "日本", "12.50", "(a)", "  ", "\n\n"]
    turns = []
    for _ in range(rounds):
        said: list[str | Media] = [" ".join(rng.choices(words, k=rng.randint(1, 6))).strip() or "x"]
        for _ in range(rng.randint(0, 2) if pictures else 0):
            said.insert(rng.randint(0, len(said)), PICTURE)
        answer = " ".join(rng.choices(words, k=rng.randint(1, 6))).strip() or "y"
        turns += [Turn("user", tuple(said)), Turn("assistant", (answer,))]
    return tuple(turns[:-1] if prompt else turns)


def pieces(turns: tuple[Turn, ...], made_of: Processor, prompt: bool) -> Iterator[int]:
    for piece in lay_out(Sample(turns), made_of, prompt):
        yield from piece.ids


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_ids_are_those_of_the_whole_string(kind, name):
    tokenizer = made(kind)
    of = processor(tokenizer, get_template(name))
    for rounds in (1, 2, 3):
        for prompt in (False, True):
            turns = talk(rounds, prompt, rounds)
            found, text = list(pieces(turns, of, prompt)), written(turns, name, prompt)
            assert tokenizer.convert_ids_to_tokens(found) == tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)


@pytest.mark.parametrize("kind", KINDS)
def test_marks_that_leave_the_white_space_alone(kind):
    """Phi-3's first tokenizers."""
    tokenizer = made(kind, swallow=False)
    of = processor(tokenizer, get_template("phi3"))
    for prompt in (False, True):
        turns = talk(3, prompt)
        assert list(pieces(turns, of, prompt)) == tokenizer(written(turns, "phi3", prompt)).input_ids


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_between_pictures_the_originals_tokenise_texts_of_their_own(kind, name):
    """Each part by itself, with one beginning-of-text token, at the front."""
    tokenizer = made(kind)
    of = processor(tokenizer, get_template(name))
    start = tokenizer("").input_ids
    for seed in range(6):
        prompt = seed % 2 == 1
        turns = talk(1 + seed % 3, prompt, seed, pictures=True)
        parts = written(turns, name, prompt).split("<image>")
        expected = list(start)
        for i, part in enumerate(parts):
            expected += [IMAGE] * 4 * (i > 0) + tokenizer(part).input_ids[len(start) :]
        assert list(pieces(turns, of, prompt)) == expected


TEXT = "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
OWN = {
    "Vicuna": VICUNA_HF,
    "Mistral, which writes its start": (
        "{{ '<s>' }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] " + TEXT + " [/INST]"
        "{% else %} " + TEXT + "</s> {% endif %}{% endfor %}"
    ),
    "Phi-3": (
        "{% for m in messages %}<|{{ m['role'] }}|>\n" + TEXT + "<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    ),
    "blanks and marks": "{% for m in messages %}{{ m['role'] + ': ' }}" + TEXT + "{{ eos_token }}{% endfor %}",
    "nothing between an answer and a question": "{% for m in messages %}" + TEXT + "{% endfor %}",
}


def messages(turns: tuple[Turn, ...]) -> list[dict[str, Any]]:
    """What transformers takes, which is what `Assistant.chat` takes."""
    return [
        {
            "role": turn.role,
            "content": [
                {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part.reference}
                for part in turn.content
            ],
        }
        for turn in turns
    ]


def rendered(tokenizer: Any, turns: tuple[Turn, ...], source: str, prompt: bool) -> list[int]:
    """What transformers' processors feed: <image> repeated; no start by itself where the template wrote it."""
    text = tokenizer.apply_chat_template(
        messages(turns), chat_template=source, tokenize=False, add_generation_prompt=prompt
    )
    ids = tokenizer(text.replace("<image>", "<image>" * 4), add_special_tokens=not text.startswith("<s>")).input_ids
    image = tokenizer.convert_tokens_to_ids("<image>")
    return [IMAGE if token == image else token for token in ids]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("own", OWN)
def test_a_checkpoints_own_template_gives_transformers_ids(kind, own):
    tokenizer = made(kind)
    of = processor(tokenizer, JinjaTemplate(OWN[own], tokenizer))
    for seed in range(6):
        prompt = seed % 2 == 1
        turns = talk(1 + seed % 3, prompt, seed, pictures=True)
        assert list(pieces(turns, of, prompt)) == rendered(tokenizer, turns, OWN[own], prompt)
