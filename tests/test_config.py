"""Recipes: bases, overrides, and errors that name the file, the key and what was expected."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pumice.config import LoraConfig, digest, load_recipe, resolved
from pumice.types import PumiceError
from pumice.vision.frames import VIDEO_PRESETS
from pumice.vision.layout import POCKET, PRESETS

RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.fixture
def write(tmp_path):
    """Write files beside a copy of pocket.toml and return the path of the last."""
    (tmp_path / "pocket.toml").write_text((RECIPES / "pocket.toml").read_text())

    def write(**texts: str) -> Path:
        for name, text in texts.items():
            (tmp_path / f"{name}.toml").write_text(text)
        return tmp_path / f"{list(texts)[-1]}.toml"

    return write


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_reads_and_survives_a_round_trip(path, tmp_path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    again = tmp_path / "again.toml"
    again.write_text(resolved(recipe))
    assert load_recipe(again) == recipe
    assert digest(load_recipe(again)) == digest(recipe)


def test_pocket():
    recipe = load_recipe(RECIPES / "pocket.toml")
    assert recipe.model.layout == POCKET
    assert [stage.objective for stage in recipe.stages] == ["read", "align", "answer"]
    read, _, answer = recipe.stages
    assert set(read.lr) == {"tower", "head"}
    assert read.lora is None
    assert answer.lora == LoraConfig(48, 96.0)
    assert all(sum(stage.data.values()) == pytest.approx(1) for stage in recipe.stages)


def test_tiny_is_pocket_with_other_steps():
    pocket, tiny = (load_recipe(RECIPES / f"{name}.toml") for name in ("pocket", "tiny"))
    assert tiny.model == pocket.model
    assert [stage.name for stage in tiny.stages] == ["read", "align", "answer"]
    assert all(stage.steps <= 3 for stage in tiny.stages)
    assert all(a.lr == b.lr and a.data == b.data for a, b in zip(tiny.stages, pocket.stages, strict=True))


def test_bases_of_bases_and_a_new_stage_at_the_end(write):
    more = '[stages.more]\nobjective = "answer"\nsteps = 7\nbatch = 1\nlr.connector = 1e-4\ndata.charts = 1'
    path = write(middle='base = "pocket.toml"\nseed = 5', last=f'base = "middle.toml"\n{more}')
    recipe = load_recipe(path)
    assert (recipe.name, recipe.seed) == ("last", 5)
    assert [stage.name for stage in recipe.stages] == ["read", "align", "answer", "more"]
    assert recipe.stages[3].data == {"charts": 1.0}


def test_false_drops_a_table_of_the_base(write):
    recipe = load_recipe(write(full='base = "pocket.toml"\nstages.align = false\nstages.answer.lora = false'))
    assert [stage.name for stage in recipe.stages] == ["read", "answer"]
    assert recipe.stages[1].lora is None


def test_layout_is_a_preset_with_some_keys_changed(write):
    recipe = load_recipe(write(wide='base = "pocket.toml"\n[model.layout]\ngrids = [[1, 1], [3, 1]]'))
    assert recipe.model.layout == replace(POCKET, grids=((1, 1), (3, 1)))


def test_layouts_of_several_pictures_and_of_videos():
    siglip = ["model.tower.tile=384", "model.layout.preset=ONEVISION", "model.several.preset=ONEVISION_MULTI"]
    recipe = load_recipe(RECIPES / "pocket.toml", [*siglip, "model.video={preset = 'ONEVISION_VIDEO', frames = 8}"])
    assert recipe.model.several == PRESETS["ONEVISION_MULTI"]
    assert recipe.model.video == replace(VIDEO_PRESETS["ONEVISION_VIDEO"], frames=8)
    assert load_recipe(RECIPES / "pocket.toml").model.several is None
    for override, message in (
        ("model.several.preset=ONEVISION_MULTI", r"model.several: tiles of 384 pixels and 27 tokens.*\(224, 16\)"),
        ("model.video={tile = 224, side = 16, frame = 3}", r"model.video.frame: unknown key; the nearest is 'frames'"),
        ("model.video.preset=POCKET", r"model.video.preset: expected one of ONEVISION_VIDEO"),
        ("model.video={tile = 224, side = 16, pool = 'mean'}", r"model.video: pool = 'mean'; expected one of bilinear"),
    ):
        with pytest.raises(PumiceError, match=message):
            load_recipe(RECIPES / "pocket.toml", [override])


def test_resolved_recipes_with_every_layout_are_read_back(tmp_path):
    video = "model.video={tile = 224, side = 16, newline = 'grid'}"
    recipe = load_recipe(RECIPES / "pocket.toml", ["model.several={preset = 'POCKET', newline = false}", video])
    (tmp_path / "again.toml").write_text(resolved(recipe))
    assert load_recipe(tmp_path / "again.toml") == recipe


def test_overrides():
    lr = "stages.read.lr.tower=1"
    names = ["model.lm=some/folder-2", 'model.template="a b"', "name=other", "stages.answer.lora=false"]
    recipe = load_recipe(RECIPES / "pocket.toml", ["stages.read.steps=10", lr, *names, "stages.read.betas=[0.5, 0]"])
    read = recipe.stages[0]
    assert (read.steps, read.lr["tower"], read.betas, type(read.lr["tower"])) == (10, 1.0, (0.5, 0.0), float)
    assert (recipe.model.lm, recipe.model.template, recipe.name) == ("some/folder-2", "a b", "other")
    assert recipe.stages[2].lora is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "stages.read.stepz=10",
            r"override 'stages.read.stepz=10': stages.read.stepz: unknown.*nearest is 'steps'",
        ),
        ("stages.reed.steps=10", r"no stage 'reed'; the recipe has read, align, answer"),
        ("modell.lm=x", r"modell: unknown key; the nearest is 'model'"),
        ("stages.read.lr.towr=1", r"stages.read.lr.towr: unknown key; the nearest is 'tower'"),
        ("stages.read.data.chart=1", r"stages.read.data.chart: unknown key; the nearest is 'charts'"),
        ("stages.read.name=x", r"stages.read.name: the table's own name"),
        ("stages.read.steps=ten", r"stages.read.steps: expected an integer of at least 0, found string \"ten\""),
        ("stages.read.steps=0", r"stages.read.steps: missing; wall is rendered without end"),
        ("stages.read.steps=1.5", r"expected an integer of at least 0, found float 1.5"),
        ("stages.read.steps=true", r"expected an integer of at least 0, found boolean true"),
        ("stages.read.clip=0", r"expected a number above 0, found float 0.0"),
        ("stages.read.clip=inf", r"expected a number above 0, found float"),
        ("stages.read.decay=1.5", r"expected a number of at least 0 and at most 1, found float 1.5"),
        ("stages.read.betas=[0.9]", r"expected a list of 2, found list \[0.9\]"),
        ("stages.read.lr=3", r"stages.read.lr: expected a table, found int 3"),
        ("stages.read.lr.tower=-1", r"expected a number of at least 0"),
        ("stages.read.objective=reed", r"expected one of read, align, answer, found string \"reed\""),
        ("stages.read=3", r"stages.read: expected a table, found int 3"),
        ("stages=3", r"stages: expected tables such as \[stages.read\]"),
        ("stages.answer={patience = 3, eval_every = 0}", r"stages.answer.patience: nothing is measured to wait for"),
        (
            "stages.read={patience = 3, eval_every = 9}",
            r"read.patience: the next stage would begin with the last",
        ),
        ("stages.answer.lr.lm=0", r"stages.answer.lora: lr.lm is 0"),
        ("model.lm=''", r"model.lm: expected a string that isn't empty"),
        ("model.layout.preset=POKET", r"model.layout.preset: expected one of LLAVA_15"),
        ("model.layout.sid=8", r"model.layout.sid: unknown key; the nearest is 'side'"),
        ("model.layout.mode=any", r"model.layout: mode = 'any'; expected one of square"),
        ("model.tower.tile=448", r"model.layout.tile: 224 pixels; the tower's tiles have 448"),
        ("start_modules=['towr']", r"expected one of tower, connector"),
        ("start_modules=tower", r"start_modules: expected a list, found string"),
        ("model.tower.layers=[0]", r"model.tower.layers: expected an integer of at least 1"),
        ("model.connector.norm=1", r"model.connector.norm: expected true or false, found int 1"),
        ("stages.read.steps", r"expected key=value"),
        ("model.lm=[1", r"the value isn't TOML"),
    ],
)
def test_errors_of_overrides(override, message):
    with pytest.raises(PumiceError, match=message):
        load_recipe(RECIPES / "pocket.toml", [override])


def test_errors_name_the_file_that_wrote_the_value(write):
    path = write(middle='base = "pocket.toml"\n[stages.read]\nstep = 5', last='base = "middle.toml"')
    with pytest.raises(PumiceError, match=r"middle.toml: stages.read.step: unknown key; the nearest is 'steps'"):
        load_recipe(path)
    with pytest.raises(PumiceError, match=r"bare.toml: model: missing"):
        load_recipe(write(bare="seed = 1\n[stages.a]"))
    with pytest.raises(PumiceError, match=r"odd.toml: stages.a b: a stage's name has letters, digits"):
        load_recipe(write(odd='base = "pocket.toml"\n[stages."a b"]\nsteps = 1'))


def test_a_stage_must_train_something_on_something(write):
    head = 'base = "pocket.toml"\n[stages.read]\n'
    with pytest.raises(PumiceError, match=r"stages.read.lr: nothing is trained"):
        load_recipe(write(frozen=f"{head}lr = {{ tower = 0, head = 0 }}"))
    kinds = ", ".join(f"{kind} = 0" for kind in ("wall", "lines", "receipts", "forms", "tables", "charts", "objects"))
    with pytest.raises(PumiceError, match=r"stages.read.data: nothing to train on"):
        load_recipe(write(empty=f"{head}data = {{ {kinds} }}"))


def test_cycles_missing_and_broken_files(write, tmp_path):
    with pytest.raises(PumiceError, match=r"each other's base: b.toml -> a.toml -> b.toml"):
        load_recipe(write(a='base = "b.toml"', b='base = "a.toml"'))
    with pytest.raises(PumiceError, match=r"none.toml: No such file.*pocket.toml"):
        load_recipe(tmp_path / "none.toml")
    with pytest.raises(PumiceError, match=r"broken.toml: not TOML"):
        load_recipe(write(broken="seed ="))
    with pytest.raises(PumiceError, match=r"expected the name of a recipe file"):
        load_recipe(write(odd="base = 3"))


def test_the_digest_follows_values_not_their_order(write):
    pocket = load_recipe(RECIPES / "pocket.toml")
    objects = pocket.stages[-1].data["objects"]
    text = f'base = "pocket.toml"\nname = "pocket"\nstages.answer.data = {{ objects = {objects} }}'
    assert digest(load_recipe(write(same=text))) == digest(pocket)
    first = "stages.read.lr = { head = 1, tower = 2 }"
    other = "stages.read.lr = { tower = 2, head = 1 }"
    head = 'base = "pocket.toml"\nname = "pocket"\n'
    assert digest(load_recipe(write(a=head + first))) == digest(load_recipe(write(b=head + other)))
    assert digest(load_recipe(RECIPES / "pocket.toml", ["seed=1"])) != digest(pocket)


def test_strings_survive_toml(write, tmp_path):
    odd = 'a "quoted" \\ name\twith é and \U0001f600 and \x7f'
    recipe = load_recipe(RECIPES / "pocket.toml")
    recipe = replace(recipe, model=replace(recipe.model, template=odd))
    (tmp_path / "odd.toml").write_text(resolved(recipe), encoding="utf-8")
    assert load_recipe(tmp_path / "odd.toml") == recipe


def test_reading_a_recipe_does_not_import_torch():
    code = "import sys, pumice.config; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
