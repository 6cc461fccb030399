"""The mistakes of an OCR engine, made on a renderer's own lines: training then needs no OCR.

    lines in drawing order ──join neighbours──> ──drop, confuse, garble──> ──jitter boxes──> lines as if recognised

The rates are roughly those of RapidOCR 3.10's bundled models on training pages (`benchmarks/reader.py noise`), a little
raised: what a page is spared teaches nothing.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from pumice.reader.lines import Box, Line, rows

CONFUSED = (
    "0Oo", "1lI|", "5S", "8B", "2Z", "6G", "9g", "uv", "nh", "ce", "ft", "CG", "DO", "EF", "MN", "HN", "VY", ".,", ":;",
    "-_", "'`", "rn", "ij",
)  # fmt: skip
"""Characters that are taken for each other."""
CONFUSE = 0.004
"""Share of characters that are wrong."""
BLANK = 0.03
"""Share of blanks that are lost; as many appear where there was none beside punctuation."""
LOST, LOST_SHORT = 0.003, 0.02
"""Shares of lines that aren't found: of longer ones, and of one or two characters."""
GARBLED = 0.006
"""Share of lines of which half is nonsense."""
NEAR = (0.45, 0.8)
"""Neighbours become one line where the room between them is less than such a share of their height."""
_OTHERS = {char: [o for group in CONFUSED if char in group for o in group if o != char] for char in "".join(CONFUSED)}


def recognise(lines: Sequence[Line], rng: random.Random) -> list[Line]:
    """Lines as an OCR engine might give them, ``lines`` being (ink box in pixels, text) as printed."""
    near = rng.uniform(*NEAR)
    found: list[Line] = []
    for row in rows(lines):
        for box, text in _joined(row, near):
            if rng.random() < (LOST_SHORT if len(text) < 3 else LOST):
                continue
            found.append((_jitter(box, rng), _misread(text, rng)))
    return found


def _joined(row: Sequence[Line], near: float) -> list[Line]:
    """A row's lines, those that stand close together as one."""
    found = [row[0]]
    for box, text in row[1:]:
        last, before = found[-1]
        if box[0] - last[2] < near * min(box[3] - box[1], last[3] - last[1]):
            joined = min(last[0], box[0]), min(last[1], box[1]), max(last[2], box[2]), max(last[3], box[3])
            found[-1] = joined, f"{before} {text}"
        else:
            found.append((box, text))
    return found


def _misread(text: str, rng: random.Random) -> str:
    """The text with some characters taken for others, and blanks lost or made."""
    garbled = rng.random() < GARBLED
    out = ""
    for place, char in enumerate(text):
        if char == " ":
            out += "" if rng.random() < BLANK else " "
            continue
        wrong = rng.random() < (0.5 if garbled else CONFUSE)
        out += rng.choice(_OTHERS.get(char) or [char.swapcase(), "", char]) if wrong else char
        if char in ":,." and place + 1 < len(text) and not text[place + 1].isspace() and rng.random() < BLANK / 2:
            out += " "
    return out.strip() or text


def _jitter(box: Box, rng: random.Random) -> Box:
    """The box as a detector draws it: a little larger than the ink, and not exactly there."""
    pad = 0.12 * (box[3] - box[1])
    moved = [side * pad + rng.gauss(0.0, 0.06) * (box[3] - box[1]) for side in (-1, -1, 1, 1)]
    left, top, right, bottom = (edge + move for edge, move in zip(box, moved, strict=True))
    return left, top, right, bottom
