"""Answers to the questions of a benchmark: batched as they come, kept in a journal, failures counted.

    Asked* ──journal?──> Given                                   (answered before)
           ──encode──> prompts of one limit ──batch──> Given      (a picture that can't be read: Given with an error)

Questions about one picture, several, a video or none share a batch: nothing is padded.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pumice.assistant import Answer, Assistant
from pumice.encode import encode
from pumice.eval.public.prompts import to_messages
from pumice.journal import FolderJournal, entry_key, model_hash
from pumice.messages import to_sample
from pumice.types import Features, PumiceError

MAX_TOKENS = 1024
"""Length of an answer where the task sets none, as in LLaVA's own evaluation."""


@dataclass(frozen=True)
class Asked:
    """One question. ``messages`` makes it, in lmms-eval's form, when its turn comes: the pictures of a whole benchmark
    don't fit in memory. ``settings`` are the task's generation settings.
    """

    messages: Callable[[], Any]
    settings: Mapping[str, Any]
    task: str = ""
    doc: int = 0


@dataclass(frozen=True)
class Given:
    """An answer, its tokens and milliseconds since its batch began; the error's line where there is none."""

    text: str
    input_tokens: int | None = None
    output_tokens: int | None = None
    visual_tokens: int | None = None
    first_ms: float | None = None
    ms: float | None = None
    finish: str = ""
    error: str = ""


@dataclass
class Tally:
    """What one call to `Answerer.answer` did.

    ``counts`` by task: asked (of the model), replayed (from the journal), failed, empty, cut (at the limit of tokens),
    shortened (the limit itself, to the room that the prompt leaves) and greedy (where the task wants sampling).
    ``tokens`` and ``seconds`` are those of what was asked, layout and decoding of pictures included.
    """

    counts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    errors: dict[str, str] = field(default_factory=dict)
    tokens: int = 0
    seconds: float = 0.0

    def total(self, what: str) -> int:
        """The count over all tasks."""
        return sum(counts[what] for counts in self.counts.values())


class _Waiting(NamedTuple):
    place: int
    asked: Asked
    prompt: Features
    key: str | None
    limit: int


