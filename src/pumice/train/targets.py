"""What a drawn picture teaches beside its answers, from the places of its characters and things.

    glyphs, things + Layout ──Labeller──> Targets: characters of each patch, LM tokens under each visual token

Made where batches are read, on processes that read ahead: for a GPU's step it takes longer than the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pumice.tokens import tokenize
from pumice.train.dense import SLOTS, glyph_slots
from pumice.types import Batch, Glyph, Layout, Named, Targets
from pumice.vision.layout import glyph_views

LATTICE = 12
"""Points a side at which it is asked which visual tokens show a thing: few boxes are more tokens wide."""


@dataclass
class Labeller:
    """Makes the targets of batches for a tower with patches of ``patch`` pixels; those not asked for stay empty."""

    tokenizer: Any
    patch: int
    slots: bool = True
    words: bool = True
    pieces: dict[str, tuple[list[int], list[int]]] = field(default_factory=dict)

    def label(self, batch: Batch) -> Batch:
        """The batch with its targets in the place of its glyphs and things."""
        none = ((),) * len(batch.layouts)
        return replace(batch, targets=self.targets(batch), glyphs=none, things=none)

    def targets(self, batch: Batch) -> Targets:
        """The targets of a batch that carries glyphs and things."""
        slots, views = self._slots(batch) if self.slots else ([], [])
        places, tokens = self._words(batch) if self.words else ([], [])
        empty = torch.zeros(0, 0, SLOTS, dtype=torch.int64)
        return Targets(
            torch.cat(slots) if slots else empty,
            torch.tensor(views, dtype=torch.int64),
            torch.tensor(places, dtype=torch.int64),
            torch.tensor(tokens, dtype=torch.int64),
        )

    def _slots(self, batch: Batch) -> tuple[list[Tensor], list[int]]:
        """(labels of the pictures that carry glyphs, numbers of their views)."""
        labels, keep, start = [], [], 0
        for placed, glyphs in zip(batch.layouts, batch.glyphs, strict=True):
            if glyphs:
                labels.append(glyph_slots(glyphs, placed, self.patch))
                keep += range(start, start + placed.views)
            start += placed.views
        return labels, keep

    def _words(self, batch: Batch) -> tuple[list[int], list[int]]:
        """(indices of visual tokens, LM tokens) in pairs: the LM token's middle lies in that visual token.

        Every visual token inside of a thing's box has the tokens of its words.
        """
        places: list[int] = []
        tokens: list[int] = []
        start = 0
        for placed, glyphs, things in zip(batch.layouts, batch.glyphs, batch.things, strict=True):
            for word in split_words(glyphs):
                pieces, lengths = self._pieces("".join(glyph.char for glyph in word))
                for token, (x, y) in zip(pieces, _middles(word, lengths), strict=True):
                    for place in visual_places(placed, x, y):
                        places.append(start + place)
                        tokens.append(token)
            for thing in things:
                pieces = [piece for word in thing.words for piece in self._pieces(word)[0]]
                for place in inside(placed, thing):
                    places += [start + place] * len(pieces)
                    tokens += pieces
            start += placed.tokens
        return places, tokens

    def _pieces(self, word: str) -> tuple[list[int], list[int]]:
        """(ids of a word as it reads in running text, with its leading space; characters of each)."""
        if word not in self.pieces:
            ids = tokenize(self.tokenizer, " " + word, markup=False)
            self.pieces[word] = ids, [len(self.tokenizer.decode([piece]).strip()) for piece in ids]
        return self.pieces[word]


def split_words(glyphs: Sequence[Glyph]) -> list[list[Glyph]]:
    """Glyphs in drawing order, cut where a gap is wider than a space or a new line starts."""
    words: list[list[Glyph]] = []
    for glyph in glyphs:
        last = words[-1][-1] if words else None
        if last is not None:
            height = max(g.y1 - g.y0 for g in words[-1][-8:])
            gap = glyph.x0 - last.x1
            apart = abs((glyph.y0 + glyph.y1) - (last.y0 + last.y1)) / 2
            if -height < gap < 0.3 * max(height, 8.0) and apart < max(height, 8.0):
                words[-1].append(glyph)
                continue
        words.append([glyph])
    return words


def _middles(word: list[Glyph], lengths: list[int]) -> list[tuple[float, float]]:
    """Pixel middle of each piece of a word, of ``lengths`` characters: x by its characters, y the word's ink."""
    top, bottom, count = min(g.y0 for g in word), max(g.y1 for g in word), len(lengths)
    if sum(lengths) != len(word):
        lengths = [len(word) // count] * count
    middles, done = [], 0
    for length in lengths:
        run = word[min(done, len(word) - 1) : done + length] or word[-1:]
        middles.append(((run[0].x0 + run[-1].x1) / 2, (top + bottom) / 2))
        done += length
    return middles


def inside(layout: Layout, thing: Named) -> list[int]:
    """Indices among the picture's visual tokens of those that show the inner part of a thing's box."""
    steps = [(2 * i + 1) / (2 * LATTICE) for i in range(LATTICE)]
    xs = [thing.x0 + (thing.x1 - thing.x0) * (0.1 + 0.8 * step) for step in steps]
    ys = [thing.y0 + (thing.y1 - thing.y0) * (0.1 + 0.8 * step) for step in steps]
    return sorted({place for y in ys for x in xs for place in visual_places(layout, x, y)})


def visual_places(layout: Layout, x: float, y: float) -> list[int]:
    """Indices among the picture's visual tokens that show picture pixel (x, y): in the map, and in the overview."""
    places = []
    top, _, left, _ = layout.keep
    pitch = layout.tile / layout.side
    kept = layout.keep[1] - top, layout.keep[3] - left
    for view, (vx, vy, _, _) in glyph_views(layout, (x, y, x, y)):
        col, row = min(int(vx / pitch), layout.side - 1), min(int(vy / pitch), layout.side - 1)
        if layout.overview and view == 0:
            places.append(row * layout.side + col)
            continue
        tile = view - int(layout.overview)
        col += tile % layout.cols * layout.side - left
        row += tile // layout.cols * layout.side - top
        row, col = row * layout.map[0] // kept[0], col * layout.map[1] // kept[1]  # large maps are scaled down
        if 0 <= row < layout.map[0] and 0 <= col < layout.map[1]:
            first = layout.side**2 if layout.overview else 0
            places.append(first + row * (layout.map[1] + layout.newline) + col)
    return places
