"""Till receipts as nested data with CORD's field names: menu with counts and options, sub_total, total.

rng, split ──> Order (goods, options, sums in cents) ──> slips that fit ──> Sheet ──> questions and JSON ──> Rendered

The names are those of CORD v2 (Park et al. 2019): menu nm, cnt, unitprice, price, sub; sub_total subtotal_price,
discount_price, service_price, tax_price; total total_price, cashprice, changeprice, creditcardprice, menuqty_cnt.
A field that a receipt doesn't print isn't in its JSON.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from typing import Any

from pumice.data.render import absent, records, sheet, slips, values
from pumice.data.render.fonts import Split, pick_font
from pumice.data.render.page import Question, Rendered
from pumice.data.render.sheet import Sheet, ask
from pumice.data.render.slips import Row
from pumice.data.render.values import Money

SIZES = ((224, 320), (224, 448), (336, 448), (336, 560), (448, 448), (448, 672))
OPTIONS = ("Extra cheese", "No onions", "Large", "Iced", "Soy milk", "Less sugar", "Spicy", "To go", "Gift wrap")
JSON = (
    "Write the receipt as JSON with CORD's fields.|"
    "Parse the receipt into JSON with the keys menu, sub_total and total.|"
    "Turn the receipt into nested JSON with CORD's field names."
)


@dataclass(frozen=True)
class Look:
    """How goods are printed (count: before, after, under; price) and what frames the blocks."""

    count: str
    rule: str
    total: str
    header: sheet.Align = "centre"
    option: str = "+ "


LOOKS: dict[Split, tuple[Look, ...]] = {
    "train": (
        Look("before", "dash", "plain"),
        Look("before", "line", "bar", "left", "- "),
        Look("x", "dash", "box"),
        Look("under", "line", "plain", "left"),
        Look("under", "double", "big", option="* "),
        Look("x", "dots", "big", "left", "  "),
    ),
    "heldout": (
        Look("after", "line", "box"),
        Look("after", "dash", "bar", "right", "> "),
        Look("at", "double", "plain", "left", "+ "),
        Look("at", "dots", "bar", option="- "),
    ),
}


@dataclass(frozen=True)
class Good:
    """One line of the menu, in cents; ``options`` are (name, cents; 0 is printed without a price)."""

    name: str
    count: int
    unit: int
    options: tuple[tuple[str, int], ...]

    @property
    def price(self) -> int:
        """What all of its pieces cost, without options."""
        return self.count * self.unit


@dataclass(frozen=True)
class Order:
    """What a receipt says, in cents; sums that are 0 aren't printed."""

    shop: str
    head: tuple[str, ...]
    goods: tuple[Good, ...]
    discount: int
    service: int
    tax: int
    paid: int
    card: bool
    counted: bool
    money: Money

    @property
    def subtotal(self) -> int:
        """The goods and their options."""
        return sum(good.price + sum(cents for _, cents in good.options) for good in self.goods)

    @property
    def total(self) -> int:
        """What is to be paid."""
        return self.subtotal - self.discount + self.service + self.tax

    def show(self, cents: int) -> str:
        """An amount as printed."""
        return self.money.show(cents)


def render(rng: random.Random, split: Split) -> Rendered:
    """One receipt with questions, and on most its JSON."""
    return describe(rng, split)[1]


def describe(rng: random.Random, split: Split) -> tuple[Order, Rendered]:
    """The receipt of ``render`` with what it says."""
    rng = sheet.stream(rng, f"bill {split}")
    look = rng.choice(LOOKS[split])
    while True:
        width, height = rng.choice(SIZES)
        margin = rng.randint(8, 16)
        order = _order(rng, split, 3 if height < 400 else 6)
        if rows := _fit(rng, split, order, look, (width - 2 * margin, height - 2 * margin)):
            break
    page = Sheet((width, height), sheet.pick_theme(rng, 0.03), rng)
    slips.draw(page, rows, margin)
    truth = json.dumps(fields(order), ensure_ascii=False)
    closed = page.close("bill", _questions(rng, order))
    return order, records.more(rng, closed, [ask(rng, "cord_json", JSON, truth)], _absent(rng, split, order), 0.7, 1200)


