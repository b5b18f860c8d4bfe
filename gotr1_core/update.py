"""Updates one policy on one rollout: log-probabilities, the algorithm's loss, its gradient, optimizer steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gotr1_core.advantages import Advantages
from gotr1_core.batch import Batch, MicroBatch, action_mask, split_batch
from gotr1_core.border.algorithm_calls import call_count, call_loss, call_value_loss, told_of_backward
from gotr1_core.border.calls import call_module
from gotr1_core.config.models import OptimizerConfig, RunConfig, SegmentConfig
from gotr1_core.engine.collectives import any_process, sum_gradients, sum_over_processes
from gotr1_core.engine.critic import critic_values, estimate_advantages
from gotr1_core.engine.ema import EMA
from gotr1_core.engine.fsdp import align_micro_batches, is_sharded
from gotr1_core.engine.metrics import Clock, MetricSums
from gotr1_core.engine.optim import clip_gradients, learning_rate_at, set_learning_rate, step_if_finite
from gotr1_core.engine.out_of_memory import explain_out_of_memory
from gotr1_core.gaussian import divergence
from gotr1_core.protocols import ActorCritic, AdvantageEstimator, Critic, Policy, RLAlgorithm
from gotr1_core.reference import Reference
from gotr1_core.samples import PLAN, ActionStats, Rollout, SegmentName


@dataclass
class Learner:
    """A policy that trains: its wrapped module, its optimizer, and those of its segments that train."""

    policy: Policy
    module: nn.Module
    optimizer: torch.optim.Optimizer
    settings: OptimizerConfig
    segments: Mapping[SegmentName, SegmentConfig]
    reference: Reference | None
    updates: int = 0
    critic: Critic | None = None
    ema: EMA | None = None


def update(
    accelerator: Accelerator,
    learner: Learner,
    algorithm: RLAlgorithm,
    batch: Batch,
    advantages: Advantages,
    config: RunConfig,
    clock: Clock,
) -> dict[str, float]:
    """Makes ``config.updates`` optimizer updates of one policy on one batch; returns the means of the statistics by name.

    Losses are sums. They are divided by counts over the whole update and all processes, so neither micro-batches nor processes change
    the gradient. In the first update, ``old`` is the detached log-probability of the same pass: the ratio is 1 and its gradient that of
    log p. Only an algorithm that needs log-probabilities before it has advantages pays for a pass of its own.
    An update whose gradient is not finite is skipped and counted in ``skipped_updates``, which is there only if there are some.
    """
    all_updates, skipped = config.steps * config.updates, 0
    sums = MetricSums()
    scale = _mean_factors(accelerator, counts(batch, learner, algorithm, config))
    with clock.phase("forward"), explain_out_of_memory("forward", config):
        micro_batches = _prepare(accelerator, learner, algorithm, batch, advantages, config, sums)
    value_scale = _mean_factors(accelerator, _value_counts(learner, micro_batches)) if learner.critic else {}
    working = any_process(accelerator, bool(micro_batches))  # then every process takes part, with whatever it has
    critic_only = learner.critic is not None and learner.updates < learner.critic.warmup * config.updates
    for number in range(config.updates if working else 0):
        set_learning_rate(learner.optimizer, learner.settings, learner.updates, all_updates)
        for index, micro_batch in enumerate(micro_batches):
            with accelerator.autocast():
                with clock.phase("forward"), torch.set_grad_enabled(not critic_only):
                    stats = call_module(
                        learner.policy, learner.module, micro_batch.segments, learns=not critic_only, features=learner.critic is not None
                    )
                if config.updates == 1 or not micro_batch.old:
                    micro_batches[index] = micro_batch = _with_old(micro_batch, stats)
                losses = [0 * stats[name].log_prob[mask].sum() for name, mask in micro_batch.masks.items() if micro_batch.idle]
                for name, rollout in micro_batch.segments.items() if not micro_batch.idle else ():
                    if number == 0:
                        _add_sampler_gap(sums, name, rollout, micro_batch.old[name])
                    losses.append(_segment_loss(algorithm, learner, micro_batch, name, stats[name], sums) * scale[name])
                if isinstance(algorithm, ActorCritic) and learner.critic is not None and not micro_batch.idle:
                    losses += _value_losses(algorithm, learner.critic, micro_batch, stats, value_scale, sums)
                loss = torch.stack(losses).sum()
                with clock.phase("update"), told_of_backward(learner.policy, algorithm):
                    if loss.requires_grad:  # an idle micro-batch has no gradient while only the critic learns
                        accelerator.backward(loss)
        with clock.phase("update"):
            taken = _optimizer_step(accelerator, learner, sums)
        learner.updates += 1
        skipped += not taken
        if taken and learner.ema is not None:
            learner.ema.update(learner.updates)
    if not working:
        learner.updates += config.updates  # the schedule counts steps, those with nothing to learn from too
    metrics = {"learning_rate": learning_rate_at(learner.settings, max(0, learner.updates - 1), all_updates)}
    return sums.reduce(accelerator) | metrics | ({"skipped_updates": float(skipped)} if skipped else {})


def counts(batch: Batch, learner: Learner, algorithm: RLAlgorithm, config: RunConfig) -> dict[SegmentName, tuple[float, int, int]]:
    """Counts each segment of this process: what the algorithm counts (tokens or sequences), all rows, and the rows that were drawn."""
    by_segment: dict[SegmentName, tuple[float, int, int]] = {}
    for name in learner.segments:
        rollout, rows = (batch.plans, len(batch.plans)) if name == PLAN else (batch.images, len(batch.samples))
        sampled = call_count(algorithm, action_mask(rollout, config)) if rollout is not None else 0.0
        by_segment[name] = sampled, rows, len(rollout) if rollout is not None else 0
    return by_segment


def with_log_probs(
    accelerator: Accelerator, learner: Learner, micro_batches: Sequence[MicroBatch], *, critic: Critic | None = None
) -> list[MicroBatch]:
    """Adds ``old`` log-probabilities ``[B, T]``, and values ``[B, T]`` where there is a critic, computed without gradient."""
    filled = []
    with torch.no_grad(), accelerator.autocast():
        for micro_batch in micro_batches:
            stats = call_module(learner.policy, learner.module, micro_batch.segments, features=critic is not None)
            values = critic_values(critic.module, stats, micro_batch.masks) if critic else {}
            filled.append(replace(_with_old(micro_batch, stats), values=values))
    return filled


def _with_old(micro_batch: MicroBatch, stats: Mapping[SegmentName, ActionStats]) -> MicroBatch:
    """Adds the log-probabilities and means of ``stats``, detached, as those before the update."""
    means = {name: s.mean.detach() for name, s in stats.items() if s.mean is not None}
    return replace(micro_batch, old={name: s.log_prob.detach() for name, s in stats.items()}, old_means=means)


def _mean_factors(accelerator: Accelerator, local: Mapping[SegmentName, tuple[float, int, int]]) -> dict[SegmentName, float]:
    """Factors that turn sums into means over all that was sampled on all processes. Pruned images count as if they were drawn.

    A segment with nothing to count is divided by 1.
    """
    factors = {}
    for name, numbers in local.items():
        sampled, rows, drawn = sum_over_processes(accelerator, numbers)
        factors[name] = 1 / max(1.0, sampled * rows / max(1, drawn))
    return factors


def _value_counts(learner: Learner, micro_batches: Sequence[MicroBatch]) -> dict[SegmentName, tuple[float, int, int]]:
    """How many values there are to learn on this process, as :func:`counts` gives it."""
    finite = {name: sum(int(m.returns[name].isfinite().sum()) for m in micro_batches if name in m.returns) for name in learner.segments}
    return {name: (float(count), 1, 1) for name, count in finite.items()}


def _prepare(
    accelerator: Accelerator,
    learner: Learner,
    algorithm: RLAlgorithm,
    batch: Batch,
    advantages: Advantages,
    config: RunConfig,
    sums: MetricSums,
) -> list[MicroBatch]:
    """Splits the batch, and adds what must be known before the update: the reference's and old log-probabilities, advantages."""
    estimator = algorithm if isinstance(algorithm, AdvantageEstimator) else None
    micro_batches = split_batch(batch, advantages, learner.segments, config, every=estimator is not None)
    if is_sharded(learner.module):
        micro_batches = align_micro_batches(accelerator, micro_batches)
    if learner.reference is not None:
        with learner.reference.active():
            everything = estimator is not None and estimator.needs_reference
            micro_batches = _with_reference(accelerator, learner, micro_batches, everything=everything)
    if estimator is not None:
        micro_batches = with_log_probs(accelerator, learner, micro_batches, critic=learner.critic)
        busy = [m for m in micro_batches if not m.idle]
        busy, statistics = estimate_advantages(accelerator, estimator, learner.critic, list(learner.segments), batch, busy)
        micro_batches = [m if m.idle else busy.pop(0) for m in micro_batches]
        sums.extend(statistics)
    return micro_batches


