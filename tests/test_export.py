"""Originals written as llava-hf's give the numbers that they had, in transformers and here; so do all ways back."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hf_models import FAMILIES, GRIDS, OV_GRIDS, TILE, TINY, ByHand, make_model, noise, save_folder
from hf_models import language_model as lm_config
from hf_models import make_tokenizer as hf_tokenizer
from safetensors.torch import load_file, save_file

import pumice
from pumice.chat import spans
from pumice.cli import main
from pumice.encode import encode
from pumice.formats.export import export
from pumice.formats.jinja import to_jinja
from pumice.formats.section import read_section
from pumice.messages import to_sample
from pumice.templates import TEMPLATES
from pumice.types import IMAGE, Media, PumiceError, Turn
from pumice.vision.layout import layout

CHATML, LLAMA_3 = ("<|im_start|>", "<|im_end|>"), ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>")


class Case(NamedTuple):
    """An original checkpoint: its language model, tower, and what its config says of pictures."""

    lm: str
    tower: str
    layout: dict[str, Any]
    marks: tuple[str, ...] = ("</s>",)
    rows: int | None = None
    tied: bool = False


FLAT, UNPAD = {"mm_patch_merge_type": "flat"}, {"mm_patch_merge_type": "spatial_unpad"}
NEXT = {"image_aspect_ratio": "anyres", **UNPAD, "image_grid_pinpoints": GRIDS}
OV = {"image_aspect_ratio": "anyres_max_9", **UNPAD, "image_grid_pinpoints": OV_GRIDS}
VIDEO = {"mm_newline_position": "one_token", "mm_spatial_pool_mode": "bilinear"}
CASES = {
    "llava": Case("llama", "clip", {"image_aspect_ratio": "pad", **FLAT}),
    "llava-square": Case("mistral", "clip", {"image_aspect_ratio": "square"}),
    "llava-siglip": Case("qwen2", "siglip", {"image_aspect_ratio": "pad", **FLAT}, CHATML),
    "next": Case("llama", "clip", NEXT, (*LLAMA_3, "<|eot_id|>")),
    "next-mistral": Case("mistral", "clip", NEXT),
    "next-siglip": Case("qwen2", "siglip", NEXT, CHATML),
    "onevision": Case("qwen2", "siglip", {**OV, **VIDEO}, CHATML),
    "onevision-room": Case("qwen2", "siglip", OV, CHATML, rows=300),
    "onevision-tied": Case("qwen2", "siglip", OV, CHATML, tied=True),
}
CLASSES = {"llava": "Llava", "next": "LlavaNext", "onevision": "LlavaOnevision"}

SIZES = [(30, 2000), (337, 335), (4000, 500), (112, 56), (113, 113), (90, 200)]
ONE_GRID = [(1, 1), (40, 50)]
"""Smaller than a tile: LLaVA-NeXT's grids of two tiles are then equally good."""
SEVERAL = [[(80, 60), (60, 80)], [(1, 1), (200, 100), (33, 44)]]


