"""What only a GPU does: variable-length attention, 16 bit over fp32 weights, checkpoints of tensors on the device.

All of it is skipped where there is none.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from conftest import conversation, tiny_model
from test_train import RATES, one_batch, run, stage, train_stage  # noqa: F401 (run is a fixture)

from pumice.data.batch import pack
from pumice.encode import encode
from pumice.engine.runner import complete
from pumice.model import attention
from pumice.model.attention import Kind, attend, attend_packed
from pumice.model.build import cast
from pumice.train import checkpoint as checkpoints
from pumice.train.parallel import World

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICE = torch.device("cuda", 0)
STARTS = [0, 1, 40, 41, 300, 777]


@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize(("heads", "shared"), [(9, 3), (4, 4)])
@pytest.mark.parametrize("autocast", [False, True])
def test_variable_length_attention_is_attention_by_document(window, heads, shared, autocast, monkeypatch):
    torch.manual_seed(0)
    kind = Kind(0.125, window)
    base = [torch.randn(n, STARTS[-1], 64, device=DEVICE) for n in (heads, shared, shared)]
    dtype = torch.float32 if autocast else torch.bfloat16
    given = [part.bfloat16().to(dtype).requires_grad_() for part in base]
    called = []
    real = attention._attend_varlen
    monkeypatch.setattr(attention, "_attend_varlen", lambda *args: called.append(1) or real(*args))
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        found = attend_packed(*given, STARTS, kind)
    assert called
    weight = torch.randn_like(found, dtype=torch.float32)
    (found.float() * weight).sum().backward()
    plain = [part.detach().double().cpu().requires_grad_() for part in given]
    expected = torch.cat([attend(*(p[:, a:b] for p in plain), kind) for a, b in pairwise(STARTS)], dim=1)
    (expected * weight.double().cpu()).sum().backward()
    assert distance(found, expected) < 1e-2
    for mine, theirs in zip(given, plain, strict=True):
        assert distance(mine.grad, theirs.grad) < 2e-2


def distance(found, expected) -> float:
    """Relative to the length of what is expected."""
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((found - expected).norm() / expected.norm())


SIZES = [(28, 28), (60, 20), None, (90, 90), (28, 56)]


def documents(processor):
    return [encode(conversation(i, size, "what is it?", f"noise {i}"), processor) for i, size in enumerate(SIZES)]


def test_packed_documents_have_the_logits_of_separate_ones(tokenizer, processor):
    model = tiny_model(len(tokenizer)).to(DEVICE)
    made = documents(processor)
    exact = [model.logits(pack([one]).to(DEVICE)) for one in made]
    whole = model.logits(pack(made).to(DEVICE))
    assert distance(whole, torch.cat(exact)) < 3e-4  # fp32, but a GPU sums other shapes in another order
    half = cast(model, torch.bfloat16).logits(pack(made).to(DEVICE))
    assert distance(half, torch.cat(exact)) < 5e-2


def test_a_gpu_has_the_logits_of_a_cpu(tokenizer, processor):
    batch = pack(documents(processor))
    here = tiny_model(len(tokenizer)).logits(batch)
    there = tiny_model(len(tokenizer)).to(DEVICE).logits(batch.to(DEVICE))
    assert distance(there, here) < 1e-4


def test_cached_answers_are_those_of_a_cpu(tokenizer, processor):
    prompts = [encode(conversation(i, size, "what?", None), processor, prompt=True) for i, size in enumerate(SIZES)]
    here = complete(tiny_model(len(tokenizer)), prompts, [], 12)
    there = complete(tiny_model(len(tokenizer)).to(DEVICE), prompts, [], 12)
    assert [one.ids for one in here] == [one.ids for one in there]
    assert [one.logprob for one in here] == pytest.approx([one.logprob for one in there], abs=1e-2)


@pytest.mark.parametrize("lora", [False, True])
def test_training_on_a_gpu_is_training_on_a_cpu(run, lora):  # noqa: F811
    chosen = stage(steps=4, batch=4, dense_weight=0.5, align_weight=0.5, lr=RATES)
    losses = {}
    for place in ("cpu", "cuda"):
        made = run(place, lora)
        made.world = On(torch.device(place))
        made.learner.to(torch.device(place))
        made.loaders = 2
        rows: list[dict] = []
        made.report = lambda _, row, __, rows=rows: rows.append(row)
        train_stage(made, chosen)
        losses[place] = [row["answer_loss"] for row in rows], [row["read_loss"] for row in rows]
    for here, there in zip(losses["cpu"], losses["cuda"], strict=True):
        assert there == pytest.approx(here, rel=2e-3)


class On(World):
    """A single worker on a device."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        object.__setattr__(self, "_device", device)

    @property
    def device(self) -> torch.device:
        return self._device  # type: ignore[attr-defined]


def test_half_precision_trains_and_a_killed_run_goes_on(run):  # noqa: F811
    chosen = stage(steps=30, batch=8, warmup=1, decay=0.0)
    rows: list[dict] = []

    def make(out: str):
        made = run(out)
        made.dtype = torch.bfloat16
        made.learner.to(DEVICE)
        made.report = lambda _, row, __: rows.append(row)
        return made

    train_stage(make("whole"), chosen)
    losses = [row["answer_loss"] for row in rows]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    rows.clear()
    first = make("parts")
    first.stop = lambda: len(rows) >= 11
    train_stage(first, chosen)
    (saved,) = checkpoints.checkpoints(first.out / "checkpoints")[-1:]
    second = make("parts")
    checkpoints.load_training_state(saved, second.learner)
    train_stage(second, chosen, checkpoints.read_state(saved)["step"], saved)
    # The kernels' sums have no fixed order on a GPU, so that the bits differ.
    assert [row["answer_loss"] for row in rows] == pytest.approx(losses, rel=2e-2)


def test_targets_travel_with_a_batch(run):  # noqa: F811
    made = run()
    batch = made.learner.labeller("read").label(one_batch(made, stage("read", batch=4), 0))
    moved = batch.to(DEVICE)
    assert moved.targets is not None
    assert moved.targets.slots.device == DEVICE
    assert torch.equal(moved.targets.slots.cpu(), batch.targets.slots)
