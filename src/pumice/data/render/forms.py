"""Forms: labelled fields such as Name, City, Order no. or Amount, in many layouts.

rng, split ──> Field* (label, value, questions) ──> a layout that fits them into cells ──> Sheet ──> Rendered
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from pumice.data.render import ink, sheet
from pumice.data.render.fonts import Split, pick_font
from pumice.data.render.form_fields import KINDS, Kind
from pumice.data.render.ink import Font
from pumice.data.render.page import Question, Rendered
from pumice.data.render.sheet import Sheet, ask

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels."""


@dataclass(frozen=True)
class Field:
    """One field of a form as printed."""

    label: str
    value: str
    kind: Kind


@dataclass(frozen=True)
class Look:
    """One layout. ``how`` places label and value in a cell; ``frame`` draws around or between cells."""

    how: str
    frame: str = "none"
    title: str = "plain"
    mark: str = ""
    big: bool = False


LOOKS: dict[Split, tuple[Look, ...]] = {
    "train": (
        Look("inline", mark=":"),
        Look("inline", "none", "bar", mark=":"),
        Look("aligned", "none", mark=":"),
        Look("aligned", "line"),
        Look("aligned", "grid", "bar"),
        Look("above", "none", "rule"),
        Look("above", "box"),
        Look("above", "under", mark=":"),
        Look("spread", "line", "rule"),
        Look("spread", "none", "bar"),
        Look("inline", "box", mark=":"),
        Look("inline", "none", "rule", mark=" -"),
    ),
    "heldout": (
        Look("below", "none", "rule"),
        Look("below", "box"),
        Look("flush", "none", "bar", mark=":"),
        Look("spread", "stripe", "plain"),
        Look("aligned", "stripe", "rule", mark=":"),
        Look("tag", "none", "plain"),
        Look("above", "stripe", "bar", mark=" >"),
    ),
}


TITLES = [
    "Order Form",
    "Invoice",
    "Booking",
    "Registration",
    "Delivery Note",
    "Membership",
    "Application",
    "Contact",
    "Work Order",
    "Ticket",
    "Request",
    "Customer Record",
    "Visitor Pass",
    "Service Report",
    "Shipment",
    "Payment",
    "Reservation",
    "Job Card",
    "Quotation",
    "Claim",
]
WORDINGS = "What is the {n}?|{N}?|Give the {n}.|What does the form say for {n}?|Read the {n}."
VAGUE = "|Which {n} is on the form?|What {n} is given?"
ROLES = "Who is the {n}?|{N}?|What is the name of the {n}?|Name of the {n}?"


def render(rng: random.Random, split: Split) -> Rendered:
    """One form of 2 to 8 fields (more on larger pages), a question or two about each."""
    return describe(rng, split)[1]


