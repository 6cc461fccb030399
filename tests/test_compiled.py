"""The compiled decoder against transformers' own forward, and its kernels against torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TILE, tiny_model
from PIL import Image
from torch import Tensor, nn

from pumice.engine import compiled
from pumice.engine import kernels as kernels_module
from pumice.engine.compiled import CompiledDecoder, compiled_decoder
from pumice.engine.decoders import make_tower
from pumice.engine.kernels import Kernels, load_kernels
from pumice.engine.packed_weights import Arena, arena_size, pack, round_int8, round_steps
from pumice.engine.segments import Segment, Span
from pumice.pocket.model import load_pocket
from pumice.pocket.parts import PARTS, cache_dir, verify
from pumice.types import PumiceError

LAYERS, HIDDEN, HEADS, KV, WIDTH, INNER, VOCABULARY = 3, 42, 6, 2, 16, 52, 83
COMMON = {
    "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "num_key_value_heads": KV, "head_dim": WIDTH, "vocab_size": VOCABULARY, "max_position_embeddings": 4096,
    "tie_word_embeddings": False, "pad_token_id": 0,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama with biases, tied": ("Llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama, one kv head a head": ("Llama", {"num_key_value_heads": HEADS}),
    "llama 3 positions": (
        "Llama",
        {"rope_parameters": {
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
        }},
    ),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral with a window": ("Mistral", {"sliding_window": 13}),
    "qwen2": ("Qwen2", {}),
    "qwen2 with windows in one layer": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2,
         "layer_types": ["full_attention", "sliding_attention", "full_attention"]},
    ),
    "qwen3": ("Qwen3", {}),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0, 1], "use_sliding_window": False}),
}  # fmt: skip


@dataclass
class Case:
    """A model, its decoder, embeddings (T, H) of a text and the logits (T, V) that transformers gives."""

    lm: Any
    decoder: CompiledDecoder
    embedded: Tensor
    logits: Tensor


def make_lm(family: str) -> Any:
    """Random weights, far enough from uniform attention that a wrong mask, head or position shows."""
    import transformers

    name, extra = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**COMMON, **extra})
    lm = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.25)
            else:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return lm


def make_case(family: str = "llama", weights: Any = "fp32", length: int = 61) -> Case:
    lm = make_lm(family)
    ids = torch.randint(0, VOCABULARY, (length,), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logits = lm(ids[None]).logits[0]
        embedded = lm.get_input_embeddings()(ids)
    decoder = compiled_decoder(SimpleNamespace(lm=lm), weights)  # type: ignore[arg-type]
    assert isinstance(decoder, CompiledDecoder)
    return Case(lm, decoder, embedded, logits)


def make_segment(lm: Any, capacity: int, start: int = 0, dtype: torch.dtype = torch.float32) -> Segment:
    """Room that holds what would spoil every sum, should anything look at it."""
    shape = (lm.config.num_key_value_heads, capacity, WIDTH)
    keys, values = ([torch.full(shape, float("nan"), dtype=dtype) for _ in range(LAYERS)] for _ in "kv")
    return Segment(keys, values, start)


def run(case: Case, spans: list[tuple[int, int, tuple[Segment, ...]]]) -> list[Tensor]:
    """A pass over tokens first:last of the text for each path; logits of each. Counts the new tokens."""
    rows, made = 0, []
    for first, last, path in spans:
        made.append(Span(rows, rows + last - first, path))
        rows += last - first
    positions = torch.cat([torch.arange(first, last) for first, last, _ in spans])
    hidden = case.decoder.forward(case.embedded[positions], positions, made)
    for span in made:
        span.path[-1].length += span.last - span.first
    logits = case.decoder.head(hidden)
    return [logits[span.first : span.last] for span in made]


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))


@pytest.fixture(autouse=True)
def best_level() -> Any:
    """Leave the kernels as they were found."""
    yield
    if (found := load_kernels()) is not None:
        found.use_level(2)


@pytest.fixture
def kernels() -> Kernels:
    found = load_kernels()
    assert found is not None, "the package was installed without its kernels: is there a C++ compiler?"
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_transformers_at_once_in_chunks_and_token_by_token(family: str) -> None:
    case = make_case(family)
    whole = make_segment(case.lm, 61)
    close(run(case, [(0, 61, (whole,))])[0], case.logits)
    pieces = make_segment(case.lm, 70)
    cuts = [(0, 7), (7, 40), (40, 59), (59, 60), (60, 61)]
    close(torch.cat([run(case, [(a, b, (pieces,))])[0] for a, b in cuts]), case.logits)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_every_instruction_set_that_is_here(kernels: Kernels, level: int) -> None:
    if kernels.use_level(level) != level:
        pytest.skip("this processor doesn't have it")
    case = make_case("qwen3")
    segment = make_segment(case.lm, 61)
    parts = [run(case, [(a, b, (segment,))])[0] for a, b in ((0, 30), (30, 60), (60, 61))]
    close(torch.cat(parts), case.logits)


@pytest.mark.parametrize("family", ["llama", "mistral with a window"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_paths_of_shared_segments_equal_one_segment(family: str, dtype: torch.dtype) -> None:
    case = make_case(family)
    first, second = make_segment(case.lm, 20, 0, dtype), make_segment(case.lm, 24, 17, dtype)
    run(case, [(0, 17, (first,))])
    run(case, [(17, 37, (first, second))])
    counts = (1, 5, 2, 20)
    together = run(case, [(37, 37 + n, (first, second, make_segment(case.lm, 30, 37, dtype))) for n in counts])
    for n, logits in zip(counts, together, strict=True):
        if dtype == torch.float32:
            close(logits, case.logits[37 : 37 + n])
        else:
            error = (logits - case.logits[37 : 37 + n]).norm() / case.logits[37 : 37 + n].norm()
            assert error < (0.002 if dtype == torch.float16 else 0.02)


def test_views_of_longer_storage() -> None:
    case = make_case()
    base = make_segment(case.lm, 50)
    run(case, [(0, 40, (base,))])
    upper = Segment([t[:, :12] for t in base.keys], [t[:, :12] for t in base.values], 0, 12)
    lower = Segment([t[:, 12:] for t in base.keys], [t[:, 12:] for t in base.values], 12, 18)
    close(run(case, [(30, 33, (upper, lower))])[0], case.logits[30:33])
    lower.keys, lower.values = [t.clone() for t in lower.keys], [t.clone() for t in lower.values]  # it moves
    upper.keys, upper.values = [t.clone() for t in upper.keys], [t.clone() for t in upper.values]
    for held in (*base.keys, *base.values):
        held.fill_(float("nan"))
    close(run(case, [(33, 34, (upper, lower))])[0], case.logits[33:34])


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_sequence_is_the_same_alone_and_among_others_bit_for_bit(weights: str, threads: int) -> None:
    case = make_case("llama", weights)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        own = [make_segment(case.lm, 61) for _ in range(8)]
        starts = [0, 1, 5, 16, 17, 30, 44, 59]
        alone = [make_segment(case.lm, 61) for _ in range(8)]
        expected = []
        for segment, start in zip(alone, starts, strict=True):
            if start:
                run(case, [(0, start, (segment,))])
            expected.append(run(case, [(start, start + 1, (segment,))])[0])
        run(case, [(0, start, (segment,)) for segment, start in zip(own, starts, strict=True) if start])
        found = run(case, [(start, start + 1, (segment,)) for segment, start in zip(own, starts, strict=True)])
    finally:
        torch.set_num_threads(before)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_long_contexts_cross_chunks_of_keys() -> None:
    case = make_case("llama", length=1300)
    segment, tail = make_segment(case.lm, 1200), make_segment(case.lm, 200, 1150)
    close(run(case, [(0, 1150, (segment,))])[0], case.logits[:1150])
    close(run(case, [(1150, 1155, (segment, tail))])[0], case.logits[1150:1155])
    close(run(case, [(1155, 1300, (segment, tail))])[0], case.logits[1155:])


PASSAGE = """
A lighthouse keeper on the northern coast wrote down the weather every morning for thirty-one years. He noted
the wind, the height of the water at the old stone stairs, the ships that passed and the birds that rested on
the rail of the lantern room. When the light was made automatic, in the spring of 1984, his notebooks went to
the museum of the town, where nobody read them for two decades. Then a student of oceanography, who was looking
for records of storms, found the boxes behind a model of a herring boat. She typed the figures into a table, one
notebook a week, and compared them with the measurements of the harbour. The keeper's numbers were right to
within three centimetres. From the table it could be seen that the highest floods of each winter had risen by
about two millimetres a year, that fog had become rarer, and that the first swallows came eleven days earlier at
the end than at the beginning. Her professor asked how a man without any instruments but a painted pole and a
thermometer could be so exact. The answer was in the last notebook: "I look twice, and I write down what I see,
and not what I expected to see." The museum now shows the notebooks in a glass case next to the lamp, and
schoolchildren are asked to keep a diary of the weather for a week. Most of them give up on the third day; some
don't, and one of them has since become a meteorologist.
"""


@pytest.mark.parametrize(
    ("weights", "error", "agree"), [("bf16", 0.002, 0.99), ("int8", 0.03, 0.96), ("int4", 0.06, 0.93)]
)
def test_what_fewer_bits_cost_a_real_model(weights: Any, error: float, agree: float) -> None:
    """SmolLM2-135M reads a passage: relative error of its logits, and the share of next words that stay the same."""
    folder = cache_dir() / "smollm2-135m-instruct"
    if not folder.is_dir():
        pytest.skip("the language model isn't in the cache")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder)(PASSAGE, return_tensors="pt").input_ids[0]
    lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        theirs, embedded = lm(ids[None]).logits[0], lm.get_input_embeddings()(ids)
    decoder = compiled_decoder(SimpleNamespace(lm=lm), weights)  # type: ignore[arg-type]
    assert isinstance(decoder, CompiledDecoder)
    config = lm.config
    shape = (config.num_key_value_heads, len(ids), config.head_dim)
    rooms = ([torch.empty(shape, dtype=decoder.cache_dtype) for _ in range(config.num_hidden_layers)] for _ in "kv")
    segment = Segment(*rooms, 0)
    ours = decoder.head(decoder.forward(embedded, torch.arange(len(ids)), [Span(0, len(ids), (segment,))]))
    found = float((ours - theirs).norm() / theirs.norm()), float((ours.argmax(-1) == theirs.argmax(-1)).float().mean())
    print(f"{weights}: relative error {found[0]:.4f}, the same next token at {found[1]:.1%} of {len(ids)} places")
    assert found[0] < error
    assert found[1] > agree


@pytest.mark.parametrize(("weights", "least", "most"), [("int8", 0.0, 0.001), ("int4", 0.01, 0.03)])
def test_what_integers_change_of_pocket_s_features(weights: str, least: float, most: float) -> None:
    """Relative error of the reading tower's features of a receipt: of 13 and 14 bits, and of 6 and 8."""
    if not all(verify(cache_dir() / name) for name in PARTS):
        pytest.skip("the pocket model's parts aren't in the cache")
    model = load_pocket(torch.float32, torch.device("cpu")).model
    receipt = Image.open(Path(__file__).parents[1] / "demo/pictures/receipt.png").convert("RGB")
    pixels = torch.from_numpy(np.array(receipt.resize((model.tower.tile,) * 2))).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(value)[:, None, None] for value in (model.tower.pixels.mean, model.tower.pixels.std))
    tiles = ((pixels - mean) / std)[None]
    with torch.inference_mode():
        before = model.tower(tiles)
        error = float((make_tower(model, weights)(tiles) - before).norm() / before.norm())
    print(f"{weights}: relative error of features {error:.4f}")
    assert least < error < most


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_equals_transformers_with_the_same_rounded_weights(weights: Any) -> None:
    """What is left is the rounding of activations."""
    case = make_case("qwen3", weights)
    with torch.inference_mode():
        for name, module in case.lm.named_modules():
            if isinstance(module, nn.Linear):
                module.weight.copy_(rounded(module.weight, "int8" if name == "lm_head" else weights))
        ids = torch.randint(0, VOCABULARY, (61,), generator=torch.Generator().manual_seed(1))
        theirs = case.lm(ids[None]).logits[0]
    ours = run(case, [(0, 61, (make_segment(case.lm, 61),))])[0]
    assert (ours - theirs).norm() / theirs.norm() < (1e-3 if weights == "int8" else 0.03)


