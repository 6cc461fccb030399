"""Charts: bars, lines and pies with titles, axes, legends and, on about half of them, printed values.

rng, split ──> Numbers that can be told apart ──> Chart (numbers + look) ──plots──> Sheet ──> questions ──> Rendered
"""

from __future__ import annotations

import random

from pumice.data.render import facts, plots, sheet
from pumice.data.render.fonts import Split, pick_font
from pumice.data.render.page import Question, Rendered
from pumice.data.render.plots import Chart, Look
from pumice.data.render.sheet import Sheet, ask

LOOKS: dict[Split, tuple[Look, ...]] = {
    "train": (
        Look("bars", "solid", "axes"),
        Look("bars", "solid", "grid"),
        Look("bars", "outlined", "box"),
        Look("bars", "many", "axes"),
        Look("rows", "solid", "axes"),
        Look("rows", "outlined", "grid"),
        Look("rows", "many", "base"),
        Look("line", "dots", "axes"),
        Look("line", "dots", "grid"),
        Look("line", "plain", "box"),
        Look("pie", "solid", "below"),
        Look("pie", "outlined", "below"),
        Look("pie", "solid", "right"),
    ),
    "heldout": (
        Look("bars", "stems", "grid"),
        Look("bars", "hatched", "box", "left"),
        Look("rows", "stems", "axes", "left"),
        Look("rows", "hatched", "base"),
        Look("line", "squares", "grid", "left"),
        Look("line", "steps", "axes"),
        Look("pie", "ring", "below", "left"),
        Look("pie", "ring", "above"),
    ),
}
FLOOR = 0.3
"""Share of the axis under which a value without a label isn't asked for: it couldn't be read within 5%."""
GAP = 0.05
"""Share of the axis by which two values without labels must differ to be compared."""


def render(rng: random.Random, split: Split) -> Rendered:
    """One chart of 2 to 8 values, or of two series of them."""
    return describe(rng, split)[1]


def describe(rng: random.Random, split: Split) -> tuple[Chart, Rendered]:
    """The chart of ``render`` with its numbers, to ask for all of them at once or for one that isn't there."""
    rng = sheet.stream(rng, f"chart {split}")
    size = (224, 224) if rng.random() < 0.8 else rng.choice(((448, 224), (448, 448), (336, 224), (336, 336)))
    look = rng.choice(LOOKS[split])
    while True:
        chart = make_chart(rng, split, size, look)
        page = Sheet(size, sheet.pick_theme(rng, 0.05), rng)
        if chart is not None and plots.draw(page, chart):
            questions = questions_on(rng, chart) + _series_questions(rng, chart)
            if len(questions) >= 4:
                return chart, page.finish("chart", sheet.choose(rng, questions, rng.randint(4, 8)))


def make_chart(rng: random.Random, split: Split, size: tuple[int, int], look: Look) -> Chart | None:
    """A chart of the look, or None when the numbers that were drawn would make a poor one of that sort."""
    two = look.sort in ("bars", "line") and rng.random() < (0.5 if size[0] > 300 else 0.2)
    most = {"bars": 5, "rows": 7, "line": 6, "pie": 5}[look.sort] + (3 if size[0] > 300 and look.sort != "pie" else 0)
    numbers = facts.numbers(rng, split, rng.randint(2 if look.sort == "bars" else 3, most), 2 if two else 1)
    if look.sort == "line" and numbers.key not in ("year", "month", "day", "season") and rng.random() < 0.8:
        return None  # lines mostly go over time
    flat = [value for row in numbers.values for value in row]
    if min(flat) < 0 or max(flat) <= 0 or min(flat) < 0.03 * max(flat) or (two and len(numbers.columns) < 2):
        return None
    shares = tuple(round(100 * row[0] / sum(flat)) for row in numbers.values)
    if look.sort == "pie" and (min(shares) < 5 or numbers.key in ("year", "month", "day", "season")):
        return None
    px = rng.choice((11, 12, 12, 13, 13, 14, 14, 15, 16))
    font = pick_font(rng, split, px)
    title = numbers.title if rng.random() < 0.75 else ""
    return Chart(
        numbers,
        look,
        font,
        pick_font(rng, split, rng.randint(max(13, px), 18), "bold" if rng.random() < 0.7 else None),
        title,
        labels=not two and rng.random() < 0.55,
        caption=not two and look.sort != "pie" and rng.random() < 0.4,
        shares=shares if look.sort == "pie" else (),
        seed=rng.getrandbits(32),
    )


