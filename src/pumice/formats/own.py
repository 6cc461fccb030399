"""Pumice's own form: a folder that any assistant is written to, and opened from without any other part.

    Assistant ──save_own──> config.json · model.safetensors · tokenizer · chat_template.jinja ──open_own──> Assistant

It is for assistants that no published form has a place for: features of several blocks, space-to-depth, layouts of
their own. Weights have the assistant's own names and the dtype in which it was loaded; tied ones are stored once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pumice.assistant import Assistant
from pumice.chat import check_marks
from pumice.chat_jinja import JinjaTemplate
from pumice.encode import Processor
from pumice.formats import config_own, opening
from pumice.formats.config_own import JINJA, Marks, OwnConfig, OwnConnector, OwnPixels, OwnTower
from pumice.formats.folders import new_folder
from pumice.formats.own_weights import assemble, compare, read_weights, shapes, stored
from pumice.formats.section import Section, read_section
from pumice.model.assistant import AssistantModel
from pumice.model.build import auto_dtype
from pumice.model.connectors import CONNECTORS
from pumice.model.towers import TOWERS
from pumice.templates import TEMPLATES, Template, get_template
from pumice.train.lowrank import has_lora
from pumice.types import PumiceError

SHARD = "5GB"
"""Largest file of weights."""
UNSAVED = ("architectures", "auto_map", "dtype", "transformers_version", "_name_or_path")
"""Fields of transformers' configs that say where a part came from, not what it is."""
OPENED = ("is_local", "local_files_only")
"""What transformers notes in a tokenizer's settings about how it was opened."""


def is_own(folder: Path) -> bool:
    """Whether a folder is of this form.

    Raises:
        PumiceError: its config.json can't be read.
    """
    path = folder / "config.json"
    return path.is_file() and config_own.is_own(read_section(path).values)


def save_own(assistant: Assistant, out: Path) -> None:
    """Write an assistant to the new folder ``out``, in the dtype in which it was loaded.

    Raises:
        PumiceError: ``out`` isn't empty or can't be written (nothing is left behind then), or an assistant that could
            not be opened again: low-rank matrices that aren't merged, a quantised language model, a template that is
            neither Jinja nor one of pumice.templates.TEMPLATES.
    """
    save_model(assistant.model, assistant.processor, out)


def save_model(model: AssistantModel, processor: Processor, out: Path) -> None:
    """`save_own` of a model that may still train."""
    from huggingface_hub import save_torch_state_dict

    if has_lora(model):
        raise PumiceError("low-rank matrices stand beside the model's weights; merge them before saving")
    text = json.dumps(_describe(model, processor).to_dict(), indent=2, ensure_ascii=False) + "\n"
    # Read as it will be read: what could not be opened again isn't written.
    config = config_own.parse(Section("the assistant's config", json.loads(text)))
    weights = stored(model)
    compare(shapes(config, "the assistant's config"), weights, "the assistant")
    with new_folder(out) as folder:
        (folder / "config.json").write_text(text, encoding="utf-8")
        _save_tokenizer(processor.tokenizer, folder)
        if isinstance(processor.template, JinjaTemplate):
            (folder / JINJA).write_bytes(processor.template.source.encode())
        known = getattr(model.lm, "generation_config", None)
        if known is not None and not known._from_model_config:
            known.to_json_file(folder / opening.GENERATION, use_diff=True, keys_to_pop=["compile_config"])
        save_torch_state_dict(weights, folder, max_shard_size=SHARD)


