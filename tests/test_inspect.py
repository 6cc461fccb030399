"""`pumice inspect`: what it says of a sample is what `encode` makes of it, and no text in it harms the page."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import TILE, picture
from gguf_models import sentencepiece
from PIL import Image
from test_data import said, write
from test_recipes import RECIPES, stand_in
from test_video import film

from pumice import cli
from pumice.chat import own_start, spans
from pumice.config import DataConfig, Recipe, Stage, load_recipe
from pumice.data.feed import PlannedFeed, RenderedFeed, open_feed, stage_processor
from pumice.data.index import build_index
from pumice.data.inspection import (
    Block,
    Inspected,
    Picture,
    Place,
    Token,
    inspect_feed,
    places,
    to_json,
    token_owners,
    token_texts,
)
from pumice.data.inspection_figures import count_lines, figure
from pumice.data.inspection_page import facts, left_out, strip, to_html
from pumice.data.plan import plan
from pumice.data.sources import open_source
from pumice.encode import Processor, encode, tokenize, with_times
from pumice.model.build import build_processor
from pumice.templates import get_template
from pumice.types import IGNORE, IMAGE, Sample
from pumice.vision.frames import VideoPolicy, video_layout
from pumice.vision.layout import POCKET, PRESETS, Policy, layout
from pumice.vision.pixels import views

NASTY = '<script>alert("1")</script> & \'x\' <img src="https://example.org/a.png">'


def a_stage(**changes) -> Stage:
    fields = {"name": "s", "objective": "answer", "lr": {"lm": 1e-3}, "data": {"mine": 1.0}, "batch": 3}
    return Stage(**(fields | changes))


def a_feed(root: Path, processor: Processor, records: list, **changes) -> PlannedFeed:
    """A feed over records in mine.json; pictures a.png (wide), b.png (square) and cut.png (cut short) lie beside it."""
    for name, size in (("a", (70, 28)), ("b", (40, 40)), ("cut", (60, 50))):
        picture(0, size).save(root / f"{name}.png")
    (root / "cut.png").write_bytes((root / "cut.png").read_bytes()[:2000])
    write(root / "mine.json", records)
    stage = a_stage(**changes)
    source = open_source("mine", DataConfig("llava", "mine.json"), root)
    processor = stage_processor(processor, stage)
    indexes = {"mine": build_index(source, "mine", processor, root / "cache")}
    return PlannedFeed(plan(indexes, stage, 0), {"mine": source}, processor)


def records() -> list:
    asked = said("<image>\nWhat is it?", "A square.")
    return [
        *({"id": f"r{i}", "image": "ab"[i % 2] + ".png", "conversations": asked} for i in range(5)),
        {"id": "two", "image": ["a.png", "b.png"], "conversations": said("<image>\n<image>\nAlike? 漢字", "No. 😀")},
        {"id": "text", "conversations": [*said("Say yes.", "Yes."), *said("Again.", "Yes!")]},
    ]


def sample_of(feed: PlannedFeed, one: Inspected) -> Sample:
    return feed.sources[feed.plan.names[feed.plan.source[one.place.number]]].sample(
        int(feed.plan.row[one.place.number])
    )


def ids_and_labels(one: Inspected) -> tuple[list[int], list[int]]:
    ids, labels = [], []
    for part in one.parts:
        many = [IMAGE] * part.tokens if isinstance(part, Block) else [part.id]
        ids += many
        labels += many if isinstance(part, Token) and part.learned else [IGNORE] * len(many)
    return ids, labels


def opened(name: str, tmp_path: Path, **changes) -> tuple[Recipe, list[tuple[Stage, PlannedFeed]]]:
    path = RECIPES / f"{name}.toml"
    overrides = stand_in(load_recipe(path), tmp_path)
    recipe = load_recipe(path, overrides)
    processor = build_processor(recipe.model)
    feeds = [(s, open_feed(recipe, s, processor, tmp_path / "data", tmp_path / "cache")) for s in recipe.stages]
    assert all(isinstance(feed, PlannedFeed) for _, feed in feeds)
    return recipe, feeds  # type: ignore[return-value]


@pytest.mark.parametrize("name", ["llava-1.5-7b", "llava-next-mistral-7b", "llava-video-7b", "elva-3.8b"])
def test_tokens_labels_and_owners_of_a_recipes_stages(name, tmp_path):
    """Formats v1, Mistral's, ChatML with videos, Phi-3's, plain. A byte is a token, so that owners can be counted."""
    for _, feed in opened(name, tmp_path)[1]:
        found = list(inspect_feed(feed, 99))
        assert len(found) == feed.seen(feed.steps)
        tokenizer, template = feed.processor.tokenizer, feed.processor.template
        for one in found:
            sample = sample_of(feed, one)
            features = encode(sample, feed.processor)
            assert not one.error
            assert ids_and_labels(one) == (features.ids.tolist(), features.labels.tolist())
            assert (one.tokens, one.supervised) == (len(features), int((features.labels != IGNORE).sum()))
            assert (one.visual, one.views) == (int((features.ids == IMAGE).sum()), len(features.tiles))
            turns = [with_times(turn, feed.processor.video_policy) for turn in sample.turns]
            written = list(spans(turns, template, start=own_start(tokenizer)))
            texts = [part.text for part in one.parts if isinstance(part, Token)]
            assert "".join(texts) == "".join(s.content for s in written if isinstance(s.content, str))
            assert "".join(text or "" for _, text in one.written) == "".join(texts)
            for owner in ("tokenizer", "template", "system", "user", "assistant"):
                theirs = [s for s in written if isinstance(s.content, str) and s.owner == owner]
                wanted = sum(len(tokenize(tokenizer, s.content, s.markup)) for s in theirs)
                assert sum(isinstance(part, Token) and part.owner == owner for part in one.parts) == wanted


def test_a_sample_in_full(tmp_path, processor):
    feed = a_feed(
        tmp_path, processor, [{"id": "é", "image": "b.png", "conversations": said("<image>\nIs\n é?", "漢.")}]
    )
    (one,) = inspect_feed(feed, 20)
    said_of = [(p.text, p.owner, p.learned) for p in one.parts if isinstance(p, Token)]
    assert said_of == [
        ("<|im_start|>", "template", False), *((c, "template", False) for c in "user\n\n"),
        *((c, "user", False) for c in ("I", "s", "\n", " ", "", "é", "?")),
        ("<|im_end|>", "template", False), ("\n", "template", False),
        ("<|im_start|>", "template", False), *((c, "template", False) for c in "assistant\n"),
        ("", "assistant", True), ("", "assistant", True), ("漢", "assistant", True), (".", "assistant", True),
        ("<|im_end|>", "assistant", True), ("\n", "template", False),
    ]  # fmt: skip
    placed = layout((40, 40), processor.policy)
    assert one.parts[6] == Block(0, placed.tokens, "user")
    assert (one.id, one.name, one.source, one.place) == ("é", "mine-0", "mine", Place(0, 0, 0, 1, 1, one.tokens))
    html = strip(one.parts)
    assert f'</span><span class="user"><em>{placed.tokens} visual</em></span>' in html
    assert '<span class="assistant"><b></b><b></b><b>漢</b><b>.</b><b>&lt;|im_end|&gt;</b></span>' in html


@pytest.mark.parametrize("text", ["Hello there", "two  blanks", " first", "new\nline", "漢字 😀 é", "a\u0301b ﬁ", "▁"])
def test_owners_with_a_tokenizer_that_adds_blanks(text, tmp_path):
    """Llama's kind: what somebody says has the tokens that spell it, whatever the tokenizer puts before them."""
    processor = Processor(sentencepiece(), get_template("v1"), Policy("square", TILE, 1), (0.5,) * 3, (0.5,) * 3)
    (one,) = inspect_feed(a_feed(tmp_path, processor, [{"conversations": said(text, "Yes.")}]), 9)
    text = text.strip()  # as a source reads it
    tokens = [part for part in one.parts if isinstance(part, Token)]
    theirs = "".join(token.text for token in tokens if token.owner == "user")
    # The decoder has no other sign for ▁ than a blank.
    assert theirs.strip() == text.replace("▁", " ").strip()
    assert "".join(token.text for token in tokens if token.owner == "assistant").strip() == "Yes.</s>"
    assert [token.learned for token in tokens] == [token.owner == "assistant" for token in tokens]


