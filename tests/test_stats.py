"""Errors of means and paired tests against golden values, closed forms and simulation."""

from __future__ import annotations

import math
import random
from statistics import fmean, stdev

import pytest

from pumice.eval.metrics import stats
from pumice.types import PumiceError


@pytest.mark.parametrize(
    ("scores", "clusters", "error"),
    [
        # Printed by lmms-eval 0.7.3's clustered_stderr.
        ([1, 0, 1, 1], [0, 0, 1, 1], 0.21651),
        ([1, 1, 0, 0], [0, 0, 1, 1], 0.38188),
        ([1, 0, 1, 1], [0, 1, 2, 3], 0.25),
    ],
)
def test_clustered_error(scores, clusters, error):
    assert stats.clustered_error(scores, clusters) == pytest.approx(error, abs=5e-6)
    low, high = stats.clustered_interval(scores, clusters)
    assert (low + high) / 2 == pytest.approx(fmean(scores))
    assert (high - low) / 2 == pytest.approx(1.959964 * error, abs=2e-5)


def test_clusters_of_one_are_independent_scores():
    rng = random.Random(1)
    scores = [rng.random() for _ in range(40)]
    assert stats.clustered_error(scores, range(40)) == pytest.approx(stdev(scores) / math.sqrt(40))
    # Scores that are copies of each other carry the information of one.
    copied = stats.clustered_error(scores * 3, [*range(40)] * 3)
    assert copied == pytest.approx(stdev(scores) / math.sqrt(40), rel=0.02)
    assert stats.clustered_error(scores * 3, range(120)) < 0.6 * copied


def test_the_clustered_interval_holds_its_level():
    rng, held = random.Random(2), 0
    for _ in range(400):
        shift = [rng.gauss(0, 1) for _ in range(60)]
        scores = [shift[cluster] + rng.gauss(0, 1) for cluster in range(60) for _ in range(4)]
        low, high = stats.clustered_interval(scores, [cluster for cluster in range(60) for _ in range(4)])
        held += low < 0 < high
    assert 0.91 < held / 400 < 0.98


def test_errors_need_two_scores_with_clusters():
    for scores, clusters in (([1.0], [0]), ([1.0, 0.0], [0])):
        with pytest.raises(ValueError, match="at least two scores, each with its cluster"):
            stats.clustered_error(scores, clusters)
    assert stats.clustered_error([1, 1, 1], [0, 0, 1]) == 0


@pytest.mark.parametrize(
    ("better", "worse", "p"),
    [(0, 0, 1.0), (5, 5, 1.0), (5, 0, 0.0625), (1, 9, 22 / 1024), (12, 3, 1152 / 32768), (150, 100, 0.00188)],
)
def test_sign_test(better, worse, p):
    assert stats.sign_test(better, worse) == pytest.approx(p, rel=5e-3)
    assert stats.sign_test(worse, better) == stats.sign_test(better, worse)


@pytest.mark.parametrize(
    ("degrees", "t"),
    [(1, 12.7062), (2, 4.30265), (10, 2.22814), (30, 2.04227), (1000, 1.96234)],  # any printed table of Student's t
)
def test_student(degrees, t):
    assert stats.student_quantile(0.975, degrees) == pytest.approx(t, abs=1e-4)
    assert stats.student_tail(t, degrees) == pytest.approx(0.025, abs=1e-6)
    assert stats.student_tail(0, degrees) == 0.5


def test_against_scipy():
    scipy = pytest.importorskip("scipy.stats")
    rng = random.Random(3)
    for _ in range(100):
        t, degrees = rng.uniform(0, 8), rng.randint(1, 500)
        assert stats.student_tail(t, degrees) == pytest.approx(scipy.t.sf(t, degrees), rel=1e-9)
        a, b = rng.randint(0, 300), rng.randint(1, 300)
        assert stats.sign_test(a, b) == pytest.approx(scipy.binomtest(a, a + b).pvalue, rel=1e-9)
        ours = {str(i): rng.random() for i in range(rng.randint(3, 50))}
        theirs = {i: rng.random() for i in ours}
        found, wanted = stats.compare(ours, theirs), scipy.ttest_rel(list(ours.values()), [theirs[i] for i in ours])
        assert found.p == pytest.approx(wanted.pvalue, rel=1e-9)
        assert found.interval == pytest.approx(tuple(wanted.confidence_interval(0.95)))


def test_compare_zero_one_scores():
    ours = {str(i): float(i < 15) for i in range(20)}
    theirs = {str(i): float(6 <= i < 17) for i in range(20)}
    found = stats.compare(ours, theirs)
    assert (found.test, found.n, found.better, found.worse) == ("exact McNemar", 20, 6, 2)
    assert found.difference == pytest.approx(0.2)
    assert found.p == pytest.approx(stats.sign_test(6, 2)) == pytest.approx(0.2890625)
    assert found.interval[0] < 0.2 < found.interval[1]
    back = stats.compare(theirs, ours)
    assert (back.difference, back.p) == (-found.difference, found.p)
    # The order of the items in either run doesn't matter.
    assert stats.compare(ours, dict(reversed(theirs.items()))) == found


def test_compare_other_scores():
    # Differences 1, 2, 3: t = 2 / (1 / sqrt 3) with two degrees of freedom.
    found = stats.compare({"a": 1, "b": 2.5, "c": 3}, {"a": 0, "b": 0.5, "c": 0})
    assert found.test == "paired t"
    assert found.error == pytest.approx(1 / math.sqrt(3))
    assert found.p == pytest.approx(0.0741799, abs=1e-6)
    assert found.interval == pytest.approx((2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)))
    same = stats.compare({"a": 0.5, "b": 0.2}, {"a": 0.5, "b": 0.2})
    assert (same.difference, same.p, same.interval) == (0, 1, (0, 0))
    assert stats.compare({"a": 0.75, "b": 0.5}, {"a": 0.25, "b": 0.0}).p == 0


def test_compare_refuses_other_items():
    with pytest.raises(PumiceError, match="2 items are in one of them only, such as 'b'"):
        stats.compare({"a": 1, "b": 0}, {"a": 1, "c": 0})
    with pytest.raises(PumiceError, match="too few items"):
        stats.compare({"a": 1}, {"a": 0})
