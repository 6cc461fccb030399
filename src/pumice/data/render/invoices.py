"""Invoices: seller and buyer, numbers and dates, a table of positions, totals, how to pay; and all of it as JSON.

rng, split ──> Invoice (positions in cents) ──> blocks at the columns of a look ──> Sheet ──> Rendered
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

from pumice.data.render import absent, ink, records, sheet, values
from pumice.data.render.fonts import Split, pick_font
from pumice.data.render.ink import Font
from pumice.data.render.page import Question, Rendered
from pumice.data.render.sheet import Sheet, ask
from pumice.data.render.values import Money

SIZES = ((448, 448), (448, 560), (448, 672), (560, 672), (672, 672), (672, 896))
JSON = (
    "Write the invoice as nested JSON.|"
    "Parse the invoice into JSON with the keys seller, buyer, invoice, items and total.|"
    "Turn the invoice into JSON: seller, buyer, invoice, items, total."
)
STREETS = "Main St|High St|Park Ave|Mill Lane|Station Rd|Oak Drive|Church St|Lake View|River Rd|Hill Rd"


@dataclass(frozen=True)
class Look:
    """One layout: where the numbers of the head stand, how the table's head is drawn, rules between positions, and the
    columns' order (n name, q quantity, u unit price, a amount).
    """

    meta: str
    head: str
    rules: bool
    columns: str = "nqua"
    title: str = "left"


LOOKS: dict[Split, tuple[Look, ...]] = {
    "train": (
        Look("right", "fill", False),
        Look("right", "line", True),
        Look("below", "fill", True, "qnua"),
        Look("below", "line", False, "nqua", "right"),
        Look("right", "box", False, "qnua", "right"),
        Look("below", "box", True, "nqa"),
    ),
    "heldout": (
        Look("right", "plain", True, "nuqa", "centre"),
        Look("below", "tint", False, "nuqa"),
        Look("right", "tint", True, "aqn", "centre"),
        Look("below", "plain", False, "qna", "centre"),
    ),
}
HEADS = {
    "n": ("Description", "Item", "Product", "Position"),
    "q": ("Qty", "Quantity", "Units"),
    "u": ("Unit price", "Price", "Rate"),
    "a": ("Amount", "Total", "Net"),
}


@dataclass(frozen=True)
class Invoice:
    """What an invoice says. ``items`` are (name, count, cents of one); ``percent`` is the tax, 0 for none."""

    seller: tuple[str, ...]
    buyer: tuple[str, ...]
    number: str
    date: str
    due: str
    items: tuple[tuple[str, int, int], ...]
    percent: int
    account: str
    money: Money

    @property
    def net(self) -> int:
        """The positions' sum in cents."""
        return sum(count * cents for _, count, cents in self.items)

    @property
    def tax(self) -> int:
        """The tax in cents."""
        return round(self.net * self.percent / 100)

    def show(self, cents: int) -> str:
        """An amount as printed in the sums; in the table it stands without its currency."""
        return self.money.show(cents)

    def bare(self, cents: int) -> str:
        """An amount as printed in the table."""
        return self.money.show(cents, bare=True)


def render(rng: random.Random, split: Split) -> Rendered:
    """One invoice with questions, and on most its JSON."""
    return describe(rng, split)[1]


