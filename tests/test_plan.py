"""Costs against published figures, against transformers' own models, and against torch's count of FLOPs."""

import dataclasses
import json
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_layout import GOLDEN
from torch.utils.flop_counter import FlopCounterMode

from pumice.formats.published import CLIP_B_32, CLIP_L_336, SIGLIP_SO400M
from pumice.formats.section import LM_DEFAULTS, Section, language_model
from pumice.formats.sizes import Tower
from pumice.plan import costs as count
from pumice.plan import run
from pumice.plan.costs import costs
from pumice.plan.devices import BANDWIDTH_EFFICIENCY, COMPUTE_EFFICIENCY, DEVICES, calibrate, fits, predict
from pumice.plan.drawing import CANVAS, draw, map_lines, tile_part
from pumice.plan.find import find_model
from pumice.plan.known import MODELS
from pumice.plan.pen import WIDTH
from pumice.plan.report import binary, scaled, seconds, weights
from pumice.types import PumiceError
from pumice.vision.frames import LLAVA_VIDEO_72B, ONEVISION_VIDEO
from pumice.vision.layout import ELVA, LLAVA_15, NEXT_CLIP, NEXT_SIGLIP, ONEVISION, POCKET, layout

DOCS = Path(__file__).parents[1] / "docs" / "plan.md"
H100 = DEVICES["h100"]
SIGLIP_NEXT = {
    "model_type": "llava_qwen", "mm_vision_tower": "google/siglip-so400m-patch14-384",
    "mm_projector_type": "mlp2x_gelu", "mm_patch_merge_type": "spatial_unpad", "image_aspect_ratio": "anyres",
    "hidden_size": 3584,
    "intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4, "num_hidden_layers": 28,
    "vocab_size": 152064,
    "image_grid_pinpoints": [[384, 768], [768, 384], [768, 768], [1152, 384], [384, 1152]],
}  # fmt: skip


def folder(path, data):
    """A folder that holds a config.json alone."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(data if isinstance(data, str) else json.dumps(data))
    return str(path)


def planned(capsys, *args, **options):
    run.main(*args, as_json=True, **options)
    return json.loads(capsys.readouterr().out)["models"]


# tokens


@pytest.mark.parametrize("size", GOLDEN)
def test_published_token_table(size, capsys, tmp_path):
    names = ["llava-next-vicuna-7b", folder(tmp_path / "siglip", SIGLIP_NEXT), "onevision-7b"]
    for model, (tokens, grid, final) in zip(planned(capsys, names, size, device="h100"), GOLDEN[size], strict=True):
        placed = model["layout"]
        assert model["tokens"] == tokens
        assert ((placed["cols"], placed["rows"]), tuple(placed["map"])) == (grid, final)
        assert model["views"] == 1 + grid[0] * grid[1]


def test_token_budgets_of_elva():
    """ELVA 1.3: tokens a tile and at most, LLaVA-NeXT's before un-padding and newlines."""
    elva, fifteen, following = (MODELS[n] for n in ("elva-7b", "llava-1.5-7b", "llava-next-vicuna-7b"))
    assert (elva.policy.side**2, fifteen.policy.side**2, following.policy.side**2) == (49, 576, 576)
    most = costs(elva, (672, 896), 0, "fp16")
    assert (most.views, most.tokens, most.unmerged) == (13, 637, 637)
    assert costs(fifteen, (672, 896), 0, "fp16").tokens == 576
    square = costs(following, (672, 672), 0, "fp16")
    assert (square.views, square.unmerged, square.tokens) == (5, 2880, 2928)
    sizes = [(w, h) for w in range(100, 2000, 90) for h in range(100, 2000, 90)]
    assert max(costs(elva, size, 0, "fp16").tokens for size in sizes) == 637
    assert max(costs(following, size, 0, "fp16").unmerged for size in sizes) == 2880


@pytest.mark.parametrize(
    ("name", "frames", "tokens"),
    [
        ("onevision-7b", 1, 197),
        ("onevision-7b", 32, 6273),
        ("llava-video-7b", 64, 13440),
        ("llava-video-72b", 32, 6720),
    ],
)
def test_video_tokens(name, frames, tokens):
    plan = costs(MODELS[name], None, frames, "bf16")
    assert (plan.tokens, plan.views, plan.unmerged, plan.layout) == (tokens, frames, frames * 729, None)


def test_picture_and_video_add_up():
    model = MODELS["onevision-0.5b"]
    picture, video = costs(model, (1920, 1080), 0, "bf16"), costs(model, None, 32, "bf16")
    both = costs(model, (1920, 1080), 32, "bf16")
    for name in ("tokens", "views", "unmerged", "tower_flops", "connector_flops", "prefill_2nt", "kv_bytes"):
        assert getattr(both, name) == getattr(picture, name) + getattr(video, name), name
    assert both.prefill_flops > picture.prefill_flops + video.prefill_flops  # each looks at the other
    assert both.parameters == picture.parameters


# ELVA's cost picture


def test_tower_figures_of_elva():
    """1.4: image towers as open_clip counts them, with all blocks and the projection of the pooled vector."""
    small = count.tower_flops(CLIP_B_32, 12) + 2 * 768 * 512
    large = count.tower_flops(CLIP_L_336, 24) + 2 * 1024 * 768
    assert (round(small / 1e9, 2), round(large / 1e9, 2)) == (8.82, 381.92)
    assert round((count.tower_parameters(CLIP_B_32) + 768 * 512) / 1e6, 2) == 87.85
    assert round((count.tower_parameters(CLIP_L_336) + 1024 * 768) / 1e6, 1) == 304.3
    assert round(13 * small / 1e9) == 115
    assert round(5 * large / 1e9, -1) == 1910
    assert (round(5 * large / (13 * small), 1), round(large / (13 * small), 1)) == (16.7, 3.3)


