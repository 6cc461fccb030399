"""Evidence: visual tokens lie where their pixels are, attention is the model's own, and regions follow it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import TILE, conversation, picture, tiny_model
from PIL import Image
from test_pdf import pdf
from test_video import film
from torch.nn import functional as F
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

import pumice
from pumice.assistant import Assistant
from pumice.data.batch import pack
from pumice.encode import encode
from pumice.evidence import Plane, answer_tokens, answered, evidence, heat, join, planes, regions, visual_attention
from pumice.messages import question_messages, to_sample
from pumice.model.assistant import AssistantModel
from pumice.model.merge import merge_views
from pumice.templates import TEMPLATES, get_template
from pumice.types import IMAGE, Features, PumiceError
from pumice.vision.frames import VIDEO_PRESETS, VideoPolicy, video_layout
from pumice.vision.layout import PRESETS, layout
from pumice.vision.pixels import frame_tiles, to_tiles

SIZES = [(640, 480), (300, 1100), (1000, 90), (224, 224), (97, 130)]


def ramp(size: tuple[int, int]) -> Image.Image:
    """A picture whose red says how far right a pixel is, and green how far down."""
    across = Image.linear_gradient("L").rotate(90).resize(size)
    return Image.merge("RGB", (across, Image.linear_gradient("L").resize(size), across))


def where(tiles: torch.Tensor, placed: Any) -> torch.Tensor:
    """What visual tokens show of a ramp: (tokens, 2), x and y in fractions; -1 in newlines."""
    views = F.adaptive_avg_pool2d(tiles[:, :2], placed.side).flatten(2).mT
    return merge_views(views, placed, torch.full((2,), -1.0))


def check_places(shown: torch.Tensor, placed: Any) -> int:
    """Compare every cell that is whole with the pixels in its token; how many tokens lie in planes."""
    seen = 0
    for plane in planes(placed):
        xs, ys = torch.tensor(plane.xs), torch.tensor(plane.ys)
        found = torch.stack([plane.of(shown[:, 0]), plane.of(shown[:, 1])], -1)
        expected = torch.stack(
            torch.meshgrid((xs[1:] + xs[:-1]) / 2, (ys[1:] + ys[:-1]) / 2, indexing="xy"), -1
        )  # (h, w, 2)
        wide, high = xs.diff(), ys.diff()
        whole = (high > 0.99 * high.max())[:, None] & (wide > 0.99 * wide.max())[None]
        error = ((found - expected).abs() / torch.tensor([float(wide.max()), float(high.max())]))[whole]
        noise = 2 / 255 / torch.tensor([float(wide.max()), float(high.max())])  # of 8 bits a pixel
        assert (error < 0.15 + noise).all()
        assert (found >= 0).all()
        seen += found[..., 0].numel()
    return seen


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_tokens_of_pictures_lie_where_their_pixels_are(preset, size):
    policy = PRESETS[preset]
    placed = layout(size, policy)
    tiles = to_tiles(ramp(size), placed, policy, (0, 0, 0), (1, 1, 1))
    newlines = placed.map[0] * placed.newline + placed.ends
    assert check_places(where(tiles, placed), placed) == placed.tokens - newlines


@pytest.mark.parametrize("size", [(640, 480), (300, 400)])
@pytest.mark.parametrize("preset", [*sorted(VIDEO_PRESETS), "slow and fast"])
def test_tokens_of_frames_lie_where_their_pixels_are(preset, size):
    slow = VideoPolicy(tile=336, side=24, pool="average", newline="frame", slow_every=3)
    placed = video_layout(4, size, VIDEO_PRESETS.get(preset, slow))
    tiles = frame_tiles([ramp(size)] * 4, placed, (0, 0, 0), (1, 1, 1))
    shown = where(tiles, placed)
    check_places(shown, placed)
    assert [plane.frame for plane in planes(placed)] == [0, 1, 2, 3]
    taken = torch.cat([plane.of(torch.arange(placed.tokens)).flatten() for plane in planes(placed)])
    assert torch.equal(taken, (shown[:, 0] >= 0).nonzero().squeeze(1))


def test_heat_of_the_overview_is_spread_over_the_map():
    placed = layout((640, 480), PRESETS["NEXT_CLIP"])
    scores = torch.zeros(placed.tokens)
    scores[24 * 6 + 18] = 2.0  # of the overview: row 6, column 18 of 24
    [(plane, grid)] = heat(placed, scores)
    assert float(grid.sum()) == pytest.approx(2.0, rel=1e-4)
    rows, cols = grid.nonzero().unbind(1)
    assert plane.ys[int(rows.min())] <= 6 / 24 < plane.ys[int(rows.min()) + 1]
    assert plane.xs[int(cols.max())] < 19 / 24 <= plane.xs[int(cols.max()) + 1] + 1e-6


def test_cells_join_to_regions():
    edges = (0.0, 0.25, 0.5, 0.75, 1.0)
    plane = Plane(edges, edges, 0, 4)
    grid = torch.tensor([[8.0, 4, 0, 0], [0, 0, 0, 0], [0, 0, 0, 2], [0, 1.9, 2, 0]])
    found = join([(3, plane, grid)], share=0.25, most=5)
    assert [(one.media, one.box, one.weight) for one in found] == [
        (3, (0.0, 0.0, 0.5, 0.25), 12 / 16),
        (3, (0.5, 0.5, 1.0, 1.0), 4 / 16),  # cells that touch by a corner
    ]
    assert [one.weight for one in join([(3, plane, grid)], 0.25, 1)] == [1.0]
    both = join([(0, plane, grid), (1, plane, grid / 10)], 0.25, 5)
    assert {one.media for one in both} == {0}  # what is low beside another picture isn't evidence
    assert join([(0, plane, torch.zeros(4, 4))], 0.25, 5) == []


# attention


def make_model(kind: str, vocabulary: int) -> AssistantModel:
    model = tiny_model(vocabulary)
    if kind == "gemma2":  # windows in every other layer, and bounded scores
        torch.manual_seed(0)
        config = Gemma2Config(
            vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, sliding_window=30, query_pre_attn_scalar=8, attn_logit_softcapping=2.0,
        )  # fmt: skip
        lm = Gemma2ForCausalLM(config)
        with torch.no_grad():
            for parameter in lm.parameters():
                parameter.mul_(3.0)
        model = AssistantModel(model.tower, model.connector, lm).eval()
    return model


def told(processor: Any, *sizes: tuple[int, int], answer: str = "12.50 Kr") -> tuple[Features, slice]:
    """Several pictures of noise, a question and its answer."""
    pictures: list[Any] = [picture(i, size) for i, size in enumerate(sizes)]
    sample = answered(to_sample(question_messages(pictures, "What is the total?")), answer)
    return encode(sample, processor), answer_tokens(sample, processor)


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_attention_is_transformers_own(kind, tokenizer, processor):
    model = make_model(kind, len(tokenizer))
    features, span = told(processor, (50, 50), (28, 56), answer="a long answer, of more tokens than a chunk of " * 2)
    assert span.stop - span.start > 64
    with torch.inference_mode():
        found = visual_attention(model, features, span)
        batch = pack([features])
        model.lm.set_attn_implementation("eager")
        paid = model.lm.model(
            inputs_embeds=model.embed(batch)[None], position_ids=batch.positions[None], use_cache=False,
            output_attentions=True,
        ).attentions  # fmt: skip
    weights = torch.cat(paid)[:, :, span.start - 1 : span.stop - 1]  # (layers, heads, rows, T)
    expected = weights.mean((0, 1, 2))[features.ids == IMAGE]
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-8)


def planted(model: AssistantModel, features: Features, number: int) -> AssistantModel:
    """A model of one layer whose every token looks at visual token ``number`` alone.

    Queries are constant and lie in the slowest rotary pair, which doesn't turn; keys there are fitted to the token.
    """
    config = LlamaConfig(
        vocab_size=model.lm.config.vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, attention_bias=True, max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 1e12},
    )  # fmt: skip
    lm = LlamaForCausalLM(config)
    lm.set_input_embeddings(model.lm.get_input_embeddings())
    made, layer = AssistantModel(model.tower, model.connector, lm).eval(), lm.model.layers[0]
    made.newline.data.copy_(model.newline)
    with torch.inference_mode():
        batch = pack([features])
        seen = layer.input_layernorm(made.embed(batch))
        wanted = torch.zeros(len(seen))
        wanted[(batch.ids == IMAGE).nonzero()[number]] = 1.0
        fitted = torch.linalg.lstsq(seen, wanted[:, None]).solution[:, 0]
        scores = seen @ fitted
        assert scores.argmax() == wanted.argmax()
        slowest = torch.arange(4) * 8 + 3  # one dimension a head of 8
        layer.self_attn.q_proj.weight.zero_()
        layer.self_attn.q_proj.bias.zero_()[slowest] = 1.0
        layer.self_attn.k_proj.weight.zero_()[slowest[:2]] = 400 * fitted
        layer.self_attn.k_proj.bias.zero_()
    return made


WHOLE = (0.0, 0.0, 1.0, 1.0)
PATCHES = {
    0: (0, WHOLE),  # a wide picture: its overview, then a row of two tiles and a newline
    1: (0, (0.0, 0.0, 0.5, 1.0)),
    2: (0, (0.5, 0.0, 1.0, 1.0)),
    4: (1, WHOLE),  # a square one: its overview, then two rows of two tiles, each with a newline
    6: (1, (0.5, 0.0, 1.0, 0.5)),
    8: (1, (0.0, 0.5, 0.5, 1.0)),
    9: (1, (0.5, 0.5, 1.0, 1.0)),
}


@pytest.mark.parametrize("number", PATCHES)
def test_the_region_is_the_patch_that_the_model_looks_at(number, model, processor):
    features, span = told(processor, (2 * TILE, TILE), (2 * TILE, 2 * TILE))
    assert [placed.tokens for placed in features.layouts] == [4, 7]
    found = regions(planted(model, features, number), features, span)
    assert [(one.media, one.box) for one in found] == [PATCHES[number]]
    assert found[0].weight == pytest.approx(1)


# whole conversations


@pytest.fixture
def assistant(model, processor) -> Assistant:
    return Assistant(model, processor)


def test_regions_of_mixed_media(assistant, tmp_path):
    parts = [picture(1, (60, 30)), pdf(((100, 60), (60, 100))), film(tmp_path / "a.mp4"), picture(2, (40, 40))]
    found = evidence(assistant, question_messages(parts, "What?"), "an answer")
    assert found
    assert sum(one.weight for one in found) == pytest.approx(1)
    assert [one.weight for one in found] == sorted((one.weight for one in found), reverse=True)
    for one in found:
        assert 0 <= one.box[0] < one.box[2] <= 1
        assert 0 <= one.box[1] < one.box[3] <= 1
        assert one.media in range(5)  # the PDF has two pages
        assert (one.frame is not None) == (one.media == 3)


def test_evidence_leaves_answers_as_they_were(assistant):
    messages = question_messages(picture(1, (56, 56)), "What?")
    before = assistant.logits(messages)
    evidence(assistant, messages, "an answer")
    assert torch.equal(assistant.logits(messages), before)


def test_earlier_turns_and_bf16(tokenizer, processor):
    model = tiny_model(len(tokenizer)).bfloat16()
    first = question_messages(picture(1, (56, 56)), "What?")
    messages = [*first, {"role": "assistant", "content": "x"}, {"role": "user", "content": "And?"}]
    found = evidence(Assistant(model, processor), messages, "an answer")
    assert sum(one.weight for one in found) == pytest.approx(1)


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_the_answers_tokens_are_found(name, processor):
    processor = replace(processor, template=get_template(name))
    sample = answered(conversation(1, (56, 56), "What?", None), "an answer")
    ids = encode(sample, processor).ids[answer_tokens(sample, processor)]
    assert processor.tokenizer.decode(ids).strip() == "an answer"


@pytest.mark.parametrize("family", ["llava", "next", "onevision"])
def test_checkpoints_with_their_own_template(family, bases):
    opened = pumice.load(str(bases(family)), dtype="float32")
    sample = answered(conversation(1, (90, 60), "What?", None), "an answer")
    ids = encode(sample, opened.processor).ids[answer_tokens(sample, opened.processor)]
    assert opened.processor.tokenizer.decode(ids).strip() == "an answer"
    assert evidence(opened, question_messages([picture(1, (90, 60)), picture(2, (30, 30))], "What?"), "an answer")


def test_no_pictures_no_regions(assistant):
    assert evidence(assistant, question_messages([], "What?"), "an answer") == []


@pytest.mark.parametrize(
    ("answer", "words"),
    [(12, "the answer is int; expected text"), (None, "expected text"), (" \n", "the answer is blank")],
)
def test_answers_that_are_none(answer, words, assistant):
    with pytest.raises(PumiceError, match=words):
        evidence(assistant, question_messages(picture(1, (30, 30)), "What?"), answer)
    with pytest.raises(PumiceError, match=words):
        evidence(assistant, question_messages([], "What?"), answer)


def test_conversations_without_room_for_an_answer(assistant):
    messages = question_messages(picture(1, (30, 30)), "What?")
    with pytest.raises(PumiceError, match="ends in the assistant's words"):
        evidence(assistant, [*messages, {"role": "assistant", "content": "x"}], "x")
    with pytest.raises(PumiceError, match=r"has 20\d\d tokens, the model takes 1024"):
        evidence(assistant, messages, "x" * 2000)


def test_a_prompt_that_training_would_cut_is_refused(assistant):
    assistant.processor = replace(assistant.processor, cut=True)
    with pytest.raises(PumiceError, match="the model takes 1024"):
        evidence(assistant, question_messages(picture(1, (30, 30)), "What?"), "x" * 2000)
