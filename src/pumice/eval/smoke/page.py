"""The smoke page: every answer about a few real photographs and scans, in full, the right one beside it. No score.

    shots() ──assistant──> Told* ──> terminal, JSON, HTML

Some 45 answers to questions of all kinds say whether a model is of any use on pictures that nobody drew for it; a share
of them would say nothing more.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pumice.eval.report import summary
from pumice.eval.report.page import STYLE, page, provenance_table, thumbnail
from pumice.eval.smoke.pictures import Shot, get, shots
from pumice.eval.suite.asking import Answers, Skipped, ask
from pumice.vision.media import decode, open_image

if TYPE_CHECKING:
    from PIL import Image

LIMIT = 128
"""Tokens of an answer."""
OWN_STYLE = """
section { display: grid; grid-template-columns: minmax(10rem, 21rem) 1fr; gap: 1.5rem; margin: 2rem 0; }
section img { width: 100%; border: 1px solid var(--rule); }
section td { white-space: pre-wrap; text-align: left; vertical-align: top; }
@media (max-width: 48rem) { section { grid-template-columns: 1fr; } }
"""


@dataclass(frozen=True)
class Told:
    """An answer to a question about a picture, beside the ``right`` one; ``failed`` says why there is none."""

    picture: str
    question: str
    right: str
    answer: str
    tokens: int
    visual_tokens: int
    ms: float
    failed: str = ""


def answers(assistant: Answers, progress: Callable[[int, int], None] = lambda done, total: None) -> list[Told]:
    """Ask everything, a picture at a time; ``progress`` is called with (questions done, questions in all).

    Raises:
        PumiceError: as `pictures.get`, or an assistant that answers too few or too many.
    """
    told: list[Told] = []
    total = sum(len(shot.asked) for shot in shots())
    for shot in shots():
        image = decode(open_image(get(shot)))
        replies = ask(assistant, [(image, question) for question, _ in shot.asked], LIMIT, len(shot.asked))
        for (question, right), reply in zip(shot.asked, replies, strict=True):
            why = reply.why if isinstance(reply, Skipped) else ""
            cost = reply.tokens, reply.visual_tokens, round(reply.ms, 1)
            told.append(Told(shot.name, question, right, reply.text, *cost, why))
        progress(len(told), total)
    return told


def to_text(told: Sequence[Told]) -> str:
    """All answers, a picture a paragraph."""
    lines = []
    for shot in shots():
        lines += ["", f"{shot.name} ({shot.credit})"]
        for one in (one for one in told if one.picture == shot.name):
            lines += [
                f"  {one.question}",
                f"    right:  {_indented(one.right)}",
                f"    answer: {_indented(_shown(one))}",
            ]
    return "\n".join(lines[1:])


def _indented(text: str) -> str:
    return text.replace("\n", "\n            ")


def _shown(one: Told) -> str:
    return f"(no answer: {one.failed})" if one.failed else one.answer or "(nothing)"


def to_json(told: Sequence[Told], about: dict[str, Any]) -> str:
    """Answers with what they cost, and what was run on what."""
    return json.dumps({"about": about, "answers": [asdict(one) for one in told]}, indent=1, ensure_ascii=False) + "\n"


def to_html(told: Sequence[Told], about: dict[str, Any]) -> str:
    """One page that loads nothing: each picture with its questions, right answers and answers."""
    parts = [
        f"<h1>Smoke page: {escape(about['model'])}</h1><pre>$ {escape(about['command'])}</pre>",
        f"<p>{len(told)} questions about {len(shots())} photographs and scans. Right answers were written by hand; "
        "other words may be as right. There is no score: too few questions for one.</p>",
    ]
    parts += [_section(shot, [one for one in told if one.picture == shot.name]) for shot in shots()]
    parts.append(f"<h2>Provenance</h2>{provenance_table(about)}")
    return page(f"Pumice smoke page: {about['model']}", STYLE + OWN_STYLE, "\n".join(parts))


def _section(shot: Shot, told: Sequence[Told]) -> str:
    image: Image.Image = decode(open_image(get(shot)))
    head = "".join(f'<th class="text" scope="col">{name}</th>' for name in ("question", "right", "answer"))
    rows = "".join(
        f"<tr><td>{escape(one.question)}</td><td>{escape(one.right)}</td><td>{escape(_shown(one))}</td></tr>\n"
        for one in told
    )
    return (
        f'<section><figure><img src="data:image/jpeg;base64,{thumbnail(image)}" alt="{escape(shot.name)}">'
        f"<figcaption>{escape(shot.credit)}</figcaption></figure>"
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></section>\n'
    )


def main(
    name: str, assistant: Answers, json_path: Path | None = None, html: Path | None = None, plain: object = None
) -> list[Told]:
    """Ask with a progress bar, print all answers, and write the JSON and HTML that are asked for.

    ``plain`` is the assistant itself, where ``assistant`` stands for it beside a journal.

    Raises:
        PumiceError: as `answers`.
    """
    for shot in shots():
        get(shot)  # what can't be fetched is said before the first question
    with summary.progress_bar() as step:
        told = answers(assistant, step)
    about = summary.run_facts(name, plain or assistant) | {"wheels": sorted({"==".join(s.wheel[:2]) for s in shots()})}
    print(to_text(told))
    if json_path:
        json_path.write_text(to_json(told, about), encoding="utf-8")
    if html:
        html.write_text(to_html(told, about), encoding="utf-8")
    return told