def rounded(weight: Tensor, weights: str) -> Tensor:
    """What int8, int6 or int4 leaves of weights (rows, cols), as fp32."""
    padded = nn.functional.pad(weight, (0, -weight.shape[1] % 32))
    numbers, scales = round_int8(padded) if weights == "int8" else round_steps(padded, 15 if weights == "int4" else 63)
    groups = numbers.unflatten(1, (-1, 32)).float()
    if weights == "int8":
        kept = groups * scales.float()[:, :, None]
    else:
        kept = groups * scales[:, :, :1].float() + scales[:, :, 1:].float()
    return kept.flatten(1)[:, : weight.shape[1]]


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8", "int4", "int6"])
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (3, 7), (16, 32), (17, 33), (50, 100), (129, 576)])
def test_products_of_odd_sizes(kernels: Kernels, level: int, weights: Any, rows: int, cols: int) -> None:
    if kernels.use_level(level) != level:
        pytest.skip("this processor doesn't have it")
    torch.manual_seed(rows)
    linear = nn.Linear(cols, rows)
    matrix = pack(linear, weights, Arena(arena_size([linear], weights), kernels))
    kept = linear.weight.detach()
    kept = kept.bfloat16().float() if weights == "bf16" else kept if weights == "fp32" else rounded(kept, weights)
    for tokens in (1, 2, 3, 4, 5, 9, 35, 130):  # from 32 on weights are laid out for many; 128 are taken at once
        x = torch.randn(tokens, cols)
        theirs = x @ kept.T + linear.bias.detach()
        # Tokens are rounded to 16 bits, and to 8.
        tolerance = {"int8": 1e-4, "int4": 0.02, "int6": 0.02}.get(weights, 1e-5)
        ours = kernels.linear(matrix.struct, x)
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
        alone = torch.cat([kernels.linear(matrix.struct, row) for row in x.split(1)])
        assert torch.equal(alone, ours)


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("weights", ["fp32", "bf16"])
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (3, 7), (17, 33), (50, 100), (129, 576)])
def test_panels_of_odd_sizes(kernels: Kernels, level: int, weights: Any, rows: int, cols: int) -> None:
    """Products of numbers of 13 and 14 bits; a token's don't depend on how many others there are."""
    if kernels.use_level(level) != level:
        pytest.skip("this processor doesn't have it")
    torch.manual_seed(rows)
    linear = nn.Linear(cols, rows)
    with torch.no_grad():
        linear.weight[0] *= 1e4  # one row's size is none of another's business
    matrix = pack(linear, weights, Arena(arena_size([linear], weights), kernels))
    kept = linear.weight.detach().bfloat16().float() if weights == "bf16" else linear.weight.detach()
    x = torch.randn(9, cols) * torch.logspace(-3, 3, 9)[:, None]
    theirs, ours = x @ kept.T + linear.bias.detach(), kernels.linear(matrix.struct, x, panels=True)
    size = (x.norm(dim=1)[:, None] * kept.norm(dim=1)[None]) + linear.bias.detach().abs()
    assert ((ours - theirs).abs() / size).max() < 3e-4
    for tokens in (1, 4, 8):
        assert torch.equal(kernels.linear(matrix.struct, x[:tokens].contiguous(), panels=True), ours[:tokens])


