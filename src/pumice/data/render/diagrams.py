"""Diagrams: flow charts, trees, and maps of towns and roads, with questions that follow arrows, branches and roads.

rng, split ──nodes and edges──> places ──boxes, lines, labels──> Sheet ──> Rendered
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from itertools import pairwise

from pumice.data.render import ink, sheet, values
from pumice.data.render.absent import ABSENT
from pumice.data.render.fonts import Split, pick_font
from pumice.data.render.ink import Font
from pumice.data.render.page import Question, Rendered
from pumice.data.render.sheet import Sheet, ask, choose

SIZES = ((336, 448), (448, 448), (448, 560))
VERBS = "Check|Send|Print|Open|Close|Sort|Count|Mark|Pack|Weigh|Clean|Test|Load|Store|Sign|Scan|Order|Move|Cut|Label"
THINGS = "order|letter|form|parcel|file|list|sample|bill|box|part|report|ticket|card|invoice|result|draft|label|key"
ASKS = "Valid?|Paid?|Full?|Ready?|Clean?|Signed?|In stock?|Urgent?|Heavy?|New?"
BOXES: dict[Split, tuple[str, ...]] = {"train": ("square", "round"), "heldout": ("double", "shade")}


@dataclass(frozen=True)
class Node:
    """A box with its text and its middle in pixels."""

    text: str
    x: float
    y: float
    asks: bool = False


def flow(rng: random.Random, split: Split) -> Rendered:
    """A flow chart from top to bottom with one decision, whose "no" goes to a box of its own."""
    rng = sheet.stream(rng, f"flow {split}")
    while True:
        size, style = rng.choice(SIZES), rng.choice(BOXES[split])
        page = Sheet(size, sheet.pick_theme(rng, 0.05), rng)
        font = pick_font(rng, split, rng.randint(13, 16))
        steps = _steps(rng, split, rng.randint(3, 5))
        question, other = rng.choice(ASKS.split("|")), _steps(rng, split, 1)[0]
        at = rng.randint(1, len(steps) - 1)
        column = [*steps[:at], question, *steps[at:]]
        if other in steps or len(set(column)) < len(column):
            continue
        pitch, x = (size[1] - 40) / len(column), size[0] * 0.34
        nodes = [Node(text, x, 30 + (i + 0.4) * pitch, text == question) for i, text in enumerate(column)]
        side = Node(other, size[0] * 0.78, nodes[at].y)
        wide = max(ink.width(font, node.text) for node in (*nodes, side)) / 2 + 12
        if x - wide > 4 and side.x + wide < size[0] - 4 and x + wide + 40 < side.x - wide:
            break
    for a, b in pairwise(nodes):
        _arrow(page, (a.x, a.y + 16), (b.x, b.y - 16))
    _arrow(page, (nodes[at].x + wide, nodes[at].y), (side.x - wide, side.y))
    page.put(nodes[at].x + 6, nodes[at].y + 20, "yes", font, page.theme.accent)
    middle = (nodes[at].x + side.x) / 2
    page.put(middle, nodes[at].y - 6 - ink.height(font), "no", font, page.theme.accent, "centre")
    for node in (*nodes, side):
        _box(page, node, font, wide, style)
    return _finish(page, "flow", _flow_questions(rng, column, question, other))


def _steps(rng: random.Random, split: Split, count: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        made = values.within(rng, split, lambda r: f"{r.choice(VERBS.split('|'))} {r.choice(THINGS.split('|'))}")
        found[made] = None
    return list(found)


def _flow_questions(rng: random.Random, column: list[str], question: str, other: str) -> list[Question]:
    at, out = column.index(question), []
    steps = [text for text in column if text != question]
    out.append(ask(rng, "flow_first", "What is the first step?|Which step comes first?", column[0]))
    out.append(ask(rng, "flow_last", "What is the last step?|Which step comes last?", column[-1]))
    out.append(ask(rng, "flow_yes", "What comes next if the answer to {q} is yes?", column[at + 1], q=f'"{question}"'))
    out.append(ask(rng, "flow_no", "What comes next if the answer to {q} is no?", other, q=f'"{question}"'))
    out.append(ask(rng, "flow_asks", "Which question does the chart ask?|What is decided in the chart?", question))
    out.append(ask(rng, "count", "How many steps are there?|Count the boxes with steps.", str(len(steps) + 1)))
    for a, b in pairwise(column):
        if question not in (a, b):
            out.append(ask(rng, "flow_next", "Which step follows {a}?|What comes after {a}?", b, a=f'"{a}"'))
    return out


def tree(rng: random.Random, split: Split) -> Rendered:
    """A tree of two levels below its root: who stands under whom."""
    rng = sheet.stream(rng, f"tree {split}")
    while True:
        size, style = rng.choice(((448, 336), (560, 336), (560, 448))), rng.choice(BOXES[split])
        page = Sheet(size, sheet.pick_theme(rng, 0.05), rng)
        font = pick_font(rng, split, rng.randint(12, 14))
        made = [rng.choice(values.vocabulary("last", split)) for _ in range(13)]
        if len(set(made)) < len(made):
            continue
        names = iter(made)
        root, counts = next(names), [rng.randint(1, 3) for _ in range(rng.randint(2, 3))]
        branches = {next(names): [next(names) for _ in range(count)] for count in counts}
        slot = (size[0] - 16) / sum(counts)
        wide = max(ink.width(font, name) for name in made) / 2 + 6
        if 2 * wide < slot - 4:
            break
    rows = [size[1] * share for share in (0.14, 0.48, 0.84)]
    nodes, start = [Node(root, size[0] / 2, rows[0])], 0
    for parent, leaves in branches.items():
        middle = Node(parent, 8 + slot * (start + len(leaves) / 2), rows[1])
        _elbow(page, nodes[0], middle)
        nodes.append(middle)
        for i, leaf in enumerate(leaves):
            node = Node(leaf, 8 + slot * (start + i + 0.5), rows[2])
            _elbow(page, middle, node)
            nodes.append(node)
        start += len(leaves)
    for node in nodes:
        _box(page, node, font, wide, style)
    return _finish(page, "tree", _tree_questions(rng, root, branches))


def _tree_questions(rng: random.Random, root: str, branches: dict[str, list[str]]) -> list[Question]:
    out = [ask(rng, "tree_root", "Who is at the top?|Which name is at the top of the tree?", root)]
    out.append(
        ask(rng, "count", "How many names are shown?", str(1 + len(branches) + sum(map(len, branches.values()))))
    )
    for parent, leaves in branches.items():
        out.append(ask(rng, "tree_children", "How many names are below {p}?", str(len(leaves)), p=parent))
        out.append(ask(rng, "tree_names", "Who is directly below {p}?", ", ".join(leaves), p=parent))
        out.append(ask(rng, "tree_parent", "Who is directly above {c}?", parent, c=rng.choice(leaves)))
    first, second = rng.sample(list(branches.values()), 2)
    other = rng.choice(second if rng.random() < 0.5 else first)
    text = "Are {x} and {y} below the same name?"
    pair = [leaf for leaf in first if leaf != other]
    if pair:
        out.append(ask(rng, "tree_same", text, "Yes" if other in first else "No", x=pair[0], y=other))
    return out


def roads(rng: random.Random, split: Split) -> Rendered:
    """A map of five to seven towns and the roads between them with their lengths, north at the top."""
    rng = sheet.stream(rng, f"roads {split}")
    while True:
        size = rng.choice(((448, 448), (448, 560), (560, 448)))
        page = Sheet(size, sheet.pick_theme(rng), rng)
        font = pick_font(rng, split, rng.randint(13, 15))
        towns = _towns(rng, split, size, font)
        if towns and len(edges := _edges(rng, towns)) >= len(towns) - 1:
            break
    labels = {(a, b): str(rng.randint(2, 98)) for a, b in edges}
    for (a, b), text in labels.items():
        page.draw.line((towns[a].x, towns[a].y, towns[b].x, towns[b].y), page.theme.rule, 3)
        x, y = (towns[a].x + towns[b].x) / 2, (towns[a].y + towns[b].y) / 2
        half = ink.width(font, text) / 2 + 3
        page.draw.rectangle((x - half, y - 9, x + half, y + 9), fill=page.theme.paper)
        page.put(x, y - ink.height(font) / 2, text, font, page.theme.accent, "centre")
    for town in towns:
        if split == "train":
            page.draw.ellipse((town.x - 6, town.y - 6, town.x + 6, town.y + 6), fill=page.theme.accent)
        else:
            page.draw.rectangle((town.x - 6, town.y - 6, town.x + 6, town.y + 6), fill=page.theme.accent)
        half, top = ink.width(font, town.text) / 2 + 2, town.y - 12 - ink.height(font)
        page.draw.rectangle((town.x - half, top, town.x + half, town.y - 10), fill=page.theme.paper)
        page.put(town.x, top, town.text, font, align="centre")
    return _finish(page, "roads", _road_questions(rng, towns, labels))


def _towns(rng: random.Random, split: Split, size: tuple[int, int], font: Font) -> list[Node]:
    """Towns in different cells of a grid, so that no two names touch; none where a name is too wide."""
    columns, rows = 3, 3
    spots = rng.sample([(c, r) for c in range(columns) for r in range(rows)], rng.randint(5, 7))
    names: dict[str, None] = {}
    while len(names) < len(spots):
        names[values.city(rng, split)] = None
    cell = (size[0] / columns, size[1] / rows)
    if max(ink.width(font, name) for name in names) > cell[0] - 34:
        return []
    return [
        Node(name, (c + rng.uniform(0.46, 0.54)) * cell[0], (r + rng.uniform(0.41, 0.69)) * cell[1])
        for name, (c, r) in zip(names, spots, strict=True)
    ]


def _edges(rng: random.Random, towns: list[Node]) -> list[tuple[int, int]]:
    """Roads that pass no third town, nor each other's middle; shorter ones first."""
    pairs = [(a, b) for a in range(len(towns)) for b in range(a)]
    pairs.sort(key=lambda pair: _far(towns[pair[0]], towns[pair[1]]))
    kept: list[tuple[int, int]] = []
    for a, b in pairs:
        clear = all(_off(towns[a], towns[b], towns[c]) > 40 for c in range(len(towns)) if c not in (a, b))
        middle = Node("", (towns[a].x + towns[b].x) / 2, (towns[a].y + towns[b].y) / 2)
        apart = all(_off(towns[c], towns[d], middle) > 24 for c, d in kept)
        if clear and apart and len(kept) < len(towns) + 1 and not any(_cross(towns, (a, b), other) for other in kept):
            kept.append((a, b))
    return kept


