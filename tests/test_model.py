"""Properties of the model: packing, caching and merging change no number; transformers gives the same ones."""

from __future__ import annotations

import pytest
import torch
from conftest import conversation
from torch.nn import functional as F

from pumice.assistant import Assistant
from pumice.data.batch import pack
from pumice.encode import encode
from pumice.engine.runner import complete
from pumice.messages import question_messages, to_sample
from pumice.model.merge import merge_views
from pumice.types import IMAGE, Features, PumiceError
from pumice.vision.layout import PRESETS, layout

CASES = [
    ((28, 28), "Hi?", "yes"),
    ((60, 30), "What is it?", "a"),
    (None, "No picture", "none at all"),
    ((20, 90), "x", "12.50"),
]


@pytest.fixture
def documents(processor) -> list[Features]:
    return [encode(conversation(i, *case), processor) for i, case in enumerate(CASES)]


def test_packed_logits_equal_separate_ones(model, documents):
    together = model.logits(pack(documents))
    apart = torch.cat([model.logits(pack([document])) for document in documents])
    assert torch.allclose(together, apart, atol=1e-5), (together - apart).abs().max()


def test_packed_gradients_equal_separate_ones(model, documents):
    def gradients(batches):
        model.zero_grad()
        terms = [model.answer_loss(pack(batch)) for batch in batches]
        (sum(loss for loss, _ in terms) / sum(count for _, count in terms)).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    together, apart = gradients([documents]), gradients([[document] for document in documents])
    assert together.keys() == apart.keys()
    assert {"newline", "connector.layers.0.weight", "tower.model.embeddings.cls_token"} <= together.keys()
    for name in together:
        assert torch.allclose(together[name], apart[name], atol=1e-5), name


def test_a_document_does_not_see_its_neighbour(model, processor, documents):
    other = encode(conversation(99, (28, 28), "Different", "words"), processor)
    first = model.logits(pack([documents[0], documents[1]]))
    second = model.logits(pack([other, documents[1]]))
    assert torch.allclose(first[len(documents[0]) :], second[len(other) :], atol=1e-5)


def test_logits_equal_transformers_own_attention(model, documents):
    batch = pack([documents[0]])
    ours = model.logits(batch)
    embedded = model.embed(batch)
    model.lm.set_attn_implementation("eager")
    theirs = model.lm(inputs_embeds=embedded[None]).logits[0]
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_loss_is_the_mean_over_answer_tokens_of_transformers_own_loss(model, documents):
    document = documents[1]
    total, count = model.answer_loss(pack([document]))
    logits = model.logits(pack([document]))
    expected = F.cross_entropy(logits[:-1], document.labels[1:], ignore_index=-100)
    assert count == int((document.labels != -100).sum())
    assert torch.allclose(total / count, expected, atol=1e-5)


def test_cached_decoding_equals_recomputing(model, processor):
    prompts = [
        encode(conversation(i, size, question, None), processor, prompt=True)
        for i, (size, question, _) in enumerate(CASES)
    ]
    fast = complete(model, prompts, stop_ids=(), max_tokens=9)
    for prompt, answer in zip(prompts, fast, strict=True):
        ids, logprob = prompt.ids, 0.0
        for _ in range(9):
            document = Features(ids, torch.full_like(ids, -100), prompt.tiles, prompt.layouts)
            scores = model.logits(pack([document]))[-1].log_softmax(-1)
            logprob += float(scores.max().detach())
            ids = torch.cat([ids, scores.argmax()[None]])
        assert ids[len(prompt) :].tolist() == answer.ids
        assert answer.logprob == pytest.approx(logprob, abs=1e-3)


def test_a_batch_of_different_pictures_equals_one_by_one(model, processor):
    from conftest import picture

    assistant = Assistant(model, processor)
    pairs = [(picture(i, size), question) for i, (size, question, _) in enumerate(CASES) if size]
    together = assistant.ask_many(pairs, max_tokens=6)
    for (image, question), answer in zip(pairs, together, strict=True):
        alone = assistant.ask(image, question, max_tokens=6)
        assert (alone.text, alone.tokens, alone.visual_tokens) == (answer.text, answer.tokens, answer.visual_tokens)
        assert alone.logprob == pytest.approx(answer.logprob, abs=1e-3)


def test_questions_about_one_picture_share_it_and_get_the_same_answers(model, processor):
    from conftest import picture

    assistant = Assistant(model, processor)
    one, other = picture(1, (90, 40)), picture(2, (90, 40))
    pairs = [(one, "What is it?"), (other, "What is it?"), (one, "How many, and why?"), (one, "x"), ([one, other], "x")]
    alone = [assistant.ask(*pair, max_tokens=6) for pair in pairs]
    seen: list[int] = []
    model.tower.register_forward_hook(lambda module, args, out: seen.append(out.shape[0]))
    assistant.ask_many(pairs, max_tokens=6)
    assert seen == []  # all is remembered
    assistant.forget()
    together = assistant.ask_many(pairs, max_tokens=6)
    # Five questions, but the tower sees one and other.
    assert sum(seen) == assistant.engine.count(to_sample(question_messages([one, other], "x"))).views
    assert len({answer.text for answer in alone}) > 2  # or a mix-up would not show
    for single, answer in zip(alone, together, strict=True):
        assert (single.text, single.prompt_tokens) == (answer.text, answer.prompt_tokens)
        assert single.logprob == pytest.approx(answer.logprob, abs=1e-3)


def test_streamed_pieces_are_the_answer(model, processor):
    from conftest import picture

    assistant = Assistant(model, processor)
    messages = [
        {"role": "user", "content": [{"type": "image", "image": picture(1, (40, 40))}, {"type": "text", "text": "?"}]}
    ]
    *pieces, answer = assistant.chat(messages, stream=True, max_tokens=12)
    assert "".join(pieces) == answer.text == assistant.chat(messages, max_tokens=12).text


def test_merge_puts_map_cells_in_reading_order_with_newlines():
    policy = PRESETS["POCKET"]
    placed = layout((448, 300), policy)
    side = placed.side
    views = torch.zeros(placed.views, side * side, 2)
    for view in range(placed.views):
        views[view, :, 0] = view
        views[view, :, 1] = torch.arange(side * side)
    merged = merge_views(views, placed, torch.tensor([-1.0, -1.0]))
    assert merged.shape[0] == placed.tokens
    body = merged[side * side :].view(placed.map[0], placed.map[1] + 1, 2)
    assert (body[:, -1] == -1).all()
    assert (merged[: side * side, 0] == 0).all()  # the overview first
    top = placed.keep[0]
    assert body[0, 0].tolist() == [1, top * side]  # then the first kept row of tile 1 ...
    assert body[0, side].tolist() == [2, top * side]  # ... which goes on in tile 2


def test_wrong_numbers_of_views_or_tokens_raise_with_both(model, documents):
    batch = pack(documents)
    with pytest.raises(PumiceError, match=r"found 1"):
        merge_views(torch.zeros(1, 1, 4), batch.layouts[1], None)
    broken = Features(documents[0].ids[1:], documents[0].labels[1:], documents[0].tiles, documents[0].layouts)
    assert int((broken.ids == IMAGE).sum()) == batch.layouts[0].tokens  # only markup was cut: still fine
    pack([broken])
    broken = Features(documents[0].ids[-3:], documents[0].labels[-3:], documents[0].tiles, documents[0].layouts)
    with pytest.raises(PumiceError, match="0 visual tokens"):
        pack([broken])