def test_a_token_across_a_border_is_its_larger_part():
    def owners(texts: list[str], whole: str, who: str) -> str:
        named = {"t": "template", "u": "user"}
        return "".join(owner[0] for owner in token_owners(texts, whole, [named[c] for c in who]))

    assert owners(["USER", ": W", "hat"], "USER: What", "ttttttuuuu") == "ttu"
    assert owners([":", " Hi"], ": Hi", "ttuu") == "tu"
    assert owners(["a", "b"], "a   b", "ttttu") == "tu"  # blanks that a mark swallowed
    assert owners([" a", " ", "b"], "a b", "tuu") == "tuu"
    assert owners(["", "", "漢", "a"], "漢a", "ut") == "uuut"  # bytes go to the character that they begin
    assert owners(["a", "\u00e9", "b", "c"], "ae\u0301bc", "tuuut") == "tuut"  # composed by the tokenizer


def test_texts_of_broken_characters_end(tokenizer):
    ids = tokenize(tokenizer, "漢", False)
    assert token_texts(ids, tokenizer) == ["", "", "漢"]
    assert token_texts(ids[:2], tokenizer) == ["", "\ufffd"]
    assert "".join(token_texts(ids[:1] * 40, tokenizer)).count("\ufffd") == 40


def test_places_are_those_of_the_plan(tmp_path, processor):
    feed = a_feed(tmp_path, processor, records(), pack_tokens=130, batch=4)
    found = list(inspect_feed(feed, 99))
    wanted = [
        (number, step, pack, len(packs))
        for step in range(feed.steps)
        for packs in [feed.plan.packs(step, 0, 1)]
        for pack, numbers in enumerate(packs)
        for number in numbers
    ]
    assert [(o.place.number, o.place.step, o.place.pack, o.place.packs) for o in found] == wanted
    assert max(o.place.pack for o in found) > 0
    assert {o.id for o in found} == {record["id"] for record in records()}
    for one in found:
        together = [o.tokens for o in found if (o.place.step, o.place.pack) == (one.place.step, one.place.pack)]
        assert (one.place.samples, one.place.tokens) == (len(together), sum(together))
    assert [o.place for o in inspect_feed(feed, 3)] == [o.place for o in found[:3]]
    html = to_html([("recipe", "r"), ("stage", "s")], found)
    headings = re.findall(r"<h2>Step (\d+), pass (\d+) <small>of (\d+)", html)
    assert headings == list(dict.fromkeys((str(s), str(p), str(n)) for _, s, p, n in wanted))