def tokenizer_of(marks: tuple[str, ...], begins: bool = False) -> Any:
    """Byte-level BPE without merges and without <image>; with ``begins`` it puts <s> before every text by itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=marks[-1], **({"bos_token": "<s>"} if begins else {})
    )
    made.add_special_tokens({"additional_special_tokens": list(marks)})
    if begins:
        pair = [("<s>", made.bos_token_id)]
        made.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=pair)
    return made


def write_original(folder: Path, case: Case, with_tower: bool = True, begins: bool = False, **fields: Any) -> Path:
    """A tiny random checkpoint as the original repositories write it; its tower's own folder, which is returned."""
    import transformers

    torch.manual_seed(0)
    tokenizer = tokenizer_of(case.marks, begins)
    text = lm_config(case.lm, case.rows or len(tokenizer))
    text.tie_word_embeddings, text.eos_token_id = case.tied, tokenizer.eos_token_id
    lm = transformers.AutoModelForCausalLM.from_config(text)
    name = {"clip": "CLIPVision", "siglip": "SiglipVision"}[case.tower]
    vision = getattr(transformers, f"{name}Config")(**TINY, num_hidden_layers=3, image_size=TILE, patch_size=14)
    tower = getattr(transformers, f"{name}Model")(vision)
    with torch.no_grad():
        for parameter in (*lm.parameters(), *tower.parameters()):
            parameter.mul_(2.0) if parameter.dim() > 1 else parameter.add_(0.1 * torch.randn_like(parameter))
    width, seen = text.hidden_size, tower.state_dict()
    weights = {n: v for n, v in lm.state_dict().items() if not (case.tied and n == "lm_head.weight")}
    weights |= {"model.mm_projector.0.weight": torch.randn(width, vision.hidden_size) * 0.3}
    weights |= {"model.mm_projector.2.weight": torch.randn(width, width) * 0.3}
    weights |= {f"model.mm_projector.{i}.bias": torch.randn(width) * 0.1 for i in (0, 2)}
    weights |= {"model.image_newline": torch.randn(width)}
    if with_tower:  # what follows SigLIP's block before the last is deleted in the originals
        kept = {
            n: v for n, v in seen.items() if case.tower == "clip" or not n.startswith(("encoder.layers.2.", "head."))
        }
        weights |= {f"model.vision_tower.vision_tower.vision_model.{n}": v for n, v in kept.items()}
    beside = folder.with_name(f"{folder.name}-tower")
    beside.mkdir(parents=True)
    save_file({f"vision_model.{n}": v.clone() for n, v in seen.items()}, beside / "model.safetensors")
    (beside / "config.json").write_text(json.dumps({**vision.to_dict(), "model_type": vision.model_type}))
    folder.mkdir(exist_ok=True)
    save_file({n: v.contiguous().clone() for n, v in weights.items()}, folder / "model.safetensors")
    kind = {"llama": "llava_llama", "mistral": "llava_mistral", "qwen2": "llava_qwen"}[case.lm]
    mm = {"mm_projector_type": "mlp2x_gelu", "mm_vision_tower": str(beside), "mm_vision_select_layer": -2}
    mm |= {"mm_vision_select_feature": "patch", "mm_use_im_start_end": False, "tune_mm_mlp_adapter": False}
    (folder / "config.json").write_text(
        json.dumps({**text.to_dict(), "model_type": kind, **mm, **case.layout, **fields})
    )
    tokenizer.save_pretrained(folder)
    return beside


class Exported(NamedTuple):
    """The original's folder and that of its llava-hf form, both opened here, and the latter opened by transformers."""

    source: Path
    folder: Path
    original: Any
    assistant: Any
    model: Any
    processor: Any


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Any:
    """An original of CASES written as llava-hf's; made once."""

    @cache
    def made(name: str) -> Exported:
        import transformers

        source = tmp_path_factory.mktemp("originals") / name
        write_original(source, CASES[name])
        folder = source.with_name(f"{name}-hf")
        export(source, folder, "hf")
        model, report = transformers.AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
        assert not any(report[f"{what}_keys"] for what in ("missing", "unexpected", "mismatched"))
        assert type(model).__name__ == f"{CLASSES[name.split('-')[0]]}ForConditionalGeneration"
        opened = [pumice.load(str(path), dtype="float32") for path in (source, folder)]
        return Exported(source, folder, *opened, model.eval(), processor_of(folder, opened[1]))

    return made


def processor_of(folder: Path, assistant: Any) -> Any:
    """transformers' processor of a folder; OneVision's can't be made without torchvision."""
    import transformers

    if "onevision" not in folder.name:
        return transformers.AutoProcessor.from_pretrained(folder)
    images = transformers.AutoImageProcessor.from_pretrained(folder)
    single, several = assistant.processor.policy, assistant.processor.several

    def count(pictures: list[Any]) -> list[int]:
        return [layout(p.size, several if len(pictures) > 1 else single).tokens for p in pictures]

    return ByHand(images, transformers.AutoTokenizer.from_pretrained(folder), count)


