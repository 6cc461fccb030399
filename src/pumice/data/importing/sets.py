"""What is known of public data sets, and whether a local copy has it.

sets.toml ──> PublicSet ──look_at(folder)──> [Looked: records expected and found, pictures missing], a recipe's lines
"""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from pumice.config import DataConfig
from pumice.data.importing.rows import is_there
from pumice.data.parquet import ParquetRows
from pumice.data.records import Records
from pumice.data.sources import open_source
from pumice.types import PumiceError

CHECKED = 10_000
"""Records between two reports of progress."""
Told = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Expected:
    """A file of a set, or a pattern for several; ``records`` 0 is unknown. Not all copies have an optional one."""

    path: str
    records: int = 0
    optional: bool = False


@dataclass(frozen=True)
class PublicSet:
    """A public data set: see `sets.toml`."""

    name: str
    title: str
    url: str
    licence: str
    form: str
    files: tuple[Expected, ...] = ()
    records: int = 0
    media: str = "."
    source: str = ""
    about: str = ""

    @property
    def ready(self) -> bool:
        """Whether training reads it as it is."""
        return self.form in ("llava", "parquet")


@dataclass
class Looked:
    """What is at one of the expected places. ``records`` is -1 where nothing is, ``expected`` 0 if it isn't known."""

    path: Path
    records: int
    expected: int = 0
    missing: list[str] = field(default_factory=list)
    faulty: int = 0
    optional: bool = False

    @property
    def right(self) -> bool:
        """As it should be: there, of as many records as it is known to have, all pictures beside it."""
        if self.records < 0:
            return self.optional
        return self.expected in (0, self.records) and not self.missing and not self.faulty


@cache
def public_sets() -> dict[str, PublicSet]:
    """The sets that are known, by name."""
    table = tomllib.loads(files("pumice.data.importing").joinpath("sets.toml").read_text(encoding="utf-8"))
    return {
        name: PublicSet(name, **{**entry, "files": tuple(Expected(**file) for file in entry.get("files", ()))})
        for name, entry in table.items()
    }


def find_set(name: str) -> PublicSet:
    """A set by its name.

    Raises:
        PumiceError: it isn't known; the message names the nearest ones.
    """
    known = public_sets()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, 2)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}"
    raise PumiceError(f"no data set {name!r}: {hint}")


def look_at(one: PublicSet, folder: Path, told: Told = lambda what, done, total: None) -> list[Looked]:
    """Look for a ready set's files: how many records they have, and which of their pictures aren't there.

    Raises:
        PumiceError: none of its files is there, or one can't be read.
    """
    if folder.is_file():
        found = [_look(one, folder, Expected(folder.name), folder.parent, told)]
    else:
        found = [looked for expected in one.files for looked in _find(one, folder, expected, told)]
    if all(looked.records < 0 for looked in found):
        wanted = ", ".join(expected.path for expected in one.files)
        raise PumiceError(f"{folder}: expected {wanted} in it; {one.title} is published at {one.url}")
    return found


def _find(one: PublicSet, folder: Path, expected: Expected, told: Told) -> Iterator[Looked]:
    if "*" in expected.path:
        for path in sorted(folder.glob(expected.path)):
            yield _look(one, path, expected, folder, told)
        return
    yield _look(one, folder / expected.path, expected, folder, told)


def _look(one: PublicSet, path: Path, expected: Expected, folder: Path, told: Told) -> Looked:
    if not path.exists():
        return Looked(path, -1, expected.records, optional=expected.optional)
    if one.form == "parquet":
        parts = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
        return Looked(path, len(ParquetRows(parts, ("conversations",))), expected.records)
    records = Records(path)
    looked = Looked(path, len(records), expected.records)
    media = folder / one.media
    for row in range(len(records)):
        try:
            _media_there(records[row], media, looked)
        except PumiceError:
            looked.faulty += 1
        if row % CHECKED == 0 or row + 1 == len(records):
            told(path.name, row + 1, len(records))
    return looked


def _media_there(record: dict[str, Any], media: Path, looked: Looked) -> None:
    """Note the pictures and videos of a record that aren't there."""
    found = record.get("image") or record.get("video") or []
    for name in found if isinstance(found, list) else [found]:
        if not isinstance(name, str):
            raise PumiceError("a picture's name that is no text")
        if not is_there(media / name):
            looked.missing.append(name)


def recipe_lines(one: PublicSet, folder: Path, looked: list[Looked]) -> str:
    """The sections of a recipe that name a ready set's files, each of which is opened to see that it can be read."""
    sections = []
    there = [file for file in looked if file.records > 0]
    media = (folder if folder.is_dir() else folder.parent).resolve() / one.media
    for file in there:
        name = one.source if one.source and len(there) == 1 else _name(file.path)
        config = DataConfig(one.form, str(file.path.resolve()), str(media))  # type: ignore[arg-type]
        open_source(name, config, Path()).sample(0)
        lines = [f"[data.{name}]", f'format = "{one.form}"', f"path = {json.dumps(config.path)}"]
        lines += [f"media = {json.dumps(config.media)}"] if one.form == "llava" else []
        sections.append("\n".join(lines + set_lines(one, file.records)) + "\n")
    return "\n".join(sections)


def set_lines(one: PublicSet, samples: int) -> list[str]:
    """What a recipe says of a set besides where it is."""
    return [f"url = {json.dumps(one.url)}", f"licence = {json.dumps(one.licence)}", f"samples = {samples}"]


def _name(path: Path) -> str:
    return "".join(sign if sign.isascii() and (sign.isalnum() or sign in "_-") else "_" for sign in path.resolve().stem)


def fingerprint(paths: list[Path], folder: Path, told: Told = lambda what, done, total: None) -> dict[str, Any]:
    """{file: {bytes, sha256}} of files, read in pieces."""
    found: dict[str, Any] = {}
    for number, path in enumerate(paths):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        name = str(path.relative_to(folder)) if path.is_relative_to(folder) else path.name
        found[name] = {"bytes": path.stat().st_size, "sha256": digest}
        told("checksums", number + 1, len(paths))
    return found


def compare(manifest: Path, found: dict[str, Any]) -> list[str]:
    """What differs from a manifest, a line each.

    Raises:
        PumiceError: it can't be read.
    """
    try:
        before = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        if not isinstance(before, dict):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError):
        raise PumiceError(f"{manifest}: expected what pumice data import --manifest writes") from None
    lines = [f"{name}: not there any more" for name in before if name not in found]
    lines += [f"{name}: new" for name in found if name not in before]
    return lines + [f"{name}: another content" for name in found if name in before and found[name] != before[name]]