def _far(a: Node, b: Node) -> float:
    return math.hypot(a.x - b.x, a.y - b.y)


def _off(a: Node, b: Node, c: Node) -> float:
    """Distance of c from the line between a and b."""
    dx, dy = b.x - a.x, b.y - a.y
    share = max(0.0, min(1.0, ((c.x - a.x) * dx + (c.y - a.y) * dy) / (dx * dx + dy * dy)))
    return math.hypot(a.x + share * dx - c.x, a.y + share * dy - c.y)


def _cross(towns: list[Node], one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two roads cross other than in a town of both."""
    if set(one) & set(other):
        return False
    a, b, c, d = (towns[i] for i in (*one, *other))

    def side(p: Node, q: Node, r: Node) -> bool:
        return (q.x - p.x) * (r.y - p.y) > (q.y - p.y) * (r.x - p.x)

    return side(a, b, c) != side(a, b, d) and side(c, d, a) != side(c, d, b)


def _road_questions(rng: random.Random, towns: list[Node], labels: dict[tuple[int, int], str]) -> list[Question]:
    out = []
    for (a, b), text in labels.items():
        names = {"a": towns[a].text, "b": towns[b].text}
        out.append(ask(rng, "road_length", "How long is the road from {a} to {b}?|What is the number on the road "
                       "between {a} and {b}?", text, **names))  # fmt: skip
    for i, town in enumerate(towns):
        ends = [b if a == i else a for a, b in labels if i in (a, b)]
        out.append(ask(rng, "road_count", "How many roads lead to {t}?", str(len(ends)), t=town.text))
    pairs = [(a, b) for a in range(len(towns)) for b in range(a)]
    a, b = rng.choice(pairs)
    names = {"a": towns[a].text, "b": towns[b].text}
    out.append(ask(rng, "road_there", "Is there a road from {a} to {b}?", "Yes" if (a, b) in labels else "No", **names))
    if (a, b) not in labels:
        out.append(ask(rng, "absent", "How long is the road from {a} to {b}?", ABSENT, **names))
    for way, (x, y) in (("north", (0, 1)), ("south", (0, -1)), ("west", (1, 0)), ("east", (-1, 0))):
        ranked = sorted((town.x * x + town.y * y, town.text) for town in towns)
        if ranked[1][0] - ranked[0][0] > 20:
            out.append(ask(rng, "map_place", "Which town is farthest {w}?", ranked[0][1], w=way))
    return out


def _finish(page: Sheet, kind: str, questions: list[Question]) -> Rendered:
    """The page worn, with 4 to 6 of the questions; there is no reading order that all would agree on."""
    return page.finish(kind, choose(page.rng, questions, page.rng.randint(4, 6)))


def _box(page: Sheet, node: Node, font: Font, half: float, style: str) -> None:
    """A box of the style with the node's text in its middle; a decision stands in a hexagon."""
    high = ink.height(font) / 2 + 8
    box = (node.x - half, node.y - high, node.x + half, node.y + high)
    theme, edge = page.theme, page.theme.ink
    if node.asks:
        x0, y0, x1, y1 = box
        page.draw.polygon([(x0 - 8, node.y), (x0 + 6, y0), (x1 - 6, y0), (x1 + 8, node.y), (x1 - 6, y1), (x0 + 6, y1)],
                          fill=theme.paper, outline=theme.accent)  # fmt: skip
    elif style == "shade":
        page.draw.rectangle((box[0] + 3, box[1] + 3, box[2] + 3, box[3] + 3), fill=theme.rule)
        page.draw.rectangle(box, fill=theme.paper, outline=edge)
    else:
        radius = 8 if style == "round" else 0
        page.draw.rounded_rectangle(box, radius, fill=theme.tint, outline=edge, width=2 if style == "double" else 1)
        if style == "double":
            page.draw.rectangle((box[0] + 4, box[1] + 4, box[2] - 4, box[3] - 4), outline=edge)
    page.put(node.x, node.y - ink.height(font) / 2, node.text, font, align="centre")


def _arrow(page: Sheet, start: tuple[float, float], end: tuple[float, float]) -> None:
    """A line with a head at its end."""
    page.draw.line((*start, *end), page.theme.ink, 2)
    turn = math.atan2(end[1] - start[1], end[0] - start[0])
    wings = [(end[0] - 9 * math.cos(turn + d), end[1] - 9 * math.sin(turn + d)) for d in (-0.4, 0.4)]
    page.draw.polygon([end, *wings], fill=page.theme.ink)


def _elbow(page: Sheet, above: Node, below: Node) -> None:
    """A line down, across and down."""
    middle = (above.y + below.y) / 2
    page.draw.line((above.x, above.y, above.x, middle, below.x, middle, below.x, below.y), page.theme.rule, 2)
