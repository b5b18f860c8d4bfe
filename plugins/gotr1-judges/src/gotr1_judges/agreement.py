"""How far two judges agree on the same samples: Kendall's tau-b, and the order of a prompt's samples, with 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gotr1_core.engine.intervals import RESAMPLES, Estimate, estimate


@dataclass(frozen=True)
class Agreement:
    """How far two judges agree on one score.

    Attributes:
        tau: Kendall's tau-b (Biometrika 33, 1945, p. 239) over the samples that both have scored, from -1 to 1; NaN if one judge gives
            equal scores only. Its interval is a percentile bootstrap over prompts.
        order: of a prompt's pairs that the first judge tells apart, the share that the second one puts in the same order, where a tie is
            half; the mean over prompts that have such pairs.
    """

    tau: Estimate
    order: Estimate


def agreement(first: Sequence[float], second: Sequence[float], prompts: Sequence[Hashable], groups: Sequence[Hashable]) -> Agreement:
    """Compares two judges' scores of the same samples; those with a NaN are left out.

    Args:
        first, second: one number per sample.
        prompts: of each sample; the bootstrap draws whole prompts.
        groups: samples of one group have one prompt, and were drawn together; only their pairs count for the order.
    """
    known = [i for i, (a, b) in enumerate(zip(first, second, strict=True)) if not math.isnan(a + b)]
    a, b = (_signs([scores[i] for i in known]) for scores in (first, second))
    shares = []
    for group in dict.fromkeys(groups[i] for i in known):
        rows = [row for row, i in enumerate(known) if groups[i] == group]
        ours, theirs = a[np.ix_(rows, rows)], b[np.ix_(rows, rows)]
        if ours.any():
            shares.append(float(((ours * theirs)[ours != 0] + 1).mean() / 2))
    return Agreement(_tau(a, b, [prompts[i] for i in known]), estimate(shares))


def _signs(scores: Sequence[float]) -> NDArray[np.float64]:
    """The order of each pair ``[n, n]``: 1 if the row's score is larger than the column's, 0 if they are equal, -1."""
    values = np.asarray(scores, np.float64)
    return np.sign(values[:, None] - values[None, :])


def _tau(a: NDArray[np.float64], b: NDArray[np.float64], prompts: Sequence[Hashable]) -> Estimate:
    """Tau-b is the sum of products of the signs over the root of the product of their squares' sums.

    These sums are made for each pair of prompts once, so that a resample, which repeats prompts, only weighs them.
    """
    number = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    member = np.zeros((len(number), len(prompts)))
    member[[number[prompt] for prompt in prompts], range(len(prompts))] = 1
    sums = [member @ product @ member.T for product in (a * b, a * a, b * b)]

    def tau(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        agree, in_a, in_b = (((weights @ table) * weights).sum(-1) for table in sums)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(agree / np.sqrt(in_a * in_b))

    value = float(tau(np.ones(len(number)))) if number else math.nan
    if len(number) < 2 or math.isnan(value):
        return Estimate(value, math.nan, math.nan, len(prompts))
    drawn = np.random.default_rng(0).multinomial(len(number), np.full(len(number), 1 / len(number)), size=RESAMPLES)
    resampled = tau(drawn.astype(np.float64))
    low, high = np.nanquantile(resampled, [0.025, 0.975]) if not np.isnan(resampled).all() else (math.nan, math.nan)
    return Estimate(value, float(low), float(high), len(prompts))
