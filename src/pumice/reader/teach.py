"""Rendered pages as training samples of the reader-assisted mode.

kind, rng ──records──> page with its questions ──recognise──> lines with mistakes ──write──> text in the prompt
          └─arrange─┘                       └──those with long answers, now and then──> turns
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

from pumice.config import ReaderConfig
from pumice.data.render import records
from pumice.data.render.fonts import Split
from pumice.data.render.page import Rendered
from pumice.data.rendered import Renderer, renderer, to_sample
from pumice.reader import arrange
from pumice.reader.lines import write
from pumice.reader.noise import recognise
from pumice.reader.reader import block
from pumice.types import Media, Sample, Turn

ASKED: dict[str, Renderer] = {
    "receipts": records.receipt,
    "forms": records.form,
    "tables": records.table,
    "charts": records.chart,
}
"""Kinds of pages that are also asked for all that they say, and for what they don't."""
ARRANGED: dict[str, Renderer] = {"receipts": arrange.receipt, "forms": arrange.form, "charts": arrange.chart}
"""Kinds that are also lines without a picture."""
LONG = ("read", "form_json", "table_data", "chart_data")
"""Tasks whose answers repeat the page: that is learned soon, and takes as long as many questions."""
LONG_SHARE = 0.2
"""Share of those questions that are kept."""


def draw(mixture: Mapping[str, float], seed: int, split: Split, index: int, arranged: float = 0.0) -> Rendered:
    """Picture number ``index`` of a mixture {kind: weight}, with few of its long questions.

    The share ``arranged`` of receipts, forms and charts are lines alone, without a picture.
    """
    rng = random.Random(f"reader-{seed}-{split}-{index}")
    kinds = sorted(mixture)
    kind = rng.choices(kinds, [mixture[kind] for kind in kinds])[0]
    if arranged and kind in ARRANGED and rng.random() < arranged:
        return ARRANGED[kind](rng, split)
    rendered = (ASKED.get(kind) or renderer(kind))(rng, split)
    kept = [question for question in rendered.questions if question.task not in LONG or rng.random() < LONG_SHARE]
    return replace(rendered, questions=tuple(kept or rendered.questions))


def teach(rendered: Rendered, config: ReaderConfig, id: str) -> Sample:
    """The page's conversation with its text in the first turn; without the picture, or without the text, in the shares
    that the stage asks for. Which of them follows from ``id``. A chart that was drawn keeps its picture: what isn't
    printed in it, its text doesn't say.
    """
    rng = random.Random(f"reader-{id}")
    sample = to_sample(rendered, id)
    text = block("\n".join(write(recognise(rendered.lines, rng))))
    may_go = not rendered.glyphs or (rendered.kind != "chart" and rng.random() < config.blind)
    blind = bool(text) and may_go
    if not blind and rng.random() < config.bare:
        text = ""
    first = sample.turns[0]
    media = tuple(part for part in first.content if isinstance(part, Media) and not blind)
    said = tuple(part for part in first.content if not isinstance(part, Media))
    return replace(sample, turns=(Turn("user", (*media, *([text] if text else []), *said)), *sample.turns[1:]))
