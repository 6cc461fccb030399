"""Conversation templates as data: how the language models of the line were taught to take turns.

    name ──get_template──> Template (heads, tails, marks, stop) ──pumice.chat.spans──> spans

Sources: the conversation classes of LLaVA and LLaVA-NeXT, ELVA's, and the chat templates of the models' tokenizers.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from pumice.types import PumiceError, Role

Loss = Literal["answer", "originals"]


@dataclass(frozen=True)
class Template:
    """How turns are written, and what of them is learned.

    Writing. ``heads`` and ``tails`` surround a role's text; ``heads_after`` holds the heads that differ right after a
    turn of another role, under (that role, role). The assistant's head is also the generation prompt; its tail is
    ``stop``, which ends generation, and ``after``. An answer is preceded by ``answer_prefix`` (Vicuna's head has no
    trailing space), a picture followed by ``after_media``. ``default_system`` is the system text of a conversation
    that has no system turn. ``answers_only`` leaves out all other texts.
    ``start`` is the beginning of every conversation; None: what the tokenizer puts first by itself, if anything (see
    ``own_start``). It is written once, as a span: texts are always tokenised without the tokenizer's special tokens.
    ``marks`` are the parts of heads, tails and ``after`` in which special tokens are parsed. The rest of them is
    ordinary text, tokenised together with what is said next to it, as in a string that is tokenised as a whole.

    Learning. ``loss`` "answer": the answer with its prefix, and ``stop``. ``loss`` "originals": what the LLaVA code
    supervises. That is the same, and for some templates in addition the assistant's head or ``after`` (``turn_loss``)
    and certain tokens wherever they stand, in system and user turns too (``token_loss``: their texts).
    """

    name: str
    heads: dict[Role, str]
    tails: dict[Role, str]
    stop: str
    marks: tuple[str, ...]
    heads_after: dict[tuple[Role, Role], str] = field(default_factory=dict)
    after: str = ""
    start: str | None = ""
    default_system: str | None = None
    after_media: str = "\n"
    answer_prefix: str = ""
    answers_only: bool = False
    aliases: tuple[str, ...] = ()
    loss: Loss = "answer"
    turn_loss: tuple[Literal["head", "after"], ...] = ()
    token_loss: tuple[str, ...] = ()


def _chatml(name: str, default_system: str | None, aliases: tuple[str, ...] = ()) -> Template:
    """ChatML as Qwen's tokenizers write it. The originals' loss is that of LLaVA-NeXT's code for Qwen."""
    roles: tuple[Role, ...] = ("system", "user", "assistant")
    return Template(
        name=name,
        aliases=aliases,
        heads={role: f"<|im_start|>{role}\n" for role in roles},
        tails={"system": "<|im_end|>\n", "user": "<|im_end|>\n"},
        stop="<|im_end|>",
        after="\n",
        marks=("<|im_start|>", "<|im_end|>"),
        default_system=default_system,
        turn_loss=("head", "after"),
        token_loss=("<|im_start|>", "<|im_end|>", "\n"),
    )


def _chatml_without_newlines(name: str, default_system: str, aliases: tuple[str, ...] = ()) -> Template:
    """LLaVA's MPT style: no newline after <|im_end|>, unlike the chat template of the models' own tokenizers."""
    return replace(
        _chatml(name, default_system, aliases),
        tails={"system": "<|im_end|>", "user": "<|im_end|>"},
        after="",
        start=None,
        turn_loss=(),
        token_loss=(),
    )


def _vicuna(name: str, person: str, aliases: tuple[str, ...] = ()) -> Template:
    return Template(
        name=name,
        aliases=aliases,
        start=None,
        heads={"system": "", "user": "USER: ", "assistant": "ASSISTANT:"},
        tails={"system": " ", "user": " "},
        stop="</s>",
        marks=("</s>",),
        default_system=f"A chat between a curious {person} and an artificial intelligence assistant. "
        f"The assistant gives helpful, detailed, and polite answers to the {person}'s questions.",
        answer_prefix=" ",
    )


_LLAVA_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)