def conversation(pictures: list[Any], text: str = "What is it?") -> list[dict[str, Any]]:
    content = [{"type": "image", "image": picture} for picture in pictures]
    return [
        {"role": "user", "content": [*content, {"type": "text", "text": text}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
        {"role": "user", "content": [{"type": "text", "text": "Why?\n<b>"}]},
    ]


def inputs_of(made: Exported, messages: list[dict[str, Any]], pictures: list[Any]) -> dict[str, Any]:
    """What transformers' processor gives its model."""
    template = (made.folder / "chat_template.jinja").read_text()
    tokenizer = made.processor.tokenizer
    text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=True)
    nested = [pictures] if len(pictures) > 1 and isinstance(made.processor, ByHand) else pictures
    return made.processor(images=nested or None, text=[text], return_tensors="pt")


def ids_of(assistant: Any, messages: list[dict[str, Any]], image: int) -> list[int]:
    ids = encode(to_sample(messages), assistant.processor, prompt=True).ids
    return torch.where(ids == IMAGE, image, ids).tolist()


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    bound = 1e-4 * max(1.0, float(expected.abs().max()))
    return found.shape == expected.shape and float((found - expected).abs().max()) < bound


@pytest.mark.parametrize("name", CASES)
def test_logits_and_ids_are_the_same_three_ways(exported, name):
    made = exported(name)
    tiled = name.startswith("next")
    cases = [[size] for size in SIZES + ONE_GRID] + SEVERAL + [[]]
    for number, sizes in enumerate(cases):
        pictures = [noise(number * 10 + i, size) for i, size in enumerate(sizes)]
        messages = conversation(pictures)
        inputs = inputs_of(made, messages, pictures)
        with torch.no_grad():
            expected = made.model(**inputs).logits[0]
        found = made.assistant.logits(messages)
        assert close(found, expected), sizes
        assert ids_of(made.assistant, messages, made.model.config.image_token_index) == inputs["input_ids"][0].tolist()
        differs = tiled and (len(sizes) > 1 or sizes[:1] in ([(1, 1)], [(40, 50)]))
        before = made.original.logits(messages)
        old = before.shape[1]
        assert close(before, expected[:, :old]) is not differs, sizes


@pytest.mark.parametrize("name", ["next", "next-mistral", "next-siglip"])
def test_two_equally_good_grids_change_places(exported, name):
    made = exported(name)
    for size in ONE_GRID:
        assert layout(size, made.original.processor.policy).rows == 2
        assert layout(size, made.assistant.processor.policy).cols == 2
    for size in SIZES:
        before, after = (layout(size, a.processor.policy) for a in (made.original, made.assistant))
        assert (before.cols, before.rows) == (after.cols, after.rows)
    assert made.original.processor.several is not None
    assert made.assistant.processor.several is None


@pytest.mark.parametrize("name", CASES)
def test_greedy_answers_are_the_same_three_ways(exported, name):
    made = exported(name)
    for number, size in enumerate([(90, 60), (30, 400), (200, 200)]):
        picture = noise(number, size)
        messages = conversation([picture], "Describe it.")
        inputs = inputs_of(made, messages, [picture])
        with torch.no_grad():
            ids = made.model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        expected = made.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert made.assistant.chat(messages, max_tokens=12).text == expected
        assert made.original.chat(messages, max_tokens=12).text == expected


def test_both_ways_of_transformers_put_the_beginning_once(tmp_path):
    import transformers

    write_original(tmp_path / "a", CASES["llava"], begins=True)
    export(tmp_path / "a", tmp_path / "b", "hf")
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "b")
    picture = noise(1, (90, 60))
    messages = conversation([picture])
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    first = processor(images=[picture], text=[text])["input_ids"][0]
    second = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
    expected = ids_of(pumice.load(str(tmp_path / "a"), dtype="float32"), messages, processor.image_token_id)
    assert first == second["input_ids"][0] == expected
    assert first.count(processor.tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("legacy", [True, False])
def test_a_sentencepiece_tokenizer_gives_the_ids_that_the_original_had(tmp_path, legacy):
    """The originals' text after a picture begins with a space of its own, whatever the tokenizer's flag says.

    No flag says this and, without `legacy`, that the text after </s> has none: later rounds get one token more there.
    """
    import transformers

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "\u2581", *map(chr, range(33, 127))]
    write_original(tmp_path / "a", CASES["llava"]._replace(rows=len(pieces)))
    tokenizer = transformers.LlamaTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, legacy=legacy)
    tokenizer.save_pretrained(tmp_path / "a")
    settings = json.loads((tmp_path / "a" / "tokenizer_config.json").read_text())
    (tmp_path / "a" / "tokenizer_config.json").write_text(json.dumps({**settings, "legacy": legacy}))
    export(tmp_path / "a", tmp_path / "b", "hf")
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "b")
    original = pumice.load(str(tmp_path / "a"), dtype="float32")
    pictures = [noise(1, (90, 60)), noise(2, (30, 400))]
    messages = conversation(pictures)
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    found = processor(images=pictures, text=[text])["input_ids"][0]
    wanted = ids_of(original, messages, processor.image_token_id)
    if not legacy:
        space, end = processor.tokenizer.convert_tokens_to_ids(["\u2581", "</s>"])
        place = found.index(end) + 1
        assert found.pop(place) == space
    assert found == wanted
    after = found[len(found) - found[::-1].index(processor.image_token_id) :]
    assert processor.tokenizer.convert_ids_to_tokens(after[:3]) == ["\u2581", "<0x0A>", "W"]


