"""The assistant that a user holds: pictures and questions in, answers out.

pumice.load("pocket").ask("receipt.png", "What is the total?") ──messages──> Sample ──encode──> engine ──> Answer
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, overload

import torch
from torch import Tensor

from pumice.data.batch import pack
from pumice.encode import Processor, encode
from pumice.engine.runner import Completion, complete, generate
from pumice.model.assistant import AssistantModel
from pumice.types import Features, Media, MediaKind, PumiceError, Role, Sample, Turn
from pumice.vision.kinds import NAMES, open_media
from pumice.vision.media import read_data_uri

ROLES: tuple[Role, ...] = ("system", "user", "assistant")
MEDIA_PARTS: dict[str, MediaKind | None] = {
    "image": None,
    "image_url": None,
    "pdf": "page",
    "video": "video",
    "video_url": "video",
}
"""Types of message parts that hold media, and what they must hold. An image may be a PDF or a video as well."""
URL_PARTS = ("image_url", "video_url")


@dataclass(frozen=True)
class Answer:
    """An answer and what it cost.

    ``tokens`` were generated; ``prompt_tokens`` were read, ``visual_tokens`` of them stand for pictures. ``first_ms``
    and ``ms`` run from the call to the first and last token. ``logprob`` sums over the answer's tokens and its end.
    """

    text: str
    tokens: int
    visual_tokens: int
    prompt_tokens: int
    ms: float
    first_ms: float
    logprob: float
    finish: Literal["stop", "length"]


class Assistant:
    """A model with its processor. Answers are greedy, so the same question gets the same answer."""

    def __init__(self, model: AssistantModel, processor: Processor, name: str = "") -> None:
        self.model = model.eval().requires_grad_(False)
        self.processor = processor
        self.name = name

    def ask(self, pictures: Any, question: str, max_tokens: int = 128) -> Answer:
        """Answer a question about one picture or a list of them (path, bytes, PIL image).

        Raises:
            PumiceError: a picture can't be read, or all of it is more than the model takes.
        """
        return self.ask_many([(pictures, question)], max_tokens)[0]

    def ask_many(self, pairs: Iterable[tuple[Any, str]], max_tokens: int = 128, batch: int = 16) -> list[Answer]:
        """Answers to many (pictures, question) pairs, ``batch`` at a time; the answers are those of ``ask``."""
        samples = [to_sample(question_messages(pictures, question)) for pictures, question in pairs]
        answers: list[Answer] = []
        for start in range(0, len(samples), batch):
            prompts = [self._encode(sample) for sample in samples[start : start + batch]]
            done = complete(self.model, prompts, self.processor.stop_ids, max_tokens)
            answers += [self._answer(prompt, completion) for prompt, completion in zip(prompts, done, strict=True)]
        return answers

    @overload
    def chat(
        self, messages: Sequence[dict[str, Any]], stream: Literal[False] = False, max_tokens: int = 256
    ) -> Answer: ...
    @overload
    def chat(
        self, messages: Sequence[dict[str, Any]], stream: Literal[True], max_tokens: int = 256
    ) -> Iterator[str | Answer]: ...
    def chat(
        self, messages: Sequence[dict[str, Any]], stream: bool = False, max_tokens: int = 256
    ) -> Answer | Iterator[str | Answer]:
        """Continue a conversation of OpenAI-style messages; ``stream`` gives an iterator of text, then the Answer.

        Raises:
            PumiceError: malformed messages, unreadable pictures, or a conversation that is too long.
        """
        prompt = self._encode(to_sample(messages))
        if stream:
            return self._stream(prompt, max_tokens)
        return self._answer(prompt, complete(self.model, [prompt], self.processor.stop_ids, max_tokens)[0])

    @torch.inference_mode()
    def logits(self, messages: Sequence[dict[str, Any]]) -> Tensor:
        """Logits (T, V) in fp32 over the whole laid-out conversation, ready for the next answer."""
        batch = pack([self._encode(to_sample(messages))])
        return self.model.logits(batch.to(self.model.device)).float()

    def _encode(self, sample: Sample) -> Features:
        return encode(sample, self.processor, prompt=sample.turns[-1].role != "assistant")

    def _answer(self, prompt: Features, completion: Completion) -> Answer:
        text = self.processor.tokenizer.decode(completion.ids, skip_special_tokens=True)
        return Answer(
            text=text.strip(),
            tokens=len(completion.ids),
            visual_tokens=sum(placed.tokens for placed in prompt.layouts),
            prompt_tokens=len(prompt),
            ms=round(completion.ms, 1),
            first_ms=round(completion.first_ms, 1),
            logprob=round(completion.logprob, 4),
            finish=completion.finish,
        )

    def _stream(self, prompt: Features, max_tokens: int) -> Iterator[str | Answer]:
        """Pieces whose concatenation is the answer's text; a character of several tokens is held back until whole."""
        shown, completion = "", Completion()
        for _, token, completion in generate(self.model, [prompt], self.processor.stop_ids, max_tokens):
            text = self.processor.tokenizer.decode(completion.ids, skip_special_tokens=True).lstrip()
            if token >= 0 and (text.endswith("\ufffd") or text != text.rstrip()):
                continue
            text = text.rstrip()
            if len(text) > len(shown):
                yield text[len(shown) :]
                shown = text
        yield self._answer(prompt, completion)


