"""GGUF files hold the checkpoint's numbers, vocabulary and prompts; what llama.cpp would run otherwise is refused."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_models import TEXTS, byte_level, save_single_view, sentencepiece
from hf_models import CHAT, make_model, make_tokenizer, save_folder
from safetensors.torch import load_file, save_file

from pumice.chat import own_start, spans
from pumice.formats.describe import describe
from pumice.formats.export import export
from pumice.formats.export_gguf import export_gguf
from pumice.formats.gguf_chat import llama_chat
from pumice.formats.gguf_vocabulary import read_vocabulary
from pumice.templates import TEMPLATES, get_template
from pumice.types import Media, PumiceError, Turn

gguf = pytest.importorskip("gguf")

KINDS = (("llama", "sentencepiece"), ("llama", "gpt-2"), ("mistral", "sentencepiece"), ("qwen2", "qwen2"))
HEADS, KV_HEADS = 4, 2
SAYINGS = [
    *TEXTS[:4], "", " ", "  two  spaces ", "line\none\r\n\n\nfour\ttab", "na\u00efve \u20ac \u6f22\u5b57 \U0001f600",
    "12345 3.50", "it's DON'T we'll", "<s> </s> <unk> <|im_end|> <image> <0x0A>", "pictures pictured", "\u2581\u2581a",
]  # fmt: skip


def tokenizer_of(cut: str) -> Any:
    return sentencepiece() if cut == "sentencepiece" else byte_level(cut)


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def made(request, tmp_path_factory) -> tuple[Path, Any, Any, str]:
    """(folder with hf and gguf inside, its transformers model, its tokenizer, the type of its language model)."""
    kind, cut = request.param
    folder = tmp_path_factory.mktemp(kind)
    tokenizer = tokenizer_of(cut)
    model = save_single_view(folder / "hf", kind, tokenizer)
    export_gguf(folder / "hf", folder / "gguf", precision="f32")
    return folder, model, tokenizer, kind


@pytest.fixture
def folder(tmp_path) -> Path:
    """A checkpoint to break."""
    save_single_view(tmp_path / "hf", "llama", byte_level())
    return tmp_path / "hf"


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(metadata, tensors as the reader has them) of a file."""
    reader = gguf.GGUFReader(path)
    assert len({tensor.name for tensor in reader.tensors}) == len(reader.tensors)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    return fields, {tensor.name: tensor for tensor in reader.tensors}


def values(tensor: Any) -> torch.Tensor:
    """A tensor's numbers in fp32, in its shape."""
    found = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    return torch.from_numpy(np.array(found)).reshape([int(n) for n in reversed(tensor.shape)])


