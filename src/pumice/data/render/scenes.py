"""Several pictures of things side by side in one question, and clips in which things move, come and go.

    rng, split ──draw classes, cut-outs, places──> pictures or frames ──> Posed (frames, fps, questions with chances)

Answers follow from what was drawn: which thing was added, which picture has another class, which way it went.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from pumice.data.render import objects
from pumice.data.render.assets import Library, library
from pumice.data.render.object_questions import PARTS, Asker, Scene, Thing, some
from pumice.data.render.objects import Box, Colour
from pumice.data.render.page import Question

SIZE = (224, 224)
FPS = 8
"""Frames a second of the clips. Whatever an answer rests on shows for a second, as models look once a second."""
PLACES = ("first", "second", "third", "fourth")


@dataclass(frozen=True)
class Posed:
    """Questions about ``frames`` (RGB): the pictures, none at all, or with ``fps`` above 0 a video's frames.

    ``asked`` are (question, share that guessing among its choices gets, or None). ``reading`` is the text in a single
    picture, where known.
    """

    frames: tuple[Image.Image, ...]
    asked: tuple[tuple[Question, float | None], ...]
    fps: int = 0
    reading: str = ""


def difference(rng: random.Random, split: str) -> Posed:
    """Two pictures; the second has one more thing, and in half of them all things lie elsewhere."""
    store, number = library(), rng.choice((2, 3))
    names = objects.apart(rng, store, split, number + 1)
    models = [objects.choose(rng, store, split, name) for name in names]
    cells = objects.grid(SIZE, 2, 2)
    before = rng.sample(cells, number)
    after = rng.sample(cells, number) if rng.random() < 0.5 else before
    after = [*after, rng.choice([cell for cell in cells if cell not in after])]
    things = [objects.fit(rng, model, cell, (0.7, 0.95)) for model, cell in zip(models, before, strict=False)]
    if after[:-1] == before:
        later = [*things, objects.fit(rng, models[-1], after[-1], (0.7, 0.95))]
    else:
        later = [objects.fit(rng, model, cell, (0.7, 0.95)) for model, cell in zip(models, after, strict=True)]
    ground = objects.background(rng, SIZE, [model.mean for model in models])
    text = rng.choice(
        ("Which object is only in the second picture?", "What is in the second picture but not in the first?")
    )
    question = Question(text, names[-1], "difference")
    return Posed((lay(ground, store, things), lay(ground, store, later)), ((question, 1 / (number + 1)),))


def odd_one_out(rng: random.Random, split: str) -> Posed:
    """Three or four pictures of one thing each; all but one show the same class."""
    store, number = library(), rng.choice((3, 4))
    same, odd = objects.apart(rng, store, split, 2)
    place = rng.randrange(number)
    pictures = [_single(rng, store, split, odd if i == place else same) for i in range(number)]
    choices = f"{', '.join(PLACES[: number - 1])} or {PLACES[number - 1]}"
    text = rng.choice(("Which picture shows something else", "Which picture is the odd one out"))
    return Posed(tuple(pictures), ((Question(f"{text}: {choices}?", PLACES[place], "odd_one_out"), 1 / number),))


def order(rng: random.Random, split: str) -> Posed:
    """Two pictures of one thing each, and which of them shows a named one."""
    store, place = library(), rng.randrange(2)
    names = objects.apart(rng, store, split, 2)
    pictures = [_single(rng, store, split, name) for name in names]
    it = some(names[place], store.kinds[names[place]].grammar)
    text = f"Which picture shows {it}: first or second?"
    return Posed(tuple(pictures), ((Question(text, PLACES[place], "order"), 0.5),))


def presence(rng: random.Random, split: str) -> Posed:
    """One picture of 1 to 3 things and a pair of questions: something that is there, and something that isn't."""
    store = library()
    while True:
        scene = rng.choice((objects.compose_one, objects.compose_few))(rng, store, split)
        here = [thing.name for thing in scene.things]
        if clear := [name for name in here if name not in PARTS]:
            break
    absent = Asker(rng, scene, store.kinds, store.names("train")).absent(here)
    pairs = ((rng.choice(clear), "yes"), (rng.choice(absent), "no"))
    asked = []
    for name, answer in pairs:
        grammar = store.kinds[name].grammar
        verb = "Are" if grammar == "plural" else "Is"
        asked.append((Question(f"{verb} there {some(name, grammar)} in the picture?", answer, "presence"), 0.5))
    return Posed((objects.paint(rng, store, scene),), tuple(asked))


def direction(rng: random.Random, split: str) -> Posed:
    """Four seconds of one thing, a drawing or a shape, going straight across a plain ground."""
    store, way = library(), rng.choice(("left", "right", "up", "down"))
    thing, name = mover(rng, store, split)
    w, h = thing.box[2] - thing.box[0], thing.box[3] - thing.box[1]
    room = (SIZE[0] - w, SIZE[1] - h)
    start, end = rng.uniform(0.0, 0.15), rng.uniform(0.75, 1.0)
    across = rng.random()
    ground, layer = plain(rng, [mean_of(thing)]), layer_of(rng, store, thing)
    frames = []
    for i in range(4 * FPS):
        share = start + (end - start) * i / (4 * FPS - 1)
        share = 1 - share if way in ("left", "up") else share
        x, y = (share, across) if way in ("left", "right") else (across, share)
        frame = ground.copy()
        frame.paste(layer, (round(x * room[0]), round(y * room[1])), layer)
        frames.append(frame)
    question = Question(f"In which direction does the {name} move: left, right, up or down?", way, "direction")
    return Posed(tuple(frames), ((question, 0.25),), FPS)


