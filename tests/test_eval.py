"""Metrics against golden values, and the embedded table under answerers whose scores are known beforehand."""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from dataclasses import dataclass
from itertools import groupby
from types import SimpleNamespace

import pytest

import pumice
from pumice import cli
from pumice.assistant import Assistant
from pumice.data.render import assets
from pumice.engine.kernels import load_kernels
from pumice.eval.metrics import stats, strings
from pumice.eval.report import summary
from pumice.eval.suite import posing
from pumice.eval.suite.embedded import evaluate, main, open_asked
from pumice.eval.suite.items import GROUPS, TASKS, check_tasks, suite
from pumice.eval.suite.remembered import Remembered
from pumice.journal import FolderJournal
from pumice.types import PumiceError

DRAWN = ("shop", "date", "amount", "code", "cell", "chart_extreme", "chart_compare", "chart_value", "read")
try:
    assets.check_packages()
    ABSENT = ""
except PumiceError as error:
    ABSENT = str(error)
needs_objects = pytest.mark.skipif(bool(ABSENT), reason=ABSENT)


@pytest.mark.parametrize(
    ("prediction", "truth", "equal"),
    [
        ("Yes.", "yes", True),
        ("  new\n york ", "New  York", True),
        ("STRASSE", "straße", True),
        ("No..", "no", False),
        ("$12.50", "12.50", False),
        ("1,000", "1000", False),
        ("a cat", "cat", False),
        ("", ".", True),
    ],
)
def test_exact_match(prediction, truth, equal):
    assert strings.exact_match(prediction, truth) is equal


@pytest.mark.parametrize(
    ("prediction", "truth", "right"),
    [
        # Printed by lmms-eval 0.7.3's relaxed_correctness.
        ("0.0", "0", False),
        ("5%", "0.05", True),
        ("5%", "5", False),
        ("1,000", "1000", False),
        ("1_000", "1000", True),
        ("$5", "5", False),
        ("Yes.", "Yes", False),
        ("2019", "2020", True),
        ("nan", "5", False),
        ("-10", "10", False),
        ("1e2", "100", True),
        ("yes", "Yes", True),
        ("95", "100", True),
        ("94.9", "100", False),
        ("105", "100", True),
        ("0", "0", True),
    ],
)
def test_relaxed_match(prediction, truth, right):
    assert strings.relaxed_match(prediction, truth) is right


def test_levenshtein():
    golden = {("kitten", "sitting"): 3, ("saturday", "sunday"): 3, ("", "abc"): 3, ("abc", ""): 3, ("ab", "ba"): 2}
    for (a, b), distance in golden.items():
        assert strings.levenshtein(a, b) == distance
        assert strings.levenshtein(b, a) == distance
    rng = random.Random(0)
    for _ in range(50):
        a, b, c = ("".join(rng.choices("ab ", k=rng.randint(0, 8))) for _ in range(3))
        assert strings.levenshtein(a, c) <= strings.levenshtein(a, b) + strings.levenshtein(b, c)


def test_error_rates():
    assert strings.character_error_rate(" Total 12.50\n", "Total 12.50") == 0
    assert strings.character_error_rate("total 12.5", "Total 12.50") == pytest.approx(2 / 11)
    assert strings.character_error_rate("abcabc", "abc") == 1
    assert strings.character_error_rate("", "abc") == 1
    assert [strings.character_error_rate(text, "") for text in ("", "x")] == [0, 1]
    assert strings.line_error_rates("ab\ncx\nmore", "ab\ncd") == [0, 0.5]
    assert strings.line_error_rates("ab", "ab\ncd") == [0, 1]
    assert strings.pooled_error_rate([("ab", "ab"), ("", "abcdef")]) == 6 / 8
    with pytest.raises(ValueError, match="no reference"):
        strings.pooled_error_rate([("a", " ")])


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [
        # Newcombe (1998), Statistics in Medicine 17:857, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (10, 10, 0.7225, 1.0),
    ],
)
def test_wilson(right, total, low, high):
    assert stats.wilson(right, total) == pytest.approx((low, high), abs=5e-5)


