"""Kinds to train on: the same example for the same numbers, answers that follow from what is drawn, splits apart."""

from __future__ import annotations

import json
import random
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from pumice.data.render import (
    absent,
    answers,
    bills,
    clips,
    diagrams,
    graphs,
    invoices,
    kinds,
    leaves,
    script_fonts,
    signs,
    spans,
)
from pumice.data.render.answers import ABSENT, LETTER, PHRASE, check, dress, sentence, wrong_answers
from pumice.data.render.page import Question

SLOW = {"synthdog_en", "synthdog_zh", "synthdog_ja", "synthdog_ko"}
SPLITS = ("train", "heldout")


def drawable(name: str) -> None:
    if lacking := kinds.missing(name):
        pytest.skip(lacking)


@pytest.mark.parametrize("name", kinds.KINDS)
def test_an_example_is_a_function_of_its_numbers(name):
    drawable(name)
    first, again, other = (kinds.draw(name, seed, "train", 7) for seed in (1, 1, 2))
    assert first.exchanges == again.exchanges
    assert [frame.tobytes() for frame in first.frames] == [frame.tobytes() for frame in again.frames]
    assert [frame.tobytes() for frame in first.frames] != [
        frame.tobytes() for frame in other.frames
    ] or not first.frames
    assert first.exchanges
    assert all(frame.mode == "RGB" for frame in first.frames)


@pytest.mark.parametrize("name", [name for name in kinds.KINDS if name not in SLOW])
@pytest.mark.parametrize("split", SPLITS)
def test_exchanges_are_whole_and_no_question_comes_twice(name, split):
    drawable(name)
    for index in range(8):
        example = kinds.draw(name, 3, split, index)
        asked = [exchange.question.lower() for exchange in example.exchanges]
        assert len(set(asked)) == len(asked) <= answers.MOST
        for exchange in example.exchanges:
            assert exchange.answer.strip() == exchange.answer != ""
            assert (
                not re.search(r"[{}]", exchange.question.replace(str(answers.PHRASE), ""))
                or "JSON" in exchange.question
            )
            if exchange.form == "choice":
                options = dict(re.findall(r"^([A-D])\. (.*)$", exchange.question, re.MULTILINE))
                assert exchange.question.endswith(LETTER)
                assert exchange.answer in options
                assert len(set(options.values())) == len(options) >= 2
            if exchange.form == "yesno":
                assert exchange.answer in ("Yes", "No")
            if exchange.task == "absent":
                assert ABSENT in exchange.answer


# answers


@pytest.mark.parametrize(
    ("text", "answer", "said", "asked"),
    [
        ("What is the total?", "$ 3.20", "The total is $ 3.20.", "Is the total 9?"),
        ("How much is Green Tea?", "3.20", "Green Tea is 3.20.", "Is Green Tea 9?"),
        ("What does Green Tea cost?", "3.20", "Green Tea costs 3.20.", "Does Green Tea cost 9?"),
        ("Which item costs 3.20?", "Green Tea", "Green Tea costs 3.20.", ""),
        ("Is Bonn higher than Rome?", "No", "No, it isn't.", ""),
        ("Is Bonn higher than Rome, yes or no?", "Yes", "Yes, Bonn is higher than Rome.", ""),
        ("Is there an owl in the picture?", "no", "No, there isn't an owl in the picture.", ""),
        ("Which appears first: the owl or the bus?", "bus", "The bus appears first.", ""),
        ("What is the name of the shop?", "Go Inc.", "The name of the shop is Go Inc.", "Is the name of the shop 9?"),
        ("Total?", "3.20", "", ""),
        ("Which object is on the left?", "owl", "", ""),
    ],
)
def test_answers_become_sentences_by_rule(text, answer, said, asked):
    question = Question(text, answer, "any")
    assert sentence(question) == said
    assert check(question, "9") == asked


def test_wrong_answers_are_wrong_and_near():
    rng = random.Random(0)
    question = Question("What is the total?", "$12.30", "amount")
    for _ in range(50):
        wrong = wrong_answers(rng, question, ["$12.30", "$1.50"])
        assert "$12.30" not in wrong
        assert wrong[0] == "$1.50"
        assert all(re.fullmatch(r"\$\d+\.\d+", text) for text in wrong)
    close = Question("What is the value of Rome?", "50", "chart_value")
    found = wrong_answers(rng, close, ["50", "51", "80"])
    assert found[0] == "80"
    assert all(abs(float(text) - 50) > 7 for text in found)  # nobody reads an axis so well
    assert wrong_answers(rng, Question("Is it there?", "Yes", "x"), ["No"]) == []
    assert wrong_answers(rng, Question("Which: one or two?", "one", "x"), ["two"]) == []


def test_pairs_of_yes_and_no_are_balanced():
    questions = [Question(f"What is the value {i}?", f"{i}7", f"t{i}") for i in range(3)]
    said, first = [], []
    for seed in range(200):
        pairs = [e for e in dress(random.Random(seed), questions) if e.form == "yesno"]
        said += [exchange.answer for exchange in pairs]
        first += [pairs[0].answer] if pairs else []
    assert said.count("Yes") == said.count("No") > 50
    assert 0.35 < first.count("Yes") / len(first) < 0.65


