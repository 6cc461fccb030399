"""What llama.cpp answers from exported GGUF files, beside what Pumice answers from the checkpoint.

    python benchmarks/gguf_parity.py                                           tiny random models, made here
    python benchmarks/gguf_parity.py path/to/llava-1.5-7b-hf --picture a.png   a checkpoint of one's own

It needs xllamacpp, which has llama.cpp's server in a wheel: pip install xllamacpp. Both sides run in fp32 on one
thread.

llama.cpp sees pictures otherwise in two ways (see `as_llama_cpp` and `squared`), so that each picture has two lines:
Pumice as it is, and Pumice made to see as llama.cpp does.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import math
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import pumice
from pumice.encode import encode
from pumice.engine.runner import complete
from pumice.formats.export import export
from pumice.formats.export_gguf import export_gguf
from pumice.messages import to_sample
from pumice.vision.layout import Policy

TOKENS = 12
"""Greedy tokens that are compared."""
QUESTIONS = ("What is the total?", "naïve — 3.50 €\n  and 12345\ttabs? 漢字 \U0001f600", "Describe it.")
CASES = (("llama", "sentencepiece"), ("llama", "gpt-2"), ("mistral", "sentencepiece"), ("qwen2", "qwen2"))
"""(language model, tokenizer) of the random models."""


class LlamaCpp:
    """llama.cpp's server over the two files of a folder."""

    def __init__(self, folder: Path, context: int) -> None:
        try:
            import xllamacpp
        except ImportError:
            sys.exit("gguf_parity needs xllamacpp: pip install xllamacpp")
        params = xllamacpp.CommonParams()
        params.model.path, params.mmproj.path = str(folder / "model.gguf"), str(folder / "mmproj.gguf")
        params.n_ctx, params.n_parallel, params.port, params.warmup = context, 1, 0, False
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.server = xllamacpp.Server(params)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        address, kind = self.server.listening_address + path, {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(address, json.dumps(body).encode(), kind)) as answer:
            return json.load(answer)

    def tokens(self, text: str) -> list[int]:
        return self.post("/tokenize", {"content": text, "add_special": False, "parse_special": False})["tokens"]

    def answer(self, content: list[dict[str, Any]], vocabulary: int) -> tuple[int, list[int], torch.Tensor]:
        """(tokens of the prompt, greedy ids, log-probabilities (V,) of the first)."""
        prompt: Any = self.post("/apply-template", {"messages": [{"role": "user", "content": content}]})["prompt"]
        pictures = [part["image_url"]["url"].split(",")[1] for part in content if part["type"] == "image_url"]
        if pictures:
            prompt = {"prompt_string": prompt, "multimodal_data": pictures}
        asked = {"n_predict": TOKENS, "temperature": 0, "n_probs": vocabulary, "return_tokens": True}
        found = self.post("/completion", asked | {"prompt": prompt, "cache_prompt": False})
        first = torch.full((vocabulary,), float("nan"))
        step = found["completion_probabilities"][0]
        if step["id"] == found["tokens"][0]:  # the server keeps half a character back, and its step with it
            for entry in step["top_logprobs"]:
                first[entry["id"]] = entry["logprob"]
        return found["tokens_evaluated"], found["tokens"], first


def image_part(picture: Image.Image) -> dict[str, Any]:
    """A picture as a part of an OpenAI-style message; PNG keeps its pixels."""
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"},
    }


@contextmanager
def as_llama_cpp(assistant: Any) -> Iterator[None]:
    """The tower as llama.cpp runs CLIP since May 2025 (its issue 25814): the class token stands behind the patches, but
    positions and the choice of patches are those of one that stands before them."""
    tower = assistant.model.tower
    right, parts = tower._embed, tower.model.embeddings

    def embed(tiles: torch.Tensor) -> torch.Tensor:
        patches = parts.patch_embedding(tiles).flatten(2).transpose(1, 2)
        order = torch.cat([patches, parts.class_embedding.expand(len(patches), 1, -1)], 1)
        return tower.model.pre_layrnorm(order + parts.position_embedding.weight)

    tower._embed = embed
    yield
    tower._embed = right


