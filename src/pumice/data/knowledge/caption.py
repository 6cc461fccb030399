"""Pictures captioned anew by an assistant: stage 1.5's knowledge data, from pictures alone.

    pictures ──a part at a time──> each prompt about each picture ──asker──> captions ──filters──> the best one
                                                   └──journal──┘                └──> NAME.captions.jsonl, all of them

A part's answers are in a journal until the part is on disk, so that a killed run asks for nothing twice. Which captions
were made, by what, and why a picture has none stands beside the result.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from pumice.data.importing.writing import LEFT_OUT, Entry, Target, Written, conversation_of, join, made_of
from pumice.data.knowledge.filters import Filters, agreement
from pumice.data.knowledge.pictures import Pictures
from pumice.data.parts import Made, Parts, write_whole
from pumice.journal import digest_of
from pumice.read.ask import Answer, Prompt
from pumice.read.askers import Asker
from pumice.read.journal import Journal
from pumice.types import Media, PumiceError

PROMPT = "Please generate detailed descriptions of the given image."
"""What OneVision's captions of stage 1.5 answer (arXiv 2408.03326; the prompt is in its published data)."""
PART = 256
FAILING = 0.1
"""Share of a part's captions that may fail before the run stops: a server is gone, or a model can't take them."""
AHEAD = 2
"""Requests for each that is made at once, so that a batch is always full."""

Told = Callable[[int, int], None]


@dataclass(frozen=True)
class Run:
    """What captions are made with: everything that a caption depends on but the picture."""

    asker: Asker
    prompts: tuple[Prompt, ...]
    max_tokens: int
    filters: Filters

    def settings(self, pictures: Pictures) -> dict[str, Any]:
        """The provenance of a run, for its own file and to tell another run's parts from its own."""
        bounds = {"words": self.filters.words, "languages": self.filters.languages, "agreement": self.filters.agreement}
        return {
            "model": self.asker.digest,
            "prompts": [prompt.text for prompt in self.prompts],
            "max_tokens": self.max_tokens,
            "decoding": "greedy",
            "filters": {**bounds, "test_sets": self.filters.tests.digest if self.filters.tests else None},
            "pictures": len(pictures),
            "files": [str(file.resolve()) for file in pictures.files],
        }


def caption(pictures: Pictures, run: Run, out: Path, name: str, told: Told) -> Written:
    """Caption all pictures, into OUT/NAME.jsonl or OUT/NAME/*.parquet with OUT/NAME.captions.jsonl and
    OUT/NAME.provenance.json beside it. ``told`` hears of (pictures done, in all).

    Raises:
        PumiceError: it can't be written, or there is a run with other settings in ``out``.
    """
    media = Path(pictures.media).resolve() if pictures.media else None
    target, settings = Target(out, name, len(pictures), media, PART), run.settings(pictures)
    target.check()
    _claim(out / f"{name}.provenance.json", settings)
    beside = Parts(out / f".{name}.captions", len(pictures), PART, ".jsonl")
    job = _Captioner(pictures, run, media, beside, told)
    target.parts.make(job, progress=told)
    # The result comes last: a run that is killed before finds its parts, and one after has nothing left to do.
    if beside.folder.exists():
        join(beside.paths, out / f"{name}.captions.jsonl")
    written = target.write(job)
    shutil.rmtree(beside.folder, ignore_errors=True)
    return written


def _claim(path: Path, settings: dict[str, Any]) -> None:
    """Write the provenance, or see that it is what an earlier run wrote."""
    text = json.dumps(settings, ensure_ascii=False, indent=1)
    if path.exists():
        if path.read_text(encoding="utf-8") != text:
            raise PumiceError(f"{path}: a run with other settings was begun here; choose another --out or remove it")
        return
    write_whole(path, text.encode())


