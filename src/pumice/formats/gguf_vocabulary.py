"""A tokenizer as llama.cpp's vocabulary.

    transformers tokenizer ──its own JSON──> kind, pieces, scores, types, merges ──> metadata of a GGUF file

Two kinds are known. "llama" is SentencePiece's BPE with byte fallback: llama.cpp joins the two neighbours whose union
has the highest score, so that a piece's score is minus the rank of the first merge that makes it. "gpt2" is byte-level
BPE: merges as they are, and the name of the rule that cuts a text before they apply.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pumice.types import PumiceError

if TYPE_CHECKING:
    from gguf import GGUFWriter

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Types of pieces, as in `gguf.TokenType`."""
UNREACHED = -1e9
"""Score of pieces that no merge makes."""

_WORDS = (
    r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)
CUTS: dict[tuple[Any, ...], str] = {
    (("ByteLevel", True),): "gpt-2",
    (("Digits", True), ("ByteLevel", True)): "smollm",
    (("Split", _WORDS % r"\p{N}{1,3}"), ("ByteLevel", False)): "llama-bpe",
    (("Split", _WORDS % r"\p{N}"), ("ByteLevel", False)): "qwen2",
}
"""llama.cpp's names (`tokenizer.ggml.pre`) of what byte-level tokenizers do before the merges."""
_SETTINGS = {"ByteLevel": "use_regex", "Digits": "individual_digits"}


@dataclass(frozen=True)
class Vocabulary:
    """Pieces by id, with their types; ``model`` is llama (with ``scores``) or gpt2 (with ``merges`` and ``cut``)."""

    model: str
    pieces: list[str]
    types: list[int]
    scores: list[float] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    cut: str = "default"
    space_prefix: bool = False


def read_vocabulary(tokenizer: Any, rows: int) -> Vocabulary:
    """The vocabulary of a transformers tokenizer for embeddings of ``rows``; rows without a piece are marked unused.

    Raises:
        PumiceError: a tokenizer that llama.cpp has no counterpart of, or one with more pieces than rows.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise PumiceError(
            f"a tokenizer of type {type(tokenizer).__name__}; llama.cpp takes BPE of the tokenizers library"
        )
    state = json.loads(backend.to_str())
    model = state["model"]
    if model["type"] != "BPE":
        raise PumiceError(
            f"a tokenizer of type {model['type']}; llama.cpp takes SentencePiece's BPE and byte-level BPE"
        )
    pieces, types = _pieces(state, rows)
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    if not merges:
        raise PumiceError("a tokenizer without merges, which llama.cpp doesn't load")
    if not model.get("byte_fallback"):
        return Vocabulary("gpt2", pieces, types, merges=[" ".join(merge) for merge in merges], cut=_cut(state))
    space_prefix = _space_prefix(state)
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    scores = [-float(ranks[piece]) if piece in ranks else UNREACHED for piece in pieces]
    types = [
        UNKNOWN if piece == tokenizer.unk_token else BYTE if kind == NORMAL and _is_byte(piece) else kind
        for piece, kind in zip(pieces, types, strict=True)
    ]
    if types.count(BYTE) != 256:
        raise PumiceError(f"a tokenizer with {types.count(BYTE)} pieces <0x00> to <0xFF>; llama.cpp needs all 256")
    return Vocabulary("llama", pieces, types, scores=scores, space_prefix=space_prefix)


def add_vocabulary(writer: GGUFWriter, vocabulary: Vocabulary, tokenizer: Any, stop: str) -> None:
    """Write the vocabulary and its special ids; ``stop`` is the text that ends an answer."""
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.cut)
    writer.add_token_list(vocabulary.pieces)
    writer.add_token_types(vocabulary.types)
    writer.add_token_scores(vocabulary.scores)
    writer.add_token_merges(vocabulary.merges)
    writer.add_add_space_prefix(vocabulary.space_prefix)
    for name in ("bos", "eos", "unk", "pad"):
        number = getattr(tokenizer, f"{name}_token_id")
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    around = tokenizer("").input_ids
    writer.add_add_bos_token(bool(around) and around[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(bool(around) and around[-1] == tokenizer.eos_token_id)
    ends = tokenizer(stop, add_special_tokens=False).input_ids[-1:]
    if ends and ends[0] != tokenizer.eos_token_id:
        writer.add_eot_token_id(ends[0])


def _pieces(state: dict[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """(pieces by id, their types)."""
    found = {number: (piece, NORMAL) for piece, number in state["model"]["vocab"].items()}
    for token in state["added_tokens"]:
        found[token["id"]] = (token["content"], CONTROL if token["special"] else USER_DEFINED)
    if max(found) >= rows:
        raise PumiceError(
            f"a tokenizer with ids up to {max(found)}, but embeddings of {rows} rows; expected a row for each"
        )
    whole = [found.get(number, (f"[PAD{number}]", UNUSED)) for number in range(rows)]
    return [piece for piece, _ in whole], [kind for _, kind in whole]


def _is_byte(piece: str) -> bool:
    return re.fullmatch(r"<0x[0-9A-F]{2}>", piece) is not None


def _steps(part: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """The parts of a normaliser or pre-tokenizer, one after the other."""
    if part is None:
        return []
    return [step for inner in part[key] for step in _steps(inner, key)] if part["type"] == "Sequence" else [part]


def _cut(state: dict[str, Any]) -> str:
    """llama.cpp's name of what a byte-level tokenizer does before the merges. It has no NFC, which is let pass."""
    steps = _steps(state["pre_tokenizer"], "pretokenizers")
    normalizers = [step["type"] for step in _steps(state["normalizer"], "normalizers") if step["type"] != "NFC"]
    signature = tuple((step["type"], _setting(step)) for step in steps)
    spaced = any(step.get("add_prefix_space") for step in steps)
    if normalizers or spaced or signature not in CUTS:
        raise PumiceError(
            "a byte-level tokenizer whose pre-tokenizer or normaliser llama.cpp has no counterpart of "
            f"({json.dumps([state['normalizer'], state['pre_tokenizer']])[:300]}); known: {', '.join(CUTS.values())}"
        )
    return CUTS[signature]


def _setting(step: dict[str, Any]) -> Any:
    if step["type"] == "Split":
        plain = step["behavior"] == "Isolated" and not step["invert"]
        return step["pattern"].get("Regex") if plain else None
    return step.get(_SETTINGS.get(step["type"], ""))


def _space_prefix(state: dict[str, Any]) -> bool:
    """Whether a SentencePiece tokenizer puts a space before a text.

    llama.cpp does so after every special token and picture too. So does `pumice.encode`, which tokenises what lies
    between them by itself.
    """
    steps = _steps(state["normalizer"], "normalizers") + _steps(state["pre_tokenizer"], "pretokenizers")
    strange = [step["type"] for step in steps if step["type"] not in ("Prepend", "Replace", "Metaspace")]
    if strange:
        raise PumiceError(f"a SentencePiece tokenizer with {', '.join(strange)}; llama.cpp has no counterpart of it")
    return any(step["type"] == "Prepend" or step.get("prepend_scheme", "never") != "never" for step in steps)
