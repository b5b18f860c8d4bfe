"""Credit over the tree of samples, against references in plain Python."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gotr1_core.credit import EPS, TOLERANCE, Credit, constant_groups, joint, split
from gotr1_core.errors import UsageError

NAN = math.nan
Tree = list[list[list[float]]]
METHODS: list[Callable[..., Credit]] = [joint, split]

scores = st.integers(0, 20).map(lambda value: value / 20)


@st.composite
def trees(draw: st.DrawFn, missing: bool = True, least: int = 2) -> Tensor:
    p, n, m = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(least, 4))
    values = draw(st.lists(scores | st.just(NAN) if missing else scores, min_size=p * n * m, max_size=p * n * m))
    return torch.tensor(values, dtype=torch.float64).view(p, n, m)


def known(values: list[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def normalised(values: list[float], scale: bool) -> list[float]:
    """One group, NaN giving 0."""
    good = known(values)
    if len(good) < 2 or max(good) - min(good) <= TOLERANCE:
        return [0.0] * len(values)
    mean, deviation = statistics.fmean(good), statistics.stdev(good)
    return [0.0 if math.isnan(value) else (value - mean) / (deviation + EPS if scale else 1) for value in values]


def mean_or(values: list[float], otherwise: float) -> float:
    return statistics.fmean(known(values)) if known(values) else otherwise


def slow_joint(tree: Tree, scale: bool) -> tuple[list[list[float]], Tree]:
    plans, images = [], []
    for prompt in tree:
        flat = iter(normalised([value for plan in prompt for value in plan], scale))
        rows = [[next(flat) for _ in plan] for plan in prompt]
        images.append(rows)
        plans.append(
            [mean_or([a if not math.isnan(t) else NAN for a, t in zip(*pair, strict=True)], 0.0) for pair in zip(rows, prompt, strict=True)]
        )
    return plans, images


def slow_split(tree: Tree, scale: bool) -> tuple[list[list[float]], Tree]:
    plans, images = [], []
    for prompt in tree:
        plans.append(normalised([mean_or(plan, NAN) for plan in prompt], scale))
        centred = [normalised(plan, False) for plan in prompt]
        freedom = sum(max(0, len(known(plan)) - 1) for plan in prompt)
        squares = sum(value**2 for plan in centred for value in plan)
        deviation = math.sqrt(squares / freedom) if freedom else 0.0
        images.append([[value / (deviation + EPS if scale else 1) for value in plan] for plan in centred])
    return plans, images


def assert_close(credit: Credit, plan: object, image: object) -> None:
    for got, want in ((credit.plan, plan), (credit.image, image)):
        assert got.dtype == torch.float64 and not got.requires_grad
        torch.testing.assert_close(got, torch.as_tensor(want, dtype=torch.float64), rtol=1e-9, atol=1e-9)


@settings(deadline=None)
@given(trees(least=1), st.booleans())
def test_joint_is_what_it_says(totals: Tensor, scale: bool) -> None:
    assert_close(joint(totals, scale=scale), *slow_joint(totals.tolist(), scale))


@settings(deadline=None)
@given(trees(), st.booleans())
def test_split_is_what_it_says(totals: Tensor, scale: bool) -> None:
    assert_close(split(totals, scale=scale), *slow_split(totals.tolist(), scale))


def test_joint_by_hand() -> None:
    credit = joint(torch.tensor([[[0.0, 0.5], [1.0, NAN]]]), scale=False)
    assert_close(credit, [[-0.25, 0.5]], [[[-0.5, 0.0], [0.5, 0.0]]])
    scaled = joint(torch.tensor([[[0.0, 0.5], [1.0, NAN]]]))
    assert_close(scaled, credit.plan / (0.5 + EPS), credit.image / (0.5 + EPS))


def test_split_by_hand() -> None:
    totals = torch.tensor([[[0.0, 0.2], [1.0, 0.4]]], dtype=torch.float64)
    assert_close(split(totals, scale=False), [[-0.3, 0.3]], [[[-0.1, 0.1], [0.3, -0.3]]])
    pooled = math.sqrt((2 * 0.1**2 + 2 * 0.3**2) / 2)
    deviation = math.sqrt(2 * 0.3**2)
    image = [[[-0.1 / (pooled + EPS), 0.1 / (pooled + EPS)], [0.3 / (pooled + EPS), -0.3 / (pooled + EPS)]]]
    assert_close(split(totals), [[-0.3 / (deviation + EPS), 0.3 / (deviation + EPS)]], image)


@pytest.mark.parametrize("method", METHODS)
@settings(deadline=None)
@given(totals=trees(), shift=st.integers(-64, 64), scale=st.booleans())
def test_adding_a_constant_changes_nothing(method: Callable[..., Credit], totals: Tensor, shift: int, scale: bool) -> None:
    credit = method(totals, scale=scale)
    assert_close(method(totals + shift / 16, scale=scale), credit.plan, credit.image)


@pytest.mark.parametrize("method", METHODS)
@settings(deadline=None)
@given(totals=trees(), factor=st.sampled_from([0.5, 3.0, 10.0]))
def test_scale(method: Callable[..., Credit], totals: Tensor, factor: float) -> None:
    once, times = method(totals), method(totals * factor)
    # Equal but for EPS, whose share is at most EPS over the smallest deviation of scores in steps of 1/20.
    torch.testing.assert_close(times.plan, once.plan, rtol=1e-3, atol=1e-9)
    torch.testing.assert_close(times.image, once.image, rtol=1e-3, atol=1e-9)
    plain = method(totals, scale=False)
    assert_close(method(totals * factor, scale=False), plain.plan * factor, plain.image * factor)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 0.7, 1.0])
@pytest.mark.parametrize("noise", [0.0, 1e-12])
def test_a_constant_group_is_exactly_zero(method: Callable[..., Credit], value: float, noise: float) -> None:
    totals = value + noise * torch.rand(2, 3, 7, dtype=torch.float64)
    totals[0, 1, 2] = NAN
    for scale in (True, False):
        credit = method(totals, scale=scale)
        assert not credit.plan.any() and not credit.image.any()
    assert constant_groups(totals).all()


@settings(deadline=None)
@given(trees(missing=False), st.data())
def test_one_prompt_does_not_change_another(totals: Tensor, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(totals) - 1))
    for method in METHODS:
        assert_close(method(totals[index : index + 1]), method(totals).plan[index : index + 1], method(totals).image[index : index + 1])


@settings(deadline=None)
@given(trees(missing=False, least=3), st.booleans())
def test_missing_samples_might_as_well_not_exist(totals: Tensor, scale: bool) -> None:
    for method in METHODS:
        credit = method(totals, scale=scale)
        # A column of images, and a whole plan, that could not be had.
        wider = torch.cat([totals, torch.full((*totals.shape[:2], 1), NAN)], dim=2)
        wider = torch.cat([wider, torch.full((len(totals), 1, wider.shape[2]), NAN)], dim=1)
        more = method(wider, scale=scale)
        assert_close(Credit(more.plan[:, :-1], more.image[:, :-1, :-1]), credit.plan, credit.image)
        assert not more.plan[:, -1].any() and not more.image[:, -1].any() and not more.image[..., -1].any()


@pytest.mark.parametrize("method", METHODS)
def test_infinite_totals_count_as_missing(method: Callable[..., Credit]) -> None:
    totals = torch.tensor([[[0.1, 0.5, NAN], [0.2, NAN, 0.9]]])
    infinite = totals.clone()
    infinite[0, 0, 2], infinite[0, 1, 1] = math.inf, -math.inf
    assert_close(method(infinite), method(totals).plan, method(totals).image)


@pytest.mark.parametrize("method", METHODS)
def test_all_missing_is_zero(method: Callable[..., Credit]) -> None:
    credit = method(torch.full((2, 3, 4), NAN))
    assert credit.plan.shape == (2, 3) and credit.image.shape == (2, 3, 4)
    assert not credit.plan.any() and not credit.image.any()


@pytest.mark.parametrize("method", METHODS)
def test_no_prompts_no_credit(method: Callable[..., Credit]) -> None:
    credit = method(torch.zeros(0, 3, 4))
    assert credit.plan.shape == (0, 3) and credit.image.shape == (0, 3, 4)


def test_split_needs_siblings() -> None:
    with pytest.raises(UsageError, match="one image per plan") as caught:
        split(torch.rand(2, 4, 1))
    assert caught.value.hint


@pytest.mark.parametrize("shape", [(3,), (2, 3), (1, 2, 3, 4), (2, 0, 3), (2, 3, 0)])
def test_totals_of_another_shape(shape: tuple[int, ...]) -> None:
    for function in (joint, split, constant_groups):
        with pytest.raises(ValueError, match=r"\[P, N, M\]"):
            function(torch.zeros(shape))


@pytest.mark.parametrize("method", METHODS)
def test_input_is_left_alone_and_gradients_stop(method: Callable[..., Credit]) -> None:
    totals = torch.rand(2, 3, 4, requires_grad=True)
    before = totals.detach().clone()
    credit = method(totals)
    assert not credit.plan.requires_grad and not credit.image.requires_grad
    assert torch.equal(totals.detach(), before)


@settings(deadline=None)
@given(trees(least=1))
def test_constant_groups(totals: Tensor) -> None:
    for prompt, constant in zip(totals.tolist(), constant_groups(totals).tolist(), strict=True):
        assert constant == (len(set(known([value for plan in prompt for value in plan]))) < 2)


def test_tolerance_of_constant_groups() -> None:
    totals = torch.tensor([[[0.5, 0.5 + 1e-4]], [[0.5, NAN]], [[NAN, NAN]]], dtype=torch.float64)
    assert constant_groups(totals).tolist() == [False, True, True]
    assert constant_groups(totals, tolerance=1e-3).tolist() == [True, True, True]