def test_what_runs_is_a_block_less():
    """LLaVA and ELVA take CLIP's features before the last block."""
    assert costs(MODELS["elva-7b"], (672, 896), 0, "fp16").tower_flops == 13 * count.tower_flops(CLIP_B_32, 11)
    assert costs(MODELS["llava-1.5-7b"], (672, 896), 0, "fp16").tower_flops == count.tower_flops(CLIP_L_336, 23)
    assert costs(MODELS["onevision-7b"], (384, 384), 0, "fp16").tower_flops == 2 * count.tower_flops(SIGLIP_SO400M, 26)


def test_language_model_figures_of_elva():
    """1.4: a nominal 7e9 weights; KV cache of a 7B Llama in fp16."""
    assert round(count.simple_flops(7 * 10**9, 637) / 1e12, 1) == 8.9
    assert round(count.simple_flops(7 * 10**9, 2880) / 1e12) == 40
    lm = MODELS["elva-7b"].lm
    assert count.kv_bytes_per_token(lm, "fp16") == 2**19
    elva = costs(MODELS["elva-7b"], (672, 896), 0, "fp16")
    assert round(elva.kv_bytes / 2**30, 2) == 0.31
    assert round(2880 * count.kv_bytes_per_token(lm, "fp16") / 2**30, 2) == 1.41
    assert elva.prefill_2nt == 2 * 6_738_415_616 * 637
    assert elva.decode_flops == count.decode_flops(lm, 638)  # the next token attends to itself too


def test_cache_counts_key_value_heads():
    """Qwen2-7B: keys and values of 4 heads of 128 in 28 blocks; OpenELM-270M: 5*3 + 7*4 + 4*5 heads of 64."""
    assert count.kv_bytes_per_token(MODELS["onevision-7b"].lm, "bf16") == 2 * 28 * 4 * 128 * 2
    assert count.kv_bytes_per_token(MODELS["elva-270m"].lm, "fp32") == 2 * (5 * 3 + 7 * 4 + 4 * 5) * 64 * 4


@pytest.mark.parametrize(
    ("name", "billions", "file"),
    [("elva-160m", 0.251, 0.502), ("elva-1.1b", 1.173, 2.35), ("elva-tiny-vicuna-1.1b", 1.193, 2.39),
     ("elva-7b", 6.846, 13.70), ("elva-270m", 0.36, None), ("elva-450m", 0.55, None), ("elva-3.8b", 3.92, None),
     ("elva-13b", 13.1, None)],
)  # fmt: skip
def test_sizes_of_released_elva(name, billions, file):
    """1.5: parameters, and GB of the fp16 files (three files of two decimals for 7B)."""
    plan = costs(MODELS[name], (224, 224), 0, "fp16")
    assert plan.parameters / 1e9 == pytest.approx(billions, rel=0.02 if file is None else 5e-4)
    if file:
        assert plan.weight_bytes / 1e9 == pytest.approx(file, abs=0.005 if file < 10 else 0.015)


# parameters


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("onevision-0.5b", 494_032_768), ("onevision-7b", 7_615_616_512), ("onevision-72b", 72_706_203_648),
        ("llava-1.5-7b", 6_738_415_616), ("llava-1.5-13b", 13_015_864_320), ("llava-next-mistral-7b", 7_241_732_096),
        ("llava-next-34b", 34_388_917_248), ("llava-next-llama3-8b", 8_030_261_248),
        ("llava-next-72b", 72_287_920_128), ("llava-next-110b", 111_209_914_368), ("elva-270m", 271_527_168),
        ("elva-450m", 457_179_136), ("elva-1.1b", 1_079_891_456), ("elva-tiny-vicuna-1.1b", 1_100_048_384),
        ("elva-3.8b", 3_821_079_552), ("elva-160m", 162_417_408),
    ],
)  # fmt: skip
def test_published_language_models(name, parameters):
    assert count.lm_parameters(MODELS[name].lm) == parameters


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("onevision-0.5b", 1_836_800), ("onevision-7b", 16_980_992), ("onevision-72b", 76_562_432),
     ("llava-1.5-7b", 20_979_712)],
)  # fmt: skip
def test_published_connectors(name, parameters):
    assert count.connector_parameters(MODELS[name]) == parameters


def test_published_checkpoint():
    assert costs(MODELS["onevision-7b"], (384, 384), 0, "bf16").parameters == 8_030_348_832


def transformers_model(name, config, **fields):
    """A transformers model without memory for its weights."""
    import transformers

    with torch.device("meta"):
        return getattr(transformers, name)(getattr(transformers, config)(**fields))


def parameters(model):
    return sum(p.numel() for p in model.parameters())


VISION = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2}
TOWERS = {
    "CLIP tiny": (Tower("clip", 24, 3, 40, 28, 7, 3), "CLIPVision", {**VISION, "image_size": 28, "patch_size": 7}),
    "CLIP-L": (
        CLIP_L_336, "CLIPVision",
        {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
         "image_size": 336, "patch_size": 14},
    ),
    "SigLIP tiny": (
        Tower("siglip", 24, 3, 40, 30, 7, 3, head=True), "SiglipVision", {**VISION, "image_size": 30, "patch_size": 7},
    ),
    "SigLIP so400m": (
        SIGLIP_SO400M, "SiglipVision",
        {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26, "num_attention_heads": 16,
         "image_size": 384, "patch_size": 14, "vision_use_head": False},
    ),
    "DINOv2 tiny": (
        Tower("dinov2", 24, 3, 96, 28, 7, 3), "Dinov2",
        {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 28, "patch_size": 7},
    ),
    "DINOv3 tiny": (
        Tower("dinov3", 24, 3, 40, 28, 7, 3, registers=4), "DINOv3ViT",
        {**VISION, "image_size": 28, "patch_size": 7, "num_register_tokens": 4},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TOWERS)
def test_tower_parameters_equal_transformers(name):
    tower, kind, fields = TOWERS[name]
    assert count.tower_parameters(tower) == parameters(transformers_model(f"{kind}Model", f"{kind}Config", **fields))


def test_siglip_as_google_published_it():
    whole = dataclasses.replace(SIGLIP_SO400M, layers=27, head=True)
    assert count.tower_parameters(whole) == 428_225_600


TINY_LM = {
    "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 100,
}  # fmt: skip
CLASSES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "phi3": "Phi3"}


