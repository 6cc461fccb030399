"""What a user names on the command line, as sources by name: a recipe's, files and folders of samples, test sets.

recipe.toml | samples.jsonl | shards/ | a.parquet | pictures/ ──> {name: Source}
embedded | embedded:50 | FILE | FOLDER                        ──> {name: Source} to check against
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pumice.config import NAME, DataConfig, load_recipe
from pumice.data.knowledge.pictures import PictureSource, open_pictures
from pumice.data.parquet import columns_of
from pumice.data.sources import Source, open_source
from pumice.types import Media, PumiceError, Sample, Turn
from pumice.vision.kinds import open_media

if TYPE_CHECKING:
    from pumice.eval.suite.items import Suite

EMBEDDED = "embedded"
QUESTIONS = 200
"""Questions a task of the embedded suite, as `pumice eval` asks them."""


def open_recipe(recipe: str, overrides: Sequence[str], root: Path) -> dict[str, Source]:
    """The sources on disk that a recipe's stages name.

    Raises:
        PumiceError: it isn't a recipe, has none, or one isn't there.
    """
    loaded = load_recipe(recipe, overrides)
    named = dict.fromkeys(name for stage in loaded.stages for name in stage.data if name in loaded.data)
    if not named:
        raise PumiceError(f"{recipe}: its stages draw their pictures; there is nothing on disk to check")
    return {name: open_source(name, loaded.data[name], root, loaded.seed) for name in named}


def open_paths(paths: Sequence[Path]) -> dict[str, Source]:
    """A source for each file or folder, named as it is.

    Raises:
        PumiceError: it isn't there, or isn't of a form that is known.
    """
    opened: dict[str, Source] = {}
    for path in paths:
        name = "".join(sign if NAME.fullmatch(sign) else "_" for sign in path.stem) or "data"
        while name in opened:
            name += "_"
        opened[name] = open_path(path, name)
    return opened


def open_path(path: Path, name: str) -> Source:
    """The source that a file or folder is: LLaVA's JSON, JSONL or YAML, messages, parquet, WebDataset's tars, pictures
    with captions beside them, or pictures alone (also in parquet). Media lie beside the file.

    Raises:
        PumiceError: it isn't there, or isn't of a form that is known.
    """
    if not path.exists():
        raise PumiceError(f"{path}: no such file or folder")
    if path.suffix == ".tar" or (path.is_dir() and any(path.rglob("*.tar"))):
        return open_source(name, DataConfig("webdataset", str(path.resolve())), Path())
    if path.is_dir() and not any(path.rglob("*.parquet")) and not any(path.rglob("*.txt")):
        return _folder(path, name)
    from pumice.train.finetune import form_of

    form, media = form_of(path), path if path.is_dir() else path.parent
    if form == "parquet" and not _has_conversations(path):
        return open_pictures(path)
    return open_source(name, DataConfig(form, str(path.resolve()), str(media.resolve())), Path())


def _has_conversations(path: Path) -> bool:
    first = min(path.rglob("*.parquet")) if path.is_dir() else path
    return "conversations" in columns_of(first)


def _folder(path: Path, name: str) -> Source:
    """A folder of pictures alone, or with one file of records in it."""
    records = sorted(file for file in path.iterdir() if file.suffix in (".json", ".jsonl"))
    if len(records) == 1:
        return open_path(records[0], name)
    if records:
        listed = ", ".join(file.name for file in records[:6])
        raise PumiceError(f"{path}: {len(records)} files of records ({listed}); name the one that is meant")
    return PictureSource(path)


def open_tests(named: Sequence[str]) -> dict[str, Source]:
    """The test sets to check against, by name.

    Raises:
        PumiceError: as `open_path`, or what the embedded suite needs isn't installed.
    """
    opened: dict[str, Source] = {}
    for one in named:
        kind, _, count = one.partition(":")
        if kind != EMBEDDED:
            opened |= open_paths([Path(one)])
        elif count and not (count.isascii() and count.isdigit() and int(count)):
            raise PumiceError(f"{one}: expected embedded, or embedded:N for N questions a task")
        else:
            opened[EMBEDDED] = embedded(int(count or QUESTIONS))
    return opened


@dataclass
class SuiteSource:
    """The embedded suite's questions with their answers; ``settings`` are the digest of all that it shows."""

    questions: int
    settings: str

    @property
    def files(self) -> list[Path]:
        return []

    def __len__(self) -> int:
        return len(self._suite().items)

    def sample(self, row: int) -> Sample:
        suite = self._suite()
        item = suite.items[row]
        shown = suite.media(item.picture)
        seen = [media for one in (shown if isinstance(shown, list) else [shown]) for media in open_media(one)]
        media = tuple(Media(one.reference, one.size, one.kind, one.frames, fps=one.fps) for one in seen)
        turns = (Turn("user", (*media, item.question)), Turn("assistant", (item.truth,)))
        return Sample(turns, f"{item.picture} {item.task}", item.kind)

    def _suite(self) -> Suite:
        from pumice.eval.suite.items import check_tasks, suite

        return suite(check_tasks(()), self.questions)


def embedded(questions: int) -> SuiteSource:
    """The embedded suite, drawn anew."""
    source = SuiteSource(questions, "")
    source.settings = source._suite().sha256
    return source
