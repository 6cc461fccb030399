"""Opening a checkpoint of the line: any of its published forms, to an Assistant.

    folder ──describe──> tower, connector, language model ──read_folder, to_own──> weights in place ──> Assistant

Every weight is accounted for: what is missing, unknown or of another shape is listed in one error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pumice.assistant import Assistant
from pumice.chat_jinja import JinjaTemplate
from pumice.encode import Processor
from pumice.formats.describe import Description, describe
from pumice.formats.keys import left_out, recognise, to_own
from pumice.formats.section import read_section
from pumice.formats.shards import read_folder
from pumice.model.assistant import AssistantModel
from pumice.model.backbones import other_shapes, quiet
from pumice.model.build import auto_dtype, cast
from pumice.model.connectors import MlpConnector
from pumice.model.towers import tower_class
from pumice.templates import Template, get_template
from pumice.types import PumiceError

GENERATION = "generation_config.json"


def open_checkpoint(
    folder: Path,
    dtype: torch.dtype | None,
    device: torch.device,
    tower: Path | None = None,
    template: str | None = None,
) -> Assistant:
    """The assistant in a folder. ``tower`` and ``template`` as in `pumice.load`.

    Raises:
        PumiceError: a form that isn't known, or weights that don't fit the config: all of them are listed.
    """
    description = describe(folder)
    dtype = dtype or auto_dtype(device)
    model = build(description, own_names(read_folder(folder, dtype), folder), dtype, tower, folder)
    if (folder / GENERATION).is_file():
        model.lm.generation_config = generation(folder)
    return Assistant(model.to(device), make_processor(folder, description, template), folder.name)


def own_names(tensors: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """The tensors under the assistant's own names.

    Raises:
        PumiceError: names of no known form.
    """
    try:
        form = recognise(tensors)
    except PumiceError as error:
        raise PumiceError(f"{folder}: {error}") from None
    own = {name: to_own(name, form) for name in tensors if not left_out(name)}
    strange = [name for name, mine in own.items() if mine is None]
    if strange:
        raise PumiceError(f"{folder}: {len(strange)} weights that the {form} form doesn't have: {some(strange)}")
    whole = [name for name in own if not tensors[name].is_floating_point()]
    if whole:  # such as those of a quantised model, which mean nothing without their scales
        raise PumiceError(f"{folder}: weights that aren't of floating point: {some(whole)}")
    return {mine: tensors[name] for name, mine in own.items() if mine is not None}


def build(
    description: Description, state: Mapping[str, Tensor], dtype: torch.dtype, tower: Path | None, where: Path
) -> AssistantModel:
    """The model with its weights.

    Raises:
        PumiceError: missing, unknown or misshapen weights; a tower that isn't in the checkpoint.
    """
    parts, sizes = by_part(state), description.sizes
    faults: list[str] = []

    def part(make: Callable[..., Any], *given: Any) -> Any:
        try:
            return make(*given)
        except PumiceError as error:
            faults.append(str(error))

    seeing = part(_tower, description, parts["tower"], tower)
    speaking = part(load_lm, description.lm, parts["lm"], dtype)
    width = sizes.tower.width * sizes.tower.taken
    made = MlpConnector(width, description.lm.hidden_size, depth=sizes.connector.depth)
    connector = part(fill_connector, made, parts["connector"])
    if faults:
        raise PumiceError(f"{where}: {'; '.join(faults)}")
    model = AssistantModel(seeing, connector, speaking, pool_first=sizes.pool_first)
    newline = parts["newline"].get("")
    if newline is not None:
        if newline.shape != model.newline.shape:
            raise PumiceError(f"{where}: newline has {newline.numel()} values, expected {model.newline.numel()}")
        model.newline = nn.Parameter(newline)
    elif description.policy.newline:
        raise PumiceError(f"{where}: the layout has newline tokens, but the weights have no image_newline")
    return cast(model, dtype)


def by_part(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The assistant's weights by part (tower, connector, newline, lm), under the names that they have inside of it."""
    parts: dict[str, dict[str, Tensor]] = {"tower": {}, "connector": {}, "newline": {}, "lm": {}}
    for name, value in state.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = value
    return parts


def _tower(description: Description, state: dict[str, Tensor], folder: Path | None) -> Any:
    kind = tower_class(description.tower_type)
    fields, tile = description.tower, description.sizes.tower.tile
    if state:
        weights = {name.removeprefix("model."): value for name, value in state.items()}
        return kind(fields, tile, description.layers, weights)
    if folder is None:
        raise PumiceError(
            "the checkpoint has no tower (LLaVA-1.5's originals leave it in its own repository): "
            "pass its folder as tower="
        )
    return kind.from_folder(folder, tile, description.layers)


def fill_connector(connector: MlpConnector, state: dict[str, Tensor]) -> MlpConnector:
    """Put a connector's weights in place; they are taken over, not copied.

    Raises:
        PumiceError: weights that are missing, unknown or of another shape.
    """
    own = connector.state_dict()
    wrong = sorted(own.keys() ^ state.keys()) + [
        f"{name} {list(state[name].shape)}, expected {list(own[name].shape)}"
        for name in own
        if name in state and own[name].shape != state[name].shape
    ]
    if wrong:
        raise PumiceError(f"connector weights that are missing, unknown or of another shape: {some(wrong)}")
    connector.load_state_dict(state, assign=True)
    return connector


