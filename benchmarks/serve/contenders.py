"""What decodes: Pumice's fast decoder, transformers' generate, llama.cpp's server. Greedy, random tokens as context.

rates(contender) ──> tokens a second of: prefill of 700, decoding of 1 and 8 sequences at three lengths of context
"""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

PREFILL = "prefill 700"
BATCHES, CONTEXTS = (1, 8), (64, 700, 2900)
DECODES = [f"b{batch} at {context}" for batch in BATCHES for context in CONTEXTS]
SHARED = "b8 sharing 2900"
OURS = [f"pumice-{weights}" for weights in ("fp32", "bf16", "int8", "int4")]
LLAMA = [f"llama.cpp-{kind}" for kind in ("f16", "q8_0", "q4_1", "q4_0")]
CONTENDERS = [*OURS, "transformers-fp32", "transformers-bf16", *LLAMA]


def rates(contender: str, model: Path, work: Path, threads: int, seconds: float) -> dict[str, Any]:
    """{"rates": tokens a second by point, "bytes": weights read a token} of a contender."""
    torch.set_num_threads(threads)
    engine, kind = contender.rsplit("-", 1)
    if engine == "pumice":
        return _pumice(model, kind, seconds)
    if engine == "transformers":
        return _transformers(model, kind, seconds)
    return _llama_cpp(model, kind, work, threads, seconds)


