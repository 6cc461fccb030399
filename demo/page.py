"""The demo's results as one page that needs nothing beside it: pictures are embedded, nothing is fetched."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from pumice.eval.metrics.strings import exact_match
from pumice.reader.reader import pixels
from pumice.vision.kinds import open_media
from pumice.vision.video import read_frames

if TYPE_CHECKING:
    from PIL import Image

    from pumice.assistant import Answer

WIDTH, FRAMES = 224, 4
"""Pixels of a picture on the page, or of a row of two; frames that are shown of a video."""


@dataclass(frozen=True)
class Result:
    """One question about files that are shown together, what the model said, and what is true."""

    files: tuple[Path, ...]
    question: str
    truth: str
    answer: Answer

    @property
    def name(self) -> str:
        """The files' names, of pictures without their ending."""
        return ", ".join(path.stem if path.suffix == ".png" else path.name for path in self.files)

    @property
    def right(self) -> bool:
        """Whether the answer is the true one, apart from case, spaces and a full stop at the end."""
        return exact_match(self.answer.text, self.truth)


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Pumice: what {model} answers</title>
<style>
:root {{ --ink: #1d2125; --soft: #5d6670; --paper: #fff; --ground: #f3f4f2; --line: #dcdfdb;
  --right: #14703a; --wrong: #b3261e; }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #e6e8ea; --soft: #9aa4ad; --paper: #1f2326; --ground: #15181a;
  --line: #343a3f; --right: #6fcf97; --wrong: #ff8a80; }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; max-width: 62rem; padding: 2.5rem 1.25rem; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }}
h1 {{ margin: 0 0 .25rem; font-size: 1.6rem; line-height: 1.25; }}
p {{ margin: 0 0 1.75rem; color: var(--soft); max-width: 44rem; }}
section {{ display: flex; flex-wrap: wrap; gap: 1.5rem; margin: 0 0 1.25rem; padding: 1.25rem; background: var(--paper);
  border: 1px solid var(--line); border-radius: 8px; }}
figure {{ display: flex; flex-wrap: wrap; gap: 4px; align-content: flex-start; width: 228px; margin: 0; }}
img {{ height: auto; border: 1px solid var(--line); border-radius: 4px; }}
figcaption {{ width: 100%; font-size: .8rem; color: var(--soft); }}
table {{ flex: 1 1 26rem; align-self: flex-start; border-collapse: collapse; }}
th, td {{ padding: .4rem .75rem .4rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }}
tr:last-child td {{ border-bottom: 0; }}
th {{ font-size: .8rem; font-weight: 500; color: var(--soft); }}
td.number, th.number {{ text-align: right; font-variant-numeric: tabular-nums; padding-right: 0; white-space: nowrap; }}
td.number {{ color: var(--soft); font-size: .85rem; padding-left: .75rem; }}
td.answer {{ overflow-wrap: anywhere; }}
.right .answer {{ color: var(--right); }}
.wrong .answer {{ color: var(--wrong); }}
.answer b {{ font-weight: 600; }}
.answer small {{ display: block; color: var(--soft); }}
</style>
</head>
<body>
<h1>{right} of {count} questions answered right</h1>
<p>Asked of the model <b>{model}</b>. What it is shown is drawn with fonts, layouts, names and drawings that it was not
trained on; two pictures at once and videos it was never trained on at all. An answer is right when it is the expected
one, apart from case, spaces and a full stop at the end. All answers together took {tokens} tokens and {seconds:.1f}
seconds.</p>
{sections}
</body>
</html>
"""
SECTION = """<section>
<figure>
{pictures}
<figcaption>{name}</figcaption>
</figure>
<table>
<tr><th>question</th><th>answer</th><th class="number">tokens</th><th class="number">ms</th></tr>
{rows}
</table>
</section>"""
PICTURE = """<img src="data:image/png;base64,{data}" alt="" style="width: {width}px">"""
ROW = """<tr class="{verdict}"><td>{question}</td><td class="answer"><b>{mark} {text}</b>{correction}</td>\
<td class="number">{tokens}</td><td class="number">{ms:.0f}</td></tr>"""


def build(results: list[Result], model: str) -> str:
    """The whole page as HTML. Everything that a model or a file said is escaped."""
    sections = [_section(files, list(group)) for files, group in groupby(results, lambda result: result.files)]
    return PAGE.format(
        model=escape(model),
        right=sum(result.right for result in results),
        count=len(results),
        tokens=sum(result.answer.tokens for result in results),
        seconds=milliseconds(results) / 1000,
        sections="\n".join(sections),
    )


def _section(files: tuple[Path, ...], results: list[Result]) -> str:
    shown = previews(files)
    width = WIDTH if len(shown) == 1 else WIDTH // 2 - 4
    pictures = "\n".join(PICTURE.format(data=base64.b64encode(data).decode(), width=width) for data in shown)
    return SECTION.format(pictures=pictures, name=escape(results[0].name), rows="\n".join(map(_row, results)))


def previews(files: Sequence[Path]) -> list[bytes]:
    """PNG files of what is shown: pictures as they are, each page of a PDF, some frames of a video."""
    found: list[bytes] = []
    for media in (media for path in files for media in open_media(path)):
        if media.kind == "video":
            every = range(0, media.frames, -(-media.frames // FRAMES))
            found += [_png(frame) for frame in read_frames(media, every)]
        else:
            found.append(_png(pixels(media)))
    return found


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _row(result: Result) -> str:
    correction = "" if result.right else f"<small>expected: {escape(result.truth)}</small>"
    return ROW.format(
        verdict="right" if result.right else "wrong",
        question=escape(result.question),
        mark="\N{CHECK MARK}" if result.right else "\N{MULTIPLICATION X}",
        text=escape(result.answer.text) or "(nothing)",
        correction=correction,
        tokens=result.answer.tokens,
        ms=result.answer.ms,
    )


def milliseconds(results: list[Result]) -> float:
    """Of all answers. Those about the same are given together, and the last one's time is that of all."""
    return sum(max(result.answer.ms for result in some) for _, some in groupby(results, key=lambda one: one.files))
