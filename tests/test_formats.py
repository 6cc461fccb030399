"""Checkpoints of the line opened here give transformers' numbers; broken ones say what is wrong."""

from __future__ import annotations

import json
import logging
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import CHAT, FAMILIES, make_model, make_processor, make_tokenizer, noise, save_folder
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken

import pumice
from pumice.encode import encode
from pumice.engine.runner import complete
from pumice.formats.own import save_own
from pumice.messages import to_sample
from pumice.types import PumiceError

SIZES = [
    (1, 1), (30, 2000), (2000, 30), (57, 55), (56, 56), (100, 100), (337, 335), (988, 1207), (1207, 988), (4000, 500),
    (500, 4000), (112, 56), (56, 112), (113, 113), (640, 480), (480, 640), (200, 90), (90, 200), (1, 300), (300, 1),
]  # fmt: skip
SEVERAL = [
    [(80, 60), (60, 80)],
    [(1, 1), (200, 100), (33, 44)], [(56, 56)] * 4, [(300, 20), (20, 300), (90, 90), (5, 7), (64, 64)],
]  # fmt: skip
TEXTS = ("What is it?", "line\none, two: <three> & \u00e9", "?")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Any:
    """Folder of a family, its transformers model and processor; made once."""

    @cache
    def made(family: str) -> tuple[Path, Any, Any]:
        tokenizer = make_tokenizer()
        folder = tmp_path_factory.mktemp(family)
        model = make_model(family, tokenizer)
        save_folder(folder, family, tokenizer, model)
        return folder, model, make_processor(family, tokenizer)

    return made


