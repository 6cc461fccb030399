"""Training: dense labels, alignment targets, resumed == uninterrupted, workers agree, frozen stays frozen."""

from __future__ import annotations

import dataclasses
import json
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import conversation, tiny_model

import pumice
from pumice.config import LoraConfig, Stage
from pumice.data.batch import pack
from pumice.data.feed import RenderedFeed
from pumice.data.loading import step_batches, steps_of
from pumice.encode import encode
from pumice.model.weights import apply_delta, pack_delta, save_delta
from pumice.train import checkpoint as checkpoints
from pumice.train.dense import BIAS_UNIT, DenseHead, char_class, glyph_slots
from pumice.train.loop import Run, run_stage
from pumice.train.lowrank import add_lora, lora_pairs
from pumice.train.objectives import OBJECTIVES, Learner, term_counts
from pumice.train.optim import factor
from pumice.train.parallel import World
from pumice.train.start import start_from
from pumice.train.targets import Labeller, inside, split_words
from pumice.types import Batch, Glyph, Named, PumiceError
from pumice.vision.layout import PRESETS, layout

RATES = {"tower": 1e-3, "connector": 1e-3, "newline": 1e-3, "lm": 1e-3, "head": 1e-3}


def stage(objective: str = "answer", **changes) -> Stage:
    made = Stage(name=objective, objective=objective, steps=6, batch=2, lr=RATES, data={"lines": 1.0})
    return dataclasses.replace(made, **({"max_views": 9, "log_every": 1, "warmup": 2} | changes))


def feed(run: Run, stage: Stage) -> RenderedFeed:
    return RenderedFeed(stage, run.processor, run.seed)


def train_stage(run: Run, stage: Stage, *start) -> None:
    run_stage(run, stage, feed(run, stage), *start)


def one_batch(run: Run, stage: Stage, step: int) -> Batch:
    (batch,) = step_batches(feed(run, stage), step, run.world.rank, run.world.size)
    return batch


@pytest.fixture
def run(tokenizer, processor, tmp_path, monkeypatch):
    """A run over a tiny model; pictures are 56 px so that no Debian font at all is needed to be large."""
    pytest.importorskip("faker")
    render_small(monkeypatch)

    def make(out: str = "run", lora: bool = False) -> Run:
        model = tiny_model(len(tokenizer))
        torch.manual_seed(1)
        learner = Learner(model, DenseHead(24, model.lm.config.vocab_size), tokenizer)
        if lora:
            add_lora(model.lm, LoraConfig(rank=2, alpha=4.0), 0)
        return Run(learner, processor, 0, tmp_path / out, World(), lambda *_: None)

    return make


def render_small(monkeypatch) -> None:
    """Pages of PIL's built-in font, so that training can be tested without the packages of the renderers."""
    from PIL import ImageFont

    from pumice.data import rendered
    from pumice.data.render.page import Page, Question

    def small(rng, split):
        page = Page((56, 28), (255, 255, 255), rng)
        text = "".join(rng.choice("abc123") for _ in range(5))
        page.text((4, 6), text, ImageFont.load_default(12), (0, 0, 0))
        return page.finish("lines", [Question("Read.", text, "read")])

    monkeypatch.setattr(rendered, "renderer", lambda kind: small)


@pytest.mark.parametrize("objective", ["read", "align", "answer"])
def test_a_stage_lowers_its_loss(run, objective):
    made = run()
    rows = []
    made.report = lambda _, row, __: rows.append(row)
    train_stage(made, stage(objective, steps=40, batch=4, warmup=1, decay=0.0))
    name = {"read": "read_loss", "align": "align_loss", "answer": "answer_loss"}[objective]
    first, last = sum(r[name] for r in rows[:5]) / 5, sum(r[name] for r in rows[-5:]) / 5
    assert last < 0.9 * first


@pytest.mark.slow
def test_compiled_blocks_learn_the_same(run):
    plain, compiled = run("plain", lora=True), run("compiled", lora=True)
    compiled.learner.model.compile_blocks()
    for made in (plain, compiled):
        train_stage(made, stage("answer", steps=3, batch=3, dense_weight=0.5))  # documents differ in number
    wanted = checkpoints.training_state(plain.learner)
    for name, tensor in checkpoints.training_state(compiled.learner).items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-3, atol=1e-5)