def open_own(
    folder: Path,
    dtype: torch.dtype | None,
    device: torch.device,
    template: str | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> Assistant:
    """The assistant in a folder; ``dtype`` None and ``template`` as in `pumice.load`, ``weights`` in the files' place.

    Raises:
        PumiceError: config keys that are missing, unknown or of a wrong type; weights that are missing, unknown or of
            another shape, all in one error; damaged files; no tokenizer; a template that doesn't fit the tokenizer.
    """
    where = str(folder / "config.json")
    config = config_own.parse(read_section(folder / "config.json"))
    weights = read_weights(folder) if weights is None else weights
    compare(shapes(config, where), weights, str(folder))
    try:
        model = assemble(config, weights, dtype or auto_dtype(device))
    except PumiceError as error:
        raise PumiceError(f"{folder}: {error}") from None
    if (folder / opening.GENERATION).is_file():
        model.lm.generation_config = opening.generation(folder)
    return with_template(Assistant(model.to(device), _processor(folder, config), folder.name), template)


def open_processor(folder: Path) -> Processor:
    """Tokenizer, chat template, layouts and pixel statistics of the assistant in a folder.

    Raises:
        PumiceError: config keys, tokenizer or template as in `open_own`.
    """
    return _processor(folder, config_own.parse(read_section(folder / "config.json")))


def with_template(assistant: Assistant, name: str | None) -> Assistant:
    """The assistant with the template of a name instead of its own, in place; None keeps it.

    Raises:
        PumiceError: no such template, or one whose marks aren't single tokens of the assistant's tokenizer.
    """
    if name is not None:
        template = get_template(name)
        check_marks(template, assistant.processor.tokenizer)
        assistant.processor = replace(assistant.processor, template=template)
    return assistant


# writing


def _describe(model: AssistantModel, processor: Processor) -> OwnConfig:
    tower, connector, template = model.tower, model.connector, processor.template
    linears = [module for module in connector.layers if isinstance(module, nn.Linear)]
    if isinstance(template, JinjaTemplate):
        written: str | Marks = Marks(template.image, template.video)
    elif isinstance(template, Template) and replace(template, loss="answer") == TEMPLATES.get(template.name):
        written = template.name
    else:
        name = getattr(template, "name", type(template).__name__)
        raise PumiceError(f"chat template {name!r}: expected a JinjaTemplate, or one of pumice.templates.TEMPLATES")
    return OwnConfig(
        tower=OwnTower(_kind(tower, TOWERS), tower.tile, tower.layers, _fields(tower.config)),
        connector=OwnConnector(
            _kind(connector, CONNECTORS), connector.shuffle, len(linears), isinstance(connector.norm, nn.RMSNorm)
        ),
        text_config=_text_config(model.lm),
        pool_first=model.pool_first,
        pixels=OwnPixels(processor.mean, processor.std),
        layout=processor.policy,
        several=processor.several,
        video=processor.video,
        template=written,
        max_tokens=processor.max_tokens,
    )


def _kind(part: nn.Module, known: Mapping[str, type[nn.Module]]) -> Any:
    """The name of a part's class."""
    for name, kind in known.items():
        if type(part) is kind:
            return name
    raise PumiceError(f"a part of class {type(part).__name__}; expected one of {', '.join(known)}")


def _text_config(lm: Any) -> dict[str, Any]:
    fields = _fields(lm.config)
    tied = lm.get_output_embeddings().weight is lm.get_input_embeddings().weight
    if bool(lm.config.tie_word_embeddings) != tied:  # transformers unties what a checkpoint holds twice, and differs
        fields["tie_word_embeddings"] = tied
    return fields


def _fields(config: Any) -> dict[str, Any]:
    """transformers' config of a part as plain JSON."""
    fields = json.loads(config.to_json_string(use_diff=False))
    return {key: value for key, value in fields.items() if key not in UNSAVED}


def _save_tokenizer(tokenizer: Any, folder: Path) -> None:
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:  # tokenizers' Rust core has no class of its own for a full disk
        raise OSError(f"tokenizer: {error}") from None
    path = folder / "tokenizer_config.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    fields = {key: value for key, value in fields.items() if key not in OPENED}
    path.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


# opening


def _processor(folder: Path, config: OwnConfig) -> Processor:
    tokenizer = opening.open_tokenizer(folder)
    return Processor(
        tokenizer=tokenizer,
        template=_template(folder, config, tokenizer),
        policy=config.layout,
        mean=config.pixels.mean,
        std=config.pixels.std,
        max_tokens=config.max_tokens,
        several=config.several,
        video=config.video,
        ends=opening.end_ids(folder, config.text_config.get("eos_token_id"), tokenizer),
    )


def _template(folder: Path, config: OwnConfig, tokenizer: Any) -> Template | JinjaTemplate:
    if isinstance(config.template, Marks):
        try:
            source = (folder / JINJA).read_bytes().decode()  # as bytes: line ends stay as they are
        except (OSError, ValueError) as error:
            raise PumiceError(f"{folder / JINJA}: not readable ({error})") from None
        return JinjaTemplate(source, tokenizer, config.template.image, config.template.video)
    try:
        return get_template(config.template)
    except PumiceError as error:
        raise PumiceError(f"{folder / 'config.json'}: template: {error}") from None
