"""Confidence intervals: compared with scipy, with published examples, and by how often they contain the truth."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy.stats import binomtest

from gotr1_core.engine import intervals
from gotr1_core.engine.intervals import Estimate, estimate, estimate_change, known_mean, newcombe, wilson

NAN = math.nan
unit = st.floats(0, 1)
shares = st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=40)


def test_sixteen_of_sixteen_is_not_certain() -> None:
    found = estimate([1.0] * 16)
    assert (found.mean, found.high, found.count) == (1.0, 1.0, 16)
    assert found.low == pytest.approx(0.806392, abs=1e-6)
    assert found.text() == "1.000 [0.806, 1.000]"


def test_one_of_two_stays_between_0_and_1() -> None:
    assert estimate([0.0, 1.0]).text() == "0.500 [0.095, 0.905]"


@given(shares)
def test_shares_against_scipy(numbers: list[float]) -> None:
    found, expected = estimate(numbers), binomtest(int(sum(numbers)), len(numbers)).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= found.low <= found.mean <= found.high <= 1


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        # (both, gained, lost, neither). The first two are examples of Newcombe's paper and of Fagerland, Lydersen and Laake (Stat. Med. 33,
        # 2014, p. 2850): 1 and 7 and 1 and 12 patients before and after a transplantation.
        ((36, 12, 2, 0), (0.0569, 0.3404)),
        ((1, 7, 1, 12), (0.0256, 0.5069)),
        ((0, 1, 0, 0), (-0.1221, 1.0)),
        ((1, 0, 0, 0), (-0.7935, 0.7935)),
    ],
)
def test_changes_of_shares_against_published_ones(counts: tuple[int, int, int, int], expected: tuple[float, float]) -> None:
    both, gained, lost, neither = counts
    assert newcombe(*counts) == pytest.approx(expected, abs=5e-5)
    low, high = newcombe(both, lost, gained, neither)
    assert (-high, -low) == pytest.approx(newcombe(*counts), abs=1e-12)  # the way back
    before = [1.0] * both + [0.0] * gained + [1.0] * lost + [0.0] * neither
    after = [1.0] * both + [1.0] * gained + [0.0] * lost + [0.0] * neither
    found = estimate_change(before, after)
    assert (found.low, found.high) == newcombe(*counts)


@given(st.lists(st.tuples(unit, unit), min_size=2, max_size=20))
def test_an_interval_holds_its_mean_and_no_impossible_number(pairs: list[tuple[float, float]]) -> None:
    before, after = zip(*pairs, strict=True)
    found = estimate(before)
    assert found.mean == pytest.approx(np.mean(before), abs=1e-14)
    ends = (0, 1) if set(before) <= {0.0, 1.0} else (min(before) - 1e-15, max(before) + 1e-15)
    assert math.isnan(found.low) or ends[0] <= found.low <= found.high <= ends[1]
    change = estimate_change(before, after)
    assert math.isnan(change.low) or -1 <= change.low <= change.high <= 1


def test_a_large_sample_has_nearly_the_normal_interval() -> None:
    numbers = np.random.default_rng(1).beta(2, 1, 400).tolist()
    half = 1.96 * np.std(numbers, ddof=1) / 20
    found = estimate(numbers)
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half), abs=0.1 * half)
    assert estimate(numbers) == found  # the same resamples in every call


def test_intervals_contain_the_truth_about_as_often_as_they_say() -> None:
    """Of scores as judges give them: most are 1, the others are lower. And of the change of a share in 40 pairs, of which 10 % change."""
    generator = np.random.default_rng(2)
    inside, paired = 0, 0
    for _ in range(200):
        scores = np.where(generator.random(60) < 0.7, 1.0, generator.random(60))
        found = estimate(scores.tolist())
        inside += found.low <= 0.7 + 0.3 * 0.5 <= found.high
        before = generator.random(40) < 0.7
        after = before ^ (generator.random(40) < 0.1)  # 0.7 * 0.9 + 0.3 * 0.1 = 0.66 are right afterwards
        change = estimate_change(before.astype(float).tolist(), after.astype(float).tolist())
        paired += change.low <= -0.04 <= change.high
    assert 180 <= inside <= 200
    assert 184 <= paired <= 200


@pytest.mark.parametrize("numbers", [[0.5], [0.25] * 9, [3.0, 3.0], [0.1 + 0.2, 0.3]])
def test_equal_numbers_that_are_no_share_have_no_interval(numbers: Sequence[float]) -> None:
    found = estimate(numbers)
    assert found.mean == pytest.approx(numbers[0])
    assert math.isnan(found.low)
    assert math.isnan(found.high)  # not the mean, which would claim certainty
    assert found.text("+") == f"{found.mean:+.3f}"
    assert math.isnan(estimate_change(numbers, [n + 0.1 for n in numbers]).low)


def test_nan_is_left_out() -> None:
    assert estimate([0.25, NAN, 0.75, NAN]) == estimate([0.25, 0.75])
    assert estimate_change([0.0, NAN, 1.0], [1.0, 1.0, NAN]) == estimate_change([0.0], [1.0])
    nothing = estimate([NAN, NAN])
    assert (nothing.count, nothing.text()) == (0, "–")
    assert all(map(math.isnan, (nothing.mean, nothing.low, nothing.high, known_mean([NAN]))))
    assert estimate_change([], []).count == 0


def test_many_numbers_are_drawn_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = np.random.default_rng(3).random(50).tolist()
    whole = estimate(numbers)
    monkeypatch.setattr(intervals, "DRAWN_TOGETHER", 130)
    pieces = estimate(numbers)
    assert (pieces.low, pieces.high) == pytest.approx((whole.low, whole.high))


def test_wilson_with_nothing_right() -> None:
    assert wilson(0, 10) == (0.0, pytest.approx(0.2775, abs=1e-4))
    assert Estimate(-0.5, -0.75, 0.25, 3).text("+") == "-0.500 [-0.750, +0.250]"
