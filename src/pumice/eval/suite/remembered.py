"""Answers to the embedded suite kept as they are made, so that a run that was stopped asks only what is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pumice.eval.suite.asking import SHOWN, Answers, Reply
from pumice.journal import FolderJournal, entry_key, model_hash
from pumice.messages import question_messages, to_sample


@dataclass(frozen=True)
class Kept:
    """A reply out of the journal, with what it cost when it was made."""

    text: str
    tokens: int
    visual_tokens: int
    ms: float


class Remembered:
    """An assistant beside a journal: what is there isn't asked again. ``model`` is `journal.model_hash`.

    ``replayed`` counts the answers that came from the journal.
    """

    def __init__(self, assistant: Answers, journal: FolderJournal, model: str) -> None:
        self._assistant, self._journal, self._model = assistant, journal, model
        self.takes = getattr(assistant, "takes", SHOWN)
        self.replayed = 0

    def ask_many(self, pairs: list[tuple[Any, str]], /, *, max_tokens: int, batch: int) -> Sequence[Reply]:
        """As the assistant's, which is asked what the journal hasn't got, ``batch`` by ``batch``: so many answers are
        lost at most when the run is stopped.
        """
        settings = {"max_new_tokens": max_tokens}
        keys = [entry_key(to_sample(question_messages(*pair)), settings, self._model) for pair in pairs]
        left = [i for i, key in enumerate(keys) if self._journal.get(key) is None]
        self.replayed += len(pairs) - len(left)
        while left:
            some, left = left[:batch], left[batch:]
            replies = self._assistant.ask_many([pairs[i] for i in some], max_tokens=max_tokens, batch=batch)
            for i, reply in zip(some, replies, strict=True):
                self._journal.add(keys[i], {name: getattr(reply, name) for name in Kept.__dataclass_fields__})
        found = [self._journal.get(key) or {} for key in keys]
        return [Kept(**{name: one[name] for name in Kept.__dataclass_fields__}) for one in found]


def remembering(assistant: Answers, folder: Path | None) -> Answers:
    """The assistant or pipeline beside a journal in the folder, if there is one; one without ``identity`` has none.

    Raises:
        PumiceError: as `FolderJournal`.
    """
    from pumice.assistant import Assistant

    if folder is None:
        return assistant
    if isinstance(assistant, Assistant):
        return Remembered(assistant, FolderJournal(folder), model_hash(assistant))
    identity = getattr(assistant, "identity", None)
    return Remembered(assistant, FolderJournal(folder), identity()) if identity else assistant
