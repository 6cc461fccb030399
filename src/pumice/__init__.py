"""Pumice: efficient visual assistants of the LLaVA line.

>>> import pumice
>>> assistant = pumice.load("pocket")
>>> assistant.ask("receipt.png", "What is the total?").text
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pumice.types import PumiceError

if TYPE_CHECKING:
    from pumice.assistant import Answer, Assistant
    from pumice.reader.reader import Reader

__version__ = "0.1.0"
__all__ = ["Answer", "Assistant", "PumiceError", "__version__", "load"]

DTYPES = ("auto", "float32", "bfloat16", "float16")


def load(
    name: str = "pocket",
    dtype: str = "auto",
    device: str = "auto",
    tower: str | None = None,
    template: str | None = None,
    base: str | None = None,
    reader: bool | Reader = False,
) -> Assistant:
    """Open an assistant: "pocket", the folder of a training run, or a folder with a checkpoint of the line.

    Checkpoints are llava-hf's (LLaVA-1.5, NeXT, NeXT-Video, OneVision), the originals', or Pumice's own; which one is
    read from the folder's content. ``dtype`` auto is bfloat16 where the hardware multiplies it fast, else float32;
    ``device`` auto is the first GPU, else the CPU. ``tower`` is the folder of the vision tower, for checkpoints that
    leave it out (LLaVA-1.5's originals). ``template`` is a name of pumice.templates.TEMPLATES, instead of the model's.
    ``base`` is the folder of the model that a LoRA adapter or a connector alone (mm_projector) was trained on.
    With ``reader`` an OCR engine's lines enter the prompts beside the pictures; pocket has weights of its own for it.

    Raises:
        PumiceError: unknown name, dtype, device or template, weights that can't be read, or the reader's packages are
            missing.
    """
    if reader is True:
        from pumice.reader.ocr import check_installed

        check_installed()  # before a model is loaded
    assistant = _open(name, dtype, device, tower, template, base, bool(reader))
    if reader:
        from pumice.reader.reader import open_reader

        assistant.reader = open_reader(assistant.processor.tokenizer) if reader is True else reader
    return assistant


def _open(
    name: str, dtype: str, device: str, tower: str | None, template: str | None, base: str | None, reader: bool
) -> Assistant:
    from pathlib import Path

    import torch

    from pumice.formats.own import is_own, open_own, with_template
    from pumice.formats.runs import is_run, open_run
    from pumice.pocket.model import load_pocket

    if dtype not in DTYPES:
        raise PumiceError(f"dtype {dtype!r}; expected one of {', '.join(DTYPES)}")
    chosen = None if dtype == "auto" else getattr(torch, dtype)
    try:
        place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        torch.empty(0, device=place)  # a known device may be missing here; torch without CUDA fails an assertion
    except (RuntimeError, AssertionError) as error:
        raise PumiceError(f"device {device!r}: {error}") from None
    folder = Path(name).expanduser()
    run = is_run(folder)
    if not run and (folder / "recipe.toml").is_file() and (folder / "model").is_dir():
        folder = folder / "model"  # of a run that trained the whole language model
    own = name != "pocket" and not run and is_own(folder)
    if tower is not None and (name == "pocket" or run or own):
        raise PumiceError(f"{name}: tower= is for checkpoints that leave their tower out; this model has its own")
    if name == "pocket":
        return with_template(load_pocket(chosen, place, reader), template)
    if run:
        return with_template(open_run(folder, chosen, place, Path(base).expanduser() if base else None), template)
    from pumice.formats.adapters import is_partial, open_partial

    tower_folder = Path(tower).expanduser() if tower else None
    if is_partial(folder):
        return open_partial(folder, Path(base).expanduser() if base else None, chosen, place, tower_folder, template)
    if base is not None:
        raise PumiceError(f"{name}: base= is for an adapter or a connector alone, expected its folder as the model")
    if own:
        return open_own(folder, chosen, place, template)
    if (folder / "config.json").is_file():
        from pumice.formats.opening import open_checkpoint

        return open_checkpoint(folder, chosen, place, tower_folder, template)
    raise PumiceError(
        f"unknown model {name!r}; expected 'pocket', a training run's folder (recipe.toml), "
        "a checkpoint's folder (config.json), or an adapter's (adapter_config.json)"
    )


def __getattr__(attribute: str) -> object:
    """Answer and Assistant, imported on first use: importing pumice stays fast."""
    if attribute in ("Answer", "Assistant"):
        from pumice import assistant

        return getattr(assistant, attribute)
    raise AttributeError(attribute)
