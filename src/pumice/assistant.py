"""The assistant that a user holds: pictures and questions in, answers out.

pumice.load("pocket").ask("receipt.png", "What is the total?") ──messages──> Sample ──reader?──> engine ──> Answer
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, overload

import torch
from torch import Tensor

from pumice.data.batch import pack
from pumice.encode import Processor, encode
from pumice.engine.counting import is_open
from pumice.engine.engine import Engine
from pumice.engine.memory import token_bytes
from pumice.engine.request import Sampling
from pumice.engine.settings import LOOKUP, Settings
from pumice.engine.ticket import Ticket
from pumice.messages import question_messages, to_sample
from pumice.model.assistant import AssistantModel
from pumice.types import Features, Sample

if TYPE_CHECKING:
    from pumice.reader.reader import Assisted, Reader

MEMORY_MIB = 1024
"""What an assistant keeps of what it has read, if one prompt isn't longer."""


@dataclass(frozen=True)
class Answer:
    """An answer and what it cost.

    ``tokens`` were generated; ``prompt_tokens`` were read, ``visual_tokens`` of them stand for pictures. ``first_ms``
    and ``ms`` run from the call to the first and last token. ``logprob`` sums over the answer's tokens and its end.
    With ``reader`` the pictures' text was in the prompt, but for ``left_out`` lines that there was no room for.
    """

    text: str
    tokens: int
    visual_tokens: int
    prompt_tokens: int
    ms: float
    first_ms: float
    logprob: float
    finish: Literal["stop", "length"]
    reader: bool = False
    left_out: int = 0


class Assistant:
    """A model with its processor. Answers are greedy, so the same question gets the same answer.

    What was read is remembered: a further question about a picture reads the question alone. `forget` drops it.
    With a ``reader`` the text of pictures and pages enters the prompts. ``weights`` are those that the language model
    decodes with, as `engine.settings.Settings` names them; "" are its own.
    """

    def __init__(
        self, model: AssistantModel, processor: Processor, name: str = "", reader: Reader | None = None
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.processor = processor
        self.name = name
        self.reader = reader
        self.weights = ""
        self._engine: tuple[Engine, object] | None = None
        self._making = threading.Lock()

    @property
    def engine(self) -> Engine:
        """What answers: made at first use, and again when weights or processor have changed. It has no thread: whoever
        waits for an answer runs it.
        """
        with self._making:
            state = (self.processor, self.weights, _state(self.model))
            if self._engine is None or self._engine[1] != state:
                positions, each = self.model.lm.config.max_position_embeddings, token_bytes(self.model, torch.float32)
                memory = max(MEMORY_MIB, -(-positions * each // 2**20))  # one prompt of any length always fits
                settings = Settings(
                    memory_mib=memory, queue=2**30, weights=self.weights, lookup=LOOKUP if self.reader else 0
                )
                self._engine = Engine(self.model, self.processor, settings, start=False), state
            return self._engine[0]

    def forget(self) -> None:
        """Drop all that is remembered of pictures, questions and answers."""
        if self._engine is not None:
            self._engine[0].forget()
        if self.reader is not None:
            self.reader.forget()

    def prepared(self, sample: Sample) -> Sample:
        """The sample as it is asked: with the text of its pictures, where there is a reader.

        Raises:
            PumiceError: a picture that can't be read.
        """
        return sample if self.reader is None else self.reader.assist(sample).sample

    def ask(self, pictures: Any, question: str, max_tokens: int = 128) -> Answer:
        """Answer a question about one picture, PDF or video, or a list of them (path, bytes, PIL image).

        Raises:
            PumiceError: a picture can't be read, or all of it is more than the model takes.
        """
        return self.ask_many([(pictures, question)], max_tokens)[0]

    def ask_many(self, pairs: Iterable[tuple[Any, str]], max_tokens: int = 128, batch: int = 16) -> list[Answer]:
        """Answers to many (pictures, question) pairs, ``batch`` at a time; the answers are those of ``ask``."""
        samples = [to_sample(question_messages(pictures, question)) for pictures, question in pairs]
        return self._answers(samples, max_tokens, batch)

    def answer_prompts(self, prompts: Sequence[Features], max_tokens: int = 128) -> list[Answer]:
        """Continue prompts that `pumice.encode.encode` laid out, all of them in one batch.

        Raises:
            PumiceError: a prompt and its answer are more than the model takes.
        """
        return self._answers(prompts, max_tokens, len(prompts))

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
        sample = to_sample(messages)
        if stream:
            return self._stream(self._submit(sample, max_tokens))
        return self.answer(sample, max_tokens)

    @torch.inference_mode()
    def logits(self, messages: Sequence[dict[str, Any]]) -> Tensor:
        """Logits (T, V) in fp32 over the whole laid-out conversation, ready for the next answer."""
        sample = self.prepared(to_sample(messages))
        batch = pack([encode(sample, self.processor, prompt=is_open(sample))])
        return self.model.logits(batch.to(self.model.device)).float()

    def answer(self, sample: Sample, max_tokens: int = 128) -> Answer:
        """Continue a Sample, such as pumice.data's sources give.

        Raises:
            PumiceError: as `chat`.
        """
        return self._answers([sample], max_tokens, 1)[0]

    def _submit(self, asked: Sample | Features, max_tokens: int) -> _Asked:
        found = None
        if self.reader is not None and isinstance(asked, Sample):
            found = self.reader.assist(asked)
            asked = found.sample
        return _Asked(self.engine.submit(asked, Sampling(max_tokens), strip=True), found)

    def _answers(self, asked: Sequence[Sample | Features], max_tokens: int, batch: int) -> list[Answer]:
        """Answers in order, up to ``batch`` being made at a time. The first that fails stops the others."""
        going: deque[_Asked] = deque()
        answers: list[Answer] = []
        try:
            for one in asked:
                if len(going) == batch:
                    answers.append(going[0].answer())
                    going.popleft()
                going.append(self._submit(one, max_tokens))
            answers += [begun.answer() for begun in going]
        finally:
            for begun in going:
                begun.ticket.cancel()
        return answers

    def _stream(self, asked: _Asked) -> Iterator[str | Answer]:
        """Pieces whose concatenation is the answer's text, then the answer. Who stops listening stops it."""
        try:
            for piece in asked.ticket:
                yield piece.text
            yield asked.answer()
        finally:
            asked.ticket.cancel()


class _Asked(NamedTuple):
    """A question on its way, and what the reader did for it."""

    ticket: Ticket
    read: Assisted | None

    def answer(self) -> Answer:
        """Waits for it."""
        outcome = self.ticket.result()
        before = self.read.ms if self.read else 0.0
        return Answer(
            text=outcome.text,
            tokens=len(outcome.ids),
            visual_tokens=outcome.visual_tokens,
            prompt_tokens=outcome.prompt_tokens,
            ms=round(outcome.ms + before, 1),
            first_ms=round(outcome.first_ms + before, 1),
            logprob=round(outcome.logprob, 4),
            finish=cast(Literal["stop", "length"], outcome.finish),
            reader=self.read is not None,
            left_out=self.read.left_out if self.read else 0,
        )


def _state(model: AssistantModel) -> list[tuple[int, int]]:
    """Where the weights lie and how often they have been written: training changes it, answering doesn't."""
    weights = [*model.parameters(), *model.buffers()]
    return [(one.data_ptr(), 0 if one.is_inference() else one._version) for one in weights]
