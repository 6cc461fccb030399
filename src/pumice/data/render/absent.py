"""Questions that a document doesn't answer, as near to ones that it does as can be.

    what a page says ──something of the same sort that isn't there──> Question with the answer ABSENT

A model that has never met one makes an answer up.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from pumice.data.render import facts, forms, values
from pumice.data.render.answers import ABSENT
from pumice.data.render.fonts import Split
from pumice.data.render.page import Question
from pumice.data.render.receipts import Bill
from pumice.data.render.sheet import ask

SHARE = 0.5
"""Share of the pages that are asked for something that isn't there."""

_GENERAL = {"name", "city", "date", "company", "product"}
"""Nouns of form fields for which any field of the same task could be meant."""
_LABELS: dict[str, Callable[[random.Random, Split], str]] = {
    "city": values.city,
    "product": values.product,
    "item": values.word,
    "name": lambda rng, split: rng.choice(values.vocabulary("first", split)),
    "team": lambda rng, split: rng.choice(values.vocabulary("last", split)),
    "country": lambda rng, split: rng.choice(values.vocabulary("country", split)),
    "year": lambda rng, split: str(rng.randint(1950, 2030)),
    "month": lambda rng, split: rng.choice(values.MONTHS)[:3],
    "day": lambda rng, split: rng.choice(values.DAYS),
}
"""Other rows of a table or chart, by what a row of it is."""


def some(rng: random.Random, questions: Sequence[Question]) -> list[Question]:
    """One or two of the questions, or with 1 - SHARE none."""
    if not questions or rng.random() >= SHARE:
        return []
    return rng.sample(list(questions), min(len(questions), rng.choice((1, 1, 2))))


def on_receipt(rng: random.Random, split: Split, bill: Bill) -> list[Question]:
    """Labels that aren't on the receipt, and goods that it doesn't list but a word of which it has."""
    said = [label.lower() for label, _ in (*bill.extras, *bill.sums)]
    out = []
    for name, near in (
        ("phone number", ("tel", "phone")),
        ("receipt number", ("receipt", "no.", "order", "ref", "bill no.")),
        ("tax", ("tax", "vat", "sales tax", "net")),
        ("subtotal", ("subtotal", "net")),
        ("discount", ()),
        ("due date", ()),
        ("table number", ()),
    ):
        if not any(label.startswith(word) for label in said for word in near):
            out.append(ask(rng, "absent", "What is the {n}?|Which {n} is printed?|Give the {n}.", ABSENT, n=name))
    other = other_product(rng, split, [name for name, _ in bill.items])
    return out + ([priced(rng, other)] if other else [])


def priced(rng: random.Random, product: str) -> Question:
    """What something costs that isn't listed."""
    return ask(rng, "absent", "How much is {n}?|What does {n} cost?|Price of {n}?|Cost of {n}?", ABSENT, n=product)


def other_product(rng: random.Random, split: Split, listed: Sequence[str]) -> str:
    """A product that isn't listed, with a word of a listed one where that has two; nothing where none was found."""
    pairs = [name.split() for name in listed if name.count(" ") == 1]
    if not pairs or rng.random() < 0.4:
        other = values.product(rng, split)
    elif rng.random() < 0.5:
        other = f"{rng.choice(pairs)[0]} {rng.choice(values.GOODS)}"
    else:
        other = f"{rng.choice(values.QUALITIES)} {rng.choice(pairs)[1]}"
    near = any(other.lower() in name.lower() or name.lower() in other.lower() for name in listed)
    return "" if near else other


def on_form(rng: random.Random, fields: Sequence[forms.Field]) -> list[Question]:
    """Fields of other forms, where no field of this one could be meant."""
    out = []
    tasks = {field.kind.task for field in fields}
    labels = {field.label.lower() for field in fields}
    for kind in forms.KINDS:
        names = [kind.noun] if kind.noun else kind.labels.lower().split("|")
        vague = kind.noun in _GENERAL or kind.labels.startswith(("Amount", "Ref|", "Shop|", "Contact|"))
        used = any(field.kind == kind for field in fields) or any(name in labels for name in names)
        if not used and not (vague and kind.task in tasks):
            name = rng.choice(names).replace(" no.", " number")
            wording = "What is the {n}?|Give the {n}.|What does the form say for {n}?|Read the {n}."
            out.append(ask(rng, "absent", wording, ABSENT, n=name))
    return out


def in_table(
    rng: random.Random, split: Split, key: str, labels: Sequence[str], columns: Sequence[str]
) -> list[Question]:
    """A row that isn't there in a column that is, and the other way round."""
    out = []
    taken = {text.lower() for text in (*labels, *columns)}
    if key in _LABELS:
        row = _LABELS[key](rng, split)
        if row.lower() not in taken:
            out.append(_cell(rng, row, rng.choice(columns)))
    column = rng.choice(facts.MEASURES.split(","))
    if column.lower() not in taken and len(columns) > 1:
        out.append(_cell(rng, rng.choice(labels), column))
    return out


def _cell(rng: random.Random, row: str, column: str) -> Question:
    return ask(rng, "absent", "What is the {c} of {r}?|{c} of {r}?|Give the {c} of {r}.", ABSENT, r=row, c=column)


def in_chart(rng: random.Random, split: Split, key: str, labels: Sequence[str]) -> list[Question]:
    """A category that isn't drawn."""
    if key not in _LABELS:
        return []
    label = _LABELS[key](rng, split)
    if label.lower() in {text.lower() for text in labels}:
        return []
    return [ask(rng, "absent", "What is the value of {a}?|Value of {a}?|How much is {a}?", ABSENT, a=label)]