def load_lm(config: Any, state: dict[str, Tensor], dtype: torch.dtype) -> Any:
    """The language model. transformers builds it without memory, places the weights and ties what is tied.

    Raises:
        PumiceError: weights that are missing, unknown or of another shape.
    """
    from transformers import AutoModelForCausalLM

    kind: Any = AutoModelForCausalLM._model_mapping[type(config)]
    with quiet():
        try:
            # Of weights of another shape transformers' error says nothing, its report all.
            model, report = kind.from_pretrained(
                None, config=config, state_dict=state, dtype=dtype, output_loading_info=True,
                ignore_mismatched_sizes=True,
            )  # fmt: skip
        except Exception as error:  # transformers finds mistakes in a config wherever it first stumbles
            found = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
            raise PumiceError(f"the language model doesn't load: {found}") from None
    wrong = {what: sorted(report[f"{what}_keys"]) for what in ("missing", "unexpected")}
    wrong["of another shape"] = other_shapes(report)
    if any(wrong.values()):
        listed = "; ".join(f"{what}: {some(names)}" for what, names in wrong.items() if names)
        raise PumiceError(f"the language model's weights don't fit its config; {listed}")
    return model


def make_processor(folder: Path, description: Description, template: str | None = None) -> Processor:
    """Tokenizer, chat template (the checkpoint's own if none is named), layouts and pixel statistics.

    Raises:
        PumiceError: no tokenizer, or no chat template.
    """
    tokenizer = open_tokenizer(folder)
    return Processor(
        tokenizer=tokenizer,
        template=get_template(template) if template else find_template(folder, description, tokenizer),
        policy=description.policy,
        mean=description.mean,
        std=description.std,
        max_tokens=description.lm.max_position_embeddings,
        several=description.several,
        video=description.sizes.video,
        ends=end_ids(folder, description.lm.eos_token_id, tokenizer),
    )


def generation(folder: Path) -> Any:
    """transformers' settings of generation in a folder.

    Raises:
        PumiceError: the file can't be read.
    """
    from transformers import GenerationConfig

    try:
        with quiet():  # it would warn of settings for sampling where none is done, as published files have
            return GenerationConfig.from_pretrained(folder)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise PumiceError(f"{folder / GENERATION}: not readable ({' '.join(str(error).split())[:200]})") from None


def end_ids(folder: Path, default: Any, tokenizer: Any) -> tuple[int, ...]:
    """Token ids that end an answer in transformers' `generate`: the folder's settings', or the config's ``default``.

    An id that isn't of a special token came from another vocabulary's default, and is left out.
    """
    path = folder / GENERATION
    found = read_section(path).values.get("eos_token_id", default) if path.is_file() else default
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return tuple(end for end in (found if isinstance(found, list) else [found]) if type(end) is int and end in special)


def open_tokenizer(folder: Path) -> Any:
    """transformers' tokenizer of a folder; no code that lies in it is run.

    Raises:
        PumiceError: there is none, or it can't be read.
    """
    from transformers import AutoTokenizer

    try:
        with quiet():  # it would say that it doesn't know the type of an original's config, or of our own
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise whatever a damaged file makes them stumble over
        raise PumiceError(f"{folder}: no tokenizer that can be read ({' '.join(str(error).split())[:200]})") from None


def find_template(folder: Path, description: Description, tokenizer: Any) -> Template | JinjaTemplate:
    """The folder's own chat template: a file of its own, its processor's, or its tokenizer's.

    Originals have none: theirs follows from the type of the language model and the marks that the tokenizer knows.

    Raises:
        PumiceError: there is none.
    """
    if description.form == "original":
        return original_template(description, tokenizer)
    if (folder / "chat_template.jinja").is_file():
        return JinjaTemplate((folder / "chat_template.jinja").read_text(encoding="utf-8"), tokenizer)
    for name in ("chat_template.json", "processor_config.json"):
        if (folder / name).is_file():
            source = read_section(folder / name).values.get("chat_template")
            if isinstance(source, str) and source:
                return JinjaTemplate(source, tokenizer)
    found = tokenizer.chat_template  # some have several, by name: one for tools beside the default
    source = found.get("default") if isinstance(found, dict) else found
    if source:
        return JinjaTemplate(source, tokenizer)
    raise PumiceError(f"{folder}: no chat template; pass one of pumice.templates.TEMPLATES as template=")


def original_template(description: Description, tokenizer: Any) -> Template:
    """The conversation format that the originals trained a kind of language model with."""
    known = tokenizer.get_vocab()
    for mark, name in (("<|start_header_id|>", "llava_llama_3"), ("<|im_start|>", "chatml_direct")):
        if description.lm.model_type == "llama" and mark in known:
            return get_template(name)
    names = {"llama": "v1", "openelm": "v1", "mistral": "mistral_instruct", "qwen2": "qwen_1_5", "phi3": "phi3"}
    if description.lm.model_type not in names:
        raise PumiceError(f"no conversation format is known for {description.lm.model_type}; pass template=")
    return get_template(names[description.lm.model_type])


def some(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