def test_views_are_the_pixels_that_were_encoded(tmp_path, processor):
    film(tmp_path / "v.mp4", frames=60)
    video = [{"id": "film", "video": "v.mp4", "conversations": said("<image>\nWhat?", "Grey.")}]
    feed = a_feed(tmp_path, processor, records() + video)
    for one in inspect_feed(feed, 99):
        features = encode(sample_of(feed, one), feed.processor)
        assert tuple(p.layout for p in one.pictures) == features.layouts
        views = [view for p in one.pictures for view in p.views]
        assert len(views) == len(features.tiles)
        for view, tile in zip(views, features.tiles, strict=True):
            again = (np.asarray(view).astype(np.float32) / 255 - 0.5) / 0.25
            assert np.allclose(again.transpose(2, 0, 1), tile.numpy(), atol=1e-5)
        if one.id == "film":
            assert one.pictures[0].times == (0.0, 1.0, 2.0)


def test_what_cannot_be_read_says_so_in_its_place(tmp_path, processor):
    broken = {"id": "broken", "image": ["b.png", "cut.png"], "conversations": said("<image>\n<image>\nSo?", "Yes.")}
    feed = a_feed(tmp_path, processor, [*records(), broken])
    where = [feed.name(place.number) for place in places(feed)]
    (tmp_path / "a.png").unlink()  # after the index was made
    found = list(inspect_feed(feed, 99))
    assert [one.name for one in found] == where
    faults = {one.id or one.name: one.error for one in found if one.error}
    assert "cut.png: damaged or cut short" in faults.pop("broken")
    assert set(faults) == {"mine-0", "mine-2", "mine-4", "mine-5"}
    assert all("a.png: no such file" in fault for fault in faults.values())
    one = next(one for one in found if one.id == "broken")
    assert (one.tokens, one.supervised) == (int(feed.plan.tokens[one.place.number]), len("Yes.") + 1)
    assert [len(p.views) for p in one.pictures] == [0, 0]
    html = to_html([("recipe", "r"), ("stage", "s")], found)
    assert html.count('<p class="error">') == 5
    assert all(to_json(one)["error"] == (one.error or None) for one in found)


