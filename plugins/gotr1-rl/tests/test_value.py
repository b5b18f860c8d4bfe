"""Advantage estimation, the value loss and whitening, compared with slow references in plain Python, written from the papers' formulas."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from gotr1_rl.value import ValueHead, episode_end, gae, moments, value_loss, whiten

ROUNDING = 1e-12
"""Relative, in float64: sums of a dozen terms of size one err by about 1e-15."""


def slow_gae(rewards: Sequence[float], values: Sequence[float], discount: float, decay: float) -> list[float]:
    """arXiv 1506.02438, eq. 16 as written: A_t = sum over l of (discount * decay)^l * delta_(t+l), of an episode that ends."""
    following = [*values[1:], 0.0][: len(values)]
    delta = [r + discount * after - v for r, v, after in zip(rewards, values, following, strict=True)]
    return [math.fsum((discount * decay) ** (k - t) * delta[k] for k in range(t, len(delta))) for t in range(len(delta))]


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


HOW = [(1.0, 1.0), (0.9, 1.0), (1.0, 0.8), (0.95, 0.7), (0.9, 0.0)]


@pytest.mark.parametrize(("discount", "decay"), HOW)
def test_advantages_are_the_papers(discount: float, decay: float) -> None:
    """Actions at any positions of a row, and rows without any. A reward at the end is added to those on the way."""
    rewards, values, last = some(5, 7, seed=1), some(5, 7, seed=2), some(5, seed=3)
    mask = some(5, 7, seed=4) > -0.3
    mask[3] = False
    found, _ = gae(rewards, values, mask, episode_end(last), discount, decay)
    assert mask.sum() not in (0, mask.numel())
    for row in range(5):
        places = mask[row].nonzero().flatten().tolist()
        paid = [rewards[row, t].item() for t in places]
        if paid:
            paid[-1] += last[row].item()
        expected = slow_gae(paid, [values[row, t].item() for t in places], discount, decay)
        assert found[row, places].tolist() == pytest.approx(expected, rel=ROUNDING, abs=ROUNDING)
    assert not found[~mask].any()


@pytest.mark.parametrize(("discount", "decay"), HOW)
@pytest.mark.parametrize("empty", [False, True])
def test_advantages_of_an_episode_in_two_pieces_equal_those_of_the_whole(discount: float, decay: float, empty: bool) -> None:
    """Also if the second piece has no action: its reward then belongs to the last action of the first."""
    rewards, values, last = some(4, 9, seed=5), some(4, 9, seed=6), some(4, seed=7)
    mask = some(4, 9, seed=8) > -0.5
    if empty:
        mask[:, 5:] = False
    whole, _ = gae(rewards, values, mask, episode_end(last), discount, decay)
    second, between = gae(rewards[:, 5:], values[:, 5:], mask[:, 5:], episode_end(last), discount, decay)
    first, _ = gae(rewards[:, :5], values[:, :5], mask[:, :5], between, discount, decay)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=ROUNDING, atol=ROUNDING)
    assert (between.reward.abs() > 0).all() if empty else between.reward[mask[:, 5:].any(1)].eq(0).all()


def test_without_discount_and_decay_the_advantage_is_return_minus_value() -> None:
    rewards, values, last = torch.zeros(3, 6), some(3, 6), some(3, seed=1)
    found, before = gae(rewards.double(), values, torch.ones(3, 6, dtype=torch.bool), episode_end(last), 1.0, 1.0)
    torch.testing.assert_close(found, last.unsqueeze(1) - values, rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(before.value + before.advantage, last, rtol=ROUNDING, atol=ROUNDING)


def test_perfect_values_leave_no_advantage() -> None:
    discount = 0.9
    values = torch.tensor([[discount**3, discount**2, discount, 1.0]], dtype=torch.float64)
    found, _ = gae(torch.zeros_like(values), values, torch.ones(1, 4, dtype=torch.bool), episode_end(torch.ones(1).double()), discount, 0.7)
    assert found.abs().max() < 1e-15


# -- the value loss ---------------------------------------------------------------------------------------------------------


def slow_value_loss(value: float, old: float, target: float, clip: float | None) -> float:
    free = (value - target) ** 2
    if clip is None:
        return free / 2
    kept = min(max(value, old - clip), old + clip)
    return max(free, (kept - target) ** 2) / 2


NUMBERS = st.floats(-2, 2, width=32)


@given(value=NUMBERS, old=NUMBERS, target=NUMBERS, clip=st.sampled_from([None, 0.1, 0.5]))
def test_the_value_loss_is_the_clipped_one(value: float, old: float, target: float, clip: float | None) -> None:
    v, o, r = (torch.tensor([x], dtype=torch.float64) for x in (value, old, target))
    found, held = value_loss(v, o, r, clip)
    # old + (value - old) rounds; its square near 0 has no relative accuracy.
    assert found.item() == pytest.approx(slow_value_loss(value, old, target, clip), rel=1e-9, abs=1e-12)
    assert not held.item() or found.item() > (value - target) ** 2 / 2


def test_a_value_that_moved_too_far_towards_its_target_has_no_gradient() -> None:
    """Beyond the clip on the side of the target the gradient is zero. On the other side the value may come back."""
    value = torch.tensor([0.35, 0.35, 0.15], dtype=torch.float64, requires_grad=True)
    old, target = torch.zeros(3, dtype=torch.float64), torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
    loss, held = value_loss(value, old, target, 0.2)
    (gradient,) = torch.autograd.grad(loss.sum(), value)
    assert held.tolist() == [True, False, False]
    assert gradient.tolist() == pytest.approx([0.0, 1.35, -0.85])


# -- whitening --------------------------------------------------------------------------------------------------------------


def test_whitening_is_over_what_counts() -> None:
    x, counted = 3 + 2 * some(4, 6), some(4, 6, seed=1) > 0
    found = whiten(x, counted, lambda sums: sums)
    inside = x[counted].tolist()
    mean, std = statistics.fmean(inside), statistics.pstdev(inside)
    # EPS beside a deviation of about 2.
    assert found[counted].tolist() == pytest.approx([(v - mean) / std for v in inside], rel=1e-7, abs=1e-7)


def test_whitening_over_two_processes_is_whitening_of_all() -> None:
    """Each process sends sums over its own rows, and gets the sums over all rows back."""
    x, counted = some(6, 5) + 7, some(6, 5, seed=1) > -1
    everyone: list[Tensor] = []

    def alone(sums: Tensor) -> Tensor:
        everyone.append(sums)
        return sums

    whole = whiten(x, counted, alone)
    sent: list[list[Tensor]] = []
    for rows in (slice(0, 2), slice(2, 6)):
        mine: list[Tensor] = []

        def total(sums: Tensor, mine: list[Tensor] = mine) -> Tensor:
            mine.append(sums)
            return everyone[len(mine) - 1]

        torch.testing.assert_close(whiten(x[rows], counted[rows], total), whole[rows], rtol=ROUNDING, atol=ROUNDING)
        sent.append(mine)
    for one, other, both in zip(*sent, everyone, strict=True):
        torch.testing.assert_close(one + other, both, rtol=ROUNDING, atol=ROUNDING)


def test_equal_advantages_become_nothing() -> None:
    equal = torch.full((2, 3), 0.7, dtype=torch.float64)
    assert whiten(equal, torch.ones(2, 3, dtype=torch.bool), lambda sums: sums).abs().max() < 1e-6
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    assert torch.equal(whiten(equal, nothing, lambda sums: sums), equal)
    assert moments(equal, nothing, lambda sums: sums) == (0.0, 0.0, 0.0)


# -- the head ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [0, 8])
def test_a_value_head_starts_at_its_start_value_whatever_the_size_of_features(width: int) -> None:
    torch.manual_seed(0)
    head, features = ValueHead(5, width, start=0.25), torch.randn(7, 5)
    assert head(features).tolist() == [0.25] * 7
    torch.nn.init.normal_(next(head.layers[-1].parameters()))
    values = head(features)
    assert values.shape == (7,)
    assert values.std() > 0.1
    torch.testing.assert_close(head(1000 * features), values, rtol=1e-3, atol=1e-4)  # LayerNorm's own epsilon
    assert head(features.bfloat16()).dtype == torch.float32
    assert "adapted" in head.state_dict()
