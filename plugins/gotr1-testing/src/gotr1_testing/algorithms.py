"""Checks of algorithms, on the policy that can be enumerated and through the run's own update.

An algorithm with a critic compares samples with what it has learnt, not with each other; what is particular to groups is not asked of it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gotr1_core.config.models import SegmentConfig
from gotr1_core.protocols import ActorCritic, RLAlgorithm
from gotr1_core.reference import Reference
from gotr1_core.samples import IMAGE, PLAN, ActionStats, SegmentName
from gotr1_testing.enumerable import TinyPolicy, perfect
from gotr1_testing.exact import Gradient, apart, divergence_gradients, expected, flat, gradient, rewarded, some_totals, tree
from gotr1_testing.finding import Check, Measured, NotRun, worst
from gotr1_testing.tolerances import EXACT

BOTH: dict[SegmentName, SegmentConfig] = {PLAN: SegmentConfig(), IMAGE: SegmentConfig(weight=0.5)}
NORMALISED = 1e-4
"""Relative, where advantages are divided by a deviation to which 1e-6 is added, here above 0.05 after scaling: 2e-5."""
ASCENT = 0.8
"""Least cosine of what advantages divided by their group's deviation give with the gradient of the expected reward: each group weighs
otherwise, which turns the direction by design (arXiv 2503.20783 leaves the division out for that reason)."""


def _on_totals(algorithm: RLAlgorithm, rewards: Tensor, **config: Any) -> Gradient:
    policy = TinyPolicy()
    return gradient(algorithm, policy, rewarded(tree(policy), rewards), BOTH, **config)[0]


def _needs_groups(algorithm: RLAlgorithm) -> None:
    if isinstance(algorithm, ActorCritic):
        raise NotRun("it compares samples with its critic's values, not with their group")


def shift(algorithm: RLAlgorithm) -> Measured:
    """Rewards of each prompt shifted by a number of its own."""
    _needs_groups(algorithm)
    rewards = some_totals()
    by = torch.tensor([0.25, -2.0, 1.0], dtype=torch.float64)[:, None, None]
    gap = apart(_on_totals(algorithm, rewards), _on_totals(algorithm, rewards + by))
    return Measured(gap, EXACT, "change of the gradient, relative")


def scale(algorithm: RLAlgorithm) -> Measured:
    """Rewards halved: the gradient is the same, where it is normalised, or half of what it was."""
    _needs_groups(algorithm)
    value, kind = _scaling(algorithm)
    return Measured(value, NORMALISED if kind == "normalised" else EXACT, f"change of the gradient, relative; it is {kind}")


def _scaling(algorithm: RLAlgorithm) -> tuple[float, str]:
    rewards = some_totals()
    whole, half = _on_totals(algorithm, rewards), _on_totals(algorithm, rewards / 2)
    gaps = {"normalised": apart(whole, half), "linear in the rewards": apart({n: g / 2 for n, g in whole.items()}, half)}
    kind = min(gaps, key=lambda name: gaps[name])
    return gaps[kind], kind


def constant(algorithm: RLAlgorithm) -> Measured:
    """Groups whose rewards are equal, of each prompt another one, teach nothing."""
    _needs_groups(algorithm)
    rewards = torch.tensor([0.1, 0.7, 0.3], dtype=torch.float64)[:, None, None].expand_as(some_totals())
    size = flat(_on_totals(algorithm, some_totals())).norm().item()
    found = flat(_on_totals(algorithm, rewards)).norm().item()
    return Measured(found / size, EXACT, "size of the gradient, relative to that of rewards that differ")


def groups_are_apart(algorithm: RLAlgorithm) -> Measured:
    """Other rewards of one prompt do not change the advantages of another."""
    _needs_groups(algorithm)
    rewards = some_totals()
    other = rewards.clone()
    other[0] = torch.flip(rewards[0], (0,)) * 0.3
    one, two = algorithm.advantages(rewards), algorithm.advantages(other)
    gap = max((one.plan - two.plan)[1:].abs().max().item(), (one.image - two.image)[1:].abs().max().item())
    if torch.equal(one.plan[0], two.plan[0]):
        return Measured(float("nan"), EXACT, "the advantages of a prompt does not change with its own rewards")
    return Measured(gap, EXACT, "change of the advantages of the other prompts")


def unknown(algorithm: RLAlgorithm) -> Measured:
    """A group with a sample whose reward is NaN teaches what the group without it does, and a group of NaN alone nothing."""
    policy, rewards = TinyPolicy(), some_totals()
    rewards[:, 3] = math.nan
    whole = rewarded(tree(policy), rewards)
    segments, _ = whole.segments(torch.arange(12).view(3, 4)[:, :3].flatten())
    fewer = rewarded(replace(whole, plans=segments[PLAN], images=segments[IMAGE]), rewards[:, :3])
    gaps = []
    for name, settings in BOTH.items():
        sums = []
        for batch in (whole, fewer):
            mask = (batch.plans if name == PLAN else batch.images or batch.plans).tensors["mask"]
            mean = gradient(algorithm, policy, batch, {name: settings})[0]
            sums.append({n: g * float(algorithm.count(mask)) for n, g in mean.items()})
        gaps.append(apart(*sums))
    nothing = flat(_on_totals(algorithm, torch.full_like(rewards, math.nan))).norm().item()
    return Measured(max(*gaps, nothing), EXACT, "change of the gradient's sum, relative, and size of that of unknown rewards")


def slices(algorithm: RLAlgorithm) -> Measured:
    """Micro-batches of any size add up to the same gradient, although plans differ in length."""
    rewards = some_totals()
    whole = _on_totals(algorithm, rewards)
    gaps = {size: apart(whole, _on_totals(algorithm, rewards, micro_batch=size)) for size in (1, 5, 7)}
    size = max(gaps, key=lambda n: gaps[n])
    return Measured(gaps[size], EXACT, f"change of the gradient, relative, in micro-batches of {size}")


def segments_are_apart(algorithm: RLAlgorithm) -> Measured:
    """The gradient of both segments is the sum of each one's: neither is divided by the number of the other's actions."""
    policy = TinyPolicy()
    batch = rewarded(tree(policy), some_totals())
    both = gradient(algorithm, policy, batch, BOTH)[0]
    each = [gradient(algorithm, policy, batch, {name: settings})[0] for name, settings in BOTH.items()]
    return Measured(apart(both, {n: each[0][n] + each[1][n] for n in both}), EXACT, "distance of both from the sum of each, relative")


def masked(algorithm: RLAlgorithm) -> Measured:
    """What stands where no action is, NaN and infinities too, adds nothing to loss or gradient."""
    generator = torch.Generator().manual_seed(4)
    shape = (5, 6)

    def normal() -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    lengths = torch.tensor([6, 0, 3, 1, 5])
    mask = torch.arange(6) < lengths.unsqueeze(1)
    log_prob = -normal().abs()
    parts = {"entropy": normal().abs(), "old": log_prob + 0.3 * normal(), "reference": log_prob + 0.3 * normal()}
    advantages = normal() if isinstance(algorithm, ActorCritic) else normal()[:, 0]
    settings = SegmentConfig(kl=0.5, entropy=0.1)
    outcomes = []
    for bad in (0.0, math.nan, math.inf, -math.inf):
        leaf = torch.where(mask, log_prob, bad).requires_grad_()
        given = {name: torch.where(mask, tensor, -bad) for name, tensor in parts.items()}
        scored = ActionStats(leaf, given["entropy"])
        loss = algorithm.loss(PLAN, scored, given["old"], given["reference"], advantages, mask, settings)
        slope = torch.autograd.grad(loss.sums[PLAN], leaf)[0]
        outcomes.append(torch.cat([loss.sums[PLAN].detach().view(1), slope.flatten()]))
    gap = max((other - outcomes[0]).abs().max().item() if other.isfinite().all() else math.inf for other in outcomes[1:])
    return Measured(gap, EXACT, "change of loss and gradient")


def expectation(algorithm: RLAlgorithm, *, ends: bool) -> Measured:
    """The expected gradient, exactly, over groups of 2 and of 3."""
    notes, turns = [], []
    for size in (2, 3):
        found = expected(algorithm, size, ends=ends)
        turns.append(found.turn)
        notes.append(f"{found.factor:.4f} of it in groups of {size}")
    if not isinstance(algorithm, ActorCritic) and _scaling(algorithm)[1] == "normalised":
        cosines = [1 - turn for turn in turns]
        note = f"cosine with the exact gradient; groups are divided by their deviation, which turns it by design; {', '.join(notes)}"
        return Measured(min(cosines), ASCENT, note, at_least=True)
    # A group's mean that holds the sample itself shrinks the gradient to (G - 1) / G, a bias of its length only.
    return Measured(max(abs(t) for t in turns), EXACT, f"1 - cosine with the exact gradient; {', '.join(notes)}")


def expectation_of_equal(algorithm: RLAlgorithm) -> Measured:
    """All chains have two symbols."""
    return expectation(algorithm, ends=False)


def expectation_of_uneven(algorithm: RLAlgorithm) -> Measured:
    """Chains have one symbol or two."""
    mask = torch.tensor([[True, False], [True, True]])
    if float(algorithm.count(mask)) != 3:
        raise NotRun("it weighs sequences and not tokens, so that a token of a longer chain counts less by design")
    return expectation(algorithm, ends=True)


def _away(policy: TinyPolicy) -> Reference:
    """A reference that is another policy; the policy itself is left as it is."""
    head = policy.module.plan_head.weight
    kept = head.detach().clone()
    with torch.no_grad():
        head.add_(0.4 * torch.randn(head.shape, dtype=head.dtype, generator=torch.Generator().manual_seed(6)))
        reference = Reference(policy.module)
        head.copy_(kept)
    return reference


def _divergence(algorithm: RLAlgorithm, *, away: bool) -> tuple[Gradient, dict[str, float], TinyPolicy, Reference]:
    """The gradient of rewards that say nothing and a divergence of weight 0.5."""
    policy, plans = perfect(ends=False)
    reference = _away(policy) if away else Reference(policy.module)
    rewards = torch.zeros(4, 4, 2, dtype=torch.float64)
    batch = rewarded(replace(tree(policy), plans=plans, images=None), rewards)
    found, statistics = gradient(algorithm, policy, batch, {PLAN: SegmentConfig(kl=0.5)}, reference=reference)
    return found, statistics, policy, reference


def divergence_starts_at_zero(algorithm: RLAlgorithm) -> Measured:
    """Where the policy is the reference the divergence is 0, and so is its gradient."""
    found, statistics, *_ = _divergence(algorithm, away=False)
    return worst(
        [
            Measured(abs(statistics.get("plan.kl", 0.0)), EXACT, "the divergence that the statistics say"),
            Measured(flat(found).norm().item(), EXACT, "size of its gradient"),
        ]
    )


def divergence_gradient(algorithm: RLAlgorithm) -> Measured:
    """Away from the reference the gradient is, on average and exactly, that of the divergence in one of its directions."""
    found, _, policy, reference = _divergence(algorithm, away=True)
    _, plans = perfect(ends=False)
    weight = 0.5 / float(plans.tensors["mask"].sum())
    exact = divergence_gradients(policy, plans, reference)
    gaps = {name: apart(found, {n: weight * g for n, g in there.items()}) for name, there in exact.items()}
    nearest = min(gaps, key=lambda name: gaps[name])
    return Measured(gaps[nearest], EXACT, f"distance from the gradient of 0.5 {nearest}, the mean over tokens, relative")


ALGORITHM = (
    Check("shifted-rewards", "rewards shifted by a number per prompt change nothing", shift),
    Check("scaled-rewards", "scaled rewards change nothing, or scale the gradient", scale),
    Check("constant-groups", "a group of equal rewards has no gradient", constant),
    Check("groups-are-apart", "rewards of one prompt do not change the advantages of another", groups_are_apart),
    Check("unknown-rewards", "a sample without a reward is left out, for its siblings too", unknown),
    Check("micro-batches", "micro-batches do not change the gradient", slices),
    Check("segments-are-apart", "each segment is divided by its own count", segments_are_apart),
    Check("masked-adds-nothing", "what is masked adds nothing, whatever it is", masked),
    Check("expected-gradient", "the expected gradient is that of the expected reward", expectation_of_equal),
    Check("expected-gradient-uneven", "the same where chains differ in length", expectation_of_uneven),
    Check("kl-starts-at-0", "the divergence from itself is 0, and flat", divergence_starts_at_zero),
    Check("kl-gradient", "the gradient of the divergence is exact on average", divergence_gradient),
)
