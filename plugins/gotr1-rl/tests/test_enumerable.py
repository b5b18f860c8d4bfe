"""GRPO on policies so small that every expectation is a finite sum. Divergence, entropy bonus and ratios are exact, and gradient ascent
finds the optimum."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from gotr1_core.config.models import SegmentConfig
from gotr1_core.samples import PLAN, ActionStats
from gotr1_core.sampling import sample_token, seed_for, uniforms
from gotr1_rl.grpo import Grpo, GrpoOptions

SYMBOLS, LENGTH = 3, 2
SEQUENCES = torch.tensor(list(product(range(SYMBOLS), repeat=LENGTH)))
RATIOS = ("token", "sequence")

START = torch.randn(SYMBOLS + SYMBOLS**2, dtype=torch.float64, generator=torch.Generator().manual_seed(20))
"""Logits of the first symbol, and of the second after each first one."""
REWARDS = torch.tensor([0.2, 0.1, 0.4, 1.0, 0.3, 0.0, 0.6, 0.2, 0.5], dtype=torch.float64)
"""Of the nine sequences. The best has probability 0.017 at the start; the likeliest, 0.38, has the second best reward."""


def logits_of(theta: Tensor) -> tuple[Tensor, Tensor]:
    return theta[:SYMBOLS], theta[SYMBOLS:].view(SYMBOLS, SYMBOLS)


def scores(theta: Tensor, tokens: Tensor) -> ActionStats:
    """Log-probabilities and entropies ``[B, 2]`` of sequences."""
    first, second = (torch.log_softmax(part, -1) for part in logits_of(theta))
    rows = torch.stack([first.expand(len(tokens), -1), second[tokens[:, 0]]], 1)
    return ActionStats(rows.gather(-1, tokens.unsqueeze(-1)).squeeze(-1), -(rows.exp() * rows).sum(-1))


def sample(theta: Tensor, seeds: list[int], temperature: float = 1.0) -> Tensor:
    """Sequences ``[B, 2]``, drawn with the sampler that every autoregressive policy here uses."""
    uniform = uniforms(seeds, LENGTH)
    first, second = logits_of(theta.detach())
    one, _ = sample_token(first.expand(len(seeds), -1), uniform[:, 0], temperature)
    two, _ = sample_token(second[one], uniform[:, 1], temperature)
    return torch.stack([one, two], 1)


def numbers(tokens: Tensor) -> Tensor:
    """For each sequence, its number among the nine."""
    return tokens[:, 0] * SYMBOLS + tokens[:, 1]


def value(theta: Tensor) -> Tensor:
    """The exact expected reward."""
    return (scores(theta, SEQUENCES).log_prob.sum(1).exp() * REWARDS).sum()


def gradient(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    leaf = at.clone().requires_grad_()
    return torch.autograd.grad(function(leaf), leaf)[0]


# -- exact expectations: actions repeated as often as they are probable -----------------------------------------------------

TIMES = torch.tensor([6, 4, 3, 2, 1])
ACTIONS = torch.arange(len(TIMES)).repeat_interleave(TIMES).unsqueeze(1)
POLICY = (TIMES / TIMES.sum()).double().log()
"""Logits of a policy over five actions, of which ACTIONS is a perfect sample."""
OTHER = torch.tensor([0.3, -0.4, 0.8, 0.0, -1.0], dtype=torch.float64)
EXACT = {"rtol": 1e-12, "atol": 1e-14}
"""Sixteen terms of size one in float64."""


def bandit(theta: Tensor) -> ActionStats:
    every = torch.log_softmax(theta, -1)
    return ActionStats(every[ACTIONS], -(every.exp() * every).sum().expand(ACTIONS.shape))


def bandit_gradient(
    at: Tensor, advantages: Tensor, settings: SegmentConfig, old: Tensor, reference: Tensor | None, **options: Any
) -> Tensor:
    algorithm = Grpo(GrpoOptions(**options))
    mask = torch.ones_like(ACTIONS, dtype=torch.bool)

    def loss(theta: Tensor) -> Tensor:
        there = None if reference is None else bandit(reference).log_prob
        found = algorithm.loss(PLAN, bandit(theta), bandit(old).log_prob, there, advantages, mask, settings)
        return found.sums[PLAN] / found.counts[PLAN]

    return gradient(loss, at)


def kl(a: Tensor, b: Tensor) -> Tensor:
    """KL(a, b) of two policies given by logits."""
    first, second = torch.log_softmax(a, -1), torch.log_softmax(b, -1)
    return (first.exp() * (first - second)).sum()


NOTHING = torch.zeros(len(ACTIONS), dtype=torch.float64)


def test_k3_estimates_the_divergence_itself() -> None:
    """Its value is KL(policy, reference). Its gradient is not that of the divergence."""
    mask = torch.ones_like(ACTIONS, dtype=torch.bool)
    args = (bandit(POLICY), bandit(POLICY).log_prob, bandit(OTHER).log_prob, NOTHING, mask, SegmentConfig(kl=1.0))
    value, weight = Grpo(GrpoOptions()).loss(PLAN, *args).statistics["kl"]
    torch.testing.assert_close(value / weight, kl(POLICY, OTHER), **EXACT)


def test_the_entropy_bonus_is_the_entropys_gradient() -> None:
    found = bandit_gradient(POLICY, NOTHING, SegmentConfig(entropy=0.3), POLICY, None)
    torch.testing.assert_close(found, -0.3 * gradient(lambda t: bandit(t).entropy[0, 0], POLICY), **EXACT)
    assert found.abs().max() > 0.01


@pytest.mark.parametrize("ratio", RATIOS)
def test_ratios_correct_for_the_older_policy(ratio: str) -> None:
    """Actions of an older policy, with the clip out of reach. The gradient is that of the present policy's expected reward."""
    rewards = torch.tensor([0.1, 0.9, 0.0, 0.5, 1.0], dtype=torch.float64)
    wide = SegmentConfig(clip_low=1, clip_high=1e6)
    found = bandit_gradient(OTHER, rewards[ACTIONS.squeeze(1)], wide, POLICY, None, ratio=ratio)
    exact = gradient(lambda t: (torch.softmax(t, -1) * rewards).sum(), OTHER)
    torch.testing.assert_close(found, -exact, **EXACT)
    clipped = bandit_gradient(OTHER, rewards[ACTIONS.squeeze(1)], SegmentConfig(), POLICY, None, ratio=ratio)
    assert (clipped - found).abs().max() > 0.01  # and the clip holds some of it back


