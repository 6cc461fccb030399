"""Templates are the published formats, character by character, and supervise what they say they do.

The Jinja texts below are the chat templates of published tokenizers, without their checks that roles alternate, tools
and generation tags. None was copied from a tokenizer's files; QWEN_2 and its system texts are from memory alone.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from conftest import picture

from pumice.chat import check_marks, own_start, spans, supervise_everywhere
from pumice.encode import Processor, encode, join, tokenize
from pumice.templates import TEMPLATES, get_template
from pumice.types import IGNORE, IMAGE, Media, PumiceError, Sample, Turn

SIZE = (30, 30)
PICTURE = Media(picture(0, SIZE), SIZE)

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)
LLAVA_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
MPT_SYSTEM = (
    "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest answers."
)


class Format(NamedTuple):
    """A published format. {s} system, {q} question, {a} answer; [[what is supervised]].

    ``first`` follows the system text, ``bare`` opens a conversation without one, ``later`` are the other rounds.
    """

    default: str | None
    system: str
    first: str
    later: str = ""
    bare: str = ""
    start: str | None = None  # None: the tokenizer's own


CHATML = "<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n[[{a}<|im_end|>]]\n"
CHATML_SYSTEM = "<|im_start|>system\n{s}<|im_end|>\n"
DIRECT = "<|im_start|>user\n{q}<|im_end|><|im_start|>assistant\n[[{a}<|im_end|>]]"
DIRECT_SYSTEM = "<|im_start|>system\n{s}<|im_end|>"
VICUNA = "USER: {q} ASSISTANT:[[ {a}</s>]]"
INST = "{q} [/INST][[ {a} </s>]]"
GEMMA = "{q}<end_of_turn>\n<start_of_turn>model\n[[{a}<end_of_turn>]]\n"
HEADER = "<|start_header_id|>%s<|end_header_id|>\n\n"

FORMATS = {
    "chatml": Format(None, CHATML_SYSTEM, CHATML, start=""),
    "smollm2": Format(
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face", CHATML_SYSTEM, CHATML, start=""
    ),
    "qwen_1_5": Format("You are a helpful assistant.", CHATML_SYSTEM, CHATML, start=""),
    "qwen_2_5": Format(
        "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.", CHATML_SYSTEM, CHATML, start=""
    ),
    "chatml_direct": Format("Answer the questions.", DIRECT_SYSTEM, DIRECT),
    "mpt": Format(MPT_SYSTEM, DIRECT_SYSTEM, DIRECT),
    "v1": Format(VICUNA_SYSTEM, "{s} ", VICUNA),
    "llava_v1": Format(VICUNA_SYSTEM.replace("user", "human"), "{s} ", VICUNA),
    "mistral_instruct": Format(None, "[INST] {s}\n\n", INST, "[INST] " + INST, "[INST] " + INST),
    "llava_llama_2": Format(LLAVA_SYSTEM, "[INST] <<SYS>>\n{s}\n<</SYS>>\n\n", INST, "<s>[INST] " + INST),
    "llava_llama_3": Format(
        LLAVA_SYSTEM,
        HEADER % "system" + "{s}<|eot_id|>",
        HEADER % "user" + "{q}<|eot_id|>" + HEADER % "assistant" + "[[{a}<|eot_id|>]]",
        start="<|begin_of_text|>",
    ),
    "gemma_instruct": Format(
        None, "<start_of_turn>user\n{s}\n\n", GEMMA, "<start_of_turn>user\n" + GEMMA, "<start_of_turn>user\n" + GEMMA
    ),
    "phi3": Format(
        "You are a helpful AI assistant.",
        "<|system|>\n{s}<|end|>",
        "\n<|user|>\n{q}<|end|>\n<|assistant|>\n[[{a}<|end|>]]",
    ),
    "plain": Format(None, "", "{q}[[{a}\n]]"),
}
MARKS = sorted({mark.strip() for template in TEMPLATES.values() for mark in template.marks} | {"<|begin_of_text|>"})
WORDS = ["What", "is this?", "12.50", "naïve", "日本", "\n", "\n\nso", "<image>", "USER:", "[/INST]", *MARKS]

IM = "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
IM_PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
PLAIN_CHATML = "{% for message in messages %}" + IM + IM_PROMPT
QWEN_2 = (  # Qwen 1.5 and 2; SmolLM2 and Qwen 2.5 differ in the system text
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}" + IM + IM_PROMPT
)
LLAMA_3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (  # Mistral-7B-Instruct-v0.2
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ message['content'] + eos_token}}{% endif %}{% endfor %}"
)
VICUNA_HF = (  # llava-hf/llava-1.5-7b-hf
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
PHI_3 = (
    "{% for message in messages %}{{'<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
GEMMA_2 = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"
)


@pytest.fixture(scope="module")
def bytelevel() -> Any:
    """Byte-level BPE cut and merged as Qwen's and Llama 3's: white space and newlines merge, also with a full stop."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    words = Regex(
        r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"  # as in GPT-4's family
    )
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(["user\nThe answer.\nassistant\n\nsystem\n What is it?\n\n\n"] * 4, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=core)
    made.add_special_tokens({"additional_special_tokens": MARKS})
    return made


