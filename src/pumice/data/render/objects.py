"""Pictures of things: one object, a few side by side, several to count, or plain shapes, with short questions.

    rng ──compose──> Scene (what lies where, in which colour) ──paint──> image
                       └──────────────ask──────────────> questions, each with the one right answer

The scene is made first and holds all that a question may ask, so an answer can't disagree with the picture.
"""

from __future__ import annotations

import math
import random

from PIL import Image, ImageDraw

from pumice.data.render.assets import Asset, Library, library
from pumice.data.render.object_questions import Scene, Thing, ask
from pumice.data.render.page import Rendered
from pumice.types import Named

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]

SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross", "heart", "rectangle")

PAINTS: dict[str, Colour] = {
    "red": (215, 35, 35),
    "orange": (245, 130, 20),
    "yellow": (248, 222, 40),
    "green": (45, 160, 60),
    "blue": (40, 85, 215),
    "purple": (125, 50, 170),
    "pink": (245, 125, 185),
    "brown": (115, 70, 35),
    "black": (20, 20, 20),
    "white": (250, 250, 250),
    "gray": (135, 135, 135),
}


def render(rng: random.Random, split: str) -> Rendered:
    """One picture with 3 to 6 questions. ``split`` train | heldout says which source files may appear."""
    return describe(rng, split)[1]


def describe(rng: random.Random, split: str) -> tuple[Scene, Rendered]:
    """The picture of ``render`` with the scene behind it, to check answers against."""
    store = library()
    scene = compose(rng, store, split)
    image = paint(rng, store, scene)
    # Classes that were never held out are asked about too: "no" must not give away the split.
    questions = ask(rng, scene, store.kinds, store.names("train"))
    things = tuple(Named(tuple(filter(None, (thing.name, thing.colour))), *thing.box) for thing in scene.things)
    return scene, Rendered(image, (), questions, "objects", things)


def compose(rng: random.Random, store: Library, split: str) -> Scene:
    """Choose what lies where."""
    store.names(split)  # refuses an unknown split even where the scene is of shapes
    kind = rng.choices(("one", "few", "many", "shapes"), (35, 25, 22, 18))[0]
    if kind == "one":
        return compose_one(rng, store, split)
    if kind == "few":
        return compose_few(rng, store, split)
    return compose_many(rng, store, split) if kind == "many" else compose_shapes(rng)


def compose_one(rng: random.Random, store: Library, split: str) -> Scene:
    size = (224, 224) if rng.random() < 0.8 else rng.choice(((300, 200), (200, 300), (320, 240), (448, 224)))
    asset = choose(rng, store, split, rng.choice(store.names(split)))
    thing = fit(rng, asset, (0, 0, size[0], size[1]), (0.4, 0.95))
    return Scene("one", size, "", (thing,))


def compose_few(rng: random.Random, store: Library, split: str) -> Scene:
    number = rng.choice((2, 2, 3))
    order = rng.choice(("row", "row", "column"))
    size = (224, 224)
    if rng.random() < 0.3:
        size = rng.choice(((448, 224), (300, 200))) if order == "row" else rng.choice(((224, 320), (200, 300)))
    names = apart(rng, store, split, number)
    cells = grid(size, number, 1) if order == "row" else grid(size, 1, number)
    things = tuple(
        fit(rng, choose(rng, store, split, name), cell, (0.75, 0.97)) for name, cell in zip(names, cells, strict=True)
    )
    return Scene("few", size, order, things)


def compose_many(rng: random.Random, store: Library, split: str) -> Scene:
    size = (224, 224) if rng.random() < 0.8 else rng.choice(((300, 200), (320, 240), (448, 224)))
    number = rng.choice((1, 2, 3, 4, 5, 6, 2, 3, 4, 5, 6))
    countable = [name for name in store.names(split) if not store.kinds[name].grammar]
    names = apart(rng, store, split, 2, countable)
    first = rng.randint(1, number - 1) if number > 1 and rng.random() < 0.4 else number
    same = rng.random() < 0.75
    models = [choose(rng, store, split, name) for name in names]
    things = []
    for i, cell in enumerate(scatter(rng, size, number)):
        model = models[i >= first]
        asset = model if same else choose(rng, store, split, model.name)
        things.append(fit(rng, asset, cell, (0.65, 0.95)))
    return Scene("many", size, "", tuple(things))


