"""Conversation templates as data: turns become spans, each with an owner.

    turns ──spans(template)──> [Span(text or Media, owner, markup, loss)] ──encode──> ids and labels

A span knows whether it is the template's own markup (special tokens are parsed) or somebody's text (a special token
that a user types stays text), and whether it carries loss. Nothing is ever searched for in a rendered string.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pumice.types import Media, PumiceError, Role, Turn

Owner = Literal["template", "system", "user", "assistant"]


@dataclass(frozen=True)
class Span:
    """A run of one owner's text, or one picture. ``markup``: special tokens in it are parsed. ``loss``: supervised."""

    content: str | Media
    owner: Owner
    markup: bool = False
    loss: bool = False


@dataclass(frozen=True)
class Template:
    """How turns are written. Heads and tails surround a role's text; the assistant's tail is ``stop`` + ``after``.

    ``stop`` is supervised with the answer and ends generation. ``prompt`` is the open assistant head at the end of
    a question (it may lack the head's trailing space, as in Vicuna's format).
    """

    name: str
    heads: dict[Role, str]
    tails: dict[Role, str]
    stop: str
    prompt: str
    after: str = ""
    start: str = ""
    default_system: str | None = None
    after_media: str = "\n"
    answer_prefix: str = ""
    answers_only: bool = False


def _chatml(name: str, default_system: str | None) -> Template:
    roles: tuple[Role, ...] = ("system", "user", "assistant")
    return Template(
        name=name,
        heads={role: f"<|im_start|>{role}\n" for role in roles},
        tails={"system": "<|im_end|>\n", "user": "<|im_end|>\n"},
        stop="<|im_end|>",
        after="\n",
        prompt="<|im_start|>assistant\n",
        default_system=default_system,
    )


_VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)

_LLAMA_3 = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)

_ALL: tuple[Template, ...] = (
    _chatml("chatml", None),
    _chatml("qwen_1_5", "You are a helpful assistant."),
    _chatml("smollm2", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
    Template(
        name="v1",
        heads={"system": "", "user": "USER: ", "assistant": "ASSISTANT:"},
        tails={"system": " ", "user": " "},
        stop="</s>",
        prompt="ASSISTANT:",
        default_system=_VICUNA,
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
        prompt="<|start_header_id|>assistant<|end_header_id|>\n\n",
        default_system=_LLAMA_3,
    ),
    Template(
        name="plain",  # LLaVA's stage 1: the picture and its caption; what the user said is left out
        heads={"system": "", "user": "", "assistant": ""},
        tails={"system": "", "user": ""},
        stop="\n",
        prompt="",
        after_media="",
        answers_only=True,
    ),
)

TEMPLATES: dict[str, Template] = {template.name: template for template in _ALL}


def get_template(name: str) -> Template:
    """The template of an exact name.

    Raises:
        PumiceError: no such template.
    """
    if name not in TEMPLATES:
        raise PumiceError(f"unknown conversation template {name!r}; known: {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def spans(turns: Sequence[Turn], template: Template, prompt: bool = False) -> Iterator[Span]:
    """Lay turns out as spans; with ``prompt`` the assistant's head follows the last turn, ready for generation.

    Raises:
        PumiceError: no turn, or a role that the template doesn't know.
    """
    if not turns:
        raise PumiceError("a conversation needs at least one turn")
    if template.start:
        yield Span(template.start, "template", markup=True)
    if template.default_system is not None and turns[0].role != "system" and not template.answers_only:
        yield from _turn(Turn("system", (template.default_system,)), template)
    for turn in turns:
        if turn.role not in template.heads:
            raise PumiceError(f"role {turn.role!r} is not one of system, user, assistant")
        yield from _turn(turn, template)
    if prompt and template.prompt:
        yield Span(template.prompt, "template", markup=True)


def _turn(turn: Turn, template: Template) -> Iterator[Span]:
    answers = turn.role == "assistant"
    if template.heads[turn.role]:
        yield Span(template.heads[turn.role], "template", markup=True)
    for part in turn.content:
        if isinstance(part, Media):
            if answers:
                raise PumiceError("an assistant turn can't hold a picture")
            yield Span(part, turn.role)
            if template.after_media:
                yield Span(template.after_media, "template", markup=True)
        elif part and not (template.answers_only and not answers):
            yield Span(template.answer_prefix + part if answers else part, turn.role, loss=answers)
    if answers:
        yield Span(template.stop, "assistant", markup=True, loss=True)
        if template.after:
            yield Span(template.after, "template", markup=True)
    elif template.tails[turn.role]:
        yield Span(template.tails[turn.role], "template", markup=True)