def sentencepiece(legacy: bool) -> Any:
    """Llama's tokenizer in small: white space is "▁", put before a text too; ``legacy``: after a special token too."""
    from transformers import LlamaTokenizer

    characters = [chr(code) for code in range(33, 127)]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *characters]
    pieces += ["▁" + character for character in characters]
    merges = [("▁", character) for character in characters]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return LlamaTokenizer(vocab=vocabulary, merges=merges, legacy=legacy, add_bos_token=True)


def written(turns: tuple[Turn, ...], name: str, prompt: bool = False, start: str = "") -> str:
    parts = spans(turns, get_template(name), prompt, start)
    return "".join("<image>" if isinstance(part.content, Media) else part.content for part in parts)


def talk(*texts: str, system: str | None = None) -> tuple[Turn, ...]:
    turns = [Turn("system", (system,))] if system is not None else []
    return (*turns, *(Turn("assistant" if i % 2 else "user", (text,)) for i, text in enumerate(texts)))


def own(
    tokenizer: Any, turns: tuple[Turn, ...], jinja: str, prompt: bool, bos: str = "<s>", eos: str = "</s>"
) -> tuple[str, list[int]]:
    """Text and ids that transformers makes of the turns with a published chat template."""
    messages = [{"role": turn.role, "content": turn.content[0]} for turn in turns]
    if jinja is VICUNA_HF:
        for message, turn in zip(messages, turns, strict=True):
            message["content"] = [
                {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in turn.content
            ]
    options = {"chat_template": jinja, "add_generation_prompt": prompt, "bos_token": bos, "eos_token": eos}
    text = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    return text, tokenizer.apply_chat_template(messages, **options)["input_ids"]


def conversation(seed: int) -> tuple[tuple[Turn, ...], str | None, list[tuple[tuple[str | Media, ...], str]]]:
    """Up to three rounds of any words, special tokens among them, and pictures; the same as turns and as parts."""
    rng = random.Random(seed)
    system = " ".join(rng.choices(WORDS, k=3)) if rng.random() < 0.5 else None
    rounds = []
    for _ in range(rng.randint(1, 3)):
        parts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 5))), *[PICTURE] * rng.randint(0, 2)]
        rounds.append((tuple(rng.sample(parts, len(parts))), " ".join(rng.choices(WORDS, k=rng.randint(1, 4)))))
    turns = [Turn("system", (system,))] if system is not None else []
    for question, answer in rounds:
        turns += [Turn("user", question), Turn("assistant", (answer,))]
    return tuple(turns), system, rounds


def expected(name: str, system: str | None, rounds: list[tuple[tuple[str | Media, ...], str]], start: str) -> str:
    """The conversation in its published format, what is supervised still in double brackets."""
    form = FORMATS[name]
    system = form.default if system is None else system
    text = start if form.start is None else form.start
    text += "" if system is None else form.system.replace("{s}", system)
    for i, (question, answer) in enumerate(rounds):
        shape = (form.later or form.first) if i else form.bare if system is None and form.bare else form.first
        said = [part for part in question if name != "plain" or isinstance(part, Media)]
        line = "" if name == "plain" else "\n"
        filled = "".join("<image>" + line if isinstance(part, Media) else part for part in said)
        before, between, after = re.split("{q}|{a}", shape)
        text += before + filled + between + answer + after
    return text


def unmarked(text: str) -> str:
    return text.replace("[[", "").replace("]]", "")


def supervised(text: str) -> list[str]:
    return re.findall(r"\[\[(.*?)\]\]", text, re.DOTALL)


def runs(ids: list[int], labels: list[int], tokenizer: Any) -> Iterator[str]:
    """Texts of the runs of supervised tokens."""
    current: list[int] = []
    for token, label in [*zip(ids, labels, strict=True), (0, IGNORE)]:
        assert label in (token, IGNORE)
        if label != IGNORE:
            current.append(token)
        elif current:
            yield tokenizer.decode(current, skip_special_tokens=False)
            current = []


