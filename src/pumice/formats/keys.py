"""Names of weights in every published form, to the assistant's own and back.

    language_model.model.layers.0... ──┐
    model.language_model.layers.0...  ─┼──> lm.model.layers.0...   (and tower.model, connector.layers, newline)
    model.layers.0...  (originals)    ─┘

A form is recognised by the names themselves, never by the name of a folder.
"""

from __future__ import annotations

from collections.abc import Iterable

from pumice.types import PumiceError

Rule = tuple[str, str]
"""(beginning in the form, beginning in the assistant); the first rule that fits counts. Without a dot at its end it is
the whole name."""

_HF_PARTS: tuple[Rule, ...] = (
    ("multi_modal_projector.linear_1.", "connector.layers.0."),
    ("multi_modal_projector.linear_2.", "connector.layers.2."),
    ("image_newline", "newline"),
    ("vision_tower.vision_model.", "tower.model."),
    ("vision_tower.", "tower.model."),
)

FORMS: dict[str, tuple[Rule, ...]] = {
    # llava-hf's files, and what transformers 5 writes
    "hf": (
        *_HF_PARTS,
        ("language_model.model.", "lm.model."),
        ("language_model.lm_head.", "lm.lm_head."),
    ),
    # The modules of transformers since 4.52
    "hf-modules": (
        *((f"model.{theirs}", ours) for theirs, ours in _HF_PARTS),
        ("model.language_model.", "lm.model."),
        ("lm_head.", "lm.lm_head."),
    ),
    # haotian-liu/LLaVA, LLaVA-VL/LLaVA-NeXT, ELVA
    "original": (
        ("model.mm_projector.weight", "connector.layers.0.weight"),  # `linear` has no numbers
        ("model.mm_projector.bias", "connector.layers.0.bias"),
        ("model.mm_projector.", "connector.layers."),
        ("model.image_newline", "newline"),
        ("model.vision_tower.vision_tower.vision_model.", "tower.model."),
        ("model.vision_tower.vision_tower.", "tower.model."),
        ("transformer.", "lm.transformer."),  # OpenELM
        ("lm_head.", "lm.lm_head."),
        ("model.", "lm.model."),
    ),
    "pumice": (("tower.", "tower."), ("connector.", "connector."), ("newline", "newline"), ("lm.", "lm.")),
}
"""Rules by form."""

_SIGNS: tuple[tuple[str, str], ...] = (
    ("multi_modal_projector.", "hf"),
    ("model.multi_modal_projector.", "hf-modules"),
    ("model.mm_projector.", "original"),
    ("connector.", "pumice"),
)
"""What only names of that form begin with: they are asked for the connector, which every assistant has."""

_LEFT_OUT_ENDS = (".rotary_emb.inv_freq", ".position_ids")
_LEFT_OUT_PARTS = (".vision_resampler.",)


def recognise(names: Iterable[str]) -> str:
    """The form of a set of names: a key of FORMS.

    Raises:
        PumiceError: no connector among the names, or connectors of two forms.
    """
    names = list(names)
    found = sorted({form for name in names for sign, form in _SIGNS if name.startswith(sign)})
    if len(found) != 1:
        what = f"connectors of several forms ({', '.join(found)})" if found else "no connector"
        expected = ", ".join(sign for sign, _ in _SIGNS)
        raise PumiceError(f"{what} among {len(names)} weights; expected names that begin with one of {expected}")
    return found[0]


def left_out(name: str) -> bool:
    """Whether a published weight has no place in an assistant: tables that are computed, resamplers never used."""
    return name.endswith(_LEFT_OUT_ENDS) or any(part in name for part in _LEFT_OUT_PARTS)


def to_own(name: str, form: str) -> str | None:
    """The assistant's name of a weight, or None where the form has no such name."""
    for theirs, ours in FORMS[form]:
        if name.startswith(theirs) if theirs.endswith(".") else name == theirs:
            return ours + name.removeprefix(theirs)
    return None


def to_form(name: str, form: str) -> str:
    """The name of one of the assistant's weights in a form: the inverse of `to_own` as that form's writers have it.

    Raises:
        PumiceError: the form has no place for the weight, such as a third linear layer of a connector in `hf`.
    """
    for theirs, ours in FORMS[form]:
        if name.startswith(ours) and to_own(theirs + name.removeprefix(ours), form) == name:
            return theirs + name.removeprefix(ours)
    raise PumiceError(f"weight {name}: the {form} form has no place for it")
