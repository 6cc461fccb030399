"""Scores of one answer against one truth, as strings."""

from __future__ import annotations

from collections.abc import Sequence


def normalise(text: str) -> str:
    """The rule of exact match: case folded, runs of white space made one blank, ends stripped, one final full stop
    removed. Nothing else: "$12.50" and "12.50" differ, and so do "1,000" and "1000".
    """
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()


def exact_match(prediction: str, truth: str) -> bool:
    """Whether the answers are equal after `normalise`."""
    return normalise(prediction) == normalise(truth)


def relaxed_match(prediction: str, truth: str, tolerance: float = 0.05) -> bool:
    """ChartQA's relaxed accuracy (Masry et al. 2022), with the oddities of its public scripts.

    Two numbers match within 5% of the truth, "5%" being 0.05; so years match their neighbours, and "5%" isn't "5".
    Everything else, a truth of 0 included, is compared as strings without regard to case: "1,000" isn't "1000".
    Source: pix2struct's `relaxed_correctness`, as in lmms-eval's tasks/chartqa/utils.py.
    """
    p, t = _number(prediction), _number(truth)
    if p is not None and t:
        return abs(p - t) / abs(t) <= tolerance
    return prediction.strip().lower() == truth.strip().lower()


def _number(text: str) -> float | None:
    """Python's float with a % for hundredths, or None."""
    text = text.strip()
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def levenshtein(a: Sequence[object], b: Sequence[object]) -> int:
    """Fewest insertions, deletions and substitutions that turn ``a`` into ``b``."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        corner, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (x != y))
    return row[-1]


def character_error_rate(prediction: str, reference: str) -> float:
    """Levenshtein distance / length of the reference, in characters; above 1 for an answer that rambles on.

    Case and punctuation count; white space at the ends doesn't. An empty reference gives 0 for an empty answer, else 1.
    """
    prediction, reference = prediction.strip(), reference.strip()
    if not reference:
        return float(bool(prediction))
    return levenshtein(prediction, reference) / len(reference)


def line_error_rates(prediction: str, reference: str) -> list[float]:
    """Character error rate of each line of the reference against the line with the same number of the answer.

    A missing line is wholly wrong (1.0). Lines beyond the reference's don't count here; they do in the rate of the
    whole, so the two together tell misreading from going on and on.
    """
    found, wanted = prediction.strip().splitlines(), reference.strip().splitlines()
    found += [""] * (len(wanted) - len(found))
    return [character_error_rate(p, r) for p, r in zip(found, wanted, strict=False)]


def pooled_error_rate(pairs: Sequence[tuple[str, str]]) -> float:
    """Character error rate over (prediction, reference) pairs: all edits / all characters, so long lines weigh more.

    Raises:
        ValueError: there is no character to read.
    """
    characters = sum(len(reference.strip()) for _, reference in pairs)
    if not characters:
        raise ValueError("no reference characters; a character error rate needs at least one")
    return sum(levenshtein(p.strip(), r.strip()) for p, r in pairs) / characters
