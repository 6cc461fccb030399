"""Personal data in texts: found, counted, and replaced by something of the same kind that belongs to nobody.

text ──e-mail addresses, IBANs, card numbers, phone numbers──> text with stand-ins, {kind: how many}

Numbers count only where their check digits are right (Luhn's for cards, ISO 7064's for IBANs) or where they are valid
in their country's plan of numbers; so totals, dates and article numbers stay. What a picture shows isn't changed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from pumice.types import PumiceError

if TYPE_CHECKING:
    from types import ModuleType

STAND_INS = {
    "email": "someone@example.com",
    "iban": "GB33BUKB20201555555555",
    "card": "4111 1111 1111 1111",
    "phone": "+1 202-555-0143",
}
"""What is written in the place of each kind: the addresses and numbers that are set aside for examples."""

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}(?![\w-])")
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}(?![A-Za-z0-9])")
_CARD = re.compile(r"(?<![\d.,-])\d(?:[ -]?\d){12,18}(?![\d]|[.,-]\d)")
_DIGITS = re.compile(r"\d(?:\D{0,3}\d){6}")
"""What any phone number has in it: seven digits that are close together."""


class Found(NamedTuple):
    """One piece of personal data: its kind and where it is in the text."""

    kind: str
    start: int
    end: int


class Scrubber:
    """Finds personal data. Phone numbers without a country's code are those of ``region`` ("DE"), none without it.

    Raises:
        PumiceError: its packages aren't installed, or there is no such region.
    """

    def __init__(self, region: str | None = None) -> None:
        phones = _packages()[0]
        if region is not None and region not in phones.SUPPORTED_REGIONS:
            raise PumiceError(f"{region}: no region; expected two letters as in ISO 3166, such as DE")
        self.region = region

    def find(self, text: str) -> list[Found]:
        """All of it in order, none overlapping; an IBAN isn't taken for a card or a phone number."""
        taken: list[Found] = []
        for search in (_emails, _ibans, _cards, self._phones):
            for one in search(text):
                if all(one.end <= other.start or one.start >= other.end for other in taken):
                    taken.append(one)
        return sorted(taken, key=lambda one: one.start)

    def scrub(self, text: str) -> tuple[str, Counter[str]]:
        """The text with stand-ins, and how many there are of each kind; what already is a stand-in doesn't count."""
        pieces, at, counts = [], 0, Counter[str]()
        for one in self.find(text):
            if text[one.start : one.end] != STAND_INS[one.kind]:
                pieces += [text[at : one.start], STAND_INS[one.kind]]
                at = one.end
                counts[one.kind] += 1
        return "".join([*pieces, text[at:]]), counts

    def _phones(self, text: str) -> Iterator[Found]:
        if not _DIGITS.search(text):
            return
        for match in _packages()[0].PhoneNumberMatcher(text, self.region):
            yield Found("phone", match.start, match.end)


def _emails(text: str) -> Iterator[Found]:
    if "@" in text:
        yield from (Found("email", *match.span()) for match in _EMAIL.finditer(text))


def _ibans(text: str) -> Iterator[Found]:
    valid: Callable[[str], bool] = _packages()[1].is_valid
    for match in _IBAN.finditer(text):
        # The pattern may have run on into the next words, so that shorter ones are tried as well.
        for end in range(match.end(), match.start() + 14, -1):
            if text[end - 1] != " " and valid(text[match.start() : end]):
                yield Found("iban", match.start(), end)
                break


def _cards(text: str) -> Iterator[Found]:
    valid: Callable[[str], bool] = _packages()[2].is_valid
    for match in _CARD.finditer(text):
        digits = re.sub(r"\D", "", match[0])
        if len(set(digits)) > 1 and valid(digits):
            yield Found("card", *match.span())


def _packages() -> tuple[ModuleType, ModuleType, ModuleType]:
    """phonenumbers and two modules of python-stdnum."""
    try:
        import phonenumbers
        from stdnum import iban, luhn
    except ModuleNotFoundError as error:
        raise PumiceError(f"finding personal data needs {error.name}: pip install 'pumice[care]'") from None
    return phonenumbers, iban, luhn