def compose_shapes(rng: random.Random) -> Scene:
    size = (224, 224) if rng.random() < 0.8 else rng.choice(((300, 200), (320, 240), (448, 224)))
    number = rng.choice((1, 2, 2, 3, 4, 5, 6))
    order = rng.choice(("row", "column")) if number == 2 else ""
    # Few forms and colours to draw from, so that some repeat and counting them isn't always 1.
    forms, colours = rng.sample(SHAPES, rng.randint(1, 3)), rng.sample(sorted(PAINTS), rng.randint(1, 3))
    if "square" in forms and "rectangle" in forms:
        forms.remove("rectangle")  # a square is one too
    if len(forms) * len(colours) < 2:
        forms = rng.sample(SHAPES[:-1], 2)
    cells = scatter(rng, size, number)
    if order:
        cells = grid(size, 2, 1) if order == "row" else grid(size, 1, 2)
    pairs = [(form, colour) for form in forms for colour in colours]
    chosen = rng.sample(pairs, 2) if order else [rng.choice(pairs) for _ in cells]
    things = tuple(fit_shape(rng, *pair, cell) for pair, cell in zip(chosen, cells, strict=True))
    return Scene("shapes", size, order, things)


def choose(rng: random.Random, store: Library, split: str, name: str) -> Asset:
    return rng.choice(store.assets[split][name])


def apart(rng: random.Random, store: Library, split: str, number: int, names: list[str] | None = None) -> list[str]:
    """Names of classes that nobody would confuse with each other."""
    chosen: list[str] = []
    names = names or store.names(split)
    while len(chosen) < number:
        name = rng.choice(names)
        if name not in chosen and not any(name in store.kinds[other].alike for other in chosen):
            chosen.append(name)
    return chosen


def grid(size: tuple[int, int], cols: int, rows: int) -> list[Box]:
    """Equal cells, row by row."""
    w, h = size[0] / cols, size[1] / rows
    return [(c * w, r * h, (c + 1) * w, (r + 1) * h) for r in range(rows) for c in range(cols)]


