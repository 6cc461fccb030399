"""Rendered pages: the same seed gives the same picture, answers are printed, nothing overlaps, splits share nothing."""

from __future__ import annotations

import math
import random
import re
from functools import cache

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pumice.data.render import charts, facts, fonts, forms, ink, receipts, sheet, tables, values
from pumice.data.render.page import Rendered

KINDS = {"receipt": receipts, "form": forms, "table": tables, "chart": charts}
SPLITS = ("train", "heldout")
EXTRACTIVE = {
    "shop",
    "city",
    "date",
    "price",
    "amount",
    "code",
    "item",
    "name",
    "field",
    "label",
    "cell",
    "extreme",
} | {
    "chart_title",
    "chart_extreme",
    "read",
}
SEEDS = 200


@cache
def pages(kind: str, split: fonts.Split) -> tuple[tuple[Rendered, tuple[tuple[float, ...], ...]], ...]:
    """The pictures of many seeds, each with the ink boxes of its lines."""
    sheets: list[sheet.Sheet] = []
    made = sheet.Sheet.__init__

    def remember(self: sheet.Sheet, *arguments: object) -> None:
        made(self, *arguments)  # type: ignore[arg-type]
        sheets.append(self)

    sheet.Sheet.__init__ = remember  # type: ignore[method-assign]
    try:
        out = []
        for seed in range(SEEDS):
            picture = KINDS[kind].render(random.Random(seed), split)
            out.append((picture, tuple(sheets[-1].boxes)))
            sheets.clear()
        return tuple(out)
    finally:
        sheet.Sheet.__init__ = made  # type: ignore[method-assign]


every = pytest.mark.parametrize(("kind", "split"), [(kind, split) for kind in KINDS for split in SPLITS])


@every
def test_the_same_seed_gives_the_same_picture(kind: str, split: fonts.Split) -> None:
    for seed in range(5):
        first, second = (KINDS[kind].render(random.Random(seed), split) for _ in range(2))
        assert first.image.tobytes() == second.image.tobytes()
        assert (first.glyphs, first.questions) == (second.glyphs, second.questions)


@every
def test_answers_are_printed_on_the_page(kind: str, split: fonts.Split) -> None:
    for picture, _ in pages(kind, split):
        printed = "".join(glyph.char for glyph in picture.glyphs)
        for question in picture.questions:
            assert question.answer
            assert question.answer.isascii()
            for line in question.answer.split("\n") if question.task in EXTRACTIVE and kind != "chart" else ():
                assert "".join(line.split()) in printed, question


@pytest.mark.parametrize("split", SPLITS)
def test_words_of_chart_answers_are_printed(split: fonts.Split) -> None:
    for picture, _ in pages("chart", split):
        printed = "".join(glyph.char for glyph in picture.glyphs)
        for question in picture.questions:
            for word in question.answer.split() if question.task in EXTRACTIVE else ():
                assert word in printed, question


@every
def test_questions_differ_and_are_enough(kind: str, split: fonts.Split) -> None:
    counts = []
    for picture, _ in pages(kind, split):
        texts = [question.text.lower() for question in picture.questions]
        assert len(set(texts)) == len(texts)
        assert not re.search(r"[{}]|\s\s", " ".join(texts))
        counts.append(len(texts))
    assert min(counts) >= 1
    assert sum(count >= 3 for count in counts) > 0.9 * SEEDS


@every
def test_glyphs_lie_inside_the_picture(kind: str, split: fonts.Split) -> None:
    for picture, _ in pages(kind, split):
        width, height = picture.image.size
        for glyph in picture.glyphs:
            assert 0 <= glyph.x0 < glyph.x1 <= width, glyph
            assert 0 <= glyph.y0 < glyph.y1 <= height, glyph


@every
def test_lines_of_text_do_not_overlap(kind: str, split: fonts.Split) -> None:
    for seed, (_, boxes) in enumerate(pages(kind, split)):
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                apart = a[2] <= b[0] + 1 or b[2] <= a[0] + 1 or a[3] <= b[1] + 1 or b[3] <= a[1] + 1
                assert apart, (kind, split, seed, a, b)


