"""The embedded suite's questions with several pictures, videos, no picture, and Chinese: truths, skips, scores."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from test_eval import ABSENT, needs_objects

from pumice.assistant import Assistant
from pumice.data.render import assets, chinese, objects, records, scenes, values
from pumice.data.render.text_questions import OPPOSITES
from pumice.eval.metrics.further import further, tree_accuracy
from pumice.eval.suite import posing
from pumice.eval.suite.asking import Cause, Skipped, ask
from pumice.eval.suite.embedded import evaluate
from pumice.eval.suite.items import GROUPS, TASKS, suite
from pumice.types import PumiceError
from pumice.vision.kinds import open_media
from pumice.vision.video import read_frames

needs_chinese = pytest.mark.skipif(bool(chinese.missing()), reason=chinese.missing())
ALL = tuple(task for task in posing.KINDS if not (posing.KINDS[task] == "scenes" and ABSENT))
SCENES = tuple(scenes.MAKERS)


def frames_of(video: bytes) -> np.ndarray:
    """(F, h, w, 3) int as an assistant decodes them."""
    (media,) = open_media(video)
    assert media.kind == "video"
    return np.stack([np.asarray(frame, int) for frame in read_frames(media, range(media.frames))])


def marked(frames: np.ndarray) -> np.ndarray:
    """(F, h, w) bool: pixels that differ from the plain ground."""
    ground = np.median(frames.reshape(-1, 3), axis=0)
    return np.abs(frames - ground).sum(-1) > 90


def test_the_first_tasks_kept_their_items():
    # Printed before the other kinds were there. Another version of Pillow or Faker may draw otherwise.
    assert suite(("price",), 3).sha256 == "05fc17a5b2fd7f7db6e14712a2fcec2e5039c5c31733ee502c7ee50abcf8ea8b"
    alone, beside = suite(("price",), 3), suite(("price", "receipt_json", "text_only"), 3)
    assert [item for item in beside.items if item.task == "price"] == list(alone.items)


def test_every_kind_is_a_task_in_a_group():
    assert set(posing.KINDS) < set(TASKS)
    assert set(posing.KINDS) <= {task for of in GROUPS.values() for task in of}


@pytest.mark.parametrize("task", ALL)
def test_items_come_again_and_smaller_suites_come_first(task):
    if posing.left_out(task):
        pytest.skip(posing.left_out(task))
    first, again = suite((task,), 4), suite.__wrapped__((task,), 4)
    assert first.sha256 == again.sha256
    assert len(first.items) == 4
    larger = {(item.picture, item.question, item.truth) for item in suite((task,), 7).items}
    assert {(item.picture, item.question, item.truth) for item in first.items} < larger
    for item in first.items:
        assert item.task == item.kind == task
        assert (item.other == "") == (task == "text_only")
        if item.other:
            assert first.shown[item.other].sha256 != first.shown[item.picture].sha256


def test_receipts_as_json_are_the_receipts_that_other_tasks_ask_about():
    whole, parts = suite(("receipt_json",), 4), suite(("amount", "shop"), 8)
    for item in whole.items:
        twin = item.picture.replace("receipt_json", "receipts")
        if twin in parts.pictures:
            assert whole.open(item.picture).tobytes() == parts.open(twin).tobytes()
        truth = json.loads(item.truth)
        assert list(truth) == list(json.loads(records.RECEIPT_SCHEMA))
        for other in parts.items:
            if other.picture == twin and other.task == "shop":
                assert other.truth == truth["shop"]
    assert {item.picture.replace("receipt_json", "receipts") for item in whole.items} & set(parts.pictures)


@needs_objects
def test_the_second_picture_has_what_the_first_lacks(monkeypatch):
    drawn: list[list[str]] = []
    laid = scenes.lay
    monkeypatch.setattr(
        scenes,
        "lay",
        lambda ground, store, things: drawn.append([t.name for t in things]) or laid(ground, store, things),
    )
    for seed in range(30):
        drawn.clear()
        posed = scenes.difference(random.Random(seed), "heldout")
        first, second = drawn
        ((question, chance),) = posed.asked
        assert set(second) - set(first) == {question.answer}
        assert chance == 1 / len(second)
        a, b = (np.asarray(frame, int) for frame in posed.frames)
        assert (np.abs(a - b).sum(-1) > 30).sum() > 200


@needs_objects
@pytest.mark.parametrize("task", ["odd_one_out", "order"])
def test_the_place_that_is_asked_for_shows_it(task, monkeypatch):
    shown: list[str] = []
    single = scenes._single
    monkeypatch.setattr(
        scenes, "_single", lambda rng, store, split, name: shown.append(name) or single(rng, store, split, name)
    )
    places = Counter()
    for seed in range(60):
        shown.clear()
        posed = scenes.MAKERS[task](random.Random(seed), "heldout")
        ((question, chance),) = posed.asked
        place = scenes.PLACES.index(question.answer)
        places[place] += 1
        assert len(posed.frames) == len(shown) == round(1 / chance)
        if task == "order":
            assert re.search(rf"shows (an? )?{re.escape(shown[place])}:", question.text)
        else:
            assert Counter(shown)[shown[place]] == 1
            assert len(set(shown)) == 2
            assert all(scenes.PLACES[i] in question.text for i in range(len(shown)))
    assert min(places[i] for i in range(2)) > 10


@needs_objects
def test_presence_asks_a_balanced_pair(monkeypatch):
    seen: list[scenes.Scene] = []
    paint = objects.paint
    monkeypatch.setattr(objects, "paint", lambda rng, store, scene: seen.append(scene) or paint(rng, store, scene))
    for seed in range(40):
        posed = scenes.presence(random.Random(seed), "heldout")
        names = [thing.name for thing in seen[-1].things]
        (there, _), (absent, _) = posed.asked
        assert (there.answer, absent.answer) == ("yes", "no")
        named = [re.fullmatch(r"(?:Is|Are) there (.*) in the picture\?", q.text)[1] for q in (there, absent)]
        named = [name if name in assets.read_kinds() else name.split(" ", 1)[1] for name in named]
        assert named[0] in names
        assert named[1] not in names
        assert not any(named[1] in assets.read_kinds()[name].alike for name in names)
    asked = suite(("presence",), 7)
    assert Counter(item.truth for item in asked.items) == {"yes": 4, "no": 3}
    assert len({item.picture for item in asked.items}) == 4


@needs_objects
def test_decoded_clips_move_as_they_are_said_to():
    asked = suite(("direction",), 16)
    for item in asked.items:
        ink = marked(frames_of(asked.media(item.picture)))
        y, x = (np.array([np.argwhere(frame)[:, axis].mean() for frame in ink]) for axis in (0, 1))
        right, down = x[-1] - x[0], y[-1] - y[0]
        way = ("right" if right > 0 else "left") if abs(right) > abs(down) else ("down" if down > 0 else "up")
        assert way == item.truth
        assert max(abs(right), abs(down)) > 60
        assert min(abs(right), abs(down)) < 6
    assert len({item.truth for item in asked.items}) == 4


@needs_objects
def test_decoded_clips_show_as_many_things_as_they_are_said_to():
    asked = suite(("video_count",), 12)
    for item in asked.items:
        there = marked(frames_of(asked.media(item.picture))).sum((1, 2)) > 40
        assert (np.diff(there.astype(int), prepend=0) == 1).sum() == int(item.truth)
        # Whoever looks once a second sees each of them.
        looks = np.split(np.arange(len(there)), np.flatnonzero(np.diff(there)) + 1)
        assert all((run % scenes.FPS == 0).any() for run in looks if there[run[0]])


@needs_objects
def test_of_two_things_in_a_clip_the_first_is_seen_alone():
    asked = suite(("video_order",), 12)
    for item in asked.items:
        named = re.fullmatch(r"Which appears first: the (.*) or the (.*)\?", item.question)
        assert item.truth in named.groups()
        area = marked(frames_of(asked.media(item.picture))).sum((1, 2))
        looks = area[:: scenes.FPS]
        assert any(40 < look < area[-1] - 40 for look in looks)
        assert (np.diff(area) > 40).sum() == 2
    first = sum(item.question.startswith(f"Which appears first: the {item.truth} or") for item in asked.items)
    assert 0 < first < 12


@needs_objects
def test_the_things_of_a_clip_appear_in_the_order_of_the_answer(monkeypatch):
    told = {}
    monkeypatch.setattr(
        scenes, "frames_of", lambda rng, store, things, spans, count: told.update(things=things, spans=spans) or ()
    )
    for seed in range(20):
        ((question, _),) = scenes.video_order(random.Random(seed), "heldout").asked
        begins = {thing.name: begin for thing, (begin, _) in zip(told["things"], told["spans"], strict=True)}
        assert min(begins, key=lambda name: begins[name]) == question.answer


def test_text_questions_have_the_right_answers_and_none_twice():
    asked = suite(("text_only",), 150)
    assert len({item.question for item in asked.items}) == 150
    kinds = Counter()
    opposites = {frozenset(pair) for pair in OPPOSITES}
    for item in asked.items:
        assert asked.media(item.picture) == []
        if found := re.match(r"What is (\d+) ([-+x]) (\d+)\?", item.question):
            a, b = int(found[1]), int(found[3])
            assert int(item.truth) == {"+": a + b, "-": a - b, "x": a * b}[found[2]]
            assert int(item.truth) >= 0
        elif found := re.match(r"Which word is longer: (\w+) or (\w+)\?", item.question):
            assert item.truth == max(found.groups(), key=len)
            assert len(found[1]) != len(found[2])
        elif found := re.match(r"Which word is the opposite of (\w+): (\w+) or (\w+)\?", item.question):
            right = [word for word in found.groups()[1:] if frozenset((found[1], word)) in opposites]
            assert right == [item.truth]
        else:
            found = re.fullmatch(r"Copy this code and write nothing else: (.*)", item.question)
            assert found[1] == item.truth
            assert values.split_of(item.truth) == "heldout"
        kinds[re.sub(r"\d.*", "", item.question)[:20]] += 1
    assert len(kinds) == 4
    assert min(kinds.values()) > 15


@needs_chinese
@pytest.mark.parametrize("task", ["chinese_read", "chinese_value"])
def test_chinese_is_drawn_inside_the_page_and_every_character_has_a_glyph(task, monkeypatch):
    pages: list[chinese.Page] = []
    made = chinese.Page
    monkeypatch.setattr(chinese, "Page", lambda *arguments: pages.append(made(*arguments)) or pages[-1])
    for seed in range(150):
        posed = chinese.MAKERS[task](random.Random(seed), "heldout")
        ((question, _),) = posed.asked
        glyphs = pages[-1].glyphs
        assert "".join(question.answer.split()) in "".join(glyph.char for glyph in glyphs)
        assert all(0 <= g.x0 < g.x1 <= 224 and 0 <= g.y0 < g.y1 <= 224 for g in glyphs), seed
    pen = chinese.Pen(random.Random(0), "heldout", 24)
    said = chinese.said()
    text = "".join(
        word for name in ("cities", "last", "first", "goods", "words", "titles", "colon") for word in said[name]
    )
    boxes = {bytes(pen.chinese.getmask("\uffff")), bytes(pen.chinese.getmask("5"))}
    for char in set(text + "年月日元姓名城市日期编号商品金额数量"):
        assert bytes(pen.chinese.getmask(char)) not in boxes or chinese.FONTS[0][1] not in str(chinese.font_path()), (
            char
        )


def test_without_a_chinese_font_its_tasks_are_left_out_and_say_so(monkeypatch, tmp_path):
    monkeypatch.setattr(chinese, "FOLDER", tmp_path)
    chinese.font_path.cache_clear()
    suite.cache_clear()
    try:
        report = evaluate(Knows("x"), ("chinese", "text_only"), 3)
        for row in (report["chinese_read"], report["chinese"]):
            assert (row.n, row.interval, row.blind) == (0, None, None)
            assert row.also == {"left out (no Chinese font: apt-get install fonts-droid-fallback)": 1.0}
        assert report["text_only"].n == 3
        with pytest.raises(PumiceError, match="chinese_read: no Chinese font"):
            evaluate(Knows("x"), ("chinese",), 3)
    finally:
        monkeypatch.undo()
        chinese.font_path.cache_clear()
        suite.cache_clear()


def fingerprint(media) -> str:
    """One text for a picture, pictures, a video's bytes or nothing."""
    if isinstance(media, list):
        return " ".join(fingerprint(picture) for picture in media)
    return str(hash(media if isinstance(media, bytes) else media.tobytes()))