def conversation(pictures: list[Any], text: str) -> list[dict[str, Any]]:
    """A question about pictures, an answer, and a second question."""
    content = [{"type": "image", "image": picture} for picture in pictures]
    return [
        {"role": "user", "content": [*content, {"type": "text", "text": text}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
        {"role": "user", "content": [{"type": "text", "text": "Why?"}]},
    ]


@torch.no_grad()
def reference(model: Any, processor: Any, messages: list[dict[str, Any]], pictures: list[Any]) -> torch.Tensor:
    """transformers' logits (T, V)."""
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    # OneVision takes a flat list for one picture a conversation, a nested one for several in it.
    onevision = "Onevision" in type(processor.image_processor).__name__
    images = [pictures] if len(pictures) > 1 and onevision else pictures
    inputs = processor(images=images or None, text=[text], return_tensors="pt")
    return model(**inputs).logits[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(folders, family):
    folder, model, processor = folders(family)
    assistant = pumice.load(str(folder), dtype="float32")
    cases = [[size] for size in SIZES] + SEVERAL + [[]]
    for number, sizes in enumerate(cases):
        pictures = [noise(number * 10 + i, size) for i, size in enumerate(sizes)]
        messages = conversation(pictures, TEXTS[number % len(TEXTS)])
        expected, found = reference(model, processor, messages, pictures), assistant.logits(messages)
        assert found.shape == expected.shape, sizes
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max().clamp(min=1.0), sizes


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_are_those_of_transformers(folders, family):
    folder, model, processor = folders(family)
    assistant = pumice.load(str(folder), dtype="float32")
    for number, size in enumerate([(90, 60), (30, 400), (200, 200)]):
        picture = noise(number, size)
        messages = conversation([picture], "Describe it.")
        text = processor.apply_chat_template(messages, add_generation_prompt=True)
        inputs = processor(images=[picture], text=[text], return_tensors="pt")
        with torch.no_grad():
            ids = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        answer = assistant.chat(messages, max_tokens=12)
        assert answer.text == processor.tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_every_end_that_the_checkpoint_names_ends_an_answer(copy):
    """Its own stop, and further ones of generation_config.json where they are special tokens."""
    messages = conversation([noise(0, (90, 60))], "Describe it.")
    assistant = pumice.load(str(copy), dtype="float32")
    (stop,) = assistant.processor.stop_ids  # the 2 that transformers writes is a default of Llama's, here a letter
    prompt = encode(to_sample(messages), assistant.processor, prompt=True)
    ids = complete(assistant.model, [prompt], [stop], 12)[0].ids
    third = next(token for token in ids[2:] if token not in ids[:2])
    tokenizer = assistant.processor.tokenizer
    tokenizer.add_tokens([AddedToken(tokenizer.convert_ids_to_tokens(third), special=True)], special_tokens=True)
    tokenizer.save_pretrained(copy)
    edit_json(copy / "generation_config.json", eos_token_id=[stop, third], _from_model_config=False)
    opened = pumice.load(str(copy), dtype="float32")
    assert opened.processor.stop_ids == (stop, third)
    answer = opened.chat(messages, max_tokens=12)
    assert (answer.finish, answer.tokens) == ("stop", ids.index(third))
    save_own(opened, copy / "own")
    assert pumice.load(str(copy / "own"), dtype="float32").processor.stop_ids == (stop, third)


LAYOUTS = {
    "as transformers 5 writes it": lambda name: name,
    "as llava-hf published it": lambda name: name.replace("vision_tower.", "vision_tower.vision_model.", 1),
    "as the modules of transformers are called": lambda name: (
        name.removeprefix("language_model.")
        if name.startswith("language_model.lm_head")
        else "model." + name.replace("language_model.model.", "language_model.", 1)
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_published_layout_of_names_is_read(folders, layout, tmp_path):
    folder, *_ = folders("next")
    for path in folder.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(folder / "model.safetensors")
    renamed = {LAYOUTS[layout](name): value for name, value in weights.items()}
    assert renamed.keys() == weights.keys() or not layout.startswith("as transformers")
    save_file(renamed, tmp_path / "model.safetensors")
    messages = conversation([noise(1, (90, 130))], "?")
    expected = pumice.load(str(folder), dtype="float32").logits(messages)
    assert torch.equal(pumice.load(str(tmp_path), dtype="float32").logits(messages), expected)


def shards(folder: Path, suffix: str) -> None:
    """Cut the folder's single file in two, with an index."""
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    base = "model" if suffix == "safetensors" else "pytorch_model"
    placed = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        path = folder / f"{base}-{number:05}-of-00002.{suffix}"
        tensors = {name: weights[name] for name in part}
        save_file(tensors, path) if suffix == "safetensors" else torch.save(tensors, path)
        placed |= dict.fromkeys(part, path.name)
    (folder / f"{base}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    (folder / "model.safetensors").unlink()


@pytest.fixture
def copy(folders, tmp_path) -> Path:
    """A folder of its own to break."""
    folder, *_ = folders("next")
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_are_put_together(folders, copy, suffix):
    messages = conversation([noise(1, (90, 130))], "?")
    expected = pumice.load(str(copy), dtype="float32").logits(messages)
    shards(copy, suffix)
    assert torch.equal(pumice.load(str(copy), dtype="float32").logits(messages), expected)


def change(folder: Path, edit: Any) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors")


CONNECTOR = "multi_modal_projector.linear_1.weight"
TOWER_UP = "vision_tower.encoder.layers.1.mlp.fc1.weight"
LM_UP = "language_model.model.layers.1.mlp.up_proj.weight"
FAULTS = {
    "a weight is missing": (
        lambda w: w.pop("language_model.model.layers.1.mlp.up_proj.weight"),
        r"missing: model.layers.1.mlp.up_proj.weight",
    ),
    "a weight has another shape": (lambda w: w.update({CONNECTOR: w[CONNECTOR][:5]}), "another shape: layers.0.weight"),
    "a weight is unknown": (lambda w: w.update({"extra.weight": torch.zeros(2)}), "form doesn't have: extra.weight"),
    "no newline": (lambda w: w.pop("image_newline"), "have no image_newline"),
    "no connector": (lambda w: [w.pop(n) for n in list(w) if "projector" in n], "no connector among"),
    "a tower's weight is missing": (
        lambda w: w.pop("vision_tower.encoder.layers.1.mlp.fc1.weight"),
        r"missing: encoder.layers.1.mlp.fc1.weight",
    ),
    "a tower's weight has another shape": (
        lambda w: w.update({TOWER_UP: w[TOWER_UP][:5]}),
        r"another shape: encoder.layers.1.mlp.fc1.weight \[5, 32\], expected \[48, 32\]",
    ),
    "a language model's weight has another shape": (
        lambda w: w.update({LM_UP: w[LM_UP][:5]}),
        r"another shape: model.layers.1.mlp.up_proj.weight \[5, 32\], expected \[48, 32\]",
    ),
    "every part lacks a weight": (
        lambda w: [w.pop(name) for name in (TOWER_UP, LM_UP, CONNECTOR)],
        r"missing: encoder.layers.1.mlp.fc1.weight.* missing: model.layers.1.mlp.up_proj.weight.* layers.0.weight",
    ),
    "integers": (
        lambda w: w.update({name: w[name].to(torch.int8) for name in ("image_newline", CONNECTOR)}),
        r"aren't of floating point: image_newline, multi_modal_projector.linear_1.weight",
    ),
    "nearly a newline": (lambda w: w.update({"image_newlines": torch.zeros(2)}), "form doesn't have: image_newlines"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_weights_that_do_not_fit_are_named(copy, fault):
    edit, message = FAULTS[fault]
    change(copy, edit)
    with pytest.raises(PumiceError, match=message):
        pumice.load(str(copy), dtype="float32")


def edit_json(path: Path, **fields: Any) -> None:
    """Change fields of a JSON object; ``a__b`` is the field b inside of a."""
    values = json.loads(path.read_text())
    for key, value in fields.items():
        *inside, last = key.split("__")
        place = values
        for part in inside:
            place = place[part]
        place[last] = value
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    "fields",
    [
        {"text_config__use_cache": "yes"},
        {"text_config__hidden_act": "none such"},
        {"text_config__rope_parameters__rope_type": ["default"]},
        {"text_config__pad_token_id": 10**9},
        {"text_config__num_attention_heads": 5, "text_config__head_dim": 8},
        {"vision_config__num_attention_heads": 0},
        {"vision_config__num_attention_heads": 5},
        {"vision_config__layer_norm_eps": "small"},
        {"vision_config__hidden_act": "none such"},
        {"vision_config__patch_size": None},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_configs_that_transformers_stumbles_over_are_one_error(copy, fields):
    edit_json(copy / "config.json", **fields)
    with pytest.raises(PumiceError) as error:
        pumice.load(str(copy), dtype="float32")
    assert str(copy) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("size", "mode"),
    [(56, "crop"), ({"shortest_edge": 56}, "crop"), ({"height": 56, "width": 56}, "square"), (None, "crop")],
)
def test_the_size_in_a_preprocessor_is_read_in_every_form(folders, tmp_path, size, mode):
    for path in folders("llava")[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    edit_json(tmp_path / "preprocessor_config.json", size=size, do_center_crop=mode == "crop")
    assert pumice.load(str(tmp_path), dtype="float32").processor.policy.mode == mode


@pytest.mark.parametrize(
    "index", ["[]", '{"weight_map": {"a": [1]}}', '{"weight_map": {"a": 1, "b": "x"}}', "[" * 50_000]
)
def test_what_is_no_index_of_weights_is_one_error(copy, index):
    (copy / "model.safetensors.index.json").write_text(index)
    with pytest.raises(PumiceError, match=r"index.json: (not an index of weights|names files)"):
        pumice.load(str(copy), dtype="float32")


def test_nested_json_and_deviations_of_nothing_are_one_error(copy):
    edit_json(copy / "preprocessor_config.json", image_std=[0.2, 0, 0.2])
    with pytest.raises(PumiceError, match=r"image_std = \[0.2, 0, 0.2\]; expected numbers above 0"):
        pumice.load(str(copy), dtype="float32")
    (copy / "config.json").write_text('{"a":' * 50_000)
    with pytest.raises(PumiceError, match=r"config.json: not readable as JSON"):
        pumice.load(str(copy), dtype="float32")


@pytest.mark.parametrize(
    ("key", "value"),
    [("resample", 2), ("do_normalize", False), ("do_rescale", False), ("do_resize", "no"), ("rescale_factor", 0.5)],
)
def test_pixels_that_would_be_others_are_refused(copy, key, value):
    edit_json(copy / "preprocessor_config.json", **{key: value})
    with pytest.raises(PumiceError, match=rf"preprocessor_config.json: {key} = {re.escape(repr(value))}; only "):
        pumice.load(str(copy), dtype="float32")


def test_a_device_that_is_not_there_is_one_error(copy):
    with pytest.raises(PumiceError, match="device 'cuda:99': "):
        pumice.load(str(copy), device="cuda:99")


def test_of_several_chat_templates_the_default_is_taken(copy):
    (copy / "chat_template.jinja").unlink()
    edit_json(
        copy / "tokenizer_config.json",
        chat_template=[{"name": "default", "template": CHAT}, {"name": "tool_use", "template": "x"}],
    )
    opened = pumice.load(str(copy), dtype="float32")
    assert opened.ask([], "What is it?", max_tokens=2).prompt_tokens > len("What is it?")


def test_transformers_does_not_warn_of_originals(folders, tmp_path, caplog):
    write_original(tmp_path, folders("next")[0], "next", True)
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        pumice.load(str(tmp_path), dtype="float32")
    finally:
        logger.removeHandler(caplog.handler)
    assert not caplog.messages


def test_files_that_cannot_be_trusted_are_refused(copy):
    weights = copy / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PumiceError, match=r"model.safetensors: not readable"):
        pumice.load(str(copy))
    weights.unlink()
    with pytest.raises(PumiceError, match=r"no weights; expected model.safetensors"):
        pumice.load(str(copy))
    torch.save({"run": print}, copy / "pytorch_model.bin")
    with pytest.raises(PumiceError, match=r"pytorch_model.bin: "):
        pumice.load(str(copy))
    (copy / "pytorch_model.bin").unlink()
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    with pytest.raises(PumiceError, match=r"names files that aren't beside it: ../x.safetensors"):
        pumice.load(str(copy))
    (copy / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(PumiceError, match="model_type = 'bert'; expected one of"):
        pumice.load(str(copy))


ORIGINAL = [
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("multi_modal_projector.linear_1.", "model.mm_projector.0."),
    ("multi_modal_projector.linear_2.", "model.mm_projector.2."),
    ("image_newline", "model.image_newline"),
    ("vision_tower.", "model.vision_tower.vision_tower.vision_model."),
]


def write_original(folder: Path, source: Path, family: str, with_tower: bool) -> Path:
    """The folder's model as the original repositories write it, and its tower as a folder of its own."""
    config = json.loads((source / "config.json").read_text())
    tower = folder / "tower"
    tower.mkdir()
    (tower / "config.json").write_text(json.dumps(config["vision_config"]))
    weights = load_file(source / "model.safetensors")
    prefix = "vision_tower."
    save_file(
        {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)},
        tower / "model.safetensors",
    )
    kind = {"mistral": "llava_mistral", "qwen2": "llava_qwen"}.get(config["text_config"]["model_type"], "llava_llama")
    layout = {
        "llava": {"image_aspect_ratio": "pad", "mm_patch_merge_type": "flat"},
        "next": {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad"},
        "onevision": {"image_aspect_ratio": "anyres_max_9", "mm_patch_merge_type": "spatial_unpad"},
    }[family.removesuffix("-mistral")]
    grids = {"image_grid_pinpoints": config["image_grid_pinpoints"]} if "image_grid_pinpoints" in config else {}
    mm = {"mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2, "mm_vision_tower": str(tower)}
    fields = {**config["text_config"], "model_type": kind, **layout, **grids, **mm}
    (folder / "config.json").write_text(json.dumps(fields))
    renamed = {}
    for name, value in weights.items():
        theirs, ours = next((a, b) for a, b in ORIGINAL if name.startswith(a))
        if with_tower or theirs != prefix:
            renamed[ours + name.removeprefix(theirs)] = value
    renamed["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)  # old checkpoints store it
    save_file(renamed, folder / "model.safetensors")
    for path in source.glob("tokenizer*"):
        (folder / path.name).write_bytes(path.read_bytes())
    return tower


@pytest.mark.parametrize("family", ["llava", "next", "next-mistral"])
@pytest.mark.parametrize("with_tower", [True, False])
def test_an_original_checkpoint_gives_the_logits_of_its_hf_form(folders, tmp_path, family, with_tower):
    source, *_ = folders(family)
    tower = write_original(tmp_path, source, family, with_tower)
    if not with_tower:
        with pytest.raises(PumiceError, match=r"has no tower .* pass its folder as tower="):
            pumice.load(str(tmp_path), dtype="float32", template="chatml")
    opened = pumice.load(str(tmp_path), dtype="float32", tower=str(tower), template="chatml")
    published = pumice.load(str(source), dtype="float32")
    # (56, 56) fits every layout in the same way; where both forms differ is in the layout's own tests.
    messages = conversation([noise(3, (112, 112))], "What is it?")
    found, expected = opened.logits(messages), published.logits(messages)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-4


def test_originals_have_the_conversation_format_of_their_language_model(folders, tmp_path):
    for family, name in (("next", "llava_llama_3"), ("next-mistral", "mistral_instruct")):
        folder = tmp_path / family
        folder.mkdir()
        write_original(folder, folders(family)[0], family, True)
        assert pumice.load(str(folder), dtype="float32").processor.template.name == name


def test_tied_embeddings_survive(tmp_path):
    tokenizer = make_tokenizer()
    model = make_model("onevision", tokenizer, tied=True)
    save_folder(tmp_path, "onevision", tokenizer, model)
    assert not any("lm_head" in name for name in load_file(tmp_path / "model.safetensors"))
    assistant = pumice.load(str(tmp_path), dtype="float32")
    lm = assistant.model.lm
    assert lm.lm_head.weight.data_ptr() == lm.get_input_embeddings().weight.data_ptr()
    picture = noise(1, (90, 60))
    messages = conversation([picture], "?")
    expected = reference(model, make_processor("onevision", tokenizer), messages, [picture])
    assert (assistant.logits(messages) - expected).abs().max() < 1e-4 * max(1.0, float(expected.abs().max()))
