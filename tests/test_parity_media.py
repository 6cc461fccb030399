"""Videos, PDFs and mixed batches as a whole: files in, and transformers' numbers out.

transformers' video processors need torchvision, which isn't used here. What they do (LLaVA-NeXT-Video: shortest side,
middle cut out; OneVision: squashed) is done by transformers' image processors of the same towers; how many tokens stand
for a video is said by the methods of transformers' own processors.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from hf_models import CHAT, TILE, make_model, make_processor, make_tokenizer, noise, save_folder
from PIL import Image
from test_pdf import pdf
from test_video import film

import pumice
from pumice.assistant import Assistant
from pumice.encode import encode
from pumice.engine.runner import complete
from pumice.messages import question_messages, to_sample

VIDEO_FAMILIES = ("next-video", "onevision")
BATCHED = ("llava", "next", "onevision")


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> Any:
    """A family's transformers model, and the assistant opened from the folder that it was saved in; made once."""

    @cache
    def made(family: str) -> tuple[Any, Assistant]:
        tokenizer = make_tokenizer()
        folder = tmp_path_factory.mktemp(family)
        model = make_model(family, tokenizer)
        save_folder(folder, family, tokenizer, model)
        return model, pumice.load(str(folder), dtype="float32")

    return made


def without_video_processor(family: str) -> Any:
    """transformers' processor of a family with videos, its parts put in place by hand."""
    from transformers import LlavaNextVideoProcessor, LlavaOnevisionProcessor

    kind = LlavaNextVideoProcessor if family == "next-video" else LlavaOnevisionProcessor
    made: Any = kind.__new__(kind)
    made.image_processor = make_processor(family, make_tokenizer()).image_processor
    made.image_token, made.video_token, made.patch_size = "<image>", "<video>", 14
    made.num_image_tokens, made.num_additional_image_tokens = (TILE // 14) ** 2, 1
    made.vision_feature_select_strategy = "default" if family == "next-video" else "full"
    made.vision_aspect_ratio = "anyres_max_9"
    return made


def frame_processor(family: str) -> Any:
    """What resizes, cuts and normalises a frame as the family's video processor does."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    square = {"height": TILE, "width": TILE}
    if family == "next-video":
        return CLIPImageProcessorPil(size={"shortest_edge": TILE}, crop_size=square)
    half = [0.5, 0.5, 0.5]
    return SiglipImageProcessorPil(size=square, image_mean=half, image_std=half, resample=Image.Resampling.BICUBIC)


def frames_of(path: Path, family: str, turns: int) -> list[Image.Image]:
    """Every frame decoded, the ones of the originals' rule chosen, turned by ``turns`` quarters to the left."""
    with av.open(str(path)) as file:
        rate = float(file.streams.video[0].average_rate or 0)
        every = [np.rot90(frame.to_ndarray(format="rgb24"), turns) for frame in file.decode(video=0)]
    chosen = list(range(0, len(every), round(rate)))
    if family == "next-video" or len(chosen) > 32:
        chosen = np.linspace(0, len(every) - 1, 32, dtype=int).tolist()
    return [Image.fromarray(np.ascontiguousarray(every[i])) for i in chosen]


def fed(family: str, texts: Sequence[str], pictures: Sequence[Sequence[Image.Image]], clips: Sequence[Any]) -> Any:
    """transformers' inputs for rendered conversations: their pictures, and the frames of all their videos in order."""
    tokenizer, processor = make_tokenizer(), without_video_processor(family)
    inputs: dict[str, Any] = {}
    if any(pictures):
        # OneVision takes a list a conversation: a flat one would be one picture a conversation.
        images = [*pictures] if family == "onevision" else [one for several in pictures for one in several]
        inputs |= dict(processor.image_processor(images=images, return_tensors="pt"))
    if clips:
        squeeze = frame_processor(family)
        pixels = [squeeze(images=clip, return_tensors="pt")["pixel_values"] for clip in clips]
        inputs["pixel_values_videos"] = torch.stack(pixels)
    written, images, videos = [], 0, 0
    for text in texts:
        for mark in ("<image>", "<video>"):
            before, *after = text.split(mark)
            text = before
            for rest in after:
                if mark == "<image>":
                    text, images = text + processor.replace_image_token(inputs, images) + rest, images + 1
                else:
                    text, videos = text + processor.replace_video_token(inputs, videos) + rest, videos + 1
        written.append(text)
    return inputs | dict(tokenizer(written, return_tensors="pt", padding=True, add_special_tokens=False))


def rendered(messages: list[dict[str, Any]]) -> str:
    return make_tokenizer().apply_chat_template(
        messages, chat_template=CHAT, tokenize=False, add_generation_prompt=True
    )


def said(*parts: Any) -> list[dict[str, Any]]:
    """A question of texts, pictures and paths of videos."""
    kinds = {str: "text", Image.Image: "image"}
    content = []
    for part in parts:
        kind = "video" if isinstance(part, Path) else kinds[type(part)]
        content.append({"type": kind, kind: str(part) if kind == "video" else part})
    return [{"role": "user", "content": content}]


@torch.no_grad()
def close(opened: Any, family: str, messages: list[dict[str, Any]], pictures: list[Any], clips: list[Any]) -> None:
    """Asserts that logits over the conversation are transformers'."""
    model, assistant = opened(family)
    expected = model(**fed(family, [rendered(messages)], [pictures] if pictures else [], clips)).logits[0]
    found = assistant.logits(messages)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max().clamp(min=1.0)


CLIPS: dict[str, tuple[dict[str, Any], int]] = {
    "one frame": ({"frames": 1}, 0),
    "eight frames": ({"frames": 8}, 0),
    "eight frames, two a second": ({"frames": 8, "rate": 2, "codec": "libx264"}, 0),
    "forty frames": ({"frames": 40, "gop": 7}, 0),
    "forty frames, one a second": ({"frames": 40, "rate": 1, "gop": 7}, 0),
    "33 frames, one a second": ({"frames": 33, "rate": 1, "codec": "libx264"}, 0),
    "32 frames, one a second": ({"frames": 32, "rate": 1}, 0),
    "very wide": ({"frames": 9, "rate": 3, "size": (322, 34)}, 0),
    "very tall": ({"frames": 9, "rate": 3, "size": (34, 322)}, 0),
    "odd sides": ({"frames": 9, "rate": 3, "size": (75, 51)}, 0),
    "as large as a tile": ({"frames": 9, "rate": 3, "size": (56, 56)}, 0),
    "on its side": ({"frames": 40, "rate": 1, "rotation": 90}, 1),
    "on its other side": ({"frames": 5, "rate": 1, "rotation": -90, "size": (90, 48)}, -1),
    "on its head": ({"frames": 5, "rate": 2, "rotation": 180, "size": (90, 48)}, 2),
}


@pytest.mark.parametrize("family", VIDEO_FAMILIES)
@pytest.mark.parametrize("clip", CLIPS)
def test_a_video_file_gives_transformers_logits(opened, family, clip, tmp_path):
    fields, turns = CLIPS[clip]
    path = film(tmp_path / "a.mp4", **fields)
    close(opened, family, said(path, "What moves?"), [], [frames_of(path, family, turns)])


@pytest.mark.parametrize("family", VIDEO_FAMILIES)
def test_a_video_beside_pictures(opened, family, tmp_path):
    path, one, other = film(tmp_path / "a.mp4", 12, rate=4), noise(1, (90, 60)), noise(2, (40, 130))
    frames = frames_of(path, family, 0)
    close(opened, family, said(one, path, "Which?"), [one], [frames])
    close(opened, family, said("First ", path, "then ", one, "Which?"), [one], [frames])
    close(opened, family, said(one, path, "and ", other), [one, other], [frames])
    talk = [*said(path, "What?"), {"role": "assistant", "content": [{"type": "text", "text": "That."}]}]
    close(opened, family, talk + said(one, "And this?"), [one], [frames])


@pytest.mark.parametrize("family", VIDEO_FAMILIES)
def test_two_videos(opened, family, tmp_path):
    """transformers stacks videos, so that they need as many sampled frames."""
    first = film(tmp_path / "a.mp4", 12, rate=4)
    second = film(tmp_path / "b.mp4", 9, rate=3, size=(96, 34), codec="libx264")
    clips = [frames_of(path, family, 0) for path in (first, second)]
    close(opened, family, said(first, second, "Which?"), [], clips)
    close(opened, family, said(second, "or ", first, "?"), [], clips[::-1])


@pytest.mark.parametrize("family", VIDEO_FAMILIES)
@pytest.mark.parametrize("clip", ["eight frames, two a second", "on its side"])
def test_greedy_answers_about_a_video_are_those_of_transformers(opened, family, clip, tmp_path):
    model, assistant = opened(family)
    fields, turns = CLIPS[clip]
    path, picture = film(tmp_path / "a.mp4", **fields), noise(3, (120, 80))
    for messages, pictures in ((said(path, "What moves?"), []), (said(path, picture, "Which?"), [picture])):
        inputs = fed(family, [rendered(messages)], [pictures] if pictures else [], [frames_of(path, family, turns)])
        (stop,) = assistant.processor.stop_ids
        assert greedy(assistant, [messages], stop) == generated(model, inputs, stop)


def greedy(assistant: Assistant, conversations: Sequence[list[dict[str, Any]]], stop: int) -> list[list[int]]:
    """Our answers to a batch, each up to the token ``stop``."""
    prompts = [encode(to_sample(messages), assistant.processor, prompt=True) for messages in conversations]
    return [done.ids for done in complete(assistant.model, prompts, [stop], 12)]


@torch.no_grad()
def generated(model: Any, inputs: dict[str, Any], stop: int) -> list[list[int]]:
    """transformers' answers to a batch, each up to the token ``stop``."""
    rows = model.generate(**inputs, max_new_tokens=12, do_sample=False, eos_token_id=stop, pad_token_id=stop)
    answers = rows[:, inputs["input_ids"].shape[1] :].tolist()
    return [row[: row.index(stop)] if stop in row else row for row in answers]


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> list[tuple[Any, str]]:
    """Everything that can be asked about, some of it twice."""
    folder = tmp_path_factory.mktemp("media")
    report, clip = folder / "report.pdf", film(folder / "clip.mp4", 12, rate=4)
    report.write_bytes(pdf([(300, 400), (400, 200)]))
    shared = noise(9, (130, 90))
    sizes = [(56, 56), (90, 60), (30, 300), (200, 200), (7, 3)]
    return [
        *((noise(i, size), f"What is it? {i}") for i, size in enumerate(sizes)),
        (noise(21, (90, 60)), "What is it? 1"),  # another picture of the same size
        ([], "Who are you?"),
        ([noise(11, (80, 60)), noise(12, (60, 80))], "Which one?"),
        (shared, "What is it?"),
        (f"{report}#1", "What is the title?"),
        (str(clip), "What moves?"),
        (shared, "A longer question about the same picture, if you please: what is it?"),
        (str(report), "How many pages?"),
        ([shared, str(clip), f"{report}#2"], "And now?"),
        ([], "Hello! " * 20),
        (str(clip), "What stands still?"),
        ([noise(11, (80, 60)), noise(12, (60, 80))], "Which other?"),
    ]


@pytest.mark.parametrize("family", ["llava", "next-mistral", "next-video", "onevision"])
def test_a_mixed_batch_gives_the_answers_of_each_alone(opened, questions, family):
    _, assistant = opened(family)
    alone = [assistant.ask(pictures, question, max_tokens=8) for pictures, question in questions]
    assert len({answer.text for answer in alone}) > len(questions) // 2  # the answers depend on the questions
    for order in (1, -1):
        for batch in (3, 16):
            together = assistant.ask_many(questions[::order], max_tokens=8, batch=batch)[::order]
            for one, other in zip(alone, together, strict=True):
                assert (other.text, other.tokens, other.finish) == (one.text, one.tokens, one.finish)
                assert (other.prompt_tokens, other.visual_tokens) == (one.prompt_tokens, one.visual_tokens)
                assert other.logprob == pytest.approx(one.logprob, abs=1e-3)


MIXED: list[list[tuple[int, int]]] = [
    [(90, 60)], [], [(200, 200)], [(30, 300)], [(80, 60), (60, 80)], [(56, 56)], [], [(56, 112), (7, 3), (112, 112)],
]  # fmt: skip


@pytest.mark.parametrize("family", BATCHED)
@pytest.mark.parametrize("rows", [range(8), [0, 2, 3, 5], [1, 0, 6]], ids=["all", "one picture each", "mostly texts"])
def test_a_mixed_batch_gives_transformers_answers(opened, family, rows):
    """transformers pads the prompts at the left and the tiles of smaller pictures; here nothing is padded."""
    model, assistant = opened(family)
    pictures = [[noise(10 * row + i, size) for i, size in enumerate(MIXED[row])] for row in rows]
    conversations = [
        question_messages(several, "What is it? " * (row % 3 + 1)) for row, several in zip(rows, pictures, strict=True)
    ]
    texts = [rendered(messages) for messages in conversations]
    if family == "onevision":
        inputs = fed(family, texts, [several for several in pictures if several], [])
    else:
        flat = [one for several in pictures for one in several]
        processor = make_processor(family, make_tokenizer())
        inputs = processor(images=flat, text=texts, padding=True, return_tensors="pt")
    assert bool((inputs["attention_mask"] == 0).any())  # it is padded
    (stop,) = assistant.processor.stop_ids
    whole = greedy(assistant, conversations, stop)
    assert whole == generated(model, inputs, stop)
    stop = whole[0][5]  # some answers now end early, and the others go on
    assert len({len(answer) for answer in greedy(assistant, conversations, stop)}) > 1
    assert greedy(assistant, conversations, stop) == generated(model, inputs, stop)