def scatter(rng: random.Random, size: tuple[int, int], number: int) -> list[Box]:
    """Random cells of a grid with room for ``number``, some left empty, so that a count isn't a pattern."""
    side = math.ceil(math.sqrt(number))
    cols, rows = (3, 2) if number > 4 and rng.random() < 0.7 else (side, side)
    if size[0] >= 2 * size[1]:
        cols, rows = max(cols, number // 2 + 1), min(rows, 2)
    return rng.sample(grid(size, cols, rows), number)


def fit(rng: random.Random, asset: Asset, cell: Box, scale: tuple[float, float]) -> Thing:
    """Place a cut-out at a random size and spot in the cell, sometimes turned a little or mirrored."""
    angle = rng.uniform(-18, 18) if rng.random() < 0.4 else 0.0
    w, h = asset.size
    c, s = math.cos(math.radians(angle)), abs(math.sin(math.radians(angle)))
    wide, high = w * c + h * s, w * s + h * c
    room = min((cell[2] - cell[0]) / wide, (cell[3] - cell[1]) / high)
    k = room * rng.uniform(*scale)
    box = settle(rng, wide * k, high * k, cell)
    return Thing(asset.name, asset.colour, box, asset, angle, rng.random() < 0.5, rng.uniform(0.85, 1.12))


def fit_shape(rng: random.Random, form: str, colour: str, cell: Box) -> Thing:
    side = min(cell[2] - cell[0], cell[3] - cell[1]) * rng.uniform(0.45, 0.9)
    w, h = (side, side * 0.5) if form == "rectangle" else (side, side)
    return Thing(form, colour, settle(rng, w, h, cell))


def settle(rng: random.Random, w: float, h: float, cell: Box) -> Box:
    """A box of w x h pixels anywhere in the cell."""
    x = cell[0] + rng.random() * (cell[2] - cell[0] - w)
    y = cell[1] + rng.random() * (cell[3] - cell[1] - h)
    return (x, y, x + w, y + h)


def paint(rng: random.Random, store: Library, scene: Scene) -> Image.Image:
    """The RGB picture of a scene on a background that all its things stand out from."""
    inks = [thing.asset.mean if thing.asset else PAINTS[thing.colour] for thing in scene.things]
    image = background(rng, scene.size, inks)
    for thing in scene.things:
        layer = draw_shape(rng, thing) if thing.asset is None else cut(store.picture(thing.asset), thing)
        x = round((thing.box[0] + thing.box[2] - layer.width) / 2)
        y = round((thing.box[1] + thing.box[3] - layer.height) / 2)
        image.paste(layer, (x, y), layer)
    return image


def cut(picture: Image.Image, thing: Thing) -> Image.Image:
    """The cut-out scaled, mirrored, lit and turned to fill the thing's box."""
    s, c = abs(math.sin(math.radians(thing.angle))), math.cos(math.radians(thing.angle))
    k = (thing.box[2] - thing.box[0]) / (picture.width * c + picture.height * s)
    size = (max(1, round(picture.width * k)), max(1, round(picture.height * k)))
    picture = picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    if thing.flip:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    shade = [min(255, round(v * thing.light)) for v in range(256)]
    picture = picture.point(shade * 3 + list(range(256)))
    return picture.rotate(thing.angle, Image.Resampling.BILINEAR, expand=True) if thing.angle else picture


def background(rng: random.Random, size: tuple[int, int], inks: list[Colour]) -> Image.Image:
    """White, plain, a gradient or soft noise, around the colour of several tries that is farthest from the inks."""
    tries = [(255, 255, 255)] if rng.random() < 0.2 else []
    tries += [pick_colour(rng) for _ in range(6)] + [(250, 250, 245), (30, 30, 35)]
    base = next((colour for colour in tries if contrast(colour, inks) > 85), None)
    base = base or max(tries, key=lambda colour: contrast(colour, inks))
    style = "plain" if base == (255, 255, 255) else rng.choice(("plain", "gradient", "gradient", "noise"))
    if style == "plain":
        return Image.new("RGB", size, base)
    n = 2 if style == "gradient" else rng.choice((5, 9, 16))
    swing = 25 if style == "gradient" else 14
    near = bytes(max(0, min(255, v + rng.randint(-swing, swing))) for _ in range(n * n) for v in base)
    return Image.frombytes("RGB", (n, n), near).resize(size, Image.Resampling.BILINEAR)


def pick_colour(rng: random.Random) -> Colour:
    """Any colour, with light ones as often as all others together."""
    low = 170 if rng.random() < 0.5 else 20
    return (rng.randint(low, 255), rng.randint(low, 255), rng.randint(low, 255))


def contrast(colour: Colour, inks: list[Colour]) -> float:
    """Distance of a colour to the nearest ink; luminance counts most, as it does to the eye."""
    weights = (0.9, 1.5, 0.6)
    gaps = [sum(w * abs(a - b) for w, a, b in zip(weights, colour, ink, strict=True)) / 2 for ink in inks]
    return min(gaps)


def draw_shape(rng: random.Random, thing: Thing) -> Image.Image:
    """A filled shape as RGBA, its colour a little off the pure one, drawn at twice its size for smooth edges."""
    w, h = round(thing.box[2] - thing.box[0]), round(thing.box[3] - thing.box[1])
    mask = Image.new("L", (2 * w, 2 * h))
    draw = ImageDraw.Draw(mask)
    if thing.name == "circle":
        draw.ellipse((0, 0, 2 * w - 1, 2 * h - 1), fill=255)
    else:
        draw.polygon([(x * 2 * w, y * 2 * h) for x, y in outline(thing.name)], fill=255)
    r, g, b = (max(0, min(255, v + rng.randint(-10, 10))) for v in PAINTS[thing.colour])
    layer = Image.new("RGBA", (w, h), (r, g, b, 255))
    layer.putalpha(mask.reduce(2))
    return layer


def outline(form: str) -> list[tuple[float, float]]:
    """Corners of a shape in the unit square."""
    if form == "star":
        radii = [0.5 if i % 2 == 0 else 0.2 for i in range(10)]
        return [
            (0.5 + r * math.sin(i * math.pi / 5), 0.52 - r * math.cos(i * math.pi / 5)) for i, r in enumerate(radii)
        ]
    if form == "heart":
        turns = [i * math.tau / 60 for i in range(60)]
        return [(0.5 + 0.5 * math.sin(t) ** 3, 0.45 - heart_height(t) / 34) for t in turns]
    return {
        "square": [(0, 0), (1, 0), (1, 1), (0, 1)],
        "rectangle": [(0, 0), (1, 0), (1, 1), (0, 1)],
        "triangle": [(0.5, 0), (1, 1), (0, 1)],
        "diamond": [(0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)],
        "cross": [
            (a / 3, b / 3)
            for a, b in ((1, 0), (2, 0), (2, 1), (3, 1), (3, 2), (2, 2), (2, 3), (1, 3), (1, 2), (0, 2), (0, 1), (1, 1))
        ],
    }[form]


def heart_height(t: float) -> float:
    """The well-known heart curve, about -17 to 12."""
    return 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