def describe(rng: random.Random, split: Split) -> tuple[list[Field], Rendered]:
    """The form of ``render`` with its fields, to ask for all of them at once or for one that isn't there."""
    rng = sheet.stream(rng, f"form {split}")
    size = (224, 224) if rng.random() < 0.8 else rng.choice(((224, 320), (448, 224), (448, 448), (336, 224)))
    look = rng.choice(LOOKS[split])
    page = Sheet(size, sheet.pick_theme(rng), rng)
    columns = 2 if size[0] >= 400 and rng.random() < 0.7 else 1
    fonts = _fonts(rng, split, look)
    margin = rng.randint(6, 12)
    top = _title(page, split, look, margin)
    width = (size[0] - 2 * margin - 14 * (columns - 1)) // columns
    row = _cell_height(look, fonts)
    most = max(1, (size[1] - margin - top) // (row + 3)) * columns
    fields = _fields(rng, split, look, fonts, width, rng.randint(min(12, max(min(most, 3), most // 2)), min(most, 12)))
    _draw(page, fields, look, fonts, (margin, top, size[0] - margin, size[1] - margin), columns)
    return fields, page.close("form", questions_on(rng, fields))


def _fonts(rng: random.Random, split: Split, look: Look) -> tuple[Font, Font]:
    """Fonts of labels and of values. Labels above or below their value may be small."""
    px = rng.choices((12, 13, 14, 15, 16, 17, 18, 19, 20), (1, 3, 4, 4, 4, 3, 3, 2, 1))[0]
    value = pick_font(rng, split, px)
    if look.how in ("above", "below", "tag"):
        return pick_font(rng, split, max(11, px - rng.randint(0, 4))), value
    if rng.random() < 0.4:
        return value, value
    return pick_font(rng, split, px, rng.choice(("bold", None))), value


def _title(page: Sheet, split: Split, look: Look, margin: int) -> int:
    """Draw a title (on 3 of 4 pages) and return where the fields may begin, in pixels from the top."""
    rng, theme = page.rng, page.theme
    if rng.random() < 0.25:
        return margin
    font = pick_font(rng, split, rng.randint(15, 21), "bold")
    title = sheet.attempt(lambda: rng.choice(TITLES), lambda t: ink.width(font, t) <= page.width - 2 * margin) or "Form"
    align = rng.choice(("left", "centre"))
    x, high = {"left": margin, "centre": page.width / 2}[align], ink.height(font)
    if look.title == "bar":
        page.draw.rectangle((0, 0, page.width, high + 10), fill=theme.accent)
        page.put(x, 5, title, font, theme.paper, align)
        return high + 10 + margin
    page.put(x, margin, title, font, theme.accent if rng.random() < 0.5 else theme.ink, align)
    if look.title == "rule":
        page.draw.line((margin, margin + high + 4, page.width - margin, margin + high + 4), theme.rule)
    return margin + high + 8


def _cell_height(look: Look, fonts: tuple[Font, Font]) -> int:
    """Pixels that a cell needs with its padding."""
    label, value = (ink.height(font) for font in fonts)
    inside = label + value + 3 if look.how in ("above", "below", "tag") else max(label, value)
    if look.how == "below" and look.frame == "none":
        inside += 10  # or a label would seem to belong to the value under it
    return inside + {"none": 2, "line": 6, "under": 5}.get(look.frame, 8)


def _label_width(look: Look, width: int) -> int:
    """Pixels that all labels share where values stand in a column."""
    return min(int(width * 0.44), 120)


def _fits(field: Field, look: Look, fonts: tuple[Font, Font], width: int) -> bool:
    pad = 0 if look.frame in ("none", "line", "under") else 12
    label, value = ink.width(fonts[0], field.label + look.mark), ink.width(fonts[1], field.value)
    if look.how in ("above", "below"):
        return max(label, value) + pad <= width
    if look.how == "tag":
        return max(label + 10, value) + pad <= width
    if look.how in ("aligned", "flush"):
        return label <= _label_width(look, width) - pad // 2 and value + 8 + pad // 2 <= width - _label_width(
            look, width
        )
    return label + value + 8 + pad <= width


def _fields(
    rng: random.Random, split: Split, look: Look, fonts: tuple[Font, Font], width: int, count: int
) -> list[Field]:
    """Up to ``count`` fields that fit into cells of ``width`` pixels, each of another kind and label."""
    out: list[Field] = []
    for kind in rng.sample(KINDS, len(KINDS)):
        for _ in range(5):
            label = rng.choice(kind.labels.split("|"))
            field = Field(label, kind.make(rng, split), kind)
            clash = any(field.value == f.value or label == f.label for f in out)
            if not clash and _fits(field, look, fonts, width):
                out.append(field)
                break
        if len(out) == count:
            break
    return out


def _draw(page: Sheet, fields: list[Field], look: Look, fonts: tuple[Font, Font], area: Box, columns: int) -> None:
    """Cells row by row; spare height is partly shared out between them."""
    left, top, right, bottom = area
    row = _cell_height(look, fonts)
    rows = -(-len(fields) // columns)
    spare = bottom - top - rows * row
    gap = 0 if look.frame in ("grid", "stripe") else min(int(page.rng.random() * spare / max(rows, 1)), 14)
    gap = max(gap, 3) if look.frame not in ("grid", "stripe") and spare >= 3 * rows else gap
    top += page.rng.randint(0, max(0, (spare - gap * rows) // 2))
    width = (right - left - 14 * (columns - 1)) // columns
    for i, field in enumerate(fields):
        x, y = left + (i % columns) * (width + 14), top + (i // columns) * (row + gap)
        _frame(page, look, (x, y, x + width, y + row), i // columns)
        _cell(page, field, look, fonts, (x, y, x + width, y + row))


def _frame(page: Sheet, look: Look, box: Box, index: int) -> None:
    """What is drawn behind or around a cell."""
    left, top, right, bottom = box
    draw, theme = page.draw, page.theme
    if look.frame in ("grid", "box"):
        draw.rectangle((left, top, right - 1, bottom), outline=theme.rule)
    if look.frame == "grid":
        middle = left + _label_width(look, right - left)
        draw.line((middle, top, middle, bottom), theme.rule)
    if look.frame == "stripe" and index % 2 == 0:
        draw.rectangle((left, top, right - 1, bottom - 1), fill=theme.tint)
    if look.frame in ("line", "under"):
        draw.line((left, bottom, right, bottom), theme.rule)


def _cell(page: Sheet, field: Field, look: Look, fonts: tuple[Font, Font], box: Box) -> None:
    """Write label and value of a field into its cell."""
    framed = look.frame not in ("none", "line", "under")
    left, right = (box[0] + 6, box[2] - 6) if framed else (box[0], box[2])
    y, label = box[1] + (4 if framed else 1), field.label + look.mark
    tint = page.theme.accent
    first, second = ink.height(fonts[0]), ink.height(fonts[1])
    if look.how in ("above", "tag"):
        if look.how == "tag":
            end = left + ink.width(fonts[0], label) + 9
            page.draw.rectangle((left, y - 1, end, y + first), fill=page.theme.tint, outline=page.theme.rule)
        page.put(left + (5 if look.how == "tag" else 0), y, label, fonts[0], tint)
        return page.put(left, y + first + 3, field.value, fonts[1])
    if look.how == "below":
        page.put(left, y, field.value, fonts[1])
        return page.put(left, y + second + 3, label, fonts[0], tint)
    high = max(first, second)
    low, lower = y + high - first, y + high - second  # small and large text of a line stand on nearly one baseline
    middle = box[0] + _label_width(look, box[2] - box[0])
    if look.how == "flush":
        page.put(middle, low, label, fonts[0], tint, "right")
    else:
        page.put(left, low, label, fonts[0], tint)
    if look.how == "spread":
        return page.put(right, lower, field.value, fonts[1], align="right", join=True)
    x = left + ink.width(fonts[0], label) + 8 if look.how == "inline" else middle + 8
    return page.put(x, lower, field.value, fonts[1], join=True)


def questions_on(rng: random.Random, fields: list[Field]) -> list[Question]:
    """A question about each field, and about some values under which label they stand.

    Vague wordings ("Which city is given?") are asked only where one field alone could be meant.
    """
    out = []
    tasks = [field.kind.task for field in fields]
    for field in fields:
        kind = field.kind
        noun = kind.noun or (field.label if field.label.endswith("ID") else field.label.lower()).replace(
            " no.", " number"
        )
        wording = ROLES if kind.task == "name" and not kind.noun else WORDINGS
        if tasks.count(kind.task) == 1 or kind.task == "field":
            wording += VAGUE * (wording is WORDINGS) + kind.extra
        out.append(ask(rng, kind.task, wording, field.value, n=noun, N=noun[0].upper() + noun[1:]))
        if rng.random() < 0.12:
            out.append(
                ask(rng, "label", "Which field says {v}?|What is {v}?|Which label has {v}?", field.label, v=field.value)
            )
    return out