JOINT = {"optimizer": "muon", "ema": 0.7, "layer_decay": {"tower": 0.8}}


@pytest.mark.parametrize(("lora", "more"), [(False, {}), (True, {}), (False, JOINT)])
def test_resumed_equals_uninterrupted_bit_for_bit(run, lora, more):
    chosen = stage(dense_weight=0.5, **more)
    whole = run("whole", lora)
    train_stage(whole, chosen)
    first = run("parts", lora)
    first.stop = lambda: first.log is not None and first.saves == 0 and len(seen) >= 3
    seen: list[int] = []
    first.report = lambda _, row, __: seen.append(row["step"])
    with (first.out.parent / "log").open("w") as first.log:
        train_stage(first, chosen)
    (saved,) = checkpoints.checkpoints(first.out / "checkpoints")
    assert checkpoints.read_state(saved)["step"] == 3
    second = run("parts", lora)
    with torch.no_grad():  # whatever was in the new process must be overwritten
        for parameter in second.learner.model.connector.parameters():
            parameter.zero_()
    checkpoints.load_training_state(saved, second.learner)
    train_stage(second, chosen, 3, saved)
    for (name, a), (_, b) in zip(
        whole.learner.model.state_dict().items(), second.learner.model.state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), name


def test_a_language_model_that_trained_stays_in_checkpoints_when_a_later_stage_freezes_it(run):
    made = run("whole")
    train_stage(made, stage(steps=2))
    frozen = stage("align", name="then", steps=2, lr={"connector": 1e-3})
    train_stage(made, frozen)
    newest = checkpoints.checkpoints(made.out / "checkpoints")[-1]
    other = run("other")
    checkpoints.load_training_state(newest, other.learner)
    for (name, a), (_, b) in zip(
        made.learner.model.state_dict().items(), other.learner.model.state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), name
    train_stage(other, dataclasses.replace(frozen, steps=3), 2, newest)  # and in those of who goes on
    newest = checkpoints.checkpoints(other.out / "checkpoints")[-1]
    assert any(name.startswith("lm.") for name in checkpoints.shapes(newest))


def test_bf16_products_leave_weights_and_moments_in_fp32(run):
    losses = {}
    for dtype in (torch.float32, torch.bfloat16):
        made, rows = run(f"run-{dtype}"), []
        made.dtype, made.report = dtype, lambda _, row, __, rows=rows: rows.append(row["answer_loss"])
        train_stage(made, stage(steps=20, batch=4, warmup=1, decay=0.0))
        assert {value.dtype for value in made.learner.model.state_dict().values()} == {torch.float32}
        losses[dtype] = rows
    exact, rounded = losses[torch.float32], losses[torch.bfloat16]
    assert rounded[-1] < 0.9 * rounded[0]
    assert exact != rounded  # or autocast never was on
    assert rounded == pytest.approx(exact, rel=0.1)


def test_a_loss_that_is_not_finite_names_step_and_samples_and_changes_nothing(run):
    made = run()
    with torch.no_grad():
        made.learner.model.newline[0] = float("nan")
        made.learner.model.connector.layers[0].bias[0] = float("inf")
    before = made.learner.model.tower.model.layernorm.weight.clone()
    with pytest.raises(PumiceError, match=r"stage 'answer', step 0: the loss is nan .*samples answer-0 to answer-3"):
        train_stage(made, stage(batch=4))
    assert torch.equal(before, made.learner.model.tower.model.layernorm.weight)
    assert not (made.out / "checkpoints").exists()


def test_a_gradient_that_is_not_finite_stops_the_run_before_it_changes_anything(run):
    made = run()
    made.learner.model.newline.register_hook(lambda gradient: gradient * float("inf"))
    before = deepcopy(made.learner.model.state_dict())
    with pytest.raises(PumiceError, match=r"step 0: the gradient's norm is (nan|inf) .*samples answer-0 to answer-3"):
        train_stage(made, stage(batch=4))
    assert all(torch.equal(value, before[name]) for name, value in made.learner.model.state_dict().items())


