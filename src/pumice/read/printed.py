"""Values as they are printed to values as JSON has them: "$1,234.50" to 1234.5, "3 May 2024" to "2024-05-03".

Each reader takes an answer's text and raises PumiceError where it isn't one such value.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from typing import Any

from pumice.types import PumiceError

_POINTS = ((",", r"\."), (r"\.", ","), (" ", "[.,]"), ("'", "[.,]"), ("\u2019", "[.,]"))
"""What parts thousands, and what decimals then."""
_GROUPS = [(f"[1-9][0-9]{{0,2}}(?:{mark}[0-9]{{3}}){{1,5}}", point) for mark, point in _POINTS]
_WHOLE = "|".join([*(group for group, _ in _GROUPS), "[0-9]{1,18}"])
_DIGITS = "|".join(
    [*(f"{group}(?:{point}[0-9]{{1,9}})?" for group, point in _GROUPS), "[0-9]{1,18}(?:[.,][0-9]{1,9})?"]
)
_AROUND = r"[^0-9\n]{0,6}"  # $, EUR, a sign, kg
INTEGER = rf"(?:[^0-9\n]{{0,5}}[^0-9\n.,])?(?:{_WHOLE}){_AROUND}"
NUMBER = f"{_AROUND}(?:{_DIGITS}){_AROUND}"
"""What answers look like that are whole numbers, and any: `as_number` reads each of them."""
_FOUND = re.compile(r"[0-9]+(?:[,. '\u2019][0-9]+)*")
_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
YES, NO = ("yes", "true"), ("no", "false")
ABSENT = ("", "-", "none", "null", "n/a", "not given")
"""What an answer says where a page has no such value."""


def as_number(text: str, whole: bool = False) -> int | float:
    """A number with what may stand around it: a currency, a unit, a sign, brackets for one below zero.

    A comma before three digits parts thousands, a full stop does where there are several. ``whole`` is for integers.
    """
    found = list(_FOUND.finditer(text))
    if len(found) != 1 or not re.fullmatch(_DIGITS, found[0][0]):
        raise PumiceError(f"{text[:80]!r} isn't a number")
    before, digits, after = text[: found[0].start()], found[0][0], text[found[0].end() :]
    # A sign has no letter before it (INV-7 is 7), but a currency may follow it: -$5, -EUR 5.
    minus = re.search(r"(?<!\w)[-\u2212]\s*(?:[^\W\d]{1,3}|[^\w\s])?\s*$", before)
    sign = -1 if minus or ("(" in before and ")" in after) else 1
    value = _decimals(digits, whole)
    if digits.isdigit() and re.search(r"(?<!\w)[.,]$", before):  # .50
        value = f"0.{digits}"
    if "." not in value:
        return sign * int(value)
    if whole and float(value) % 1:
        raise PumiceError(f"{text[:80]!r} isn't a whole number")
    return sign * (int(float(value)) if whole else float(value))


def _decimals(digits: str, whole: bool) -> str:
    """Digits with a full stop before decimals, if there are any, and nothing else between them."""
    parts = re.split(r"([^0-9])", digits)
    groups, marks = parts[::2], parts[1::2]
    thousands = len(set(marks)) == 1 and {len(group) for group in groups[1:]} == {3} and len(groups[0]) <= 3
    if thousands and groups[0][0] != "0" and (whole or marks != ["."]):
        return "".join(groups)
    return "".join(groups[:-1]) + "." + groups[-1] if marks else digits


def as_date(text: str) -> str:
    """A day in the form 2024-05-03. One of numbers alone must say by itself which is the month: 25/12/2024, not 3/4/24.

    A full stop between them puts the day first, as the countries do that write it so.
    """
    words = re.findall(r"[0-9]+|[^\W\d_]+", text)
    numbers = [int(word) for word in words if word.isdigit()]
    months = [_MONTHS.index(word[:3].lower()) + 1 for word in words if word[:3].lower() in _MONTHS]
    lead = next((word for word in words if word.isdigit()), "")
    try:
        if len(months) == 1 and len(numbers) == 2:
            y, d = numbers if len(lead) == 4 else reversed(numbers)
            return _day(y, months[0], d)
        if not months and len(numbers) == 3:
            if len(lead) == 4:
                return _day(*numbers)
            a, b, y = numbers
            if b > 12:
                return _day(y, a, b)
            if a > 12 or a == b or re.search(r"[0-9]\s*\.\s*[0-9]", text):
                return _day(y, b, a)
            raise PumiceError(f"{text[:80]!r} may be either of two days")
    except ValueError:
        pass
    raise PumiceError(f"{text[:80]!r} isn't a date")


def _day(y: int, m: int, d: int) -> str:
    y += 0 if y > 99 else 1900 if y > 68 else 2000  # as POSIX has it
    return datetime.date(y, m, d).isoformat()


def as_choice(text: str, choices: Sequence[tuple[str, Any]]) -> Any:
    """The value of the choice that a text is, whatever its case."""
    for same in (str.strip, _folded):
        for shown, value in choices:
            if same(shown) == same(text):
                return value
    raise PumiceError(f"{text[:80]!r} isn't one of {', '.join(shown for shown, _ in choices)[:200]}")


def as_boolean(text: str) -> bool:
    """Yes or no."""
    words = re.findall(r"\w+", text.lower())
    if words[:1] and words[0] in YES + NO:
        return words[0] in YES
    raise PumiceError(f"{text[:80]!r} is neither yes nor no")


def is_absent(text: str) -> bool:
    """Whether an answer says that there is no such value."""
    return text.strip().rstrip(".").strip().lower() in ABSENT


def _folded(text: str) -> str:
    return text.strip().rstrip(".").casefold()
