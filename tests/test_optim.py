"""Optimisers: rates of blocks, Muon beside AdamW, averages of the weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import tiny_model
from test_train import RATES, run, stage, train_stage  # noqa: F401 (run is a fixture)
from torch import nn

from pumice.train.dense import DenseHead
from pumice.train.objectives import Learner
from pumice.train.optim import Joint, average, averaged, depth, freeze, level, make_optimizer


@pytest.fixture
def learner(tokenizer) -> Learner:
    model = tiny_model(len(tokenizer))
    return Learner(model, DenseHead(24, model.lm.config.vocab_size), tokenizer)


def rates(optimizer, trainable: dict[str, nn.Parameter]) -> dict[str, float]:
    names = {id(parameter): name for name, parameter in trainable.items()}
    return {names[id(p)]: group["peak"] for group in optimizer.param_groups for p in group["params"]}


def test_rates_fall_from_the_last_block_to_the_embeddings(learner):
    chosen = stage(lr=RATES, layer_decay={"tower": 0.5})
    trainable = freeze(learner, chosen)
    found = rates(make_optimizer(trainable, chosen), trainable)
    assert found.keys() == trainable.keys()
    blocks = depth(trainable, "tower")
    assert blocks == len(learner.model.tower.model.get_submodule(learner.model.tower.blocks))
    for name, rate in found.items():
        if not name.startswith("tower."):
            assert rate == RATES[name.partition(".")[0]], name
        elif "embed" in name:
            assert rate == pytest.approx(RATES["tower"] * 0.5 ** (blocks + 1)), name
        elif "norm" in name and level(name, blocks) == blocks + 1:  # behind the blocks
            assert rate == RATES["tower"], name
    last = [rate for name, rate in found.items() if name.startswith("tower.") and level(name, blocks) == blocks]
    assert last
    assert set(last) == {RATES["tower"] * 0.5}


def test_muon_takes_the_matrices_of_blocks_and_moves_them_as_torchs_own(learner):
    chosen = stage(lr=RATES, optimizer="muon", weight_decay=0.0)
    trainable = freeze(learner, chosen)
    optimizer = make_optimizer(trainable, chosen)
    assert isinstance(optimizer, Joint)
    adam, muon = optimizer.parts
    taken = {id(p) for group in muon.param_groups for p in group["params"]}
    by_muon = {name for name, p in trainable.items() if id(p) in taken}
    assert any(name.startswith("connector.") for name in by_muon)
    assert any(name.startswith("lm.") and "q_proj" in name for name in by_muon)
    assert not any(
        word in name for name in by_muon for word in ("embed", "norm", "lm_head", "bias", "newline", "head.")
    )
    assert len(by_muon) + sum(len(group["params"]) for group in adam.param_groups) == len(trainable)

    name = sorted(by_muon)[0]
    copy = nn.Parameter(trainable[name].detach().clone())
    alone = torch.optim.Muon([copy], lr=RATES["lm"], weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    generator = torch.Generator().manual_seed(0)
    for parameter in trainable.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    copy.grad = trainable[name].grad.clone()
    optimizer.step()
    alone.step()
    assert torch.equal(copy, trainable[name])
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in trainable.values())


def test_averages_follow_the_weights_and_are_swapped_back():
    parameter = nn.Parameter(torch.tensor([1.0]))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    expected = None
    for value in (1.0, 3.0, -2.0):
        with torch.no_grad():
            parameter.fill_(value)
        average(optimizer, 0.75)
        expected = value if expected is None else 0.75 * expected + 0.25 * value
    with averaged(optimizer):
        assert float(parameter.detach()) == pytest.approx(expected)
    assert float(parameter.detach()) == -2.0


def test_a_stage_ends_with_the_average_of_its_weights_and_measures_it(run, monkeypatch):  # noqa: F811
    from pumice.data import drawn

    monkeypatch.setattr(drawn, "HELDOUT", 4)
    plain, own = stage(steps=4, batch=2, eval_every=1), stage(steps=4, batch=2, eval_every=1, ema=0.5)
    made = run("plain")
    seen: list[dict[str, torch.Tensor]] = []

    def weights() -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in made.learner.model.named_parameters()}

    made.tick = lambda *_: seen.append(weights())
    train_stage(made, plain)
    expected = seen[0]
    for later in seen[1:]:
        expected = {name: 0.5 * value + 0.5 * later[name] for name, value in expected.items()}
    other = run("averaged")
    rows: list[dict] = []
    other.report = lambda _, row, __: rows.append(row)
    train_stage(other, own)
    for name, value in other.learner.model.named_parameters():
        assert torch.allclose(value, expected[name], atol=1e-6), name
    # What was measured last is what stands there now.
    again = run("again")
    again.learner.model.load_state_dict(other.learner.model.state_dict())
    again.learner.head.load_state_dict(other.learner.head.state_dict())
    again.report = lambda _, row, __: rows.append(row)
    train_stage(again, replace(plain, steps=1, lr={"newline": 1e-12}))
    assert rows[-1]["heldout"] == pytest.approx(rows[-2]["heldout"], abs=1e-4)


def test_muon_and_slices_dont_go_together(learner, monkeypatch):
    from pumice.train import optim
    from pumice.types import PumiceError

    chosen = stage(lr=RATES, optimizer="muon")
    trainable = freeze(learner, chosen)
    monkeypatch.setattr(optim, "sharded", lambda parameter: True)
    with pytest.raises(PumiceError, match="muon doesn't go with parallel = shard"):
        make_optimizer(trainable, chosen)