# -- ascent -----------------------------------------------------------------------------------------------------------------


def ascend(settings: SegmentConfig, updates: int = 1, steps: int = 150, **options: Any) -> Tensor:
    """GRPO with eight groups of eight and Adam at 0.1. An entry of theta moves by at most about 0.1 a step."""
    algorithm = Grpo(GrpoOptions(**options))
    theta = START.clone().requires_grad_()
    optimizer = torch.optim.Adam([theta], lr=0.1)
    for step in range(steps):
        tokens = sample(theta, [seed_for("ascent", step, i) for i in range(64)])
        advantages = algorithm.advantages(REWARDS[numbers(tokens)].view(8, 8, 1)).plan.flatten()
        old = scores(theta, tokens).log_prob.detach()
        there = scores(START, tokens).log_prob if settings.kl else None
        for _ in range(updates):
            loss = algorithm.loss(PLAN, scores(theta, tokens), old, there, advantages, torch.ones_like(tokens, dtype=torch.bool), settings)
            optimizer.zero_grad()
            (loss.sums[PLAN] / loss.counts[PLAN]).backward()
            optimizer.step()
    return theta.detach()


@pytest.mark.parametrize(
    ("ratio", "scale", "updates"), [("token", True, 1), ("token", False, 1), ("sequence", True, 1), ("token", True, 3)]
)
def test_ascent_reaches_the_optimum(ratio: str, scale: bool, updates: int) -> None:
    best, before = float(REWARDS.max()), float(value(START))
    reached = float(value(ascend(SegmentConfig(clip_high=0.28), updates, ratio=ratio, scale=scale)))
    assert before < 0.7 * best  # there was something to learn
    assert reached > 0.98 * best


def test_a_divergence_keeps_ascent_near_its_start() -> None:
    def moved(theta: Tensor) -> float:
        log_prob = scores(theta, SEQUENCES).log_prob.sum(1)
        return float((log_prob.exp() * (log_prob - scores(START, SEQUENCES).log_prob.sum(1))).sum())

    free, held = ascend(SegmentConfig()), ascend(SegmentConfig(kl=1.0))
    assert moved(held) < 0.5 * moved(free)
    assert float(value(held)) > float(value(START))
