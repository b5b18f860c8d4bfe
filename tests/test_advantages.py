"""Advantages over the tree of samples, compared with references in plain Python."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from gotr1_core.advantages import EPS, TOLERANCE, Advantages, constant_groups, joint, split
from gotr1_core.errors import UsageError

NAN = math.nan
Tree = list[list[list[float]]]
METHODS: list[Callable[..., Advantages]] = [joint, split]

scores = st.integers(0, 20).map(lambda value: value / 20)


@st.composite
def trees(draw: st.DrawFn, missing: bool = True, least: int = 2) -> Tensor:
    p, n, m = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(least, 4))
    values = draw(st.lists(scores | st.just(NAN) if missing else scores, min_size=p * n * m, max_size=p * n * m))
    return torch.tensor(values, dtype=torch.float64).view(p, n, m)


def known(values: list[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def normalised(values: list[float], scale: bool) -> list[float]:
    """Normalised rewards of one group. NaN gives 0."""
    good = known(values)
    if len(good) < 2 or max(good) - min(good) <= TOLERANCE:
        return [0.0] * len(values)
    mean, std = statistics.fmean(good), statistics.stdev(good)
    return [0.0 if math.isnan(value) else (value - mean) / (std + EPS if scale else 1) for value in values]


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
        std = math.sqrt(squares / freedom) if freedom else 0.0
        images.append([[value / (std + EPS if scale else 1) for value in plan] for plan in centred])
    return plans, images


def assert_close(advantages: Advantages, plan: object, image: object) -> None:
    for got, want in ((advantages.plan, plan), (advantages.image, image)):
        assert got.dtype == torch.float64 and not got.requires_grad
        torch.testing.assert_close(got, torch.as_tensor(want, dtype=torch.float64), rtol=1e-9, atol=1e-9)


@settings(deadline=None)
@given(trees(least=1), st.booleans())
def test_joint_is_what_it_says(rewards: Tensor, scale: bool) -> None:
    assert_close(joint(rewards, scale=scale), *slow_joint(rewards.tolist(), scale))


@settings(deadline=None)
@given(trees(), st.booleans())
def test_split_is_what_it_says(rewards: Tensor, scale: bool) -> None:
    assert_close(split(rewards, scale=scale), *slow_split(rewards.tolist(), scale))


def test_joint_by_hand() -> None:
    advantages = joint(torch.tensor([[[0.0, 0.5], [1.0, NAN]]]), scale=False)
    assert_close(advantages, [[-0.25, 0.5]], [[[-0.5, 0.0], [0.5, 0.0]]])
    scaled = joint(torch.tensor([[[0.0, 0.5], [1.0, NAN]]]))
    assert_close(scaled, advantages.plan / (0.5 + EPS), advantages.image / (0.5 + EPS))


def test_split_by_hand() -> None:
    rewards = torch.tensor([[[0.0, 0.2], [1.0, 0.4]]], dtype=torch.float64)
    assert_close(split(rewards, scale=False), [[-0.3, 0.3]], [[[-0.1, 0.1], [0.3, -0.3]]])
    pooled = math.sqrt((2 * 0.1**2 + 2 * 0.3**2) / 2)
    std = math.sqrt(2 * 0.3**2)
    image = [[[-0.1 / (pooled + EPS), 0.1 / (pooled + EPS)], [0.3 / (pooled + EPS), -0.3 / (pooled + EPS)]]]
    assert_close(split(rewards), [[-0.3 / (std + EPS), 0.3 / (std + EPS)]], image)


@pytest.mark.parametrize("method", METHODS)
@settings(deadline=None)
@given(rewards=trees(), shift=st.integers(-64, 64), scale=st.booleans())
def test_adding_a_constant_changes_nothing(method: Callable[..., Advantages], rewards: Tensor, shift: int, scale: bool) -> None:
    advantages = method(rewards, scale=scale)
    assert_close(method(rewards + shift / 16, scale=scale), advantages.plan, advantages.image)


@pytest.mark.parametrize("method", METHODS)
@settings(deadline=None)
@given(rewards=trees(), factor=st.sampled_from([0.5, 3.0, 10.0]))
def test_scale(method: Callable[..., Advantages], rewards: Tensor, factor: float) -> None:
    once, times = method(rewards), method(rewards * factor)
    # Equal but for EPS, whose share is at most EPS over the smallest deviation of scores in steps of 1/20.
    torch.testing.assert_close(times.plan, once.plan, rtol=1e-3, atol=1e-9)
    torch.testing.assert_close(times.image, once.image, rtol=1e-3, atol=1e-9)
    plain = method(rewards, scale=False)
    assert_close(method(rewards * factor, scale=False), plain.plan * factor, plain.image * factor)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 0.7, 1.0])
@pytest.mark.parametrize("noise", [0.0, 1e-12])
def test_a_constant_group_is_exactly_zero(method: Callable[..., Advantages], value: float, noise: float) -> None:
    rewards = value + noise * torch.rand(2, 3, 7, dtype=torch.float64)
    rewards[0, 1, 2] = NAN
    for scale in (True, False):
        advantages = method(rewards, scale=scale)
        assert not advantages.plan.any() and not advantages.image.any()
    assert constant_groups(rewards).all()


@settings(deadline=None)
@given(trees(missing=False), st.data())
def test_one_prompt_does_not_change_another(rewards: Tensor, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(rewards) - 1))
    for method in METHODS:
        assert_close(method(rewards[index : index + 1]), method(rewards).plan[index : index + 1], method(rewards).image[index : index + 1])


@settings(deadline=None)
@given(trees(missing=False, least=3), st.booleans())
def test_missing_samples_do_not_change_the_others(rewards: Tensor, scale: bool) -> None:
    for method in METHODS:
        advantages = method(rewards, scale=scale)
        # A column of images, and a whole plan, that could not be had.
        wider = torch.cat([rewards, torch.full((*rewards.shape[:2], 1), NAN)], dim=2)
        wider = torch.cat([wider, torch.full((len(rewards), 1, wider.shape[2]), NAN)], dim=1)
        more = method(wider, scale=scale)
        assert_close(Advantages(more.plan[:, :-1], more.image[:, :-1, :-1]), advantages.plan, advantages.image)
        assert not more.plan[:, -1].any() and not more.image[:, -1].any() and not more.image[..., -1].any()


@pytest.mark.parametrize("method", METHODS)
def test_infinite_rewards_count_as_missing(method: Callable[..., Advantages]) -> None:
    rewards = torch.tensor([[[0.1, 0.5, NAN], [0.2, NAN, 0.9]]])
    infinite = rewards.clone()
    infinite[0, 0, 2], infinite[0, 1, 1] = math.inf, -math.inf
    assert_close(method(infinite), method(rewards).plan, method(rewards).image)


@pytest.mark.parametrize("method", METHODS)
def test_all_missing_is_zero(method: Callable[..., Advantages]) -> None:
    advantages = method(torch.full((2, 3, 4), NAN))
    assert advantages.plan.shape == (2, 3) and advantages.image.shape == (2, 3, 4)
    assert not advantages.plan.any() and not advantages.image.any()


@pytest.mark.parametrize("method", METHODS)
def test_no_prompts_give_no_advantages(method: Callable[..., Advantages]) -> None:
    advantages = method(torch.zeros(0, 3, 4))
    assert advantages.plan.shape == (0, 3) and advantages.image.shape == (0, 3, 4)


def test_split_needs_siblings() -> None:
    with pytest.raises(UsageError, match="one image per plan") as caught:
        split(torch.rand(2, 4, 1))
    assert caught.value.hint


@pytest.mark.parametrize("shape", [(3,), (2, 3), (1, 2, 3, 4), (2, 0, 3), (2, 3, 0)])
def test_rewards_of_another_shape(shape: tuple[int, ...]) -> None:
    for function in (joint, split, constant_groups):
        with pytest.raises(ValueError, match=r"\[P, N, M\]"):
            function(torch.zeros(shape))


@pytest.mark.parametrize("method", METHODS)
def test_input_is_left_alone_and_gradients_stop(method: Callable[..., Advantages]) -> None:
    rewards = torch.rand(2, 3, 4, requires_grad=True)
    before = rewards.detach().clone()
    advantages = method(rewards)
    assert not advantages.plan.requires_grad and not advantages.image.requires_grad
    assert torch.equal(rewards.detach(), before)


@settings(deadline=None)
@given(trees(least=1))
def test_constant_groups(rewards: Tensor) -> None:
    for prompt, constant in zip(rewards.tolist(), constant_groups(rewards).tolist(), strict=True):
        assert constant == (len(set(known([value for plan in prompt for value in plan]))) < 2)


def test_tolerance_of_constant_groups() -> None:
    rewards = torch.tensor([[[0.5, 0.5 + 1e-4]], [[0.5, NAN]], [[NAN, NAN]]], dtype=torch.float64)
    assert constant_groups(rewards).tolist() == [False, True, True]
    assert constant_groups(rewards, tolerance=1e-3).tolist() == [True, True, True]