def fields(order: Order) -> dict[str, Any]:
    """What is printed, by CORD's names; all values are texts."""
    menu = []
    for good in order.goods:
        entry: dict[str, Any] = {"nm": good.name, "cnt": str(good.count)}
        if good.count > 1:
            entry["unitprice"] = order.show(good.unit)
        entry["price"] = order.show(good.price)
        subs = [{"nm": name} | ({"price": order.show(cents)} if cents else {}) for name, cents in good.options]
        menu.append(entry | ({"sub": subs} if subs else {}))
    changed = order.discount or order.service or order.tax
    sums = {"subtotal_price": order.subtotal if changed else 0}
    sums |= {"discount_price": order.discount, "service_price": order.service, "tax_price": order.tax}
    shown = {name: f"{'-' * (name[0] == 'd')}{order.show(cents)}" for name, cents in sums.items() if cents}
    total = {"total_price": order.show(order.total)}
    if order.card:
        total["creditcardprice"] = order.show(order.total)
    elif order.paid:
        total |= {"cashprice": order.show(order.paid), "changeprice": order.show(order.paid - order.total)}
    if order.counted:
        total["menuqty_cnt"] = str(sum(good.count for good in order.goods))
    return {"menu": menu} | ({"sub_total": shown} if shown else {}) | {"total": total}