def test_panels_take_the_largest_numbers_without_overflow(kernels: Kernels) -> None:
    linear = nn.Linear(256, 16, bias=False)
    with torch.no_grad():
        linear.weight.fill_(-1.0)
    matrix = pack(linear, "fp32", Arena(0, kernels))
    ours = kernels.linear(matrix.struct, torch.full((5, 256), 3.0), panels=True)
    torch.testing.assert_close(ours, torch.full((5, 16), -768.0))


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("weights", ["int4", "int6"])
def test_few_bits_take_the_largest_numbers_without_overflow(kernels: Kernels, level: int, weights: Any) -> None:
    if kernels.use_level(level) != level:
        pytest.skip("this processor doesn't have it")
    linear = nn.Linear(256, 16, bias=False)
    with torch.no_grad():
        linear.weight.fill_(1.0)
        linear.weight[:, ::32] = 0.0  # so that 1 is the most that a number stands for
    matrix = pack(linear, weights, Arena(arena_size([linear], weights), kernels))
    for tokens in (1, 40):
        ours = kernels.linear(matrix.struct, torch.full((tokens, 256), -3.0))
        torch.testing.assert_close(ours, torch.full((tokens, 16), -3.0 * 248), rtol=2e-3, atol=0.0)


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_a_tower_of_panels_is_the_model_s_to_a_thousandth(weights: str) -> None:
    model = tiny_model(50)
    tiles = torch.randn(3, 3, TILE, TILE, generator=torch.Generator().manual_seed(2))
    tower = make_tower(model, weights)
    with torch.inference_mode():
        before = model.tower(tiles)
        error = float((tower(tiles) - before).norm() / before.norm())
        assert 0 < error < 1e-3
        assert torch.equal(model.tower(tiles), before)
    assert make_tower(model, "") is make_tower(model, "fp32") is model.tower


