"""A checkpoint's config.json, of any published form, as sizes.

config.json ──mm_vision_tower?──> config_original | config_hf ──> Model
"""

from __future__ import annotations

from pathlib import Path

from pumice.formats.config_hf import HF_TYPES, read_hf
from pumice.formats.config_original import read_original
from pumice.formats.section import read_section
from pumice.formats.sizes import Model


def read_config(path: Path) -> Model:
    """The sizes in a checkpoint's config.json, llava-hf's or the original repositories'; the folder is its name.

    Raises:
        PumiceError: not JSON, an unknown type, a value that isn't possible or isn't supported.
    """
    section, name = read_section(path), path.resolve().parent.name
    if "mm_vision_tower" in section.values:
        return read_original(name, section)
    if "model_type" not in section.values:
        raise section.error("model_type", f"expected one of {', '.join(HF_TYPES)}, or an original mm_vision_tower")
    return read_hf(name, section, section.choice("model_type", tuple(HF_TYPES)))