def test_another_optimizer_doesnt_go_on_with_moments_that_it_doesnt_know(run):
    made = run()
    train_stage(made, stage(steps=2, optimizer="muon"))
    (saved,) = checkpoints.checkpoints(made.out / "checkpoints")
    with pytest.raises(PumiceError, match="made with optimizer = muon, whose moments mean nothing to adamw"):
        train_stage(run(), stage(steps=3), 2, saved)


def test_a_stage_with_an_average_goes_on_for_longer_from_its_weights(run):
    def trained(**changes) -> Run:
        made = run(str(changes))
        train_stage(made, stage(warmup=1, decay=0.0, ema=0.9, **changes))
        return made

    short = trained(steps=3)
    (saved,) = checkpoints.checkpoints(short.out / "checkpoints")
    checkpoints.load_training_state(saved, short.learner)
    train_stage(short, stage(warmup=1, decay=0.0, ema=0.9, steps=6), 3, saved)
    wanted = trained(steps=6).learner.model.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in short.learner.model.state_dict().items())


def test_a_batch_moves_as_a_whole(run):
    moved = one_batch(run(), stage(), 0).to(torch.device("meta"))
    tensors = {name: value for name, value in vars(moved).items() if isinstance(value, torch.Tensor)}
    assert len(tensors) == 5
    assert all(value.is_meta for value in tensors.values())


def test_an_interrupted_save_leaves_the_older_checkpoint(run, monkeypatch):
    made = run()
    train_stage(made, stage(steps=2))
    folder = made.out / "checkpoints"
    before = checkpoints.checkpoints(folder)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(PumiceError, match=r"No space left on device.*last good one is kept"):
        train_stage(made, stage(steps=3), 2, before[-1])
    assert list(folder.iterdir()) == before  # and no half-written folder beside it
    checkpoints.load_training_state(before[-1], run().learner)


def test_only_modules_with_a_rate_change(run):
    made = run(lora=True)
    before = {name: value.clone() for name, value in made.learner.model.state_dict().items()}
    train_stage(made, stage(lr={"connector": 1e-3, "lm": 1e-3}))
    for name, value in made.learner.model.state_dict().items():
        changed = not torch.equal(value, before[name])
        assert changed == (name.startswith("connector.") or ".lora_" in name), name
    with pytest.raises(PumiceError, match="trains nothing"):
        train_stage(made, stage(lr={"connector": 0.0}))


def test_a_checkpoint_says_whether_it_has_low_rank_matrices(run):
    for lora in (False, True):
        made = run(f"run-{lora}", lora=lora)
        train_stage(made, stage(lr={"tower": 1e-3}))
        (saved,) = checkpoints.checkpoints(made.out / "checkpoints")
        assert checkpoints.has_low_rank(saved) == lora


def test_how_frequent_tokens_are_goes_into_the_bias_of_alignment(run):
    made = run()
    rows: list[dict] = []
    made.report = lambda _, row, __: rows.append(row)
    train_stage(made, stage(objective="align", steps=30, log_every=10, lr={"head": 3e-3}))
    assert made.learner.head.word_bias.std() * BIAS_UNIT > 1.0  # log-units, from 30 small steps
    assert rows[-1]["align_loss"] < rows[0]["align_loss"] - 0.2


def test_a_delta_restores_the_trained_model(run, tmp_path, tokenizer):
    made = run(lora=True)
    train_stage(made, stage())
    model = made.learner.model
    base = tiny_model(len(tokenizer))
    packed = pack_delta(model, base.tower, lora_pairs(model.lm), made.learner.head)
    save_delta(packed, tmp_path / "d.safetensors", {})
    restored = tiny_model(len(tokenizer))
    apply_delta(restored, tmp_path / "d.safetensors")
    batch = one_batch(made, stage(), 0)
    wanted, got, untrained = model.logits(batch), restored.logits(batch), base.logits(batch)
    assert (wanted - got).abs().mean() < 0.02 * (wanted - untrained).abs().mean()
    again = run(lora=True)
    start_from(tmp_path / "d.safetensors", again.learner)  # a later run goes on from the delta
    assert (again.learner.model.logits(batch) - restored.logits(batch)).abs().max() < 1e-3
    assert torch.allclose(again.learner.head.linear.weight, made.learner.head.linear.weight, atol=1e-3)
    part = run(lora=True)
    fresh = {name: value.clone() for name, value in part.learner.model.state_dict().items()}
    start_from(tmp_path / "d.safetensors", part.learner, ["tower", "head"])
    for name, value in part.learner.model.state_dict().items():
        # The head is the other module; queries are the kind of weight that training surely moved.
        assert torch.equal(value, fresh[name]) or name.startswith("tower."), name
        assert not (name.endswith("mlp.fc1.weight") and torch.equal(value, fresh[name])), name
    assert torch.allclose(part.learner.head.linear.weight, made.learner.head.linear.weight, atol=1e-3)
    with pytest.raises(PumiceError, match="don't fit the model"):
        apply_delta(tiny_model(len(tokenizer) + 1).tower, tmp_path / "d.safetensors")


