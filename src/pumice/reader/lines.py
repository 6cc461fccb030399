"""Recognised lines as text that a small language model reads well.

    (box, text)* ──rows──> cells of each row ──charts, tables: each cell says its bar or column──> text, a row a line

Only boxes and texts go in; where they come from (an OCR engine, or the renderers in training) makes no difference.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""
Line = tuple[Box, str]
Row = list[Line]

BETWEEN = " | "
"""Between the cells of a row."""
LEAST_COLUMNS, LEAST_ROWS = 3, 2
"""A table has so many columns, and rows under its header: of two columns each row says all by itself."""
NEAR = 0.35
"""A value stands over a label of a chart where their middles are nearer than this share of the labels' distance."""
_NUMBER = re.compile(r"[^A-Za-z]*\d[^A-Za-z]*")


def write(lines: Sequence[Line]) -> list[str]:
    """Recognised lines, in any order, as lines of text from top to bottom.

    What stands beside each other is one line, with BETWEEN between its cells. In a table each cell of a row begins with
    its column's header ("Lions | Wins: 12 | Losses: 4"), so that nobody has to count columns. An empty line stands
    where more room than usual is left between rows. Values over the bars of a chart follow their labels ("May: 12").
    """
    found = charted(rows(lines))
    texts = ["" for _ in found]
    done = 0
    while done < len(found):
        columns = table(found[done:])
        for place in range(done, done + max(1, len(columns))):
            cells = [text for _, text in found[place]]
            if place > done:
                named = zip(columns[place - done], cells, strict=True)
                cells = [f"{found[done][column][1]}: {text}" if column else text for column, text in named]
            texts[place] = BETWEEN.join(cells)
        done += max(1, len(columns))
    wide = gaps(found)
    return [line for place, text in enumerate(texts) for line in ([""] if place in wide else []) + [text]]


def rows(lines: Sequence[Line]) -> list[Row]:
    """Lines from top to bottom, and left to right where they stand beside each other.

    A line belongs to the row before it where its middle lies less than half a line below that row's last middle, so
    that rows may slope a little.
    """
    found: list[Row] = []
    for box, text in sorted(lines, key=lambda line: _middle(line[0])):
        last = found[-1][-1][0] if found else None
        height = min(box[3] - box[1], last[3] - last[1]) if last else 0
        if last and _middle(box) - _middle(last) < height / 2:
            found[-1].append((box, text))
        else:
            found.append([(box, text)])
    return [sorted(row, key=lambda line: line[0][0]) for row in found]


def charted(found: Sequence[Row]) -> list[Row]:
    """Rows in which values that stand over a row of labels, at heights of their own, have joined their labels.

    So bars, points and stems are labelled: where a value stands says whose it is, which text alone wouldn't.
    """
    for place in range(len(found) - 1, 0, -1):
        labels, above = found[place], [row for row in found[:place] if all(_kind(row))]
        fewest = LEAST_COLUMNS if place < len(found) - 1 else 2  # the last row is most likely that of an axis
        if len(labels) < fewest or len(above) < 2:
            continue
        near = NEAR * min(_centre(two[0]) - _centre(one[0]) for one, two in pairwise(labels))
        over = [
            [value for row in above for value in row if abs(_centre(value[0]) - _centre(label[0])) < near]
            for label in labels
        ]
        values = [value for values in over for value in values]
        if any(len(values) != 1 for values in over) or any(all(value in row for value in values) for row in above):
            continue  # a table, which has several numbers in a column, or a row of numbers over another
        joined = [(box, f"{text}: {value}") for (box, text), (_, value) in zip(labels, values, strict=True)]
        left = [[line for line in row if line not in values] for row in found[:place]]
        return [row for row in left if row] + [joined, *found[place + 1 :]]
    return list(found)


def table(following: Sequence[Row]) -> list[list[int]]:
    """The column of each cell of the rows of a table that begins with a header, or nothing if none begins here.

    A header has LEAST_COLUMNS cells, and unlike what is under it. A cell belongs to the column that it overlaps most.
    """
    header = following[0]
    if len(header) < LEAST_COLUMNS:
        return []
    edges = [(box[0], box[2]) for box, _ in header]
    columns = [list(range(len(header)))]
    for row in following[1:]:
        placed = _columns(row, edges)
        if not placed:
            break
        columns.append(placed)
        for column, (box, _) in zip(placed, row, strict=True):
            edges[column] = min(edges[column][0], box[0]), max(edges[column][1], box[2])
    body = [row for row in following[1 : len(columns)] if len(row) > 1]
    if len(body) < LEAST_ROWS:
        return []
    kinds = Counter(_kind(row) for row in body)
    return [] if kinds.most_common(1)[0][0] == _kind(header) and any(_kind(header)) else columns


def _columns(row: Row, edges: Sequence[tuple[float, float]]) -> list[int]:
    """The column of each cell, or nothing unless each has one of its own."""
    found = []
    for box, _ in row:
        shared = [min(box[2], right) - max(box[0], left) for left, right in edges]
        best = max(range(len(edges)), key=lambda column: shared[column])
        if shared[best] <= 0:
            return []
        found.append(best)
    return found if all(a < b for a, b in pairwise(found)) else []


def _kind(row: Row) -> tuple[bool, ...]:
    """Which cells are numbers."""
    return tuple(bool(_NUMBER.fullmatch(text)) for _, text in row)


def gaps(found: Sequence[Row]) -> set[int]:
    """Numbers of the rows before which more room is left than usual."""
    tops = [min(box[1] for box, _ in row) for row in found]
    ends = [max(box[3] for box, _ in row) for row in found]
    room = [max(0.0, top - end) for top, end in zip(tops[1:], ends, strict=False)]
    if len(room) < 2:
        return set()
    usual = sorted(room)[len(room) // 4]
    height = median(end - top for top, end in zip(tops, ends, strict=True))
    return {place for place, gap in enumerate(room, 1) if gap > 1.5 * usual + 0.35 * height}


def shorten(texts: Sequence[str], limit: int, count: Callable[[str], int]) -> tuple[str, int]:
    """(the first of the lines that are together at most ``limit`` by ``count``, how many lines were left out)."""
    kept: list[str] = []
    for text in texts:
        used = count("\n".join([*kept, text]))
        if used > limit:
            break
        kept.append(text)
    return "\n".join(kept), len(texts) - len(kept)


def _middle(box: Box) -> float:
    return (box[1] + box[3]) / 2


def _centre(box: Box) -> float:
    return (box[0] + box[2]) / 2
