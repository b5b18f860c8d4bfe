"""Confidence intervals of held-out scores, compared with numpy and with hand-computed ones; and NaN scores."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, strategies as st

from gotr1_core.chain import parse
from gotr1_core.evaluation import REWARD, Estimate, HeldOut, change_label, columns, estimate, paired, summary
from gotr1_core.samples import Prompt, Sample

NAN = math.nan
values = st.lists(st.floats(0, 1), min_size=2, max_size=30)


def test_by_hand() -> None:
    found = estimate([0.0, 1.0, 1.0, 0.0])
    assert (found.mean, found.count) == (0.5, 4)
    # Sample variance 4 * 0.25 / 3, of the mean 1/12.
    assert found.half_width == pytest.approx(1.96 / math.sqrt(12), rel=1e-15)


@given(values)
def test_against_numpy(numbers: list[float]) -> None:
    found = estimate(numbers)
    error = np.std(numbers, ddof=1) / math.sqrt(len(numbers))
    # Thirty numbers of size one, summed in another order; a deviation of nearly equal numbers is itself rounding.
    assert found.mean == pytest.approx(np.mean(numbers), abs=1e-14)
    assert found.half_width == pytest.approx(1.96 * error, abs=1e-14)


def test_nan_is_left_out() -> None:
    assert estimate([0.25, NAN, 0.75, NAN]) == estimate([0.25, 0.75])
    assert estimate([NAN, 1.0, 0.5]).count == 2


@pytest.mark.parametrize(("numbers", "mean", "count"), [([], NAN, 0), ([NAN, NAN], NAN, 0), ([0.5, NAN], 0.5, 1)])
def test_too_few_have_no_interval(numbers: Sequence[float], mean: float, count: int) -> None:
    found = estimate(numbers)
    assert (found.mean, found.count) == (pytest.approx(mean, nan_ok=True), count)
    assert math.isnan(found.half_width)  # not 0, which would claim certainty


def change(before: Sequence[float], after: Sequence[float]) -> Estimate:
    prompts = [(str(i), "") for i in range(len(before))]
    return paired(HeldOut(prompts, {"x": before}), HeldOut(prompts, {"x": after}), "x")


def test_pairs_are_compared_prompt_by_prompt() -> None:
    before, after = [0.0, 0.5, 1.0, 0.2], [0.1, 0.6, 1.1, 0.3]
    found = change(before, after)
    assert found.mean == pytest.approx(0.1)
    # Every prompt rose by the same, so there is no doubt, although the prompts differ a lot among themselves.
    assert found.half_width < 1e-15
    assert estimate(before).half_width > 0.4
    assert change([0, 0, 1], [1, 0, 1]).mean == pytest.approx(1 / 3)  # after - before


def test_a_pair_needs_both() -> None:
    assert change([0.0, NAN, 0.5, 0.0], [1.0, 1.0, NAN, 0.5]) == estimate([1.0, 0.5])


def test_pairs_are_of_one_prompt_and_never_of_one_place() -> None:
    """Other prompts, another order, a prompt that is there twice: only what both have is compared, its first with its first."""
    before = HeldOut([("1", "cat"), ("2", "dog"), ("3", "owl"), ("1", "cat")], {"pi": [0.1, 0.2, 0.3, 0.4]})
    after = HeldOut([("3", "owl"), ("1", "cat"), ("2", "a dog"), ("1", "cat"), ("1", "cat")], {"pi": [0.5, 0.2, 0.9, 0.8, 0.7]})
    found = paired(before, after, "pi")
    assert (found.count, found.mean) == (3, pytest.approx((0.2 + 0.1 + 0.4) / 3))
    assert change_label(before, after) == "change of the 3 prompts in both"
    assert change_label(before, before) == "change"
    nothing = paired(before, HeldOut([("1", "dog")], {"pi": [1.0]}), "pi")
    assert (nothing.count, math.isnan(nothing.mean)) == (0, True)


def test_held_out_scores_go_through_json() -> None:
    scores = HeldOut([("1", "cat"), ("", "dog")], {"reward": [0.5, 0.25], "pi": [0.5, NAN]})
    again = HeldOut.from_json(json.loads(json.dumps(scores.as_json())))
    assert (again.prompts, list(again), again["reward"]) == (scores.prompts, ["reward", "pi"], [0.5, 0.25])
    assert math.isnan(again["pi"][1])
    with pytest.raises(ValueError, match="one number per prompt"):
        HeldOut.from_json({"prompts": [["1", "cat"]], "pi": [1.0, 2.0]})


def sample(reward: float, **scores: float) -> Sample:
    return Sample(Prompt("a circle"), parse(""), None, scores=scores, reward=reward)


def test_columns_and_their_means() -> None:
    samples = [sample(0.5, pi=1.0, ri=NAN), sample(NAN, pi=0.5, ri=0.25)]
    found = columns(samples)
    assert list(found) == [REWARD, "pi", "ri"]
    assert found["pi"] == [1.0, 0.5]
    means = {name: (value.mean, value.count) for name, value in summary(samples).items()}
    assert means == {REWARD: (0.5, 1), "pi": (0.75, 2), "ri": (0.25, 1)}
