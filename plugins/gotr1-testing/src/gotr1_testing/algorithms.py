"""Checks of algorithms, with the update of a training run on the enumerable policy.

An algorithm with a critic compares samples with the critic's values, and another may say that it compares without groups. Checks about
groups are not run for them. What one check measures never depends on an earlier check: the state of a stateful algorithm is put back.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gotr1_core.border.algorithm_calls import call_advantages, call_count, call_loss
from gotr1_core.config.models import SegmentConfig
from gotr1_core.engine.algorithm_state import StateWatch, algorithm_state, load_algorithm_state, save_algorithm_state
from gotr1_core.protocols import ActorCritic, RLAlgorithm, Stateful, compares_groups
from gotr1_core.reference import Reference
from gotr1_core.samples import IMAGE, PLAN, ActionStats, SegmentName
from gotr1_testing.check import Check, Measured, NotRun, worst
from gotr1_testing.enumerable import TinyPolicy, exact_sample
from gotr1_testing.exact import (
    Gradient,
    example_rewards,
    expected_gradient,
    flatten_gradient,
    kl_gradients,
    make_tree,
    one_update,
    relative_distance,
    unchanged_state,
    update_gradient,
    with_rewards,
)
from gotr1_testing.tolerances import EXACT

BOTH: dict[SegmentName, SegmentConfig] = {PLAN: SegmentConfig(), IMAGE: SegmentConfig(weight=0.5)}
NORMALISED = 1e-4
"""Relative. Where advantages are divided by the standard deviation plus 1e-6, which is above 0.05 here after scaling: 2e-5."""
MIN_COSINE = 0.8
"""Smallest cosine with the gradient of the expected reward, if advantages are divided by their group's standard deviation. Groups then
have different weights, which turns the direction by design (arXiv 2503.20783 leaves the division out for that reason)."""


def _gradient_of(algorithm: RLAlgorithm, rewards: Tensor, **config: Any) -> Gradient:
    """The gradient of one update on the tree with these rewards ``[P, N, M]``."""
    policy = TinyPolicy()
    return update_gradient(algorithm, policy, with_rewards(make_tree(policy), rewards), BOTH, **config)[0]


def _require_groups(algorithm: RLAlgorithm) -> None:
    if not compares_groups(algorithm):
        why = "with its critic's values" if isinstance(algorithm, ActorCritic) else "in its own way (compares_groups is False)"
        raise NotRun(f"it compares samples {why}, not with their group")


def shifted_rewards_change_nothing(algorithm: RLAlgorithm) -> Measured:
    """Shifts the rewards of each prompt by another number."""
    _require_groups(algorithm)
    rewards = example_rewards()
    shift = torch.tensor([0.25, -2.0, 1.0], dtype=torch.float64)[:, None, None]
    gap = relative_distance(_gradient_of(algorithm, rewards), _gradient_of(algorithm, rewards + shift))
    return Measured(gap, EXACT, "change of the gradient, relative")


def scaled_rewards_keep_or_scale_the_gradient(algorithm: RLAlgorithm) -> Measured:
    """Halves the rewards: the gradient stays the same if advantages are normalised, else it is halved."""
    _require_groups(algorithm)
    value, kind = _scaling(algorithm)
    return Measured(value, NORMALISED if kind == "normalised" else EXACT, f"change of the gradient, relative; it is {kind}")


def _scaling(algorithm: RLAlgorithm) -> tuple[float, str]:
    """How far the gradient is from the nearer of the two rules, and which rule that is."""
    rewards = example_rewards()
    full, half = _gradient_of(algorithm, rewards), _gradient_of(algorithm, rewards / 2)
    gaps = {
        "normalised": relative_distance(full, half),
        "linear in the rewards": relative_distance({n: g / 2 for n, g in full.items()}, half),
    }
    kind = min(gaps, key=lambda name: gaps[name])
    return gaps[kind], kind


def equal_rewards_teach_nothing(algorithm: RLAlgorithm) -> Measured:
    """Gives all samples of a prompt the same reward, and each prompt another one."""
    _require_groups(algorithm)
    rewards = torch.tensor([0.1, 0.7, 0.3], dtype=torch.float64)[:, None, None].expand_as(example_rewards())
    normal_size = flatten_gradient(_gradient_of(algorithm, example_rewards())).norm().item()
    size = flatten_gradient(_gradient_of(algorithm, rewards)).norm().item()
    return Measured(size / normal_size, EXACT, "size of the gradient, relative to that of rewards that differ")


def groups_are_independent(algorithm: RLAlgorithm) -> Measured:
    """Changes the rewards of one prompt: the advantages of the others do not change."""
    _require_groups(algorithm)
    rewards = example_rewards()
    changed = rewards.clone()
    changed[0] = torch.flip(rewards[0], (0,)) * 0.3
    with unchanged_state(algorithm):
        before = call_advantages(algorithm, rewards)
    with unchanged_state(algorithm):
        after = call_advantages(algorithm, changed)
    gap = max((before.plan - after.plan)[1:].abs().max().item(), (before.image - after.image)[1:].abs().max().item())
    if torch.equal(before.plan[0], after.plan[0]):
        return Measured(float("nan"), EXACT, "the advantages of a prompt do not change with its own rewards")
    return Measured(gap, EXACT, "change of the advantages of the other prompts")


def unknown_rewards_are_left_out(algorithm: RLAlgorithm) -> Measured:
    """A group with a sample of reward NaN has the gradient of the group without that sample. A group of NaN alone has none."""
    policy, rewards = TinyPolicy(), example_rewards()
    rewards[:, 3] = math.nan
    full = with_rewards(make_tree(policy), rewards)
    segments, _ = full.segments(torch.arange(12).view(3, 4)[:, :3].flatten())
    without = with_rewards(replace(full, plans=segments[PLAN], images=segments[IMAGE]), rewards[:, :3])
    gaps = []
    for name, settings in BOTH.items():
        sums = []
        for batch in (full, without):
            mask = (batch.plans if name == PLAN else batch.images or batch.plans).tensors["mask"]
            mean = update_gradient(algorithm, policy, batch, {name: settings})[0]
            sums.append({n: g * call_count(algorithm, mask) for n, g in mean.items()})
        gaps.append(relative_distance(*sums))
    all_unknown = flatten_gradient(_gradient_of(algorithm, torch.full_like(rewards, math.nan))).norm().item()
    return Measured(max(*gaps, all_unknown), EXACT, "change of the gradient's sum, relative, and size of that of unknown rewards")


def micro_batches_change_nothing(algorithm: RLAlgorithm) -> Measured:
    """Micro-batches of any size add up to the same gradient, although plans differ in length."""
    rewards = example_rewards()
    full = _gradient_of(algorithm, rewards)
    gaps = {size: relative_distance(full, _gradient_of(algorithm, rewards, micro_batch=size)) for size in (1, 5, 7)}
    size = max(gaps, key=lambda n: gaps[n])
    return Measured(gaps[size], EXACT, f"change of the gradient, relative, in micro-batches of {size}")


def segments_are_independent(algorithm: RLAlgorithm) -> Measured:
    """The gradient of both segments is the sum of their gradients: neither is divided by the number of the other's actions."""
    policy = TinyPolicy()
    batch = with_rewards(make_tree(policy), example_rewards())
    both = update_gradient(algorithm, policy, batch, BOTH)[0]
    plan, image = (update_gradient(algorithm, policy, batch, {name: settings})[0] for name, settings in BOTH.items())
    gap = relative_distance(both, {n: plan[n] + image[n] for n in both})
    return Measured(gap, EXACT, "distance of both from the sum of each, relative")


