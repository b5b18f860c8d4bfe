"""GRPO's loss, compared with a slow reference in plain Python, written from the papers' formulas. test_algorithm_contracts.py tests what
holds for every algorithm."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from pydantic import ValidationError
from torch import Tensor

from gotr1_core.components.build import make_component
from gotr1_core.config.models import ComponentConfig, SegmentConfig
from gotr1_core.errors import UsageError
from gotr1_core.plugins import Registry
from gotr1_core.protocols import Loss, RLAlgorithm
from gotr1_core.samples import PLAN, ActionStats
from gotr1_rl.grpo import Grpo, GrpoOptions, kl_estimate, surrogate

NAN, INF = math.nan, math.inf
ROUNDING = 1e-12
"""Relative, in float64: sums of about twenty terms of size one err by about 1e-15."""


@dataclass(frozen=True)
class Case:
    """The inputs of a loss: tensors ``[B, T]``, and ``advantages [B]``."""

    log_prob: Tensor
    entropy: Tensor
    old: Tensor
    reference: Tensor | None
    advantages: Tensor
    mask: Tensor

    def loss(self, settings: SegmentConfig, **options: Any) -> Loss:
        algorithm = Grpo(GrpoOptions(**options))
        stats = ActionStats(self.log_prob, self.entropy)
        return algorithm.loss(PLAN, stats, self.old, self.reference, self.advantages, self.mask, settings)

    def rows(self, index: slice) -> Case:
        parts = {name: value[index] if value is not None else None for name, value in vars(self).items()}
        return Case(**parts)

    def gradient(self, settings: SegmentConfig, **options: Any) -> Tensor:
        leaf = self.log_prob.clone().requires_grad_()
        total = replace(self, log_prob=leaf).loss(settings, **options).sums[PLAN]
        return torch.autograd.grad(total, leaf)[0]


def some(seed: int, rows: int = 5, length: int = 6) -> Case:
    """A case with ratios between about exp(-1) and exp(1), which reach every branch of the clip. Rows differ in length; one is empty."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=random)

    log_prob = -normal(rows, length).abs() - 0.5
    lengths = [length, 0, *torch.randint(1, length, (rows - 2,), generator=random).tolist()]
    mask = torch.arange(length) < torch.tensor(lengths).unsqueeze(1)
    shape = (rows, length)
    old, reference = log_prob + 0.4 * normal(*shape), log_prob + 0.4 * normal(*shape)
    return Case(log_prob, normal(*shape).abs(), old, reference, normal(rows), mask)


def slow_terms(case: Case, row: int, settings: SegmentConfig, ratio: str, kl: str) -> Iterator[float]:
    """The terms that one sequence adds to the sum of the loss: one per token (DAPO, eq. 8), or one (GSPO, eq. 5)."""
    places = [t for t in range(case.mask.shape[1]) if case.mask[row, t]]
    advantage = float(case.advantages[row])

    def objective(r: float) -> float:
        clipped = min(max(r, 1 - settings.clip_low), 1 + settings.clip_high)
        return min(r * advantage, clipped * advantage)

    def regularised(t: int) -> float:
        penalty = 0.0
        if case.reference is not None:
            gap = float(case.reference[row, t] - case.log_prob[row, t])
            penalty = settings.kl * (math.exp(gap) - gap - 1 if kl == "k3" else gap * gap / 2)
        return penalty - settings.entropy * float(case.entropy[row, t])

    gaps = [float(case.log_prob[row, t] - case.old[row, t]) for t in places]
    if ratio == "token":
        for t, gap in zip(places, gaps, strict=True):
            yield -objective(math.exp(gap)) + regularised(t)
    elif places:
        yield -objective(math.exp(sum(gaps) / len(gaps))) + sum(map(regularised, places)) / len(places)


def slow(case: Case, settings: SegmentConfig, ratio: str, kl: str) -> tuple[float, int]:
    """The sum and its divisor."""
    terms = [term for row in range(len(case.mask)) for term in slow_terms(case, row, settings, ratio, kl)]
    return math.fsum(terms), len(terms)