def test_wilson_refuses_what_is_no_proportion():
    for right, total in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="expected at least one trial"):
            stats.wilson(right, total)


@dataclass
class Answerer:
    """Answers from a function of (picture bytes, question) and counts its calls."""

    answer: object
    calls: int = 0

    def ask_many(self, questions, *, max_tokens, batch):
        self.calls += 1
        assert all(picture.mode == "RGB" for picture, _ in questions)
        texts = [self.answer(picture.tobytes(), text) for picture, text in questions]
        return [SimpleNamespace(text=text, tokens=3, visual_tokens=72, ms=1.5) for text in texts]


def oracle(asked):
    """Knows every item by its picture and question, and nothing else."""
    truths = {(asked.open(item.picture).tobytes(), item.question): item.truth for item in asked.items}
    return Answerer(lambda picture, text: truths.get((picture, text), "no idea"))


def constant(text):
    return Answerer(lambda picture, question: text)


def test_questions_about_a_picture_follow_each_other():
    seen = []
    evaluate(Answerer(lambda picture, text: seen.append(picture) or ""), ("shop", "date", "cell"), 8)
    runs = [picture for picture, _ in groupby(seen)]
    assert len(seen) == 2 * 3 * 8
    assert len(runs) == len(set(runs))


def test_a_run_that_was_stopped_asks_only_what_is_left(tmp_path):
    tasks, seen = ("shop", "cell", "yesno"), []

    def answer(picture, text):
        if len(seen) == 21:
            raise KeyboardInterrupt
        seen.append((picture, text))
        return text[:7]

    with pytest.raises(KeyboardInterrupt):
        evaluate(Remembered(Answerer(answer), FolderJournal(tmp_path), "a"), tasks, 8)
    kept = len(FolderJournal(tmp_path))
    assert 0 < kept < 21
    again = Answerer(lambda picture, text: text[:7])
    resumed = Remembered(again, FolderJournal(tmp_path), "a")
    report, whole = evaluate(resumed, tasks, 8), evaluate(Answerer(lambda picture, text: text[:7]), tasks, 8)
    assert report.results == whole.results
    assert resumed.replayed == kept
    other = Remembered(again, FolderJournal(tmp_path), "another model")
    evaluate(other, tasks, 8)
    assert other.replayed == 0


def test_a_run_that_is_stopped_loses_no_more_than_a_batch(tmp_path):
    """However many questions a call to the assistant has."""
    seen = []

    def answer(picture, text):
        if len(seen) == 21:
            raise KeyboardInterrupt
        seen.append(text)
        return "x"

    with pytest.raises(KeyboardInterrupt):
        evaluate(Remembered(Answerer(answer), FolderJournal(tmp_path), "a"), ("cell",), 30, blind=False, batch=4)
    assert len(FolderJournal(tmp_path)) == 20


def test_one_refused_question_loses_no_other():
    def answer(picture, text):
        if "total" in text.lower() or "amount" in text.lower():
            raise PumiceError("too long")
        return "x"

    report = evaluate(Answerer(answer), ("amount", "cell"), 10, blind=False)
    assert report["cell"].n == 10
    assert report.failed
    assert {result.item.task for result in report.failed} == {"amount"}
    assert report["amount"].n == 10 - len(report.failed)
    assert {result.skipped for result in report.failed} == {"too long"}


def test_an_oracle_is_always_right_and_blind_without_the_picture():
    result = evaluate(oracle(suite(check_tasks(DRAWN), 12)), DRAWN, 12)
    for row in result.rows:
        assert row.n == 12
        assert row.score == (0 if row.metric == "CER" else 1)
        if row.metric == "CER":
            assert row.blind > 0.5
            assert row.also == {"exact": 1, "CER by line": 0}
        else:
            assert row.interval == stats.wilson(12, 12)
            assert row.blind < 0.5
    assert result["chart_value"].metric == "relaxed"
    assert {row.name for row in result.groups} == {"codes", "cells", "charts"}
    assert (result["charts"].n, result["charts"].score) == (36, 1)