class Knows:
    """Answers from a table of (media, question), else one text; refuses what ``refuses`` says."""

    def __init__(self, text="no idea", asked=None, refuses=lambda media: False):
        self.text, self.refuses, self.seen = text, refuses, []
        items = asked.items if asked else ()
        self.table = {(fingerprint(asked.media(item.picture)), item.question): item.truth for item in items}

    def ask_many(self, pairs, /, *, max_tokens, batch):
        self.seen += [(media, max_tokens) for media, _ in pairs]
        if any(self.refuses(media) for media, _ in pairs):
            raise PumiceError("too many tokens")
        texts = [self.table.get((fingerprint(media), question), self.text) for media, question in pairs]
        return [SimpleNamespace(text=text, tokens=3, visual_tokens=72, ms=1.5) for text in texts]


@pytest.mark.parametrize("task", ALL)
def test_an_oracle_is_right_and_the_shuffled_media_are_not(task):
    if posing.left_out(task):
        pytest.skip(posing.left_out(task))
    oracle = Knows(asked=suite((task,), 6))
    row = evaluate(oracle, (task,), 6)[task]
    assert (row.n, row.score) == (6, 1)
    assert row.blind is None if task == "text_only" else row.blind < 1
    assert len(oracle.seen) == (6 if task == "text_only" else 12)
    for media, limit in oracle.seen:
        if task in ("direction", "video_order", "video_count"):
            assert isinstance(media, bytes)
        elif task in ("difference", "odd_one_out", "order"):
            assert 2 <= len(media) <= 4
            assert all(isinstance(picture, Image.Image) and picture.mode == "RGB" for picture in media)
        elif task == "text_only":
            assert media == []
        else:
            assert isinstance(media, Image.Image)
        assert limit == (384 if task == "receipt_json" else 32)


