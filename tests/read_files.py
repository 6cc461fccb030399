"""What the tests of `pumice read` have in common: files to read, a schema, and the records that come out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conftest import picture
from test_pdf import pdf

SCHEMA = {
    "type": "object",
    "properties": {
        "total": {"type": "string", "pattern": "^[0-9]{1,3}$", "description": "what was paid"},
        "paid": {"enum": ["cash", "card"]},
    },
    "required": ["total", "paid"],
    "additionalProperties": False,
}
QUESTIONS = "What is the total?\n\nWhich shop?\n"
SHORT = ["--max-tokens", "6", "--batch", "3"]
PLACES = [("a.png", None), *(("three.pdf", n) for n in (1, 2, 3)), ("broken.pdf", None), ("cut.png", None),
          ("again.png", None), ("gone.png", None)]  # fmt: skip


def make_files(folder: Path) -> list[str]:
    """A PDF of three pages, one that is broken, two pictures of which one is cut short, and one twice; also b.png,
    schema.json and questions.txt beside them.
    """
    (folder / "three.pdf").write_bytes(pdf([(200, 100)] * 3))
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7\nnothing")
    picture(1, (60, 40)).save(folder / "a.png")
    picture(2, (300, 300)).save(folder / "b.png")
    whole = (folder / "b.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "again.png").write_bytes((folder / "a.png").read_bytes())
    (folder / "schema.json").write_text(json.dumps(SCHEMA))
    (folder / "questions.txt").write_text(QUESTIONS)
    names = ("a.png", "three.pdf", "broken.pdf", "cut.png", "again.png", "gone.png")
    return [str(folder / name) for name in names]


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def places(found: list[dict[str, Any]]) -> list[tuple[str, int | None]]:
    return [(Path(record["file"]).name, record.get("page")) for record in found]