def masked_actions_add_nothing(algorithm: RLAlgorithm) -> Measured:
    """Numbers at masked positions, NaN and infinities too, change neither loss nor gradient."""
    generator = torch.Generator().manual_seed(4)
    shape = (5, 6)

    def normal() -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    lengths = torch.tensor([6, 0, 3, 1, 5])
    mask = torch.arange(6) < lengths.unsqueeze(1)
    log_prob = -normal().abs()
    inputs = {"entropy": normal().abs(), "old": log_prob + 0.3 * normal(), "reference": log_prob + 0.3 * normal()}
    advantages = normal() if isinstance(algorithm, ActorCritic) else normal()[:, 0]
    settings = SegmentConfig(kl=0.5, entropy=0.1)
    outcomes = []
    for bad in (0.0, math.nan, math.inf, -math.inf):
        leaf = torch.where(mask, log_prob, bad).requires_grad_()
        filled = {name: torch.where(mask, tensor, -bad) for name, tensor in inputs.items()}
        stats = ActionStats(leaf, filled["entropy"])
        with unchanged_state(algorithm):
            loss = call_loss(algorithm, PLAN, stats, filled["old"], filled["reference"], advantages, mask, settings)
        gradient = torch.autograd.grad(loss.sums[PLAN], leaf)[0]
        outcomes.append(torch.cat([loss.sums[PLAN].detach().view(1), gradient.flatten()]))
    gap = max((outcome - outcomes[0]).abs().max().item() if outcome.isfinite().all() else math.inf for outcome in outcomes[1:])
    return Measured(gap, EXACT, "change of loss and gradient")


