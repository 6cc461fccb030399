"""What the page kinds share: colours, measured lines of text, and drawing questions without repeats.

theme + size ──> Sheet.put(line)* ──> Page (image, glyphs) and the transcript in reading order ──close──> Rendered
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from pumice.data.render.ink import Font, ink, width
from pumice.data.render.page import Colour, Page, Question, Rendered

Align = Literal["left", "right", "centre"]

READ_LIMIT = 160
"""Characters of the longest page that is asked for in full."""

READ = ("Read the page.", "Read all the text.", "What does the page say?", "Write down everything on the page.")
PAPERS = ((255, 255, 255), (252, 251, 247), (248, 248, 250), (246, 242, 232), (240, 246, 240), (238, 243, 250))
INKS = ((0, 0, 0), (20, 20, 24), (40, 40, 48), (24, 30, 70), (50, 34, 24), (16, 52, 40))
ACCENTS = ((24, 70, 140), (140, 30, 40), (20, 100, 70), (96, 44, 120), (150, 76, 10), (30, 30, 36), (10, 100, 120))


@dataclass(frozen=True)
class Theme:
    """Colours of one page. All text colours have at least 5:1 contrast on ``paper``; ``tint`` is a shade of paper."""

    paper: Colour
    ink: Colour
    accent: Colour
    tint: Colour
    rule: Colour


def pick_theme(rng: random.Random, dark: float = 0.06) -> Theme:
    """A light page, or with probability ``dark`` light ink on a dark page."""
    if rng.random() < dark:
        base = rng.choice(((22, 24, 30), (16, 32, 48), (36, 28, 40), (24, 40, 34)))
        return Theme(base, (236, 236, 232), (250, 214, 120), mix(base, (255, 255, 255), 0.12), (130, 134, 140))
    paper, ink, accent = rng.choice(PAPERS), rng.choice(INKS), rng.choice(ACCENTS)
    return Theme(paper, ink, accent, mix(paper, accent, 0.1), mix(paper, ink, rng.uniform(0.3, 0.7)))


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """``share`` of colour b in colour a."""
    return tuple(round(x + (y - x) * share) for x, y in zip(a, b, strict=True))  # pyright: ignore[reportReturnType]


class Sheet(Page):
    """A page that is written line by line in reading order, with lines placed by their ink."""

    def __init__(self, size: tuple[int, int], theme: Theme, rng: random.Random) -> None:
        super().__init__(size, theme.paper, rng)
        self.theme = theme
        self.width, self.height = size
        self.lines: list[str] = []
        self.boxes: list[tuple[float, float, float, float]] = []

    def text(self, xy: tuple[float, float], string: str, font: Font, fill: Colour) -> tuple[float, float, float, float]:
        """As ``Page.text``; the line's ink box is kept in ``boxes``."""
        self.boxes.append(super().text(xy, string, font, fill))
        return self.boxes[-1]

    def put(
        self,
        x: float,
        y: float,
        text: str,
        font: Font,
        fill: Colour | None = None,
        align: Align = "left",
        join: bool = False,
    ) -> None:
        """Write one line with the top of its tallest ink at ``y`` and its left, centre or right at ``x`` (pixels).

        ``join`` continues the last line of the transcript instead of starting a new one.
        """
        shift = {"left": 0.0, "centre": width(font, text) / 2, "right": float(width(font, text))}[align]
        left = round(x - shift) - min(ink(font).piece(text[0]).left, 0)
        self.text((left, round(y) - ink(font).top), text, font, fill or self.theme.ink)
        if join and self.lines:
            self.lines[-1] += f" {text}"
        else:
            self.lines.append(text)

    def close(self, kind: str, questions: Sequence[Question], most: int = 8) -> Rendered:
        """Wear the page and keep up to ``most`` of the questions; half of the short pages are also read in full."""
        chosen = choose(self.rng, questions, self.rng.randint(min(4, most), most))
        text = "\n".join(self.lines)
        if len(text) <= READ_LIMIT and self.rng.random() < 0.5:
            chosen.insert(self.rng.randint(0, len(chosen)), Question(self.rng.choice(READ), text, "read"))
        return self.finish(kind, chosen)


def choose(rng: random.Random, questions: Sequence[Question], count: int) -> list[Question]:
    """Up to ``count`` questions in random order; no two with the same wording."""
    order = list(questions)
    rng.shuffle(order)
    return list({question.text.lower(): question for question in reversed(order)}.values())[::-1][:count]


def ask(rng: random.Random, task: str, wordings: str, answer: str, **names: str) -> Question:
    """A question in one of the wordings (separated by |), with ``names`` filled in."""
    return Question(rng.choice(wordings.split("|")).format(**names), answer, task)


def attempt(make: Callable[[], str], fits: Callable[[str], bool], tries: int = 8) -> str | None:
    """The first of a few drawn values that fits, or None."""
    for _ in range(tries):
        if fits(value := make()):
            return value
    return None


def stream(rng: random.Random, name: str) -> random.Random:
    """A generator for one kind and split, or a seed would put the same numbers on the pages of both splits."""
    return random.Random(f"{name} {rng.getrandbits(64)}")


def smaller(px: int, used: float, room: float) -> int:
    """The font size to try next when ``used`` pixels were needed at ``px`` and there are ``room``."""
    return min(px - 1, int(px * room / used))


def plural(noun: str) -> str:
    """The plural of a regular English noun."""
    return f"{noun[:-1]}ies" if noun[-1] == "y" and noun[-2] not in "aeiou" else f"{noun}s"
