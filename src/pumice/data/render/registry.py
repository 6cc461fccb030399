"""All kinds of examples by name, as plain data: what draws each, its category, what it needs, what a stage calls it.

    a name of `pumice data render` ──kind_of──> Kind (module.function)
    a name in a stage's data, its answers ──kind_in_stage──> Kind

Nothing is drawn or imported here: recipes are read without PIL.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pumice.types import PumiceError

Style = Literal["papers", "short"]
"""How questions are asked and answered: as LLaVA's papers do, or plainly and in a few words (`answers.dress`)."""
Category = Literal["General", "Doc/Chart/Screen", "Math/Reasoning", "General OCR", "Language"]


@dataclass(frozen=True)
class Kind:
    """A kind of example: its maker, OneVision's category of it, and what it shows in a few words.

    ``material`` names entries of materials.toml, of which it is made; ``needs`` is a name of `kinds.NEEDS`, what
    not every machine has. ``photo`` pictures are kept as JPEG, others as PNG.
    """

    name: str
    module: str
    function: str
    category: Category
    what: str
    material: tuple[str, ...]
    needs: str = ""
    photo: bool = False


_TEXT = ("fonts", "names", "places", "words")
_TABLES = (*_TEXT, "tables")


def _kinds(*rows: tuple[str, str, Category, str], material: tuple[str, ...], **more: Any) -> dict[str, Kind]:
    """Kinds by name from rows of (name, module.function, category, what) that share the rest."""
    parted = ((name, *drawn.split("."), category, what) for name, drawn, category, what in rows)
    return {row[0]: Kind(*row, material, **more) for row in parted}  # type: ignore[arg-type]


KINDS: dict[str, Kind] = {
    **_kinds(
        ("lines", "lines.render_lines", "General OCR", "one to four short lines"),
        ("receipts", "records.receipt", "Doc/Chart/Screen", "receipts, also as JSON"),
        ("forms", "records.form", "Doc/Chart/Screen", "forms, also as JSON"),
        ("bills", "bills.render", "Doc/Chart/Screen", "receipts with counts and options, as JSON with CORD's fields"),
        ("invoices", "invoices.render", "Doc/Chart/Screen", "invoices, also as nested JSON"),
        ("twice", "albums.twice", "Doc/Chart/Screen", "two pictures of one page: what differs, if anything"),
        ("pages", "albums.pages", "Doc/Chart/Screen", "the pages of a document: what is where"),
        ("page_order", "albums.page_order", "Doc/Chart/Screen", "numbered pages out of order"),
        ("flow", "diagrams.flow", "Math/Reasoning", "flow charts with a decision"),
        ("tree", "diagrams.tree", "Math/Reasoning", "trees of names"),
        ("roads", "diagrams.roads", "Math/Reasoning", "maps of towns and roads"),
        ("scroll", "clips.scroll", "Doc/Chart/Screen", "video: a page that scrolls"),
        material=_TEXT,
    ),
    **_kinds(
        ("tables", "records.table", "Doc/Chart/Screen", "small tables, also as Markdown, CSV or JSON"),
        ("charts", "records.chart", "Doc/Chart/Screen", "bars, lines and pies, also as their data"),
        ("spans", "spans.render", "Doc/Chart/Screen", "tables with merged cells and totals, also as HTML"),
        (
            "graphs",
            "graphs.render",
            "Math/Reasoning",
            "grouped, stacked, line and scatter charts, with sums",
        ),
        material=_TABLES,
    ),
    **_kinds(
        ("synthdog_en", "synthdog.english", "General OCR", "pages of English before a background"),
        ("signs", "signs.sign", "General OCR", "signs on textured backgrounds"),
        material=_TEXT,
        photo=True,
    ),
    **_kinds(
        ("text_only", "text_questions.text_only", "Language", "no picture: sums, words, codes to copy"),
        material=("words", "names"),
    ),
    **_kinds(
        ("screens", "screens.screen", "Doc/Chart/Screen", "screens of programs, shown by Chromium"),
        material=_TEXT,
        needs="browser",
    ),
    **_kinds(
        ("notes", "signs.note", "General OCR", "notes in fonts like handwriting"),
        material=(*_TEXT, "handwriting-fonts"),
        needs="handwriting-fonts",
        photo=True,
    ),
    **_kinds(
        ("synthdog_zh", "synthdog.chinese", "General OCR", "pages of Chinese"),
        material=("chinese-fonts", "names", "fonts"),
        needs="chinese-fonts",
        photo=True,
    ),
    **_kinds(
        ("synthdog_ja", "synthdog.japanese", "General OCR", "pages of Japanese"),
        material=("japanese-fonts", "names", "fonts"),
        needs="japanese-fonts",
        photo=True,
    ),
    **_kinds(
        ("synthdog_ko", "synthdog.korean", "General OCR", "pages of Korean"),
        material=("korean-fonts", "names", "fonts"),
        needs="korean-fonts",
        photo=True,
    ),
    **_kinds(
        ("objects", "objects.render", "General", "drawings of things: names, colours, places, counts"),
        ("presence", "scenes.presence", "General", "what is in a picture and what isn't, in pairs"),
        ("difference", "scenes.difference", "General", "two pictures: what was added"),
        ("odd_one_out", "scenes.odd_one_out", "Math/Reasoning", "three or four pictures: which shows another class"),
        ("order", "scenes.order", "General", "two pictures: which of them shows it"),
        ("direction", "scenes.direction", "General", "video: which way a thing moves"),
        ("video_order", "scenes.video_order", "General", "video: which thing appears first"),
        ("video_count", "scenes.video_count", "Math/Reasoning", "video: how many things appear"),
        ("speed", "clips.speed", "General", "video: which of two things moves faster"),
        ("times", "clips.times", "Math/Reasoning", "video: how often a thing appears"),
        ("last", "clips.last", "General", "video: what is shown at the end, and in which order"),
        material=("drawings",),
        needs="drawings",
    ),
}