def test_receipts_are_scored_as_trees():
    row = evaluate(Knows("I can't."), ("receipt_json",), 4)["receipt_json"]
    assert (row.metric, row.score, row.constant, row.interval) == ("TED", 0, 0, None)
    assert row.also == {"field F1": 0, "unparsed": 1}
    truth = suite(("receipt_json",), 1).items[0].truth
    half = {key: value for key, value in json.loads(truth).items() if key in ("shop", "date")}
    assert tree_accuracy(f"Here it is: {truth}.", truth) == 1
    assert 0 < tree_accuracy(json.dumps(half), truth) < 1
    found = further(("receipt_json",), [(truth, truth), ("nothing", truth)])
    assert found == {"field F1": pytest.approx(2 / 3), "unparsed": 0.5}


@needs_objects
def test_whoever_always_says_yes_is_right_on_half_of_the_pairs():
    row = evaluate(Knows("Yes."), ("presence",), 20)["presence"]
    assert (row.metric, row.score, row.blind, row.constant, row.chance) == ("POPE", 0.5, 0.5, 0.5, 0.5)
    assert row.also == {"F1": pytest.approx(2 / 3), "yes": 1, "unparsed": 0}
    assert evaluate(Knows("a dog"), ("presence",), 20)["presence"].also["unparsed"] == 1


