"""RLOO, compared with a slow reference in plain Python, written from the paper's formula (arXiv 2402.14740, eq. 7)."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from gotr1_core.components.build import make_component
from gotr1_core.config.models import ComponentConfig, SegmentConfig
from gotr1_core.plugins import Registry
from gotr1_core.protocols import Experience
from gotr1_core.samples import IMAGE, PLAN, ActionStats
from gotr1_rl.rloo import Rloo, RlooOptions

NAN = math.nan
TOTALS = torch.tensor(
    [[[0.2, 0.9], [0.0, 0.4], [1.0, 0.7]], [[0.5, NAN], [1.0, 0.3], [NAN, NAN]], [[NAN, NAN], [0.7, 0.1], [NAN, NAN]]], dtype=torch.float64
)
"""Three prompts of three plans of two pictures; the last has only one plan that is known."""


def mean(values: list[float]) -> float:
    known = [v for v in values if not math.isnan(v)]
    return sum(known) / len(known) if known else NAN


def less_others(value: float, others: list[float]) -> float:
    gap = value - mean(others)
    return 0.0 if math.isnan(gap) else gap


@pytest.mark.parametrize("advantages", ["joint", "split"])
def test_the_baseline_is_the_mean_of_the_others(advantages: Any) -> None:
    found = Rloo(RlooOptions(advantages=advantages)).advantages(TOTALS)
    rewards = TOTALS.tolist()
    for p, n in product(range(3), range(3)):
        plans = [mean(images) for images in rewards[p]]
        expected = less_others(plans[n], plans[:n] + plans[n + 1 :])
        assert found.plan[p, n].item() == pytest.approx(expected, rel=1e-12, abs=1e-15)
        for m in range(2):
            every = [(i, j) for i, j in product(range(3), range(2)) if (i, j) != (n, m) and (advantages == "joint" or i == n)]
            expected = less_others(rewards[p][n][m], [rewards[p][i][j] for i, j in every])
            assert found.image[p, n, m].item() == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_shifted_rewards_change_nothing_and_equal_rewards_give_zero() -> None:
    algorithm = Rloo(RlooOptions())
    one, other = algorithm.advantages(TOTALS), algorithm.advantages(TOTALS + 0.25)
    torch.testing.assert_close(one.plan, other.plan)
    torch.testing.assert_close(one.image, other.image)
    equal = algorithm.advantages(torch.full((2, 3, 2), 0.3))
    assert equal.plan.abs().max() < 1e-12 > equal.image.abs().max()


def test_the_divergence_is_taken_off_each_samples_reward() -> None:
    """That of the plan's and the picture's actions together. A pruned picture has none."""
    random = torch.Generator().manual_seed(0)
    place = torch.tensor([s for s in range(18) if s // 2 != 4])
    shapes = {PLAN: (9, 4), IMAGE: (16, 3)}
    old, reference = ({name: torch.randn(s, dtype=torch.float64, generator=random) for name, s in shapes.items()} for _ in range(2))
    masks = {name: torch.rand(s, generator=random) < 0.7 for name, s in shapes.items()}
    algorithm = Rloo(RlooOptions(reward_kl=0.1))
    found = algorithm.estimate(Experience(TOTALS, place, masks, old, reference), None, lambda sums: sums)
    rewards = TOTALS.flatten().tolist()
    for name, rows in ((PLAN, [[2 * r, 2 * r + 1] for r in range(9)]), (IMAGE, [[s] for s in place.tolist()])):
        for row, (samples, t) in product(range(len(rows)), [(r, t) for r in [None] for t in range(shapes[name][1])]):
            del samples
            if masks[name][row, t]:
                for sample in rows[row]:
                    rewards[sample] -= 0.1 * (old[name][row, t] - reference[name][row, t]).item()
    expected = algorithm.advantages(torch.tensor(rewards, dtype=torch.float64).view(3, 3, 2))
    torch.testing.assert_close(found.advantages[PLAN], expected.plan.flatten())
    torch.testing.assert_close(found.advantages[IMAGE], expected.image.flatten()[place])
    plain = Rloo(RlooOptions()).estimate(Experience(TOTALS, place, masks, old), None, lambda sums: sums)
    torch.testing.assert_close(plain.advantages[PLAN], algorithm.advantages(TOTALS).plan.flatten())


def test_the_gradient_is_reinforce() -> None:
    log_prob = torch.randn(3, 4, requires_grad=True)
    mask = torch.tensor([[True, True, False, False], [True] * 4, [False] * 4])
    advantages = torch.tensor([0.5, -1.0, 2.0])
    loss = Rloo(RlooOptions()).loss(
        PLAN, ActionStats(log_prob, torch.zeros(3, 4)), log_prob.detach(), None, advantages, mask, SegmentConfig()
    )
    (gradient,) = torch.autograd.grad(loss.sums[PLAN], log_prob)
    assert torch.equal(gradient, torch.where(mask, -advantages.unsqueeze(1), 0.0))
    assert loss.counts[PLAN] == 6


def test_it_is_registered_with_its_options() -> None:
    found = make_component(Registry(), "algorithm", ComponentConfig.model_validate({"name": "rloo", "reward_kl": 0.1}))
    assert found.needs_reference
    assert not Rloo(RlooOptions()).needs_reference
    with pytest.raises(ValidationError):
        RlooOptions.model_validate({"scale": True})
