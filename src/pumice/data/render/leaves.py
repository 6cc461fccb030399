"""Pages of a document as a title and labelled values, drawn in a look that is chosen apart from what they say.

rng ──> Leaf (what it says), Look (fonts, colours, places) ──draw──> Sheet

So the same leaf can be shown twice, with one value changed, in another look, or as one page of several.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from pumice.data.render import forms, ink, sheet, values
from pumice.data.render.fonts import Split, pick_font
from pumice.data.render.ink import Font
from pumice.data.render.sheet import Sheet, Theme

SIZE = (224, 224)
WIDE = 0.9
"""Share of the page's width that a line may take."""


@dataclass(frozen=True)
class Leaf:
    """One page: a title, (label, value) fields, and a foot such as a page number, or none."""

    title: str
    fields: tuple[tuple[str, str], ...]
    foot: str = ""

    @property
    def lines(self) -> list[str]:
        """All texts in reading order."""
        fields = [f"{label}: {value}" for label, value in self.fields]
        return [self.title, *fields, *filter(None, [self.foot])]


@dataclass(frozen=True)
class Look:
    """Fonts, colours and places of a page. ``gap`` is between lines, ``left`` the margin, in pixels."""

    font: Font
    head: Font
    theme: Theme
    left: int
    gap: int
    rule: bool


def pick_look(rng: random.Random, split: Split) -> Look:
    """Any look of the split."""
    px = rng.randint(13, 16)
    return Look(
        pick_font(rng, split, px, "regular"),
        pick_font(rng, split, px + rng.randint(2, 5), "bold"),
        sheet.pick_theme(rng),
        rng.randint(8, 16),
        rng.randint(6, 11),
        rng.random() < 0.5,
    )


def compose(rng: random.Random, split: Split, count: int, taken: Sequence[Leaf] = ()) -> Leaf:
    """A page of ``count`` fields, of kinds that no page of ``taken`` has, and a title."""
    used = {kind_of(label) for leaf in taken for label, _ in leaf.fields}
    kinds = rng.sample([kind for kind in forms.KINDS if kind not in used], count)
    labels: dict[str, str] = {}
    for kind in kinds:
        labels[rng.choice(kind.labels.split("|"))] = kind.make(rng, split)
    return Leaf(rng.choice((rng.choice(forms.TITLES), values.shop(rng, split))), tuple(labels.items()))


def kind_of(label: str) -> forms.Kind:
    """The kind of field that has a label."""
    return next(kind for kind in forms.KINDS if label in kind.labels.split("|"))


def changed(rng: random.Random, split: Split, leaf: Leaf) -> tuple[Leaf, int]:
    """The leaf with another value in one of its fields, and the number of that field."""
    at = rng.randrange(len(leaf.fields))
    label, before = leaf.fields[at]
    value = before
    while value == before:
        value = kind_of(label).make(rng, split)
    fields = (*leaf.fields[:at], (label, value), *leaf.fields[at + 1 :])
    return Leaf(leaf.title, fields, leaf.foot), at


def fits(leaf: Leaf, look: Look, size: tuple[int, int] = SIZE) -> bool:
    """Whether all of it fits on a page of that look."""
    room = WIDE * size[0] - look.left
    wide = max(ink.width(look.font, line) for line in leaf.lines[1:])
    return max(wide, ink.width(look.head, leaf.title)) <= room and height(leaf, look) <= size[1]


def height(leaf: Leaf, look: Look) -> int:
    """Pixels from the top of the page to the end of its last line, margins included."""
    return 2 * look.left + ink.height(look.head) + 8 + len(leaf.lines[1:]) * (ink.height(look.font) + look.gap)


def draw(rng: random.Random, leaf: Leaf, look: Look, size: tuple[int, int] = SIZE) -> Sheet:
    """The page, drawn."""
    page = Sheet(size, look.theme, rng)
    y = look.left
    page.put(look.left, y, leaf.title, look.head, look.theme.accent)
    y += ink.height(look.head) + 6
    if look.rule:
        page.draw.line((look.left, y, size[0] - look.left, y), look.theme.rule)
    y += look.gap
    for label, value in leaf.fields:
        page.put(look.left, y, f"{label}: {value}", look.font)
        y += ink.height(look.font) + look.gap
    if leaf.foot:
        page.put(size[0] / 2, size[1] - look.left - ink.height(look.font), leaf.foot, look.font, align="centre")
    return page


def noun(label: str) -> str:
    """What a question calls a field."""
    name = label if label.endswith("ID") else label.lower().replace(" no.", " number").replace(" #", " number")
    return kind_of(label).noun or name
