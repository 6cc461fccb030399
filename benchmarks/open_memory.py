"""Memory that opening a checkpoint takes: python benchmarks/open_memory.py [--layers 24] [--stored bfloat16]

A checkpoint of random weights in llava-hf's form with the sizes of LLaVA-OneVision-0.5B (SigLIP-SO400M, Qwen2-0.5B;
1.8 GB in 16 bit) is written to a temporary folder in shards, and opened by `pumice.load` in a process of its own. Its
peak, less what it held after its imports, is set against the size of the opened weights.

The peak is VmHWM of /proc/self/status. That counts every resident page: anonymous ones (RssAnon), and pages of mapped
files (RssFile), which other processes may share and the kernel may drop, because the file still has them. Mapped
weights are resident only once they are read, so that every weight is read once before the peak is taken.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

TOWER = {
    "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26,
    "num_attention_heads": 16, "image_size": 384, "patch_size": 14, "vision_use_head": False,
}  # fmt: skip
LM = {
    "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14,
    "num_key_value_heads": 2, "vocab_size": 152000, "tie_word_embeddings": True,
}  # fmt: skip
SHARD = 400 * 2**20
MIB = 2**20


def write(folder: Path, layers: int, stored: str) -> int:
    """Write the checkpoint; the bytes of its weights."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models
    from transformers import AutoConfig, LlavaOnevisionForConditionalGeneration, PreTrainedTokenizerFast

    fields = {
        "vision_config": TOWER, "text_config": {**LM, "num_hidden_layers": layers}, "tie_word_embeddings": True,
        "image_grid_pinpoints": [[384 * i, 384 * j] for i in range(1, 7) for j in range(1, 7)],
    }  # fmt: skip
    config = AutoConfig.for_model("llava_onevision", **fields)
    config.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0}, [])), eos_token="a").save_pretrained(folder)
    with torch.device("meta"):
        shapes = LlavaOnevisionForConditionalGeneration(config).state_dict()
    shapes.pop("lm_head.weight")  # tied
    placed: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    written = 0
    for number, (name, shape) in enumerate(shapes.items(), 1):
        shard[name] = torch.randn(shape.shape).to(getattr(torch, stored))
        if sum(value.nbytes for value in shard.values()) > SHARD or number == len(shapes):
            path = folder / f"model-{len(set(placed.values())) + 1:05}.safetensors"
            save_file(shard, path, metadata={"format": "pt"})
            placed |= dict.fromkeys(shard, path.name)
            written += sum(value.nbytes for value in shard.values())
            shard = {}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return written


def resident() -> dict[str, int]:
    """Bytes by kind, from /proc/self/status."""
    text = Path("/proc/self/status").read_text()
    return {key: int(kib) * 1024 for key, kib in re.findall(r"(VmHWM|VmRSS|RssAnon|RssFile):\s+(\d+) kB", text)}


def open_once(folder: str, dtype: str) -> None:
    """In the child: open, read every weight, print what it took as JSON."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen2ForCausalLM, SiglipVisionModel  # noqa: F401

    import pumice
    import pumice.formats.adapters

    torch.set_num_threads(1)
    torch.ones(8, 8) @ torch.ones(8, 8)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before, most, done = resident(), {"RssAnon": 0, "RssFile": 0}, threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            now = resident()
            most.update({key: max(most[key], now[key]) for key in most})

    watcher = threading.Thread(target=watch)
    watcher.start()
    model = pumice.load(folder, dtype=dtype, device="cpu", template="chatml").model
    opened = resident()
    weights = {value.data_ptr(): value for value in [*model.parameters(), *model.buffers()]}.values()
    for value in weights:
        value.view(-1)[::512].sum()  # one number a page and more
    done.set()
    watcher.join()
    after = resident()
    found = {
        "weights": sum(value.nbytes for value in weights),
        "peak": after["VmHWM"] - before["VmRSS"],
        "peak while opening": opened["VmHWM"] - before["VmRSS"],
        **{f"most {key}": most[key] - before[key] for key in most},
        **{f"{key} after": after[key] - before[key] for key in most},
    }
    print(json.dumps(found))


def main() -> None:
    """Write, open once a dtype, print a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24, help="blocks of the language model, 30 MB each in 16 bit")
    parser.add_argument("--stored", default="bfloat16", help="dtype of the files")
    parser.add_argument("--opened", nargs="+", default=["bfloat16", "float32"], help="dtypes to open as")
    parser.add_argument("--child", nargs=2, metavar=("FOLDER", "DTYPE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return open_once(*args.child)
    with tempfile.TemporaryDirectory() as folder:
        size = write(Path(folder), args.layers, args.stored)
        print(f"{size / MIB:.0f} MiB of {args.stored} on the disk")
        for dtype in args.opened:
            command = [sys.executable, __file__, "--child", folder, dtype]
            ran = subprocess.run(command, check=True, capture_output=True, text=True)
            found = json.loads(ran.stdout.splitlines()[-1])
            print(f"as {dtype}: peak {found['peak'] / found['weights']:.2f}x the weights; MiB:", end=" ")
            print(", ".join(f"{key} {value / MIB:.0f}" for key, value in found.items()))
    return None


if __name__ == "__main__":
    main()