def test_an_opened_folder_has_the_beginning_too(tmp_path):
    write_original(tmp_path / "a", CASES["llava"], begins=True)
    export(tmp_path / "a", tmp_path / "b", "hf")
    messages = conversation([noise(1, (90, 60))])
    before, after = (pumice.load(str(tmp_path / name), dtype="float32") for name in "ab")
    assert ids_of(after, messages, 0) == ids_of(before, messages, 0)


MEDIA = [Media(noise(0, (8, 8)), (8, 8)), Media(b"", (8, 8), kind="video", frames=4, fps=1.0)]
TURNS = [
    (Turn("user", (MEDIA[0], "What is\n\"it\" in {{ x }} or '<b>'?")),),
    (
        Turn("user", ("One ", MEDIA[0], MEDIA[1], " two\n")),
        Turn("assistant", ("Yes. \u00e9",)),
        Turn("user", ("Why?",)),
    ),
    (Turn("system", ("Be brief.",)), Turn("user", ("?",)), Turn("assistant", ("!",)), Turn("user", (MEDIA[0], "??"))),
    (Turn("user", ("?",)), Turn("assistant", ("",)), Turn("assistant", ("a", "b"))),
    (Turn("assistant", ("Hello.",)), Turn("user", ("",)), Turn("system", ("Now rhyme.",)), Turn("user", ("?",))),
]


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("name", sorted({template.name for template in TEMPLATES.values()}))
def test_jinja_writes_what_the_template_writes(name, prompt):
    template, tokenizer = TEMPLATES[name], tokenizer_of(CHATML)
    source = to_jinja(template, "<s>" if template.start is None else template.start)
    marks = {"image": "<image>", "video": "<video>"}
    for turns in TURNS:
        expected = "".join(
            span.content if isinstance(span.content, str) else marks[span.content.kind]
            for span in spans(turns, template, prompt, start="<s>")
        )
        listed = [
            {
                "role": turn.role,
                "content": [
                    {"type": "text", "text": part} if isinstance(part, str) else {"type": part.kind}
                    for part in turn.content
                ],
            }
            for turn in turns
        ]
        assert rendered(tokenizer, source, listed, prompt) == expected
        if not any(isinstance(part, Media) for turn in turns for part in turn.content):
            plain = [{"role": turn.role, "content": "".join(turn.content)} for turn in turns]
            assert rendered(tokenizer, source, plain, prompt) == expected


def rendered(tokenizer: Any, source: str, messages: list[dict[str, Any]], prompt: bool) -> str:
    return tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False, add_generation_prompt=prompt)


def test_an_unknown_role_is_named():
    source = to_jinja(TEMPLATES["chatml"])
    with pytest.raises(Exception, match="role tool is not one of system, user, assistant"):
        rendered(tokenizer_of(CHATML), source, [{"role": "tool", "content": "?"}], True)


