"""A checkpoint's config.json, of any form, as sizes.

config.json ──model_type, mm_vision_tower?──> config_own | config_original | config_hf ──> Model
"""

from __future__ import annotations

from pathlib import Path

from pumice.formats.config_hf import HF_TYPES, read_hf
from pumice.formats.config_original import read_original
from pumice.formats.config_own import TYPE, is_own, read_own
from pumice.formats.section import read_section
from pumice.formats.sizes import Model


def read_config(path: Path) -> Model:
    """The sizes in a config.json of llava-hf's form, the original repositories' or our own; the folder is the name.

    Raises:
        PumiceError: not JSON, an unknown type, a value that isn't possible or isn't supported.
    """
    section, name = read_section(path), path.resolve().parent.name
    if is_own(section.values):
        return read_own(name, section)
    if "mm_vision_tower" in section.values:
        return read_original(name, section)
    known = ", ".join((*HF_TYPES, TYPE))
    if "model_type" not in section.values:
        raise section.error("model_type", f"expected one of {known}, or an original mm_vision_tower")
    return read_hf(name, section, section.choice("model_type", (*HF_TYPES, TYPE)))
