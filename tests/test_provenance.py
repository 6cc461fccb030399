"""What a recipe changes of its base, and what a run's folder says of how it began."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from pumice.config import digest, load_recipe
from pumice.train.course import change_lines
from pumice.train.provenance import commit, differences, flat, note

RECIPES = Path(__file__).parents[1] / "recipes"


def test_a_recipe_differs_from_its_base_in_what_it_says():
    path = RECIPES / "llava-1.5-13b.toml"
    base, changed = differences(load_recipe(path), path)
    assert base == "llava-1.5-7b.toml"
    found = {one.key: (one.before, one.after) for one in changed}
    assert found["model.lm"] == ("lmsys/vicuna-7b-v1.5", "lmsys/vicuna-13b-v1.5")
    assert all(before != after for before, after in found.values())
    text = path.read_text()
    assert all(key.rpartition(".")[2] in text for key in found)


def test_overrides_differ_from_the_file(tmp_path):
    path = RECIPES / "llava-1.5-7b.toml"
    stage = load_recipe(path).stages[0]
    recipe = load_recipe(path, [f"stages.{stage.name}.ema=0.9", f"stages.{stage.name}.lr.lm=1e-5"])
    base, changed = differences(recipe, path)
    assert base == path.name
    assert [(one.key, one.before, one.after) for one in changed] == [
        (f"stages.{stage.name}.ema", 0.0, 0.9),
        (f"stages.{stage.name}.lr.lm", None, 1e-5),
    ]


def test_a_stage_that_only_one_side_has_is_one_line(tmp_path):
    path = tmp_path / "longer.toml"
    path.write_text(
        f'base = "{RECIPES / "pocket.toml"}"\nstages.read = false\nstages.answer.lr.head = 0.1\n'
        '[stages.more]\nobjective = "read"\nsteps = 1\nbatch = 1\nlr = { tower = 1e-4 }\ndata = { wall = 1.0 }\n'
    )
    _, changed = differences(load_recipe(path), path)
    assert list(change_lines(changed)) == [
        "stages.answer.lr.head: 0.0005 -> 0.1",
        "stages.more: new",
        "stages.read: left out",
    ]


def test_every_value_of_a_recipe_has_a_key():
    values = flat(load_recipe(RECIPES / "pocket.toml"))
    assert values["model.tower.layers"] == [8, 12]
    assert values["stages.read.lr.tower"] == 5e-4


def test_each_start_is_a_row(tmp_path):
    recipe = load_recipe(RECIPES / "tiny.toml")
    for workers in (1, 2):
        note(tmp_path, recipe, workers)
    rows = [json.loads(line) for line in (tmp_path / "starts.jsonl").read_text().splitlines()]
    assert [row["workers"] for row in rows] == [1, 2]
    assert rows[0]["digest"] == digest(recipe)
    assert rows[0]["packages"]["torch"] == torch.__version__
    assert (rows[0]["commit"] or "").rstrip("+") == (commit(RECIPES) or "").rstrip("+")


def test_outside_of_a_checkout_there_is_no_commit(tmp_path):
    assert commit(tmp_path) is None