def test_new_rows_are_the_mean_and_old_ones_stay(exported):
    for name in CASES:
        made, case = exported(name), CASES[name]
        before, after = (load_file(folder / "model.safetensors") for folder in (made.source, made.folder))
        tokens = len(tokenizer_of(case.marks)) + (3 if name.startswith("onevision") else 2)
        assert len(made.model.get_input_embeddings().weight) == (case.rows or -(-tokens // 64) * 64)
        assert ("language_model.lm_head.weight" in after) is not case.tied
        for old, new in (
            ("model.embed_tokens", "language_model.model.embed_tokens"),
            ("lm_head", "language_model.lm_head"),
        ):
            if f"{old}.weight" in before:
                old_rows, new_rows = before[f"{old}.weight"], after[f"{new}.weight"]
                assert torch.equal(new_rows[: len(old_rows)], old_rows)
                mean = old_rows.double().mean(0).float()
                assert all(torch.equal(row, mean) for row in new_rows[len(old_rows) :])
    lm = exported("onevision-tied").assistant.model.lm
    assert lm.lm_head.weight.data_ptr() == lm.get_input_embeddings().weight.data_ptr()


def test_ids_follow_those_that_the_tokenizer_has(exported):
    for name in ("onevision-room", "llava"):
        made, known = exported(name), len(tokenizer_of(CASES[name].marks))
        config, tokenizer = made.model.config, made.processor.tokenizer
        assert config.image_token_index == known == tokenizer.convert_tokens_to_ids("<image>")
        assert tokenizer.pad_token == "<pad>"
        assert made.model.generation_config.pad_token_id == tokenizer.pad_token_id
        assert tokenizer.padding_side == "left"
        assert tokenizer.decode([known, 0], skip_special_tokens=True) == tokenizer.decode([0])
        if name == "onevision-room":
            assert config.video_token_index == known + 1 == tokenizer.convert_tokens_to_ids("<video>")


def test_the_second_export_is_the_same_to_the_byte(exported, tmp_path):
    made = exported("onevision")
    export(made.source, tmp_path / "again", "hf")
    for path in made.folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("name", CASES)
def test_original_to_hf_to_original_keeps_every_weight(exported, tmp_path, name):
    made = exported(name)
    export(made.folder, tmp_path / "back", "original")
    before, after = (load_file(folder / "model.safetensors") for folder in (made.source, tmp_path / "back"))
    unused = {"model.image_newline"} if name.startswith("llava") else set()
    assert after.keys() == before.keys() - unused
    for key, value in after.items():  # rows that grew stay: the tokenizer has ids for them
        rows = len(before[key]) if key in ("model.embed_tokens.weight", "lm_head.weight") else len(value)
        assert torch.equal(value[:rows], before[key]), key
    if name == "llava-square":
        return  # the way back says square for CLIP alone
    opened = pumice.load(str(tmp_path / "back"), dtype="float32", template=made.original.processor.template.name)
    messages = conversation([noise(3, (112, 200))])
    expected = made.original.logits(messages)
    assert close(opened.logits(messages)[:, : expected.shape[1]], expected)
    assert opened.processor.policy == made.original.processor.policy


@pytest.mark.parametrize("family", ["llava", "next", "next-mistral", "onevision"])
def test_hf_to_original_to_hf_is_the_same_to_the_bit(tmp_path, family):
    tokenizer = hf_tokenizer()
    model = make_model(family, tokenizer)
    save_folder(tmp_path / "a", family, tokenizer, model)
    export(tmp_path / "a", tmp_path / "b", "original")
    export(tmp_path / "b", tmp_path / "c", "hf", template="chatml")
    opened, report = type(model).from_pretrained(tmp_path / "c", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert opened.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in opened.state_dict().items())
    for key in ("image_token_index", "vision_feature_layer", "vision_feature_select_strategy"):
        assert getattr(opened.config, key) == getattr(model.config, key)
    assert getattr(opened.config, "image_grid_pinpoints", 0) == getattr(model.config, "image_grid_pinpoints", 0)
    assert opened.config.vision_config.to_dict() == {
        **model.config.vision_config.to_dict(), "dtype": opened.config.vision_config.to_dict()["dtype"]
    }  # fmt: skip


def test_the_tower_of_another_folder_is_put_in(tmp_path):
    from transformers import AutoModelForImageTextToText

    for name in ("llava", "next-siglip"):
        tower = write_original(tmp_path / name, CASES[name], with_tower=False)
        weights = load_file(tower / "model.safetensors")  # as in the folder of a whole CLIP
        save_file(
            {**weights, "text_model.x": torch.zeros(2), "logit_scale": torch.zeros(())}, tower / "model.safetensors"
        )
        with pytest.raises(PumiceError, match="has no tower; pass its folder as tower="):
            export(tmp_path / name, tmp_path / f"{name}-hf", "hf")
        assert not (tmp_path / f"{name}-hf").exists()
        export(tmp_path / name, tmp_path / f"{name}-hf", "hf", tower)
        model, report = AutoModelForImageTextToText.from_pretrained(tmp_path / f"{name}-hf", output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        assert model.config.vision_config.num_hidden_layers == (3 if name == "llava" else 2)
        opened = pumice.load(str(tmp_path / f"{name}-hf"), dtype="float32")
        messages = conversation([noise(1, (90, 200))])
        expected = pumice.load(str(tmp_path / name), dtype="float32", tower=str(tower)).logits(messages)
        assert close(opened.logits(messages)[:, : expected.shape[1]], expected)


@pytest.mark.parametrize(
    "form",
    [
        "original",
        "hf",
    ],
)
def test_siglip_squashes_its_only_view(tmp_path, form):
    import transformers

    write_original(tmp_path / "original", CASES["llava-siglip"], image_aspect_ratio="square")
    export(tmp_path / "original", tmp_path / "hf", "hf")
    model = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "hf").eval()
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "hf")
    picture = noise(1, (30, 400))
    messages = conversation([picture])
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    with torch.no_grad():
        expected = model(**processor(images=[picture], text=[text], return_tensors="pt")).logits[0]
    found = pumice.load(str(tmp_path / form), dtype="float32").logits(messages)
    assert close(found, expected[:, : found.shape[1]])


def drop(folder: Path, *beginnings: str) -> None:
    weights = load_file(folder / "model.safetensors")
    kept = {n: v for n, v in weights.items() if not n.removeprefix("model.").startswith(beginnings)}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors")


def test_a_tower_without_what_nothing_reads_is_written_all_the_same(exported, tmp_path):
    from transformers import AutoModelForImageTextToText

    inside = "vision_tower.vision_tower.vision_model."
    write_original(tmp_path / "a", CASES["next"])
    drop(tmp_path / "a", f"{inside}post_layernorm.", f"{inside}encoder.layers.2.")
    export(tmp_path / "a", tmp_path / "b", "hf")
    model, report = AutoModelForImageTextToText.from_pretrained(tmp_path / "b", output_loading_info=True)
    assert not report["missing_keys"]
    assert model.config.vision_feature_layer == -1
    picture = noise(1, (90, 200))
    messages = conversation([picture])
    inputs = inputs_of(exported("next"), messages, [picture])
    with torch.no_grad():
        assert close(model.eval()(**inputs).logits, exported("next").model(**inputs).logits)


def test_weights_that_the_class_lacks_are_listed_and_nothing_is_left(tmp_path):
    write_original(tmp_path / "a", CASES["next"])
    drop(tmp_path / "a", "mm_projector.2.bias", "image_newline")
    with pytest.raises(PumiceError, match=r"transformers' llava_next has; missing: connector.layers.2.bias, newline$"):
        export(tmp_path / "a", tmp_path / "b", "hf")
    drop(tmp_path / "a", "embed_tokens")
    with pytest.raises(PumiceError, match="no embeddings of words"):
        export(tmp_path / "a", tmp_path / "b", "hf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a-tower"]


def test_a_template_that_does_not_fit_the_tokenizer_is_refused(tmp_path):
    write_original(tmp_path / "a", CASES["llava"], begins=True)
    with pytest.raises(PumiceError, match=r"'chatml' begins with '', but the tokenizer puts '<s>' before every text"):
        export(tmp_path / "a", tmp_path / "b", "hf", template="chatml")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a-tower"]


def test_what_would_not_be_used_is_refused(tmp_path, capsys):
    write_original(tmp_path / "a", CASES["llava"])
    given = ["export", str(tmp_path / "a"), "--to", "original", "--out", str(tmp_path / "b")]
    for option, message in (
        (["--base", str(tmp_path / "a")], "a whole model; --base is for an adapter"),
        (["--template", "v1"], "keeps its own chat format in the original form"),
    ):
        assert main([*given, *option]) == 2
        assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a-tower"]


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "tiles one after the other": ("next", {"mm_patch_merge_type": "flat"}, "mm_patch_merge_type = 'flat'"),
    "ELVA's maps without newlines": (
        "next",
        {"mm_patch_merge_type": "spatial"},
        "mm_patch_merge_type = 'spatial'.*un-pads",
    ),
    "one view with a newline": ("llava", UNPAD, "mm_patch_merge_type = 'spatial_unpad'; expected flat"),
    "a linear connector": (
        "llava",
        {"mm_projector_type": "linear"},
        "mm_projector_type = 'linear'; expected mlp2x_gelu",
    ),
    "three layers": ("llava", {"mm_projector_type": "mlp3x_gelu"}, "mm_projector_type = 'mlp3x_gelu'"),
    "scaled maps on CLIP": ("next", {"image_aspect_ratio": "anyres_max_9"}, "image_aspect_ratio = 'anyres_max_9'.*CLS"),
    "newlines in videos": (
        "onevision",
        {"mm_newline_position": "grid"},
        "mm_newline_position = 'grid'; expected one_token",
    ),
    "averaged videos": ("onevision", {"mm_spatial_pool_mode": "average"}, "mm_spatial_pool_mode = 'average'"),
    "a video model on CLIP": ("next", {"mm_spatial_pool_mode": "average"}, "mm_spatial_pool_mode = 'average'.*before"),
    "tokens around pictures": ("llava", {"mm_use_im_start_end": True}, "mm_use_im_start_end = True; expected false"),
    "CLS beside the patches": (
        "llava",
        {"mm_vision_select_feature": "cls_patch"},
        "mm_vision_select_feature = 'cls_patch'",
    ),
    "a resampler": ("next", {"mm_resampler_type": "qformer"}, "mm_resampler_type = 'qformer'; expected null"),
    "slow and fast frames": ("onevision", {"add_faster_video": True}, "add_faster_video = True"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_no_class_reproduces_is_refused_with_its_field(tmp_path, what):
    name, fields, message = REFUSED[what]
    write_original(tmp_path / "a", CASES[name], **fields)
    with pytest.raises(PumiceError, match=message) as caught:
        export(tmp_path / "a", tmp_path / "b", "hf")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "a" / "config.json") in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a-tower"]


def test_openelm_is_refused(tmp_path):
    fields = {"model_type": "llava_openelm", "mm_vision_tower": "openai/clip-vit-base-patch32", "model_dim": 64}
    fields |= {"num_transformer_layers": 1, "num_query_heads": [2], "num_kv_heads": [1], "ffn_multipliers": [1.0]}
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text(json.dumps({**fields, "head_dim": 32, "image_aspect_ratio": "pad"}))
    with pytest.raises(PumiceError, match="model_type = 'llava_openelm'; transformers has no OpenELM"):
        export(tmp_path / "a", tmp_path / "b", "hf")


def test_grids_that_are_not_there_both_ways_are_turned_round(tmp_path):
    grids = [[56, 168], [112, 112], [112, 56]]
    write_original(tmp_path / "a", CASES["next"], image_grid_pinpoints=grids)
    export(tmp_path / "a", tmp_path / "b", "hf")
    assert read_section(tmp_path / "b" / "config.json").values["image_grid_pinpoints"] == [pair[::-1] for pair in grids]
    before, after = (pumice.load(str(tmp_path / name), dtype="float32").processor.policy for name in "ab")
    for size in SIZES + ONE_GRID:
        assert layout(size, before) == layout(size, after)
    export(tmp_path / "b", tmp_path / "c", "original")
    assert read_section(tmp_path / "c" / "config.json").values["image_grid_pinpoints"] == grids


CLIP = "openai/clip-vit-large-patch14-336"
PUBLISHED: dict[str, tuple[dict[str, Any], str]] = {
    "llava-v1.5": (
        {"model_type": "llava_llama", "image_aspect_ratio": "pad", "mm_vision_tower": CLIP},
        "Llava",
    ),
    "llava-v1.6": (
        {
            "model_type": "llava_llama", "image_aspect_ratio": "anyres", **UNPAD,
            "mm_vision_tower": CLIP,
            "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
        },
        "LlavaNext",
    ),
    "llava-onevision": (
        {
            "model_type": "llava", "architectures": ["LlavaQwenForCausalLM"], "image_aspect_ratio": "anyres_max_9",
            **UNPAD, **VIDEO, "mm_vision_tower": "google/siglip-so400m-patch14-384",
            "image_grid_pinpoints": "(1x1),...,(6x6)",
        },
        "LlavaOnevision",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_become_those_that_transformers_has_by_default(tmp_path, name):
    import transformers

    from pumice.formats.describe import describe
    from pumice.formats.export_hf import EMBEDDINGS, hf_config, hf_type

    fields, kind = PUBLISHED[name]
    fields = {**fields, "mm_projector_type": "mlp2x_gelu", "hidden_size": 64, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    section, description = read_section(tmp_path / "config.json"), describe(tmp_path)
    default = getattr(transformers, f"{kind}Config")()
    blocks = default.vision_config.num_hidden_layers
    weights = {EMBEDDINGS: torch.empty(8, 1), f"tower.model.encoder.layers.{blocks - 1}.x": torch.empty(1)}
    made = hf_config(section, hf_type(section, description), description, weights, {"<image>": 6, "<video>": 7}, 5)
    opened = transformers.AutoConfig.for_model(**made)
    assert type(opened) is type(default)
    ours, theirs = opened.vision_config.to_dict(), default.vision_config.to_dict()
    for free in ("dtype", "vocab_size", "projection_dim"):  # what the tower doesn't read
        ours.pop(free, None), theirs.pop(free, None)
    assert ours == theirs
    for key in ("vision_feature_layer", "vision_feature_select_strategy", "projector_hidden_act", "image_seq_length"):
        assert getattr(opened, key, None) == getattr(default, key, None), key
    for key in ("image_grid_pinpoints", "vision_aspect_ratio", "multimodal_projector_bias"):
        assert getattr(opened, key, None) == getattr(default, key, None), key


def test_files_for_videos_say_what_those_for_pictures_say(exported):
    folder = exported("onevision").folder
    images, videos = (read_section(folder / f"{name}preprocessor_config.json").values for name in ("", "video_"))
    for key in ("size", "image_mean", "image_std", "resample", "do_center_crop", "processor_class"):
        assert images[key] == videos[key]
    assert exported("onevision").assistant.processor.video == exported("onevision").original.processor.video


VLLM: dict[str, Any] = {
    "architectures": list, "image_token_index": int, "projector_hidden_act": str, "multimodal_projector_bias": bool,
    "vision_feature_layer": int, "vision_feature_select_strategy": str,
    "vision_config.num_hidden_layers": int, "vision_config.hidden_size": int, "vision_config.image_size": int,
    "vision_config.patch_size": int, "vision_config.hidden_act": str, "vision_config.model_type": str,
    "text_config.architectures": list, "text_config.model_type": str, "text_config.hidden_size": int,
    "text_config.vocab_size": int, "text_config.tie_word_embeddings": bool,
}  # fmt: skip
"""Keys that vLLM's classes read, and their types. `docs/checkpoints.md` says where."""
SGLANG = {
    "architectures": list, "hidden_size": int, "mm_hidden_size": int, "mm_vision_tower": str,
    "mm_vision_select_layer": int, "mm_vision_select_feature": str, "mm_patch_merge_type": str,
    "image_aspect_ratio": str,
}  # fmt: skip
"""Keys that SGLang's classes read of an original."""


@pytest.mark.parametrize("name", CASES)
def test_the_keys_that_vllm_and_sglang_read_are_there(exported, tmp_path, name):
    import transformers

    made = exported(name)
    config = transformers.AutoConfig.from_pretrained(made.folder)
    wanted = dict(VLLM)
    if not name.startswith("llava"):
        wanted["image_grid_pinpoints"] = list
    if name.startswith("onevision"):
        wanted["video_token_index"] = int
    for key, kind in wanted.items():
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part)
        assert type(value) is kind, key
    names = load_file(made.folder / "model.safetensors").keys()
    assert any(weight.startswith("vision_tower.vision_model.encoder.layers.0.") for weight in names)
    assert any(weight.startswith("language_model.model.layers.0.") for weight in names)
    export(made.folder, tmp_path / "back", "original")
    values = read_section(tmp_path / "back" / "config.json").values
    assert {key: type(values[key]) for key in SGLANG} == SGLANG


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Any:
    """Folder of a family in llava-hf's form, and its transformers model; made once."""

    @cache
    def made(family: str) -> tuple[Path, Any]:
        tokenizer = hf_tokenizer()
        folder = tmp_path_factory.mktemp(family)
        model = make_model(family, tokenizer)
        save_folder(folder, family, tokenizer, model)
        return folder, model

    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_goes_out_and_comes_back_bit_for_bit(folders, tmp_path, family):
    import transformers

    source, model = folders(family)
    export(source, tmp_path / "again", "hf")
    opened = getattr(transformers, type(model).__name__).from_pretrained(tmp_path / "again").eval()
    expected = model.state_dict()
    assert opened.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in opened.state_dict().items())
    messages = conversation([noise(1, (90, 130))], "?")
    found = pumice.load(str(tmp_path / "again"), dtype="float32").logits(messages)
    assert torch.equal(found, pumice.load(str(source), dtype="float32").logits(messages))
    with pytest.raises(PumiceError, match="not empty; nothing is written over"):
        export(source, tmp_path / "again", "hf")


@pytest.mark.parametrize("family", ["llava", "next-mistral", "onevision"])
def test_an_hf_checkpoint_becomes_an_original(folders, tmp_path, family):
    source, _ = folders(family)
    export(source, tmp_path / "original", "original")
    names = load_file(tmp_path / "original" / "model.safetensors").keys()
    assert {"model.mm_projector.2.weight", "model.layers.1.mlp.up_proj.weight", "lm_head.weight"} <= names
    opened = pumice.load(str(tmp_path / "original"), dtype="float32", template="chatml")
    messages = conversation([noise(3, (112, 112))], "What is it?")
    expected = pumice.load(str(source), dtype="float32", template="chatml").logits(messages)
    assert torch.allclose(opened.logits(messages), expected, atol=1e-5)