@needs_objects
def test_a_constant_scores_what_the_table_says_a_constant_does():
    result = evaluate(constant("Yes."), ("yesno",), 60)
    row = result["yesno"]
    share = sum(r.item.truth == "yes" for r in result.results) / 60
    assert row.score == row.blind == share
    assert row.constant == pytest.approx(max(share, 1 - share))
    assert row.chance == 0.5
    assert row.interval[0] < 0.5 < row.interval[1]
    for task in ("counting", "colour", "chart_value"):
        truths = [item.truth for item in suite((task,), 30).items]
        best = max(set(truths), key=lambda truth: sum(strings.relaxed_match(truth, other) for other in truths))
        answer = best if task == "chart_value" else Counter(truths).most_common(1)[0][0]
        row = evaluate(constant(answer), (task,), 30)[task]
        assert row.score == pytest.approx(row.constant)
        assert row.constant < 0.7


def test_guessing_among_the_bars_is_known():
    for item in suite(("chart_extreme",), 40).items:
        assert item.chance is None or 1 / 10 < item.chance <= 1 / 2
    row = evaluate(constant(""), ("chart_extreme",), 40)["chart_extreme"]
    assert 0.1 < row.chance < 0.5
    assert row.score == 0


def test_an_empty_answer_has_an_error_rate_of_one():
    row = evaluate(constant(""), ("read",), 5)["read"]
    assert row.score == row.constant == row.blind == 1
    assert row.interval is None


def test_items_do_not_depend_on_other_tasks_and_smaller_suites_come_first():
    def asked(tasks, n):
        return {(i.picture, i.question, i.truth) for i in suite(tasks, n).items if i.task == "amount"}

    alone = asked(("amount",), 10)
    assert alone == asked(("shop", "amount", "code"), 10)
    assert asked(("amount",), 4) < alone
    first, second = suite(("amount",), 4), suite.__wrapped__(("amount",), 4)
    assert first.sha256 == second.sha256 != suite(("amount",), 10).sha256


@needs_objects
def test_every_task_has_its_items_one_a_picture():
    drawn = tuple(task for task in TASKS if task not in posing.KINDS)
    asked = suite(drawn, 5)
    assert Counter(item.task for item in asked.items) == dict.fromkeys(drawn, 5)
    assert max(Counter((item.task, item.picture) for item in asked.items).values()) == 1
    for item in asked.items:
        assert item.kind in TASKS[item.task]
        assert item.picture.startswith(f"{item.kind}-")
        assert item.other.startswith(f"{item.kind}-")
        assert asked.pictures[item.other] != asked.pictures[item.picture]
        assert "\n" not in item.truth


def test_one_item_has_another_picture_too():
    (item,) = suite(("cell",), 1).items
    assert item.other == "tables-blind"
    assert evaluate(oracle(suite(("cell",), 1)), ("cell",), 1)["cell"].blind == 0


def test_tasks_and_groups_by_name():
    assert check_tasks(()) == tuple(TASKS)
    assert check_tasks(["read", "charts", "chart_value"]) == ("chart_extreme", "chart_compare", "chart_value", "read")
    assert {task for of in GROUPS.values() for task in of} == set(TASKS) - {"item", "read"}
    with pytest.raises(PumiceError, match=r"no task 'chart'; tasks: shop, .*groups: short fields"):
        check_tasks(["chart"])


def test_without_the_blind_run_half_of_the_questions_are_asked():
    answerer = constant("x")
    steps = []
    result = evaluate(answerer, ("cell",), 70, blind=False, progress=lambda *step: steps.append(step))
    assert steps == [(64, 70), (70, 70)]
    assert answerer.calls == 2
    assert result["cell"].blind is None
    assert result.results[0].blind_answer is None


def test_wrong_numbers_are_refused():
    silent = SimpleNamespace(ask_many=lambda questions, **options: [])
    with pytest.raises(PumiceError, match="0 answers to 6 questions"):
        evaluate(silent, ("cell",), 3)
    with pytest.raises(PumiceError, match="expected at least 1"):
        evaluate(silent, ("cell",), 0)


