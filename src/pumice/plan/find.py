"""What the user names, as a Model: a name of the line, a folder with a config.json, or a recipe.

"elva-160m" ──known──┐
folder/config.json ──┼──> Model
recipe.toml ─────────┘
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from pumice.plan.hf import HF_TYPES, read_hf
from pumice.plan.known import MODELS
from pumice.plan.models import Model
from pumice.plan.original import read_original
from pumice.plan.recipe import read_recipe
from pumice.plan.section import read_section
from pumice.types import PumiceError

POCKET = Path(__file__).parents[1] / "pocket" / "weights" / "recipe.toml"


def find_model(text: str) -> Model:
    """The sizes of ``pocket``, of a model of the line by exact name, or of a folder or file that holds a config.

    Raises:
        PumiceError: no such model, or a config that can't be read.
    """
    if text == "pocket":
        return read_recipe(POCKET)
    if text in MODELS:
        return MODELS[text]
    path = Path(text).expanduser()
    if path.is_dir():
        for name, read in (("config.json", read_config), ("recipe.toml", read_recipe)):
            if (path / name).is_file():
                return read(path / name)
        raise PumiceError(f"{text}: a folder with neither a config.json nor a recipe.toml")
    if path.is_file():
        return read_recipe(path) if path.suffix == ".toml" else read_config(path)
    names = ["pocket", *MODELS]
    near = get_close_matches(text, names, 1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(names)}"
    raise PumiceError(f"unknown model {text!r}, nor is it a folder with a config.json or a recipe.toml; {hint}")


def read_config(path: Path) -> Model:
    """The sizes in a checkpoint's config.json, llava-hf's or the original repositories'; the folder is its name.

    Raises:
        PumiceError: not JSON, an unknown type, a value that isn't possible or isn't supported.
    """
    section, name = read_section(path), path.resolve().parent.name
    if "mm_vision_tower" in section.values:
        return read_original(name, section)
    if "model_type" not in section.values:
        raise section.error("model_type", f"expected one of {', '.join(HF_TYPES)}, or an original mm_vision_tower")
    return read_hf(name, section, section.choice("model_type", tuple(HF_TYPES)))
