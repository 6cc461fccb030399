"""How sure a mean score is, and whether one run beats another on the same items. Pure Python.

scores + what they share (a picture, a video) ──> clustered error ──> interval
two runs' scores by item ──> differences ──> Paired: mean, interval, p
right answers out of all ──> Wilson's interval
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Literal

from pumice.types import PumiceError

Z95 = 1.959963984540054
"""Two-sided 95% quantile of the normal distribution."""


def wilson(right: int, total: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's interval (low, high) of a proportion (1927); 95% by default. It holds at 0 and 1 and for small totals.

    Raises:
        ValueError: not 0 <= right <= total, or total is 0.
    """
    if total < 1 or not 0 <= right <= total:
        raise ValueError(f"{right} right of {total}; expected at least one trial and 0 to {total} right")
    p, zz = right / total, z * z / total
    centre = (p + zz / 2) / (1 + zz)
    half = z / (1 + zz) * math.sqrt(p * (1 - p) / total + zz / (4 * total))
    # At the ends the sum is exact on paper only.
    return (0.0 if right == 0 else centre - half), (1.0 if right == total else centre + half)


def clustered_error(scores: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """Standard error of the mean where scores of one cluster aren't independent (Miller 2024, equation 4).

    sqrt(s²/n + sum over clusters of the products of two different members' deviations / n²). With every score its own
    cluster it is s / sqrt(n). With few clusters (below about 30) it is too small.

    Raises:
        ValueError: fewer than two scores, or not one cluster a score.
    """
    n = len(scores)
    if n < 2 or len(clusters) != n:
        raise ValueError(
            f"{n} scores and {len(clusters)} clusters; expected at least two scores, each with its cluster"
        )
    mean = fmean(scores)
    deviations: dict[Hashable, list[float]] = defaultdict(list)
    for score, cluster in zip(scores, clusters, strict=True):
        deviations[cluster].append(score - mean)
    cross = sum(sum(of) ** 2 - sum(d * d for d in of) for of in deviations.values())
    # Below zero by rounding alone: clusters may cancel exactly.
    return math.sqrt(max(0.0, variance(scores) / n + cross / n**2))


def clustered_interval(scores: Sequence[float], clusters: Sequence[Hashable], z: float = Z95) -> tuple[float, float]:
    """Normal interval (low, high) of the mean from `clustered_error`; 95% by default. It may leave the scores' range.

    Raises:
        ValueError: as `clustered_error`.
    """
    mean, half = fmean(scores), z * clustered_error(scores, clusters)
    return mean - half, mean + half


@dataclass(frozen=True)
class Paired:
    """A run against a baseline on the same items.

    difference   mean of score - baseline, with its standard ``error``
    interval     95%, Student's t
    p            two-sided, of ``test``: McNemar's exact test for 0/1 scores, else the paired t test
    better       items whose score is above the baseline's; ``worse`` below
    """

    n: int
    difference: float
    error: float
    interval: tuple[float, float]
    p: float
    test: Literal["exact McNemar", "paired t"]
    better: int
    worse: int


def compare(scores: Mapping[str, float], baseline: Mapping[str, float]) -> Paired:
    """Compare two runs' scores by item. Items are taken as independent of each other.

    Raises:
        PumiceError: fewer than two items, or the runs don't hold the same ones.
    """
    apart = scores.keys() ^ baseline.keys()
    if apart or len(scores) < 2:
        found = (
            f"{len(apart)} items are in one of them only, such as {sorted(apart)[0]!r}" if apart else "too few items"
        )
        raise PumiceError(
            f"comparing runs of {len(scores)} and {len(baseline)} items: {found}; expected two items at least, the "
            "same in both: evaluate both runs with the same tasks and number of questions"
        )
    differences = [float(scores[item] - baseline[item]) for item in scores]
    n, mean = len(differences), fmean(differences)
    error = math.sqrt(variance(differences) / n)
    half = student_quantile(0.975, n - 1) * error
    better, worse = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    if {*scores.values(), *baseline.values()} <= {0, 1}:
        return Paired(
            n, mean, error, (mean - half, mean + half), sign_test(better, worse), "exact McNemar", better, worse
        )
    p = 2 * student_tail(abs(mean) / error, n - 1) if error else float(mean == 0)
    return Paired(n, mean, error, (mean - half, mean + half), p, "paired t", better, worse)


def sign_test(better: int, worse: int) -> float:
    """Two-sided exact p of ``better`` against ``worse`` items, ties left out: McNemar's exact test for 0/1 scores."""
    n = better + worse
    tail = sum(math.comb(n, k) for k in range(min(better, worse) + 1))
    return min(1.0, 2 * tail / 2**n)


def student_tail(t: float, degrees: int) -> float:
    """P(T > t) of Student's t for t >= 0."""
    return incomplete_beta(degrees / 2, 0.5, degrees / (degrees + t * t)) / 2


def student_quantile(p: float, degrees: int) -> float:
    """The t with P(T < t) = p, for 0.5 <= p < 1, by bisection."""
    low, high = 0.0, 1.0
    while student_tail(high, degrees) > 1 - p:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if student_tail(middle, degrees) > 1 - p else (low, middle)
    return (low + high) / 2


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by its continued fraction (Numerical Recipes 6.4)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast on the other side
        return 1 - incomplete_beta(b, a, 1 - x)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    c, d = 1.0, 1 / _apart_from_zero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 1000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        step = 1.0
        for term in (even, odd):
            d, c = 1 / _apart_from_zero(1 + term * d), _apart_from_zero(1 + term / c)
            step = c * d
            value *= step
        if abs(step - 1) < 1e-15:
            break
    return math.exp(log_front) * value / a


def _apart_from_zero(value: float) -> float:
    return value if abs(value) > 1e-300 else 1e-300
