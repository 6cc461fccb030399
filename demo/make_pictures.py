"""Draws the demo's pictures, PDF, video and questions, so that anyone can see where they come from.

    CHOICES, SECOND, PAGE, FILM ──render(held-out split)──> demo/pictures/* + demo/questions.json

The held-out split has fonts, layouts, names and drawings that no model was trained on. Needs the ``train`` extra and
scripts/install-render-packages.sh. The results are kept in the repository: this runs only to change them.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from pathlib import Path

from pumice.data.render import charts, forms, objects, receipts, scenes, tables
from pumice.data.render.film import film
from pumice.data.render.page import Question, Rendered

HERE = Path(__file__).parent
PICTURES = HERE / "pictures"
QUESTIONS = 3
CHOICES = {
    "receipt": (receipts, 23),
    "form": (forms, 30),
    "table": (tables, 22),
    "chart": (charts, 8),
    "cherry": (objects, 43),
    "banana": (objects, 34),
}
SECOND, PAGE, FILM = 25, 26, 4
"""Seeds of a receipt beside the first, of one as PDF, and of a video of a shape, which is nobody's drawing."""
Row = dict[str, object]


def main() -> None:
    """Write every picture and the list of questions."""
    PICTURES.mkdir(exist_ok=True)
    rows: list[Row] = []
    for name, (module, seed) in CHOICES.items():
        rendered = draw_objects(seed) if module is objects else module.render(random.Random(seed), "heldout")
        rendered.image.save(PICTURES / f"{name}.png", optimize=True)
        rows += asked([f"{name}.png"], choose(rendered.questions))
    rows += [*two_receipts(), *pdf(), *video()]
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (HERE / "questions.json").write_text(f"[\n{lines}\n]\n", encoding="utf8")


def asked(files: Sequence[str], questions: Sequence[Question]) -> list[Row]:
    """Rows of questions.json: what is asked about files that are shown together."""
    return [{"files": list(files), "question": q.text, "answer": q.answer, "task": q.task} for q in questions]


def two_receipts() -> list[Row]:
    """Another receipt, to be compared with the first."""
    rendered = receipts.render(random.Random(SECOND), "heldout")
    rendered.image.save(PICTURES / "receipt-2.png", optimize=True)
    module, seed = CHOICES["receipt"]
    before, total = amount(module.render(random.Random(seed), "heldout")), amount(rendered)
    higher = "second" if float(total) > float(before) else "first"
    questions = [
        Question("What is the total of the second receipt?", total, "amount"),
        Question("Which receipt has the higher total, the first or the second?", higher, "compare"),
    ]
    return asked(["receipt.png", "receipt-2.png"], questions)


def amount(receipt: Rendered) -> str:
    """A receipt's highest amount, which is its total."""
    return max((question.answer for question in receipt.questions if question.task == "amount"), key=float)


def pdf() -> list[Row]:
    """A receipt as a page of a PDF, as a scanner writes it: at about 300 dpi, beyond which no page is enlarged."""
    rendered = receipts.render(random.Random(PAGE), "heldout")
    then = time.gmtime(0)  # not the time of drawing: the same picture gives the same file
    page = rendered.image.convert("RGB")
    page.save(PICTURES / "slip.pdf", resolution=305, quality=95, creationDate=then, modDate=then)
    return asked(["slip.pdf"], [question for question in rendered.questions if question.task in ("date", "amount")])


def video() -> list[Row]:
    """A shape that crosses a plain ground."""
    posed = scenes.direction(random.Random(FILM), "heldout")
    (PICTURES / "heart.mp4").write_bytes(film(posed.frames, posed.fps))
    (way, _) = posed.asked[0]
    colour, thing = way.text.removeprefix("In which direction does the ").split()[:2]
    return asked(["heart.mp4"], [Question(f"What colour is the {thing}?", colour, "colour"), way])


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
