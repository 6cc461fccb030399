"""Where a run comes from: what its recipe changes of its base, and what it ran with.

recipe.toml, overrides ──differences──> changed keys        run's folder ──note──> starts.jsonl, a row a start
"""

from __future__ import annotations

import json
import platform
import subprocess
import time
import tomllib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pumice.config import Recipe, digest, load_recipe, resolved

PACKAGES = ("pumice", "torch", "transformers", "safetensors", "tokenizers", "pillow", "numpy", "av", "peft", "pyarrow")
"""Packages whose versions can change what a run computes."""


@dataclass(frozen=True)
class Difference:
    """One key of a recipe; None where a side doesn't have it."""

    key: str
    before: Any
    after: Any


def differences(recipe: Recipe, path: Path) -> tuple[str, list[Difference]]:
    """(name of the base's file, what differs from it); of a file without a base, what overrides change of it.

    Raises:
        PumiceError: the base is no whole recipe.
    """
    base = tomllib.loads(path.read_text(encoding="utf-8")).get("base")
    origin = path.parent / base if base else path
    before, after = flat(load_recipe(origin)), flat(recipe)
    keys = sorted((before.keys() | after.keys()) - {"name"})
    changed = [Difference(k, before.get(k), after.get(k)) for k in keys if before.get(k) != after.get(k)]
    return origin.name, changed


def flat(recipe: Recipe) -> dict[str, Any]:
    """Every value of a recipe by its dotted key."""
    found: dict[str, Any] = {}

    def walk(table: dict[str, Any], above: str) -> None:
        for name, value in table.items():
            if isinstance(value, dict):
                walk(value, f"{above}{name}.")
            else:
                found[above + name] = value

    walk(tomllib.loads(resolved(recipe)), "")
    return found


def note(out: Path, recipe: Recipe, workers: int) -> None:
    """Add a row to ``out``/starts.jsonl: when, which recipe, which code, which packages, which machine."""
    row = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "recipe": recipe.name,
        "digest": digest(recipe),
        "workers": workers,
        "commit": commit(Path(__file__).parent),
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": _device(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
    }
    with (out / "starts.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def commit(folder: Path) -> str | None:
    """The git commit of the checkout around a folder, with ``+`` where files differ from it; None outside of one."""
    try:
        head = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads"