def test_batches_are_functions_of_the_step_and_shared_among_workers(run):
    made = run()
    whole = one_batch(made, stage(batch=4), 5)
    assert torch.equal(whole.ids, one_batch(made, stage(batch=4), 5).ids)
    assert not torch.equal(whole.ids, one_batch(made, stage(batch=4), 6).ids)
    shares = []
    for rank in range(2):
        made.world = World(rank, 2)
        shares.append(one_batch(made, stage(batch=4), 5))
    starts = whole.starts.tolist()
    ids = [whole.ids[a:b] for a, b in pairwise(starts)]
    assert torch.equal(shares[0].ids, torch.cat(ids[0::2]))
    assert torch.equal(shares[1].ids, torch.cat(ids[1::2]))


def test_glyph_slots_name_characters_left_to_right():
    placed = layout((224, 224), PRESETS["POCKET"])
    glyphs = [
        Glyph("b", 7, 0, 13, 10),
        Glyph("a", 0, 0, 6, 10),
        Glyph("Z", 14 * 3 + 1, 14 * 2 + 1, 14 * 3 + 8, 14 * 2 + 9),
    ]
    labels = glyph_slots(glyphs, placed, 14)
    assert labels.shape == (1, 256, 3)
    assert labels[0, 0].tolist() == [char_class("a"), char_class("b"), 0]
    assert labels[0, 2 * 16 + 3].tolist() == [char_class("Z"), 0, 0]
    assert int((labels > 0).sum()) == 3
    assert (char_class("!"), char_class("~"), char_class("é")) == (1, 94, 96)


def test_alignment_puts_each_token_under_its_ink(run):
    made = run()
    batch = one_batch(made, stage(), 0)
    found = made.learner.targets(batch)
    letters = [made.learner.tokenizer.decode([token]).strip() for token in found.tokens]
    drawn = [glyph.char for picture in batch.glyphs for glyph in picture]
    assert sorted(letter for letter in letters if letter) == sorted(drawn * 2)  # once in the map, once in the overview
    assert int(found.places.max()) < sum(placed.tokens for placed in batch.layouts)


@pytest.mark.parametrize("size", [(224, 224), (448, 224), (300, 200)])
def test_visual_tokens_inside_of_a_thing_have_its_words(tokenizer, size):
    placed = layout(size, PRESETS["POCKET"])
    left = Named(("cat", "red"), 0, 0, size[0] / 2, size[1])
    places = inside(placed, left)
    first = placed.side**2 if placed.overview else 0
    width = placed.map[1] + placed.newline
    cols = [place % placed.side if place < first else (place - first) % width for place in places]
    sides = [placed.side if place < first else placed.map[1] for place in places]
    assert max(col / side for col, side in zip(cols, sides, strict=True)) < 0.5
    assert len(places) > 0.3 * placed.map[0] * placed.map[1] / 2
    assert set(places) < set(range(placed.tokens))
    none = torch.zeros(0)
    batch = Batch(none, none, none, none, none, (placed, placed), ((), ()), ((left,), ()))
    found = Labeller(tokenizer, 14).targets(batch)
    assert sorted(set(found.places.tolist())) == places
    assert tokenizer.decode(found.tokens[: len(" cat red")]) == " cat red"  # a token a byte
    assert len(found.tokens) == len(places) * len(" cat red")
    assert not len(found.views)  # nothing to read on it


