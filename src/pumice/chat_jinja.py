"""A checkpoint's own chat template: Jinja text that says how turns are written, turned into spans.

    turns ──texts replaced by signs──> Jinja ──> one string ──cut at signs, pictures, special tokens──> [Span]

What people say never passes through the template, only a sign for it does. So a user's text can't be mistaken for the
template's, and every span has an owner without searching for texts in the result.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pumice.chat import Span
from pumice.types import Media, PumiceError, Role, Turn

# A private-use pair around a number. The wide space on either side is what a template's trimming would remove.
_SPACE, _OPEN, _CLOSE = "\u2003", "\ue000", "\ue001"
_SIGN = f"({_SPACE}?){_OPEN}([0-9]+){_CLOSE}({_SPACE}?)"


@dataclass(frozen=True)
class JinjaTemplate:
    """The chat template that a checkpoint's folder brings.

    ``source`` is Jinja, run by transformers in its sandbox; ``tokenizer`` gives the special tokens. ``image`` and
    ``video`` are what the template writes for a picture and a video. Loss is on the answers and the special token that
    follows each of them.
    """

    source: str = field(repr=False)
    tokenizer: Any = field(repr=False)
    image: str = "<image>"
    video: str = "<video>"
    name: str = "the checkpoint's own"

    @property
    def stop(self) -> str:
        """The special token that ends an answer; where the template writes none, the tokenizer's end of text."""
        turns = (Turn("user", ("?",)), Turn("assistant", ("!",)))
        found = [span.content for span in self.spans(turns) if span.loss and span.markup]
        return str(found[0]) if found else self.tokenizer.eos_token

    def spans(self, turns: Sequence[Turn], prompt: bool = False) -> Iterator[Span]:
        """Lay turns out, as `pumice.chat.spans` does.

        Raises:
            PumiceError: a picture in an answer, or a template that fails, drops a text, or doesn't write every picture.
        """
        texts, pictures, messages = self._signed(turns)
        written = self._render(messages, prompt)
        shown: set[int] = set()
        answered = False
        for piece in self._cut(written):
            sign = re.fullmatch(_SIGN, piece)
            if sign:
                role, text = texts[int(sign[2])]
                shown.add(int(sign[2]))
                answered = role == "assistant"
                text = text if sign[1] else text.lstrip()
                text = text if sign[3] else text.rstrip()
                if text:
                    yield Span(text, role, loss=answered)
            elif piece in (self.image, self.video):
                yield self._picture(pictures)
            elif piece in self._special:
                yield Span(piece, "template", markup=True, loss=answered)
                answered = False
            else:
                yield Span(piece, "template")
        if pictures or len(shown) != len(texts):
            raise PumiceError(
                f"{self.name} chat template left out {len(pictures)} pictures and {len(texts) - len(shown)} texts of "
                "the conversation; it may not allow these roles or their order"
            )

    @property
    def _special(self) -> set[str]:
        return set(self.tokenizer.all_special_tokens) | {str(t) for t in self.tokenizer.added_tokens_decoder.values()}

    def _cut(self, written: str) -> list[str]:
        marks = sorted(self._special | {self.image, self.video}, key=len, reverse=True)
        pieces = re.split(f"({'|'.join([_SIGN.replace('(', '(?:'), *map(re.escape, marks)])})", written)
        return [piece for piece in pieces if piece]

    def _picture(self, pictures: list[Media]) -> Span:
        if not pictures:
            raise PumiceError(f"{self.name} chat template writes more pictures than the conversation has")
        return Span(pictures.pop(0), "user")

    def _signed(self, turns: Sequence[Turn]) -> tuple[list[tuple[Role, str]], list[Media], list[dict[str, Any]]]:
        """(texts with their roles, pictures in order, messages with a sign in place of every text)."""
        texts: list[tuple[Role, str]] = []
        pictures: list[Media] = []
        messages = []
        for turn in turns:
            content: list[dict[str, Any]] = []
            for part in turn.content:
                if isinstance(part, Media):
                    if turn.role == "assistant":
                        raise PumiceError("an assistant turn can't hold a picture")
                    pictures.append(part)
                    content.append({"type": "video" if part.kind == "video" else "image"})
                else:
                    content.append({"type": "text", "text": f"{_SPACE}{_OPEN}{len(texts)}{_CLOSE}{_SPACE}"})
                    texts.append((turn.role, part))
            messages.append({"role": turn.role, "content": content})
        return texts, pictures, messages

    def _render(self, messages: list[dict[str, Any]], prompt: bool) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                messages, chat_template=self.source, tokenize=False, add_generation_prompt=prompt
            )
        except Exception as error:  # whatever a template's author wrote
            raise PumiceError(f"{self.name} chat template failed: {' '.join(str(error).split())[:200]}") from None