def test_long_answers_are_asked_for_as_they_are():
    for answer in ('{"a": "1"}', "a\nb", "1 + 2 = 3", "x" * 200, "<table></table>"):
        (exchange,) = dress(random.Random(0), [Question("Write it.", answer, "t")])
        assert (exchange.question, exchange.answer, exchange.form) == ("Write it.", answer, "plain")
    forms = {dress(random.Random(i), [Question("Total?", "3", "t")])[0].form for i in range(40)}
    assert forms == {"phrase", "choice"}
    assert PHRASE in dress(random.Random(0), [Question("Which place?", "Rome", "t")])[0].question


# what isn't there


@pytest.mark.parametrize("name", ["receipts", "forms", "bills", "invoices", "tables"])
def test_what_is_asked_for_in_vain_is_not_printed(name):
    for index in range(60):
        rng = random.Random(f"absent {index}")
        made = kinds.maker(name)(rng, "train")
        printed = "".join(glyph.char for glyph in made.glyphs).lower()
        for question in made.questions:
            if question.task == "absent" and (found := re.match(r"(?:Price|Cost) of (.*)\?", question.text)):
                assert found[1].replace(" ", "").lower() not in printed


def test_other_products_are_none_of_the_listed():
    rng = random.Random(0)
    for _ in range(300):
        other = absent.other_product(rng, "train", ["Green Tea", "Bread"])
        assert other.lower() not in ("green tea", "bread")
        assert other != "Tea"


# documents as data


@pytest.mark.parametrize("split", SPLITS)
def test_sums_of_bills_add_up_and_their_json_is_printed(split):
    for index in range(60):
        order, page = bills.describe(random.Random(index), split)
        said = bills.fields(order)
        printed = "".join(glyph.char for glyph in page.glyphs)
        assert order.total == order.subtotal - order.discount + order.service + order.tax
        assert said["total"]["total_price"] == order.show(order.total)
        values = re.findall(r'"(?:nm|price|unitprice|\w+_price|cashprice|changeprice)": "([^"]*)"', json.dumps(said))
        for value in values:
            assert "".join(value.split()) in printed, (split, index, value)
        for question in page.questions:
            if question.task == "cord_json":
                assert json.loads(question.answer) == said


@pytest.mark.parametrize("split", SPLITS)
def test_invoices_say_what_their_json_says(split):
    for index in range(40):
        invoice, page = invoices.describe(random.Random(index), split)
        printed = "".join(glyph.char for glyph in page.glyphs)
        assert invoice.net == sum(count * cents for _, count, cents in invoice.items)
        for question in page.questions:
            if question.task == "invoice_json":
                for value in leaves_of(json.loads(question.answer)):
                    for part in value.split(", "):
                        assert "".join(part.split()) in printed, value


def leaves_of(tree) -> list[str]:
    if isinstance(tree, dict | list):
        return [text for part in (tree.values() if isinstance(tree, dict) else tree) for text in leaves_of(part)]
    return [tree]


