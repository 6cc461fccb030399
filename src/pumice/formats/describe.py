"""What a checkpoint's folder says about its model, before any weight is read.

    config.json, preprocessor_config.json ──> Description: tower, connector, language model, layouts, pixels

Sizes, grids and their order come from `configs`, as for `pumice plan`; here are the parts that only a running model
needs. A folder is known by what its config holds, never by its name.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pumice.formats.config_hf import CLIP_L, HF_TYPES, SIGLIP_SO
from pumice.formats.config_original import ORIGINAL_CLASSES, ORIGINAL_TYPES, local_tower
from pumice.formats.config_own import is_own
from pumice.formats.configs import read_config
from pumice.formats.published import HUB_TOWERS
from pumice.formats.section import Section, read_section
from pumice.formats.sizes import Model
from pumice.model.towers import TOWERS
from pumice.types import PumiceError
from pumice.vision.layout import NEXT_MULTI, ONEVISION_MULTI, Policy

Form = Literal["hf", "original"]
TOWER_TYPES = {kind: name for name, tower in TOWERS.items() for kind in tower.types}
"""Our type of tower by the ``model_type`` of its config."""

KERNELS = ("attn_implementation", "_attn_implementation")
"""Keys with which transformers may fetch a kernel, which is code, from the hub; attention is our own here."""

HUB_HEADS = {1024: 16, 768: 12, 1152: 16}
"""Attention heads of the towers that original checkpoints name, by their width."""


@dataclass(frozen=True)
class Description:
    """Everything about a model but its weights, tokenizer and chat template.

    ``sizes`` are `pumice plan`'s; ``layers`` the tower's blocks that the connector sees, counted from 1; ``lm`` a
    transformers config; ``several`` the policy of each of several pictures, None where it is that of one.
    """

    form: Form
    sizes: Model
    tower_type: str
    tower: dict[str, Any]
    layers: tuple[int, ...]
    lm: Any
    policy: Policy
    several: Policy | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


ONLY = {"resample": 3, "do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
"""Settings of an image processor that have one value here: bicubic, 3, is that of all published models of the line."""


def describe(folder: Path) -> Description:
    """Read a folder's configs.

    Raises:
        PumiceError: no config.json, one of an unknown type, or a value that isn't supported; the key is named.
    """
    section = read_section(folder / "config.json")
    if is_own(section.values):
        raise PumiceError(f"{folder}: Pumice's own form, expected a published one; pumice.load opens it")
    sizes = read_config(folder / "config.json")
    original = "mm_vision_tower" in section.values
    fields, layers = _original_tower(section, sizes) if original else _hf_tower(section, sizes)
    tower_type = TOWER_TYPES[fields["model_type"]]
    pixels = _preprocessor(folder)
    _check_pixels(pixels)
    policy, several = _policies(section, sizes, pixels, original)
    return Description(
        form="original" if original else "hf",
        sizes=sizes,
        tower_type=tower_type,
        tower=fields,
        layers=layers,
        lm=_lm_config(section, original),
        policy=policy,
        several=several,
        mean=_triple(pixels, "image_mean", TOWERS[tower_type].pixels.mean),
        std=_triple(pixels, "image_std", TOWERS[tower_type].pixels.std),
    )


def _hf_tower(section: Section, sizes: Model) -> tuple[dict[str, Any], tuple[int, ...]]:
    """(the tower's config, its chosen blocks): entry k of transformers' hidden states is what block k gives."""
    kind = section.values["model_type"]
    default = SIGLIP_SO if kind == "llava_onevision" else CLIP_L
    fields = _without_kernels(section.inner("vision_config", default).values)
    fields = {key: value for key, value in fields.items() if value is not None}  # null: the default, as in `sizes`
    fields.setdefault("model_type", HF_TYPES[kind][0]["model_type"])
    chosen = section.values.get("vision_feature_layer", -1 if kind == "llava_onevision" else -2)
    entries = chosen if isinstance(chosen, list) else [chosen]
    count = sizes.tower.layers
    return fields, tuple(k if k > 0 else count + 1 + k for k in entries)


def _original_tower(section: Section, sizes: Model) -> tuple[dict[str, Any], tuple[int, ...]]:
    local = local_tower(section)
    if local:
        return _without_kernels(local.values), (sizes.tower.used,)
    tower = HUB_TOWERS[section.values["mm_vision_tower"]]
    fields = {
        "model_type": f"{tower.kind}_vision_model",
        "hidden_size": tower.width,
        "intermediate_size": tower.ffn,
        "num_hidden_layers": tower.layers,
        "num_attention_heads": HUB_HEADS[tower.width],
        "image_size": tower.tile,
        "patch_size": tower.patch,
    }
    return fields, (sizes.tower.used,)


def _lm_config(section: Section, original: bool) -> Any:
    """transformers' config of the language model."""
    from transformers import AutoConfig

    from pumice.model import openelm  # noqa: F401 (registers OpenELM with transformers)

    if original:
        kind = section.values["model_type"]
        kind = ORIGINAL_TYPES.get(kind) or ORIGINAL_CLASSES[section.values["architectures"][0]]
        skipped = ("model_type", "architectures", "auto_map", "quantization_config")
        fields = {k: v for k, v in section.values.items() if k not in skipped and not k.startswith(("mm_", "image_"))}
    else:
        fields = dict(section.inner("text_config", {}).values)
        kind = fields.pop("model_type", HF_TYPES[section.values["model_type"]][1])
        if "tie_word_embeddings" not in fields and "tie_word_embeddings" in section.values:
            fields["tie_word_embeddings"] = section.values["tie_word_embeddings"]
    try:
        return AutoConfig.for_model(kind, **_without_kernels(fields))
    except Exception as error:  # transformers finds mistakes in a config wherever it first stumbles
        raise PumiceError(f"{section.where}: the language model's config: {' '.join(str(error).split())}") from None


def _without_kernels(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key not in KERNELS}


def _preprocessor(folder: Path) -> dict[str, Any]:
    """The image processor's settings: a file of its own, or inside of the processor's (transformers 5)."""
    if (folder / "preprocessor_config.json").is_file():
        return read_section(folder / "preprocessor_config.json").values
    if (folder / "processor_config.json").is_file():
        return dict(read_section(folder / "processor_config.json").inner("image_processor", {}).values)
    return {}


def _check_pixels(pixels: dict[str, Any]) -> None:
    """Refuse what would show the tower other pixels than it was trained with."""
    for key, only in ONLY.items():
        value = pixels.get(key)
        if value is not None and value != only:
            raise PumiceError(f"preprocessor_config.json: {key} = {value!r}; only {only!r} is built")


def _policies(section: Section, sizes: Model, pixels: dict[str, Any], original: bool) -> tuple[Policy, Policy | None]:
    """(policy of one picture, of each of several or None)."""
    policy = sizes.policy
    if section.values.get("model_type") == "llava" and not original and not pixels.get("do_pad"):
        # transformers' default for LLaVA-1.5; the originals pad. The folder's own choice counts.
        size = pixels.get("size")  # older files have a number, the shortest edge
        squashed = isinstance(size, dict) and "height" in size and not pixels.get("do_center_crop")
        policy = replace(policy, mode="square" if squashed else "crop")
    fitted = {"tile": policy.tile, "side": policy.side}
    if policy.mode != "anyres" or (not original and section.values["model_type"] != "llava_onevision"):
        return policy, None
    preset = ONEVISION_MULTI if sizes.tower.kind == "siglip" else NEXT_MULTI
    return policy, replace(preset, newline=policy.newline, **fitted)


def _triple(values: dict[str, Any], key: str, default: tuple[float, float, float]) -> tuple[float, float, float]:
    found = values.get(key)
    if found is None:
        return default
    if not isinstance(found, list) or len(found) != 3 or not all(isinstance(x, int | float) for x in found):
        raise PumiceError(f"preprocessor_config.json: {key} = {found!r}; expected three numbers")
    if key == "image_std" and not all(x > 0 for x in found):
        raise PumiceError(f"preprocessor_config.json: {key} = {found!r}; expected numbers above 0")
    return (float(found[0]), float(found[1]), float(found[2]))