@needs_objects
def test_what_a_model_refuses_is_skipped_and_counted():
    asked = suite(("odd_one_out", "order"), 10)
    wide = Knows(asked=asked, refuses=lambda media: isinstance(media, list) and len(media) > 2)
    report = evaluate(wide, ("odd_one_out", "order"), 10)
    none, all_ = report["odd_one_out"], report["order"]
    assert (none.n, none.score, none.blind) == (0, 0, None)
    assert none.also == {"skipped (too many tokens)": 1.0}
    assert (all_.n, all_.score, all_.also) == (10, 1, {})
    assert {result.skipped for result in report.results} == {"", "too many tokens"}
    few = Knows(asked=asked, refuses=lambda media: isinstance(media, list) and len(media) > 3)
    row = evaluate(few, ("odd_one_out",), 10)["odd_one_out"]
    fours = sum(len(asked.media(item.picture)) == 4 for item in asked.items)
    assert 0 < fours < 10
    assert (row.n, row.score) == (10 - fours, 1)
    assert row.also == {"skipped (too many tokens)": fours / 10}


@needs_objects
def test_what_takes_one_picture_only_is_asked_nothing_else():
    narrow = Knows("yes")
    narrow.takes = ("picture",)
    report = evaluate(narrow, ("direction", "order", "text_only", "presence"), 2)
    assert [row.n for row in report.rows] == [0, 0, 0, 2]
    assert all(isinstance(media, Image.Image) for media, _ in narrow.seen)
    assert report["direction"].also == {"skipped (the model doesn't take a video)": 1.0}


def test_refused_questions_are_failures_and_what_is_not_taken_is_none():
    report = evaluate(Knows(refuses=lambda media: True), ("receipt_json",), 2)
    assert [result.skipped for result in report.failed] == ["too many tokens"] * 2
    narrow = Knows("yes")
    narrow.takes = ()
    assert not evaluate(narrow, ("receipt_json",), 2).failed

    class Wordy(Knows):
        def ask_many(self, pairs, **_):
            raise PumiceError("the model doesn't take that many tokens")

    assert [one.cause for one in evaluate(Wordy(), ("receipt_json",), 2).failed] == [Cause.REFUSED] * 2
    assert isinstance(ask(Knows(refuses=lambda media: True), [([], "?")], 8, 1)[0], Skipped)


@needs_objects
def test_an_assistant_takes_all_of_it_through_its_own_paths(model, processor):
    tasks = ("difference", "direction", "text_only", "presence")
    report = evaluate(Assistant(model, processor), tasks, 2, batch=2)
    assert [row.n for row in report.rows] == [2] * 4
    tokens = {result.item.task: result.visual_tokens for result in report.results}
    assert tokens["difference"] == 2 * tokens["presence"]
    assert tokens["direction"] > 0
    assert tokens["text_only"] == 0
    short = evaluate(Assistant(model, replace(processor, max_tokens=90)), ("text_only", "direction"), 1, blind=False)
    assert "the model takes 90" in next(iter(short["direction"].also))