def _order(rng: random.Random, split: Split, most: int) -> Order:
    """Goods and sums that add up."""
    goods: dict[str, Good] = {}
    for _ in range(rng.randint(1, most)):
        name = values.product(rng, split)
        options = rng.sample(OPTIONS, rng.choices((0, 1, 2), (5, 3, 1))[0])
        priced = tuple((text, values.cents(rng, 20, 300) if rng.random() < 0.5 else 0) for text in options)
        goods[name] = Good(name, rng.choices((1, 2, 3, 5, 12), (6, 3, 2, 1, 1))[0], values.cents(rng, 90, 4000), priced)
    order = Order(
        values.shop(rng, split),
        tuple(text for text, odds in _heads(rng, split) if rng.random() < odds),
        tuple(goods.values()),
        0, 0, 0, 0,
        rng.random() < 0.35,
        rng.random() < 0.3,
        rng.choice(values.CURRENCIES),
    )  # fmt: skip
    part = order.subtotal
    sums = [round(part * rate) if rng.random() < odds else 0 for rate, odds in ((0.1, 0.3), (0.05, 0.3), (0.08, 0.5))]
    order = replace(order, discount=sums[0], service=sums[1], tax=sums[2])
    step = rng.choice((500, 1000, 2000))
    paid = -(-order.total // step) * step if not order.card and rng.random() < 0.6 else 0
    return replace(order, paid=paid)


def _heads(rng: random.Random, split: Split) -> tuple[tuple[str, float], ...]:
    return (
        (values.city(rng, split), 0.7),
        (values.date(rng, split), 0.8),
        (f"No. {values.code(rng, split)}", 0.4),
        (f"Tel {values.phone(rng, split)}", 0.3),
    )


def _fit(rng: random.Random, split: Split, order: Order, look: Look, inner: tuple[int, int]) -> list[Row]:
    """The rows at the largest size that fits into ``inner`` (w, h) pixels, or none."""
    face = rng.getrandbits(32)
    labels = rng.getrandbits(32)
    for px in range(rng.randint(13, 20 if inner[0] > 260 else 16), 11, -1):
        rows = _rows(random.Random(face), random.Random(labels), split, order, look, px)
        used = sum(slips.height(row) + row.gap for row in rows)
        if used <= inner[1] and max(slips.width(row) for row in rows) <= inner[0]:
            return rows
    return []


def _rows(face: random.Random, words: random.Random, split: Split, order: Order, look: Look, px: int) -> list[Row]:
    """Head, goods with options, sums and payment, from top to bottom."""
    font = pick_font(face, split, px)
    big = pick_font(face, split, px + 3, "bold")
    rows = [Row(order.shop, "", big, look.header, gap=4)]
    rows += [Row(text, "", font, look.header) for text in order.head]
    rows.append(Row("", look=look.rule, gap=5))
    for good in order.goods:
        rows += [Row(left, right, font) for left, right in _good(order, good, look)]
    rows.append(Row("", look=look.rule, gap=5))
    rows += [Row(label, value, font) for label, value in _sums(words, order)]
    label = words.choice(("Total", "TOTAL", "Amount due", "To pay", "Grand total"))
    rows.append(Row(label, order.show(order.total), big if look.total == "big" else font, look=look.total, gap=5))
    if order.card:
        rows.append(Row(words.choice(("Card", "Visa", "Credit card")), order.show(order.total), font))
    elif order.paid:
        rows.append(Row(words.choice(("Cash", "Cash paid", "Tendered")), order.show(order.paid), font))
        rows.append(Row(words.choice(("Change", "Change due")), order.show(order.paid - order.total), font))
    if order.counted:
        count = sum(good.count for good in order.goods)
        rows.append(Row(words.choice(("Items", "Total qty", "Item count")), str(count), font))
    return rows


def _good(order: Order, good: Good, look: Look) -> list[tuple[str, str]]:
    """The lines of one good: (left, right) texts."""
    unit, price = order.show(good.unit), order.show(good.price)
    many = good.count > 1
    lines = {
        "before": [(f"{good.count} {good.name}", price)],
        "x": [(f"{good.count}x {good.name}", price)],
        "after": [(f"{good.name} x{good.count}", price)],
        "under": [(good.name, "")],
        "at": [(f"{good.name} ({good.count})", price)],
    }[look.count]
    if look.count == "under":
        lines.append((f"  {good.count} x {unit}" if many else f"  {good.count} pc", price))
    elif many:
        lines.append((f"  @ {unit}", ""))
    return lines + [(f"  {look.option}{name}", order.show(cents) if cents else "") for name, cents in good.options]


def _sums(words: random.Random, order: Order) -> list[tuple[str, str]]:
    shown = fields(order).get("sub_total", {})
    labels = {
        "subtotal_price": ("Subtotal", "Sub total", "Net"),
        "discount_price": ("Discount", "Promotion", "Saving"),
        "service_price": ("Service", "Service charge"),
        "tax_price": ("Tax", "VAT", "Sales tax"),
    }
    return [(words.choice(labels[name]), value) for name, value in shown.items()]


def _questions(rng: random.Random, order: Order) -> list[Question]:
    """Prices, counts and sums."""
    out = [
        ask(rng, "shop", "What is the name of the shop?|Which shop is this receipt from?|Which shop?", order.shop),
        ask(rng, "amount", "What is the total?|How much is the total?|Total?", order.show(order.total)),
        ask(rng, "count", "How many different items are listed?", str(len(order.goods))),
    ]
    if not order.card and order.paid:
        change = order.show(order.paid - order.total)
        out.append(ask(rng, "amount", "How much is the change?|What is the change?", change))
    for name, value in fields(order).get("sub_total", {}).items():
        noun = {"subtotal_price": "subtotal", "discount_price": "discount", "service_price": "service charge"}
        out.append(ask(rng, "amount", "How much is the {n}?|What is the {n}?", value, n=noun.get(name, "tax")))
    for good in order.goods:
        out.append(ask(rng, "quantity", "How many {n} were bought?|Quantity of {n}?", str(good.count), n=good.name))
        if good.count > 1:
            text = "What does one {n} cost?|What is the unit price of {n}?"
            out.append(ask(rng, "price", text, order.show(good.unit), n=good.name))
        else:
            out.append(ask(rng, "price", "What does {n} cost?|Price of {n}?", order.show(good.price), n=good.name))
        if good.options:
            said = ", ".join(name for name, _ in good.options)
            text = "Which options does {n} come with?|What was chosen for {n}?"
            out.append(ask(rng, "option", text, said, n=good.name))
    return out


def _absent(rng: random.Random, split: Split, order: Order) -> list[Question]:
    """Sums that aren't printed, and goods that weren't bought."""
    lacking = [
        name
        for name, there in (
            ("discount", order.discount),
            ("service charge", order.service),
            ("tax", order.tax),
            ("change", order.paid),
            ("tip", 0),
            ("due date", 0),
        )
        if not there
    ]
    out = [ask(rng, "absent", "How much is the {n}?|What is the {n}?", absent.ABSENT, n=name) for name in lacking]
    other = absent.other_product(rng, split, [good.name for good in order.goods])
    return out + ([absent.priced(rng, other)] if other else [])
