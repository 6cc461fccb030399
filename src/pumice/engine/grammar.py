"""What an answer may look like, token by token: a JSON schema, any JSON object, a regular expression, or choices.

    Grammar ──compile_grammar──> CompiledGrammar ──start──> GrammarState a request
                                                            mask ──> allowed tokens (V,) ──> a token ──accept──> ...

llguidance does the work. JSON is written as Python's json.dumps does, with or without a blank after "," and ":", so
that a weak model can't fill its answer with white space.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, regex_to_lark
from llguidance.hf import from_tokenizer
from torch import Tensor

from pumice.engine.request import Grammar
from pumice.tokens import tokenize
from pumice.types import PumiceError

MAX_SOURCE = 65_536
"""Characters of a schema or of choices; compiling the worst of that size took 0.1 s, on one core."""
MAX_REGEX = 4096
KEPT = 64
"""Compiled grammars that are kept for each tokenizer."""
_JSON = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
_LIMITS = LLParserLimits(max_lexer_states=50_000, verbose_errors=False)
_SAMPLED = 500
_NAMES = {"json_schema": "the JSON schema", "json": "JSON", "regex": "the regular expression", "choice": "the choices"}


class GrammarState:
    """Where one answer stands in its grammar."""

    def __init__(self, matcher: LLMatcher, stop_ids: Sequence[int]) -> None:
        self._matcher, self._stop_ids = matcher, frozenset(stop_ids)
        self._ended = False

    @property
    def finished(self) -> bool:
        """Nothing can follow: the answer is whole and its end was accepted, or no token could make it longer."""
        return self._ended or self._matcher.is_stopped()

    @property
    def complete(self) -> bool:
        """The answer may end here."""
        return self._ended or self._matcher.is_accepting()

    def mask(self, size: int) -> Tensor:
        """Which of ``size`` tokens may come next (size,) bool; tokens that end an answer only where it may end.

        Raises:
            PumiceError: the grammar takes more work than is allowed.
        """
        allowed = torch.zeros(size, dtype=torch.bool)
        if self.finished:
            allowed[[end for end in self._stop_ids if end < size]] = True
            return allowed
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check("the answer's grammar is too much work")
        found = torch.from_numpy(np.unpackbits(bits, count=min(size, 8 * len(bits)), bitorder="little"))
        allowed[: len(found)] = found.bool()
        return allowed

    def accept(self, token: int) -> None:
        """Go on by a token.

        Raises:
            PumiceError: it wasn't allowed.
        """
        if self.finished and token in self._stop_ids:
            self._ended = True
            return
        self._matcher.consume_token(token)
        self._check(f"token {token} can't follow in the answer's grammar")
        self._ended = token in self._stop_ids

    def _check(self, what: str) -> None:
        if self._matcher.is_error():
            raise PumiceError(f"{what} ({_line(self._matcher.get_error())})")


class CompiledGrammar:
    """A grammar for one tokenizer; any number of answers start from it."""

    def __init__(self, matcher: LLMatcher, stop_ids: Sequence[int]) -> None:
        self._matcher, self._stop_ids = matcher, tuple(stop_ids)

    def start(self) -> GrammarState:
        """The state of an answer that hasn't begun."""
        return GrammarState(self._matcher.deep_copy(), self._stop_ids)


def compile_grammar(grammar: Grammar, tokenizer: Any, stop_ids: Sequence[int] = ()) -> CompiledGrammar:
    """Compile a grammar, or find it among the last KEPT ones. ``stop_ids`` end an answer; () is the tokenizer's own.

    Of regular expressions and schemas what llguidance knows is allowed: no look-around and no back-references, and of
    JSON Schema what can be checked as the text is written (not `uniqueItems`, say); the rest is refused by name.

    Raises:
        PumiceError: the grammar is malformed or too large, nothing fits it, or the tokenizer's texts aren't understood.
    """
    return _vocabulary(tokenizer, tuple(stop_ids)).compile(grammar)


