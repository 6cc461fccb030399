"""Draws the demo's pictures and questions, so that anyone can see where they come from.

    CHOICES (module, seed) ──render(held-out split)──> demo/pictures/*.png + demo/questions.json

The held-out split has fonts, layouts, names and drawings that no model was trained on. Needs the ``train`` extra and
scripts/install-render-packages.sh. The results are kept in the repository: this runs only to change them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

from pumice.data.render import charts, forms, objects, receipts, tables
from pumice.data.render.page import Question, Rendered

HERE = Path(__file__).parent
QUESTIONS = 3
CHOICES = {
    "receipt": (receipts, 23),
    "form": (forms, 30),
    "table": (tables, 22),
    "chart": (charts, 8),
    "cherry": (objects, 43),
    "banana": (objects, 34),
}


def main() -> None:
    """Write every picture and the list of questions."""
    (HERE / "pictures").mkdir(exist_ok=True)
    rows = []
    for name, (module, seed) in CHOICES.items():
        rendered = draw_objects(seed) if module is objects else module.render(random.Random(seed), "heldout")
        rendered.image.save(HERE / "pictures" / f"{name}.png", optimize=True)
        for question in choose(rendered.questions):
            row = {"picture": f"{name}.png", "question": question.text, "answer": question.answer}
            rows.append({**row, "task": question.task})
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (HERE / "questions.json").write_text(f"[\n{lines}\n]\n", encoding="utf8")


def draw_objects(seed: int) -> Rendered:
    """A picture of things whose drawings may be passed on: the stamps of Tux Paint are under the GPL."""
    scene, rendered = objects.describe(random.Random(seed), "heldout")
    sources = [thing.asset.source for thing in scene.things if thing.asset]
    barred = [source for source in sources if source.startswith("tuxpaint:")]
    if barred:
        raise SystemExit(f"objects, seed {seed}: {', '.join(barred)} can't be shipped; choose another seed")
    return rendered


def choose(questions: Sequence[Question]) -> list[Question]:
    """The first question of each task, then others, in the order of the renderer; whole pages are left out."""
    short = [question for question in questions if question.task != "read"]
    first = list({question.task: question for question in reversed(short)}.values())[::-1]
    others = [question for question in short if question not in first]
    chosen = [*first, *others][:QUESTIONS]
    return sorted(chosen, key=short.index)


if __name__ == "__main__":
    main()