def test_every_template_is_held_to_a_format():
    assert {template.name for template in TEMPLATES.values()} == set(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("seed", range(8))
def test_conversations_are_written_exactly(name, seed):
    turns, system, rounds = conversation(seed)
    whole = expected(name, system, rounds, start="<bos>")
    assert written(turns, name, start="<bos>") == unmarked(whole)
    parts = list(spans(turns, get_template(name), start="<bos>"))
    assert "".join(str(part.content) for part in parts if part.loss) == "".join(supervised(whole))
    assert all(part.owner == "assistant" for part in parts if part.loss)
    # The prompt of the last question is the conversation up to its answer.
    assert written(turns[:-1], name, prompt=True, start="<bos>") == unmarked(whole[: whole.rindex("[[")])


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("seed", range(4))
def test_tokens_are_the_text_and_typed_special_tokens_stay_text(name, seed, bytelevel, processor):
    turns, system, rounds = conversation(seed)
    processor = dataclasses.replace(processor, tokenizer=bytelevel, template=get_template(name))
    features = encode(Sample(turns), processor)
    ids, labels = features.ids.tolist(), features.labels.tolist()
    whole = expected(name, system, rounds, start="")
    pictures = sum(turn.content.count(PICTURE) for turn in turns)
    shown = bytelevel.decode([token for token in ids if token != IMAGE], skip_special_tokens=False)
    assert len(shown) == len(unmarked(whole)) - len("<image>") * pictures
    assert shown.replace("<image>", "") == unmarked(whole).replace("<image>", "")  # it may be typed, too
    assert "".join(runs(ids, labels, bytelevel)) == "".join(supervised(whole))
    # Special tokens: those of the format with harmless texts, no more.
    harmless = [Turn(turn.role, tuple("x" if isinstance(p, str) else p for p in turn.content)) for turn in turns]
    quiet = encode(Sample(tuple(harmless)), processor).ids.tolist()
    specials = set(bytelevel.convert_tokens_to_ids(MARKS))
    assert [token for token in ids if token in specials] == [token for token in quiet if token in specials]
    assert name == "plain" or any(token in specials for token in ids)


@pytest.mark.parametrize("name", FORMATS)
def test_a_prompt_is_the_beginning_of_the_answered_sample(name, bytelevel, processor):
    for loss in ("answer", "originals"):
        processor = dataclasses.replace(processor, tokenizer=bytelevel, template=get_template(name, loss))
        for answer in ("The answer.", "\n\nso", " 12"):  # newlines would merge with those of the head
            prompt = encode(Sample(talk("Q?", "A.", "R")), processor, prompt=True).ids.tolist()
            assert encode(Sample(talk("Q?", "A.", "R", answer)), processor).ids.tolist()[: len(prompt)] == prompt


def test_aliases_are_the_same_object():
    pairs = {"vicuna_v1": "v1", "llava_mistral_instruct": "mistral_instruct", "mistral_direct": "chatml_direct"}
    for alias, name in (pairs | {"qwen_2": "qwen_1_5"}).items():
        assert get_template(alias) is get_template(name)
        assert get_template(name).name == name


OWN = {  # template, Jinja text, (bos, eos), a system turn is possible
    "ChatML": ("chatml", PLAIN_CHATML, ("", ""), True),
    "Qwen 2": ("qwen_1_5", QWEN_2, ("", ""), True),
    "Qwen 2.5": (
        "qwen_2_5",
        QWEN_2.replace("You are a", "You are Qwen, created by Alibaba Cloud. You are a"),
        ("", ""),
        True,
    ),
    "SmolLM2": (
        "smollm2",
        QWEN_2.replace("assistant.<", "AI assistant named SmolLM, trained by Hugging Face<"),
        ("", ""),
        True,
    ),
    "Llama 3": ("llava_llama_3", LLAMA_3, ("<|begin_of_text|>", "<|end_of_text|>"), True),
    "Gemma 2": ("gemma_instruct", GEMMA_2, ("<bos>", "<eos>"), False),
    "Llama 2": ("llava_llama_2", LLAMA_2, ("<s>", "</s>"), True),
}


@pytest.mark.parametrize("model", OWN)
def test_templates_are_the_tokenizers_own(model, bytelevel):
    name, jinja, (bos, eos), with_system = OWN[model]
    default = get_template(name).default_system
    for system in (None, "Be brief.") if with_system else (None,):
        for texts in (("Q?",), ("<image>\nQ?", "The\nanswer.", "R"), ("Q?", "A", "R", "B")):
            turns = talk(*texts, system=system)
            prompt = turns[-1].role == "user"
            # Llama's texts have no default of their own; ours is given to them.
            given = talk(*texts, system=system or default) if model.startswith("Llama") else turns
            assert written(turns, name, prompt, start=bos) == own(bytelevel, given, jinja, prompt, bos, eos)[0]


def test_where_llava_differs_from_the_tokenizers_own(bytelevel):
    turns = talk("Q", "A", "R")
    # Mistral: blanks around the answer.
    text, _ = own(bytelevel, turns, MISTRAL, prompt=True)
    assert text.replace("[/INST]A</s>", "[/INST] A </s>") == written(turns, "mistral_instruct", True, "<s>")
    # Yi's fine-tune: no newline after <|im_end|>.
    text, _ = own(bytelevel, talk("Q", "A", "R", system="Answer the questions."), PLAIN_CHATML, prompt=True)
    assert text.replace("<|im_end|>\n", "<|im_end|>") == written(turns, "chatml_direct", True)
    # Phi-3: prompts are equal; a whole conversation has a newline and an end of text more.
    ordered = talk("Q", "A", "R", system="You are a helpful AI assistant.")
    assert own(bytelevel, ordered, PHI_3, prompt=True)[0] == written(turns, "phi3", True)
    assert own(bytelevel, ordered[:-1], PHI_3, prompt=False)[0] == written(turns[:-1], "phi3") + "\n</s>"
    # Vicuna of llava-hf: no system text by itself, and a blank in place of </s> after an answer.
    ordered = (Turn("system", (VICUNA_SYSTEM,)), Turn("user", (PICTURE, "Q")), *turns[1:])
    text, _ = own(bytelevel, ordered, VICUNA_HF, prompt=True)
    assert text.replace("ASSISTANT: A ", "ASSISTANT: A</s>") == written(ordered[1:], "v1", prompt=True)


@pytest.mark.parametrize(("name", "jinja"), [("qwen_1_5", QWEN_2), ("llava_llama_3", LLAMA_3)])
def test_ids_are_those_of_the_whole_string(name, jinja, bytelevel, processor):
    processor = dataclasses.replace(processor, tokenizer=bytelevel, template=get_template(name))
    system = processor.template.default_system
    questions = ["Is it\n\nso?", "?\n", "12 ."] + (["\n\nQ", " Q ", "\n"] if name == "qwen_1_5" else [])
    for question in questions:  # Llama 3's own template strips white space off the ends
        turns = talk(question, "The answer.", question, system=system)
        _, whole = own(bytelevel, turns, jinja, prompt=True, bos="<|begin_of_text|>")
        stripped = talk(question.strip(), "The answer.", question.strip()) if name == "llava_llama_3" else turns
        assert encode(Sample(stripped), processor, prompt=True).ids.tolist() == whole


@pytest.mark.parametrize("name", ["v1", "mistral_instruct", "llava_llama_2"])
def test_ids_of_llamas_tokenizer_are_those_of_the_whole_string(name):
    tokenizer, template = sentencepiece(legacy=True), get_template(name)
    turns = talk("What is it?", "12.50", "Sure?", "Yes.")
    parts = join(spans(turns, template, start=own_start(tokenizer)))
    ids = [token for part in parts for token in tokenize(tokenizer, str(part.content), part.markup)]
    assert ids == tokenizer(written(turns, name)).input_ids
    assert ids.count(tokenizer.bos_token_id) == (2 if name == "llava_llama_2" else 1)


def test_special_tokens_of_phi_3_swallow_their_newlines():
    from transformers import AddedToken

    tokenizer = sentencepiece(legacy=True)
    marks = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    tokenizer.add_tokens([AddedToken(mark, rstrip=True, normalized=False, special=True) for mark in marks])
    turns = talk("What is it?")
    parts = join(spans(turns, get_template("phi3"), prompt=True, start=own_start(tokenizer)))
    ids = [token for part in parts for token in tokenize(tokenizer, str(part.content), part.markup)]
    assert ids == tokenizer(written(turns, "phi3", prompt=True)).input_ids
    assert tokenizer.convert_tokens_to_ids("<0x0A>") not in ids


def test_the_start_is_the_templates_or_the_tokenizers_own(bytelevel):
    llama = sentencepiece(legacy=False)
    assert (own_start(llama), own_start(bytelevel)) == ("<s>", "")
    llama.add_bos_token = False
    assert own_start(llama) == ""
    bytelevel_with_bos = type(bytelevel)(tokenizer_object=bytelevel.backend_tokenizer, bos_token="<|im_start|>")
    assert own_start(bytelevel_with_bos) == ""  # named, but not put before a text: SmolLM2's
    for name, form in FORMATS.items():
        first = next(spans(talk("Q", "A"), get_template(name), start="<s>"))
        assert (first.content == "<s>") == (form.start is None)
        assert "<s>" not in written(talk("Q", "A"), name)


def test_the_stop_of_a_caption_is_a_token_of_its_own(bytelevel, processor):
    processor = dataclasses.replace(processor, tokenizer=bytelevel, template=get_template("plain"))
    assert len(bytelevel(".\n").input_ids) == 1
    features = encode(Sample((Turn("user", (PICTURE, "Describe.")), Turn("assistant", ("A cat.",)))), processor)
    assert features.labels[-1] in processor.stop_ids
    assert list(runs(features.ids.tolist(), features.labels.tolist(), bytelevel)) == ["A cat.\n"]


def originals(turns: tuple[Turn, ...], name: str, processor: Processor) -> tuple[list[int], list[int]]:
    processor = dataclasses.replace(processor, template=get_template(name, "originals"))
    features = encode(Sample(turns), processor)
    ids = features.ids.tolist()
    return ids, supervise_everywhere(ids, features.labels.tolist(), processor.template, processor.tokenizer)


@pytest.mark.parametrize(
    ("name", "jinja", "everywhere"),
    [
        ("qwen_1_5", PLAIN_CHATML, ["<|im_start|>", "<|im_end|>", "\n"]),
        (
            "llava_llama_3",
            LLAMA_3,
            ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "\n\n"],
        ),
    ],
)
def test_the_originals_loss_is_that_of_their_code(name, jinja, everywhere, bytelevel, processor):
    """LLaVA-NeXT tokenises turn by turn with the chat template, and unmasks some tokens wherever they stand."""
    processor = dataclasses.replace(processor, tokenizer=bytelevel)
    turns = talk("Is\nit?\n\nSay.", "The\nanswer.", "12\n\n3", "4", system="You\nare")
    ids, labels = [], []
    wanted = [bytelevel(text).input_ids for text in everywhere]
    assert all(len(tokens) == 1 for tokens in wanted)
    for i, turn in enumerate(turns):
        _, new = own(bytelevel, (turn,), jinja, prompt=False, bos="<|begin_of_text|>")
        new = new[1:] if name == "llava_llama_3" and i else new
        ids += new
        labels += new if turn.role == "assistant" else [IGNORE] * len(new)
    labels = [token if [token] in wanted else label for token, label in zip(ids, labels, strict=True)]
    assert originals(turns, name, processor) == (ids, labels)
    mine = encode(Sample(turns), dataclasses.replace(processor, template=get_template(name))).labels.tolist()
    assert mine == supervise_everywhere(ids, mine, get_template(name), bytelevel)
    assert 0 < sum(label != IGNORE for label in mine) < sum(label != IGNORE for label in labels)


