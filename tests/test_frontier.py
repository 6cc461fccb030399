"""Differences to an earlier run, and the frontier of several."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ET
from dataclasses import asdict

import pytest
from test_cost import Clockwork
from test_eval import constant, oracle

import pumice
from pumice import cli
from pumice.eval.cost import Cost
from pumice.eval.metrics.stats import compare
from pumice.eval.report import baseline, frontier, frontier_page
from pumice.eval.report.frontier import best, read_points
from pumice.eval.suite import embedded
from pumice.eval.suite.embedded import GROUPS, evaluate
from pumice.eval.suite.items import suite
from pumice.types import PumiceError

TASKS = ("amount", "chart_compare", "chart_extreme", "chart_value", "read")
COST = Cost(8, 3, 100.0, 140, 800.0, 1200.0, 12.5, 0.5, 0.75, 900 * 2**20, None, 3e10, "some CPU", "float32", 1, "i")


class Half:
    """Knows the items of even places of each task, is wrong elsewhere."""

    def __init__(self, asked, odd):
        known = {}
        for task in TASKS:
            of = [item for item in asked.items if item.task == task]
            known |= {(asked.open(i.picture).tobytes(), i.question): i.truth for i in of[odd::2]}
        self.known = known

    def ask_many(self, pairs, /, *, max_tokens, batch):
        texts = [self.known.get((picture.tobytes(), question), "no") for picture, question in pairs]
        return [pumice.Answer(text, 3, 72, 80, 9.0, 3.0, -1.0, "stop") for text in texts]


@pytest.fixture
def two(monkeypatch, tmp_path):
    """An earlier run's file, of one that knows the even items, and a new one that knows the odd ones."""
    asked = suite(TASKS, 6)
    monkeypatch.setattr(pumice, "load", lambda name, reader: Half(asked, int(name)), raising=False)
    embedded.main("0", list(TASKS), 6, tmp_path / "before.json")
    return tmp_path / "before.json"


def test_differences_are_those_of_the_paired_test(two, tmp_path, capsys):
    found = embedded.main("1", list(TASKS), 6, tmp_path / "now.json", tmp_path / "now.html", baseline=two)
    printed = capsys.readouterr().out
    assert f"Against 0 of {found.against.earlier.about['date'][:10]}" in printed
    rows = {row.name: row for row in (*found.against.rows, *found.against.groups)}
    assert set(rows) == {*TASKS, "charts"}
    amount = [i for i, result in enumerate(found.results) if result.item.task == "amount"]
    wanted = compare(
        {str(i): found.results[i].score for i in amount}, {str(i): found.against.earlier.scores[i] for i in amount}
    )
    assert rows["amount"].paired == wanted
    assert (wanted.better, wanted.worse, wanted.test) == (3, 3, "exact McNemar")
    assert rows["charts"].paired.n == 18
    assert rows["read"].paired.test == "paired t"
    assert "(low is good)" in baseline.cells(rows["read"])[0]
    body = json.loads((tmp_path / "now.json").read_text())
    assert body["against"]["about"]["model"] == "0"
    assert [row["paired"]["p"] for row in body["against"]["rows"]] == [row.paired.p for row in found.against.rows]


def test_items_that_changed_are_shown(two, tmp_path):
    found = embedded.main("1", list(TASKS), 6, html=tmp_path / "now.html", baseline=two)
    changed = {*found.against.lost, *found.against.won}
    assert len(found.against.lost) + len(found.against.won) == len(changed)
    # Of an error rate, lower is better: a line that is read now was won.
    for place in changed:
        result, now = found.results[place], place in found.against.won
        assert (result.answer == result.item.truth) is now
    for task in TASKS:
        if task != "chart_compare":  # "no" may be the truth
            assert sum(found.results[i].item.task == task for i in found.against.won) == 3
    page = (tmp_path / "now.html").read_text()
    assert "amount: right before, wrong now (3)" in page
    assert "read: wrong before, right now (3)" in page
    assert page.count("before: no</figcaption>") >= 12
    lost = found.results[found.against.lost[0]].item
    assert page.count(f'alt="{lost.picture}"') >= 1