def video_order(rng: random.Random, split: str) -> Posed:
    """Four seconds in which one thing appears and, a second later or more, another beside it."""
    store = library()
    names = objects.apart(rng, store, split, 2)
    cells = rng.sample(objects.grid(SIZE, 2, 2), 2)
    things = _placed(rng, store, split, names, cells)
    begins = (rng.randint(2, FPS), rng.randint(2 * FPS + 1, 3 * FPS))
    frames = frames_of(rng, store, things, [(begin, 4 * FPS) for begin in begins], 4 * FPS)
    one, other = names if rng.random() < 0.5 else names[::-1]
    question = Question(f"Which appears first: the {one} or the {other}?", names[0], "video_order")
    return Posed(frames, ((question, 0.5),), FPS)


def video_count(rng: random.Random, split: str) -> Posed:
    """Five seconds in which 1 to 4 different things appear, each for a second and one at a time."""
    store, number = library(), rng.randint(1, 4)
    names = objects.apart(rng, store, split, number)
    spans = []
    for slot in sorted(rng.sample(range(4), number)):
        begin = slot * (FPS + 2) + rng.randint(0, 1)
        spans.append((begin, begin + FPS))
    cells = [rng.choice(objects.grid(SIZE, 2, 2)) for _ in names]
    things = _placed(rng, store, split, names, cells)
    frames = frames_of(rng, store, things, spans, 5 * FPS)
    question = Question("How many different things appear in the video, one after another?", str(number), "video_count")
    return Posed(frames, ((question, 0.25),), FPS)


MAKERS: dict[str, Callable[[random.Random, str], Posed]] = {
    make.__name__: make for make in (difference, odd_one_out, order, presence, direction, video_order, video_count)
}
"""What is drawn here, by the task that it asks."""


def lay(ground: Image.Image, store: Library, things: Sequence[Thing]) -> Image.Image:
    """A copy of the ground with cut-outs on it."""
    image = ground.copy()
    for thing in things:
        if thing.asset is not None:
            _paste(image, objects.cut(store.picture(thing.asset), thing), thing.box)
    return image


def _paste(image: Image.Image, layer: Image.Image, box: Box) -> None:
    image.paste(layer, (round((box[0] + box[2] - layer.width) / 2), round((box[1] + box[3] - layer.height) / 2)), layer)


def _single(rng: random.Random, store: Library, split: str, name: str) -> Image.Image:
    thing = objects.fit(rng, objects.choose(rng, store, split, name), (0, 0, *SIZE), (0.5, 0.95))
    return objects.paint(rng, store, Scene("one", SIZE, "", (thing,)))


def _placed(rng: random.Random, store: Library, split: str, names: list[str], cells: list[Box]) -> list[Thing]:
    """One thing of each name in the cell of the same number."""
    models = [objects.choose(rng, store, split, name) for name in names]
    return [objects.fit(rng, model, cell, (0.7, 0.95)) for model, cell in zip(models, cells, strict=True)]


def mover(rng: random.Random, store: Library, split: str) -> tuple[Thing, str]:
    """Something a third of the picture in size, and what to call it."""
    cell = (0.0, 0.0, SIZE[0] / 2.6, SIZE[1] / 2.6)
    if rng.random() < 0.4:
        form, colour = rng.choice(objects.SHAPES), rng.choice(sorted(objects.PAINTS))
        return objects.fit_shape(rng, form, colour, cell), f"{colour} {form}"
    name = rng.choice([n for n in store.names(split) if not store.kinds[n].grammar])
    return objects.fit(rng, objects.choose(rng, store, split, name), cell, (0.7, 0.95)), name


def layer_of(rng: random.Random, store: Library, thing: Thing) -> Image.Image:
    return objects.draw_shape(rng, thing) if thing.asset is None else objects.cut(store.picture(thing.asset), thing)


def mean_of(thing: Thing) -> Colour:
    return thing.asset.mean if thing.asset else objects.PAINTS[thing.colour]


def plain(rng: random.Random, inks: list[Colour]) -> Image.Image:
    """One colour, the farthest of several from what lies on it."""
    tries = [objects.pick_colour(rng) for _ in range(8)]
    return Image.new("RGB", SIZE, max(tries, key=lambda colour: objects.contrast(colour, inks)))


def frames_of(
    rng: random.Random, store: Library, things: Sequence[Thing], spans: Sequence[tuple[int, int]], count: int
) -> tuple[Image.Image, ...]:
    """``count`` frames; each thing lies there from the first to before the last number of its span."""
    ground = plain(rng, [mean_of(thing) for thing in things])
    frames = []
    for i in range(count):
        here = [thing for thing, (begin, end) in zip(things, spans, strict=True) if begin <= i < end]
        frames.append(lay(ground, store, here))
    return tuple(frames)