def test_the_tower_beside_int4_has_six_bits() -> None:
    model = tiny_model(50)
    tiles = torch.randn(3, 3, TILE, TILE, generator=torch.Generator().manual_seed(2))
    tower = make_tower(model, "int4")
    with torch.inference_mode():
        before = model.tower(tiles)
        finer = make_tower(model, "int8")(tiles)
        error, least = (float((found - before).norm() / before.norm()) for found in (tower(tiles), finer))
        assert 4 * least < error < 0.03
        assert torch.equal(torch.cat([tower(tile[None]) for tile in tiles]), tower(tiles))
        assert torch.equal(model.tower(tiles), before)


def test_int4_takes_the_range_with_the_least_error() -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    plain = weight.unflatten(1, (-1, 32))
    low, high = plain.amin(2, keepdim=True), plain.amax(2, keepdim=True)
    step = (high - low) / 15
    naive = ((plain - low) / step).round() * step + low
    assert (rounded(weight, "int4") - weight).square().sum() < (naive.flatten(1) - weight).square().sum()
    already = torch.randint(0, 16, (16, 32)) * 0.25 - 1.5  # sixteen evenly spaced values are kept as they are
    already[:, 0], already[:, 1] = -1.5, 2.25
    assert torch.equal(rounded(already, "int4"), already)


