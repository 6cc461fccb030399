"""A schema, field by field or as a whole: what is asked, and what answers come to."""

from __future__ import annotations

import csv
import itertools
import json
import math
import random
import re

import jsonschema
import pytest
from conftest import picture
from read_files import SCHEMA, records

from pumice.cli import main
from pumice.read import printed
from pumice.read.ask import MISSING, Answer, Settled, assemble
from pumice.read.confidence import confidences
from pumice.read.fields import Fields, _matched
from pumice.read.whole import Whole, form
from pumice.types import PumiceError


@pytest.fixture(scope="module")
def model(bases) -> str:
    return str(bases("next"))


def test_confidence_is_that_of_the_value_itself():
    text = '{"a": "x", "日本": [1, {"b": 2}], "c":null}'
    spans = {"a": '"x"', "日本": '[1, {"b": 2}]', "日本[0]": "1", "日本[1]": '{"b": 2}', "日本[1].b": "2", "c": "null"}
    # A token a character; those of inner values are likelier.
    chance = dict.fromkeys(range(len(text)), -9.0)
    for number, value in enumerate(spans.values(), 1):
        at = text.index(value)
        chance |= dict.fromkeys(range(at, at + len(value)), -0.1 * number)
    tokens = tuple((i + 1, chance[i]) for i in range(len(text)))
    found = confidences(text, tokens, -5.0)
    assert list(found) == list(spans)
    for name, value in spans.items():
        inside = [chance[i] for i in range(text.index(value), text.index(value) + len(value))]
        assert found[name] == pytest.approx(math.exp(sum(inside) / len(inside)), abs=1e-4)
    # One token over all of a value and what is around it counts for both.
    assert confidences(text, ((len(text), -1.0),), None) == dict.fromkeys(spans, 0.3679)
    # Where nothing is known of the tokens, all of the answer counts; where nothing is known at all, nothing is said.
    assert confidences(text, (), -2.0) == dict.fromkeys(spans, 0.1353)
    assert confidences(text, (), None) == {}
    assert confidences("  {}", ((4, -1.0),), -1.0) == {}
    assert confidences('{"a":' + "[" * 900 + "]" * 900 + "}", (), -1.0)  # not looked into for ever


@pytest.mark.parametrize(
    ("text", "finish", "error"),
    [
        ('{"total": "1"', "length", r"ended early \(length\)"),
        ("It is 12.", "stop", "isn't JSON"),
        ('{"total": NaN}', "stop", "NaN isn't a number"),
        ('{"total": 1e999}', "stop", "isn't JSON"),
        ("[1]", "stop", "is list; expected an object"),
        ('{"total": "1"}', "stop", "doesn't fit the schema: .*'paid' is a required property"),
        ('{"total": "1x", "paid": "card"}', "stop", r"doesn't fit the schema: \$.total: .*does not match"),
        ("[" * 100_000, "stop", "isn't JSON"),
    ],
)
def test_answers_that_are_not_what_was_asked_for_say_why(text, finish, error):
    ask = Whole(SCHEMA, "s")
    settled = ask.settle(ask.prompts[0], Answer(text, finish))
    said = settled.error or ask.check(assemble([settled]))
    assert re.search(error, said)
    assert len(said) < 400


def test_the_prompt_shows_the_form():
    assert form(SCHEMA) == {"total": "what was paid", "paid": "cash or card"}
    deep = {"type": "array", "items": {"properties": {"a": {"type": ["null", "array"], "items": {}}, "b": True}}}
    assert form(deep) == [{"a": [""], "b": ""}]


DEEP = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "total": {"type": "number"},
        "itemCount": {"type": "integer", "title": "Number of items"},
        "paid": {"type": ["boolean", "null"]},
        "method": {"enum": ["cash", "card", None]},
        "code": {"type": "string", "pattern": "^[A-C]{2}[0-9]$"},
        "note": {"type": "string", "x-question": "What is written below?"},
        "shop": {"$ref": "#/$defs/shop"},
        "items": {"type": "array", "maxItems": 1, "items": {"$ref": "#/$defs/item"}},
    },
    "required": ["total", "itemCount", "paid", "method", "code", "note", "shop", "items"],
    "additionalProperties": False,
    "$defs": {
        "shop": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "open": {"anyOf": [{"type": "boolean"}, {"type": "null"}]}},
            "required": ["name"],
        },
        "item": {
            "type": "object",
            "properties": {"price": {"type": "integer", "minimum": 0, "maximum": 9}},
            "required": ["price"],
            "additionalProperties": False,
        },
    },
}