def describe(rng: random.Random, split: Split) -> tuple[Invoice, Rendered]:
    """The invoice of ``render`` with what it says."""
    rng = sheet.stream(rng, f"invoice {split}")
    look = rng.choice(LOOKS[split])
    while True:
        size = rng.choice(SIZES)
        invoice = _invoice(rng, split, rng.randint(1, size[1] // 50))
        page = Sheet(size, sheet.pick_theme(rng, 0.03), rng)
        if _draw(page, split, invoice, look):
            break
    truth = json.dumps(fields(invoice, look), ensure_ascii=False)
    closed = page.close("invoice", _questions(rng, invoice, look))
    whole = [ask(rng, "invoice_json", JSON, truth)]
    return invoice, records.more(rng, closed, whole, _absent(rng, split, invoice, look), 0.7, 1400)


def fields(invoice: Invoice, look: Look) -> dict[str, Any]:
    """What is printed, as texts; what an invoice doesn't print isn't there."""
    said: dict[str, Any] = {
        "seller": {"name": invoice.seller[0], "address": ", ".join(invoice.seller[1:])},
        "buyer": {"name": invoice.buyer[0], "address": ", ".join(invoice.buyer[1:])},
        "invoice": {"number": invoice.number, "date": invoice.date} | ({"due": invoice.due} if invoice.due else {}),
    }
    names = {"n": "description", "q": "quantity", "u": "unit_price", "a": "amount"}
    said["items"] = [
        {names[column]: _cell(invoice, item, column) for column in "nqua" if column in look.columns}
        for item in invoice.items
    ]
    total = {"total": invoice.show(invoice.net + invoice.tax)}
    if invoice.percent:
        sums = {"net": invoice.show(invoice.net), "tax_rate": f"{invoice.percent}%", "tax": invoice.show(invoice.tax)}
        total = sums | total
    said["total"] = total
    return said | ({"payment": {"account": invoice.account}} if invoice.account else {})


def _cell(invoice: Invoice, item: tuple[str, int, int], column: str) -> str:
    name, count, cents = item
    return {"n": name, "q": str(count), "u": invoice.bare(cents), "a": invoice.bare(count * cents)}[column]


def _invoice(rng: random.Random, split: Split, count: int) -> Invoice:
    def place() -> tuple[str, ...]:
        street = f"{rng.randint(1, 199)} {rng.choice(STREETS.split('|'))}"
        return street, f"{values.stamp(rng, rng.choice(('#####', '####')))} {values.city(rng, split)}"

    names: dict[str, None] = {}
    while len(names) < count:
        names[values.product(rng, split)] = None
    style = rng.choice(values.DATE_STYLES)
    return Invoice(
        (values.company(rng, split), *place()),
        (rng.choice((values.person, values.company))(rng, split), *place()),
        values.code(rng, split),
        values.date(rng, split, style),
        values.date(rng, split, style) if rng.random() < 0.6 else "",
        tuple((name, rng.choice((1, 1, 2, 3, 4, 5, 10, 25)), values.cents(rng, 200, 80_000)) for name in names),
        rng.choice((0, 0, 5, 7, 8, 10, 19, 20, 21)),
        values.within(rng, split, lambda r: values.stamp(r, "??## #### #### ####")) if rng.random() < 0.5 else "",
        rng.choice(values.CURRENCIES),
    )


def _draw(page: Sheet, split: Split, invoice: Invoice, look: Look) -> bool:
    """Draw everything from the top; False where it doesn't fit."""
    rng, margin = page.rng, page.rng.randint(14, 26)
    font = pick_font(rng, split, rng.randint(12, 14) + page.width // 224)
    big = pick_font(rng, split, rng.randint(20, 28), "bold")
    step = ink.height(font) + rng.randint(3, 6)
    right, y = page.width - margin, margin
    title = rng.choice(("INVOICE", "Invoice", "Invoice", "Bill", "Tax Invoice"))
    x = {"left": margin, "centre": page.width / 2, "right": right}[look.title]
    page.put(x, y, title, big, page.theme.accent, look.title)  # pyright: ignore[reportArgumentType]
    y += ink.height(big) + step
    head = y
    y = _lines(page, font, margin, y, step, invoice.seller)
    y = _lines(page, font, margin, y + step // 2, step, (rng.choice(("Bill to:", "To:", "Customer:")), *invoice.buyer))
    meta = [(rng.choice(("Invoice no.", "Number", "Invoice #")), invoice.number)]
    meta += [(rng.choice(("Date", "Invoice date", "Issued")), invoice.date)]
    meta += [(rng.choice(("Due date", "Due", "Pay by")), invoice.due)] if invoice.due else []
    left = page.width // 2 + 10 if look.meta == "right" else margin
    at = head if look.meta == "right" else y + step // 2
    ends = [_pair(page, font, left, right, at + i * step, label, value) for i, (label, value) in enumerate(meta)]
    widest = max(ink.width(font, line) for line in (*invoice.seller, *invoice.buyer))
    if not all(ends) or (look.meta == "right" and margin + widest > left - 10):
        return False
    y = max(y, at + len(meta) * step) + step // 2
    y = _table(page, font, invoice, look, (margin, right), y, step)
    return y > 0 and _sums(page, font, invoice, (margin, right), y + step // 2, step)


def _lines(page: Sheet, font: Font, x: int, y: int, step: int, lines: tuple[str, ...]) -> int:
    for line in lines:
        page.put(x, y, line, font)
        y += step
    return y


def _pair(page: Sheet, font: Font, left: int, right: int, y: int, label: str, value: str) -> bool:
    """A label and its value beside it; False where they don't fit."""
    column = left + max(86, ink.width(font, label) + 10)
    if column + ink.width(font, value) > right:
        return False
    page.put(left, y, label, font, page.theme.accent)
    page.put(column, y, value, font, join=True)
    return True


def _table(page: Sheet, font: Font, invoice: Invoice, look: Look, sides: tuple[int, int], y: int, step: int) -> int:
    """The positions; returns where they end, or 0 where they don't fit."""
    left, right = sides
    heads = [page.rng.choice(HEADS[column]) for column in look.columns]
    cells = [[_cell(invoice, item, column) for column in look.columns] for item in invoice.items]
    widths = [max(ink.width(font, text) for text in column) + 14 for column in zip(heads, *cells, strict=True)]
    spare = right - left - sum(widths)
    if spare < 0 or y + (len(cells) + 6) * (step + 3) > page.height - 10:
        return 0
    widths[look.columns.index("n")] += spare
    row, draw, theme = step + 3, page.draw, page.theme
    fill = theme.accent if look.head == "fill" else theme.tint if look.head == "tint" else None
    if look.head in ("fill", "tint", "box"):
        draw.rectangle((left, y, right, y + row), fill=fill, outline=theme.rule if look.head == "box" else None)
    for i, texts in enumerate((heads, *cells)):
        x, top = left, y + i * row
        for column, text, width in zip(look.columns, texts, widths, strict=True):
            ink_colour = theme.paper if i == 0 and look.head == "fill" else theme.ink
            at, align = (x + 6, "left") if column == "n" else (x + width - 8, "right")
            page.put(at, top + 4, text, font, ink_colour, align, join=x > left)  # pyright: ignore[reportArgumentType]
            x += width
        if (look.rules and i) or (i == 0 and look.head in ("line", "plain")):
            draw.line((left, top + row, right, top + row), theme.ink if i == 0 else theme.rule)
    return y + row * (len(cells) + 1)


def _sums(page: Sheet, font: Font, invoice: Invoice, sides: tuple[int, int], y: int, step: int) -> bool:
    """Net, tax and total at the right, and the account below; False where they don't fit."""
    rng, (left, right) = page.rng, sides
    total = invoice.show(invoice.net + invoice.tax)
    lines = [(rng.choice(("Total", "Total due", "Amount due", "TOTAL")), total)]
    if invoice.percent:
        names = rng.choice(("Subtotal", "Net")), f"{rng.choice(('VAT', 'Tax'))} {invoice.percent}%"
        lines = [(names[0], invoice.show(invoice.net)), (names[1], invoice.show(invoice.tax)), *lines]
    wide = max(ink.width(font, label) + ink.width(font, value) for label, value in lines) + 24
    if y + (len(lines) + 2) * step > page.height - 8 or wide > right - left:
        return False
    for label, value in lines:
        page.put(right - max(wide, 170), y, label, font)
        page.put(right - 8, y, value, font, align="right", join=True)
        y += step
    account = f"{rng.choice(('Account', 'IBAN', 'Pay to'))}: {invoice.account}"
    if invoice.account and left + ink.width(font, account) <= right:
        page.put(left, y + step // 2, account, font)
        return True
    return not invoice.account


def _questions(rng: random.Random, invoice: Invoice, look: Look) -> list[Question]:
    out = [
        ask(rng, "code", "What is the invoice number?|Which invoice number is printed?", invoice.number),
        ask(rng, "shop", "Who is the seller?|Which company sent the invoice?|Who sent the invoice?", invoice.seller[0]),
        ask(rng, "name", "Who is the invoice for?|Who is the customer?|Who is the buyer?", invoice.buyer[0]),
        ask(rng, "date", "What is the invoice date?|When was the invoice issued?", invoice.date),
        ask(rng, "count", "How many positions are listed?", str(len(invoice.items))),
        ask(rng, "amount", "What is the total?|What is the total amount?", invoice.show(invoice.net + invoice.tax)),
    ]
    if invoice.due:
        out.append(ask(rng, "date", "What is the due date?|When is the payment due?", invoice.due))
    if invoice.percent:
        out.append(ask(rng, "amount", "How much is the tax?|What is the tax?", invoice.show(invoice.tax)))
        out.append(ask(rng, "rate", "What is the tax rate?", f"{invoice.percent}%"))
    if invoice.account:
        out.append(ask(rng, "code", "What is the account number?|To which account is it paid?", invoice.account))
    for item in invoice.items:
        out.append(ask(rng, "quantity", "How many {n} were ordered?|Quantity of {n}?", str(item[1]), n=item[0]))
        if "u" in look.columns:
            price = _cell(invoice, item, "u")
            out.append(ask(rng, "price", "What is the unit price of {n}?|What does one {n} cost?", price, n=item[0]))
        out.append(ask(rng, "price", "What is the amount for {n}?", _cell(invoice, item, "a"), n=item[0]))
    return out


def _absent(rng: random.Random, split: Split, invoice: Invoice, look: Look) -> list[Question]:
    """Numbers that this invoice doesn't print, and goods that it doesn't list."""
    lacking = (
        ("due date", bool(invoice.due)),
        ("tax rate", bool(invoice.percent)),
        ("account number", bool(invoice.account)),
        ("phone number", False),
        ("order number", False),
        ("discount", False),
        ("delivery date", False),
    )
    out = [
        ask(rng, "absent", "What is the {n}?|Give the {n}.", absent.ABSENT, n=name) for name, has in lacking if not has
    ]
    other = absent.other_product(rng, split, [name for name, _, _ in invoice.items])
    if other:
        out.append(ask(rng, "absent", "Quantity of {n}?|What is the amount for {n}?", absent.ABSENT, n=other))
    return out
