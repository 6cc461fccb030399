"""Whether evidence lies where an answer is drawn: rendered pages, whose characters have known places.

    python benchmarks/evidence.py -n 40 [--split heldout] [--seed 0] [--kinds receipts,forms,tables] [--out FILE.md]

Asked are questions whose answer is drawn once on the page. A hit: the centre of the strongest region lies in the
answer's box, widened by half a visual token on each side. Regions of every method come from `pumice.evidence.join` with
the same settings. Two tests of another kind ask what an answer hangs on: how much less likely the model finds its own
answer when the strongest region is painted over, and when as large a region elsewhere is.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

import pumice
from pumice.assistant import Assistant
from pumice.data.batch import pack
from pumice.data.render.page import Question, Rendered
from pumice.data.rendered import render
from pumice.encode import encode
from pumice.evidence import MOST, SHARE, Region, answer_tokens, answered, attention_weights, heat, join, planes
from pumice.messages import question_messages, to_sample
from pumice.model.attention import Kind, attend
from pumice.types import IMAGE, Features, Glyph, Layout

Box = tuple[float, float, float, float]
HEADS = ((23, 2), (23, 7), (23, 0), (21, 8), (18, 6), (20, 6), (22, 7), (20, 3))
"""(layer, head) of pocket that look most at the answer's box, of pages of the training split."""


@dataclass
class Page:
    """One question's outcome: for each method (hit, IoU, weight inside), and what painting over costs in nats."""

    kind: str
    question: str
    drawn: str
    given: str
    right: bool
    scores: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    elsewhere: bool = False
    painted: float = 0.0
    painted_elsewhere: float = 0.0