def _with_reference(
    accelerator: Accelerator, learner: Learner, micro_batches: Sequence[MicroBatch], *, everything: bool
) -> list[MicroBatch]:
    """Adds the reference's log-probabilities of the segments that use them: those with a KL term, or ``everything``."""
    used = {name for name, settings in learner.segments.items() if everything or settings.kl}
    parts = [replace(m, segments={name: rollout for name, rollout in m.segments.items() if name in used}) for m in micro_batches]
    known = iter(with_log_probs(accelerator, learner, [part for part in parts if part.segments]))
    filled = [next(known) if part.segments else part for part in parts]
    return [replace(m, reference=own.old, reference_means=own.old_means) for m, own in zip(micro_batches, filled, strict=True)]


def _segment_loss(
    algorithm: RLAlgorithm, learner: Learner, micro_batch: MicroBatch, name: SegmentName, stats: ActionStats, sums: MetricSums
) -> Tensor:
    """The weighted loss of one segment, a scalar, summed over its actions; adds the segment's statistics."""
    settings = learner.segments[name]
    old, reference, mask = micro_batch.old[name], micro_batch.reference.get(name), micro_batch.masks[name]
    stats = _with_divergences(stats, micro_batch, name)
    loss = call_loss(algorithm, name, stats, old, reference if settings.kl else None, micro_batch.advantages[name], mask, settings)
    sums.extend(loss.statistics, f"{name}.")
    if reference is not None and not settings.kl:  # known because the algorithm needs it; reported
        gap = (reference - stats.log_prob.detach())[mask]
        kl = gap.exp() - 1 - gap if stats.kl is None else stats.kl.detach()[mask]
        sums.add(f"{name}.kl", kl.sum(), len(kl))
    ratios = (stats.log_prob.detach() - old)[mask].exp()
    sums.add_extremes(ratios, low=f"{name}.ratio_min", high=f"{name}.ratio_max")
    _add_per_denoising_step(sums, name, micro_batch.segments[name].tensors.get("step"), loss.actions, mask)
    return settings.weight * loss.sums[name]


