"""Turns become spans, each with an owner, as a conversation template says.

    turns ──spans(template)──> [Span(text or Media, owner, markup, loss)] ──encode──> ids and labels
    ids and labels ──supervise_everywhere──> labels as the LLaVA code sets them, where a template asks for it

A span knows whether special tokens in it are parsed (the template's own marks) or not (the rest of the template, and
whatever anybody says: a special token that a user types stays text), and whether it carries loss. Nothing is ever
searched for in a rendered string.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pumice.templates import Template
from pumice.tokens import TOKENIZING
from pumice.types import Media, PumiceError, Role, Turn

Owner = Literal["tokenizer", "template", "system", "user", "assistant"]
"""Who writes a span; the tokenizer writes what it puts before a text by itself."""


@dataclass(frozen=True)
class Span:
    """A run of one owner's text, or one picture. ``markup``: special tokens in it are parsed. ``loss``: supervised."""

    content: str | Media
    owner: Owner
    markup: bool = False
    loss: bool = False


class OwnTemplate(Protocol):
    """A format that writes itself: a checkpoint's own chat template (pumice.chat_jinja)."""

    @property
    def stop(self) -> str: ...
    def spans(self, turns: Sequence[Turn], prompt: bool = False) -> Iterator[Span]: ...


def own_start(tokenizer: Any) -> str:
    """What a tokenizer puts before a text by itself: "<s>" of Llama's, "<bos>" of Gemma's, nothing of Qwen's."""
    with TOKENIZING:
        ids = tokenizer("").input_ids
    return tokenizer.bos_token if ids and ids[0] == tokenizer.bos_token_id else ""


def spans(
    turns: Sequence[Turn], template: Template | OwnTemplate, prompt: bool = False, start: str = ""
) -> Iterator[Span]:
    """Lay turns out as spans; with ``prompt`` the assistant's head follows the last turn, ready for generation.

    ``start`` is the tokenizer's ``own_start``, written by templates whose own ``start`` is None.

    Raises:
        PumiceError: no turn, a role that the template doesn't know, or a picture in an answer.
    """
    if not turns:
        raise PumiceError("a conversation needs at least one turn")
    if not isinstance(template, Template):
        written = list(template.spans(turns, prompt))
        # As transformers' processors: the tokenizer begins the text in its own way, unless the template did.
        if start and not (written and written[0].content == start):
            yield Span(start, "tokenizer", markup=True)
        yield from written
        return
    if template.start is not None:
        start = template.start
    if start:
        yield Span(start, "tokenizer" if template.start is None else "template", markup=True)
    if template.default_system is not None and turns[0].role != "system":
        turns = (Turn("system", (template.default_system,)), *turns)
    before: Role | None = None
    for turn in turns:
        if turn.role not in template.heads:
            raise PumiceError(f"role {turn.role!r} is not one of {', '.join(template.heads)}")
        yield from _answer(turn, template) if turn.role == "assistant" else _turn(turn, before, template)
        before = turn.role
    if prompt:
        yield from _answer_head(template)


def _turn(turn: Turn, before: Role | None, template: Template) -> Iterator[Span]:
    head = template.heads[turn.role]
    yield from _written(template.heads_after.get((before, turn.role), head) if before else head, template)
    for part in turn.content:
        if isinstance(part, Media):
            yield Span(part, turn.role)
            yield from _written(template.after_media, template)
        elif part and not template.answers_only:
            yield Span(part, turn.role)
    yield from _written(template.tails[turn.role], template)


def _answer(turn: Turn, template: Template) -> Iterator[Span]:
    if any(isinstance(part, Media) for part in turn.content):
        raise PumiceError("an assistant turn can't hold a picture")
    yield from _answer_head(template)
    text = "".join(part for part in turn.content if isinstance(part, str))
    if text:
        yield Span(template.answer_prefix + text, "assistant", loss=True)
    # Never joined with the answer: a "." and a newline would merge into a token that is not the stop token.
    yield Span(template.stop, "assistant", markup=True, loss=True)
    if template.after:
        yield Span(template.after, "template", loss=template.loss == "originals" and "after" in template.turn_loss)


def _answer_head(template: Template) -> Iterator[Span]:
    """One span, so that it never merges with the answer: a model reads the head alone before it answers."""
    head = template.heads["assistant"]
    if head:
        loss = template.loss == "originals" and "head" in template.turn_loss
        yield Span(head, "template", markup=any(mark in head for mark in template.marks), loss=loss)


def _written(text: str, template: Template) -> Iterator[Span]:
    """The template's own text, cut at its marks."""
    marks = "|".join(re.escape(mark) for mark in template.marks)
    for piece in re.split(f"({marks})", text) if marks else [text]:
        if piece:
            yield Span(piece, "template", markup=piece in template.marks)


def supervise_everywhere(
    ids: Sequence[int], labels: Sequence[int], template: Template | OwnTemplate, tokenizer: Any
) -> list[int]:
    """Labels (T,) of ids (T,) in which the template's ``token_loss`` tokens carry loss wherever they stand.

    Nothing changes unless the template's ``loss`` is "originals". Source: the published training code of LLaVA-NeXT,
    which does so for Qwen and Llama 3 (token 198 of Qwen is a single newline).

    Raises:
        PumiceError: one of the texts isn't one token of this tokenizer.
    """
    if not isinstance(template, Template) or template.loss != "originals":
        return list(labels)
    wanted = {_token(text, template, tokenizer) for text in template.token_loss}
    return [token if token in wanted else label for token, label in zip(ids, labels, strict=True)]


def check_marks(template: Template, tokenizer: Any) -> None:
    """Refuse a tokenizer of another family: a mark that is several tokens would never end an answer.

    Raises:
        PumiceError: a mark of the template isn't one token of this tokenizer.
    """
    for mark in template.marks:
        _token(mark.strip(), template, tokenizer)


def _token(text: str, template: Template, tokenizer: Any) -> int:
    with TOKENIZING:
        ids = tokenizer(text, add_special_tokens=False).input_ids
    if len(ids) != 1:
        raise PumiceError(
            f"template {template.name!r} needs {text!r} to be one token, in this tokenizer it is {len(ids)}: "
            "choose the template of the language model's family"
        )
    return ids[0]