def question_messages(pictures: Any, question: str) -> list[dict[str, Any]]:
    """Messages that ask one question about one picture or several."""
    several = list(pictures) if isinstance(pictures, (list, tuple)) else [pictures]
    content = [{"type": "image", "image": picture} for picture in several]
    return [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]


def to_sample(messages: Sequence[dict[str, Any]]) -> Sample:
    """OpenAI-style messages to a Sample; pictures, PDFs and videos are opened (headers only).

    Raises:
        PumiceError: an unknown role or part, a missing key, or a picture, PDF or video that can't be opened.
    """
    if not messages:
        raise PumiceError("messages is empty; expected at least one {'role': 'user', 'content': ...}")
    turns = []
    for position, message in enumerate(messages):
        if not isinstance(message, dict):
            kind = type(message).__name__
            raise PumiceError(f"messages[{position}]: {kind}, expected {{'role': ..., 'content': ...}}")
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise PumiceError(f"messages[{position}]: role {role!r}, expected one of {', '.join(ROLES)}")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list):
            raise PumiceError(
                f"messages[{position}]: content is {type(content).__name__}, expected text or a list of parts"
            )
        content = [_part(part, f"messages[{position}].content[{i}]") for i, part in enumerate(parts)]
        turns.append(Turn(role, tuple(chain.from_iterable(content))))
    return Sample(tuple(turns))


def _part(part: Any, where: str) -> list[str | Media]:
    """What one part of a message holds: its text, or its media (a PDF has one a page)."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return [part["text"]]
    if isinstance(kind, str) and kind in MEDIA_PARTS and kind in part:
        reference, wanted = part[kind], MEDIA_PARTS[kind]
        if kind in URL_PARTS:
            reference = _data_uri(reference, where)
        media = open_media(reference)
        if wanted is not None and media[0].kind != wanted:
            name = media[0].name or where
            raise PumiceError(f"{where}: {name} is {NAMES[media[0].kind]}; expected {NAMES[wanted]}")
        return [*media]
    raise PumiceError(
        f"{where}: expected {{'type': 'text', 'text': ...}} or {{'type': 'image', 'image': path, bytes or PIL image}}; "
        f"media have one of the types {', '.join(MEDIA_PARTS)}, and their content under a key of that name"
    )


def _data_uri(value: Any, where: str) -> bytes:
    """Bytes of {"url": "data:..."}. A url is a client's text: it never names a file of this machine."""
    url = value.get("url") if isinstance(value, dict) else None
    if not isinstance(url, str) or not url.startswith("data:"):
        raise PumiceError(f"{where}: expected {{'url': 'data:...;base64,...'}}; addresses and files aren't fetched")
    return read_data_uri(url)