class _Vocabulary:
    """A tokenizer as llguidance sees it, and the grammars compiled for it."""

    def __init__(self, tokenizer: Any, stop_ids: tuple[int, ...]) -> None:
        ends = list(stop_ids) or [tokenizer.eos_token_id]
        try:
            self.tokenizer = from_tokenizer(tokenizer, eos_token=ends)
        except (ValueError, TypeError) as error:
            raise PumiceError(f"no structured answers with this tokenizer: {_line(error)}") from None
        self.stop_ids = self.tokenizer.eos_tokens
        _check_texts(self.tokenizer, tokenizer)
        first = tokenize(tokenizer, "a", markup=False)
        # Tokenizers of Llama's kind begin an answer with a blank and leave it out of its text.
        self.blank = self.tokenizer.decode_bytes(first) == b" a" and tokenizer.decode(first) == "a"
        self.kept: OrderedDict[Grammar, CompiledGrammar] = OrderedDict()
        self.lock = threading.Lock()

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        with self.lock:
            if grammar in self.kept:
                self.kept.move_to_end(grammar)
                return self.kept[grammar]
        matcher = LLMatcher(self.tokenizer, _written(grammar, self.blank), log_level=0, limits=_LIMITS)
        if not matcher.is_error():
            matcher.compute_bitmask()  # shows whether anything fits at all
        if matcher.is_error():
            reason = matcher.get_error()
            reason = "nothing fits it" if "NoExtension" in reason else reason
            raise PumiceError(f"{_NAMES[grammar.kind]} can't be used: {_line(reason)}")
        compiled = CompiledGrammar(matcher, self.stop_ids)
        with self.lock:
            self.kept[grammar] = compiled
            while len(self.kept) > KEPT:
                self.kept.popitem(last=False)
        return compiled


_vocabularies: WeakKeyDictionary[Any, dict[tuple[int, ...], _Vocabulary]] = WeakKeyDictionary()
_lock = threading.Lock()


def _vocabulary(tokenizer: Any, stop_ids: tuple[int, ...]) -> _Vocabulary:
    with _lock:
        known = _vocabularies.setdefault(tokenizer, {})
        if stop_ids not in known:
            known[stop_ids] = _Vocabulary(tokenizer, stop_ids)
        return known[stop_ids]


def _check_texts(seen: LLTokenizer, tokenizer: Any) -> None:
    """Texts of tokens as llguidance reads them against the tokenizer's own: Unigram's blanks, say, it gets wrong."""
    added = tokenizer.added_tokens_decoder
    before = tokenize(tokenizer, "a", markup=False)[-1]
    for token in range(0, len(tokenizer), max(1, len(tokenizer) // _SAMPLED)):
        read, text = seen.decode_bytes([before, token]), tokenizer.decode([before, token])
        if token not in added and "\ufffd" not in text and read.lstrip(b" ") != text.lstrip(" ").encode():
            raise PumiceError(
                f"no structured answers with this tokenizer: token {token} is {text!r}, but read as {read!r}"
            )


def _written(grammar: Grammar, blank: bool) -> str:
    """The grammar in llguidance's form, behind an optional ``blank``."""
    limit = MAX_REGEX if grammar.kind == "regex" else MAX_SOURCE
    if len(grammar.source) > limit:
        raise PumiceError(f"{_NAMES[grammar.kind]} has {len(grammar.source):,} characters; at most {limit:,} are taken")
    if grammar.kind == "regex":
        answer = f"/{regex_to_lark(grammar.source, use_ascii='')}/"
    elif grammar.kind == "choice":
        choices = [choice.strip() for choice in grammar.source.splitlines() if choice.strip()]
        if not choices:
            raise PumiceError("choices: expected at least one, each on a line")
        answer = f"/{'|'.join(map(_escape, choices))}/"
    else:
        schema = {"type": "object"} if grammar.kind == "json" else _schema(grammar.source)
        answer = f"%json {json.dumps({**schema, 'x-guidance': _JSON})}"
    return LLMatcher.grammar_from_lark(f"start: {'/ ?/ ' if blank else ''}answer\nanswer: {answer}")


def _schema(source: str) -> dict[str, Any]:
    try:
        schema = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise PumiceError(f"the JSON schema isn't JSON: {_line(error) or 'nested too deeply'}") from None
    if not isinstance(schema, dict):
        raise PumiceError(
            f"the JSON schema is {type(schema).__name__}; expected an object such as {{'type': 'object'}}"
        )
    return schema


def _escape(text: str) -> str:
    return re.sub(r"[^\w\s]", lambda found: f"\\x{{{ord(found[0]):X}}}", text)


def _line(error: object) -> str:
    """The first lines of a message as one."""
    return " ".join(str(error).split("<state>")[0].split())[:300]