class Answerer:
    """Answers questions with an assistant, ``batch`` at a time, the same as one at a time.

    With a ``journal`` what it holds isn't asked again, and every answer is written to it as it is made. Answers are
    greedy whatever a task's settings say; ``until`` cuts an answer at the first of its texts.
    """

    def __init__(self, assistant: Assistant, batch: int = 8, journal: FolderJournal | None = None) -> None:
        if batch < 1:
            raise PumiceError(f"batch is {batch}; expected at least 1")
        self.assistant, self.batch, self.journal = assistant, batch, journal
        self.tally = Tally()
        self._model = model_hash(assistant) if journal is not None else ""

    def answer(self, questions: Iterable[Asked], progress: Callable[[int], object] = lambda done: None) -> list[Given]:
        """An answer to each question, in order. One that can't be laid out has an error instead, which `tally` counts.

        ``progress`` is called with the number of questions that are through.
        """
        self.tally = Tally()
        given: dict[int, Given] = {}
        waiting: dict[int, list[_Waiting]] = defaultdict(list)  # by limit, so that a batch ends together
        for index, asked in enumerate(questions):
            began = time.perf_counter()
            try:
                found = self._find(index, asked)
            except PumiceError as error:
                found = self._failed(asked, error)
            if isinstance(found, Given):
                given[index] = found
                progress(1)
                continue
            waiting[found.limit].append(found)
            self.tally.seconds += time.perf_counter() - began
            if len(waiting[found.limit]) == self.batch:
                self._ask(waiting.pop(found.limit), given, progress)
        for group in waiting.values():
            self._ask(group, given, progress)
        return [given[index] for index in range(len(given))]

    def _find(self, index: int, asked: Asked) -> Given | _Waiting:
        """The journal's answer, or the question laid out."""
        sample = to_sample(to_messages(_made(asked)))
        limit = max_tokens(asked.settings)
        key = None
        if self.journal is not None:
            key = entry_key(sample, {**asked.settings, "max_new_tokens": limit}, self._model)
            kept = self.journal.get(key)
            if kept is not None:
                self._count(asked, "replayed", kept["text"], kept.get("finish", ""))
                return Given(**{name: kept[name] for name in Given.__dataclass_fields__ if name in kept})
        prompt = encode(sample, self.assistant.processor, prompt=True)
        room = self.assistant.model.lm.config.max_position_embeddings - len(prompt)
        if room < 1:
            raise PumiceError(f"the prompt's {len(prompt)} tokens leave no room for an answer")
        if limit > room:
            self.tally.counts[asked.task]["shortened"] += 1
        return _Waiting(index, asked, prompt, key, min(limit, room))

    def _ask(self, group: list[_Waiting], given: dict[int, Given], progress: Callable[[int], object]) -> None:
        """Answer a batch of one limit."""
        began = time.perf_counter()
        longest = max(len(one.prompt) for one in group)
        if longest + group[0].limit > self.assistant.model.lm.config.max_position_embeddings:
            batches = [[one] for one in group]  # a limit cut to one prompt's room doesn't fit a longer one
        else:
            batches = [group]
        for batch in batches:
            answers = self.assistant.answer_prompts([one.prompt for one in batch], batch[0].limit)
            for one, answer in zip(batch, answers, strict=True):
                given[one.place] = self._given(one, answer)
        self.tally.seconds += time.perf_counter() - began
        progress(len(group))

    def _given(self, one: _Waiting, answer: Answer) -> Given:
        text = cut(answer.text, one.asked.settings.get("until"))
        made = Given(
            text, answer.prompt_tokens, answer.tokens, answer.visual_tokens, answer.first_ms, answer.ms, answer.finish
        )
        self._count(one.asked, "asked", text, answer.finish)
        self.tally.tokens += answer.tokens
        if self.journal is not None and one.key is not None:
            held = {name: value for name, value in vars(made).items() if name != "error"}
            self.journal.add(one.key, {"task": one.asked.task, "doc": one.asked.doc, **held})
        return made

    def _failed(self, asked: Asked, error: PumiceError) -> Given:
        line = str(error)
        self.tally.counts[asked.task]["failed"] += 1
        self.tally.errors.setdefault(asked.task, f"question {asked.doc}: {line}")
        return Given("", error=line)

    def _count(self, asked: Asked, what: str, text: str, finish: str) -> None:
        counts = self.tally.counts[asked.task]
        counts[what] += 1
        counts["empty"] += not text
        counts["cut"] += finish == "length"
        counts["greedy"] += samples(asked.settings)


def _made(asked: Asked) -> Any:
    try:
        return asked.messages()
    except Exception as error:  # a task's own code; a picture that it can't open must not end the run
        raise PumiceError(f"the task can't ask it ({type(error).__name__}: {error})") from error


def max_tokens(settings: Mapping[str, Any]) -> int:
    """Tokens that an answer may have.

    Raises:
        PumiceError: it isn't a number of at least 1.
    """
    wanted = settings.get("max_new_tokens", settings.get("max_gen_toks"))
    if wanted is None:
        return MAX_TOKENS
    if not isinstance(wanted, int) or wanted < 1:
        raise PumiceError(f"max_new_tokens is {wanted!r}; expected a whole number of at least 1")
    return wanted


def samples(settings: Mapping[str, Any]) -> bool:
    """Whether a task wants its answers drawn at random."""
    temperature = settings.get("temperature")
    warm = isinstance(temperature, int | float) and temperature > 0
    return warm and bool(settings.get("do_sample", True))


def cut(text: str, until: Any) -> str:
    """The text before the first of the texts ``until`` in it.

    White space alone doesn't count: lmms-eval puts a blank line there for every task that sets nothing, and its own
    models pass over it.
    """
    stops = [until] if isinstance(until, str) else list(until or ())
    for stop in stops:
        if isinstance(stop, str) and stop.strip():
            text = text.split(stop, 1)[0].rstrip()
    return text
