"""Rendered objects: the same seed gives the same bytes, splits share no file, and answers follow from the scene."""

import random
import re
from collections import Counter

import pytest

from pumice.data.render import assets, objects
from pumice.data.render.object_questions import PARTS, plural, some
from pumice.types import PumiceError

try:
    assets.check_packages()
    ABSENT = ""
except PumiceError as error:
    ABSENT = str(error)

drawn = pytest.mark.skipif(bool(ABSENT), reason=ABSENT)


def scenes(split, seeds):
    return [objects.describe(random.Random(seed), split) for seed in seeds]


@drawn
def test_same_seed_same_bytes():
    for seed in range(20):
        a, b = (objects.render(random.Random(seed), "train") for _ in range(2))
        assert a.image.tobytes() == b.image.tobytes()
        assert a.questions == b.questions
        assert a.image.mode == "RGB"


@drawn
def test_splits_share_classes_but_no_source():
    store = assets.library()
    train, held = (
        {asset.source for rows in store.assets[split].values() for asset in rows} for split in ("train", "heldout")
    )
    clusters = [
        {asset.cluster for rows in store.assets[split].values() for asset in rows} for split in ("train", "heldout")
    ]
    assert not train & held
    assert not clusters[0] & clusters[1]
    assert set(store.shown) <= set(store.names("train"))
    assert len(store.shown) >= 60
    assert len(store.missing) < 0.1 * len(train)


@drawn
def test_scene_uses_only_files_of_its_split():
    for split in ("train", "heldout"):
        for scene, _ in scenes(split, range(60)):
            assert all(thing.asset is None or thing.asset.split == split for thing in scene.things)


@drawn
def test_unknown_split_is_named():
    with pytest.raises(PumiceError, match="choose one of train, heldout"):
        objects.render(random.Random(0), "test")


@drawn
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_yes_and_no_are_balanced(split):
    answers = Counter(q.answer for _, r in scenes(split, range(300)) for q in r.questions if q.task == "yesno")
    assert set(answers) == {"yes", "no"}
    assert 0.4 < answers["yes"] / answers.total() < 0.6


@drawn
def test_three_to_six_short_questions_with_distinct_texts():
    for scene, picture in scenes("train", range(200)):
        texts = [q.text for q in picture.questions]
        assert 3 <= len(texts) <= 6, scene
        assert len(set(texts)) == len(texts)
        assert all(q.answer == q.answer.lower().strip() and q.answer for q in picture.questions)


@drawn
def test_things_lie_inside_and_apart():
    for scene, picture in scenes("train", range(200)):
        assert picture.image.size == scene.size
        for i, a in enumerate(scene.things):
            x0, y0, x1, y1 = a.box
            assert -1 <= x0 < x1 <= scene.size[0] + 1
            assert -1 <= y0 < y1 <= scene.size[1] + 1
            for b in scene.things[i + 1 :]:
                u0, v0, u1, v1 = b.box
                assert x1 <= u0 + 1 or u1 <= x0 + 1 or y1 <= v0 + 1 or v1 <= y0 + 1


@drawn
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_answers_follow_from_the_scene(split):
    checks = Counter()
    for scene, picture in scenes(split, range(400)):
        for question in picture.questions:
            checks[question.task] += check(scene, question)
    assert set(checks) == {"naming", "class", "colour", "counting", "leftright", "yesno"}
    assert min(checks.values()) > 10, checks


def label(thing):
    return thing.name if thing.asset else f"{thing.colour} {thing.name}"


def check(scene, question):
    """Work the answer out again from the boxes, names and colours; returns 1."""
    kinds, things = assets.read_kinds(), scene.things
    names = [thing.name for thing in things]
    if question.task == "naming":
        colour = re.search(r"shape is (\w+)\?|the (\w+) shape\?", question.text)
        if colour:
            hue = colour[1] or colour[2]
            assert [t.name for t in things if t.colour == hue] == [question.answer]
        else:
            assert len(set(names)) == 1
            assert question.answer == (plural(names[0]) if scene.kind == "many" else names[0])
    elif question.task == "class":
        assert question.answer == kinds[names[0]].group != ""
    elif question.task == "colour":
        (thing,) = [t for t in things if f"the {t.name}" in question.text.removesuffix("?").removesuffix(" have")]
        assert question.answer == thing.colour != ""
    elif question.task == "counting":
        fits = [t for t in things if counted(t, question.text)]
        assert question.answer == str(len(fits))
    elif question.task == "leftright":
        check_place(scene, question)
    else:
        check_yes_no(scene, question)
    return 1


def counted(thing, text):
    words = re.sub(r"[.?]", "", text)
    if "shapes" in words:
        return not (hue := re.search(r"(\w+) shapes", words)) or hue[1] in ("many", "the", thing.colour)
    return bool(re.search(rf"(many|the|of) {plural(thing.name)}\b", words))


def centre(thing, scene):
    axis = 0 if scene.order == "row" else 1
    return thing.box[axis] + thing.box[axis + 2]


def check_place(scene, question):
    line = sorted(scene.things, key=lambda thing: centre(thing, scene))
    fixed = {"left?": 0, "top?": 0, "right?": -1, "bottom?": -1, "middle?": 1}
    last = question.text.split()[-1]
    if last in fixed and not re.search(r"(of|above|below) the", question.text):
        assert question.answer == label(line[fixed[last]])
    else:
        (other,) = [t for t in line if question.text.endswith(f"the {label(t)}?")]
        before = bool(re.search(r"to the left of|above", question.text))
        assert question.answer == label(line[line.index(other) + (-1 if before else 1)])


def check_yes_no(scene, question):
    relation = re.match(r"(?:Is|Are) the (.+) (to the left of|to the right of|above|below) the (.+)\?", question.text)
    if relation:
        a, b = (next(t for t in scene.things if label(t) == relation[i]) for i in (1, 3))
        before = relation[2] in ("to the left of", "above")
        truth = (centre(a, scene) < centre(b, scene)) == before
    else:
        stem = r"(?:Is there|Are there|Can you see|Does the picture show) (.+?)(?: in the picture| here)?\?"
        match = re.fullmatch(stem, question.text)
        assert match, question.text
        asked = match[1]
        kinds = assets.read_kinds()
        names = {some(label(t), kinds[t.name].grammar if t.asset else "") for t in scene.things}
        truth = asked in names
        if not truth and scene.kind != "shapes":
            (absent,) = [name for name in kinds if some(name, kinds[name].grammar) == asked]
            assert absent not in PARTS
            assert not any(absent in kinds[t.name].alike for t in scene.things)
    assert question.answer == ("yes" if truth else "no")


def test_table_is_sound():
    kinds = assets.read_kinds()
    for name, kind in kinds.items():
        assert name == name.lower()
        assert kind.grammar in ("", "mass", "plural", "uncounted")
        assert all(other in kinds and name in kinds[other].alike for other in kind.alike)
    sources = [source for entry in assets.tomllib.loads(assets.TABLE.read_text()).values() for source in entry["files"]]
    assert len(set(sources)) == len(sources)


def test_absent_packages_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(assets, "EMOJI", tmp_path / "none.ttf")
    with pytest.raises(PumiceError, match="fonts-noto-color-emoji"):
        assets.check_packages()