def _with_divergences(stats: ActionStats, micro_batch: MicroBatch, name: SegmentName) -> ActionStats:
    """Adds closed-form divergences to Gaussian actions: from the policy before the update, and from the reference."""
    if stats.mean is None or stats.std is None:
        return stats
    moved = divergence(stats.mean, micro_batch.old_means.get(name, stats.mean.detach()), stats.std)
    reference = micro_batch.reference_means.get(name)
    return replace(stats, moved=moved, kl=None if reference is None else divergence(stats.mean, reference, stats.std))


def _add_per_denoising_step(sums: MetricSums, name: SegmentName, steps: Tensor | None, actions: Mapping[str, Tensor], mask: Tensor) -> None:
    """Reports each denoising step alone, counted from 1. One mean over all steps would hide those with little noise."""
    if steps is None or not actions:
        return
    for step in steps[mask].unique().tolist():
        chosen = mask & (steps == step)
        for what, numbers in actions.items():
            sums.add(f"{name}.step_{step + 1}.{what}", numbers[chosen].double().sum(), chosen.sum())


def _value_losses(
    algorithm: ActorCritic,
    critic: Critic,
    micro_batch: MicroBatch,
    stats: Mapping[SegmentName, ActionStats],
    scale: Mapping[SegmentName, float],
    sums: MetricSums,
) -> list[Tensor]:
    """The critic's loss of each segment, scalars."""
    losses = []
    for name, values in critic_values(critic.module, stats, micro_batch.masks).items():
        finite = micro_batch.returns[name].isfinite()
        returns = micro_batch.returns[name][finite].to(values.dtype)
        loss, statistics = call_value_loss(algorithm, values[finite], micro_batch.values[name][finite], returns)
        sums.extend(statistics, f"{name}.")
        losses.append(loss * scale[name])
    return losses


def _optimizer_step(accelerator: Accelerator, learner: Learner, sums: MetricSums) -> bool:
    """Sums gradients over processes, clips them by their norm, steps if they are finite, and clears them. Returns whether it stepped."""
    sum_gradients(accelerator, [p for group in learner.optimizer.param_groups for p in group["params"]])
    accelerator.unscale_gradients(learner.optimizer)  # of fp16, before they are clipped
    norms = {"gradient_norm": clip_gradients(learner.module.parameters(), learner.settings.max_grad_norm)}
    if learner.critic is not None:
        norms["value_gradient_norm"] = clip_gradients(learner.critic.module.parameters(), learner.critic.max_grad_norm)
    for name, norm in norms.items():
        sums.add(name, norm)
    return step_if_finite(accelerator, learner.optimizer, list(norms.values()))


def _add_sampler_gap(sums: MetricSums, name: SegmentName, rollout: Rollout, old: Tensor) -> None:
    """Compares log-probabilities ``old [B, T]`` with those the sampler reported. They differ by rounding, or something is wrong."""
    mask = rollout.tensors["mask"]
    gap = torch.where(mask, (old - rollout.tensors["log_prob"]).abs(), 0.0)
    sums.add(f"{name}.sampler_gap", gap.sum(), mask.sum())
    sums.add_extremes(gap, high=f"{name}.worst_sampler_gap")