def questions_on(rng: random.Random, chart: Chart) -> list[Question]:
    """Questions about one series: highest and lowest, comparisons, values, how many, the title."""
    table, out = chart.numbers, []
    if chart.title:
        wording = "What is the title?|What is the title of the chart?|Title?|Read the title.|What is the chart called?"
        out.append(ask(rng, "chart_title", wording, chart.title))
    things = {"pie": "slices", "line": sheet.plural(table.key)}.get(chart.look.sort, "bars")
    if len(table.columns) == 1:
        names = {"n": things, "k": sheet.plural(table.key)}
        wording = "How many {n} are there?|How many {n}?|Count the {n}.|How many {k} are shown?"
        out.append(ask(rng, "chart_count", wording, str(len(table.labels)), **names))
        out += _extremes(rng, chart, 0) + _comparisons(rng, chart, 0) + _values(rng, chart, 0)
    if chart.labels:
        text = "\n".join(f"{label} {chart.show(i)}" for i, label in enumerate(table.labels))
        if len(text) <= sheet.READ_LIMIT and rng.random() < 0.5:
            out.append(
                ask(rng, "read", "List all values.|Read the data of the chart.|Write the chart as a list.", text)
            )
    return out


def _series_questions(rng: random.Random, chart: Chart) -> list[Question]:
    """Questions about two series, each of which names its series."""
    table, out = chart.numbers, []
    if len(table.columns) == 1:
        return out
    wording = "How many {k} are shown?|How many {k} are there?|Count the {k}."
    out.append(ask(rng, "chart_count", wording, str(len(table.labels)), k=sheet.plural(table.key)))
    for column in range(2):
        out += _extremes(rng, chart, column) + _comparisons(rng, chart, column)[:2] + _values(rng, chart, column)[:3]
    for row, label in enumerate(table.labels):
        a, b = rng.sample(range(2), 2)
        if chart.apart(table.values[row][a], table.values[row][b], GAP):
            higher = table.columns[a if table.values[row][a] > table.values[row][b] else b]
            wording = "Which is higher for {x}, {a} or {b}?|{x}: which is higher, {a} or {b}?"
            out.append(ask(rng, "chart_compare", wording, higher, x=label, a=table.columns[a], b=table.columns[b]))
    return out


def _extremes(rng: random.Random, chart: Chart, column: int) -> list[Question]:
    """The highest and the lowest row, where they stand out."""
    table, out = chart.numbers, []
    order = sorted(range(len(table.labels)), key=lambda i: table.values[i][column])
    pie = chart.look.sort == "pie"
    words = ("largest", "smallest") if pie else ("highest", "lowest")
    for word, best, second in ((words[0], order[-1], order[-2]), (words[1], order[0], order[1])):
        if chart.apart(table.values[best][column], table.values[second][column], GAP):
            wording = "Which {k} is the {w}?|Which {k} is {w}?|Which {k} has the {w} value?|{w} {k}?"
            if len(table.columns) > 1 or chart.measured:
                wording = "Which {k} has the {w} {m}?|Which {k} has {w} {m}?|{m}: which {k} is {w}?"
            names = {"k": table.key, "w": word, "m": table.columns[column]}
            question = ask(rng, "chart_extreme", wording, table.labels[best], **names)
            out.append(Question(question.text[0].upper() + question.text[1:], question.answer, question.task))
    return out


def _comparisons(rng: random.Random, chart: Chart, column: int) -> list[Question]:
    """Pairs of rows: yes or no, or which; the true answer is as often the first as the second."""
    table, out = chart.numbers, []
    pairs = [rng.sample(range(len(table.labels)), 2) for _ in range(4)]
    word = "larger" if chart.look.sort == "pie" else "higher"
    series = f" for {table.columns[column]}" if len(table.columns) > 1 else ""
    for a, b in pairs:
        first, second = table.values[a][column], table.values[b][column]
        if not chart.apart(first, second, GAP):
            continue
        names = {"a": table.labels[a], "b": table.labels[b], "w": word, "s": series}
        if rng.random() < 0.5:
            wording = (
                "Is {a} {w} than {b}{s}?|Does {a} have a {w} value than {b}{s}?|Is {a} {w} than {b}{s}, yes or no?"
            )
            out.append(ask(rng, "chart_compare", wording, "Yes" if first > second else "No", **names))
        else:
            wording = "Which is {w}{s}, {a} or {b}?|{a} or {b}: which is {w}{s}?"
            out.append(ask(rng, "chart_compare", wording, names["a" if first > second else "b"], **names))
    return out


def _values(rng: random.Random, chart: Chart, column: int) -> list[Question]:
    """Values that are printed, or that are high enough on the axis to be read from it."""
    table, out = chart.numbers, []
    for row in rng.sample(range(len(table.labels)), len(table.labels)):
        if chart.labels or (chart.look.sort != "pie" and table.values[row][column] >= FLOOR * chart.highest):
            wording = "What is the value of {a}?|Value of {a}?|{a}: how much?|How much is {a}?"
            if len(table.columns) > 1 or chart.measured:
                wording = "What is the {m} of {a}?|{m} of {a}?|{a}: how much {m}?|What is {m} for {a}?"
            if chart.look.sort == "pie":
                wording = "What is the share of {a}?|Share of {a}?|How many percent is {a}?|What percentage is {a}?"
            answer = chart.show(row) if chart.labels else f"{table.values[row][column]:.3g}"
            answer = answer if "e" not in answer else f"{float(answer):.0f}"
            names = {"a": table.labels[row], "m": table.columns[column]}
            out.append(ask(rng, "chart_value", wording, answer, **names))
    return out