def test_fields_are_asked_for_one_by_one_and_fit(model, tmp_path):
    """Whatever a model says, and a random one says anything: a number is one, a choice is one of them."""
    schema, out = tmp_path / "schema.json", tmp_path / "out.jsonl"
    schema.write_text(json.dumps(DEEP))
    sources = [str(tmp_path / f"{number}.png") for number in range(4)]
    for number, source in enumerate(sources):
        picture(number, (60 + number, 40)).save(source)
    command = ["read", *sources, "--schema", str(schema), "--model", model, "--max-tokens", "40"]
    main([*command, "--out", str(out)])
    found = records(out)
    assert len(found) == 4
    for record in found:
        values = record["values"]
        assert type(values.get("total")) in (int, float)
        assert type(values.get("itemCount")) is int
        assert values.get("method") in ("cash", "card", None)
        assert values.get("paid") in (True, False, None)
        assert re.fullmatch("[A-C]{2}[0-9]", values["code"])
        assert values["items"] == [] or list(values["items"][0]) == ["price"]
        assert set(record["confidence"]) >= {"total", "itemCount", "method", "paid", "code", "items"}
        assert all(0 <= sure <= 1 for sure in record["confidence"].values())
        if "error" in record:  # texts have no grammar and may go on for ever
            assert re.fullmatch(r"((note|shop.name): the answer ended early \(length\)(; )?)+", record["error"])
        else:
            jsonschema.validate(values, DEEP)
    main([*command, "--out", str(tmp_path / "out.csv"), "--csv"])
    with (tmp_path / "out.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head[2:11] == [*list(DEEP["properties"])[:6], "shop.name", "shop.open", "items"]
    assert [json.loads(row[2]) for row in rows] == [record["values"]["total"] for record in found]


def test_questions_come_from_the_schema():
    ask = Fields(DEEP, "s")
    texts = {".".join(map(str, prompt.at)): prompt.text for prompt in ask.prompts}
    assert texts == {
        "total": "What is the total?",
        "itemCount": "What is the number of items?",
        "paid": "Is it paid?",
        "method": "What is the method?",
        "code": "What is the code?",
        "note": "What is written below?",
        "shop.name": "What is the name of the shop?",
        "shop.open": "Is the shop open?",
        "items": 'Write this as JSON with texts as printed, in this form: {"items": [""]}',
    }
    described = {
        "a": {"description": "The day it was sent."},
        "is_VIP": {"type": "boolean"},
        "b": {"description": "Who?"},
        "has_tax": {"type": "boolean"},
        "c": {"description": "word " * 20},
        "dueDate2": {},
    }
    asked = [prompt.text for prompt in Fields({"properties": described}, "s").prompts]
    assert asked == ["What is the day it was sent?", "Is it VIP?", "Who?", "Is there tax?", "What is the c?",
                     "What is the due date2?"]  # fmt: skip


def test_null_is_for_fields_that_may_be_null():
    ask = Fields({"properties": {"a": {"type": ["number", "null"]}, "b": {"type": "number"}, "c": {"type": "string"}},
                  "required": ["a", "c"]}, "s")  # fmt: skip
    a, b, c = ask.prompts
    for text in ("none", "None.", "", "N/A"):
        assert ask.settle(a, Answer(text, "stop", (), -1.0)) == Settled({("a",): None}, {"a": 0.3679})
        assert ask.settle(b, Answer(text, "stop")) == Settled({("b",): MISSING}, {})  # not required: left out
        assert ask.settle(c, Answer(text, "stop")) == Settled({("c",): text}, {})
    choice = Fields({"properties": {"d": {"enum": ["some", "None"]}}}, "s")
    assert choice.settle(choice.prompts[0], Answer("None", "stop")).values == {("d",): "None"}
    assert assemble([Settled({("a", "b"): MISSING, ("c",): 1}, {})]) == {"a": {}, "c": 1}
    assert ask.settle(b, Answer("many", "stop")).error == "b: 'many' isn't a number"
    assert ask.check({"a": None, "c": ""}) == ""
    assert "'c' is a required property" in ask.check({"a": None})


def test_a_reference_that_goes_round_or_nowhere_ends():
    node = {"type": "object", "properties": {"name": {"type": "string"}, "next": {"$ref": "#/$defs/node"}}}
    schema = {"$defs": {"node": node, "loop": {"$ref": "#/$defs/loop"}}, **node}
    ask = Fields(schema, "s")
    assert 5 < len(ask.prompts) < 20
    assert ask.prompts[-1].grammar is not None
    schema["properties"] = {"a": {"$ref": "#/$defs/loop"}, "b": {"$ref": "#/$defs/none"}, "c": {"$ref": "https://x/y"}}
    assert [prompt.at for prompt in Fields(schema, "s").prompts] == [("a",), ("b",), ("c",)]


def test_a_schema_that_refers_to_itself_twice_has_an_end():
    tree = {"type": "object", "properties": {"n": {"type": "string"}, "l": {"$ref": "#"}, "r": {"$ref": "#"}}}
    with pytest.raises(PumiceError, match="tree: more than 500 fields to ask for, references followed; see --whole"):
        Fields(tree, "tree")


def test_the_page_itself_may_be_a_reference():
    """As pydantic writes a model that refers to itself."""
    node = {"type": "object", "properties": {"name": {"type": "string"}, "count": {"type": "integer"}}}
    for schema in ({"$defs": {"Node": node}, "$ref": "#/$defs/Node"}, {"allOf": [node]}):
        assert [prompt.text for prompt in Fields(schema, "s").prompts] == ["What is the name?", "What is the count?"]
        whole = Whole(schema, "s")
        assert whole.columns == [("name",), ("count",)]
        assert whole.prompts[0].text.endswith('{"name": "", "count": ""}')


@pytest.mark.parametrize("pattern", ["^a+$", "a|b$", "^a|b$", "[0-9]{3}", "^x", r"y\$", "(a|b)c"])
def test_a_patterns_whole_line_matches_the_pattern(pattern):
    words = ["".join(word) for n in range(1, 4) for word in itertools.product("abcxy0$", repeat=n)]
    matched = [word for word in words if re.fullmatch(_matched(pattern), word)]
    assert pattern == "[0-9]{3}" or matched
    assert all(re.search(pattern, word) for word in matched)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("$1,234.50", 1234.5), ("1.234,50 EUR", 1234.5), ("CHF 1'234.05", 1234.05), ("1 234", 1234), ("12,5", 12.5),
        ("1,234", 1234), ("1.234", 1.234), ("1.234.567", 1234567), ("0,750", 0.75), ("-3", -3), ("$ -3.5", -3.5),
        ("-$5", -5), ("-EUR 5", -5), ("(12.00)", -12.0), ("INV-7", 7), (".50", 0.5), ("No.5", 5), ("12%", 12),
        ("\u22127", -7), ("007", 7), ("1234,567", 1234.567), ("1,234.567", 1234.567), ("$.", None), ("1 2 3", None),
        ("1,234,56", None), ("3 or 4", None), ("", None), ("9" * 5000, None),
    ],
)  # fmt: skip
def test_numbers_are_read_as_printed(text, value):
    if value is None:
        with pytest.raises(PumiceError, match="isn't a number"):
            printed.as_number(text)
    else:
        assert printed.as_number(text) == value
        assert type(printed.as_number(text)) is type(value)


