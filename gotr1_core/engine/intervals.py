"""Means of scores with their 95 % confidence intervals. Every table, report and command takes its intervals from here.

========================================  ==================================================================================
numbers                                   interval
========================================  ==================================================================================
a share: all are 0 or 1                   Wilson's (J. Am. Stat. Assoc. 22, 1927, p. 209), as Brown, Cai and DasGupta advise
                                          (Stat. Sci. 16, 2001, p. 101)
the change of a share, in pairs           Newcombe's from two Wilson intervals (Stat. Med. 17, 1998, p. 2635, method 10)
all others                                percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993)
equal numbers, or one, that are no share  none (NaN): they do not tell how far other prompts would differ
========================================  ==================================================================================

The normal interval was replaced because it claims certainty for 16 of 16, and leaves the range from 0 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

Z = NormalDist().inv_cdf(0.975)
RESAMPLES = 2_000
DRAWN_TOGETHER = 1_000_000  # numbers of resamples in memory at a time
ROUNDING = 1e-9  # numbers that differ by less count as equal


@dataclass(frozen=True)
class Estimate:
    """A mean of ``count`` numbers, and the ends of its 95 % interval, NaN where there is none."""

    mean: float
    low: float
    high: float
    count: int

    def text(self, sign: str = "") -> str:
        """Returns the mean and its interval for people, such as ``0.500 [0.095, 0.905]``; ``sign="+"`` shows the signs of changes."""
        if not self.count:
            return "–"
        mean = f"{self.mean:{sign}.3f}"
        return mean if math.isnan(self.low) else f"{mean} [{self.low:{sign}.3f}, {self.high:{sign}.3f}]"


def known_mean(values: Sequence[float]) -> float:
    """Returns the mean of the values that are not NaN; NaN if there are none."""
    numbers = [v for v in values if not math.isnan(v)]
    return sum(numbers) / len(numbers) if numbers else math.nan


def estimate(values: Sequence[float]) -> Estimate:
    """Returns the mean of the values that are not NaN, with the interval that the table above names."""
    numbers = [v for v in values if not math.isnan(v)]
    interval = wilson(sum(numbers), len(numbers)) if numbers and _is_share(numbers) else _bootstrap(numbers)
    return Estimate(known_mean(numbers), *interval, len(numbers))


def estimate_change(before: Sequence[float], after: Sequence[float]) -> Estimate:
    """Returns the mean of ``after - before`` over the pairs in which both are known. The two have the same length."""
    pairs = [(b, a) for b, a in zip(before, after, strict=True) if not math.isnan(a - b)]
    differences = [a - b for b, a in pairs]
    if pairs and _is_share([number for pair in pairs for number in pair]):
        interval = newcombe(*(pairs.count(pair) for pair in [(1, 1), (0, 1), (1, 0), (0, 0)]))
    else:
        interval = _bootstrap(differences)
    return Estimate(known_mean(differences), *interval, len(pairs))


def wilson(hits: float, count: int) -> tuple[float, float]:
    """Returns Wilson's 95 % interval of a share, from 0 to 1, for ``hits`` of ``count`` (1 or more)."""
    share, spread = hits / count, Z**2 / count
    center = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return max(0.0, min(share, center - half)), min(1.0, max(share, center + half))


def newcombe(both: int, gained: int, lost: int, neither: int) -> tuple[float, float]:
    """Returns Newcombe's 95 % interval, from -1 to 1, of the change of a share in pairs.

    Counts of pairs, at least one: 1 before and after, 0 and then 1, 1 and then 0, 0 before and after.
    """
    count = both + gained + lost + neither
    before, after = (both + lost) / count, (both + gained) / count
    (low_before, high_before), (low_after, high_after) = wilson(both + lost, count), wilson(both + gained, count)
    product = both * neither - gained * lost
    margins = (both + lost) * (both + gained) * (neither + gained) * (neither + lost)
    correlation = (max(0.0, product - count / 2) if product > 0 else product) / math.sqrt(margins) if margins else 0.0

    def combined(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a**2 - 2 * correlation * a * b + b**2))

    change = after - before
    return change - combined(after - low_after, high_before - before), change + combined(high_after - after, before - low_before)


def _is_share(numbers: Sequence[float]) -> bool:
    return set(numbers) <= {0.0, 1.0}


def _bootstrap(numbers: Sequence[float]) -> tuple[float, float]:
    """The percentile interval of the mean over resamples, which are the same in every call; NaN for equal numbers."""
    if not numbers or max(numbers) - min(numbers) < ROUNDING:
        return math.nan, math.nan
    import numpy as np

    values, count = np.asarray(numbers), len(numbers)
    generator, rows = np.random.default_rng(0), max(1, DRAWN_TOGETHER // count)
    sizes = [min(rows, RESAMPLES - start) for start in range(0, RESAMPLES, rows)]
    means = np.concatenate([values[generator.integers(count, size=(size, count))].mean(1) for size in sizes])
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