def test_words_are_cut_at_spaces_and_line_ends():
    def line(text, y):
        return [Glyph(c, 10 * i, y, 10 * i + 8, y + 12) for i, c in enumerate(text) if c != " "]

    words = split_words(line("ab cd", 0) + line("ef", 20))
    assert ["".join(glyph.char for glyph in word) for word in words] == ["ab", "cd", "ef"]


def test_learning_rate_warms_up_stays_and_falls():
    made = stage(steps=100, warmup=10, decay=0.2, floor=0.05)
    factors = [factor(made, step, 100) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[10:80] == [1.0] * 70
    assert factors[90] == pytest.approx(0.5)
    assert factors[99] == pytest.approx(0.05)


WORKER = """
import json, sys, torch
sys.path[:0] = {paths!r}
import conftest, test_train
from pumice.train import checkpoint as checkpoints
from _pytest.monkeypatch import MonkeyPatch
from pathlib import Path
from pumice.train.dense import DenseHead
from pumice.train.loop import Run
from pumice.train.objectives import Learner
from pumice.train.parallel import join_world, leave_world
tokenizer = conftest.tokenizer.__wrapped__()
processor = conftest.processor.__wrapped__(tokenizer, conftest.policy.__wrapped__())
test_train.render_small(MonkeyPatch())
model = conftest.tiny_model(len(tokenizer))
torch.manual_seed(1)
world = join_world()
head = DenseHead(24, model.lm.config.vocab_size)
run = Run(Learner(model, head, tokenizer), processor, 0, Path(sys.argv[1]), world, lambda *_: None)
done = checkpoints.checkpoints(run.out / "checkpoints")
step = 0
if done:
    step = checkpoints.read_state(done[-1])["step"]
    checkpoints.load_training_state(done[-1], run.learner)
run.stop = lambda: len(sys.argv) > 3
test_train.train_stage(run, test_train.stage(batch=4, dense_weight=0.5), step, done[-1] if done else None)
if world.main:
    torch.save([p.detach() for p in model.parameters()], sys.argv[2])
leave_world(world)
"""


def test_two_workers_learn_what_one_learns_and_one_goes_on(tmp_path):
    import subprocess
    import sys

    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(paths=[str(Path(__file__).parent)]))

    def work(workers: int, out: str, *stop: str) -> list[torch.Tensor]:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
        arguments = [str(script), str(tmp_path / out), str(tmp_path / f"{out}.pt"), *stop]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return torch.load(tmp_path / f"{out}.pt", weights_only=True)

    alone, together = work(1, "alone"), work(2, "together")
    assert all(torch.allclose(a, b, atol=2e-5) for a, b in zip(alone, together, strict=True))
    assert json.loads((tmp_path / "together/checkpoints/answer-00000006/state.json").read_text())["workers"] == 2
    work(2, "changed", "stop after a step")
    assert [path.name for path in (tmp_path / "changed/checkpoints").iterdir()] == ["answer-00000001"]
    changed = work(1, "changed")  # one worker goes on with what two began
    assert all(torch.allclose(a, b, atol=2e-5) for a, b in zip(alone, changed, strict=True))