def expected_gradient_is_exact(algorithm: RLAlgorithm, *, ends: bool) -> Measured:
    """Compares the expected gradient with the exact one, over groups of 2 and of 3; ``ends``: chains end by themselves."""
    notes, errors = [], []
    for size in (2, 3):
        expected = expected_gradient(algorithm, size, ends=ends)
        errors.append(expected.direction_error)
        notes.append(f"{expected.factor:.4f} of it in groups of {size}")
    if compares_groups(algorithm) and _scaling(algorithm)[1] == "normalised":
        cosines = [1 - error for error in errors]
        reason = "groups are divided by their standard deviation, which turns it by design"
        return Measured(min(cosines), MIN_COSINE, f"cosine with the exact gradient; {reason}; {', '.join(notes)}", at_least=True)
    # If a group's mean includes the sample itself, the gradient shrinks to (G - 1) / G. That is a bias of its length only.
    return Measured(max(abs(error) for error in errors), EXACT, f"1 - cosine with the exact gradient; {', '.join(notes)}")


def expected_gradient_of_equal_lengths(algorithm: RLAlgorithm) -> Measured:
    """All chains have two symbols."""
    return expected_gradient_is_exact(algorithm, ends=False)


def expected_gradient_of_unequal_lengths(algorithm: RLAlgorithm) -> Measured:
    """Chains have one symbol or two."""
    mask = torch.tensor([[True, False], [True, True]])
    if call_count(algorithm, mask) != 3:
        raise NotRun("it weighs sequences and not tokens, so a token of a longer chain counts less by design")
    return expected_gradient_is_exact(algorithm, ends=True)


def _other_reference(policy: TinyPolicy) -> Reference:
    """A reference that differs from the policy. The policy stays as it is."""
    head = policy.module.plan_head.weight
    before = head.detach().clone()
    with torch.no_grad():
        head.add_(0.4 * torch.randn(head.shape, dtype=head.dtype, generator=torch.Generator().manual_seed(6)))
        reference = Reference(policy.module)
        head.copy_(before)
    return reference


def _kl_gradient(algorithm: RLAlgorithm, *, same_reference: bool) -> tuple[Gradient, dict[str, float], TinyPolicy, Reference]:
    """The gradient of an update with equal rewards and a divergence of weight 0.5; its statistics, the policy and the reference."""
    policy, plans = exact_sample(ends=False)
    reference = Reference(policy.module) if same_reference else _other_reference(policy)
    rewards = torch.zeros(4, 4, 2, dtype=torch.float64)
    batch = with_rewards(replace(make_tree(policy), plans=plans, images=None), rewards)
    gradient, statistics = update_gradient(algorithm, policy, batch, {PLAN: SegmentConfig(kl=0.5)}, reference=reference)
    return gradient, statistics, policy, reference


