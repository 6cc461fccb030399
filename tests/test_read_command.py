"""Mistakes of the command, and its help."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from read_files import SCHEMA

import pumice
from pumice.cli import main


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--schema", "S", "--ask", "S"], "not allowed with"),
        ([], "one of the arguments --schema --ask is required"),
        (["--schema", "list.json"], "list.json: list; expected a JSON schema"),
        (["--schema", "half.json"], "half.json: not JSON"),
        (["--schema", "wrong.json"], r"wrong.json: \$.type: 'objekt'"),
        (["--schema", "array.json"], "array.json: a schema of 'array'; expected 'object'"),
        (["--schema", "gone.json"], "gone.json: No such file"),
        (["--ask", "empty.txt"], "empty.txt: no question"),
        (["--schema", "S", "--engine", "rays"], "--engine rays: expected ray, or an address"),
        (["--schema", "S", "--workers", "2"], "--workers is about --engine ray"),
        (["--schema", "S", "--engine", "http://127.0.0.1:9/v1"], "127.0.0.1:9/v1: .*refused"),
        (["--schema", "S", "--out", "nowhere/out.jsonl"], "nowhere/out.jsonl: can't be written"),
        (["--schema", "S", "--out", "empty.txt"], "empty.txt: there is such a file, and no journal"),
        (["--schema", "S", "--batch", "0"], "--batch"),
        (["--schema", "bare.json"], "bare.json: it names no properties .* --whole"),
        (["--ask", "empty.txt", "--whole"], "--whole is about a schema"),
        (["--schema", "S", "--whole", "--evidence"], "--evidence doesn't go with --whole"),
        (["--schema", "S", "--evidence", "--csv"], "--evidence doesn't go with --csv"),
        (["--schema", "S", "--evidence", "--engine", "http://x"], "--evidence doesn't go with --engine"),
    ],
)
def test_mistakes_are_one_line_before_a_model_is_loaded(words, error, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sources = {"list.json": "[]", "half.json": "{", "wrong.json": '{"type": "objekt"}', "empty.txt": " \n",
               "array.json": '{"type": "array"}', "S": json.dumps(SCHEMA),
               "bare.json": '{"type": "object"}'}  # fmt: skip
    for name, text in sources.items():
        Path(name).write_text(text)
    monkeypatch.setattr(pumice, "load", lambda *_: pytest.fail("a model was loaded"))
    assert main(["read", "a.png", *words]) == 2
    said = capsys.readouterr()
    assert re.search(error, said.err)
    assert said.err.count("\n") == 1
    assert not said.out


def test_help_has_examples(capsys):
    assert main(["read", "--help"]) == 0
    assert "pumice read invoices/*.pdf --schema invoice.json --out invoices.jsonl" in capsys.readouterr().out