SETTINGS = {
    "plain": SegmentConfig(),
    "asymmetric": SegmentConfig(clip_low=0.1, clip_high=0.35),
    "kl": SegmentConfig(kl=0.7),
    "entropy": SegmentConfig(entropy=0.3),
    "all": SegmentConfig(clip_low=0.1, clip_high=0.35, kl=0.7, entropy=0.3, weight=0.1),
}
RATIOS, ESTIMATORS = ("token", "sequence"), ("k3", "k2")
BOTH = list(product(RATIOS, ESTIMATORS))


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize(("ratio", "kl"), BOTH)
def test_the_loss_is_the_papers(settings: SegmentConfig, ratio: str, kl: str) -> None:
    for seed in range(4):
        case = some(seed)
        loss = case.loss(settings, ratio=ratio, kl=kl)
        total, count = slow(case, settings, ratio, kl)
        assert loss.sums[PLAN].item() == pytest.approx(total, rel=ROUNDING, abs=ROUNDING)
        assert loss.counts[PLAN].item() == count


@pytest.mark.parametrize(("ratio", "kl"), BOTH)
def test_its_gradient_is_the_slope_of_the_papers_loss(ratio: str, kl: str) -> None:
    settings, step = SETTINGS["all"], 1e-6
    case = some(1)
    gradient = case.gradient(settings, ratio=ratio, kl=kl)
    for row, t in case.mask.nonzero().tolist():
        ends = []
        for sign in (1, -1):
            moved = case.log_prob.clone()
            moved[row, t] += sign * step
            ends.append(slow(replace(case, log_prob=moved), settings, ratio, kl)[0])
        # Central differences: rounding 1e-15 / 1e-6, and a curvature of size one times 1e-12.
        assert gradient[row, t].item() == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-8)
    assert not gradient[~case.mask].any()


@pytest.mark.parametrize("ratio", RATIOS)
def test_without_a_reference_there_is_no_divergence(ratio: str) -> None:
    case = replace(some(2), reference=None)
    loss = case.loss(SegmentConfig(kl=0.7), ratio=ratio)
    assert loss.sums[PLAN].item() == pytest.approx(slow(case, SegmentConfig(), ratio, "k3")[0], rel=ROUNDING)
    assert "kl" not in loss.statistics


def test_at_the_old_policy_it_is_the_policy_gradient() -> None:
    """At ratio 1 each token's derivative is exactly minus its advantage, whatever the clip."""
    case = some(3)
    case = replace(case, old=case.log_prob, reference=None)
    expected = -case.advantages.unsqueeze(1) * case.mask
    assert torch.equal(case.gradient(SegmentConfig(clip_low=1e-6, clip_high=1e-6)), expected)
    per_sequence = expected / case.mask.sum(1, keepdim=True).clamp_min(1)
    # (1/n) * A and A / n are rounded differently.
    torch.testing.assert_close(case.gradient(SegmentConfig(), ratio="sequence"), per_sequence, rtol=1e-15, atol=0)


def test_the_clip_by_hand() -> None:
    ratio = torch.tensor([1.3, 1.3, 0.7, 0.7, 1.1, 0.85])
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0, -2.0])
    gain, held = surrogate(ratio.log(), advantage, 0.2, 0.2)
    # PPO holds back only what moves further in the direction that the advantage asks for.
    torch.testing.assert_close(gain, torch.tensor([1.2, -1.3, 0.7, -0.8, 2.2, -1.7]))  # float32's default, 1e-6
    assert held.tolist() == [True, False, False, True, False, False]
    gain, held = surrogate(ratio.log(), advantage, 0.1, 0.4)
    torch.testing.assert_close(gain, torch.tensor([1.3, -1.3, 0.7, -0.9, 2.2, -1.8]))
    assert held.tolist() == [False, False, False, True, False, True]


def test_statistics_are_sums_with_their_weights() -> None:
    log_ratio = torch.tensor([[1.3, 1.1, 9.0], [0.7, 0.9, 1.3]]).log()
    mask = torch.tensor([[True, True, False], [True, True, True]])
    case = Case(log_ratio, torch.ones(2, 3), torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([1.0, -1.0]), mask)
    loss = case.loss(SegmentConfig())
    shares = {name: (value.item(), weight.item()) for name, (value, weight) in loss.statistics.items()}
    assert shares["clipped"] == (2, 5)  # 1.3 of the good row, 0.7 of the bad one; the masked 9 does not count
    assert shares["ratio"] == (pytest.approx(1.3 + 1.1 + 0.7 + 0.9 + 1.3), 5)
    assert shares["entropy"] == (5, 5)
    k3 = sum(1 / r - 1 + math.log(r) for r in (1.3, 1.1, 0.7, 0.9, 1.3))
    assert shares["kl"] == (pytest.approx(k3, abs=1e-6), 5)  # float32
    assert not any(value.requires_grad for value, _ in loss.statistics.values())
    per_sequence = case.loss(SegmentConfig(), ratio="sequence").statistics["clipped"]
    # Means of log ratios: 1.196 (within 1.2), and 0.936 of a row that is to fall (within 0.8).
    assert [value.item() for value in per_sequence] == [0, 2]