def test_a_cut_sample_says_what_it_was(tmp_path, processor):
    long = [{"id": "long", "conversations": said("Say much.", "Much. " * 300)}]
    (one,) = inspect_feed(a_feed(tmp_path, processor, long, max_tokens=100, over_length="cut"), 9)
    assert one.tokens == 100
    assert one.whole == 1 + 5 + 9 + 2 + 1 + 10 + 300 * 6 - 1 + 2  # the answer's last blank is stripped
    assert "cut from 1,829 tokens" in to_html([("recipe", "r"), ("stage", "s")], [one])


def test_json_holds_ids_and_labels(tmp_path, processor):
    feed = a_feed(tmp_path, processor, records())
    for one in inspect_feed(feed, 99):
        row = json.loads(json.dumps(to_json(one)))
        features = encode(sample_of(feed, one), feed.processor)
        ids = [i for span in row["spans"] for i in span.get("ids", [IMAGE] * span.get("tokens", 0))]
        learned = [loss for loss, tokens in row["labels"] for _ in range(tokens)]
        assert ids == features.ids.tolist()
        assert [i if loss else IGNORE for i, loss in zip(ids, learned, strict=True)] == features.labels.tolist()
        assert all(len(span["ids"]) == len(span["texts"]) for span in row["spans"] if "ids" in span)
        assert (row["tokens"], row["visual"], row["supervised"]) == (one.tokens, one.visual, one.supervised)
        assert [m["tokens"] for m in row["media"]] == [p.layout.tokens for p in one.pictures]
        assert {span["owner"] for span in row["spans"]} == {"template", "user", "assistant"}


# the page