def bandwidth() -> float:
    """GB a second at which torch sums 512 MB."""
    memory = torch.ones(1 << 27)
    best = min(_timed(memory.sum) for _ in range(5))
    return memory.numel() * 4 / best / 1e9


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _rate(step: Callable[[], int], seconds: float) -> float:
    """Tokens a second of the median step of as many as fit into ``seconds``, three at least; a first isn't counted."""
    tokens = step()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        times.append(_timed(step))
    return tokens / sorted(times)[len(times) // 2]


def _open(model: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()


def _tokens(lm: Any, rows: int, length: int) -> Tensor:
    return torch.randint(100, lm.config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def _pumice(model: Path, weights: str, seconds: float) -> dict[str, Any]:
    from pumice.engine.compiled import CompiledDecoder, compiled_decoder
    from pumice.engine.segments import Segment, Span
    from pumice.model import attention  # noqa: F401 (registers our attention)

    lm = _open(model, torch.float32)
    decoder = compiled_decoder(SimpleNamespace(lm=lm), weights)  # type: ignore[arg-type]
    assert isinstance(decoder, CompiledDecoder)
    config, table = lm.config, lm.get_input_embeddings()

    def segment(capacity: int, start: int = 0, length: int = 0) -> Segment:
        shape = (config.num_key_value_heads, capacity, config.head_dim)
        keys, values = (
            [torch.randn(shape).to(decoder.cache_dtype) for _ in range(config.num_hidden_layers)] for _ in "kv"
        )
        return Segment(keys, values, start, length)

    def prefill() -> int:
        ids = _tokens(lm, 1, 700)[0]
        hidden = decoder.forward(table(ids), torch.arange(700), [Span(0, 700, (segment(700),))])
        decoder.head(hidden[-1:]).argmax(-1)
        return 700

    def decoding(paths: list[tuple[Segment, ...]], context: int) -> Callable[[], int]:
        chosen = _tokens(lm, len(paths), 1)[:, 0]

        def step() -> int:
            nonlocal chosen
            positions = torch.full((len(paths),), context + paths[0][-1].length - first)
            spans = [Span(row, row + 1, path) for row, path in enumerate(paths)]
            chosen = decoder.head(decoder.forward(table(chosen), positions, spans)).argmax(-1)
            for path in paths:
                path[-1].length = min(path[-1].length + 1, path[-1].capacity - 1)
            return len(paths)

        first = paths[0][-1].length
        return step

    found = {PREFILL: _rate(prefill, seconds)}
    for batch in BATCHES:
        for context in CONTEXTS:
            paths = [(segment(context + 256, 0, context),) for _ in range(batch)]
            found[f"b{batch} at {context}"] = _rate(decoding(paths, context), seconds)
    shared = segment(2900, 0, 2900)
    found[SHARED] = _rate(decoding([(shared, segment(256, 2900)) for _ in range(8)], 2900), seconds)
    return {"rates": found, "bytes": decoder.bytes_per_token}


@torch.inference_mode()
def _transformers(model: Path, kind: str, seconds: float) -> dict[str, Any]:
    """`generate` with sdpa and its dynamic cache, which is filled without a prefill."""
    from transformers import DynamicCache

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[kind]
    lm = _open(model, dtype)
    config = lm.config
    new = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    prompt = _tokens(lm, 1, 700)
    mask = torch.ones_like(prompt)
    begun = _timed(lambda: lm.generate(prompt, attention_mask=mask, max_new_tokens=1, min_new_tokens=1, **new))
    again = 2 if begun < seconds else 0  # a slow one's only figure is its first
    times = [_timed(lambda: lm.generate(prompt, attention_mask=mask, max_new_tokens=1, **new)) for _ in range(again)]
    found = {PREFILL: 700 / min([begun, *times])}
    for batch in BATCHES:
        for context in CONTEXTS:
            ids = _tokens(lm, batch, context + 1)
            shape = (batch, config.num_key_value_heads, context, config.head_dim)

            def seconds_for(count: int, ids: Tensor = ids, shape: tuple[int, ...] = shape) -> float:
                cache = DynamicCache()
                for layer in range(config.num_hidden_layers):
                    cache.update(torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype), layer)
                room = {"max_new_tokens": count, "min_new_tokens": count, "past_key_values": cache}
                return _timed(lambda: lm.generate(ids, attention_mask=torch.ones_like(ids), **room, **new))

            short = seconds_for(3) / 3
            count = max(3, min(64, int(seconds / short)))
            found[f"b{batch} at {context}"] = batch * count / seconds_for(count)
    return {"rates": found, "bytes": sum(p.numel() * p.element_size() for p in lm.parameters())}


def _llama_cpp(model: Path, kind: str, work: Path, threads: int, seconds: float) -> dict[str, Any]:
    """llama.cpp's server; a context is read once, and restored into as many slots as there are sequences."""
    import xllamacpp

    file = write_gguf(model, work / f"{model.name}-{kind}.gguf", kind)
    params = xllamacpp.CommonParams()
    params.model.path, params.port, params.warmup, params.verbosity = str(file), 0, True, -1
    params.n_parallel, params.n_ctx, params.kv_unified = max(BATCHES), max(BATCHES) * 3200, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.slot_save_path, params.cache_prompt = f"{work}/", True
    server = xllamacpp.Server(params)

    def post(path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(server.listening_address + path, json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    config = SimpleNamespace(config=SimpleNamespace(vocab_size=40000))

    def complete(slot: int, ids: list[int], count: int, cached: bool = True) -> dict[str, Any]:
        body = {"prompt": ids, "n_predict": count, "temperature": 0, "ignore_eos": True, "id_slot": slot}
        return post("/completion", {**body, "cache_prompt": cached})["timings"]

    prompt = _tokens(config, 1, 700)[0].tolist()
    found = {PREFILL: max(complete(0, prompt, 1, cached=False)["prompt_per_second"] for _ in range(3))}
    for context in CONTEXTS:
        ids = _tokens(config, 1, context)[0].tolist()
        complete(0, ids, 1)
        post("/slots/0?action=save", {"filename": "context.bin"})
        for batch in BATCHES:
            for slot in range(batch):
                post(f"/slots/{slot}?action=restore", {"filename": "context.bin"})
            with ThreadPoolExecutor(batch) as clients:

                def together(count: int, ids: list[int] = ids, batch: int = batch, clients: Any = clients) -> float:
                    asked = [clients.submit(complete, slot, ids, count) for slot in range(batch)]
                    return max(answer.result()["predicted_ms"] for answer in asked) / 1000

                short = together(4) / 4
                count = max(4, min(128, int(seconds / short)))
                found[f"b{batch} at {context}"] = batch * count / together(count)
    return {"rates": found, "bytes": file.stat().st_size}


def write_gguf(model: Path, file: Path, kind: str) -> Path:
    """The language model as llama.cpp reads it, all matrices of one kind, written once."""
    if file.is_file():
        return file
    from transformers import AutoTokenizer

    from pumice.formats.export_gguf import _language_model
    from pumice.formats.gguf_file import write
    from pumice.templates import get_template

    lm, tokenizer = _open(model, torch.float32), AutoTokenizer.from_pretrained(model)
    parts = _language_model(SimpleNamespace(lm=lm.config), lm.state_dict(), tokenizer, get_template("chatml"))  # type: ignore[arg-type]
    file.parent.mkdir(parents=True, exist_ok=True)
    made = file.with_suffix(".part")
    write(made, *parts, kind)  # type: ignore[arg-type]
    made.rename(file)
    return file