@pytest.mark.parametrize(("ratio", "kl"), BOTH)
def test_micro_batches_of_any_size_add_up(ratio: str, kl: str) -> None:
    """Sums, counts and statistics are sums over rows of any length. So micro-batches do not change a gradient."""
    settings, case = SETTINGS["all"], some(5, rows=7)
    whole = case.loss(settings, ratio=ratio, kl=kl)
    for size in (1, 2, 3):
        parts = [case.rows(slice(at, at + size)).loss(settings, ratio=ratio, kl=kl) for at in range(0, 7, size)]
        assert sum(p.sums[PLAN].item() for p in parts) == pytest.approx(whole.sums[PLAN].item(), rel=ROUNDING)
        assert sum(p.counts[PLAN].item() for p in parts) == whole.counts[PLAN].item()
        for name, (value, weight) in whole.statistics.items():
            assert sum(p.statistics[name][0].item() for p in parts) == pytest.approx(value.item(), rel=ROUNDING)
            assert sum(p.statistics[name][1].item() for p in parts) == weight.item()


def test_an_empty_mask_is_no_division_by_zero() -> None:
    case = some(6)
    case = replace(case, mask=torch.zeros_like(case.mask))
    for ratio in RATIOS:
        loss = case.loss(SETTINGS["all"], ratio=ratio)
        assert loss.sums[PLAN].item() == 0
        assert loss.counts[PLAN].item() == 0
        assert not case.gradient(SETTINGS["all"], ratio=ratio).any()


def test_split_is_asked_for_by_option() -> None:
    rewards = torch.tensor([[[0.0, 1.0], [1.0, 1.0]]])
    assert Grpo(GrpoOptions(scale=False)).advantages(rewards).image.tolist() == [[[-0.75, 0.25], [0.25, 0.25]]]
    assert Grpo(GrpoOptions(scale=False, advantages="split")).advantages(rewards).image.tolist() == [[[-0.5, 0.5], [0.0, 0.0]]]


# -- the divergence ---------------------------------------------------------------------------------------------------------


@given(st.floats(-20, 0), st.floats(-20, 0))
def test_estimates_are_never_negative(log_prob: float, reference: float) -> None:
    pair = torch.tensor(log_prob, dtype=torch.float64), torch.tensor(reference, dtype=torch.float64)
    # r - 1 - log r: 1e-15 is the rounding of r - 1 next to r = 1, where the truth is a square.
    assert kl_estimate(*pair, "k3").item() >= -1e-15
    assert kl_estimate(*pair, "k2").item() >= 0
    for estimator in ESTIMATORS:
        assert kl_estimate(pair[0], pair[0], estimator).item() == 0


# -- as a component ---------------------------------------------------------------------------------------------------------


def test_it_is_registered_with_its_options() -> None:
    registry = Registry()
    made = make_component(registry, "algorithm", ComponentConfig(name="grpo", ratio="sequence", scale=False))
    assert isinstance(made, Grpo)
    assert isinstance(made, RLAlgorithm)
    assert (made.options.ratio, made.options.scale, made.options.kl) == ("sequence", False, "k3")
    with pytest.raises(UsageError) as caught:
        make_component(registry, "algorithm", ComponentConfig(name="grpo", ratoi="sequence"))
    assert "algorithm.ratoi" in caught.value.message
    assert "algorithm.ratio" in (caught.value.hint or "")


def test_options_refuse_an_unknown_choice() -> None:
    for wrong in ({"ratio": "word"}, {"kl": "k1"}, {"advantages": "all"}, {"scale": "perhaps"}, {"clip": 0.2}):
        with pytest.raises(ValidationError):
            GrpoOptions(**wrong)
