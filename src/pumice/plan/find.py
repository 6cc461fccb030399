"""What the user names, as a Model: a name of the line, a folder with a config.json, or a recipe.

"elva-160m" ──known──┐
folder/config.json ──┼──> Model
recipe.toml ─────────┘
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from pumice.formats.configs import read_config
from pumice.formats.sizes import Model
from pumice.plan.known import MODELS
from pumice.plan.recipe import read_recipe
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
