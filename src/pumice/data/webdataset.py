"""WebDataset: tar shards in which the files of one sample share the name up to the first dot.

000000.tar: 17.jpg, 17.json (LLaVA's record) | 17.txt (a caption) ──> Sample
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pumice.data.conversations import conversation, named
from pumice.data.sampling import choose, file_rng
from pumice.data.stores import Store, Tar
from pumice.types import PumiceError, Sample, Turn
from pumice.vision.kinds import open_media

TEXTS = ("json", "txt")


class WebDatasetSource:
    """A tar, or a folder of them. A record names no picture of its own, or one that is a member of its shard."""

    def __init__(self, name: str, path: Path, media: Store, sampling: str, seed: int) -> None:
        self.name = name
        self.shards = [Tar(file) for file in (sorted(path.rglob("*.tar")) if path.is_dir() else [path])]
        if not self.shards:
            raise PumiceError(f"[data.{name}]: {path} holds no .tar file")
        found = [(number, key, files) for number, shard in enumerate(self.shards) for key, files in _groups(shard)]
        self.rows = [found[i] for i in choose(len(found), sampling, file_rng(seed, path))]
        keys = "\n".join(f"{number} {key}" for number, key, _ in self.rows)
        self.settings = str(zlib.crc32(keys.encode(errors="backslashreplace")))

    @property
    def files(self) -> list[Path]:
        return [shard.path for shard in self.shards]

    def __len__(self) -> int:
        return len(self.rows)

    def sample(self, row: int) -> Sample:
        number, key, files = self.rows[row]
        shard = self.shards[number]
        try:
            return self._sample(shard, key, files)
        except PumiceError as error:
            raise PumiceError(f"{shard.path}, {key}: {error}") from None

    def _sample(self, shard: Tar, key: str, files: dict[str, str]) -> Sample:
        where = f"{self.name}-{key}"
        media = [name for ending, name in files.items() if ending not in TEXTS]
        if "json" in files:
            record = _record(shard.fetch(files["json"]))
            says = any(record.get(kind) for kind in ("image", "images", "video"))
            record = record if says or not media else {**record, "image": media}
            return conversation(record, lambda name: open_media(shard.fetch(named(name))), where)
        if "txt" not in files or len(media) != 1:
            raise PumiceError(f"files {', '.join(files.values())}; expected a .json, or a .txt beside one picture")
        caption = shard.fetch(files["txt"]).decode("utf-8", "replace").strip()
        if not caption:
            raise PumiceError("an empty caption")
        picture = open_media(shard.fetch(media[0]))
        return Sample((Turn("user", tuple(picture)), Turn("assistant", (caption,))), id=where)


def _groups(shard: Tar) -> Iterator[tuple[str, dict[str, str]]]:
    """(key, {ending: member}) of the samples in a shard, in the order of their first members."""
    groups: dict[str, dict[str, str]] = {}
    for member in shard.members:
        folder, slash, name = member.rpartition("/")
        key, _, ending = name.partition(".")
        groups.setdefault(f"{folder}{slash}{key}", {})[ending.lower()] = member
    yield from groups.items()


def _record(data: bytes) -> dict[str, Any]:
    try:
        record = json.loads(data)
    except ValueError as error:
        raise PumiceError(f"its .json: {error}") from None
    if not isinstance(record, dict):
        raise PumiceError(f"its .json holds a {type(record).__name__}, expected an object")
    return record