def test_a_signal_to_the_command_reaches_its_workers(tmp_path):
    import signal
    import subprocess
    import sys
    import time

    launcher = tmp_path / "launcher.sh"
    launcher.write_text(f"#!/bin/sh\ntrap 'touch {tmp_path}/told; exit 1' TERM\ntouch {tmp_path}/up\nread held\n")
    launcher.chmod(0o755)
    script = "import sys; from pumice.train import run; sys.executable = sys.argv[1]; run._spawn(2)"
    command = subprocess.Popen(
        [sys.executable, "-c", script, str(launcher)], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not (tmp_path / "up").exists():
        assert command.poll() is None
        time.sleep(0.1)
    command.send_signal(signal.SIGTERM)
    assert "the same command continues from the last checkpoint" in command.communicate(timeout=60)[1]
    assert (tmp_path / "told").exists()


@pytest.mark.slow
def test_the_command_trains_with_two_workers_and_goes_on(tmp_path):
    import subprocess
    import sys

    from pumice.pocket.parts import PARTS, cache_dir, verify

    if not all(verify(cache_dir() / name) for name in PARTS):
        pytest.skip("the pocket model's parts are not in the cache; make demo fetches them")
    recipe = Path(__file__).parents[1] / "recipes" / "tiny.toml"
    command = [
        sys.executable,
        "-m",
        "pumice.cli",
        "train",
        str(recipe),
        "--workers",
        "2",
        "--out",
        str(tmp_path / "run"),
    ]
    fast = ["stages.align=false", "stages.answer=false", "stages.read.data={lines = 1.0}", "stages.read.eval_every=0"]
    done = subprocess.run([*command, *fast], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len((tmp_path / "run/log.jsonl").read_text().splitlines()) == 2  # one log, whatever the number of workers
    assert pumice.load(str(tmp_path / "run")).model.tower.side == 16
    again = subprocess.run([*command, *fast, "stages.read.steps=4", "--resume"], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr[-2000:]
    steps = [json.loads(line)["step"] for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]


def test_targets_made_where_batches_are_read_are_those_made_later(run):
    made, chosen = run(), stage(batch=4, dense_weight=0.5, align_weight=0.5)
    made.learner.dense_weight, made.learner.align_weight = 0.5, 0.5
    batch = one_batch(made, chosen, 0)
    label = made.learner.labeller("answer").label
    ((read,),) = steps_of(feed(made, chosen), [0], 0, 1, loaders=1, finish=label)
    assert not any(read.glyphs)
    later, before = (OBJECTIVES["answer"](made.learner, one) for one in (batch, read))
    for here, there in zip(later, before, strict=True):
        assert (here.name, here.items, here.right) == (there.name, there.items, there.right)
        assert torch.equal(here.total, there.total)
    counts = {term.name: float(term.count) for term in later}
    assert {term.name: float(term.count) for term in term_counts(made.learner, "answer", read)} == counts


def keeping(made: Run, weight: float) -> tuple[Batch, torch.Tensor]:
    """(a page of text and a picture of noise in one batch, the noise's tile); the teacher is in place."""
    made.learner.teacher, made.learner.keep_weight = deepcopy(made.learner.model.tower), weight
    text = one_batch(made, stage("read"), 0)
    shown = pack([encode(conversation(5, (28, 28), "what?", "noise"), made.processor)])
    tiles, layouts = torch.cat([text.tiles, shown.tiles]), text.layouts + shown.layouts
    return replace(
        shown, tiles=tiles, layouts=layouts, glyphs=(*text.glyphs, ()), things=((),) * len(layouts)
    ), shown.tiles


def test_the_loss_that_keeps_counts_pictures_without_known_characters(run):
    made = run()
    batch, _ = keeping(made, 2.0)
    term = OBJECTIVES["read"](made.learner, batch)[-1]
    assert (term.name, float(term.count), term.weight) == ("keep", 4.0, 2.0)
    assert float(term.total.detach()) == pytest.approx(0.0, abs=1e-5)
    assert float(term_counts(made.learner, "read", batch)[-1].count) == 4.0


def test_a_tower_can_be_held_to_what_it_knew(run, monkeypatch):
    moved = []
    for weight in (0.0, 20.0):
        made = run(f"keep-{weight}")
        batch, tile = keeping(made, weight)
        monkeypatch.setattr("pumice.train.loop.batches_of", lambda *_, batch=batch: iter([[batch]] * 6))
        train_stage(made, stage("read", keep_weight=weight))
        before, after = made.learner.teacher(tile), made.learner.model.tower(tile)
        moved.append(float((1 - torch.cosine_similarity(before, after, dim=-1)).mean().detach()))
    assert moved[1] < 0.3 * moved[0]


def test_a_batch_without_text_teaches_no_reading_and_breaks_nothing(run):
    made = run()
    shown = pack([encode(conversation(5, (28, 28), "what?", "noise"), made.processor)])
    made.learner.dense_weight = 1.0
    for objective, terms in (("read", 1), ("align", 2), ("answer", 2)):
        found = OBJECTIVES[objective](made.learner, shown)
        (read,) = [term for term in found if term.name == "read"]
        assert (len(found), float(read.total.detach()), float(read.count)) == (terms, 0.0, 0.0)
        sum(term.total for term in found).backward()