def turned(value: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows as llama.cpp's llama has them, channel by channel: 2i is i, 2i + 1 is i + half."""
    size = len(value) // heads
    rows = [head * size + i + half for head in range(heads) for i in range(size // 2) for half in (0, size // 2)]
    return value[rows]


LM_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
TOWER_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out", "mlp.fc1": "ffn_up", "mlp.fc2": "ffn_down", "layer_norm1": "ln1",
    "layer_norm2": "ln2",
}  # fmt: skip


def expected_lm(model: Any, kind: str) -> dict[str, torch.Tensor]:
    """The language model's tensors under llama.cpp's names."""
    state = {k.removeprefix("model.language_model."): v for k, v in model.state_dict().items()}
    found = {"token_embd.weight": state["embed_tokens.weight"], "output_norm.weight": state["norm.weight"]}
    found["output.weight"] = state["lm_head.weight"]
    for name, value in state.items():
        if name.startswith("layers."):
            _, number, rest = name.split(".", 2)
            part, leaf = rest.rsplit(".", 1)
            heads = {"self_attn.q_proj": HEADS, "self_attn.k_proj": KV_HEADS}.get(part)
            value = turned(value, heads) if heads and kind != "qwen2" else value
            found[f"blk.{number}.{LM_NAMES[part]}.{leaf}"] = value
    return found


def expected_projector(model: Any) -> dict[str, torch.Tensor]:
    """Tensors of the tower's first two blocks of three, and of the connector, under llama.cpp's names."""
    tower, found = {k.removeprefix("model.vision_tower."): v for k, v in model.state_dict().items()}, {}
    found["v.class_embd"] = tower["embeddings.class_embedding"]
    found["v.patch_embd.weight"] = tower["embeddings.patch_embedding.weight"]
    found["v.position_embd.weight"] = tower["embeddings.position_embedding.weight"]
    for leaf in ("weight", "bias"):
        found[f"v.pre_ln.{leaf}"] = tower[f"pre_layrnorm.{leaf}"]
        for ours, theirs in (("0", "linear_1"), ("2", "linear_2")):
            found[f"mm.{ours}.{leaf}"] = tower[f"model.multi_modal_projector.{theirs}.{leaf}"]
        for number in (0, 1):
            for name, theirs in TOWER_NAMES.items():
                found[f"v.blk.{number}.{theirs}.{leaf}"] = tower[f"encoder.layers.{number}.{name}.{leaf}"]
    return found


def test_every_tensor_is_the_source_bit_for_bit(made):
    folder, model, _, kind = made
    for file, expected in (("model", expected_lm(model, kind)), ("mmproj", expected_projector(model))):
        _, tensors = read(folder / "gguf" / f"{file}.gguf")
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(values(tensor), expected[name]) for name, tensor in tensors.items())


@pytest.mark.parametrize("precision", ["f16", "bf16", "q8_0"])
def test_matrices_are_rounded_and_vectors_are_not(folder, precision):
    export_gguf(folder, folder.parent / "exact", precision="f32")
    export_gguf(folder, folder.parent / "out", precision=precision)
    for file, wanted in (("model", precision), ("mmproj", "f16" if precision == "q8_0" else precision)):
        fields, tensors = read(folder.parent / "out" / f"{file}.gguf")
        _, exact = read(folder.parent / "exact" / f"{file}.gguf")
        assert gguf.LlamaFileType(fields["general.file_type"]).name == f"MOSTLY_{wanted.upper()}"
        for name, tensor in tensors.items():
            true, stored = values(exact[name]), tensor.tensor_type.name.lower()
            if true.dim() == 1 or name == "v.position_embd.weight" or (true.dim() == 4 and wanted == "bf16"):
                assert stored == "f32", name
                assert torch.equal(values(tensor), true)
            elif wanted == "q8_0" and true.shape[-1] % 32 == 0:
                assert stored == "q8_0", name
                step = true.unflatten(-1, (-1, 32)).abs().amax(-1, keepdim=True) / 127
                off = (values(tensor).unflatten(-1, (-1, 32)) - true.unflatten(-1, (-1, 32))).abs()
                assert (off <= 0.51 * step + 1e-3 * true.abs().max()).all(), name
            else:
                assert stored == ("f16" if wanted == "q8_0" else wanted), name
                dtype = torch.bfloat16 if stored == "bf16" else torch.float16
                assert torch.equal(values(tensor), true.to(dtype).float()), name
    if precision == "q8_0":
        assert {"q8_0", "f16"} <= {
            t.tensor_type.name.lower() for t in read(folder.parent / "out/model.gguf")[1].values()
        }


def test_metadata_is_the_config(made):
    folder, model, tokenizer, kind = made
    fields, _ = read(folder / "gguf" / "model.gguf")
    lm, arch = model.config.text_config, "qwen2" if kind == "qwen2" else "llama"
    assert fields["general.architecture"] == arch
    assert "general.name" not in fields  # llama.cpp would read the vocabulary by it
    expected = {
        "vocab_size": lm.vocab_size, "context_length": lm.max_position_embeddings, "embedding_length": lm.hidden_size,
        "block_count": lm.num_hidden_layers, "feed_forward_length": lm.intermediate_size,
        "attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS, "attention.key_length": 8,
        "attention.layer_norm_rms_epsilon": pytest.approx(lm.rms_norm_eps), "rope.dimension_count": 8,
        "rope.freq_base": lm.rope_parameters["rope_theta"],
    }  # fmt: skip
    assert {key: fields[f"{arch}.{key}"] for key in expected} == expected
    for name in ("bos", "eos"):
        assert fields.get(f"tokenizer.ggml.{name}_token_id") == getattr(tokenizer, f"{name}_token_id")
    assert fields["tokenizer.ggml.add_bos_token"] == bool(tokenizer("").input_ids)
    assert not fields["tokenizer.ggml.add_eos_token"]


def test_the_projector_says_how_pictures_are_seen(made):
    folder, model, *_ = made
    fields, tensors = read(folder / "gguf" / "mmproj.gguf")
    vision, described = model.config.vision_config, describe(folder / "hf")
    assert fields["general.architecture"] == "clip"
    assert (fields["clip.has_vision_encoder"], fields["clip.projector_type"]) == (True, "mlp")
    assert not fields["clip.use_gelu"]  # quick_gelu
    expected = {
        "image_size": vision.image_size, "patch_size": vision.patch_size, "embedding_length": vision.hidden_size,
        "feed_forward_length": vision.intermediate_size, "projection_dim": model.config.text_config.hidden_size,
        "attention.head_count": vision.num_attention_heads, "block_count": 2, "feature_layer": [2],
        "attention.layer_norm_epsilon": pytest.approx(vision.layer_norm_eps),
        "image_mean": pytest.approx(described.mean), "image_std": pytest.approx(described.std),
    }  # fmt: skip
    assert {key: fields[f"clip.vision.{key}"] for key in expected} == expected
    assert not any("post_ln" in name or "blk.2" in name for name in tensors)


@torch.no_grad()
def test_transformers_reads_the_language_model_back(made):
    from transformers import AutoModelForCausalLM

    folder, model, tokenizer, _ = made
    opened = AutoModelForCausalLM.from_pretrained(folder / "gguf", gguf_file="model.gguf", dtype=torch.float32)
    ids = torch.tensor([tokenizer("What is the total of the receipt?").input_ids])
    found, expected = opened.eval()(ids).logits, model(input_ids=ids).logits
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def joined(text: str, fields: dict[str, Any]) -> list[int]:
    """SentencePiece's BPE as llama.cpp does it: neighbours whose union has the highest score, the left ones first."""
    pieces, scores = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.scores"]
    number = {piece: i for i, piece in enumerate(pieces)}
    parts = list(text.replace(" ", "\u2581"))
    while True:
        unions = [left + right for left, right in pairwise(parts)]
        pairs = [(scores[number[union]], -i) for i, union in enumerate(unions) if union in number]
        if not pairs:
            break
        at = -max(pairs)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    found = []
    for part in parts:
        found += [number[part]] if part in number else [number[f"<0x{byte:02X}>"] for byte in part.encode()]
    return found


def test_scores_join_pieces_as_the_tokenizer_does(made):
    folder, _, tokenizer, _ = made
    fields, _ = read(folder / "gguf" / "model.gguf")
    if fields["tokenizer.ggml.model"] != "llama":
        pytest.skip("byte-level")
    assert fields["tokenizer.ggml.add_space_prefix"]
    compared = 0
    for text in SAYINGS:
        # The prefix is a space in front of any text for llama.cpp, for transformers of one that has none yet.
        if text and not text.startswith((" ", "\u2581")) and "<" not in text:
            assert joined(" " + text, fields) == tokenizer(text, add_special_tokens=False).input_ids, text
            compared += 1
    assert compared > 6


def test_transformers_reads_the_byte_level_vocabulary_back(made):
    from transformers import AutoTokenizer

    folder, _, tokenizer, _ = made
    fields, _ = read(folder / "gguf" / "model.gguf")
    if fields["tokenizer.ggml.model"] != "gpt2":
        pytest.skip("SentencePiece")
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    assert fields["tokenizer.ggml.merges"] == [" ".join(merge) for merge in state["model"]["merges"]]
    assert fields["tokenizer.ggml.tokens"] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    opened = AutoTokenizer.from_pretrained(folder / "gguf", gguf_file="model.gguf")
    for text in SAYINGS:
        if "<" not in text and "12345" not in text:  # it cuts every vocabulary as its own class does
            found, expected = (t(text, add_special_tokens=False).input_ids for t in (opened, tokenizer))
            assert found == expected, text


def test_types_of_pieces(made):
    fields, _ = read(made[0] / "gguf" / "model.gguf")
    kinds = dict(zip(fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"], strict=True))
    assert kinds["<image>"] == gguf.TokenType.CONTROL
    if fields["tokenizer.ggml.model"] == "llama":
        assert kinds["<unk>"] == gguf.TokenType.UNKNOWN
        assert (kinds["<s>"], kinds["</s>"]) == (gguf.TokenType.CONTROL,) * 2
        assert [p for p, kind in kinds.items() if kind == gguf.TokenType.BYTE] == [f"<0x{i:02X}>" for i in range(256)]
    else:
        assert gguf.TokenType.BYTE not in kinds.values()


def test_rows_without_a_piece_are_unused_and_words_that_are_added_are_taken_whole():
    tokenizer = byte_level()
    tokenizer.add_tokens(["receipt total"])
    found = read_vocabulary(tokenizer, len(tokenizer) + 3)
    assert found.types[-4:] == [gguf.TokenType.USER_DEFINED] + [gguf.TokenType.UNUSED] * 3
    assert len(set(found.pieces)) == len(found.pieces) == len(tokenizer) + 3


@pytest.mark.parametrize("cut", ["gpt-2", "qwen2", "llama-bpe", "smollm"])
def test_what_byte_level_tokenizers_do_first_has_llama_cpps_name(cut):
    from tokenizers import Regex, pre_tokenizers
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    tokenizer = byte_level("gpt-2" if cut == "smollm" else "qwen2" if cut == "llama-bpe" else cut)
    backend, plain = tokenizer.backend_tokenizer, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if cut == "llama-bpe":
        three = PRETOKENIZE_REGEX.replace(r"\p{N}|", r"\p{N}{1,3}|")
        assert three != PRETOKENIZE_REGEX
        split = pre_tokenizers.Split(Regex(three), behavior="isolated", invert=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, plain])
    if cut == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    assert read_vocabulary(tokenizer, len(tokenizer)).cut == cut


def test_tokenizers_without_a_counterpart_are_refused():
    from tokenizers import normalizers, pre_tokenizers

    tokenizer = byte_level()
    with pytest.raises(PumiceError, match=r"ids up to \d+, but embeddings of 300 rows"):
        read_vocabulary(tokenizer, 300)
    with pytest.raises(PumiceError, match="without merges"):
        read_vocabulary(make_tokenizer(), 1000)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    with pytest.raises(PumiceError, match=r"pre-tokenizer or normaliser llama.cpp has no counterpart of"):
        read_vocabulary(tokenizer, 1000)
    pieces = sentencepiece()
    pieces.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(PumiceError, match="SentencePiece tokenizer with Lowercase"):
        read_vocabulary(pieces, 1000)


MARKER = "<__media_a1B2__>"
PICTURE = Media(None, (1, 1))
TALK: list[list[Turn]] = [
    [Turn("user", ("Hi",))],
    [Turn("user", (PICTURE, "What?"))],
    [Turn("system", ("Be brief.",)), Turn("user", ("Look: ", PICTURE, PICTURE, "Which <image>?")),
     Turn("assistant", ("The first.",)), Turn("user", ("Why <__media?",))],
]  # fmt: skip


def render(source: str, tokenizer: Any, turns: list[Turn], marker: str) -> str:
    """As llama.cpp renders: neighbouring texts and markers are one text."""
    messages = []
    for turn in turns:
        text = "".join(part if isinstance(part, str) else marker for part in turn.content)
        messages.append({"role": turn.role, "content": [{"type": "text", "text": text}]})
    return tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False, add_generation_prompt=True)


@pytest.mark.parametrize("marker", [MARKER, "<__media__>"])
@pytest.mark.parametrize("name", sorted({t.name for t in TEMPLATES.values()} - {"plain"}))
@pytest.mark.parametrize("turns", TALK)
def test_a_template_writes_the_prompt_of_pumice(name, marker, turns):
    tokenizer = sentencepiece() if "<s>" in get_template(name).marks or name == "v1" else byte_level()
    template = get_template(name)
    if template.start not in (None, own_start(tokenizer)) and own_start(tokenizer):
        pytest.skip("another family's tokenizer")
    parts = [span.content for span in spans(turns, template, True, own_start(tokenizer))]
    expected = "".join(part if isinstance(part, str) else marker for part in parts)
    found = render(llama_chat(template, tokenizer), tokenizer, turns, marker)
    assert own_start(tokenizer) + found == expected


@pytest.mark.parametrize("turns", TALK)
def test_a_checkpoints_own_template_puts_pictures_where_it_does_for_transformers(made, turns):
    folder, _, tokenizer, _ = made
    fields, _ = read(folder / "gguf" / "model.gguf")
    messages = []
    for turn in turns:
        # <image> that a person types is told apart from the template's by a sign.
        parts = [
            {"type": "text", "text": p.replace("<image>", "\u00a7")} if isinstance(p, str) else {"type": "image"}
            for p in turn.content
        ]
        messages.append({"role": turn.role, "content": parts})
    written = tokenizer.apply_chat_template(messages, chat_template=CHAT, tokenize=False, add_generation_prompt=True)
    expected = written.replace("<image>", MARKER).replace("\u00a7", "<image>")
    assert render(fields["tokenizer.chat_template"], tokenizer, turns, MARKER) == expected


def test_strings_are_contents_too(made):
    folder, _, tokenizer, _ = made
    source = read(folder / "gguf" / "model.gguf")[0]["tokenizer.chat_template"]
    parts = [{"role": "user", "content": [{"type": "text", "text": f"{MARKER}What?"}]}]
    text = [{"role": "user", "content": f"{MARKER}What?"}]
    found = [tokenizer.apply_chat_template(m, chat_template=source, tokenize=False) for m in (parts, text)]
    assert found[0] == found[1]
    assert f"{MARKER}\nWhat?" in found[0]


@pytest.mark.parametrize("own_tower", [True, False])
def test_originals_have_the_same_tensors(folder, own_tower, tmp_path):
    change_json(folder / "preprocessor_config.json", do_pad=True)
    export(folder, tmp_path / "original", "original")
    export_gguf(folder, tmp_path / "expected", precision="f32")
    tower = None
    if not own_tower:
        weights = load_file(tmp_path / "original" / "model.safetensors")
        kept = {name: value for name, value in weights.items() if "vision_tower" not in name}
        assert len(kept) < len(weights)
        save_file(kept, tmp_path / "original" / "model.safetensors")
        tower = tmp_path / "original" / "vision_tower"
        with pytest.raises(PumiceError, match="has no tower; pass its folder as tower="):
            export_gguf(tmp_path / "original", tmp_path / "out")
        assert not (tmp_path / "out").exists()
    export_gguf(tmp_path / "original", tmp_path / "out", tower, "f32", template="chatml")
    for file in ("model", "mmproj"):
        (_, found), (_, expected) = (read(tmp_path / name / f"{file}.gguf") for name in ("out", "expected"))
        assert found.keys() == expected.keys()
        assert all(np.array_equal(tensor.data, expected[name].data) for name, tensor in found.items())


def test_tied_embeddings_are_written_once(tmp_path):
    save_single_view(tmp_path / "hf", "qwen2", byte_level("qwen2"), tie_word_embeddings=True)
    export_gguf(tmp_path / "hf", tmp_path / "out")
    assert "output.weight" not in read(tmp_path / "out" / "model.gguf")[1]


def test_a_sliding_window_ends_the_context_and_linear_scaling_is_written(tmp_path):
    scaled = {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0}
    tokenizer = byte_level()
    save_single_view(tmp_path / "a", "mistral", tokenizer, sliding_window=1000)
    save_single_view(tmp_path / "b", "llama", tokenizer, rope_parameters=scaled)
    for name in "ab":
        export_gguf(tmp_path / name, tmp_path / f"{name}-out")
    assert read(tmp_path / "a-out" / "model.gguf")[0]["llama.context_length"] == 1000
    fields, _ = read(tmp_path / "b-out" / "model.gguf")
    assert (fields["llama.rope.scaling.type"], fields["llama.rope.scaling.factor"]) == ("linear", 4.0)
    assert fields["llama.rope.freq_base"] == 5000.0


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


REFUSED = {
    "next": r"it cuts pictures into tiles, .* \(2880 where LLaVA-NeXT has 2928\)",
    "next-video": "it cuts pictures into tiles",
    "onevision": "it cuts pictures into tiles",
}


@pytest.mark.parametrize("family", REFUSED)
def test_layouts_that_llama_cpp_does_otherwise_are_refused(tmp_path, family):
    tokenizer = make_tokenizer()
    save_folder(tmp_path / "hf", family, tokenizer, make_model(family, tokenizer))
    with pytest.raises(PumiceError, match=f"not for llama.cpp: {REFUSED[family]}"):
        export_gguf(tmp_path / "hf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


ORIGINALS: dict[str, tuple[dict[str, Any], str]] = {
    "cropped": ({"image_aspect_ratio": "square"}, "made square otherwise \\(crop\\)"),
    "newline": ({"mm_patch_merge_type": "spatial_unpad"}, "a newline token ends its pictures"),
    "video": ({"mm_spatial_pool_mode": "average"}, "a model for videos"),
    "nine grids": (
        {
            "image_aspect_ratio": "anyres",
            "image_grid_pinpoints": [[56, 56], [56, 112], [112, 112]],
            "mm_patch_merge_type": "spatial",
        },
        "into tiles",
    ),
    "one layer": ({"mm_projector_type": "linear"}, "its connector isn't two linear layers"),
    "phi3": ({"model_type": "llava_phi3"}, "its language model is phi3; known here: llama, mistral, qwen2"),
    "activation": ({"hidden_act": "gelu"}, "its language model's activation is gelu"),
    "rotary": (
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}},
        "its rotary positions are scaled by dynamic",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ORIGINALS)
def test_originals_that_llama_cpp_would_run_otherwise_are_refused(folder, case, tmp_path):
    change_json(folder / "preprocessor_config.json", do_pad=True)
    export(folder, tmp_path / "original", "original")
    changes, message = ORIGINALS[case]
    change_json(tmp_path / "original" / "config.json", **changes)
    with pytest.raises(PumiceError, match=f"not for llama.cpp: .*{message}"):
        export_gguf(tmp_path / "original", tmp_path / "out")


def test_towers_that_llama_cpp_runs_otherwise_are_refused(folder, tmp_path):
    vision = json.loads((folder / "config.json").read_text())["vision_config"]
    changes = (
        {"vision_config": vision | {"hidden_act": "relu"}},
        {"vision_feature_layer": [3, 1]},
        {"vision_feature_layer": [1, 1]},
    )
    for change, message in zip(changes, ("activation is relu", r"order \[3, 1\]", r"order \[1, 1\]"), strict=True):
        kept = (folder / "config.json").read_text()
        change_json(folder / "config.json", **change)
        with pytest.raises(PumiceError, match=message):
            export_gguf(folder, tmp_path / "out")
        (folder / "config.json").write_text(kept)


def test_bad_input_is_named_and_nothing_is_left(folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("x")
    with pytest.raises(PumiceError, match="not empty; nothing is written over"):
        export_gguf(folder, out)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    (out / "mine.txt").unlink()
    with pytest.raises(PumiceError, match="unknown precision 'q4_0'; known: f32, f16, bf16, q8_0"):
        export_gguf(folder, out, precision="q4_0")  # type: ignore[arg-type]
    weights = load_file(folder / "model.safetensors")
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    save_file(weights | {name: weights[name] * 1e7}, folder / "model.safetensors")
    with pytest.raises(PumiceError, match=r"blk.1.ffn_up.weight has values beyond f16's range; write it as"):
        export_gguf(folder, out)
    broken = {key: value for key, value in weights.items() if key != name}
    save_file(broken | {"vision_tower.pre_layrnorm.bias": torch.zeros(3)}, folder / "model.safetensors")
    with pytest.raises(PumiceError, match=r"language model that are missing.*: model.layers.1.mlp.up_proj"):
        export_gguf(folder, out)
    save_file(weights | {"vision_tower.pre_layrnorm.bias": torch.zeros(3)}, folder / "model.safetensors")
    with pytest.raises(PumiceError, match=r"weights of the tower .*another shape: pre_layrnorm.bias"):
        export_gguf(folder, out)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(PumiceError, match="no tokenizer that can be read"):
        export_gguf(folder, out)
    assert list(out.iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"out", "hf"}
