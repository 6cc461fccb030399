"""Costs of an assistant whose costs are known beforehand, and of the tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from pumice.assistant import Answer, Assistant
from pumice.eval import cost
from pumice.eval.report import summary
from pumice.eval.report.page import to_html
from pumice.eval.suite import embedded
from pumice.eval.suite.items import suite
from pumice.formats.published import CLIP_L_336
from pumice.plan.find import find_model
from pumice.types import PumiceError


class Clockwork:
    """Takes 10 ms for pictures, whatever their number, and 1 ms for each token after the first; answers are long."""

    def __init__(self):
        self.asked = []

    def ask_many(self, pairs, /, *, max_tokens, batch):
        self.asked.append((tuple(question for _, question in pairs), max_tokens, batch))
        time.sleep(0.01 + 0.001 * (max_tokens - 1))
        ms = 1.0 * (max_tokens - 1)
        answer = Answer("x", max_tokens, 50, 60, ms=5 + ms, first_ms=5.0, logprob=-1.0, finish="length")
        return [replace(answer, visual_tokens=50 + len(question) % 2) for _, question in pairs]


def test_known_costs_are_measured():
    clock = Clockwork()
    found = cost.measure(clock)
    assert (found.pictures, found.runs) == (8, 3)
    assert 50 <= found.visual_tokens <= found.visual_tokens_most <= 51
    # Sleeping takes a little longer than asked, on a busy machine a lot.
    assert 10 <= found.first_ms <= 40
    assert found.first_ms_95 >= found.first_ms
    assert found.tokens_per_s == pytest.approx(1000)
    alone = 1 / (0.01 + 0.001 * 31)
    assert alone / 3 < found.pictures_per_s_1 <= alone
    assert 8 * alone / 3 < found.pictures_per_s_8 <= 8 * alone
    assert found.flops is None
    assert found.gpu_memory is None
    assert (found.dtype, found.threads) == (None, torch.get_num_threads())


def test_what_is_asked_is_always_the_same():
    first, second = Clockwork(), Clockwork()
    cost.measure(first)
    cost.measure(second)
    assert first.asked == second.asked
    items = suite(cost.TASKS, cost.EACH).items
    assert len({item.picture for item in items}) == len(items) == 8
    assert first.asked[-1] == (tuple(item.question for item in items), cost.MAX_TOKENS, 8)


def test_a_slow_assistant_is_timed_once(monkeypatch):
    monkeypatch.setattr(cost, "PATIENCE", 0.0)
    clock = Clockwork()
    assert cost.measure(clock).runs == 1
    assert len(clock.asked) == 2 + 8 + 1


def test_what_a_pipeline_keeps_is_forgotten_before_every_question():
    class Keeper(Clockwork):
        kept = 0

        def forget(self):
            self.kept = 0

        def ask_many(self, pairs, /, *, max_tokens, batch):
            assert not self.kept
            self.kept += 1
            return super().ask_many(pairs, max_tokens=1, batch=batch)

    assert cost.measure(Keeper()).tokens_per_s is None  # one token: nothing was decoded


def test_replies_that_tell_little_and_too_few_replies():
    bare = SimpleNamespace(
        ask_many=lambda pairs, **options: [SimpleNamespace(text="", tokens=0, visual_tokens=7, ms=1.0)] * len(pairs)
    )
    found = cost.measure(bare)
    assert found.tokens_per_s is None
    assert found.first_ms >= 0
    with pytest.raises(PumiceError, match="gave 0 answers to 1 questions"):
        cost.measure(SimpleNamespace(ask_many=lambda pairs, **options: []))


def test_the_tiny_model(model, processor):
    assistant = Assistant(model, processor)
    assistant.processor = replace(processor, max_tokens=4096)
    assistant.model.lm.config.max_position_embeddings = 4096
    found = cost.measure(assistant, "no such folder")
    pictures = [suite(cost.TASKS, cost.EACH).open(i.picture) for i in suite(cost.TASKS, cost.EACH).items]
    visual = [assistant.ask(picture, "?", 1).visual_tokens for picture in pictures]
    assert (found.visual_tokens, found.visual_tokens_most) == (sum(visual) / 8, max(visual))
    assert found.tokens_per_s > 1
    assert 0 < found.first_ms < 1000 / found.pictures_per_s_1 * 3
    assert found.memory is None or found.memory > 50 * 2**20
    assert (found.dtype, found.flops) == ("float32", None)


def test_flops_are_those_of_the_plan(monkeypatch):
    """On LLaVA-1.5-7B: 576 visual tokens whatever the picture, about 2 * N * T for the prompt, and the tower's."""
    picture = SimpleNamespace(size=(448, 224))
    replies = [SimpleNamespace(visual_tokens=576, prompt_tokens=600)]
    found = cost._flops("llava-1.5-7b", [picture], replies)
    lm = 2 * 6.6e9 * 600
    tower = 2 * 0.3e9 * CLIP_L_336.sequence
    assert found == pytest.approx(lm + tower, rel=0.05)
    assert cost._flops("llava-1.5-7b", [picture], [SimpleNamespace(visual_tokens=99, prompt_tokens=600)]) is None
    assert cost._flops("ocr", [picture], replies) is None
    assert find_model("pocket").lm.vocab > 0


@pytest.mark.parametrize(("share", "value"), [(0.95, 19), (0.5, 10), (1, 20), (0.01, 1), (0.951, 20)])
def test_percentile(share, value):
    assert cost.percentile(list(range(20, 0, -1)), share) == value


def test_memory_is_of_the_measurement_alone():
    """In a process of its own: where much was freed before, an allocation needn't raise the peak."""
    script = """
import torch
from pumice.eval import cost

held = torch.ones(80 * 2**20, dtype=torch.uint8)
del held
cost._reset_peak(torch.device("cpu"))
before = cost._peak()
held = torch.ones(40 * 2**20, dtype=torch.uint8)
print(before, cost._peak())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    if "None" in done.stdout:
        pytest.skip("not told by this system")
    before, after = map(int, done.stdout.split())
    assert before + 30 * 2**20 <= after <= before + 60 * 2**20


def test_costs_are_in_every_report(monkeypatch, tmp_path, capsys):
    import pumice

    monkeypatch.setattr(pumice, "load", lambda name, reader: Clockwork(), raising=False)
    embedded.main("m", ["cell"], 2, tmp_path / "a.json", tmp_path / "a.html")
    assert "cost: " not in capsys.readouterr().out
    body = json.loads((tmp_path / "a.json").read_text())
    assert cost.Cost(**body["cost"]).pictures == 8
    assert "1000.0 tokens/s" in (tmp_path / "a.html").read_text()
    found = embedded.main("m", ["cell"], 2, cost=True)
    printed = capsys.readouterr().out
    assert "cost: visual tokens" in printed
    assert found.cost.device in printed
    assert f"{torch.get_num_threads()} thread" in printed
    assert embedded.main("m", ["cell"], 2).cost is None


def test_a_pipeline_says_what_it_is(monkeypatch, capsys):
    from pumice.eval.suite import ocr

    made = ocr._made_of()
    assert set(made) >= {"description", "rapidocr", "onnxruntime"}
    clock = Clockwork()
    clock.provenance = made
    monkeypatch.setattr(ocr, "open_ocr", lambda: clock)
    found = embedded.main("ocr", ["cell"], 2)
    printed = " ".join(capsys.readouterr().out.split())
    assert "RapidOCR's bundled PP-OCR models" in printed
    assert "weights unknown" not in printed
    about = summary.provenance("ocr", found, clock)
    assert about["pipeline"] == made
    assert made["rapidocr"] in to_html(found, about)