def test_a_baseline_of_other_items_is_refused(two, tmp_path, monkeypatch):
    monkeypatch.setattr(pumice, "load", lambda name, reader: pytest.fail("the model was loaded"), raising=False)
    other = suite(TASKS, 5).sha256
    with pytest.raises(PumiceError) as error:
        embedded.main("1", list(TASKS), 5, baseline=two)
    assert other in str(error.value)
    assert suite(TASKS, 6).sha256 in str(error.value)
    for text in ("", "[]", '{"rows": []}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(PumiceError, match="not a run's scores"):
            embedded.main("1", list(TASKS), 5, baseline=tmp_path / "bad.json")
    with pytest.raises(PumiceError, match=r"gone\.json: can't be read"):
        embedded.main("1", list(TASKS), 5, baseline=tmp_path / "gone.json")
    with pytest.raises(PumiceError, match="at least 2"):
        embedded.main("1", list(TASKS), 1, baseline=two)


def test_against_itself_nothing_differs():
    asked = suite(TASKS, 4)
    now = evaluate(oracle(asked), TASKS, 4, blind=False)
    same = baseline.Earlier(None, {}, tuple(r.answer for r in now.results), tuple(r.score for r in now.results))
    found = baseline.contrast(now.results, now.rows, GROUPS, now.groups, same)
    assert not found.lost
    assert not found.won
    assert all(row.paired.difference == 0 and row.paired.p == 1 for row in (*found.rows, *found.groups))
    assert "1.000" in baseline.cells(found.rows[0])


def test_a_baseline_has_no_say_about_what_either_run_was_not_asked(two, tmp_path, monkeypatch):
    """Neither a question that an earlier run couldn't take, nor one that this run refuses, is a difference."""
    body = json.loads(two.read_text())
    of = {task: [item for item in body["items"] if item["item"]["task"] == task] for task in TASKS}
    for item in of["chart_compare"] + of["amount"][:2]:
        item |= {"answer": "", "score": 0.0, "skipped": "the model doesn't take one picture", "cause": "not taken"}
    two.write_text(json.dumps(body))

    class Fussy(Half):
        def ask_many(self, pairs, /, **how):
            if how["max_tokens"] > 32:  # the pages that are to be read
                raise PumiceError("too long")
            return super().ask_many(pairs, **how)

    monkeypatch.setattr(pumice, "load", lambda name, reader: Fussy(suite(TASKS, 6), 1), raising=False)
    found = embedded.main("1", list(TASKS), 6, html=tmp_path / "now.html", baseline=two)
    assert {result.item.task for result in found.failed} == {"read"}
    rows = {row.name: row for row in (*found.against.rows, *found.against.groups)}
    assert set(rows) == {"amount", "chart_extreme", "chart_value", "charts"}
    assert (rows["amount"].paired.n, rows["charts"].paired.n) == (4, 12)
    changed = {found.results[place].item.task for place in (*found.against.lost, *found.against.won)}
    assert changed == {"amount", "chart_extreme", "chart_value"}
    assert (tmp_path / "now.html").read_text().count("(no answer: too long)") == 4


def run(path, name, quality, first_ms, visual, **about):
    """A run's file with three groups around ``quality``."""
    scores = {"codes": quality - 0.1, "cells": quality, "charts": quality + 0.1}
    groups: list[dict[str, object]] = [
        {"name": group, "metric": "exact", "n": 50, "score": score, "interval": [score - 0.1, score + 0.1]}
        for group, score in scores.items()
    ]
    groups.append({"name": "reading", "metric": "CER", "n": 50, "score": 3.0, "interval": None})
    groups.append({"name": "unasked", "metric": "exact", "n": 0, "score": 0.0, "interval": None})
    cost = {**asdict(COST), "first_ms": first_ms, "visual_tokens": visual, **about.pop("cost", {})}
    body = {
        "about": {"model": f"runs/{name}", "items_sha256": "same", **about},
        "groups": groups,
        "rows": [],
        "items": [],
    }
    path.write_text(json.dumps({**body, "cost": cost}))
    return path


@pytest.fixture
def four(tmp_path):
    """Cheap and poor; dear and good; dearer and worse than that; as good as the first but with more tokens."""
    return [
        run(tmp_path / "a.json", "cheap", 0.3, 100, 50),
        run(tmp_path / "b.json", "good", 0.6, 400, 200),
        run(tmp_path / "c.json", "dear", 0.5, 2000, 400),
        run(tmp_path / "d.json", "good", 0.3, 100, 80),
    ]


def test_the_frontier(four):
    points = read_points(four)
    assert [point.name for point in points] == ["cheap", "good (b)", "dear", "good (d)"]
    assert [point.quality[0] for point in points] == pytest.approx([0.3, 0.6, 0.5, 0.3])
    # Three independent halves of 0.1 each: their mean's is 0.1 / sqrt(3).
    assert points[0].quality[2] - points[0].quality[0] == pytest.approx(0.1 / math.sqrt(3))
    assert [point.letter for point in best(points, "ms to first token")] == ["A", "D", "B"]
    assert [point.letter for point in best(points, "visual tokens")] == ["A", "B"]
    assert [point.letter for point in best(points, "visual tokens", "charts")] == ["A", "B"]
    assert "reading" not in points[0].groups  # of an error rate low is good
    body = json.loads(four[0].read_text())
    body["groups"][0]["interval"] = None
    four[0].write_text(json.dumps(body))
    assert read_points(four)[0].groups["codes"] == pytest.approx((0.2, 0.2, 0.2))


def test_a_group_that_one_run_was_not_asked_counts_for_none(four, capsys):
    """A pipeline that takes one picture alone stands beside a model that takes several."""
    body = json.loads(four[1].read_text())
    body["groups"][2] |= {"n": 0, "score": 0.0, "interval": None}
    four[1].write_text(json.dumps(body))
    points = read_points(four)
    assert {tuple(point.groups) for point in points} == {("codes", "cells")}
    assert [point.quality[0] for point in points] == pytest.approx([0.25, 0.55, 0.45, 0.25])
    assert cli.main(["eval", "--frontier", *map(str, four)]) == 0
    assert "Left out, since not every run was asked: charts." in capsys.readouterr().out
    for group in body["groups"][:2]:
        group |= {"n": 0, "interval": None}
    body["groups"][2] |= {"n": 9}
    four[1].write_text(json.dumps(body))
    body["groups"] = [group | {"n": int(group["name"] == "codes")} for group in body["groups"]]
    four[0].write_text(json.dumps(body))
    with pytest.raises(PumiceError, match="no group that every one of the runs was asked"):
        read_points(four)


def test_page_and_json(four, tmp_path, capsys):
    files = [str(path) for path in four]
    out = [tmp_path / "f.json", tmp_path / "f.html"]
    assert cli.main(["eval", "--frontier", *files, "--json", str(out[0]), "--html", str(out[1])]) == 0
    printed = capsys.readouterr().out
    assert "some CPU" in printed
    assert "cheap" in printed
    body = json.loads(out[0].read_text())
    assert body["frontiers"]["visual tokens"] == {key: ["A", "B"] for key in ("mean", "codes", "cells", "charts")}
    page = out[1].read_text()
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    plots = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(plots) == 2 * (1 + 3)
    for plot in plots:
        svg = ET.fromstring(plot)
        circles = svg.findall(".//circle")
        assert len(circles) == 4
        width, height = (float(n) for n in svg.attrib["viewBox"].split()[2:])
        for circle in circles:
            assert frontier_page.LEFT <= float(circle.attrib["cx"]) <= width
            assert 0 <= float(circle.attrib["cy"]) <= height - frontier_page.BOTTOM
    filled = [circle.attrib["style"] != "fill:Canvas" for circle in ET.fromstring(plots[0]).findall(".//circle")]
    assert filled == [True, True, False, True]


def test_places_on_the_axes():
    axis = frontier_page.price_axis([10, 1000], 40, 500)
    assert axis.logarithmic
    assert axis.at(100) == pytest.approx((axis.at(10) + axis.at(1000)) / 2, abs=0.1)
    assert axis.ticks(8) == pytest.approx([10, 20, 50, 100, 200, 500, 1000])
    linear = frontier_page.price_axis([0, 400], 40, 500)
    assert not linear.logarithmic
    assert linear.ticks(8) == pytest.approx([0, 100, 200, 300, 400])
    assert frontier_page.price_axis([0, 0], 0, 9).high == 1
    for low, high in ((3, 97), (0, 0.7), (41.2, 43.9)):
        ticks = frontier_page.Axis(low, high, 0, 1).ticks(6)
        assert 2 <= len(ticks) <= 7
        assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)