class Recorder:
    """As `pumice.evidence`'s, but keeps each layer's weights (heads, rows, T) in the graph."""

    def __init__(self, rows: slice) -> None:
        self.rows = rows
        self.weights: list[Tensor] = []

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, kind: Kind) -> Tensor:
        out = attend(q, k, v, kind)
        weights = attention_weights(q[:, self.rows], k, self.rows.start, kind)
        if weights.requires_grad:
            weights.retain_grad()
        self.weights.append(weights)
        own = weights @ v.repeat_interleave(q.shape[0] // v.shape[0], 0)
        return torch.cat([out[:, : self.rows.start], own], dim=1)


def signals(assistant: Assistant, features: Features, answer: slice) -> dict[str, Tensor]:
    """Scores (tokens,) of the visual tokens by every method: one forward and one backward pass."""
    model, rows = assistant.model, slice(answer.start - 1, answer.stop - 1)
    batch = pack([cut(features, rows.stop)])
    with torch.no_grad():
        tokens = model.visual(model.tower(batch.tiles), batch.layouts)
    tokens.requires_grad_(True)
    with torch.enable_grad():
        recorder = Recorder(rows)
        hidden = model.lm.model(
            inputs_embeds=model.embed(batch, tokens)[None], position_ids=batch.positions[None], use_cache=False,
            cache=recorder,
        ).last_hidden_state[0]  # fmt: skip
        chosen = features.ids[answer]
        model.head(hidden[rows]).float().log_softmax(-1).gather(1, chosen[:, None]).sum().backward()
    assert tokens.grad is not None
    places = (batch.ids == IMAGE).nonzero().squeeze(1)
    weights = torch.stack([one.detach()[..., places] for one in recorder.weights])  # (layers, heads, rows, tokens)
    slopes = torch.stack([one.grad[..., places] for one in recorder.weights if one.grad is not None])
    product = (tokens.detach() * tokens.grad).sum(-1)
    return {
        "attention, all heads (shipped)": weights.mean((0, 1, 2)),
        "attention, 8 chosen heads": torch.stack([weights[layer, head] for layer, head in HEADS]).mean((0, 1)),
        "attention, last prompt token": weights[:, :, 0].mean((0, 1)),
        "attention x gradient": (weights * slopes).clamp(min=0).sum((0, 1, 2)),
        "gradient x embedding, absolute": product.abs(),
        "gradient x embedding, positive": product.clamp(min=0),
        "gradient's length": tokens.grad.norm(dim=-1),
        "attention x gradient's length": weights.mean((0, 1, 2)) * tokens.grad.norm(dim=-1),
    }


def cut(features: Features, length: int) -> Features:
    """The first tokens of a sample; its pictures are among them."""
    ids, labels = features.ids[:length], features.labels[:length]
    return Features(ids, labels, features.tiles, features.layouts)


@torch.inference_mode()
def likelihood(assistant: Assistant, picture: Image.Image, question: str, answer: str) -> float:
    """Log-probability of an answer."""
    sample = answered(to_sample(question_messages(picture, question)), answer)
    features, span = encode(sample, assistant.processor), answer_tokens(sample, assistant.processor)
    hidden = assistant.model.hidden(pack([cut(features, span.stop - 1)]))[span.start - 1 :]
    return float(assistant.model.head(hidden).log_softmax(-1).gather(1, features.ids[span][:, None]).sum())


def occurrences(glyphs: tuple[Glyph, ...], text: str) -> list[Box]:
    """Boxes (x0, y0, x1, y1) in pixels of the places where a text is drawn."""
    wanted, drawn = "".join(text.split()), [glyph for glyph in glyphs if len(glyph.char) == 1]
    line = "".join(glyph.char for glyph in drawn)
    starts = [i for i in range(len(line)) if wanted and line.startswith(wanted, i)]
    return [around(drawn[i : i + len(wanted)]) for i in starts]


def around(glyphs: list[Glyph]) -> Box:
    _, left, top, right, bottom = zip(*glyphs, strict=True)
    return min(left), min(top), max(right), max(bottom)


def questions(options: argparse.Namespace) -> Iterator[tuple[Rendered, Question, Box]]:
    """A page each, with a question whose answer of three or more characters is drawn once."""
    mixture, found, index = dict.fromkeys(options.kinds.split(","), 1.0), 0, 0
    while found < options.n:
        page = render(mixture, options.seed, options.split, index)
        usable = [
            (question, places[0])
            for question in page.questions
            if question.task != "read" and len(question.answer) >= 3
            for places in [occurrences(page.glyphs, question.answer)]
            if len(places) == 1
        ]
        if usable:
            found += 1
            yield page, *random.Random(index).choice(usable)
        index += 1


def fractions(box: Box, layout: Layout, wider: bool = False) -> Box:
    """A box in pixels as fractions of the picture, ``wider`` by half a visual token on each side."""
    (w, h), pitch = layout.size, layout.tile / layout.side
    dx, dy = (pitch / 2 / length if wider else 0.0 for length in layout.resized)
    return box[0] / w - dx, box[1] / h - dy, box[2] / w + dx, box[3] / h + dy


def covering(layout: Layout, box: Box) -> Box:
    """The smallest box of whole visual tokens around a box: what a perfect method would give."""
    plane = planes(layout)[0]
    left, right = (max(x for x in plane.xs if x <= box[0]), min(x for x in plane.xs if x >= box[2]))
    top, bottom = (max(y for y in plane.ys if y <= box[1]), min(y for y in plane.ys if y >= box[3]))
    return left, top, right, bottom


def inside(region: Box, box: Box) -> bool:
    x, y = (region[0] + region[2]) / 2, (region[1] + region[3]) / 2
    return box[0] <= x <= box[2] and box[1] <= y <= box[3]


def overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    both = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return both / (area(a) + area(b) - both)


def area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def moved(box: Box, rng: random.Random, avoid: Box | None = None) -> Box:
    """A box of the same size elsewhere on the page, away from ``avoid`` where a hundred throws find such a place."""
    w, h = box[2] - box[0], box[3] - box[1]
    corners = [(rng.uniform(0, 1 - w), rng.uniform(0, 1 - h)) for _ in range(100)]
    boxes = [(x, y, x + w, y + h) for x, y in corners]
    return next((made for made in boxes if avoid is None or overlap(made, avoid) == 0), boxes[0])


def painted(picture: Image.Image, box: Box) -> Image.Image:
    """The picture with a box in its commonest colour."""
    (w, h), copy = picture.size, picture.copy()
    paper = max(picture.getcolors(w * h) or [], key=lambda one: one[0])[1]
    ImageDraw.Draw(copy).rectangle((box[0] * w, box[1] * h, box[2] * w, box[3] * h), fill=paper)
    return copy


def look(assistant: Assistant, page: Rendered, question: Question, drawn: Box) -> Page | None:
    """Ask one question and find the evidence of the answer that came; None where there came none."""
    given = assistant.ask(page.image, question.text).text.strip()
    if not given:
        return None
    sample = answered(to_sample(question_messages(page.image, question.text)), given)
    features, span = encode(sample, assistant.processor), answer_tokens(sample, assistant.processor)
    made = Page(page.kind, question.text, question.answer, given, given == question.answer)
    layout, rng = features.layouts[0], random.Random(question.text)
    truth, wide = fractions(drawn, layout), fractions(drawn, layout, wider=True)
    strongest: Region | None = None
    for name, scores in signals(assistant, features, span).items():
        found = join([(0, *one) for one in heat(layout, scores)], SHARE, MOST)
        share = sum(region.weight for region in found if inside(region.box, wide))
        made.scores[name] = (inside(found[0].box, wide), overlap(found[0].box, truth), share) if found else (0, 0, 0)
        strongest = strongest or found[0]
    assert strongest is not None
    w, h = strongest.box[2] - strongest.box[0], strongest.box[3] - strongest.box[1]
    made.scores["the visual tokens under the answer"] = (True, overlap(covering(layout, truth), truth), 1.0)
    guesses = {"the page's centre": (0.5 - w / 2, 0.5 - h / 2, 0.5 + w / 2, 0.5 + h / 2)}
    guesses["a random region"] = moved(strongest.box, rng)
    for name, box in guesses.items():
        hit = inside(box, wide)
        made.scores[name] = (hit, overlap(box, truth), hit)
    if not made.right and len(places := occurrences(page.glyphs, given)) == 1:
        made.elsewhere = inside(strongest.box, fractions(places[0], layout, wider=True))
    whole = likelihood(assistant, page.image, question.text, given)
    other = moved(strongest.box, rng, strongest.box)
    made.painted = whole - likelihood(assistant, painted(page.image, strongest.box), question.text, given)
    made.painted_elsewhere = whole - likelihood(assistant, painted(page.image, other), question.text, given)
    return made


def table(pages: list[Page]) -> str:
    """The figures as Markdown."""
    right, wrong = [p for p in pages if p.right], [p for p in pages if not p.right]
    lines = [
        f"| method | {len(right)} right answers: hit | IoU | weight inside "
        f"| {len(wrong)} wrong: hit | IoU | weight inside |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in pages[0].scores:
        lines.append(f"| {name} | " + " | ".join(_mean(group, name) for group in (right, wrong)) + " |")
    lines += ["", "| answers | median loss, region painted over | median loss, another region |", "|---|---|---|"]
    for label, group in (("right", right), ("wrong", wrong)):
        losses = [[p.painted for p in group], [p.painted_elsewhere for p in group]]
        lines.append(
            f"| {label} | "
            + " | ".join(f"{round(statistics.median(s), 2) + 0.0:.2f}" if s else "-" for s in losses)
            + " |"
        )
    kinds = sorted({p.kind for p in pages})
    shipped = next(iter(pages[0].scores))
    hits = {kind: [p.scores[shipped][0] for p in pages if p.kind == kind] for kind in kinds}
    lines += ["", "Hits by kind: " + ", ".join(f"{kind} {sum(hit):.0f} of {len(hit)}" for kind, hit in hits.items())]
    lines.append(f"Wrong answers whose region lies at the text that was given: {sum(p.elsewhere for p in wrong)}")
    return "\n".join(lines) + "\n"


def _mean(pages: list[Page], name: str) -> str:
    if not pages:
        return "- | - | -"
    hits, ious, shares = zip(*(page.scores[name] for page in pages), strict=True)
    return f"{100 * statistics.mean(hits):.0f}% | {statistics.mean(ious):.2f} | {statistics.mean(shares):.2f}"


def write(path: Path, pages: list[Page]) -> None:
    """The tables, and the pages' figures as JSON beside them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(table(pages))
    path.with_suffix(".json").write_text(json.dumps([asdict(page) for page in pages], indent=1) + "\n")


def main() -> None:
    """Ask, compare and print the tables; ``--out`` also writes them, page by page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=40, help="pages")
    parser.add_argument("--split", choices=("train", "heldout"), default="heldout")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default="receipts,forms,tables")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    assistant = pumice.load("pocket", dtype="float32")
    pages: list[Page] = []
    for page, question, box in questions(options):
        made = look(assistant, page, question, box)
        if made is None:
            continue
        pages.append(made)
        hit = "hit" if next(iter(made.scores.values()))[0] else "miss"
        print(f"{len(pages)} {made.kind}: {made.question} {made.drawn!r}, answered {made.given!r}: {hit}", flush=True)
        if options.out:
            write(options.out, pages)
    print(table(pages))


if __name__ == "__main__":
    main()
