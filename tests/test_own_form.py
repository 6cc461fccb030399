"""Pumice's own form: what is written opens to the same bits without any other part, and what is damaged is named."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import conversation, picture
from hf_models import CHAT, make_model, make_tokenizer, save_folder
from safetensors.torch import load_file, save_file
from test_openelm import random_model as random_openelm
from test_video import film
from tower_cases import CASES, every_tower

import pumice
from pumice.assistant import Assistant, question_messages
from pumice.chat_jinja import JinjaTemplate
from pumice.config import LoraConfig
from pumice.encode import Processor, encode
from pumice.formats import own
from pumice.formats.describe import describe
from pumice.formats.own import open_own, save_own
from pumice.model.assistant import AssistantModel
from pumice.model.connectors import MlpConnector
from pumice.model.towers import TOWERS
from pumice.model.weights import pack_delta, save_delta
from pumice.plan import run as plan_run
from pumice.pocket.parts import PARTS, cache_dir, verify
from pumice.templates import get_template
from pumice.train.lowrank import add_lora
from pumice.types import PumiceError
from pumice.vision.frames import VideoPolicy
from pumice.vision.layout import Policy

TILE, SIDE = 56, 4
CPU = torch.device("cpu")
CONNECTORS = [(1, 1, False), (2, 2, True), (4, 3, False)]
"""(shuffle, depth, norm)"""
LMS = ("llama", "mistral", "qwen2", "openelm")


def language_model(kind: str, vocabulary: int, tied: bool) -> Any:
    import hf_models
    import transformers

    if kind == "openelm":
        return random_openelm(vocab_size=vocabulary)
    config = hf_models.language_model(kind, vocabulary)
    config.tie_word_embeddings = tied
    return transformers.AutoModelForCausalLM.from_config(config)


def make(
    tokenizer: Any,
    tower: str = "dinov2",
    connector: tuple[int, int, bool] = (2, 2, True),
    layers: tuple[int, ...] = (1, 3),
    lm: str = "llama",
    tied: bool = False,
    **fields: Any,
) -> Assistant:
    """A random assistant: no weight is at its neutral start, and attention is far from uniform."""
    torch.manual_seed(0)
    seeing = TOWERS[tower](CASES[tower].fields, TILE, layers)
    speaking = language_model(lm, len(tokenizer), tied)
    shuffle, depth, norm = connector
    made = MlpConnector(seeing.width, speaking.config.hidden_size, shuffle, depth, norm)
    model = AssistantModel(seeing, made, speaking, pool_first=fields.pop("pool_first", False))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if lm != "openelm" or not name.startswith("lm."):
                parameter.mul_(2.0).add_(0.1 * torch.randn_like(parameter))
    policy = Policy("anyres", TILE, SIDE // shuffle, grids=((1, 1), (2, 1), (1, 2)), newline=True, unpad=True)
    given = {"template": get_template("chatml"), "max_tokens": 3000} | fields
    mean, std = seeing.pixels.mean, seeing.pixels.std
    return Assistant(model, Processor(tokenizer, given.pop("template"), policy, mean, std, **given))


def conversations(assistant: Assistant) -> list[list[dict[str, Any]]]:
    """One picture, three, none."""
    sizes = [[(60, 40)], [(30, 90), (57, 56), (8, 9)], []]
    asked = [question_messages([picture(i, size) for i, size in enumerate(case)], "What is <it>?") for case in sizes]
    answered = [*asked[0], {"role": "assistant", "content": "A cat."}, {"role": "user", "content": "Sure?"}]
    return [*asked, answered]


def assert_same(one: Assistant, other: Assistant) -> None:
    for messages in conversations(one):
        expected = one.logits(messages)
        assert expected.isfinite().all()
        assert expected.std() > 0.01
        assert torch.equal(other.logits(messages), expected)
    first, again = (a.ask(picture(7, (50, 70)), "What?", max_tokens=6) for a in (one, other))
    assert (first.text, first.tokens) == (again.text, again.tokens)
    # Kernels may sum in another order where a tensor lies elsewhere in memory.
    assert first.logprob == pytest.approx(again.logprob, abs=1e-3)


def assert_round_trip(assistant: Assistant, folder: Path, dtype: torch.dtype = torch.float32) -> Assistant:
    """Saved, opened and saved again: the same logits, the same answer, the same bytes in every file."""
    save_own(assistant, folder / "first")
    opened = open_own(folder / "first", dtype, CPU)
    assert_same(assistant, opened)
    save_own(opened, folder / "second")
    assert contents(folder / "first") == contents(folder / "second")
    assert not list(folder.glob(".tmp-*"))
    return opened


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@every_tower
@pytest.mark.parametrize("connector", CONNECTORS)
def test_every_tower_and_connector_comes_back_bit_for_bit(tokenizer, tmp_path, name, connector):
    shuffle, depth, norm = connector
    assistant = make(tokenizer, name, connector, layers=(1, 3) if depth > 1 else (2,))
    opened = assert_round_trip(assistant, tmp_path)
    assert opened.name == "first"
    assert opened.model.tower.layers == assistant.model.tower.layers
    assert opened.model.connector.shuffle == shuffle
    assert isinstance(opened.model.connector.norm, torch.nn.RMSNorm) == norm
    expected = assistant.model.state_dict()
    found = opened.model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in found.items())


@pytest.mark.parametrize("lm", LMS)
@pytest.mark.parametrize("tied", [False, True])
def test_every_language_model_comes_back_tied_or_not(tokenizer, tmp_path, lm, tied):
    assistant = make(tokenizer, lm=lm, tied=tied)
    opened = assert_round_trip(assistant, tmp_path)
    tied = tied or lm == "openelm"
    stored = load_file(tmp_path / "first" / "model.safetensors")
    assert ("lm.lm_head.weight" in stored) != tied
    head, table = opened.model.lm.lm_head.weight, opened.model.lm.get_input_embeddings().weight
    assert (head is table) == tied


def test_a_head_that_is_not_tied_whatever_its_config_says(tokenizer, tmp_path):
    assistant = make(tokenizer, tied=True)
    head = assistant.model.lm.lm_head
    head.weight = torch.nn.Parameter(head.weight.detach().flip(0), requires_grad=False)
    assert_round_trip(assistant, tmp_path)


def test_sixteen_bits_stay_as_they_were_loaded(tokenizer, tmp_path):
    whole = make(tokenizer, "dinov3")
    save_own(whole, tmp_path / "whole")
    half = open_own(tmp_path / "whole", torch.bfloat16, CPU)
    assert {value.dtype for value in half.model.state_dict().values()} == {torch.bfloat16}
    (tmp_path / "half").mkdir()
    assert_round_trip(half, tmp_path / "half", torch.bfloat16)
    stored = load_file(tmp_path / "half" / "first" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}


def test_rotary_frequencies_keep_their_precision_in_sixteen_bits(tmp_path):
    tokenizer = make_tokenizer()
    save_folder(tmp_path, "next", tokenizer, make_model("next", tokenizer))
    half, whole = (pumice.load(str(tmp_path), dtype=dtype).model.lm for dtype in ("bfloat16", "float32"))
    kept = dict(half.named_buffers())
    for name, expected in whole.named_buffers():
        assert not torch.equal(expected.to(torch.bfloat16).float(), expected)  # or rounding would not show
        assert torch.equal(kept[name], expected), name


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_published_config_names_no_kernel_to_fetch(tmp_path, key):
    tokenizer = make_tokenizer()
    save_folder(tmp_path, "next", tokenizer, make_model("next", tokenizer))
    expected = pumice.load(str(tmp_path), dtype="float32")
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"][key] = config["vision_config"][key] = "someone/kernel"
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_same(expected, pumice.load(str(tmp_path), dtype="float32"))


def test_a_chat_template_of_its_own_comes_along(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ 'another' }}"  # the tokenizer's isn't the assistant's
    source = CHAT.replace("<image>\n", "<image>\r\n") + "\n\n"
    assistant = make(tokenizer, template=JinjaTemplate(source, tokenizer, "<image>", "<video>"))
    opened = assert_round_trip(assistant, tmp_path)
    assert isinstance(opened.processor.template, JinjaTemplate)
    assert opened.processor.template.source == source
    (tmp_path / "first" / "chat_template.jinja").unlink()
    with pytest.raises(PumiceError, match=r"chat_template.jinja: not readable"):
        open_own(tmp_path / "first", None, CPU)


def test_layouts_of_several_pictures_and_of_videos_come_along(tokenizer, tmp_path):
    several = Policy("pad", TILE, SIDE, newline=True, fill=(9, 8, 7))
    video = VideoPolicy(TILE, SIDE, frames=3, fps=2.0, pool="average", newline="grid", time_instruction=True)
    unshuffled = (1, 2, False)
    assistant = make(tokenizer, connector=unshuffled, several=several, video=video, pool_first=True, max_tokens=2000)
    opened = assert_round_trip(assistant, tmp_path)
    assert replace(opened.processor, tokenizer=None) == replace(assistant.processor, tokenizer=None)
    assert opened.model.pool_first
    path = film(tmp_path / "a.mp4", 12)
    messages = [{"role": "user", "content": [{"type": "video", "video": path}, {"type": "text", "text": "What?"}]}]
    assert torch.equal(opened.logits(messages), assistant.logits(messages))


def test_weights_are_cut_into_files_and_put_together(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(own, "SHARD", "60KB")
    assert_round_trip(make(tokenizer), tmp_path)
    assert len(list((tmp_path / "first").glob("model-*.safetensors"))) > 2


def test_generation_settings_come_along_where_they_are_known(tokenizer, tmp_path):
    from transformers import GenerationConfig

    assistant = make(tokenizer)
    save_own(assistant, tmp_path / "derived")  # what follows from the language model's config says nothing new
    assert not (tmp_path / "derived" / "generation_config.json").exists()
    assistant.model.lm.generation_config = GenerationConfig(temperature=0.3, do_sample=True, eos_token_id=[3, 4])
    opened = assert_round_trip(assistant, tmp_path)
    assert opened.model.lm.generation_config.eos_token_id == [3, 4]


def test_weights_stay_in_the_file_until_they_are_used(tokenizer, tmp_path):
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        pytest.skip("this system doesn't list what is mapped into memory")
    save_own(make(tokenizer), tmp_path / "saved")
    opened = open_own(tmp_path / "saved", torch.float32, CPU)
    lines = [line for line in maps.read_text().splitlines() if line.endswith(str(tmp_path / "saved/model.safetensors"))]
    ranges = [tuple(int(end, 16) for end in line.split()[0].split("-")) for line in lines]
    for name, parameter in opened.model.named_parameters():
        assert any(low <= parameter.data_ptr() < high for low, high in ranges), name


# load and plan


def test_load_opens_it_and_takes_another_template(tokenizer, tmp_path):
    assistant = make(tokenizer)
    save_own(assistant, tmp_path / "saved")
    where = str(tmp_path / "saved")
    assert_same(assistant, pumice.load(where, dtype="float32"))
    other = pumice.load(where, dtype="float32", template="llava_llama_3")
    expected = replace(assistant.processor, template=get_template("llava_llama_3"))
    sample = conversation(1, (40, 50), "What?", None)
    assert torch.equal(encode(sample, other.processor, True).ids, encode(sample, expected, True).ids)
    with pytest.raises(PumiceError, match="unknown conversation template 'nonesuch'; known: "):
        pumice.load(where, template="nonesuch")
    with pytest.raises(PumiceError, match="template 'gemma_instruct' needs '<start_of_turn>' to be one token"):
        pumice.load(where, template="gemma_instruct")
    with pytest.raises(PumiceError, match=r"saved: tower= is for checkpoints that leave their tower out"):
        pumice.load(where, tower=str(tmp_path))
    with pytest.raises(PumiceError, match=r"saved: Pumice's own form, expected a published one"):
        describe(tmp_path / "saved")


RECIPE = """
seed = 0
[model]
lm = "{lm}"
template = "chatml"
[model.tower]
type = "dinov2"
source = "{tower}"
tile = 56
layers = [1, 3]
[model.connector]
shuffle = 2
norm = true
[model.layout]
preset = "POCKET"
tile = 56
side = 2
[stages.answer]
objective = "answer"
steps = 1
batch = 1
lr = {{ connector = 1e-3 }}
data = {{ lines = 1.0 }}
"""


def test_a_run_opens_without_its_parts(tokenizer, tmp_path):
    parts, trained = tmp_path / "parts", make(tokenizer, tied=True)
    untrained = make(tokenizer, tied=True).model
    whole = TOWERS["dinov2"](CASES["dinov2"].fields, TILE, (1, 3))
    whole.load_state_dict(untrained.tower.state_dict())
    whole.model.save_pretrained(parts / "tower")
    trained.model.lm.save_pretrained(parts / "lm")
    tokenizer.save_pretrained(parts / "lm")
    with torch.no_grad():
        for parameter in trained.model.tower.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.toml").write_text(RECIPE.format(lm=parts / "lm", tower=parts / "tower"))
    pairs = {"model.layers.1.mlp.up_proj": (0.2 * torch.randn(2, 32), torch.randn(48, 2))}
    save_delta(pack_delta(trained.model, untrained.tower, pairs), run / "delta.safetensors", {})
    opened = pumice.load(str(run), dtype="float32")
    save_own(opened, tmp_path / "alone")
    shutil.rmtree(parts)
    shutil.rmtree(run)
    assert_same(opened, pumice.load(str(tmp_path / "alone"), dtype="float32"))


@pytest.mark.slow
def test_the_pocket_model_opens_without_its_parts(tmp_path, monkeypatch):
    if not all(verify(cache_dir() / name) for name in PARTS):
        pytest.skip("the pocket model's parts are not in the cache; make demo fetches them")
    pocket = pumice.load("pocket", dtype="float32")
    assert_round_trip(pocket, tmp_path)
    with pytest.raises(PumiceError, match="pocket: tower= is for checkpoints"):
        pumice.load("pocket", tower="x")
    assert plan_run.find_model(str(tmp_path / "first")).policy == plan_run.find_model("pocket").policy


@every_tower
@pytest.mark.parametrize("lm", LMS)
def test_a_plan_counts_what_is_stored(tokenizer, tmp_path, capsys, name, lm):
    layers = (1, 3) if lm != "llama" else (2,)
    save_own(make(tokenizer, name, layers=layers, lm=lm, tied=lm == "qwen2"), tmp_path / "saved")
    plan_run.main([str(tmp_path / "saved")], (60, 40), device="h100", as_json=True)
    (planned,) = json.loads(capsys.readouterr().out)["models"]
    stored = load_file(tmp_path / "saved" / "model.safetensors")
    counts = {part: sum(v.numel() for n, v in stored.items() if n.startswith(part)) for part in ("tower", "lm")}
    assert planned["model"] == "saved"
    assert planned["tower_parameters"] == counts["tower"]
    assert planned["lm_parameters"] == counts["lm"]
    assert planned["parameters"] == sum(value.numel() for value in stored.values())
    opened = open_own(tmp_path / "saved", torch.float32, CPU)
    features = encode(conversation(1, (60, 40), "?", None), opened.processor, prompt=True)
    assert planned["tokens"] == features.layouts[0].tokens
    assert planned["views"] == features.layouts[0].views


# what is damaged


@pytest.fixture
def saved(tokenizer, tmp_path) -> Path:
    save_own(make(tokenizer, connector=(2, 2, True)), tmp_path / "saved")
    return tmp_path / "saved"


def at(values: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    *above, last = path.split("/")
    for key in above:
        values = values[key]
    return values, last


MISSING = object()
FAULTS = {
    "another version": ("format", 2, r"format = 2; this version of Pumice reads 1"),
    "no version": ("format", MISSING, r"format = None; this version of Pumice reads 1"),
    "an unknown key": ("towr", {}, r"config.json: towr: unknown key; the nearest is 'tower'"),
    "an unknown key inside": ("connector/shufle", 2, r"connector.shufle: unknown key; the nearest is 'shuffle'"),
    "an unknown key of a layout": ("layout/sides", 2, r"layout: policy: unknown key 'sides'; the nearest is 'side'"),
    "a missing key": ("max_tokens", MISSING, r"config.json: missing max_tokens"),
    "a missing key inside": ("connector/norm", MISSING, r"config.json: missing connector.norm"),
    "a string for a number": ("tower/tile", "56", r"tower.tile: expected an integer of at least 1, found string"),
    "a number for a switch": ("pool_first", 1, r"pool_first: expected true or false, found int 1"),
    "null for an object": ("connector", None, r"connector: expected an object, found NoneType null"),
    "a list for an object": ("text_config", [], r"text_config: expected an object, found list"),
    "a list for a layout": ("several", [], r"several: expected an object, found list"),
    "two channels": ("pixels/mean", [0.5, 0.5], r"pixels.mean: expected a list of 3"),
    "no spread": ("pixels/std", [0.5, 0.5, 0], r"pixels.std: expected a number above 0"),
    "an unknown tower": ("tower/type", "vit", r"tower.type: expected one of clip, siglip"),
    "an unknown template": ("template", "none", r"config.json: template: unknown conversation template 'none'"),
    "no blocks": ("tower/layers", [], r"tower.layers: expected at least one block"),
    "blocks that fall": ("tower/layers", [3, 1], r"tower layers \[3, 1\]: expected rising numbers"),
    "layouts of two sizes": (
        "several",
        Policy("square", TILE, 4).to_dict(),
        r"several: tiles of 56 pixels and 4 tokens a side, the layout's have \(56, 2\)",
    ),
    "tiles of two sizes": ("tower/tile", 28, r"layout.tile: 56 pixels; the tower's have 28"),
    "tokens that don't come": ("connector/shuffle", 4, r"layout.side = 2 tokens; the tower gives 4 patches a side"),
    "no type of language model": ("text_config/model_type", MISSING, r"text_config.model_type = None"),
    "a type that isn't one": ("text_config/model_type", "bread", r"no model can be built from .*bread"),
    "a tower for a language model": ("text_config/model_type", "clip", r"no model can be built from"),
    "no heads": ("text_config/num_attention_heads", 0, r"no model can be built from"),
    "words for a width": ("tower/config/hidden_size", "wide", r"the tower's config: .*hidden_size"),
    "quantised weights": ("text_config/quantization_config", {"bits": 4}, r"quantization_config: quantised weights"),
    "code": ("text_config/auto_map", {"AutoConfig": "a.B"}, r"text_config.auto_map: code of its own"),
    "a kernel": ("text_config/attn_implementation", "a/b", r"text_config.attn_implementation: an attention kernel"),
    "the tower's kernel": ("tower/config/_attn_implementation", "a/b", r"tower.config._attn_implementation: an att"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_config_that_cannot_be_is_named(saved, fault):
    path, value, message = FAULTS[fault]
    config = json.loads((saved / "config.json").read_text())
    inside, key = at(config, path)
    if value is MISSING:
        del inside[key]
    else:
        inside[key] = value
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(PumiceError, match=message) as caught:
        pumice.load(str(saved))
    assert str(saved) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_misspelt_key_is_named_before_the_one_that_is_missing(saved):
    text = (saved / "config.json").read_text()
    (saved / "config.json").write_text(text.replace('"connector"', '"conector"'))
    with pytest.raises(PumiceError, match=r"conector: unknown key; the nearest is 'connector'"):
        pumice.load(str(saved))


def test_a_plan_of_tokens_that_do_not_come_is_refused(saved):
    config = json.loads((saved / "config.json").read_text())
    config["layout"]["side"] = 1
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(PumiceError, match=r"layout.side = 1 tokens; the tower gives 4 patches a side"):
        plan_run.find_model(str(saved))


def test_all_weights_that_do_not_fit_are_in_one_error(saved):
    weights = load_file(saved / "model.safetensors")
    del weights["tower.model.encoder.layer.1.mlp.fc1.weight"], weights["newline"]
    weights["connector.layers.0.bias"] = weights["connector.layers.0.bias"][:5].clone()
    weights["lm.model.norm.weight"] = weights["lm.model.norm.weight"].to(torch.int32)
    weights |= {"lm.extra": torch.zeros(2), "other": torch.zeros(1)}
    save_file(weights, saved / "model.safetensors")
    with pytest.raises(PumiceError) as caught:
        pumice.load(str(saved))
    message = str(caught.value)
    for expected in (
        f"{saved}: weights that don't fit the config",
        "missing: newline, tower.model.encoder.layer.1.mlp.fc1.weight",
        "unknown: lm.extra, other",
        "of another shape: connector.layers.0.bias [5], expected [32]",
        "not of floating point: lm.model.norm.weight",
    ):
        assert expected in message


def test_files_that_cannot_be_trusted_are_refused(saved):
    weights = saved / "model.safetensors"
    whole = weights.read_bytes()
    for length in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        weights.write_bytes(whole[:length])
        with pytest.raises(PumiceError, match=r"model.safetensors: not readable"):
            pumice.load(str(saved))
    weights.unlink()
    with pytest.raises(PumiceError, match="no weights"):
        pumice.load(str(saved))
    torch.save({"newline": torch.zeros(32)}, saved / "pytorch_model.bin")
    with pytest.raises(PumiceError, match=r"pytorch_model.bin; Pumice's own form has safetensors alone"):
        pumice.load(str(saved))
    weights.write_bytes(whole)
    (saved / "generation_config.json").write_text("[1]")
    with pytest.raises(PumiceError, match=r"generation_config.json: not readable"):
        pumice.load(str(saved))
    (saved / "generation_config.json").unlink()
    (saved / "tokenizer.json").write_text("{}")
    with pytest.raises(PumiceError, match="no tokenizer that can be read"):
        pumice.load(str(saved))
    (saved / "config.json").write_text('{"model_type": "pum')
    with pytest.raises(PumiceError, match=r"config.json: not readable as JSON"):
        pumice.load(str(saved))


# what isn't written


def test_what_could_not_be_opened_again_is_not_written(tokenizer, tmp_path):
    assistant = make(tokenizer)
    assistant.processor = replace(assistant.processor, template=replace(get_template("chatml"), stop="</s>"))
    with pytest.raises(PumiceError, match="chat template 'chatml': expected a JinjaTemplate, or one of"):
        save_own(assistant, tmp_path / "out")
    assistant = make(tokenizer)
    assistant.model.lm.model.layers[0].extra = torch.nn.Linear(2, 2)
    with pytest.raises(PumiceError, match=r"unknown: lm.model.layers.0.extra.weight, lm.model.layers.0.extra.bias"):
        save_own(assistant, tmp_path / "out")
    assistant = make(tokenizer)
    add_lora(assistant.model.lm, LoraConfig(2, 4), 0)
    with pytest.raises(PumiceError, match="low-rank matrices"):
        save_own(assistant, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_over(tokenizer, tmp_path):
    assistant = make(tokenizer)
    full, file = tmp_path / "full", tmp_path / "file"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    file.write_text("mine")
    for out, message in ((full, "full: not empty; nothing"), (file, "file: a file; nothing"), (file / "x", "not writ")):
        with pytest.raises(PumiceError, match=message):
            save_own(assistant, out)
    assert contents(tmp_path) == {"full/mine.txt": b"mine", "file": b"mine"}
    (tmp_path / "empty").mkdir()
    save_own(assistant, tmp_path / "empty")
    save_own(assistant, tmp_path / "new" / "below")
    assert contents(tmp_path / "empty") == contents(tmp_path / "new" / "below")


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Files can't grow beyond so many bytes, as on a disk that is full; Python ignores the signal."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [100, 5000, 50_000])
def test_a_full_disk_leaves_nothing_behind(tokenizer, tmp_path, size):
    assistant = make(tokenizer)
    for out in (tmp_path / "out", tmp_path / "new" / "below"):
        with pytest.raises(PumiceError, match=rf"{out}: not written \(.*File too large") as caught, largest_file(size):
            save_own(assistant, out)
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    save_own(assistant, tmp_path / "out")  # and then there is room
    assert_same(assistant, open_own(tmp_path / "out", torch.float32, CPU))
