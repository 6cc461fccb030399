"""Receipts: a shop, its city, a date, some goods with prices, and the total.

rng, split ──> Bill (what is said) + Style (how) ──> Row* that fit the page ──> Sheet ──> Rendered
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from pumice.data.render import sheet, slips, values
from pumice.data.render.fonts import Split, pick_font
from pumice.data.render.ink import Font
from pumice.data.render.page import Question, Rendered
from pumice.data.render.sheet import Sheet, ask
from pumice.data.render.slips import Row

Size = tuple[int, int]


@dataclass(frozen=True)
class Style:
    """One look of a receipt.

    ``order`` names the blocks from top to bottom: s shop, p place and date, i items, t total, f foot. ``items`` says
    where the price is: right, left, under or (numbered) number. ``split`` puts place and date on one line.
    """

    order: str = "spitf"
    header: sheet.Align = "centre"
    items: str = "right"
    leader: bool = False
    rule: str = "dash"
    total: str = "plain"
    split: bool = False


STYLES: dict[Split, tuple[Style, ...]] = {
    "train": (
        Style(),
        Style(header="left", rule="line"),
        Style(header="left", items="number", rule="line", split=True),
        Style(leader=True, rule="none", total="big"),
        Style(rule="double", total="bar"),
        Style(order="sitpf", rule="dash", total="box"),
        Style(header="left", leader=True, split=True, rule="dots"),
        Style(items="under", header="left", rule="dash"),
        Style(split=True, rule="line", total="bar"),
        Style(order="psitf", rule="line"),
    ),
    "heldout": (
        Style(order="stipf", rule="line", total="bar"),
        Style(items="left", rule="dash"),
        Style(order="itsp", header="right", rule="line", leader=True),
        Style(header="right", items="number", rule="double", total="box"),
        Style(order="pitsf", items="left", header="left", rule="dots", split=True),
    ),
}


@dataclass(frozen=True)
class Bill:
    """What a receipt says, as printed. ``extras`` are (label, value) pairs of the head, ``sums`` of the end."""

    shop: str
    city: str
    date: str
    date_label: str
    extras: tuple[tuple[str, str], ...]
    items: tuple[tuple[str, str], ...]
    sums: tuple[tuple[str, str], ...]
    total_label: str
    total: str
    foot: str


def render(rng: random.Random, split: Split) -> Rendered:
    """One receipt with questions on shop, city, date, prices, total, codes and items."""
    return describe(rng, split)[1]


def describe(rng: random.Random, split: Split) -> tuple[Bill, Rendered]:
    """The receipt of ``render`` with what it says, to ask for all of it at once."""
    rng = sheet.stream(rng, f"receipt {split}")
    width, height = _size(rng)
    style = rng.choice(STYLES[split])
    slip = rng.random() < 0.25
    margin = rng.randint(14, 20) if slip else rng.randint(6, 11)
    inner = (width - 2 * margin, height - 2 * margin)
    rows: list[Row] = []
    bill = None
    while not rows or bill is None:
        bill = make_bill(rng, split, rng.randint(2, 6 if height < 280 else 10))
        bill, rows = _fit(rng, split, bill, style, inner)
    page = _paper(rng, (width, height), margin if slip else 0)
    slips.draw(page, rows, margin)
    return bill, page.close("receipt", questions_on(rng, bill))


def _size(rng: random.Random) -> Size:
    if rng.random() < 0.8:
        return 224, 224
    return rng.choice(((224, rng.randrange(280, 449, 8)), (448, 224), (448, 448)))


def _paper(rng: random.Random, size: Size, slip: int) -> Sheet:
    """An empty sheet; with ``slip`` the paper lies on a coloured ground with about ``slip`` pixels of border."""
    page = Sheet(size, sheet.pick_theme(rng, 0.0 if slip else 0.04), rng)
    if slip:
        ground = rng.choice(((120, 90, 60), (70, 80, 90), (180, 180, 176), (60, 100, 90), (200, 170, 130)))
        edge = slip - rng.randint(7, 9)
        page.draw.rectangle((0, 0, *size), fill=ground)
        page.draw.rectangle((edge, edge, size[0] - edge - 1, size[1] - edge - 1), fill=page.theme.paper)
    return page


def make_bill(rng: random.Random, split: Split, count: int) -> Bill:
    """What the receipt says: sums that add up, in one style of money."""
    money = rng.choice(values.CURRENCIES)
    bare = rng.random() < 0.5
    goods: dict[str, int] = {}
    high = rng.choice((900, 3_000, 20_000))
    while len(goods) < count:
        goods[values.product(rng, split)] = values.cents(rng, 60, high)
    total = sum(goods.values())
    sums: list[tuple[str, str]] = []
    if rng.random() < 0.3:
        tax = max(1, round(total * rng.choice((0.05, 0.077, 0.08, 0.1, 0.19, 0.2))))
        sums = [(rng.choice(("Subtotal", "Net")), money.show(total, bare=bare))] * (rng.random() < 0.6)
        sums.append((rng.choice(("Tax", "VAT", "Sales tax")), money.show(tax, bare=bare)))
        total += tax
    extras = []
    if rng.random() < 0.35:
        extras.append((rng.choice(("Receipt", "No.", "Order", "Ref", "Bill no.")), values.code(rng, split)))
    if rng.random() < 0.25:
        extras.append((rng.choice(("Tel", "Phone", "Tel.")), values.phone(rng, split)))
    shop = values.shop(rng, split)
    return Bill(
        shop.upper() if rng.random() < 0.25 else shop,
        values.city(rng, split),
        values.date(rng, split),
        rng.choice(("", "", "Date: ", "Date ")),
        tuple(extras),
        tuple((name, money.show(price, bare=bare)) for name, price in goods.items()),
        tuple(sums),
        rng.choice(("Total", "TOTAL", "Total", "Amount due", "To pay", "Sum", "Total due")),
        money.show(total),
        rng.choice(("", "", "Thank you!", "Paid by card", "Paid in cash", "Visa", "See you soon", "Card payment")),
    )


def _fit(rng: random.Random, split: Split, bill: Bill, style: Style, inner: Size) -> tuple[Bill, list[Row]]:
    """The rows of the largest font that fits in ``inner`` (w, h) pixels, or none, and the bill that they show.

    Foot and extras may be left out, goods never.
    """
    px = rng.choices((12, 13, 14, 15, 16, 17, 18, 19), (1, 3, 4, 4, 4, 3, 2, 1))[0]
    look = rng.getrandbits(32)
    while px >= 12:
        rows = _rows(random.Random(look), split, bill, style, px)
        used = sum(slips.height(row) + row.gap for row in rows)
        wide = max(slips.width(row) for row in rows)
        if used <= inner[1] and wide <= inner[0]:
            return bill, rows
        if used > inner[1] * 1.1 and (bill.foot or bill.extras):  # let the small print go before the font shrinks
            bill = replace(bill, foot="", extras=bill.extras[:-1])
        else:
            px = sheet.smaller(px, max(used / inner[1], wide / inner[0]), 1)
    return bill, []


def _rows(rng: random.Random, split: Split, bill: Bill, style: Style, px: int) -> list[Row]:
    """All rows of the receipt in the order of the style, at ``px`` pixels per em."""
    font = pick_font(rng, split, px)
    big = pick_font(rng, split, px + rng.randint(0, 4), "bold") if rng.random() < 0.7 else font
    date = bill.date_label + bill.date
    if style.split:
        place = [Row(bill.city, date, font)]
    else:
        place = [Row(bill.city, "", font, style.header), Row(date, "", font, style.header)]
    place += [Row(f"{label} {value}", "", font, style.header) for label, value in bill.extras]
    blocks = {
        "s": [Row(bill.shop, "", big, style.header, gap=4)],
        "p": place,
        "i": _item_rows(bill, style, font),
        "t": [Row(*pair, font) for pair in bill.sums]
        + [Row(bill.total_label, bill.total, big if style.total == "big" else font, look=style.total, gap=4)],
        "f": [Row(bill.foot, "", font, style.header)] if bill.foot else [],
    }
    rows: list[Row] = []
    for block in style.order:
        if rows and block in "it" + "p" * (style.order[0] != "s") and style.rule != "none":
            rows.append(Row("", look=style.rule, gap=4))
        rows += blocks[block]
    return rows


def _item_rows(bill: Bill, style: Style, font: Font) -> list[Row]:
    leader = "leader" if style.leader else "plain"
    if style.items == "left":
        return [Row(price, name, font, look="columns") for name, price in bill.items]
    if style.items == "under":
        return [row for name, price in bill.items for row in (Row(name, "", font), Row("", price, font, gap=2))]
    if style.items == "number":
        return [Row(f"{i}. {name}", price, font, look=leader) for i, (name, price) in enumerate(bill.items, 1)]
    return [Row(name, price, font, look=leader) for name, price in bill.items]


def questions_on(rng: random.Random, bill: Bill) -> list[Question]:
    """Every question that the receipt answers; prices that two goods share are not asked back."""
    prices = [price for _, price in bill.items]
    shop = "Which shop is this receipt from?|What is the name of the shop?|Which shop?|Where was this bought?"
    total = "What is the total?|Total?|How much is the total?|What is the total amount?|How much was paid in all?"
    out = [
        ask(rng, "shop", shop, bill.shop),
        ask(rng, "city", "In which city is the shop?|Which city?|What city is on the receipt?|City?", bill.city),
        ask(rng, "date", "What is the date?|Date?|When was this bought?|What date is on the receipt?", bill.date),
        ask(rng, "amount", total, bill.total),
        ask(rng, "count", "How many items are listed?|How many items?|Count the items.", str(len(prices))),
    ]
    for label, value in bill.extras:
        if label.startswith(("Tel", "Phone")):
            out.append(
                ask(rng, "code", "What is the phone number?|Phone number?|Which phone number is printed?", value)
            )
        else:
            name = {"Receipt": "receipt number", "Order": "order number", "Ref": "reference"}.get(
                label, "receipt number"
            )
            out.append(ask(rng, "code", "What is the {n}?|Which {n} is printed?|What {n} is given?", value, n=name))
    for label, value in bill.sums:
        out.append(ask(rng, "amount", "How much is the {n}?|What is the {n}?", value, n=label.lower()))
    for name, price in bill.items:
        out.append(
            ask(rng, "price", "How much is the {n}?|What does {n} cost?|Price of {n}?|Cost of {n}?", price, n=name)
        )
        if prices.count(price) == 1:
            out.append(ask(rng, "item", "Which item costs {p}?|What costs {p}?|Which item is {p}?", name, p=price))
    return out