PLAIN: dict[str, Kind] = {
    **_kinds(
        ("wall", "lines.render_wall", "General OCR", "text from edge to edge, no question"),
        ("lines", "lines.render_lines", "General OCR", "one to four short lines"),
        ("receipts", "receipts.render", "Doc/Chart/Screen", "receipts"),
        ("forms", "forms.render", "Doc/Chart/Screen", "forms"),
        material=_TEXT,
    ),
    **_kinds(
        ("tables", "tables.render", "Doc/Chart/Screen", "small tables"),
        ("charts", "charts.render", "Doc/Chart/Screen", "bars, lines and pies"),
        material=_TABLES,
    ),
    "objects": KINDS["objects"],
}
"""Pages that teach to read: a stage without ``answers`` means them by these names, with their questions as they are.
Most of the names are also in `KINDS`, there for pages that are asked for as data too, and for what they don't say.
"""

DRAWN: tuple[str, ...] = tuple({**PLAIN, **KINDS})
"""The names that a stage's ``data`` may have for what is drawn as it is needed."""

BOXED = frozenset({*PLAIN, "bills", "invoices", "flow", "tree", "roads", "spans", "graphs"})
"""Kinds whose characters or things have known places, which the objectives read and align learn from."""


def is_plain(name: str, answers: Style | None) -> bool:
    """Whether a stage's name of a kind means one of PLAIN: without ``answers``, and where no other kind has it."""
    return name in PLAIN and (answers is None or name not in KINDS)


def kind_of(name: str) -> Kind:
    """What `pumice data render` draws by a name.

    Raises:
        PumiceError: unknown kind; the message lists them.
    """
    if name not in KINDS:
        raise PumiceError(f"unknown kind {name!r}; kinds: {', '.join(KINDS)}")
    return KINDS[name]


def kind_in_stage(name: str, answers: Style | None) -> Kind:
    """What a stage with ``answers`` draws by a name.

    Raises:
        PumiceError: unknown kind; the message lists them.
    """
    return PLAIN[name] if is_plain(name, answers) else kind_of(name)