class Grid(HTMLParser):
    """The texts of an HTML table by (row, column), merged cells in all of their places."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.row, self.column, self.spans, self.cells = -1, 0, (1, 1), {}
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.row, self.column = self.row + 1, 0
        if tag in ("td", "th"):
            found = dict(attrs)
            self.spans, self.text = (int(found.get("rowspan", 1)), int(found.get("colspan", 1))), ""

    def handle_data(self, data):
        self.text = data

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            while (self.row, self.column) in self.cells:
                self.column += 1
            for i in range(self.spans[0]):
                for j in range(self.spans[1]):
                    self.cells[self.row + i, self.column + j] = self.text


def test_merged_tables_are_whole_and_their_sums_are_right():
    for index in range(60):
        cross, _ = spans.describe(random.Random(index), "train")
        cells = Grid(spans.html(cross)).cells
        rows, columns = (1 + max(place[axis] for place in cells) for axis in (0, 1))
        assert len(cells) == rows * columns  # no gap and no overlap
        lead = 1 + (len(cross.rows) > 1)
        for i, values in enumerate(cross.values):
            assert [int(cells[2 + i, lead + j]) for j in range(len(values))] == list(values)
            if cross.row_total:
                assert int(cells[2 + i, columns - 1]) == sum(values)
        if cross.column_total:
            sums = [sum(column) for column in zip(*cross.values, strict=True)]
            assert [int(cells[rows - 1, lead + j]) for j in range(len(sums))] == sums


def test_graphs_answer_from_their_numbers():
    asked = 0
    for index in range(80):
        graph, page = graphs.describe(random.Random(index), "train")
        numbers = graph.numbers
        for question in page.questions:
            if question.task == "chart_extreme":
                name = next(c for c in numbers.columns if c in question.text)
                column = [row[numbers.columns.index(name)] for row in numbers.values]
                best = (max if "highest" in question.text else min)(column)
                assert numbers.labels[column.index(best)] == question.answer
                asked += 1
            if question.task == "chart_total":
                terms, total = question.answer.split(" = ")
                assert sum(map(float, terms.split(" + "))) == pytest.approx(float(total), abs=0.051)
    assert asked > 40


def test_roads_do_not_cross_and_every_length_is_on_the_map():
    for index in range(40):
        page = diagrams.roads(random.Random(index), "train")
        printed = "".join(glyph.char for glyph in page.glyphs)
        for question in page.questions:
            if question.task in ("road_length", "map_place"):
                assert "".join(question.answer.split()) in printed


# several pictures, videos


def test_pages_that_differ_differ_and_pages_that_do_not_do_not(monkeypatch):
    drawn = []
    draw = leaves.draw
    monkeypatch.setattr(leaves, "draw", lambda rng, leaf, *more: drawn.append(leaf) or draw(rng, leaf, *more))
    seen = set()
    for seed in range(40):
        drawn.clear()
        posed = kinds.maker("twice")(random.Random(seed), "train")
        first, second = drawn
        told = {question.task: question.answer for question, _ in posed.asked}
        seen.add(told["same_document"])
        changed = [a[0] for a, b in zip(first.fields, second.fields, strict=True) if a != b]
        assert changed == ([told["changed_field"]] if told["same_document"] == "No" else [])
    assert seen == {"Yes", "No"}


def test_pages_out_of_order_are_named_by_their_place(monkeypatch):
    drawn = []
    draw = leaves.draw
    monkeypatch.setattr(leaves, "draw", lambda rng, leaf, *more: drawn.append(leaf) or draw(rng, leaf, *more))
    for seed in range(40):
        drawn.clear()
        posed = kinds.maker("page_order")(random.Random(seed), "train")
        order = [int(re.findall(r"\d+", leaf.foot)[0]) for leaf in drawn]
        for question, _ in posed.asked:
            if question.task == "page_order":
                number = int(re.search(r"[Pp]age (\d)", question.text)[1])
                assert clips.scenes.PLACES[order.index(number)] == question.answer
            else:
                assert [clips.scenes.PLACES[order.index(i + 1)] for i in range(len(order))] == question.answer.split(
                    ", "
                )


def test_the_faster_thing_goes_farther():
    drawable("speed")
    for seed in range(12):
        posed = clips.speed(random.Random(seed), "train")
        frames = np.stack([np.asarray(frame, int) for frame in posed.frames])
        ground = np.median(frames.reshape(-1, 3), axis=0)
        moved = np.abs(frames - ground).sum(-1) > 90
        ways = []
        for half in (moved[:, :112], moved[:, 112:]):
            x = [np.argwhere(frame)[:, 1].mean() for frame in (half[0], half[-1])]
            ways.append(abs(x[1] - x[0]))
        assert max(ways) > 2 * min(ways)


@pytest.mark.parametrize("name", ["times", "last", "scroll"])
def test_what_clips_rest_on_shows_for_a_second(name):
    drawable(name)
    for seed in range(4):
        posed = kinds.maker(name)(random.Random(seed), "heldout")
        frames = np.stack([np.asarray(frame, int) for frame in posed.frames])
        still = np.abs(np.diff(frames, axis=0)).sum((1, 2, 3)) == 0
        changes = np.flatnonzero(~still)
        assert len(changes)
        runs = np.diff([-1, *changes, len(frames) - 1])
        assert max(runs) >= posed.fps


# scripts and splits


def test_fonts_of_scripts_cover_what_they_write_and_splits_share_none():
    for material in script_fonts.SCRIPTS:
        train, heldout = (set(script_fonts.font_files(material, split)) for split in SPLITS)
        assert not train & heldout
    for material, text in (("chinese-fonts", "今天学校"), ("japanese-fonts", "かなカナ"), ("korean-fonts", "한국어")):
        for split in SPLITS:
            for path in script_fonts.font_files(material, split):
                font = script_fonts.load_font(path, 20)
                assert script_fonts.covers(font, text), path
                assert not script_fonts.covers(font, "\u1200")


def test_looks_of_the_splits_are_disjoint():
    for module in (bills, invoices, spans, signs):
        assert not set(module.LOOKS["train"]) & set(module.LOOKS["heldout"])
    assert not set(graphs.MARKS["train"]) & set(graphs.MARKS["heldout"])
    assert not set(diagrams.BOXES["train"]) & set(diagrams.BOXES["heldout"])


def test_a_script_without_a_font_says_what_to_install(monkeypatch):
    monkeypatch.setattr(script_fonts, "font_files", lambda material, split: ())
    assert kinds.missing("synthdog_ko") == "no Korean font: apt-get install fonts-unfonts-core"


@pytest.mark.parametrize("language", ["en", "zh", "ja", "ko"])
def test_synthdog_pages_are_as_large_as_the_paper_says_and_read_in_full(language):
    name = f"synthdog_{language}"
    drawable(name)
    example = kinds.draw(name, 0, "train", 3)
    (frame,) = example.frames
    assert 720 <= min(frame.size) <= 1024
    assert 1 <= max(frame.size) / min(frame.size) <= 2.01
    assert example.reading in [exchange.answer for exchange in example.exchanges]
    assert np.asarray(frame).std() > 5