CASES = {
    "defaults": {},
    "tiny": TINY_LM,
    "tied": {**TINY_LM, "tie_word_embeddings": True},
    "null kv heads": {**TINY_LM, "num_key_value_heads": None},
}


@pytest.mark.parametrize(
    ("kind", "case"),
    # transformers' Mistral refuses a null
    [(kind, case) for kind in CLASSES for case in CASES if (kind, case) != ("mistral", "null kv heads")],
)
def test_lm_parameters_equal_transformers(kind, case):
    """With the defaults also those sizes are compared that this package writes down itself."""
    fields = CASES[case]
    settled = {"pad_token_id": None, "eos_token_id": 0, "bos_token_id": 0, **fields}
    model = transformers_model(f"{CLASSES[kind]}ForCausalLM", f"{CLASSES[kind]}Config", **settled)
    lm = language_model(Section("text", {"model_type": kind, **fields}), "")
    assert count.lm_parameters(lm) == parameters(model)
    assert (
        lm.head_dim * lm.blocks[0].heads == model.config.num_attention_heads * model.model.layers[0].self_attn.head_dim
    )


@pytest.mark.parametrize(
    ("name", "kind", "fields"),
    [
        ("onevision-0.5b", "Qwen2", (896, 4864, 24, 14, 2, 151936, True)),
        ("onevision-7b", "Qwen2", (3584, 18944, 28, 28, 4, 152064, False)),
        ("llava-1.5-7b", "Llama", (4096, 11008, 32, 32, 32, 32000, False)),
    ],
)
def test_real_language_models_equal_transformers(name, kind, fields):
    named = dict(zip((*TINY_LM, "tie_word_embeddings"), fields, strict=True))
    model = transformers_model(f"{kind}ForCausalLM", f"{kind}Config", **named)
    assert count.lm_parameters(MODELS[name].lm) == parameters(model)


# llava-hf's folders

