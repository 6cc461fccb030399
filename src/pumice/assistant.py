"""The assistant that a user holds: pictures and questions in, answers out.

pumice.load("pocket").ask("receipt.png", "What is the total?") ──messages──> Sample ──encode──> engine ──> Answer
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
from torch import Tensor

from pumice.data.batch import pack
from pumice.encode import Processor, encode
from pumice.engine.runner import Completion, complete, generate
from pumice.messages import question_messages, to_sample
from pumice.model.assistant import AssistantModel
from pumice.types import Features, Sample


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
        """Answer a question about one picture, PDF or video, or a list of them (path, bytes, PIL image).

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
            answers += self.answer_prompts(prompts, max_tokens)
        return answers

    def answer_prompts(self, prompts: Sequence[Features], max_tokens: int = 128) -> list[Answer]:
        """Continue prompts that `pumice.encode.encode` laid out, all of them in one batch.

        Raises:
            PumiceError: the longest prompt and its answer are more than the model takes.
        """
        done = complete(self.model, prompts, self.processor.stop_ids, max_tokens)
        return [self._answer(prompt, completion) for prompt, completion in zip(prompts, done, strict=True)]

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
        return self.answer_prompts([prompt], max_tokens)[0]

    @torch.inference_mode()
    def logits(self, messages: Sequence[dict[str, Any]]) -> Tensor:
        """Logits (T, V) in fp32 over the whole laid-out conversation, ready for the next answer."""
        batch = pack([self._encode(to_sample(messages))])
        return self.model.logits(batch.to(self.model.device)).float()

    def answer(self, sample: Sample, max_tokens: int = 128) -> Answer:
        """Continue a Sample, such as pumice.data's sources give.

        Raises:
            PumiceError: as `chat`.
        """
        return self.answer_prompts([self._encode(sample)], max_tokens)[0]

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
