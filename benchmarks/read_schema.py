"""What `pumice read --schema` gets right when it asks for a whole object at once, and when it asks field by field.

    OMP_NUM_THREADS=1 nice python benchmarks/read_schema.py             # 10 receipts and 10 forms, pocket
    python benchmarks/read_schema.py --pages 30 --json found.json

Receipts and forms of the training split, which the model has seen the like of: the figures compare the two ways, and
don't say how well a model reads. Texts count when they are equal but for blanks at their ends; "typed" fields are a
total as a number and a date that only one day can be meant by.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from PIL import Image

import pumice
from pumice.assistant import Assistant
from pumice.data.render import forms, receipts
from pumice.read import printed
from pumice.read.askers import EngineAsker
from pumice.read.fields import Fields
from pumice.read.journal import Journal, Output
from pumice.read.run import Run
from pumice.read.whole import Whole
from pumice.types import PumiceError

TEXT = {"type": "string"}
ITEM = {"type": "object", "properties": {"name": TEXT, "price": TEXT}, "required": ["name", "price"]}
MAX_TOKENS = 256


@dataclass(frozen=True)
class Page:
    """A picture, the properties that are asked for, what they are, and the group each field counts for."""

    image: Image.Image
    properties: dict[str, Any]
    truth: dict[str, Any]
    groups: dict[str, str] = field(default_factory=dict)


def receipt(number: int) -> Page:
    """Texts, a list of goods, and total and date once more as typed values."""
    bill, rendered = receipts.describe(random.Random(f"read-{number}"), "train")
    items = [{"name": name, "price": price} for name, price in bill.items]
    truth: dict[str, Any] = {"shop": bill.shop, "city": bill.city, "date": bill.date, "total": bill.total}
    properties: dict[str, Any] = {**dict.fromkeys(truth, TEXT), "items": {"type": "array", "items": ITEM}}
    groups = {**dict.fromkeys(truth, "receipt, texts"), "items": "receipt, list"}
    truth["items"] = items
    typed = {"total_amount": ("number", None, printed.as_number, bill.total, "total")}
    typed["purchase_date"] = ("string", "date", printed.as_date, bill.date, "date")
    for name, (kind, form, read, shown, noun) in typed.items():
        try:
            truth[name] = read(shown)
        except PumiceError:  # either of two days
            continue
        properties[name] = {"type": kind, "title": noun} | ({"format": form} if form else {})
        groups[name] = "receipt, typed"
    return Page(rendered.image, properties, truth, groups)


def form(number: int) -> Page:
    """The texts of a form's fields, named as people name such things."""
    with mock.patch.object(forms, "_questions", wraps=forms._questions) as asked:
        rendered = forms.render(random.Random(f"read-{number}"), "train")
    truth = {}
    for one in asked.call_args.args[1]:
        noun = one.kind.noun or one.label.lower().replace(" no.", " number").replace(" #", " number")
        truth[re.sub(r"\W+", "_", noun).strip("_")] = one.value
    return Page(rendered.image, dict.fromkeys(truth, TEXT), truth, dict.fromkeys(truth, "form, texts"))


def ask(assistant: Assistant, page: Page, whole: bool, folder: Path) -> tuple[dict[str, Any], float]:
    """A page's record and the seconds that it took."""
    schema = {"type": "object", "properties": page.properties, "required": list(page.properties),
              "additionalProperties": False}  # fmt: skip
    asked = Whole(schema, "schema") if whole else Fields(schema, "schema")
    page.image.save(folder / "page.png")
    asker, output = EngineAsker(assistant, MAX_TOKENS, 16, asked.prompts), Output(folder / "out.jsonl")
    began = time.perf_counter()
    try:
        Run(asked, asker, Journal(None), output, 16, MAX_TOKENS).over([str(folder / "page.png")])
    finally:
        asker.close()
        output.close()
    seconds = time.perf_counter() - began
    return json.loads((folder / "out.jsonl").read_text()), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=10, help="receipts, and as many forms (default: %(default)s)")
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every record there")
    args = parser.parse_args()
    assistant = pumice.load(args.model)
    right: Counter[tuple[str, str]] = Counter()
    every: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    kept = []
    pages = [make(number) for number in range(args.pages) for make in (receipt, form)]
    with tempfile.TemporaryDirectory() as folder:
        for page in pages:
            every.update(page.groups.values())
            for way in ("whole", "field by field"):
                record, spent = ask(assistant, page, way == "whole", Path(folder))
                seconds[way] += spent
                values = record.get("values", {})
                for name, wanted in page.truth.items():
                    right[way, page.groups[name]] += values.get(name) == wanted
                kept.append({"way": way, "truth": page.truth, **record})
    for way in seconds:
        found = ", ".join(f"{group} {right[way, group]}/{count}" for group, count in every.items())
        print(f"{way}: {found}; {seconds[way] / len(pages):.2f} s a page")
    if args.json is not None:
        args.json.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in kept))


if __name__ == "__main__":
    main()