VISION_HF = {
    "clip": {"model_type": "clip_vision_model", **VISION, "image_size": 28, "patch_size": 7},
    "siglip": {"model_type": "siglip_vision_model", **VISION, "image_size": 30, "patch_size": 7},
}
HF = {
    "llava": ("Llava", {"vision_config": VISION_HF["clip"], "text_config": {"model_type": "llama", **TINY_LM}}),
    "llava_next": (
        "LlavaNext",
        {"vision_config": VISION_HF["clip"], "text_config": {"model_type": "mistral", **TINY_LM},
         "image_grid_pinpoints": [[28, 56], [56, 56]]},
    ),
    "llava_next_video": (
        "LlavaNextVideo",
        {"vision_config": VISION_HF["clip"], "text_config": {"model_type": "llama", **TINY_LM},
         "image_grid_pinpoints": [[28, 56], [56, 56]]},
    ),
    "llava_onevision": (
        "LlavaOnevision",
        {"vision_config": {**VISION_HF["siglip"], "vision_use_head": False}, "tie_word_embeddings": True,
         "text_config": {"model_type": "qwen2", **TINY_LM, "tie_word_embeddings": True},
         "image_grid_pinpoints": [[30, 30], [30, 60], [60, 30]]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", HF)
@pytest.mark.parametrize("written", ["whole", "difference", "defaults"])
def test_hf_folder_equals_transformers(kind, written, tmp_path):
    """Parameters of the whole model, from the file as save_pretrained writes it, shortened, or with its type alone."""
    import transformers

    name, fields = HF[kind]
    config = getattr(transformers, f"{name}Config")(**({} if written == "defaults" else fields))
    text = {
        "whole": json.dumps(config.to_dict()),
        "difference": config.to_json_string(use_diff=True),
        "defaults": json.dumps({"model_type": kind}),
    }[written]
    read = find_model(folder(tmp_path / "model", text))
    with torch.device("meta"):
        built = getattr(transformers, f"{name}ForConditionalGeneration")(config)
    assert costs(read, (50, 40), 0, "bf16").parameters == parameters(built)
    assert read.tower.tile == config.vision_config.image_size
    side = config.vision_config.image_size // config.vision_config.patch_size
    assert read.policy.side == side
    chosen = config.vision_feature_layer
    assert read.tower.used == config.vision_config.num_hidden_layers + 1 + chosen


@pytest.mark.parametrize(
    ("kind", "preset"), [("llava", LLAVA_15), ("llava_next", NEXT_CLIP), ("llava_onevision", ONEVISION)]
)
def test_default_hf_layouts(kind, preset, tmp_path):
    """The line's own layouts, with transformers' order of sides and rounding where pictures are tiled."""
    read = find_model(folder(tmp_path / "model", {"model_type": kind}))
    tiled = preset.mode == "anyres"
    assert read.policy == (dataclasses.replace(preset, grid_order="hw", rounding="round7") if tiled else preset)
    assert read.newline == tiled
    assert (read.video == ONEVISION_VIDEO) == (kind == "llava_onevision")


def test_next_video_pools_before_its_connector(tmp_path):
    read = find_model(folder(tmp_path / "video", {"model_type": "llava_next_video"}))
    plan = costs(read, None, 32, "bf16")
    assert (plan.tokens, plan.unmerged) == (32 * 144, 32 * 576)
    assert plan.connector_flops == 32 * 144 * count.connector_flops(read)
    assert costs(read, (336, 336), 0, "bf16").connector_flops == 3 * 576 * count.connector_flops(read)


# the originals' folders

ONEVISION_7B = {
    **SIGLIP_NEXT, "model_type": "llava", "architectures": ["LlavaQwenForCausalLM"],
    "image_aspect_ratio": "anyres_max_9",
    "image_grid_pinpoints": [[384 * i, 384 * j] for i in range(1, 7) for j in range(1, 7)],
    "mm_newline_position": "one_token", "mm_spatial_pool_mode": "bilinear", "mm_vision_select_layer": -2,
    "mm_hidden_size": 1152, "mm_resampler_type": None,
}  # fmt: skip
VICUNA = {
    "model_type": "llava_llama", "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "mm_projector_type": "mlp2x_gelu", "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32,
    "num_key_value_heads": 32, "num_hidden_layers": 32, "vocab_size": 32000,
}  # fmt: skip
MAP = {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad"}
NINE = [(224, 224), (224, 448), (448, 224), (448, 448), (448, 672), (672, 448), (672, 672), (672, 896), (896, 672)]


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (ONEVISION_7B, "onevision-7b"),
        ({**ONEVISION_7B, "image_grid_pinpoints": "(1x1),...,(6x6)"}, "onevision-7b"),
        ({**VICUNA, "image_aspect_ratio": "pad"}, "llava-1.5-7b"),
        (
            {**VICUNA, "image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad",
             "image_grid_pinpoints": "[(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]"},
            "llava-next-vicuna-7b",
        ),
        (
            {**VICUNA, "image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial", "image_grid_pinpoints": NINE,
             "mm_vision_tower": "gwkrsrch/elva-encoder-base-patch32"},
            "elva-7b",
        ),
    ],
)  # fmt: skip
def test_original_files_give_the_known_models(data, name, tmp_path):
    assert dataclasses.replace(find_model(folder(tmp_path / "model", data)), name=name) == MODELS[name]


def test_llava_videos_file_says_how_frames_are_taken(tmp_path):
    data = {**ONEVISION_7B, "mm_newline_position": "grid", "force_sample": True, "add_time_instruction": True}
    assert find_model(folder(tmp_path / "model", data)).video == LLAVA_VIDEO_72B
    without = {key: value for key, value in data.items() if key not in ("force_sample", "add_time_instruction")}
    plain = find_model(folder(tmp_path / "model", without)).video
    assert plain == dataclasses.replace(LLAVA_VIDEO_72B, force_sample=False, time_instruction=False)


def test_siglip_next_file(tmp_path):
    assert find_model(folder(tmp_path / "model", SIGLIP_NEXT)).policy == NEXT_SIGLIP


def test_average_pooling_of_the_originals(tmp_path):
    data = {**ONEVISION_7B, "mm_newline_position": "grid", "mm_spatial_pool_mode": "average"}
    assert costs(find_model(folder(tmp_path / "model", data)), None, 64, "bf16").tokens == 11_648


def test_single_view_with_a_newline(tmp_path):
    for aspect in ("pad", "square"):
        data = {**VICUNA, "image_aspect_ratio": aspect, "mm_patch_merge_type": "spatial_unpad"}
        assert costs(find_model(folder(tmp_path / "model", data)), (640, 480), 0, "bf16").tokens == 577


def test_openelm_file(tmp_path):
    """The lists of the published 270M file (blocks 0 to 15), and the class that runs them."""
    from pumice.model.openelm import OpenELMConfig, OpenELMForCausalLM

    heads = [12] * 5 + [16] * 7 + [20] * 4
    multipliers = [0.5, 0.73, 0.97, 1.2, 1.43, 1.67, 1.9, 2.13, 2.37, 2.6, 2.83, 3.07, 3.3, 3.53, 3.77, 4.0]
    data = {
        "model_type": "llava_openelm", "mm_vision_tower": "gwkrsrch/elva-encoder-base-patch32",
        "mm_projector_type": "mlp2x_gelu", "image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial",
        "image_grid_pinpoints": NINE, "model_dim": 1280, "num_transformer_layers": 16, "head_dim": 64,
        "num_query_heads": heads, "num_kv_heads": [n // 4 for n in heads], "ffn_multipliers": multipliers,
        "ffn_dim_divisor": 256, "vocab_size": 32000,
    }  # fmt: skip
    read = find_model(folder(tmp_path / "model", data))
    assert read.lm == MODELS["elva-270m"].lm
    for name, (width, layers) in {"elva-270m": (1280, 16), "elva-450m": (1536, 20), "elva-1.1b": (2048, 28)}.items():
        with torch.device("meta"):
            built = OpenELMForCausalLM(OpenELMConfig(model_dim=width, num_transformer_layers=layers))
        assert count.lm_parameters(MODELS[name].lm) == parameters(built)


# recipes


def test_pocket_is_its_recipe():
    pocket = find_model("pocket")
    assert count.lm_parameters(pocket.lm) == 134_515_008
    assert pocket.policy == POCKET
    assert costs(pocket, (448, 448), 0, "fp32").tokens == 256 + 32 * 33


PART_CONFIGS = {
    "dinov2": {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "mlp_ratio": 2, "patch_size": 7},
    "dinov3_vit": {**VISION, "patch_size": 7, "num_register_tokens": 4},
    "clip_vision_model": {**VISION, "patch_size": 7, "image_size": 28},
    "siglip_vision_model": {**VISION, "patch_size": 7, "image_size": 28},
}


@pytest.mark.parametrize(
    ("kind", "part"),
    list(zip(("dinov2", "dinov3", "clip", "siglip"), PART_CONFIGS, strict=True)),
)
@pytest.mark.parametrize("layers", [(), (1, 2)])
def test_recipe_equals_the_model_that_it_builds(kind, part, layers, tmp_path):
    """Tower, connector and newline of a recipe over folders against the modules themselves."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from pumice.model.assistant import AssistantModel
    from pumice.model.connectors import MlpConnector
    from pumice.model.towers import TOWERS

    tower = TOWERS[kind](PART_CONFIGS[part], 28, layers)
    lm = LlamaForCausalLM(LlamaConfig(**TINY_LM))
    model = AssistantModel(tower, MlpConnector(tower.width, 48, shuffle=2, depth=3, norm=True), lm)
    sources = {
        "tower": folder(tmp_path / "tower", {"model_type": part, **PART_CONFIGS[part]}),
        "lm": folder(tmp_path / "lm", {"model_type": "llama", **TINY_LM}),
    }
    recipe = tmp_path / "mine.toml"
    recipe.write_text(f"""
seed = 0
model.lm = "{sources["lm"]}"
model.tower = {{ type = "{kind}", source = "{sources["tower"]}", tile = 28, layers = {list(layers)} }}
model.connector = {{ depth = 3, norm = true }}
model.layout = {{ mode = "square", tile = 28, side = 2 }}
[stages.a]
objective = "read"
steps = 1
batch = 1
lr = {{ tower = 1e-3 }}
data = {{ wall = 1 }}
""")
    read = find_model(str(recipe))
    plan = costs(read, (100, 50), 0, "fp32")
    assert (read.name, plan.tokens) == ("mine", 4)
    assert plan.tower_parameters == parameters(tower)
    assert plan.parameters == parameters(model)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        tower.model.set_attn_implementation("eager")
        tower(torch.zeros(1, 3, 28, 28))
    assert plan.tower_flops == counter.get_total_flops()


# FLOPs


@pytest.mark.parametrize("name", [name for name in TOWERS if "tiny" in name])
def test_tower_flops_equal_torch(name):
    tower, kind, fields = TOWERS[name]
    import transformers

    fields = {**fields, "attn_implementation": "eager", "vision_use_head": False}
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**fields)).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(2, 3, tower.tile, tower.tile))
    assert 2 * count.tower_flops(tower, 3) == counter.get_total_flops()


def lm_counted(call):
    """FLOPs of a call, without the product that makes rotary angles."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    rotary = sum(
        sum(ops.values()) for name, ops in counter.get_flop_counts().items() if name.endswith("model.rotary_emb")
    )
    return counter.get_total_flops() - rotary


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_lm_flops_equal_torch(kind):
    import transformers

    fields = {**TINY_LM, "attn_implementation": "eager"}
    model = getattr(transformers, f"{CLASSES[kind]}ForCausalLM")(
        getattr(transformers, f"{CLASSES[kind]}Config")(**fields)
    ).eval()
    lm = language_model(Section("text", {"model_type": kind, **TINY_LM}), "")
    T = 11
    cache = transformers.DynamicCache()
    full = lm_counted(
        lambda: model(torch.zeros(1, T, dtype=torch.int64), past_key_values=cache, use_cache=True, logits_to_keep=1)
    )
    # torch multiplies the masked half of the scores too: 4 * heads * head_dim * layers a pair of tokens
    masked = T * (T - 1) // 2 * 4 * 48 * 3
    assert count.prefill_flops(lm, T) == full - masked
    one = lm_counted(lambda: model(torch.zeros(1, 1, dtype=torch.int64), past_key_values=cache, use_cache=True))
    assert count.decode_flops(lm, T + 1) == one


@pytest.mark.parametrize("name", ["onevision-0.5b", "elva-450m", "llava-next-34b"])
def test_prefill_is_all_decoding_steps_with_one_head(name):
    lm = MODELS[name].lm
    for tokens in (1, 2, 77):
        steps = sum(count.decode_flops(lm, context) for context in range(1, tokens + 1))
        assert count.prefill_flops(lm, tokens) == steps - (tokens - 1) * 2 * lm.vocab * lm.hidden


def test_filled_shares():
    """1 where nothing but picture is kept; ELVA 8.2: a 500x2000 page fills 1/3 of its canvas, a photo 3/4."""
    assert count.filled(layout((672, 672), NEXT_CLIP)) == 1
    assert count.filled(layout((640, 480), ELVA)) == pytest.approx(3 / 4)
    assert count.filled(layout((500, 2000), ELVA)) == pytest.approx(1 / 3, abs=1e-3)
    assert count.filled(layout((1000, 500), LLAVA_15)) == pytest.approx(1 / 2)
    assert count.filled(layout((1001, 4), NEXT_CLIP)) == 0  # un-padding drops every row
    generator = random.Random(0)
    for _ in range(300):
        size = generator.randint(1, 3000), generator.randint(1, 3000)
        for policy in (LLAVA_15, NEXT_CLIP, ONEVISION, ELVA, POCKET):
            assert 0 <= count.filled(layout(size, policy)) <= 1 + 1e-9


# times


def test_predicted_times_follow_the_roofline():
    plan = costs(MODELS["elva-7b"], (672, 896), 0, "bf16")
    times = predict(plan, H100)
    compute, moved = H100.flops * COMPUTE_EFFICIENCY, H100.bandwidth * BANDWIDTH_EFFICIENCY
    assert times.prefill == pytest.approx(plan.prefill_flops / compute)
    # A token reads all weights but the table of embeddings, and the cache.
    read = 2 * (6_738_415_616 - 32000 * 4096) + plan.kv_bytes
    assert times.decode == pytest.approx(read / moved)
    assert times.vision == pytest.approx((plan.tower_flops + plan.connector_flops) / compute)
    tied = costs(MODELS["onevision-0.5b"], (384, 384), 0, "bf16")
    assert predict(tied, H100).decode == pytest.approx((2 * 494_032_768 + tied.kv_bytes) / moved)
    small = costs(MODELS["elva-160m"], (224, 224), 0, "bf16")  # two tiles: reading the tower takes longer
    assert predict(small, H100).vision == pytest.approx(
        (small.tower_parameters + small.connector_parameters) * 2 / moved
    )


def test_measured_devices_are_taken_as_they_are():
    plan = costs(MODELS["elva-7b"], (672, 896), 0, "bf16")
    measured = dataclasses.replace(H100, measured=True)
    assert predict(plan, measured).prefill == pytest.approx(predict(plan, H100).prefill * COMPUTE_EFFICIENCY)
    assert predict(plan, measured).decode == pytest.approx(predict(plan, H100).decode * BANDWIDTH_EFFICIENCY)


def test_memory_decides_what_fits():
    assert fits(costs(MODELS["onevision-7b"], (384, 384), 0, "bf16"), DEVICES["l4"])
    assert not fits(costs(MODELS["onevision-7b"], (384, 384), 0, "bf16"), DEVICES["t4"])
    assert not fits(costs(MODELS["llava-next-110b"], (384, 384), 0, "bf16"), H100)


def test_calibration_measures_this_machine():
    found = calibrate()
    assert found.measured
    assert found.dtype in count.DTYPE_BYTES
    # From a slow core to a large GPU; memory can't be faster than ten of today's.
    assert 1e8 < found.flops < 1e16
    assert 1e8 < found.bandwidth < 1e14
    assert found.memory > 1e8


# what is shown


def test_units():
    assert [scaled(v, "FLOPs") for v in (8.82e9, 999.6e9, 12, 2.475e15)] == [
        "8.82 GFLOPs", "1.00 TFLOPs", "12.0 FLOPs", "2.48 PFLOPs",
    ]  # fmt: skip
    assert [binary(v) for v in (2**19, 637 * 2**19, 2**31, 7)] == ["512 KiB", "318 MiB", "2.00 GiB", "7 B"]
    assert [weights(v) for v in (303_507_456, 6_738_415_616, 900)] == ["304 M", "6.74 B", "900"]
    assert [seconds(v) for v in (1.5, 0.0123, 4.56e-5)] == ["1.50 s", "12.3 ms", "45.6 us"]


def test_table_shows_every_model(capsys):
    run.main(["elva-7b", "llava-next-34b"], (640, 480), device="v100")
    out = capsys.readouterr().out
    assert out.startswith("a picture of 640x480 pixels\n")
    rows = {line.split("│")[1].strip(): line.split("│")[2:-1] for line in out.splitlines() if "│" in line}
    assert [cell.strip() for cell in rows["visual tokens"]] == ["490", "2340"]
    assert [cell.strip() for cell in rows["all"]] == ["6.85 B", "34.8 B"]
    assert [cell.strip() for cell in rows["fits into 32 GB"]] == ["yes", "no"]
    assert "v100, fp16" in out
    assert "50% of 125 TFLOP/s and 70% of 900 GB/s" in out


def test_names_with_brackets_are_shown_as_they_are(capsys, tmp_path):
    run.main([folder(tmp_path / "[red]mine", ONEVISION_7B)], (640, 480), device="h100")
    assert "[red]mine" in capsys.readouterr().out


def test_untrained_models_say_so(capsys):
    run.main(["elva-160m", "onevision-0.5b"], None, video=8, device="h100")
    assert re.search(r"trained on videos +│ +no │ +yes │", capsys.readouterr().out)


def test_json_has_every_number(capsys):
    run.main(["onevision-7b"], (1344, 896), video=32, device="h100", as_json=True)
    body = json.loads(capsys.readouterr().out)
    assert (body["image"], body["frames"], body["device"]["usable_flops"]) == ([1344, 896], 32, 989.4e12 / 2)
    (model,) = body["models"]
    plan = costs(MODELS["onevision-7b"], (1344, 896), 32, "bf16")
    for field in dataclasses.fields(plan):
        if field.type == "int":
            assert model[field.name] == getattr(plan, field.name), field.name
    assert model["layout"]["tokens"] + model["video"]["tokens"] == model["tokens"]
    assert model["predicted_seconds"] == pytest.approx(dataclasses.asdict(predict(plan, H100)))


def test_neither_torch_nor_transformers_is_imported(tmp_path):
    script = (
        "import sys; from pathlib import Path; from pumice.plan.run import main; "
        f"main(['pocket', 'onevision-7b'], (640, 480), device='h100', png=Path({str(tmp_path / 'plan.png')!r})); "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def transcripts():
    """(command, what it printed) of the page's blocks."""
    blocks = re.findall(r"^```text\n\$ (.*?)\n(.*?)^```$", DOCS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks
    return blocks


@pytest.mark.parametrize(("command", "printed"), transcripts())
def test_transcripts_of_the_page(command, printed, capsys):
    words = shlex.split(command)
    assert words[:2] == ["pumice", "plan"]
    options = {"--image": None, "--device": None, "--video": "0"}
    names = []
    rest = iter(words[2:])
    for word in rest:
        if word in options:
            options[word] = next(rest)
        else:
            names.append(word)
    image = run.size(options["--image"]) if options["--image"] else None
    run.main(names, image, int(options["--video"]), options["--device"])
    shown = "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines())
    assert shown == printed.rstrip("\n")


# drawing


def test_tokens_of_the_tiles_add_up():
    generator = random.Random(1)
    for _ in range(200):
        size = generator.randint(1, 3000), generator.randint(1, 3000)
        for policy in (LLAVA_15, NEXT_CLIP, ONEVISION, ELVA, POCKET):
            placed = layout(size, policy)
            top, bottom, left, right = placed.keep
            total = 0
            for col in range(placed.cols):
                for row in range(placed.rows):
                    up, down, west, east = tile_part(placed, col, row)
                    assert 0 <= down - up <= placed.side
                    assert 0 <= east - west <= placed.side
                    total += (down - up) * (east - west)
            assert total == (bottom - top) * (right - left), size


@pytest.mark.parametrize(
    ("size", "policy", "lines"),
    [
        ((640, 480), NEXT_CLIP, ["48x36", "+ 36 newlines", "= 1764"]),
        ((1920, 1080), ONEVISION, ["135x75 scaled to 108x60", "+ 60 newlines", "= 6540"]),
        ((640, 480), ELVA, ["21x21", "= 441"]),
        ((640, 480), LLAVA_15, ["24x24", "= 576"]),
        ((640, 480), dataclasses.replace(LLAVA_15, newline=True), ["24x24", "+ 1 newline", "= 577"]),
    ],
)
def test_sums_under_the_tiles(size, policy, lines):
    assert map_lines(layout(size, policy)) == lines


TILES = (44, 128, 44 + 376, 128 + 376)
"""Where the one tile of LLaVA-1.5 lies in the first panel."""


def share(image, colour, box):
    """Share of the pixels inside of a box that have about a colour."""
    region = image.crop(box)
    found = region.getcolors(region.width * region.height) or []
    near = (n for n, other in found if all(abs(a - b) < 12 for a, b in zip(other, colour, strict=True)))
    return sum(near) / (region.width * region.height)


def test_drawing_hatches_what_is_spent_on_canvas():
    """LLaVA-1.5 pads a wide picture above and below, and a square one not at all."""
    wide, square = (draw([costs(MODELS["llava-1.5-7b"], size, 0, "bf16")], H100) for size in ((900, 300), (500, 500)))
    assert (wide.mode, wide.width) == ("RGB", WIDTH)
    left, top, right, bottom = TILES
    third = (bottom - top) // 3
    for strip, spent in (
        ((left, top, right, top + third - 6), True),
        ((left, top + third + 6, right, top + 2 * third - 6), False),
    ):
        assert (share(wide, CANVAS, strip) > 0.3) == spent
        assert share(square, CANVAS, strip) == 0


def test_drawing_tells_dropped_from_spent():
    """LLaVA-NeXT drops what ELVA keeps: the margins of a 1000x100 picture."""
    dropped, kept = (draw([costs(MODELS[n], (1000, 100), 0, "bf16")], H100) for n in ("llava-next-34b", "elva-7b"))
    panel = (0, 120, 900, 520)
    assert share(kept, CANVAS, panel) > 0.1
    assert share(dropped, CANVAS, panel) < 0.01


@pytest.mark.parametrize(
    ("name", "size", "frames"),
    [("llava-1.5-7b", (100_000, 1), 0), ("onevision-7b", (1, 100_000), 32), ("llava-video-7b", None, 64),
     ("llava-next-34b", (1001, 4), 0), ("elva-160m", (1, 1), 1), ("pocket", (800, 600), 8)],
)  # fmt: skip
def test_drawing_of_strange_shapes(name, size, frames):
    image = draw([costs(find_model(name), size, frames, "bf16")] * 2, H100)
    assert image.height > 2 * 600
    assert len(image.getcolors(1 << 24)) > 100


def test_drawing_of_a_cropped_picture(tmp_path):
    cropped = find_model(folder(tmp_path / "crop", {**VICUNA, "image_aspect_ratio": "square"}))
    assert cropped.policy.mode == "crop"
    image = draw([costs(cropped, (100_000, 1), 0, "bf16")], H100)
    assert share(image, CANVAS, TILES) == 0


def test_png_is_written(tmp_path, capsys):
    path = tmp_path / "plan.png"
    run.main(["elva-7b", "pocket"], (1344, 896), device="h100", png=path)
    with Image.open(path) as image:
        image.load()
        assert (image.format, image.width) == ("PNG", WIDTH)


# mistakes


@pytest.mark.parametrize(
    "text", ["1344", "1344x", "x896", "0x5", "-3x4", "1e3x4", "12x34x56", "", "1000000x4", "3.5x4"]
)
def test_bad_sizes(text):
    with pytest.raises(PumiceError, match="WIDTHxHEIGHT"):
        run.size(text)


def test_good_sizes():
    assert [run.size(text) for text in ("1344x896", "1X100000")] == [(1344, 896), (1, 100_000)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((["onevision-8b"], (5, 5)), ["onevision-8b", "onevision-7b", "config.json"]),
        ((["zzzz"], (5, 5)), ["zzzz", "pocket", "elva-13b"]),
        ((["onevision-7b"], None), ["nothing to plan"]),
        (([], (5, 5)), ["no model"]),
        ((["onevision-7b"], (5, 5), 0, "h1000"), ["h1000", "h100", "rtx4090"]),
        ((["onevision-7b"], (5, 5), 0, "h100", False, Path("/nowhere/plan.png")), ["/nowhere/plan.png"]),
    ],
)
def test_mistakes(arguments, words):
    with pytest.raises(PumiceError) as error:
        run.main(*arguments)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("{", ["not readable"]),
        ("[]", ["object", "list"]),
        ({}, ["model_type", "llava_onevision", "mm_vision_tower"]),
        ({"model_type": "llava_two"}, ["'llava_two'", "llava_next"]),
        ({"model_type": "llava", "vision_config": 3}, ["vision_config", "3"]),
        ({"model_type": "llava", "vision_config": {"hidden_size": "big"}}, ["vision_config: hidden_size", "'big'"]),
        ({"model_type": "llava", "vision_config": {"model_type": "vit"}}, ["'vit'", "siglip_vision_model"]),
        ({"model_type": "llava", "vision_feature_layer": -40}, ["vision_feature_layer", "-40", "24"]),
        ({"model_type": "llava", "vision_feature_layer": 0}, ["vision_feature_layer"]),
        ({"model_type": "llava", "vision_feature_select_strategy": "full"}, ["select_strategy", "default"]),
        ({"model_type": "llava", "text_config": {"model_type": "bloom"}}, ["text_config", "'bloom'", "qwen2"]),
        ({"model_type": "llava", "text_config": {"num_attention_heads": 7}}, ["num_attention_heads", "4096"]),
        ({"model_type": "llava", "text_config": {"attention_bias": True}}, ["attention_bias"]),
        ({"model_type": "llava", "text_config": {"vocab_size": 0}}, ["vocab_size = 0"]),
        ({"model_type": "llava", "text_config": {"num_hidden_layers": 10**12}}, ["hidden_layers", "from 1 to 1,000"]),
        ({"model_type": "llava", "vision_config": {"image_size": 10**7}}, ["image_size", "from 1 to 16,384"]),
        ({"model_type": "llava", "vision_config": {"num_hidden_layers": 10**4}}, ["hidden_layers", "from 1 to 1,000"]),
        ({"model_type": "llava", "text_config": {"hidden_size": 10**12}}, ["hidden_size", "10,000,000"]),
        ({"model_type": "llava_next", "image_grid_pinpoints": [[300, 336]]}, ["image_grid_pinpoints", "336"]),
        ({"model_type": "llava_next", "image_grid_pinpoints": []}, ["image_grid_pinpoints"]),
        ({"model_type": "llava_onevision", "vision_aspect_ratio": "anyres_max_x"}, ["'anyres_max_x'"]),
        ({"model_type": "llava_next_video", "spatial_pool_mode": "conv"}, ["'conv'", "average"]),
        ({**VICUNA, "mm_vision_tower": "/data/clip"}, ["'/data/clip'", "openai/clip-vit-large-patch14-336"]),
        ({**VICUNA, "mm_vision_tower": ["a"]}, ["mm_vision_tower"]),
        ({**VICUNA, "mm_projector_type": "pooler"}, ["'pooler'", "mlp2x_gelu"]),
        ({**VICUNA, "mm_vision_select_layer": -1}, ["mm_vision_select_layer = -1"]),
        ({**VICUNA, "mm_patch_merge_type": "unires"}, ["'unires'", "spatial_unpad"]),
        ({**VICUNA, "mm_vision_select_feature": "cls_patch"}, ["'cls_patch'", '"patch"']),
        ({**VICUNA, "mm_use_im_start_end": True}, ["mm_use_im_start_end = True", "false"]),
        ({**VICUNA, "image_aspect_ratio": "anyres", "image_grid_pinpoints": NINE}, ["mm_patch_merge_type", "spatial"]),
        ({"model_type": "llava", "projector_hidden_act": "relu"}, ["projector_hidden_act = 'relu'", "gelu"]),
        ({**VICUNA, **MAP}, ["image_grid_pinpoints = None"]),
        ({**VICUNA, **MAP, "image_grid_pinpoints": "[(336,"}, ["image_grid_pinpoints"]),
        ({**VICUNA, "model_type": "llava_mpt"}, ["'llava_mpt'", "llava_llama"]),
        ({**VICUNA, "model_type": "llava", "architectures": ["X"]}, ["architectures", "LlavaQwenForCausalLM"]),
        ({**ONEVISION_7B, "mm_newline_position": "row"}, ["'row'", "one_token"]),
    ],
)  # fmt: skip
def test_bad_files(data, words, tmp_path):
    with pytest.raises(PumiceError) as error:
        find_model(folder(tmp_path / "model", data))
    assert all(word in str(error.value) for word in [*words, "config.json"])
    assert "\n" not in str(error.value)


def test_empty_folder_and_missing_parts(tmp_path):
    with pytest.raises(PumiceError, match=r"neither a config\.json nor a recipe\.toml"):
        find_model(str(tmp_path))
    recipe = (Path(__file__).parents[1] / "recipes" / "pocket.toml").read_text()
    for old, new, words in (
        ('lm = "smollm2-135m-instruct"', 'lm = "nowhere"', ["model.lm", "'nowhere'", "smollm2-135m-instruct"]),
        ('source = "dinov2-small-14"', 'source = "nowhere"', ["model.tower.source", "dinov2-small-14"]),
        ('type = "dinov2"', 'type = "clip"', ["model.tower.type = clip", "dinov2"]),
        ("shuffle = 1", "shuffle = 4", ["model.layout.side = 16", "16 patches a side, 4"]),
    ):
        assert old in recipe
        (tmp_path / "recipe.toml").write_text(recipe.replace(old, new))
        with pytest.raises(PumiceError) as error:
            find_model(str(tmp_path))
        assert all(word in str(error.value) for word in words)


def test_defaults_are_transformers_own():
    """Key by key, so that a new version of transformers shows."""
    import transformers

    for kind, sizes in LM_DEFAULTS.items():
        config = getattr(transformers, f"{CLASSES[kind]}Config")()
        for key, value in sizes.items():
            assert getattr(config, key) == (config.num_attention_heads if value is None else value), (kind, key)