@dataclass
class _Captioner:
    """Makes the parts."""

    pictures: Pictures
    run: Run
    media: Path | None
    beside: Parts
    told: Told

    def __call__(self, start: int, stop: int) -> Made:
        self.beside.folder.mkdir(parents=True, exist_ok=True)
        path = self.beside.folder / f"{start:010d}.jsonl"
        journal = Journal(path.with_suffix(".journal"))
        try:
            answers = _Asking(self.pictures, self.run, journal).over(range(start, stop), self.told)
            _check_failures(answers)
        finally:
            journal.close()
        counts, lines, kept = Counter[str](), [], []
        for row in range(start, stop):
            line, entry = self._chosen(row, answers[row], counts)
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
            kept += [(row, entry)] if entry else []
        write_whole(path, "".join(lines).encode(errors="backslashreplace"))
        return made_of(kept, counts, self.media)

    def _chosen(
        self, row: int, answers: Sequence[Answer | PumiceError], counts: Counter[str]
    ) -> tuple[dict[str, Any], Entry | None]:
        """A picture's captions as they are kept, and its record; None where no caption is worth one."""
        name, reference = _fetched(self.pictures, row)
        judged = self._judged(answers)
        counts.update(f"captions dropped: {one['dropped']}" for one in judged if one.get("dropped"))
        passing = [one for one in judged if one.get("dropped") == ""]
        if not passing or reference is None:
            counts[LEFT_OUT + next((one["dropped"] for one in judged if "dropped" in one), "unreadable")] += 1
            return {"id": name, "captions": judged, "chosen": None}, None
        best = max(passing, key=lambda one: one["agreement"])
        asked = self.run.prompts[best["prompt"]].text
        said = {"id": name, "conversations": conversation_of([(asked, best["caption"])], 1)}
        source = f"caption-{digest_of(self.run.asker.digest.encode())[:8]}"
        media = name if self.media is not None else reference
        line = {"id": name, "captions": judged, "chosen": best["prompt"]}
        return line, Entry({**said, "data_source": source}, [media])

    def _judged(self, answers: Sequence[Answer | PumiceError]) -> list[dict[str, Any]]:
        """The captions of a picture, each with the filter that drops it, "" if none does; or with its error."""
        filters = self.run.filters
        shares = iter(agreement([one.text for one in answers if isinstance(one, Answer)]))
        judged: list[dict[str, Any]] = []
        for number, one in enumerate(answers):
            if not isinstance(one, Answer):
                judged.append({"prompt": number, "error": str(one)})
                continue
            share = next(shares)
            fault = filters.fault(one.text, one.finish == "stop")
            fault = fault or ("agreement" if len(answers) > 1 and share < filters.agreement else "")
            text = one.text.strip()
            judged.append({"prompt": number, "caption": text, "dropped": fault, "agreement": round(share, 4)})
        return judged


def _check_failures(answers: Mapping[int, Sequence[Answer | PumiceError]]) -> None:
    """Stop where it isn't single pictures that fail: what was answered stays in the journal, the rest is asked again.

    Raises:
        PumiceError: more than FAILING of the answers are errors.
    """
    every = [one for some in answers.values() for one in some]
    errors = [one for one in every if isinstance(one, PumiceError) and not isinstance(one, UnreadableError)]
    if len(errors) > FAILING * len(every):
        raise PumiceError(f"{len(errors)} of {len(every)} captions failed, such as: {errors[0]}")


class UnreadableError(PumiceError):
    """A picture that can't be read."""


def _fetched(pictures: Pictures, row: int) -> tuple[str, Any]:
    """(name, reference) of a picture; the reference is None where it can't be read."""
    try:
        return pictures.fetch(row)
    except (PumiceError, OSError):
        return str(row), None


class _Asking:
    """All prompts about some pictures, several at a time."""

    def __init__(self, pictures: Pictures, run: Run, journal: Journal) -> None:
        self.pictures, self.run, self.journal = pictures, run, journal
        self._ends: SimpleQueue[tuple[tuple[int, int], str, Answer | PumiceError]] = SimpleQueue()
        self._going = 0

    def over(self, rows: range, told: Told) -> dict[int, list[Answer | PumiceError]]:
        """The answers by row, in the order of the prompts."""
        found: dict[tuple[int, int], Answer | PumiceError] = {}
        total, prompts = len(self.pictures), len(self.run.prompts)
        for row in rows:
            self._ask(row, found)
            while self._going >= AHEAD * self.run.asker.batch:
                self._take(found)
            told(rows.start + len(found) // prompts, total)
        while self._going:
            self._take(found)
            told(rows.start + len(found) // prompts, total)
        return {row: [found[row, i] for i in range(prompts)] for row in rows}

    def _ask(self, row: int, found: dict[tuple[int, int], Answer | PumiceError]) -> None:
        try:
            (media,) = self.pictures.sample(row).media
            digest = _digest(media)
        except (PumiceError, OSError, ValueError) as error:
            found |= {(row, i): UnreadableError(str(error)) for i in range(len(self.run.prompts))}
            return
        for i, prompt in enumerate(self.run.prompts):
            key = digest_of(json.dumps([digest, prompt.text, self.run.max_tokens, self.run.asker.digest]).encode())
            known = self.journal.get(key)
            if known is not None:
                found[row, i] = known
                continue
            self._going += 1
            try:
                self.run.asker.ask(media, prompt, lambda end, at=(row, i), key=key: self._ends.put((at, key, end)))
            except PumiceError as error:
                self._ends.put(((row, i), key, error))

    def _take(self, found: dict[tuple[int, int], Answer | PumiceError]) -> None:
        at, key, end = self._ends.get()
        self._going -= 1
        found[at] = end
        if isinstance(end, Answer):
            self.journal.add(key, end)


def _digest(media: Media) -> str:
    held = media.reference
    return hashlib.sha256(held if isinstance(held, bytes) else Path(held).read_bytes()).hexdigest()
