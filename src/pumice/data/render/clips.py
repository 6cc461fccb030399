"""More clips to train on: which moves faster, how often something appears, what comes last, a page that scrolls.

rng, split ──> things and pages ──frames at FPS──> Posed (frames, fps, questions with chances)

As in `scenes`, whatever an answer rests on shows for a second, as models look once a second.
"""

from __future__ import annotations

import random

from PIL import Image

from pumice.data.render import leaves, objects, scenes
from pumice.data.render.assets import library
from pumice.data.render.fonts import Split
from pumice.data.render.page import Question
from pumice.data.render.scenes import FPS, SIZE, Posed
from pumice.data.render.sheet import ask, stream

SECONDS = 4
FASTER = 2.5
"""How much farther the faster of two things goes, at least."""


def speed(rng: random.Random, split: Split) -> Posed:
    """Two things cross the picture one above the other, one of them faster."""
    store = library()
    one, first = scenes.mover(rng, store, split)
    two, second = scenes.mover(rng, store, split)
    while _alike(first, second):
        two, second = scenes.mover(rng, store, split)
    layers = [scenes.layer_of(rng, store, thing) for thing in (one, two)]
    ground = scenes.plain(rng, [scenes.mean_of(thing) for thing in (one, two)])
    fast = rng.randrange(2)
    long = rng.uniform(0.75, 0.95)
    ways = [long if i == fast else long / rng.uniform(FASTER, 4) for i in range(2)]
    starts = [rng.uniform(0, 1 - way) for way in ways]
    turned = [rng.random() < 0.5 for _ in range(2)]
    frames = []
    for number in range(SECONDS * FPS):
        frame = ground.copy()
        for i, layer in enumerate(layers):
            share = starts[i] + ways[i] * number / (SECONDS * FPS - 1)
            x = (1 - share if turned[i] else share) * (SIZE[0] - layer.width)
            y = SIZE[1] * (0.25 + 0.5 * i) - layer.height / 2
            frame.paste(layer, (round(x), round(y)), layer)
        frames.append(frame)
    names = [first, second]
    a, b = names if rng.random() < 0.5 else names[::-1]
    text = rng.choice(("Which moves faster: the {a} or the {b}?", "Which is faster: the {a} or the {b}?"))
    question = Question(text.format(a=a, b=b), names[fast], "speed")
    return Posed(tuple(frames), ((question, 0.5),), FPS)


def _alike(first: str, second: str) -> bool:
    """Whether two names of movers could be taken for each other."""
    kinds = library().kinds
    return first == second or (first in kinds and second in kinds[first].alike)


def times(rng: random.Random, split: Split) -> Posed:
    """Seven seconds in which one thing appears 1 to 4 times, each for a second; another may stand there all along."""
    store, number = library(), rng.randint(1, 4)
    single = [name for name in store.names(split) if not store.kinds[name].grammar]
    name, beside = objects.apart(rng, store, split, 2, single)
    cells = rng.sample(objects.grid(SIZE, 2, 2), 2)
    both = [objects.fit(rng, objects.choose(rng, store, split, kind), cell, (0.7, 0.95))
            for kind, cell in zip((name, beside), cells, strict=True)]  # fmt: skip
    begins = sorted(rng.sample(range(4), number))
    spans = [(slot * (FPS + 5) + 2, slot * (FPS + 5) + 2 + FPS) for slot in begins]
    length = 7 * FPS
    there = [(both[0], span) for span in spans]
    if rng.random() < 0.5:
        there.append((both[1], (0, length)))
    frames = scenes.frames_of(rng, store, [thing for thing, _ in there], [span for _, span in there], length)
    question = Question(f"How many times does the {name} appear?", str(number), "times")
    return Posed(frames, ((question, 0.25),), FPS)


def last(rng: random.Random, split: Split) -> Posed:
    """Three or four things, one after another: which came last, which at the beginning."""
    store, number = library(), rng.choice((3, 4))
    names = objects.apart(rng, store, split, number)
    things = [objects.fit(rng, objects.choose(rng, store, split, name), (0, 0, *SIZE), (0.5, 0.9)) for name in names]
    spans = [(i * (FPS + 1), (i + 1) * (FPS + 1)) for i in range(number)]
    frames = scenes.frames_of(rng, store, things, spans, number * (FPS + 1))
    asked = (
        Question("What is shown at the end of the video?", names[-1], "last"),
        Question("What is shown at the beginning of the video?", names[0], "beginning"),
        Question("Name what is shown, in order.", ", ".join(names), "sequence"),
    )
    return Posed(frames, tuple((question, None) for question in rng.sample(asked, 2)), FPS)


def scroll(rng: random.Random, split: Split) -> Posed:
    """A page taller than the picture that scrolls down or up in steps of a second, so that all of it can be read."""
    rng = stream(rng, f"scroll {split}")
    while True:
        look = leaves.pick_look(rng, split)
        leaf = leaves.compose(rng, split, rng.randint(8, 13))
        tall = leaves.height(leaf, look)
        if leaves.fits(leaf, look, (SIZE[0], tall)) and tall > 1.4 * SIZE[1]:
            break
    image = leaves.draw(rng, leaf, look, (SIZE[0], tall)).image
    stops = -(-(tall - SIZE[1]) // 90) + 1
    down = rng.random() < 0.7
    tops = [round((tall - SIZE[1]) * i / (stops - 1)) for i in range(stops)]
    tops = tops if down else tops[::-1]
    frames: list[Image.Image] = []
    for i, top in enumerate(tops):
        after = tops[min(i + 1, stops - 1)]
        for step in (*[0.0] * FPS, 0.25, 0.5, 0.75):
            y = round(top + (after - top) * step)
            frames.append(image.crop((0, y, SIZE[0], y + SIZE[1])))
    asked = [ask(rng, "title", "What is the title of the page?|Which title does the page have?", leaf.title)]
    for label, value in rng.sample(leaf.fields, 3):
        asked.append(ask(rng, "scroll_value", "What is the {n}?|Give the {n}.", value, n=leaves.noun(label)))
    text = "Does the page scroll up or down?|Which way does the page scroll: up or down?"
    asked.append(ask(rng, "scroll_way", text, "down" if down else "up"))
    ends = ("last", leaf.fields[-1]) if rng.random() < 0.5 else ("first", leaf.fields[0])
    asked.append(Question(f"Which field is the {ends[0]} on the page?", ends[1][0], "scroll_end"))
    return Posed(tuple(frames), tuple((question, None) for question in asked), FPS)