@every
def test_most_pictures_are_one_tile(kind: str, split: fonts.Split) -> None:
    sizes = [picture.image.size for picture, _ in pages(kind, split)]
    assert 0.7 < sizes.count((224, 224)) / SEEDS < 0.9


def test_values_of_the_splits_are_disjoint() -> None:
    for name in values.LISTS:
        train, heldout = (set(values.vocabulary(name, split)) for split in SPLITS)
        assert train
        assert heldout
        assert not train & heldout
    for draw in (values.person, values.city, values.shop, values.code, values.date, values.phone, values.email):
        rng = random.Random(0)
        train, heldout = ({draw(rng, split) for _ in range(2_000)} for split in SPLITS)
        assert not {v.lower() for v in train} & {v.lower() for v in heldout}, draw


def test_fonts_looks_and_tables_of_the_splits_are_disjoint() -> None:
    assert not {face[2] for face in fonts.faces("train")} & {face[2] for face in fonts.faces("heldout")}
    for module in (receipts.STYLES, forms.LOOKS, tables.LOOKS, charts.LOOKS):
        assert not set(module["train"]) & set(module["heldout"])
    titles = {split: {table.title for table in facts.real_tables(split)} for split in SPLITS}
    assert not titles["train"] & titles["heldout"]


def test_pictures_of_the_splits_differ_for_the_same_seed() -> None:
    for kind, module in KINDS.items():
        train, heldout = (module.render(random.Random(7), split) for split in SPLITS)
        assert train.questions != heldout.questions, kind


def test_pieces_make_the_line_that_pil_makes() -> None:
    rng, text = random.Random(0), "To AV Garden Ketchup, $12.50 fjW (Yo) P.11"
    for _ in range(40):
        font = fonts.pick_font(rng, "train", rng.randint(11, 22))
        drawn = [Image.new("RGB", (600, 60), (255, 255, 255)) for _ in range(2)]
        ImageDraw.Draw(drawn[0]).text((10, 10), text, font=font, fill=(10, 20, 30))
        ink.ink(font).draw(drawn[1], 10, 10, text, (10, 20, 30))
        a, b = (np.asarray(image).astype(int) for image in drawn)
        assert abs(a - b).max() <= 2, font.getname()


def test_receipts_add_up() -> None:
    for seed in range(100):
        bill = receipts.make_bill(random.Random(seed), "train", 4)
        pence = [int(re.sub(r"\D", "", price)) for _, price in bill.items]
        tax = [int(re.sub(r"\D", "", value)) for label, value in bill.sums if "ax" in label or label == "VAT"]
        assert int(re.sub(r"\D", "", bill.total)) == sum(pence) + sum(tax)


@pytest.mark.parametrize("highest", [0.04, 0.9, 1, 7.3, 10, 99, 100, 101, 4750, 500_000])
def test_ticks_are_round_and_reach_the_highest(highest: float) -> None:
    from pumice.data.render import plots

    for most in range(1, 7):
        marks = plots.ticks(highest, most)
        assert marks[0] == 0
        assert marks[-1] >= highest * 0.999
        assert 2 <= len(marks) <= most + 2
        assert len(set(plots._tick_text(marks))) == len(marks)


def test_numeric_columns_of_tables_hold_numbers() -> None:
    rng, seen = random.Random(0), 0
    for _ in range(1500):
        grid = tables._grid(rng, "train", 2, 3)  # two rows: by chance both are dates such as 10.01.95
        for number, *cells in zip(grid.numeric, *grid.rows, strict=True):
            for cell in cells if number else ():
                seen += math.isfinite(float(cell))
    assert seen > 3000


@pytest.mark.parametrize("name", ["first", "last", "city", "word"])
def test_some_words_to_train_on_are_nobodys_and_none_is_held_out(name):
    rng = random.Random(7)
    known = {split: set(values.vocabulary(name, split)) for split in ("train", "heldout")}
    drawn = [values.drawn(rng, name, "train") for _ in range(2000)]
    made = [word for word in drawn if word not in known["train"]]
    assert 0.2 < len(made) / len(drawn) < 0.4
    assert not known["heldout"] & set(drawn)
    assert all(values.split_of(word) == "train" and word.isalpha() for word in made)
    assert {values.drawn(rng, name, "heldout") for _ in range(500)} <= known["heldout"]