def test_threads_take_turns_with_other_callers(kernels: Kernels) -> None:
    from concurrent.futures import ThreadPoolExecutor

    linear = nn.Linear(64, 512)
    matrix = pack(linear, "fp32", Arena(0, kernels))
    inputs = [torch.randn(5, 64) for _ in range(64)]
    before = torch.get_num_threads()

    def ours(x: Tensor) -> Tensor:
        torch.set_num_threads(4)
        return kernels.linear(matrix.struct, x)

    with ThreadPoolExecutor(4) as workers:
        found = list(workers.map(ours, inputs * 20))
    torch.set_num_threads(before)
    for x, y in zip(inputs * 20, found, strict=True):
        torch.testing.assert_close(y, linear(x).detach(), rtol=1e-5, atol=1e-5)


def test_a_full_segment_is_refused() -> None:
    case = make_case()
    with pytest.raises(PumiceError, match="a segment of 4 tokens can't hold 5"):
        run(case, [(0, 5, (make_segment(case.lm, 4),))])


def test_other_models_and_builds_without_a_compiler_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    config = transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=50)
    assert compiled_decoder(SimpleNamespace(lm=transformers.GPT2LMHeadModel(config))) is None  # type: ignore[arg-type]
    lm = make_lm("llama")
    lm.model.layers[0].self_attn.q_proj = nn.Sequential(lm.model.layers[0].self_attn.q_proj)
    assert compiled_decoder(SimpleNamespace(lm=lm)) is None  # type: ignore[arg-type]
    monkeypatch.setattr(compiled, "load_kernels", lambda: None)
    assert compiled_decoder(SimpleNamespace(lm=make_lm("llama"))) is None  # type: ignore[arg-type]


def test_a_library_of_another_system_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "_kernels.so").write_bytes(b"not a library")
    monkeypatch.setattr(kernels_module, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(kernels_module, "EXTENSION_SUFFIXES", [".so"])
    assert load_kernels.__wrapped__() is None


@pytest.mark.parametrize("weights", ["fp32", "bf16"])
@pytest.mark.parametrize("fast", [False, True])
def test_a_bf16_model(weights: Any, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(compiled.has_bf16(), bool)
    monkeypatch.setattr(compiled, "has_bf16", lambda: fast)  # torch's products, or panels
    case = make_case()
    case.lm.bfloat16()
    decoder = compiled_decoder(SimpleNamespace(lm=case.lm), weights)  # type: ignore[arg-type]
    assert decoder is not None
    segment = make_segment(case.lm, 61, dtype=torch.bfloat16)
    embedded = case.embedded.bfloat16()
    hidden = [decoder.forward(embedded[:40], torch.arange(40), [Span(0, 40, (segment,))])]
    segment.length = 40
    hidden.append(decoder.forward(embedded[40:41], torch.tensor([40]), [Span(0, 1, (segment,))]))
    logits = decoder.head(torch.cat(hidden))
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - case.logits[:41]).norm() / case.logits[:41].norm() < 0.05