def squared(picture: Image.Image, policy: Policy) -> Image.Image:
    """A picture as llama.cpp makes it square: first small, then padded. LLaVA pads first."""
    side, scale = policy.tile, policy.tile / max(picture.size)
    small = picture.resize((min(math.ceil(picture.width * scale), side), min(math.ceil(picture.height * scale), side)))
    canvas = Image.new("RGB", (side, side), (122, 116, 104))
    canvas.paste(small, ((side - small.width) // 2, (side - small.height) // 2))
    return canvas


@torch.inference_mode()
def ours(assistant: Any, content: list[dict[str, Any]]) -> tuple[int, list[int], torch.Tensor]:
    """What `LlamaCpp.answer` gives, from Pumice."""
    messages = [{"role": "user", "content": content}]
    prompt = encode(to_sample(messages), assistant.processor, prompt=True)
    first = assistant.logits(messages)[-1].log_softmax(-1)
    return len(prompt), complete(assistant.model, [prompt], assistant.processor.stop_ids, TOKENS)[0].ids, first


def line(what: str, expected: tuple[int, list[int], torch.Tensor], found: tuple[int, list[int], torch.Tensor]) -> None:
    """Print how far two answers agree."""
    (count, ids, first), (their_count, their_ids, their_first) = expected, found
    pairs = list(zip(ids, their_ids, strict=False))
    agreed = next((number for number, (a, b) in enumerate(pairs) if a != b), len(pairs))
    print(
        f"  {what}: prompt of {count} and {their_count} tokens, {agreed} of {len(ids)} greedy tokens the same, "
        f"log-probabilities of the first at most {(first - their_first).abs().max():.1e} apart"
    )


def compare(name: str, folder: Path, pictures: list[Image.Image], scratch: Path, tower: Path | None = None) -> None:
    """Export, run both, print what each question gave."""
    export_gguf(folder, scratch / "gguf", tower, "f32")
    assistant = pumice.load(str(folder), dtype="float32", tower=str(tower) if tower else None)
    theirs = LlamaCpp(scratch / "gguf", min(assistant.processor.max_tokens, 4096))
    tokenizer, vocabulary = assistant.processor.tokenizer, assistant.model.lm.config.vocab_size
    same = [theirs.tokens(text) == list(tokenizer(text, add_special_tokens=False).input_ids) for text in QUESTIONS]
    print(f"{name}: {sum(same)} of {len(same)} texts have the same tokens")
    for question in QUESTIONS:
        content = [{"type": "text", "text": question}]
        line("text alone", ours(assistant, content), theirs.answer(content, vocabulary))
    for number, picture in enumerate(pictures):
        text = {"type": "text", "text": QUESTIONS[number % len(QUESTIONS)]}
        content = [image_part(picture), text]
        found = theirs.answer(content, vocabulary)
        line(f"picture {picture.width}x{picture.height}", ours(assistant, content), found)
        with as_llama_cpp(assistant):
            content = [image_part(squared(picture, assistant.processor.policy)), text]
            line("  the same, seen as llama.cpp sees", ours(assistant, content), found)


def random_models(scratch: Path) -> None:
    """Compare tiny random models of every supported kind, in llava-hf's form and in the originals'."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from gguf_models import byte_level, save_single_view, sentencepiece
    from hf_models import TILE, noise

    pictures = [noise(1, (TILE, TILE)), noise(2, (200, 200)), noise(3, (640, 480)), noise(4, (30, 200))]
    for kind, cut in CASES:
        tokenizer = sentencepiece() if cut == "sentencepiece" else byte_level(cut)
        place = scratch / f"{kind}-{cut}"
        save_single_view(place / "hf", kind, tokenizer)
        settings = place / "hf" / "preprocessor_config.json"
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"do_pad": True}))
        export(place / "hf", place / "original", "original")
        compare(f"{kind}, {cut} tokenizer", place / "original", pictures, place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="a checkpoint; by default tiny random ones are made")
    parser.add_argument("--picture", type=Path, action="append", default=[], help="a picture to ask about, many times")
    parser.add_argument("--tower", type=Path, help="the tower, for checkpoints that leave it out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        if args.folder is None:
            random_models(Path(scratch))
        else:
            pictures = [Image.open(path).convert("RGB") for path in args.picture]
            compare(args.folder.name, args.folder, pictures, Path(scratch), args.tower)


if __name__ == "__main__":
    main()
