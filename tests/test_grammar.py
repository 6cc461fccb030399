"""Answers of a model that knows nothing fit their grammar, whatever the tokenizer; hostile grammars cost little."""

from __future__ import annotations

import json
import re
import time
from functools import cache
from typing import Any

import jsonschema
import pytest
import torch
from gguf_models import byte_level, sentencepiece
from hf_models import make_tokenizer
from test_llama_tokenizer import made

from pumice.engine.grammar import KEPT, MAX_REGEX, MAX_SOURCE, compile_grammar
from pumice.engine.request import Grammar, GrammarKind, Sampling
from pumice.engine.sampler import Sampler
from pumice.types import PumiceError

NAMES = ["bytes", "merges", "sentencepiece", "first, words alone", "prepending", "legacy"]
EXTRA = 7  # rows of a model's vocabulary that no token has

RECEIPT = {
    "type": "object",
    "properties": {
        "shop": {"type": "string", "maxLength": 20},
        "date": {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}$"},
        "total": {"type": "number", "minimum": 0, "maximum": 9999},
        "paid": {"enum": ["cash", "card", None]},
        "lines": {
            "type": "array",
            "maxItems": 3,
            "items": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "minLength": 1, "maxLength": 8},
                    "count": {"type": "integer"},
                },
                "required": ["name", "count"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["shop", "date", "total", "paid", "lines"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "kind": {"const": "node"},
                "left": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                "flag": {"type": "boolean"},
            },
            "required": ["kind", "left"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}
SCHEMAS: list[dict[str, Any]] = [
    RECEIPT,
    TREE,
    {"type": ["integer", "null"]},
    {"type": "string", "format": "date"},
    {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 4},
    {"allOf": [{"type": "string"}, {"minLength": 2}, {"maxLength": 4}]},
    {"enum": ['a"b', "c\\d", 3, None, True, "日本"]},
    {"type": "object", "properties": {}, "additionalProperties": {"type": "integer"}, "maxProperties": 2},
    # What a schema says of white space doesn't count.
    {
        "type": "object",
        "properties": {"a": {"const": 1}},
        "required": ["a"],
        "x-guidance": {"whitespace_flexible": True},
    },
]
REGEXES = [
    r"[a-c]{3}-[0-9]",
    r"(yes|no)( please)?",
    r"a/b&c~d#",
    r"[^\n]{0,9}",
    r"日(本|曜)|😀+",
    r"(?i)abc",
    r"^x$",
    "",
]
CHOICES = [
    "yes",
    "no",
    'quoted "x"',
    "back\\slash",
    "a|b",
    "(c)",
    "日本",
    "😀 smile",
    "x" * 40,
    "yes please",
    "-1.5e3 %",
]


@pytest.fixture(scope="module", params=NAMES)
def tokenizer(request) -> Any:
    others = {"bytes": make_tokenizer, "merges": byte_level, "sentencepiece": sentencepiece}
    return others[request.param]() if request.param in others else made(request.param)


@cache
def _logits(tokenizer: Any) -> torch.Tensor:
    """Of a model that knows nothing, but that texts and lists end."""
    texts = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    ends = [number for number, text in enumerate(texts) if '"' in text or "}" in text or "]" in text]
    logits = torch.zeros(len(tokenizer) + EXTRA)
    logits[ends] = 3.0
    return logits


def answer(tokenizer: Any, grammar: Grammar, seed: int, max_tokens: int = 1000) -> tuple[str, str]:
    """(text, why it ended) of an answer whose logits say nothing; the grammar's promises are checked at every step."""
    state = compile_grammar(grammar, tokenizer).start()
    sampler = Sampler(Sampling(temperature=1.0, seed=seed), [], state)
    end, special = tokenizer.eos_token_id, tokenizer.all_special_ids
    logits, ids = _logits(tokenizer), []
    for _ in range(max_tokens):
        mask = state.mask(len(logits))
        assert mask.any()
        assert not mask[[token for token in special if token != end]].any()
        assert not mask[len(tokenizer) :].any()
        assert bool(mask[end]) == state.complete
        token = sampler.choose(logits).id
        if token == end:
            assert state.finished
            return tokenizer.decode(ids, skip_special_tokens=True), "stop"
        ids.append(token)
        if state.finished:
            assert state.complete
            return tokenizer.decode(ids, skip_special_tokens=True), "stop"
    return tokenizer.decode(ids, skip_special_tokens=True), "length"


@pytest.mark.parametrize("number", range(len(SCHEMAS)))
def test_answers_fit_their_schema(tokenizer, number):
    schema = SCHEMAS[number]
    whole = 0
    for seed in range(4):
        text, finish = answer(tokenizer, Grammar("json_schema", json.dumps(schema)), seed)
        if finish == "stop":
            jsonschema.validate(json.loads(text), schema, format_checker=jsonschema.FormatChecker())
            whole += 1
    assert whole >= 2


def test_any_json_object(tokenizer):
    answers = [answer(tokenizer, Grammar("json"), seed) for seed in range(8)]
    assert all(isinstance(json.loads(text), dict) for text, finish in answers if finish == "stop")
    assert any(text != "{}" for text, finish in answers if finish == "stop")


@pytest.mark.parametrize("regex", REGEXES)
def test_answers_match_their_regular_expression(tokenizer, regex):
    for seed in range(10):
        text, finish = answer(tokenizer, Grammar("regex", regex), seed)
        assert finish == "stop"
        assert re.fullmatch(regex, text)


def test_answers_are_one_of_the_choices(tokenizer):
    texts = [answer(tokenizer, Grammar("choice", "\n".join(CHOICES)), seed) for seed in range(60)]
    assert {text for text, _ in texts} <= set(CHOICES)
    assert len({text for text, _ in texts}) > 3
    assert {finish for _, finish in texts} == {"stop"}


def test_a_choice_that_begins_another_may_end_or_go_on(tokenizer):
    texts = {answer(tokenizer, Grammar("choice", "a\nab\n\n  abc \n"), seed)[0] for seed in range(60)}
    assert texts == {"a", "ab", "abc"}


def test_an_answer_that_is_cut_says_so(tokenizer):
    text, finish = answer(tokenizer, Grammar("json_schema", json.dumps(RECEIPT)), 0, max_tokens=5)
    assert finish == "length"
    assert text.startswith("{")
    with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
        json.loads(text)


def test_blanks_are_one_at_most_and_only_after_separators():
    tokenizer = make_tokenizer()
    schema = {"type": "array", "items": {"enum": [1, 2]}, "minItems": 3, "maxItems": 3}
    for seed in range(10):
        text, _ = answer(tokenizer, Grammar("json_schema", json.dumps(schema)), seed)
        assert re.fullmatch(r"\[[12], ?[12], ?[12]\]", text)


def test_a_model_of_llamas_kind_may_begin_with_its_blank():
    """Its answers begin with one, which isn't part of their text."""
    state = compile_grammar(Grammar("choice", "yes"), made("first")).start()
    tokenizer = made("first")
    (first, *_) = tokenizer("yes", add_special_tokens=False).input_ids
    assert tokenizer.convert_ids_to_tokens(first).startswith("▁")
    assert state.mask(len(tokenizer))[first]


def test_every_end_token_may_end():
    tokenizer = make_tokenizer()
    ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|eot_id|>"])
    for end in ends:
        state = compile_grammar(Grammar("regex", "a?"), tokenizer, ends).start()
        assert state.mask(len(tokenizer))[ends].all()
        state.accept(end)
        assert state.finished
        state = compile_grammar(Grammar("regex", "ab"), tokenizer, ends).start()
        assert not state.mask(len(tokenizer))[ends].any()
        for token in tokenizer("ab").input_ids:
            state.accept(token)
        assert state.finished
        allowed = state.mask(len(tokenizer)).nonzero()[:, 0].tolist()
        assert sorted(ends) == allowed
        state.accept(end)


def test_what_is_not_allowed_is_not_accepted():
    tokenizer = make_tokenizer()
    a, b = tokenizer("ab").input_ids
    state = compile_grammar(Grammar("regex", "ab+"), tokenizer).start()
    with pytest.raises(PumiceError, match=f"token {b} can't follow in the answer's grammar"):
        state.accept(b)
    state = compile_grammar(Grammar("regex", "ab+"), tokenizer).start()
    state.accept(a)
    with pytest.raises(PumiceError, match="can't follow"):
        state.accept(tokenizer.eos_token_id)


def test_answers_from_one_compiled_grammar_do_not_meet():
    tokenizer = make_tokenizer()
    compiled = compile_grammar(Grammar("regex", "ab|cd"), tokenizer)
    a, b, c, d = tokenizer("abcd").input_ids
    first, second = compiled.start(), compiled.start()
    first.accept(a)
    second.accept(c)
    third = compiled.start()
    for state, expected in ((first, [b]), (second, [d]), (third, [a, c])):
        assert state.mask(len(tokenizer)).nonzero()[:, 0].tolist() == sorted(expected)


def test_grammars_are_kept_and_the_oldest_forgotten():
    tokenizer = make_tokenizer()
    first = compile_grammar(Grammar("regex", "first"), tokenizer)
    assert compile_grammar(Grammar("regex", "first"), tokenizer) is first
    assert compile_grammar(Grammar("choice", "first"), tokenizer) is not first
    assert compile_grammar(Grammar("regex", "first"), make_tokenizer()) is not first
    for number in range(KEPT):
        compile_grammar(Grammar("regex", f"x{number}"), tokenizer)
    assert compile_grammar(Grammar("regex", "first"), tokenizer) is not first


def nested(depth: int) -> str:
    return '{"properties":{"a":' * depth + "{}" + "}}" * depth


@pytest.mark.parametrize(
    ("kind", "source", "error"),
    [
        ("json_schema", "{", "the JSON schema isn't JSON: Expecting"),
        ("json_schema", "[]", "the JSON schema is list; expected an object"),
        ("json_schema", '{"type": "strin"}', "the JSON schema can't be used: .*strin"),
        ("json_schema", '{"uniqueItems": true}', "the JSON schema can't be used: .*uniqueItems"),
        ("json_schema", '{"$ref": "http://169.254.169.254/x"}', "the JSON schema can't be used: .*not fetch"),
        ("json_schema", '{"$ref": "file:///etc/passwd"}', "the JSON schema can't be used: .*not fetch"),
        ("json_schema", '{"$ref": "#"}', "the JSON schema can't be used: nothing fits it"),
        ("json_schema", '{"type": "string", "enum": [1]}', "the JSON schema can't be used: .*[Uu]nsatisfiable"),
        ("json_schema", nested(100), "the JSON schema can't be used|isn't JSON"),
        ("json_schema", nested(3000), "the JSON schema can't be used|isn't JSON"),
        ("json_schema", " " * MAX_SOURCE + "{}", "the JSON schema has 65,538 characters; at most 65,536"),
        ("json_schema", '{"type": "integer", "multipleOf": 987654321987}', "the JSON schema can't be used"),
        ("regex", "(", "the regular expression can't be used: .*unclosed group"),
        ("regex", "(?=a)b", "the regular expression can't be used: .*look-around"),
        ("regex", r"(a)\1", "the regular expression can't be used: .*backreferences"),
        ("regex", "a" * (MAX_REGEX + 1), "the regular expression has 4,097 characters; at most 4,096"),
        ("regex", r"[^\s\S]", "the regular expression can't be used: nothing fits it"),
        ("regex", "a)|(b", "the regular expression can't be used"),
        ("choice", " \n ", "choices: expected at least one, each on a line"),
    ],
)
def test_grammars_that_cannot_be_are_refused_in_one_line(kind: GrammarKind, source, error):
    with pytest.raises(PumiceError, match=error) as raised:
        compile_grammar(Grammar(kind, source), make_tokenizer())
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


HOSTILE: list[tuple[GrammarKind, str]] = [
    ("regex", "(a{1,1000}){1,1000}"),
    ("regex", "((a{1,100}){1,100}){1,100}"),
    ("regex", "(a|b)*a(a|b){500}"),
    ("regex", r"(.*a.{40}b.*){20}"),
    ("regex", r"(\p{L}{1,500}x){1,500}"),
    ("regex", "|".join("a" * n + "." for n in range(85))),
    ("choice", "\n".join(f"choice {n}" for n in range(4000))),
    ("json_schema", json.dumps({"enum": [f"v{n}" for n in range(6000)]})),
    ("json_schema", json.dumps({"type": "object", "properties": {f"k{n}": {"type": "string"} for n in range(1500)}})),
    ("json_schema", json.dumps({"type": "array", "minItems": 10**6, "items": {"type": "string", "minLength": 10**5}})),
    ("json_schema", json.dumps({"type": "string", "pattern": "(.*a.{30}){30}", "maxLength": 10**6})),
    ("json_schema", json.dumps({"type": "number", "multipleOf": 0.000123, "minimum": 1.1, "maximum": 1e30})),
    (
        "json_schema",
        json.dumps(
            {"allOf": [{"anyOf": [{"properties": {f"p{i}{j}": {"type": "null"}}} for j in range(8)]} for i in range(5)]}
        ),
    ),
]


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hostile_grammars_cost_little(number):
    """Seconds of a core for a grammar and 60 tokens of its answer; most take a hundredth of it."""
    tokenizer = byte_level()
    compile_grammar(Grammar("regex", "a"), tokenizer)
    began = time.process_time()
    refused = ""
    try:
        answer(tokenizer, Grammar(*HOSTILE[number]), seed=0, max_tokens=60)
    except PumiceError as error:
        refused = str(error)
    assert not refused or re.search("can't be used|too much work|can't follow", refused)
    assert time.process_time() - began < 2.0


def test_tokenizers_whose_texts_are_not_understood_are_refused():
    with pytest.raises(PumiceError, match="no structured answers with this tokenizer: token 3"):
        compile_grammar(Grammar("json"), made("Unigram, first"))