def test_what_a_number_s_grammar_allows_is_a_number():
    rng = random.Random(0)
    for source, whole in ((printed.NUMBER, False), (printed.INTEGER, True)):
        allowed = 0
        for _ in range(60_000):
            text = "".join(rng.choices("0123456789,.' -$(aE", k=rng.randint(1, 12)))
            if re.fullmatch(source, text):
                allowed += 1
                value = printed.as_number(text, whole)
                assert math.isfinite(value)
                assert not whole or type(value) is int
        assert allowed > 1000
    assert printed.as_number("1.234", whole=True) == 1234
    assert printed.as_number("3.00", whole=True) == 3
    with pytest.raises(PumiceError, match="isn't a whole number"):
        printed.as_number("3.50", whole=True)


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("2024-05-03", "2024-05-03"), ("3 May 2024", "2024-05-03"), ("May 3, 2024", "2024-05-03"),
        ("03.05.24", "2024-05-03"), ("25/12/2024", "2024-12-25"), ("12/25/2024", "2024-12-25"),
        ("4/4/1999", "1999-04-04"), ("Date: Sept. 9th 98", "1998-09-09"),
        ("9 Sept. 98", "1998-09-09"), ("2024/5/3", "2024-05-03"),
        ("3/4/2024", None), ("31 Feb 2024", None), ("May 2024", None), ("soon", None), ("99999 1 1", None),
    ],
)  # fmt: skip
def test_dates_are_read_as_printed(text, day):
    if day is None:
        with pytest.raises(PumiceError, match=r"isn't a date|either of two days"):
            printed.as_date(text)
    else:
        assert printed.as_date(text) == day
