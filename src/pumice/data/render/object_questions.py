"""What can be asked about a scene of objects, and the answers that follow from it.

Scene (things with name, colour, box) ──ask──> 3 to 6 Questions: naming, class, colour, counting, leftright, yesno
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from pumice.data.render.assets import Asset, Kind
from pumice.data.render.page import Question


@dataclass(frozen=True)
class Thing:
    """One object or shape in a scene; ``box`` (x0, y0, x1, y1) in pixels holds it after turning.

    ``asset`` is None for a shape. ``colour`` is "" where no single colour is known.
    """

    name: str
    colour: str
    box: tuple[float, float, float, float]
    asset: Asset | None = None
    angle: float = 0.0
    flip: bool = False
    light: float = 1.0


@dataclass(frozen=True)
class Scene:
    """``kind`` one | few | many | shapes; ``order`` row | column | "" says whether things are listed left to right or
    top to bottom, or lie anywhere.
    """

    kind: str
    size: tuple[int, int]
    order: str
    things: tuple[Thing, ...]


PARTS = frozenset(
    {
        "bow",
        "brain",
        "button",
        "door",
        "ear",
        "eye",
        "flower",
        "hand",
        "hat",
        "heart",
        "leaf",
        "mouth",
        "ring",
        "star",
        "sun",
        "tooth",
        "wheel",
    }
)
"""Things that hide in pictures of other things (the wheels of a bus): no yes or no question is about them."""

PLURALS = {
    "bison": "bison",
    "blowfish": "blowfish",
    "cactus": "cacti",
    "computer mouse": "computer mice",
    "deer": "deer",
    "fish": "fish",
    "goose": "geese",
    "knife": "knives",
    "mango": "mangoes",
    "mosquito": "mosquitoes",
    "mouse": "mice",
    "potato": "potatoes",
    "scarf": "scarves",
    "sheep": "sheep",
    "shrimp": "shrimp",
    "squid": "squid",
    "tooth": "teeth",
    "wolf": "wolves",
}


def plural(name: str) -> str:
    """The plural of a class or shape name."""
    if name in PLURALS:
        return PLURALS[name]
    if name.endswith(("s", "x", "ch", "sh")):
        return name + "es"
    if name.endswith("y") and name[-2] not in "aeiou":
        return name[:-1] + "ies"
    return name + "s"


def some(name: str, grammar: str = "") -> str:
    """The name after its indefinite article, if it takes one: "an owl", "corn", "grapes"."""
    if grammar in ("mass", "plural"):
        return name
    return f"{'an' if name[0] in 'aeio' or name.startswith('um') else 'a'} {name}"


class Asker:
    """Collects questions about one scene, each text once."""

    def __init__(self, rng: random.Random, scene: Scene, kinds: dict[str, Kind], names: list[str]):
        self.rng, self.scene, self.kinds, self.names = rng, scene, kinds, names
        self.found: dict[str, Question] = {}

    def add(self, texts: str, answer: str, task: str) -> None:
        """Add one of the paraphrases that ``texts`` holds, separated by "|"."""
        text = self.rng.choice(texts.split("|"))
        text = text[0].upper() + text[1:]
        self.found.setdefault(text, Question(text, answer, task))

    def grammar(self, name: str) -> str:
        return self.kinds[name].grammar if name in self.kinds else ""

    def verb(self, name: str) -> str:
        return "are" if self.grammar(name) == "plural" else "is"

    def label(self, thing: Thing) -> str:
        """What to call a thing: shapes go by colour and form."""
        return thing.name if thing.asset else f"{thing.colour} {thing.name}"

    def name_it(self, thing: Thing) -> None:
        self.add("What is this?|What object is shown?|What is in the picture?|Name the object.|What can you see?|"
                 "What does the picture show?", thing.name, "naming")  # fmt: skip

    def name_many(self, thing: Thing) -> None:
        self.add("What objects are shown?|What are these?|What does the picture show several times?",
                 plural(thing.name), "naming")  # fmt: skip

    def classify(self, thing: Thing) -> None:
        group = self.kinds[thing.name].group
        if group:
            self.add("What kind of thing is this?|What type of object is it?|Which group does it belong to?",
                     group, "class")  # fmt: skip

    def colour(self, thing: Thing) -> None:
        the = f"the {thing.name}"
        if thing.colour and self.grammar(thing.name) != "plural":
            self.add(f"What colour is {the}?|What color is {the}?|Which colour does {the} have?",
                     thing.colour, "colour")  # fmt: skip

    def count(self, name: str, number: int) -> None:
        many = plural(name)
        self.add(f"How many {many} are there?|How many {many} do you see?|Count the {many}.|"
                 f"What is the number of {many}?", str(number), "counting")  # fmt: skip

    def present(self) -> None:
        """Is there a …? Half of these ask for what isn't there, and half of those for a relative of what is."""
        here = [thing.name for thing in self.scene.things]
        yes = self.rng.random() < 0.5
        pool = [name for name in here if name not in PARTS] if yes else self.absent(here)
        if not pool:
            return
        name = self.rng.choice(pool)
        it = some(name, self.grammar(name))
        self.add(f"{self.verb(name)} there {it} in the picture?|Can you see {it}?|Does the picture show {it}?|"
                 f"{self.verb(name)} there {it} here?", "yes" if yes else "no", "yesno")  # fmt: skip

    def absent(self, here: list[str]) -> list[str]:
        """Names of things that are surely not in the picture; with even odds only those of a group that is."""
        kin = {other for name in here for other in self.kinds[name].alike}
        clear = [name for name in self.names if name not in here and name not in kin and name not in PARTS]
        groups = {self.kinds[name].group for name in here} - {""}
        near = [name for name in clear if self.kinds[name].group in groups]
        return near if near and self.rng.random() < 0.5 else clear

    def places(self) -> None:
        """Which is left, right, above or below, for things in a row or a column."""
        things, names = self.scene.things, [self.label(thing) for thing in self.scene.things]
        row = self.scene.order == "row"
        first, last = ("on the left", "on the right") if row else ("at the top", "at the bottom")
        what = "What object is|What is|Which object is" if things[0].asset else "What shape is|What is"
        what_is = what.split("|")
        self.add("|".join(f"{w} {first}?" for w in what_is), names[0], "leftright")
        self.add("|".join(f"{w} {last}?" for w in what_is), names[-1], "leftright")
        if len(things) == 3:
            self.add("|".join(f"{w} in the middle?" for w in what_is), names[1], "leftright")
        before, after = ("to the left of", "to the right of") if row else ("above", "below")
        if len(things) == 2 and self.rng.random() < 0.5:
            self.add(f"What is {before} the {names[1]}?", names[0], "leftright")
        elif len(things) == 2:
            self.add(f"What is {after} the {names[0]}?", names[1], "leftright")
        for _ in range(2):
            i, j = sorted(self.rng.sample(range(len(things)), 2))
            yes, swap = self.rng.random() < 0.5, self.rng.random() < 0.5
            a, b = (j, i) if swap else (i, j)
            relation = before if yes != swap else after
            self.add(f"{self.verb(things[a].name)} the {names[a]} {relation} the {names[b]}?",
                     "yes" if yes else "no", "yesno")  # fmt: skip

    def pick(self, low: int, high: int) -> tuple[Question, ...]:
        """A random choice of the questions in random order."""
        pool = list(self.found.values())
        return tuple(self.rng.sample(pool, min(len(pool), self.rng.randint(low, high))))