_ALL: tuple[Template, ...] = (
    _chatml("chatml", None),
    _chatml("smollm2", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
    _chatml("qwen_1_5", "You are a helpful assistant.", aliases=("qwen_2",)),
    _chatml("qwen_2_5", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    _chatml_without_newlines("chatml_direct", "Answer the questions.", aliases=("mistral_direct",)),
    _chatml_without_newlines(
        "mpt",
        "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest answers.",
    ),
    _vicuna("v1", "user", aliases=("vicuna_v1",)),
    _vicuna("llava_v1", "human"),
    Template(
        name="mistral_instruct",
        aliases=("llava_mistral_instruct",),
        start=None,
        # The format has no system turn: a given one opens the question, as in Mistral's later chat templates.
        heads={"system": "[INST] ", "user": "[INST] ", "assistant": ""},
        heads_after={("system", "user"): ""},
        tails={"system": "\n\n", "user": " [/INST]"},
        stop=" </s>",
        marks=("</s>",),
        answer_prefix=" ",
    ),
    Template(
        name="llava_llama_2",
        start=None,
        heads={"system": "[INST] <<SYS>>\n", "user": "[INST] ", "assistant": ""},
        heads_after={("system", "user"): "", ("assistant", "user"): "<s>[INST] "},
        tails={"system": "\n<</SYS>>\n\n", "user": " [/INST]"},
        stop=" </s>",
        marks=("<s>", "</s>"),
        default_system=_LLAVA_SYSTEM,
        answer_prefix=" ",
    ),
    Template(
        name="llava_llama_3",
        start="<|begin_of_text|>",
        heads={
            "system": "<|start_header_id|>system<|end_header_id|>\n\n",
            "user": "<|start_header_id|>user<|end_header_id|>\n\n",
            "assistant": "<|start_header_id|>assistant<|end_header_id|>\n\n",
        },
        tails={"system": "<|eot_id|>", "user": "<|eot_id|>"},
        stop="<|eot_id|>",
        marks=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        default_system=_LLAVA_SYSTEM,
        turn_loss=("head",),
        # LLaVA-NeXT's code lists "\n\n" but looks it up by its text, which a byte-level vocabulary spells otherwise.
        token_loss=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "\n\n"),
    ),
    Template(
        name="gemma_instruct",
        start=None,
        # The format has no system turn: a given one opens the question, as in Gemma 3's chat template.
        heads={
            "system": "<start_of_turn>user\n",
            "user": "<start_of_turn>user\n",
            "assistant": "<start_of_turn>model\n",
        },
        heads_after={("system", "user"): ""},
        tails={"system": "\n\n", "user": "<end_of_turn>\n"},
        stop="<end_of_turn>",
        after="\n",
        marks=("<start_of_turn>", "<end_of_turn>"),
        turn_loss=("after",),
    ),
    Template(
        name="phi3",  # ELVA's: a newline before every head but the first
        start=None,
        heads={"system": "<|system|>\n", "user": "\n<|user|>\n", "assistant": "\n<|assistant|>\n"},
        tails={"system": "<|end|>", "user": "<|end|>"},
        stop="<|end|>",
        # With their newlines: Phi-3's special tokens swallow the white space after them, within one text.
        marks=("<|system|>\n", "\n<|user|>\n", "\n<|assistant|>\n", "<|end|>"),
        default_system="You are a helpful AI assistant.",
    ),
    Template(
        name="plain",  # LLaVA's stage 1: the picture and its caption; what the user said is left out
        start=None,
        heads={"system": "", "user": "", "assistant": ""},
        tails={"system": "", "user": ""},
        stop="\n",
        marks=(),
        after_media="",
        answers_only=True,
    ),
)

TEMPLATES: dict[str, Template] = {name: template for template in _ALL for name in (template.name, *template.aliases)}
"""Every template under its name and its aliases. LLaVA's and ELVA's have the names of their code."""


def get_template(name: str, loss: Loss = "answer") -> Template:
    """The template of an exact name or alias; ``loss`` is explained in ``Template``.

    Raises:
        PumiceError: no such template, or no such loss.
    """
    if name not in TEMPLATES:
        raise PumiceError(f"unknown conversation template {name!r}; known: {', '.join(TEMPLATES)}")
    if loss not in get_args(Loss):
        raise PumiceError(f"unknown loss {loss!r} of template {name!r}; known: {', '.join(get_args(Loss))}")
    template = TEMPLATES[name]
    return template if loss == template.loss else replace(template, loss=loss)