def test_main_prints_and_writes_all(monkeypatch, tmp_path, capsys):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a.safetensors").write_bytes(b"weights")
    loaded = []
    monkeypatch.setattr(pumice, "load", lambda model, reader: loaded.append(model) or constant("<b>12"), raising=False)
    monkeypatch.setattr(sys, "argv", ["/usr/bin/pumice", "eval", "[red]", "--n", "3"])
    files = [tmp_path / name for name in ("out.json", "out.html")]
    result = main(str(tmp_path / "model"), ["cells", "chart_value"], 3, *files)
    printed = capsys.readouterr().out
    assert loaded == [str(tmp_path / "model")]
    assert "$ pumice eval '[red]' --n 3" in printed
    assert "relaxed" in printed
    assert "cells" in printed
    body = json.loads(files[0].read_text())
    assert [row["name"] for row in body["rows"]] == ["cell", "chart_value"]
    assert len(body["items"]) == 6
    assert body["items"][0]["item"]["truth"] == result.results[0].item.truth
    assert body["about"]["weights_sha256"] == summary.weights_sha256(str(tmp_path / "model"))
    assert body["about"]["items_sha256"] == result.suite.sha256
    assert {"pumice", "torch", "transformers"} <= set(body["about"]["versions"])
    assert body["about"]["threads"] >= 1
    assert body["about"]["device"] in printed
    assert body["cost"]["items_sha256"] != body["about"]["items_sha256"]
    page = files[1].read_text()
    assert page.count("data:image/jpeg;base64,") == 6
    assert "&lt;b&gt;12" in page
    assert "<b>12" not in page
    for said in ("Worst answers", "first token", "versions: transformers", body["about"]["weights_sha256"]):
        assert said in page


def test_weights_of_a_whole_language_model_are_one_folder_down(tmp_path):
    (tmp_path / "model").mkdir()
    assert summary.weights_sha256(str(tmp_path)) is None
    (tmp_path / "model" / "a.safetensors").write_bytes(b"weights")
    assert summary.weights_sha256(str(tmp_path)) == summary.weights_sha256(str(tmp_path / "model"))


@pytest.mark.skipif(load_kernels() is None, reason="the compiled kernels weren't built")
def test_weights_are_those_that_the_language_model_decodes_with(model, processor, monkeypatch):
    assistant = Assistant(model, processor)
    first = assistant.engine
    assert assistant.engine is first
    monkeypatch.setattr("pumice.load", lambda name, reader: assistant)
    assert open_asked("any", weights="int8") is assistant
    assert assistant.engine is not first
    assert [engine.decoder.weights for engine in (first, assistant.engine)] == ["fp32", "int8"]
    assert assistant.ask([], "What?", 3).tokens


def test_a_pipeline_has_neither_weights_nor_a_reader():
    for option in ({"weights": "int8"}, {"reader": True}):
        with pytest.raises(PumiceError, match=f"--{next(iter(option))} is about a model; ocr is a pipeline"):
            open_asked("ocr", **option)


def test_eval_hands_weights_over(monkeypatch):
    calls = []

    def main(*_, **chosen):
        calls.append(chosen)
        return SimpleNamespace(failed=[])

    monkeypatch.setattr("pumice.eval.suite.embedded.main", main)
    assert cli.main(["eval", "pocket", "--weights", "int4", "--cost", "--no-blind"]) == 0
    assert calls == [{"cost": True, "weights": "int4", "blind": False}]
    assert cli.main(["eval", "pocket", "--weights", "int3"]) == 2


def test_answers_from_a_journal_do_not_count_in_the_rate_for_long(monkeypatch, capsys):
    from pumice.eval.report import summary

    clock = [0.0]
    monkeypatch.setattr(summary.time, "monotonic", lambda: clock[0])
    with summary.progress_bar() as step:
        for done in (1000, *range(1010, 1200, 10)):  # a thousand at once, then one every two seconds
            clock[0] += 20
            step(done, 2000)
    assert capsys.readouterr().err.splitlines()[-1] == "1190/2000 questions, 0.5 a second, 1620 s left"