def ask(rng: random.Random, scene: Scene, kinds: dict[str, Kind], names: list[str]) -> tuple[Question, ...]:
    """3 to 6 questions about the scene; ``names`` are the classes that a question may say are absent."""
    asker = Asker(rng, scene, kinds, names)
    forms: dict[str, Callable[[Asker], None]] = {"one": one, "few": few, "many": many, "shapes": shapes}
    forms[scene.kind](asker)
    return asker.pick(3, 6)


def one(asker: Asker) -> None:
    thing = asker.scene.things[0]
    asker.name_it(thing)
    asker.classify(thing)
    asker.colour(thing)
    asker.present()
    asker.present()
    asker.name_it(thing)
    while len(asker.found) < 3:
        asker.name_it(thing)


def few(asker: Asker) -> None:
    asker.places()
    for thing in asker.scene.things:
        asker.colour(thing)
    asker.present()
    asker.present()


def many(asker: Asker) -> None:
    things = asker.scene.things
    kinds = sorted({thing.name for thing in things})
    for name in kinds:
        asker.count(name, sum(thing.name == name for thing in things))
        asker.count(name, sum(thing.name == name for thing in things))
    if len(kinds) == 1 and len(things) > 1:
        asker.name_many(things[0])
    asker.present()
    asker.present()
    while len(asker.found) < 3:
        asker.count(kinds[0], sum(thing.name == kinds[0] for thing in things))


def shapes(asker: Asker) -> None:
    things = asker.scene.things
    forms, colours = [thing.name for thing in things], [thing.colour for thing in things]
    asker.add("How many shapes are there?|Count the shapes.|How many shapes do you see?", str(len(things)), "counting")
    for form in sorted(set(forms)):
        if forms.count(form) == 1:
            asker.colour(things[forms.index(form)])
        asker.count(form, forms.count(form))
    for colour in sorted(set(colours)):
        total = colours.count(colour)
        asker.add(f"How many {colour} shapes are there?|Count the {colour} shapes.", str(total), "counting")
        if total == 1:
            form = forms[colours.index(colour)]
            asker.add(f"What shape is {colour}?|Which shape is {colour}?|What is the {colour} shape?", form, "naming")
    if asker.scene.order:
        asker.places()
    for _ in range(2):
        coloured_shape(asker)


def coloured_shape(asker: Asker) -> None:
    """Is there a red circle? A "no" takes its colour or its form from what is there, where it can."""
    pairs = [(thing.colour, thing.name) for thing in asker.scene.things]
    yes = asker.rng.random() < 0.5
    if yes:
        colour, form = asker.rng.choice(pairs)
    else:
        mixed = sorted({(c, f) for c, _ in pairs for _, f in pairs} - set(pairs))
        other = sorted({(c, pairs[0][1]) for c in ("red", "blue", "green", "yellow")} - set(pairs))
        colour, form = asker.rng.choice(mixed if mixed and asker.rng.random() < 0.7 else other)
    it = some(f"{colour} {form}")
    asker.add(f"Is there {it} in the picture?|Can you see {it}?|Is there {it}?", "yes" if yes else "no", "yesno")