def test_the_originals_loss_of_the_other_templates(bytelevel, processor):
    processor = dataclasses.replace(processor, tokenizer=bytelevel)
    turns = talk("Q\n\nR", "A\nB", "S", "C")
    for name in sorted(set(FORMATS) - {"chatml", "smollm2", "qwen_1_5", "qwen_2_5", "llava_llama_3", "gemma_instruct"}):
        mine = encode(Sample(turns), dataclasses.replace(processor, template=get_template(name)))
        assert originals(turns, name, processor) == (mine.ids.tolist(), mine.labels.tolist())
    ids, labels = originals(turns, "gemma_instruct", processor)
    assert list(runs(ids, labels, bytelevel)) == ["A\nB<end_of_turn>\n", "C<end_of_turn>\n"]


def test_what_does_not_fit_is_refused(bytelevel):
    with pytest.raises(PumiceError, match=r"'vicuna'; known: chatml, .*v1, vicuna_v1"):
        get_template("vicuna")
    with pytest.raises(PumiceError, match="unknown loss 'all' of template 'v1'; known: answer, originals"):
        get_template("v1", "all")  # pyright: ignore[reportArgumentType]
    llama = sentencepiece(legacy=False)
    check_marks(get_template("v1"), llama)
    for template in TEMPLATES.values():
        check_marks(template, bytelevel)
    with pytest.raises(PumiceError, match=r"'qwen_1_5' needs '<\|im_start\|>' to be one token, .* it is 12"):
        check_marks(get_template("qwen_1_5"), llama)
    with pytest.raises(PumiceError, match="'qwen_1_5' needs"):
        supervise_everywhere([1], [1], get_template("qwen_1_5", "originals"), llama)
    with pytest.raises(PumiceError, match="can't hold a picture"):
        list(spans((Turn("assistant", (PICTURE,)),), get_template("v1")))
