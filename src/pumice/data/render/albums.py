"""Several pictures of documents in one question: the same page twice, the pages of one document, pages out of order.

rng, split ──> leaves ──draw──> Posed (2 to 4 pictures, questions)
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from pumice.data.render import leaves
from pumice.data.render.absent import ABSENT
from pumice.data.render.fonts import Split
from pumice.data.render.leaves import Leaf, Look
from pumice.data.render.page import Question
from pumice.data.render.scenes import PLACES, Posed
from pumice.data.render.sheet import ask, choose, stream


def twice(rng: random.Random, split: Split) -> Posed:
    """The same page twice, in the same or another look; in half of the pairs one value differs."""
    rng = stream(rng, f"twice {split}")
    looks = leaves.pick_look(rng, split), leaves.pick_look(rng, split)
    looks = looks if rng.random() < 0.6 else (looks[0], looks[0])
    while True:
        first = leaves.compose(rng, split, rng.randint(2, 5))
        second, at = leaves.changed(rng, split, first)
        if all(leaves.fits(leaf, look) for leaf in (first, second) for look in looks):
            break
    differs = rng.random() < 0.5
    label = leaves.noun(first.fields[at][0])
    asked = [
        ask(
            rng,
            "same_document",
            "Do both pictures say the same?|Are the two documents the same?|Do the two pages have the same content?",
            "No" if differs else "Yes",
        )
    ]
    if differs:
        values = {"n": label, "N": label[0].upper() + label[1:]}
        text = "Which field differs between the two pictures?|Which field is not the same in both pictures?"
        asked.append(ask(rng, "changed_field", text, first.fields[at][0]))
        place, leaf = rng.choice(((PLACES[0], first), (PLACES[1], second)))
        text = "What does the {p} picture say for {n}?|What is the {n} in the {p} picture?"
        asked.append(ask(rng, "changed_value", text, leaf.fields[at][1], p=place, **values))
    other = rng.choice([i for i in range(len(first.fields)) if i != at])
    name, value = first.fields[other]
    text = "What is the {n} in both pictures?|Which {n} do both pictures give?"
    asked.append(ask(rng, "cross_value", text, value, n=leaves.noun(name)))
    shown = (first, second if differs else first)
    return _posed(rng, shown, looks, asked)


def pages(rng: random.Random, split: Split) -> Posed:
    """Two to four pages of one document, all in one look: what is where."""
    rng = stream(rng, f"pages {split}")
    look, found = _document(rng, split, rng.randint(2, 4))
    fields = [(place, label, value) for place, leaf in zip(PLACES, found, strict=False) for label, value in leaf.fields]
    asked = []
    for place, label, value in rng.sample(fields, min(3, len(fields))):
        name = leaves.noun(label)
        asked.append(ask(rng, "page_value", "What is the {n}?|Give the {n}.", value, n=name))
        text = "Which page gives the {n}: {c}?|On which page is the {n}: {c}?"
        asked.append(ask(rng, "page_place", text, place, n=name, c=_either(len(found))))
    at = rng.randrange(len(found))
    text = "What is the title of the {p} page?|Which title does the {p} page have?"
    asked.append(ask(rng, "page_title", text, found[at].title, p=PLACES[at]))
    asked.append(ask(rng, "page_count", "How many pages are shown?|How many pages are there?", str(len(found))))
    lacking = leaves.compose(rng, split, 1, found).fields[0][0]
    if rng.random() < 0.4 and leaves.kind_of(lacking).task not in {
        leaves.kind_of(label).task for _, label, _ in fields
    }:
        asked.append(ask(rng, "absent", "What is the {n}?|Give the {n}.", ABSENT, n=leaves.noun(lacking)))
    return _posed(rng, found, [look] * len(found), choose(rng, asked, 6))


def page_order(rng: random.Random, split: Split) -> Posed:
    """Two to four numbered pages out of order: which picture is which page."""
    rng = stream(rng, f"page order {split}")
    look, found = _document(rng, split, rng.randint(2, 4))
    style = rng.choice(("Page {i} of {n}", "{i}/{n}", "page {i}", "- {i} -"))
    numbered = [replace(leaf, foot=style.format(i=i, n=len(found))) for i, leaf in enumerate(found, 1)]
    order = rng.sample(range(len(found)), len(found))
    asked = []
    for number in rng.sample(range(1, len(found) + 1), 2):
        text = "Which picture shows page {i}: {c}?|Page {i} is which picture: {c}?"
        place = PLACES[order.index(number - 1)]
        asked.append(ask(rng, "page_order", text, place, i=str(number), c=_either(len(found))))
    last = ", ".join(PLACES[order.index(i)] for i in range(len(found)))
    text = "In which order do the pictures have to be read?|Put the pictures into the order of their pages."
    asked.append(ask(rng, "reading_order", text, last))
    return _posed(rng, [numbered[i] for i in order], [look] * len(found), asked)


def _document(rng: random.Random, split: Split, count: int) -> tuple[Look, list[Leaf]]:
    """``count`` pages in one look, no label or title twice."""
    look = leaves.pick_look(rng, split)
    found: list[Leaf] = []
    while len(found) < count:
        leaf = leaves.compose(rng, split, rng.randint(1, 4), found)
        if leaves.fits(replace(leaf, foot="Page"), look) and leaf.title not in [one.title for one in found]:
            found.append(leaf)
    return look, found


def _either(count: int) -> str:
    return f"{', '.join(PLACES[: count - 1])} or {PLACES[count - 1]}"


def _posed(rng: random.Random, found: Sequence[Leaf], looks: Sequence[Look], asked: Sequence[Question]) -> Posed:
    frames = tuple(
        leaves.draw(rng, leaf, look).finish("page", [], 0.3).image for leaf, look in zip(found, looks, strict=True)
    )
    return Posed(frames, tuple((question, None) for question in asked))
