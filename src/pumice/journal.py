"""Answers kept as they are made, so that a run that was stopped asks only what is left.

    what is asked, weights, settings ──entry_key──> key ──FileJournal, FolderJournal──> an earlier answer, or None

A key holds everything that an answer depends on: a changed picture, weight or setting makes another one, so that an
old answer is never taken for a new one.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Generic, TypeVar

import pumice
from pumice.types import Media, PumiceError, Sample
from pumice.vision.media import decode

if TYPE_CHECKING:
    from torch import Tensor

    from pumice.assistant import Assistant

FORM = 1
"""Raise it when an answer to the same question changes though no weight does: layouts, templates, decoding."""

Kept = TypeVar("Kept")


class _Lines(ABC, Generic[Kept]):
    """Answers by key, a JSON object a line; each is on the disk when `add` returns.

    Lines that can't be read are passed over and counted in ``broken``.
    """

    def __init__(self) -> None:
        self.broken = 0
        self._answers: dict[str, Kept] = {}
        self._file: IO[bytes] | None = None

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> Kept | None:
        """The answer that was kept under ``key``."""
        return self._answers.get(key)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    @abstractmethod
    def _opened(self, entry: dict[str, Any]) -> Kept:
        """The answer of a line's fields; ValueError, TypeError or KeyError where they don't make one."""

    @abstractmethod
    def _fields(self, answer: Kept) -> Mapping[str, Any]:
        """The reverse of `_opened`."""

    def _write(self, file: IO[bytes], key: str, answer: Kept) -> None:
        self._answers[key] = answer
        line = json.dumps({"key": key, **self._fields(answer)}, ensure_ascii=False)
        try:
            file.write(line.encode(errors="backslashreplace") + b"\n")
            file.flush()
            os.fsync(file.fileno())
        except OSError as error:
            raise PumiceError(f"{file.name}: can't be written ({error.strerror or error})") from None

    def _read(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
            key = entry.pop("key")
            if not isinstance(key, str):
                raise TypeError
            self._answers[key] = self._opened(entry)
        except (ValueError, TypeError, KeyError, AttributeError):
            self.broken += 1


class FileJournal(_Lines[Kept]):
    """A journal in one file, which one run at a time writes; without a path nothing is kept.

    A last line that isn't whole, as a killed process leaves, is cut off.

    Raises:
        PumiceError: it can't be read or written, or another run is writing it.
    """

    def __init__(self, path: Path | None) -> None:
        super().__init__()
        self.path = path
        if path is None:
            return
        try:
            self._file = path.open("ab+")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._load(self._file)
        except BlockingIOError:
            raise PumiceError(f"{path}: another run is writing it; wait for its end or choose another --out") from None
        except OSError as error:
            raise PumiceError(f"{path}: can't be written ({error.strerror or error})") from None

    def add(self, key: str, answer: Kept) -> None:
        """Keep an answer.

        Raises:
            PumiceError: it can't be written, such as for want of space.
        """
        if self._file is not None:
            self._write(self._file, key, answer)

    def _load(self, file: IO[bytes]) -> None:
        file.seek(0)
        whole = 0
        for line in file:
            if line.endswith(b"\n"):
                whole += len(line)
                self._read(line)
        file.truncate(whole)


class FolderJournal(_Lines[dict[str, Any]]):
    """A journal in a folder, for answers that are dicts with a text: every process, be it a rank of one run or another
    run, writes a file of its own, and has read what was there when it began.

    Raises:
        PumiceError: the folder can't be made or read.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        super().__init__()
        self.folder, self.rank = folder, rank
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path in sorted(folder.glob("answers-*.jsonl")):
                for line in path.read_bytes().splitlines():
                    self._read(line)
        except OSError as error:
            raise PumiceError(f"{folder}: the journal of answers can't be read ({error.strerror or error})") from None

    def add(self, key: str, answer: Mapping[str, Any]) -> None:
        """Keep an answer.

        Raises:
            PumiceError: it can't be written, such as for want of space.
        """
        if self._file is None:
            path = self.folder / f"answers-{self.rank}-{uuid.uuid4().hex[:12]}.jsonl"
            try:
                self._file = path.open("xb")
            except OSError as error:
                raise PumiceError(f"{path}: can't be written ({error.strerror or error})") from None
        self._write(self._file, key, dict(answer))

    def _opened(self, entry: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(entry.get("text"), str):
            raise TypeError
        return entry

    def _fields(self, answer: dict[str, Any]) -> Mapping[str, Any]:
        return answer


def digest_of(*pieces: bytes) -> str:
    """sha256 in hex over the pieces, each after its length, so that no two lists of pieces are the same bytes."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(len(piece).to_bytes(8, "big"))
        digest.update(piece)
    return digest.hexdigest()


def entry_key(sample: Sample, settings: Mapping[str, Any], model: str) -> str:
    """sha256 over the turns' texts and media, the generation settings, and ``model`` (see `model_hash`).

    A picture counts by its decoded pixels and size, a video or a PDF by its bytes.

    Raises:
        PumiceError: a picture can't be decoded.
    """
    described = json.dumps([FORM, pumice.__version__, model, settings], sort_keys=True, default=str)
    pieces = [described.encode()]
    for turn in sample.turns:
        pieces.append(turn.role.encode())
        for part in turn.content:
            if isinstance(part, str):
                pieces += [b"text", part.encode("utf-8", "surrogatepass")]
            else:
                about = part.kind, part.size, part.frames, part.fps, part.page
                pieces += [repr(about).encode(), _content(part)]
    return digest_of(*pieces)


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

    That is the structure, the language model's settings, the layouts, the template, the tokenizer, the weights that it
    decodes with and what a reader puts into prompts. The name and folder don't count. Takes about a second a gigabyte
    and core.
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
    ways = assistant.weights, assistant.reader and assistant.reader.settings
    told = json.dumps(named, sort_keys=True, default=str), repr((layouts, limits, template, ways))
    beside = [assistant.reader.settings] if assistant.reader is not None else []
    texts = repr(model), *told, _tokenizer_text(processor.tokenizer), *beside
    return digest_of(*hashed, *(text.encode() for text in texts))


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
