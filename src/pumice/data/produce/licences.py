"""Under what terms the things are that pictures are made of: said by the installed packages themselves.

kinds ──material──> packages of Debian and Python ──copyright files, metadata──> rows for the card
"""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

from pumice.data.render.fonts import Split, faces
from pumice.data.render.kinds import KINDS
from pumice.data.render.script_fonts import font_files

Row = tuple[str, str, str]
"""(what it is, package, licence)."""

_COPYRIGHT = Path("/usr/share/doc")


@cache
def materials() -> dict[str, dict]:
    """materials.toml: by name {what, debian, python, note}."""
    return tomllib.loads(Path(__file__).with_name("materials.toml").read_text(encoding="utf-8"))


def rows(names: Iterable[str], split: Split) -> list[Row]:
    """What the kinds are made of, with the package and licence of each part that is installed."""
    out = []
    for name in dict.fromkeys(part for kind in names for part in KINDS[kind].material):
        entry = materials()[name]
        for package in entry.get("python", ()):
            out.append((entry["what"], f"{package} (Python)", entry.get("note") or _python(package)))
        packages = _font_packages(split, name) if "fonts" in name else entry.get("debian", ())
        by_licence: dict[str, list[str]] = {}
        for package in packages:
            if (_COPYRIGHT / package).exists():
                by_licence.setdefault(entry.get("notes", {}).get(package) or _debian(package), []).append(package)
        out += [(entry["what"], ", ".join(found), licence) for licence, found in sorted(by_licence.items())]
    return out


def _python(package: str) -> str:
    try:
        said: Any = metadata(package)  # an email.message.Message, as the standard says and its type doesn't
    except PackageNotFoundError:
        return "not installed"
    classified = [text.split(" :: ")[-1] for text in said.get_all("Classifier") or [] if text.startswith("License")]
    return said.get("License-Expression") or (classified[0] if classified else said.get("License") or "not said")


@cache
def _debian(package: str) -> str:
    """The licences that a package's copyright file names, if it is in the form that machines read."""
    try:
        text = (_COPYRIGHT / package / "copyright").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "not said"
    found = {" ".join(name.split()) for name in re.findall(r"^License:[ \t]*(\S.*)$", text, re.MULTILINE)}
    return ", ".join(sorted(found)) or f"see {_COPYRIGHT / package / 'copyright'}"


def _font_packages(split: Split, material: str) -> list[str]:
    """Debian packages of the fonts of a split, or of a script's."""
    paths = [path for _, _, path in faces(split)] if material == "fonts" else font_files(material, split)
    try:
        told = subprocess.run(["dpkg-query", "-S", *paths], capture_output=True, text=True, check=False).stdout
    except OSError:
        return []
    return sorted({line.split(":")[0] for line in told.splitlines() if ": " in line})