class Reader(HTMLParser):
    """Tags and addresses of a page, and that every tag is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.attributes: set[str] = set()
        self.ids: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self._look(attrs)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self._look(attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def _look(self, attrs):
        self.attributes |= {name for name, _ in attrs}
        self.addresses += [value for name, value in attrs if name in ("href", "src", "srcset", "action")]
        self.ids += [value for name, value in attrs if name == "id"]


TAGS = """html head meta title style body header h1 h2 h3 dl dt dd p span i b em s div table thead tbody tr th td a
section article small figure figcaption svg image path line br details summary pre"""
ATTRIBUTES = "lang charset http-equiv content name class scope href id width height viewbox role d x1 x2 y1 y2"


def test_nothing_in_the_data_reaches_the_page_as_html(tmp_path, processor):
    picture(0, (40, 40)).save(tmp_path / "<i onclick=x>.png")
    nasty = {
        "id": NASTY, "data_source": NASTY, "image": "<i onclick=x>.png",
        "conversations": said(f"<image>\n{NASTY} \x00\x1b\u202e", NASTY),
    }  # fmt: skip
    lost = {"id": "lost", "image": "<i onclick=x>.png", "conversations": said("<image>\nWhat?")}
    feed = a_feed(tmp_path, processor, [nasty, lost, *records()])
    found = list(inspect_feed(feed, 99))
    (tmp_path / "<i onclick=x>.png").unlink()
    found += inspect_feed(feed, 99)
    assert any("onclick" in one.error for one in found)
    page = to_html([("recipe", NASTY), ("stage", NASTY), (NASTY, NASTY)], found)
    read = Reader(page)
    assert read.tags <= set(TAGS.split())
    assert read.attributes <= set(ATTRIBUTES.split())
    assert read.text.count(NASTY) > 6
    assert "\x00" not in page
    assert "\x1b" not in page
    assert "\u2400" in read.text


def test_the_page_needs_nothing_from_elsewhere(tmp_path, processor):
    found = list(inspect_feed(a_feed(tmp_path, processor, records()), 99))
    page = to_html([("recipe", "r"), ("stage", "s")], found)
    read = Reader(page)
    inside = [address for address in read.addresses if address.startswith("#")]
    assert {address[1:] for address in inside} <= set(read.ids)
    assert len(inside) == len(found)
    assert len(read.ids) == len(set(read.ids))
    outside = [address for address in read.addresses if not address.startswith("#")]
    assert all(address.startswith("data:image/webp;base64,") for address in outside)
    assert not re.search(r"https?:|//|@import|url\(|<script", re.sub(r'"data:[^"]*"', "", page))
    assert "default-src 'none'" in page
    assert "prefers-color-scheme: dark" in page
    # Everything the strips say is on the page, token by token.
    tokens = sum(isinstance(part, Token) for one in found for part in one.parts)
    strips = "".join(re.findall(r'<div class="strip">(.*?)</div>', page, re.DOTALL))
    assert len(re.findall(r"<[ib]>", strips)) == tokens
    assert strips.count("<b>") == sum(one.supervised for one in found)
    assert strips.count("<em>") == sum(len(one.pictures) for one in found)


@pytest.mark.parametrize("preset", PRESETS)
def test_tiles_are_parted_by_lines(preset):
    policy = PRESETS[preset]
    for size in ((40, 30), (900, 300), (300, 1200), (1500, 1100)):
        placed = layout(size, policy)
        red = Image.new("RGB", size, "red")
        html = figure(0, Picture("image", "x", placed, tuple(views(red, placed, policy))))
        assert html.count("<line") == placed.cols - 1 + placed.rows - 1
        assert html.count("<image") == 1 + placed.overview
        whole = (0, placed.rows * policy.side, 0, placed.cols * policy.side)
        assert html.count('class="dropped"') == (placed.keep != whole)
        wide = [int(found) for found in re.findall(r'<svg [^>]*width="(\d+)"', html)]
        assert max(wide) <= 320
        assert f"{placed.tokens:,} visual tokens" in html
        assert f"{placed.views} view" in html


def test_a_videos_lines_and_counts():
    policy = VideoPolicy(tile=28, side=4, frames=20, slow_every=4, newline="grid")
    placed = video_layout(20, (64, 48), policy)
    assert count_lines(placed) == [
        "20 frames of 28 px: 20 views",
        "2x2 tokens a frame, bilinear pooling of 4x4",
        "15 of the frames pooled twice as much",
        f"{5 * 6 + 15 * 2} visual tokens, newlines included",
    ]
    frames = tuple(Image.new("RGB", (28, 28), (i, i, i)) for i in range(20))
    html = figure(0, Picture("video", "v.mp4", placed, frames, tuple(map(float, range(20)))))
    assert html.count("<line") == 7 + 2  # 8 x 3 places
    assert "0.00 to 19.00 s" in html


def test_a_page_stays_small():
    """Noise is the worst that a picture can hold."""
    policy = PRESETS["ONEVISION"]
    placed = layout((1000, 1000), policy)
    shown = Picture("image", "x", placed, tuple(views(picture(0, (1000, 1000)), placed, policy)))
    words = tuple(Token(i, " word", "user", False) for i in range(2000))
    samples = [Inspected(Place(i, 0, 0, 1, 20), f"s-{i}", parts=words, pictures=(shown,)) for i in range(20)]
    assert len(to_html([("recipe", "r"), ("stage", "s")], samples)) < 5e6


def test_many_pictures_are_counted(tmp_path, processor):
    many = {"id": "many", "image": ["b.png"] * 15, "conversations": said("<image>\n" * 15 + "Same?", "Yes.")}
    (one,) = inspect_feed(a_feed(tmp_path, processor, [many]), 9)
    page = to_html([("recipe", "r"), ("stage", "s")], [one])
    assert page.count("<figure>") == 12
    assert f"and 3 more with {3 * one.pictures[0].layout.tokens:,} visual tokens" in page


def test_facts_of_a_stage(tmp_path):
    recipe, feeds = opened("onevision-0.5b", tmp_path)
    said_of = dict(facts(recipe, *feeds[-1]))
    assert (said_of["recipe"], said_of["stage"]) == ("onevision-0.5b", "onevision")
    assert said_of["learning rates"] == "tower 2e-06, connector 1e-05, newline 1e-05, lm 1e-05; frozen: head"
    assert said_of["template"] == "qwen_1_5"
    assert said_of["layout"].startswith("ONEVISION: anyres, 384 px and 27x27 tokens a view, 36 grids of up to 6x6")
    assert said_of["several pictures"].startswith("ONEVISION_MULTI: pad")
    assert "at most 32 frames, bilinear pooling by 2, one newline" in said_of["videos"]
    feed = feeds[-1][1]
    assert said_of["steps"] == f"{feed.steps} of 3 samples, {len(feed.plan.row)} samples in all"
    first = dict(facts(recipe, *feeds[0]))
    assert (first["template"], first["learning rates"]) == (
        "plain",
        "connector 0.001; frozen: tower, newline, lm, head",
    )


def test_what_the_index_left_out_is_counted(tmp_path, processor):
    bad = [
        {"id": "gone", "image": "gone.png", "conversations": said("<image>\nWhat?")},
        {"id": "long", "conversations": said("Say much.", "Much. " * 300)},
        {"id": "away", "image": "away.png", "conversations": said("<image>\nWhat?")},
    ]
    feed = a_feed(tmp_path, processor, [*records(), *bad])
    indexes = {"mine": build_index(feed.sources["mine"], "mine", feed.processor, tmp_path / "cache")}
    wanted = "3 of 10 in mine (1 too long, 2 unreadable); pumice data index names them"
    assert left_out(indexes) == [("left out", wanted)]


# rendered


def test_a_rendered_stage(processor):
    pytest.importorskip("faker")
    stage = a_stage(data={"lines": 1.0}, steps=3, batch=2, max_views=3)
    feed = RenderedFeed(stage, dataclasses.replace(processor, policy=POCKET), 5)
    found = list(inspect_feed(feed, 5))
    assert [(o.name, o.place.step, o.place.pack) for o in found] == [(f"s-{i}", i // 2, 0) for i in range(5)]
    for one in found:
        (features,) = feed.read([one.place.number])
        assert ids_and_labels(one) == (features.ids.tolist(), features.labels.tolist())
        assert one.source == "lines"
        assert 1 <= one.views <= 3
    assert len(list(inspect_feed(feed, 99))) == 6
    assert Reader(to_html([("recipe", "r"), ("stage", "s")], found)).text.count("Step ") == 3


# the command


@pytest.fixture
def recipe_words(tmp_path, monkeypatch) -> list[str]:
    """A recipe of tiny parts with its data as words of a command, in a working folder of its own."""
    monkeypatch.setenv("PUMICE_CACHE", str(tmp_path / "cache"))
    path = RECIPES / "llava-1.5-7b.toml"
    overrides = stand_in(load_recipe(path), tmp_path)
    monkeypatch.chdir(tmp_path)
    return [str(path), *overrides, "--data", "data"]


def test_the_command_writes_a_page_without_a_model(recipe_words, monkeypatch, capsys):
    def never(*_):
        raise AssertionError("a model was built")

    monkeypatch.setattr("pumice.model.build.build_model", never)
    monkeypatch.setattr("pumice.model.build.load_tower", never)
    assert cli.main(["inspect", *recipe_words, "--stage", "instruct", "--n", "2"]) == 0
    assert capsys.readouterr().out == "inspect.html\n"
    page = Path("inspect.html").read_text(encoding="utf-8")
    assert page.count("<article") == 2
    assert "llava-1.5-7b, stage instruct" in page
    assert cli.main(["inspect", *recipe_words, "--out", "here.html"]) == 0
    assert "stage align" in Path("here.html").read_text(encoding="utf-8")


def test_the_command_prints_json(recipe_words, capsys):
    assert cli.main(["inspect", *recipe_words, "-n", "3", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["step"] for row in rows] == [0, 0, 0]
    assert all(row["supervised"] and not row["error"] for row in rows)
    assert not Path("inspect.html").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stage", "answr"], "its stages are align, instruct"),
        (["--out", "gone/x.html"], "gone/x.html: can't be written"),
        (["--n", "0"], "whole number"),
        (["stages.align.bach=2"], "nearest is 'batch'"),
    ],
)
def test_mistakes_come_first(recipe_words, words, message, monkeypatch, capsys):
    monkeypatch.setattr("pumice.model.build.build_processor", None)
    assert cli.main(["inspect", *recipe_words, *words]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert message in err
    assert err.count("\n") == 1
