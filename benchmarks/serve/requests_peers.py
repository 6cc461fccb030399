"""The same requests to transformers' own classes, and texts with a common beginning to llama.cpp's server.

measure(contender, group) ──> {"times": {point: [seconds]}, "notes": tokens}

transformers' models have the same parts, pretrained: DINOv2-S, SmolLM2-135M and a projector of the pocket model's
shape. Pictures pass their own image processor. Their video processor needs torchvision: Pumice's decodes for both.
"""

from __future__ import annotations

import io
import json
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.serve import requests_material as material
from benchmarks.serve.requests_ours import NEW, Measured, clients_of, prefix

PICTURE, VIDEO = 3, 4  # ids of special tokens that SmolLM2's chats don't use
TILE, LAYERS = 224, [8, 12]
GRIDS = [[224, 448], [448, 224], [448, 448]]
SLOTS = 8


class Peer:
    """A LLaVA-NeXT or LLaVA-OneVision of transformers, eager, sdpa."""

    def __init__(self, family: str, dtype: torch.dtype) -> None:
        import transformers
        from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

        from pumice.pocket.parts import get_part

        towers, lms = get_part("dinov2-small-14"), get_part("smollm2-135m-instruct")
        vision, words = AutoConfig.from_pretrained(towers), AutoConfig.from_pretrained(lms)
        vision.image_size = TILE
        vision.dtype = words.dtype = dtype
        kind = getattr(transformers, f"{family}Config")
        config = kind(
            vision_config=vision, text_config=words, image_token_index=PICTURE, vision_feature_layer=LAYERS,
            vision_feature_select_strategy="default", image_grid_pinpoints=GRIDS, tie_word_embeddings=True,
            **({"video_token_index": VIDEO} if family == "LlavaOnevision" else {}),
        )  # fmt: skip
        self.model: Any = getattr(transformers, f"{family}ForConditionalGeneration")(config)
        lm = AutoModelForCausalLM.from_pretrained(lms, dtype=torch.float32)
        self.model.model.language_model.load_state_dict(lm.model.state_dict())
        self._fill_tower(AutoModel.from_pretrained(towers).state_dict())
        self.model.to(dtype).eval()
        self.dtype = dtype
        self.tokenizer = AutoTokenizer.from_pretrained(lms)

    def _fill_tower(self, state: dict[str, Tensor]) -> None:
        """DINOv2's, its table of positions made smaller once, as the pocket model's is."""
        key = "embeddings.position_embeddings"
        first, grid = state[key][:, :1], state[key][:, 1:]
        side = TILE // 14
        grid = grid.reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
        grid = torch.nn.functional.interpolate(grid, (side, side), mode="bicubic", antialias=False)
        state[key] = torch.cat([first, grid.permute(0, 2, 3, 1).reshape(1, side * side, -1)], dim=1)
        self.model.model.vision_tower.load_state_dict(state)

    def prompt(self, visual: int, count: int, question: str) -> list[int]:
        """Ids of a chat with ``count`` visual tokens."""
        before = self.tokenizer("<|im_start|>user\n")["input_ids"]
        after = self.tokenizer(f"\n{question}<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
        return [*before, *[visual] * count, *after]

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]], tokens: int, **media: Any) -> Tensor:
        """Continue prompts by exactly ``tokens``, as one batch padded at the left."""
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        return self.model.generate(
            ids, attention_mask=mask, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, eos_token_id=None,
            pad_token_id=0, **media,
        )  # fmt: skip

    def pictures(self, files: list[bytes]) -> dict[str, Tensor]:
        """Pixels of pictures, through transformers' processor."""
        from PIL import Image
        from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

        processor = LlavaNextImageProcessorPil(
            size={"shortest_edge": TILE}, crop_size={"height": TILE, "width": TILE}, image_grid_pinpoints=GRIDS
        )
        found = processor([Image.open(io.BytesIO(file)).convert("RGB") for file in files], return_tensors="pt")
        return {"pixel_values": found["pixel_values"].to(self.dtype), "image_sizes": found["image_sizes"]}

    def frames(self, file: bytes) -> dict[str, Tensor]:
        """Pixels of a video's 16 frames, by Pumice's decoder."""
        from pumice.model.towers import tower_class
        from pumice.vision.frames import VideoPolicy, sample_indices, video_layout
        from pumice.vision.kinds import open_media
        from pumice.vision.pixels import frame_tiles
        from pumice.vision.video import read_frames

        policy = VideoPolicy(tile=TILE, side=TILE // 14, frames=material.FRAMES)
        (media,) = open_media(file)
        indices = sample_indices(media.frames, media.fps, policy)
        placed, pixels = video_layout(len(indices), media.size, policy), tower_class("dinov2").pixels
        tiles = frame_tiles(read_frames(media, indices), placed, pixels.mean, pixels.std)
        return {"pixel_values_videos": tiles[None].to(self.dtype)}


VISUAL = {"picture": 5 * 256 + 32, "video": material.FRAMES * 64 + 1}
"""Visual tokens of each: five tiles and the rows' ends, 16 pooled frames and their end. Pumice has the same."""


def measure(contender: str, group: str, seed: int, most: int, repeats: int, threads: int, work: Path) -> Measured:
    """One group of measurements; ``most`` bounds the clients, ``repeats`` are of "first"."""
    torch.set_num_threads(threads)
    engine, kind = contender.rsplit("-", 1)
    if engine == "llama.cpp":
        return _llama_cpp(kind, seed, most, threads, work)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[kind]
    if group == "first":
        return _first(dtype, seed, repeats)
    return {"different": _different, "text": _text}[group](dtype, seed, most)


def _warmed(family: str, dtype: torch.dtype) -> Peer:
    peer = Peer(family, dtype)
    peer.generate([peer.prompt(5, 1, "Warm?")], 2)
    return peer


def _timed_first(peer: Peer, kind: str, file: bytes, number: int) -> float:
    began = time.perf_counter()
    media = peer.pictures([file]) if kind == "picture" else peer.frames(file)
    ids = peer.prompt(PICTURE if kind == "picture" else VIDEO, VISUAL[kind], material.question(number))
    peer.generate([ids], 1, **media)
    return time.perf_counter() - began


def _first(dtype: torch.dtype, seed: int, repeats: int) -> Measured:
    """Time to the first token. A second question costs what the first did: nothing is kept.

    In bf16 one picture alone: without AVX-512 that takes half a minute.
    """
    times, notes = {}, {}
    slow = dtype is torch.bfloat16
    for kind, family in (("picture", "LlavaNext"), ("video", "LlavaOnevision"))[: 1 if slow else 2]:
        peer = _warmed(family, dtype)
        draw = {"picture": material.picture, "video": material.video}[kind]
        turns = range(seed, seed + (1 if slow else repeats))
        times[kind] = [_timed_first(peer, kind, draw(turn), 0) for turn in turns]
        prompt = len(peer.prompt(0, VISUAL[kind], material.question(0)))
        notes[kind] = {"visual": VISUAL[kind], "prompt": prompt}
        del peer
    return {"times": times, "notes": notes}


def _different(dtype: torch.dtype, seed: int, most: int) -> Measured:
    """A request alone, which is one of many after each other, and eight as one padded batch."""
    peer, times = _warmed("LlavaNext", dtype), {}
    files = [material.picture(seed * 100 + number) for number in range(min(most, 8))]
    began = time.perf_counter()
    peer.generate([peer.prompt(PICTURE, VISUAL["picture"], material.question(0))], NEW, **peer.pictures(files[:1]))
    times["picture alone"] = [time.perf_counter() - began]
    if len(files) > 1:
        began = time.perf_counter()
        prompts = [peer.prompt(PICTURE, VISUAL["picture"], material.question(n)) for n in range(len(files))]
        peer.generate(prompts, NEW, **peer.pictures(files))
        times["picture batch of 8"] = [time.perf_counter() - began]
    return {"times": times, "notes": {"visual": VISUAL["picture"]}}


def _text(dtype: torch.dtype, seed: int, most: int) -> Measured:
    """As `_different`, without pictures."""
    peer, times, before = _warmed("LlavaNext", dtype), {}, prefix(seed)
    for point, count in (("text alone", 1), ("text batch of 8", 8)):
        if count <= most:
            began = time.perf_counter()
            prompts = [peer.prompt(0, 0, before + material.question(number)) for number in range(count)]
            peer.generate(prompts, NEW)
            times[point] = [time.perf_counter() - began]
    return {"times": times, "notes": {"prompt": len(peer.prompt(0, 0, before + material.question(0)))}}


def _llama_cpp(kind: str, seed: int, most: int, threads: int, work: Path) -> Measured:
    """Questions behind a text, each burst behind a text that the server hasn't seen, on eight slots."""
    from transformers import AutoTokenizer

    from pumice.pocket.parts import get_part

    xllamacpp: Any = import_module("xllamacpp")  # its classes are compiled, and hidden from type checkers
    tokenizer = AutoTokenizer.from_pretrained(get_part("smollm2-135m-instruct"))
    params = xllamacpp.CommonParams()
    params.model.path, params.port, params.warmup, params.verbosity = str(gguf(work, kind)), 0, True, -1
    params.n_parallel, params.n_ctx, params.kv_unified, params.cache_prompt = SLOTS, SLOTS * 1024, False, True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)

    def complete(before: str, number: int) -> dict[str, Any]:
        chat = f"<|im_start|>user\n{before}{material.question(number)}<|im_end|>\n<|im_start|>assistant\n"
        body = {"prompt": tokenizer(chat)["input_ids"], "n_predict": NEW, "temperature": 0, "ignore_eos": True}
        request = urllib.request.Request(f"{server.listening_address}/completion", json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    complete("Warm? ", 0)
    times: dict[str, list[float]] = {}
    notes: dict[str, Any] = {"slots": SLOTS}
    for clients in clients_of("text", most):
        before = prefix(seed * 100 + clients)
        with ThreadPoolExecutor(clients) as pool:
            began = time.perf_counter()
            answers = list(pool.map(lambda number: complete(before, number), range(clients)))  # noqa: B023
            times[f"text {clients}"] = [time.perf_counter() - began]
        assert all(answer["tokens_predicted"] == NEW for answer in answers)
        read = sum(answer["timings"]["prompt_n"] for answer in answers)
        notes[f"text {clients}"] = {"prompt": answers[0]["tokens_evaluated"], "prompt tokens read": read}
    return {"times": times, "notes": notes}


def gguf(work: Path, kind: str) -> Path:
    """The language model's file, written once. (A process of its own should: it holds the whole model.)"""
    from benchmarks.serve.contenders import write_gguf
    from pumice.pocket.parts import get_part

    return write_gguf(get_part("smollm2-135m-instruct"), work / f"smollm2-135m-{kind}.gguf", kind)
