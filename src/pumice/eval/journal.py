"""Answers kept as they are made, so that a run that was stopped asks only what is left.

    messages, weights, settings ──entry_key──> key ──Journal──> the answer of an earlier run, or None

A key holds everything that an answer depends on: a changed picture, weight or setting makes another one, so that an
old answer is never taken for a new one. Every process writes a file of its own in the journal's folder, and reads all.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pumice
from pumice.types import Media, PumiceError, Sample
from pumice.vision.media import decode

if TYPE_CHECKING:
    from torch import Tensor

    from pumice.assistant import Assistant

FORM = 1
"""Raise it when an answer to the same question changes though no weight does: layouts, templates, decoding."""


class Journal:
    """The answers in a folder: dicts by key, one a line of its JSONL files.

    A line is flushed as it is made: it outlives the process, though not a power failure. What isn't a whole line, as
    the last one of a killed process, is passed over and counted in ``broken``.

    Raises:
        PumiceError: the folder can't be made or read.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.folder, self.broken = folder, 0
        self._answers: dict[str, dict[str, Any]] = {}
        # No two processes share a name, be they ranks of one run or two runs at once.
        self._path = folder / f"answers-{rank}-{uuid.uuid4().hex[:12]}.jsonl"
        self._file: IO[str] | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path in sorted(folder.glob("answers-*.jsonl")):
                for line in path.read_bytes().splitlines():
                    self._read(line)
        except OSError as error:
            raise PumiceError(f"{folder}: the journal of answers can't be read ({error.strerror or error})") from None

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> dict[str, Any] | None:
        """The answer that was kept under ``key``."""
        return self._answers.get(key)

    def add(self, key: str, answer: Mapping[str, Any]) -> None:
        """Keep an answer, and write it out at once.

        Raises:
            PumiceError: it can't be written, such as for want of space.
        """
        self._answers[key] = dict(answer)
        try:
            if self._file is None:
                self._file = self._path.open("x", encoding="utf-8")
            self._file.write(json.dumps({"key": key, **answer}, ensure_ascii=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise PumiceError(f"{self._path}: can't be written ({error.strerror or error})") from None

    def close(self) -> None:
        """Close the file. What is added later goes into a new one."""
        if self._file is not None:
            self._file.close()
            self._path = self._path.with_name(f"{self._path.stem[:-12]}{uuid.uuid4().hex[:12]}.jsonl")
            self._file = None

    def _read(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if isinstance(entry, dict) and isinstance(entry.get("key"), str) and isinstance(entry.get("text"), str):
            self._answers[entry.pop("key")] = entry
        else:
            self.broken += 1


def entry_key(sample: Sample, settings: Mapping[str, Any], model: str) -> str:
    """sha256 over the turns' texts and media, the generation settings, and ``model`` (see `model_hash`).

    A picture counts by its decoded pixels and size, a video or a PDF by its bytes.

    Raises:
        PumiceError: a picture can't be decoded.
    """
    digest = hashlib.sha256()
    described = json.dumps([FORM, pumice.__version__, model, settings], sort_keys=True, default=str)
    _feed(digest, described.encode())
    for turn in sample.turns:
        _feed(digest, turn.role.encode())
        for part in turn.content:
            if isinstance(part, str):
                _feed(digest, b"text", part.encode("utf-8", "surrogatepass"))
            else:
                _feed(digest, repr((part.kind, part.size, part.frames, part.fps, part.page)).encode(), _content(part))
    return digest.hexdigest()


def _feed(digest: Any, *pieces: bytes) -> None:
    """Each piece after its length, so that no two lists of pieces are the same bytes."""
    for piece in pieces:
        digest.update(len(piece).to_bytes(8, "big"))
        digest.update(piece)


def _content(media: Media) -> bytes:
    if media.kind == "image":
        return decode(media).tobytes()
    if isinstance(media.reference, bytes):
        return hashlib.sha256(media.reference).digest()
    status = os.stat(media.reference)  # noqa: PTH116 (a path as text)
    return _file_hash(str(media.reference), status.st_size, status.st_mtime_ns)


@lru_cache(4096)
def _file_hash(path: str, size: int, changed: int) -> bytes:
    """sha256 of a file; ``size`` and ``changed`` (ns) make a file that is rewritten another one."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def model_hash(assistant: Assistant) -> str:
    """sha256 over every weight's and buffer's bytes, dtype and shape, and over what else decides an answer.

    That is the structure, the language model's settings, the layouts, the template and the tokenizer. The name and
    folder don't count. Takes about a second a gigabyte and core.
    """
    model, processor = assistant.model, assistant.processor
    tensors = sorted({**dict(model.named_parameters()), **dict(model.named_buffers())}.items())
    with ThreadPoolExecutor() as pool:
        hashed = list(pool.map(lambda item: _tensor_hash(*item), tensors))
    language = model.lm.config.to_dict()
    named = {key: value for key, value in language.items() if key not in ("_name_or_path", "transformers_version")}
    layouts = (processor.policy, processor.several, processor.video, processor.mean, processor.std)
    limits = (processor.max_tokens, processor.cut, processor.stop_ids)
    template = getattr(processor.template, "source", processor.template)  # Jinja's text isn't in its repr
    digest = hashlib.sha256()
    _feed(digest, *hashed, repr(model).encode(), json.dumps(named, sort_keys=True, default=str).encode())
    _feed(digest, repr((layouts, limits, template)).encode(), _tokenizer_text(processor.tokenizer).encode())
    return digest.hexdigest()


def _tensor_hash(name: str, tensor: Tensor) -> bytes:
    import torch

    digest = hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    values: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    digest.update(values)
    return digest.digest()


def _tokenizer_text(tokenizer: Any) -> str:
    """The tokenizer's own JSON; of one without it, its vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