def kl_starts_at_zero(algorithm: RLAlgorithm) -> Measured:
    """If the policy is the reference, the divergence is 0 and so is its gradient."""
    gradient, statistics, *_ = _kl_gradient(algorithm, same_reference=True)
    return worst(
        [
            Measured(abs(statistics.get("plan.kl", 0.0)), EXACT, "the divergence in the statistics"),
            Measured(flatten_gradient(gradient).norm().item(), EXACT, "size of its gradient"),
        ]
    )


def kl_gradient_is_exact(algorithm: RLAlgorithm) -> Measured:
    """If the policy is not the reference, the expected gradient is exactly that of the KL divergence in one of its directions."""
    gradient, _, policy, reference = _kl_gradient(algorithm, same_reference=False)
    _, plans = exact_sample(ends=False)
    weight = 0.5 / float(plans.tensors["mask"].sum())
    exact = kl_gradients(policy, plans, reference)
    gaps = {name: relative_distance(gradient, {n: weight * g for n, g in kl.items()}) for name, kl in exact.items()}
    nearest = min(gaps, key=lambda name: gaps[name])
    return Measured(gaps[nearest], EXACT, f"distance from the gradient of 0.5 {nearest}, the mean over tokens, relative")


def state_is_kept(algorithm: RLAlgorithm) -> Measured:
    """What a checkpoint holds is all that the next update depends on. The state is written, read and loaded as a run does it.

    An algorithm without state gives the same update again, whatever it saw in between.
    """
    policy, rewards = TinyPolicy(), example_rewards()
    batches = [with_rewards(make_tree(policy), r) for r in (rewards, rewards.flip(0).square(), 0.5 * rewards)]
    watch = StateWatch(algorithm)
    one_update(algorithm, policy, batches[0], BOTH)
    if changed := watch.look():
        note = f"attributes change over an update ({', '.join(changed)}), and it has no state_dict and load_state_dict"
        return Measured(len(changed), 0.0, note)
    with tempfile.TemporaryDirectory() as folder:
        saved = algorithm_state(algorithm)
        if saved is not None:
            save_algorithm_state([saved], Path(folder) / "state")
        outcomes = []
        for batch in batches[1:]:
            if saved is not None:
                load_algorithm_state(algorithm, Path(folder) / "state", 0, 1)
            outcomes.append(flatten_gradient(one_update(algorithm, policy, batches[0], BOTH)[0]))
            one_update(algorithm, policy, batch, BOTH)
    gap = (outcomes[0] - outcomes[1]).abs().max().item()
    kept = "after its state was loaded" if isinstance(algorithm, Stateful) else "after another one"
    return Measured(gap, 0.0, f"largest difference of the gradient of the same update {kept}")


ALGORITHM = (
    Check("shifted-rewards", "rewards shifted by a number per prompt change nothing", shifted_rewards_change_nothing),
    Check("scaled-rewards", "scaled rewards change nothing, or scale the gradient", scaled_rewards_keep_or_scale_the_gradient),
    Check("constant-groups", "a group of equal rewards has no gradient", equal_rewards_teach_nothing),
    Check("groups-are-independent", "rewards of one prompt do not change the advantages of another", groups_are_independent),
    Check("unknown-rewards", "a sample without a reward is left out, for its siblings too", unknown_rewards_are_left_out),
    Check("micro-batches", "micro-batches do not change the gradient", micro_batches_change_nothing),
    Check("segments-are-independent", "each segment is divided by its own count", segments_are_independent),
    Check("masked-adds-nothing", "masked positions add nothing, whatever their numbers are", masked_actions_add_nothing),
    Check("expected-gradient", "the expected gradient is that of the expected reward", expected_gradient_of_equal_lengths),
    Check("expected-gradient-uneven", "the same where chains differ in length", expected_gradient_of_unequal_lengths),
    Check("kl-starts-at-0", "the divergence from itself is 0, and flat", kl_starts_at_zero),
    Check("kl-gradient", "the gradient of the divergence is exact on average", kl_gradient_is_exact),
    Check("state-is-kept", "an update depends on nothing that a checkpoint does not hold", state_is_kept),
)