def test_labels_keep_apart():
    taken = []
    spots = [(100.0, 100.0), (103.0, 101.0), (101.0, 103.0)]
    for spot in spots:
        frontier_page._label("A name", spot, taken, frontier_page.LARGE)
    assert not any(frontier_page._touch(a, b) for i, a in enumerate(taken) for b in taken[:i])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cost": None}, r"z\.json: a run without costs; evaluate again: pumice eval MODEL --cost --json"),
        ({"about": {"model": "z", "items_sha256": "other"}}, r"items other, those of .*a\.json are same"),
        (
            {"groups": [{"name": "codes", "metric": "exact", "n": 9, "score": 0.1, "interval": [0, 0.2]}]},
            r"groups codes, those of .* are codes, cells, charts",
        ),
        ({"groups": []}, "no task with right and wrong answers"),
        ({"cost": {"pictures": 8}}, "costs of another version"),
    ],
)
def test_files_that_do_not_fit(four, tmp_path, change, message):
    body = json.loads(run(tmp_path / "z.json", "z", 0.5, 1, 1).read_text())
    (tmp_path / "z.json").write_text(json.dumps({**body, **change}))
    with pytest.raises(PumiceError, match=message):
        read_points([four[0], tmp_path / "z.json"])


def test_times_of_different_machines_are_named(four, tmp_path):
    assert "some CPU, float32, 1 thread" in frontier.remarks(read_points(four))[1]
    other = run(tmp_path / "e.json", "e", 0.5, 1, 1, cost={"threads": 2})
    (first, *_) = frontier.remarks(read_points([four[0], other]))
    assert first.startswith("Times don't compare")
    assert "B: 8 pictures, 3 runs, some CPU, float32, 2 threads" in first


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--frontier a.json", "two runs or more"),
        ("--frontier gone.json b.json", "gone.json: can't be read"),
        ("m --frontier a.json b.json --tasks read", "not MODEL"),
        ("--frontier a.json b.json --cost", "--cost"),
        ("--frontier a.json b.json --html gone/x.html", "can't be written"),
        ("m --suite docvqa --baseline a.json", "--baseline"),
        ("m --suite docvqa --weights int8", "--weights"),
        ("m --suite smoke --cost", "--suite smoke"),
        ("m --tasks read --batch 2", "--batch is about lmms-eval's tasks"),
        ("m --data folder", "--data is about"),
        ("m --suite smoke --include folder", "--include is about"),
        ("--frontier a.json b.json --reader", "not --reader"),
        ("--frontier a.json b.json --weights int8", "not --weights"),
        ("--frontier a.json b.json --batch 2", "not --batch"),
    ],
)
@pytest.mark.usefixtures("four")
def test_mistakes_on_the_command_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["eval", *words.split()]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_two_runs_from_the_command_line_to_a_frontier(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        pumice, "load", lambda name, reader: Clockwork() if name == "slow" else constant("12"), raising=False
    )
    for name in ("slow", "quick"):
        assert cli.main(["eval", name, "--tasks", "charts", "-n", "2", "--json", f"{name}.json", "--cost"]) == 0
    assert cli.main(["eval", "--frontier", "slow.json", "quick.json", "--html", "f.html"]) == 0
    assert "charts" in (tmp_path / "f.html").read_text()
    assert cli.main(["eval", "quick", "--tasks", "charts", "-n", "2", "--baseline", "slow.json"]) == 0
