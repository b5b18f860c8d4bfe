"""One policy's update on a rollout: score, compare with the rollout, take the gradient of the algorithm's loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gotr1_core.advantages import Advantages
from gotr1_core.batch import Batch, MicroBatch, action_mask, micro_batches
from gotr1_core.config.models import OptimizerConfig, RunConfig, SegmentConfig
from gotr1_core.engine.collectives import any_process, sum_gradients, sum_over_processes
from gotr1_core.engine.critic import critic_values, estimate_advantages
from gotr1_core.engine.ema import EMA
from gotr1_core.engine.fsdp import in_step, is_sharded
from gotr1_core.engine.metrics import Clock, MetricSums
from gotr1_core.engine.optim import clip_gradients, learning_rate_at, set_learning_rate
from gotr1_core.engine.out_of_memory import explained
from gotr1_core.gaussian import divergence
from gotr1_core.protocols import ActorCritic, AdvantageEstimator, Critic, Policy, RLAlgorithm
from gotr1_core.reference import Reference
from gotr1_core.samples import PLAN, ActionStats, Rollout, SegmentName


@dataclass
class Learner:
    """A policy with its wrapped module, its optimizer and the segments of it that train."""

    policy: Policy
    module: nn.Module
    optimizer: torch.optim.Optimizer
    settings: OptimizerConfig
    segments: Mapping[SegmentName, SegmentConfig]
    reference: Reference | None
    updates: int = 0
    critic: Critic | None = None
    ema: EMA | None = None


def counts(batch: Batch, learner: Learner, algorithm: RLAlgorithm, config: RunConfig) -> dict[SegmentName, tuple[float, int, int]]:
    """For what each segment's sums are divided by, on this process: how much was sampled, and of how many rows how many were drawn."""
    found: dict[SegmentName, tuple[float, int, int]] = {}
    for name in learner.segments:
        rollout, rows = (batch.plans, len(batch.plans)) if name == PLAN else (batch.images, len(batch.samples))
        sampled = float(algorithm.count(action_mask(rollout, config))) if rollout is not None else 0.0
        found[name] = sampled, rows, len(rollout) if rollout is not None else 0
    return found


def with_log_probs(
    accelerator: Accelerator, learner: Learner, parts: Sequence[MicroBatch], *, critic: Critic | None = None
) -> list[MicroBatch]:
    """The slices with log-probabilities, and values where there is a critic, without gradient: on what the update will score again."""
    found = []
    with torch.no_grad(), accelerator.autocast():
        for part in parts:
            scored = learner.module(part.segments)
            estimates = critic_values(critic.module, scored, part.masks) if critic else {}
            old, means = {n: s.log_prob for n, s in scored.items()}, {n: s.mean for n, s in scored.items() if s.mean is not None}
            found.append(replace(part, old=old, old_means=means, values=estimates))
    return found


def update(
    accelerator: Accelerator,
    learner: Learner,
    algorithm: RLAlgorithm,
    batch: Batch,
    advantages: Advantages,
    config: RunConfig,
    clock: Clock,
) -> dict[str, float]:
    """``config.updates`` optimizer updates of one policy on one batch; returns means of the statistics.

    Losses are sums, divided by counts over the whole update and all processes: neither micro-batches nor processes change the
    gradient. With one update ``old`` is the scoring pass itself, so the ratio is 1 and its gradient that of log p.
    """
    total_updates = config.steps * config.updates
    tally = MetricSums()
    scale = _shares(accelerator, counts(batch, learner, algorithm, config))
    with clock.phase("forward"), explained("forward", config):
        parts = _known(accelerator, learner, algorithm, batch, advantages, config, tally)
    value_scale = _shares(accelerator, _learnt(learner, parts)) if learner.critic else {}
    working = any_process(accelerator, bool(parts))  # then every process takes part, with whatever it has
    alone = learner.critic is not None and learner.updates < learner.critic.warmup * config.updates
    for number in range(config.updates if working else 0):
        set_learning_rate(learner.optimizer, learning_rate_at(learner.settings, learner.updates, total_updates))
        for part in parts:
            with accelerator.autocast():
                with clock.phase("forward"), torch.set_grad_enabled(not alone):
                    scored = learner.module(part.segments)
                losses = [0 * scored[name].log_prob[mask].sum() for name, mask in part.masks.items() if part.idle]
                for name, rollout in part.segments.items() if not part.idle else ():
                    old = part.old[name] if config.updates > 1 else scored[name].log_prob.detach()
                    if number == 0:
                        _sampler_gap(tally, name, rollout, old)
                    losses.append(_segment_loss(algorithm, learner, part, name, scored[name], old, tally) * scale[name])
                if isinstance(algorithm, ActorCritic) and learner.critic is not None and not part.idle:
                    losses += _value_losses(algorithm, learner.critic, part, scored, value_scale, tally)
                loss = torch.stack(losses).sum()
                with clock.phase("update"):
                    if loss.requires_grad:  # not of what is idle while a critic learns alone
                        accelerator.backward(loss)
        with clock.phase("update"):
            _step(accelerator, learner, tally)
        learner.updates += 1
        if learner.ema is not None:
            learner.ema.follow(learner.updates)
    if not working:
        learner.updates += config.updates  # the schedule goes by steps, also by those with nothing to learn from
    return tally.numbers(accelerator) | {"learning_rate": learning_rate_at(learner.settings, max(0, learner.updates - 1), total_updates)}


def _shares(accelerator: Accelerator, local: Mapping[SegmentName, tuple[float, int, int]]) -> dict[SegmentName, float]:
    """What sums are multiplied by to become means over all processes: everything that was sampled, pruned images counted as if drawn.

    Where nothing counts there is nothing to divide, either.
    """
    shares = {}
    for name, mine in local.items():
        sampled, rows, drawn = sum_over_processes(accelerator, mine)
        shares[name] = 1 / max(1.0, sampled * rows / max(1, drawn))
    return shares


def _learnt(learner: Learner, parts: Sequence[MicroBatch]) -> dict[SegmentName, tuple[float, int, int]]:
    """How many values there are to learn on this process."""
    known = {name: sum(int(part.returns[name].isfinite().sum()) for part in parts if name in part.returns) for name in learner.segments}
    return {name: (float(count), 1, 1) for name, count in known.items()}


def _known(
    accelerator: Accelerator,
    learner: Learner,
    algorithm: RLAlgorithm,
    batch: Batch,
    advantages: Advantages,
    config: RunConfig,
    tally: MetricSums,
) -> list[MicroBatch]:
    """The slices of an update with what has to be known before it: scores of the reference, of the policy as it is, advantages."""
    assessor = algorithm if isinstance(algorithm, AdvantageEstimator) else None
    parts = micro_batches(batch, advantages, learner.segments, config, every=assessor is not None)
    if is_sharded(learner.module):
        parts = in_step(accelerator, parts)
    if learner.reference is not None:
        with learner.reference.active():
            parts = [_as_reference(part) for part in with_log_probs(accelerator, learner, parts)]
    if config.updates > 1 or assessor is not None:
        parts = with_log_probs(accelerator, learner, parts, critic=learner.critic)
    if assessor is not None:
        mine = [part for part in parts if not part.idle]
        mine, statistics = estimate_advantages(accelerator, assessor, learner.critic, list(learner.segments), batch, mine)
        parts = [part if part.idle else mine.pop(0) for part in parts]
        tally.extend(statistics)
    return parts


def _as_reference(part: MicroBatch) -> MicroBatch:
    return replace(part, reference=part.old, reference_means=part.old_means, old={}, old_means={})


def _segment_loss(
    algorithm: RLAlgorithm, learner: Learner, part: MicroBatch, name: SegmentName, scored: ActionStats, old: Tensor, tally: MetricSums
) -> Tensor:
    settings = learner.segments[name]
    reference, mask = part.reference.get(name), part.masks[name]
    scored = _with_divergences(scored, part, name)
    loss = algorithm.loss(name, scored, old, reference if settings.kl else None, part.advantages[name], mask, settings)
    tally.extend(loss.statistics, f"{name}.")
    if reference is not None and not settings.kl:  # it was scored with the other segment, and costs nothing to look at
        gap = (reference - scored.log_prob.detach())[mask]
        apart = gap.exp() - 1 - gap if scored.kl is None else scored.kl.detach()[mask]
        tally.add(f"{name}.kl", apart.sum(), len(apart))
    ratios = (scored.log_prob.detach() - old)[mask].exp()
    tally.extremes(ratios, low=f"{name}.ratio_min", high=f"{name}.ratio_max")
    _step_by_step(tally, name, part.segments[name].tensors.get("step"), loss.actions, mask)
    return settings.weight * loss.sums[name]


def _with_divergences(scored: ActionStats, part: MicroBatch, name: SegmentName) -> ActionStats:
    """Gaussian actions with their divergences in closed form: from the policy as it was before the update, and from the reference."""
    if scored.mean is None or scored.std is None:
        return scored
    moved = divergence(scored.mean, part.old_means.get(name, scored.mean.detach()), scored.std)
    reference = part.reference_means.get(name)
    return replace(scored, moved=moved, kl=None if reference is None else divergence(scored.mean, reference, scored.std))


def _step_by_step(tally: MetricSums, name: SegmentName, steps: Tensor | None, actions: Mapping[str, Tensor], mask: Tensor) -> None:
    """Numbers of every action by the denoising step that it is, counted from 1: one mean over all would hide those of little noise."""
    if steps is None or not actions:
        return
    for step in steps[mask].unique().tolist():
        chosen = mask & (steps == step)
        for what, each in actions.items():
            tally.add(f"{name}.step_{step + 1}.{what}", each[chosen].double().sum(), chosen.sum())


def _value_losses(
    algorithm: ActorCritic,
    critic: Critic,
    part: MicroBatch,
    scored: Mapping[SegmentName, ActionStats],
    scale: Mapping[SegmentName, float],
    tally: MetricSums,
) -> list[Tensor]:
    losses = []
    for name, estimates in critic_values(critic.module, scored, part.masks).items():
        learnt = part.returns[name].isfinite()
        returns = part.returns[name][learnt].to(estimates.dtype)
        loss, statistics = algorithm.value_loss(estimates[learnt], part.values[name][learnt], returns)
        tally.extend(statistics, f"{name}.")
        losses.append(loss * scale[name])
    return losses


def _step(accelerator: Accelerator, learner: Learner, tally: MetricSums) -> None:
    sum_gradients(accelerator, [p for group in learner.optimizer.param_groups for p in group["params"]])
    accelerator.unscale_gradients(learner.optimizer)  # of fp16, before they are clipped
    tally.add("gradient_norm", clip_gradients(learner.module.parameters(), learner.settings.max_grad_norm))
    if learner.critic is not None:
        tally.add("value_gradient_norm", clip_gradients(learner.critic.module.parameters(), learner.critic.max_grad_norm))
    learner.optimizer.step()
    learner.optimizer.zero_grad(set_to_none=True)


def _sampler_gap(tally: MetricSums, name: SegmentName, rollout: Rollout, old: Tensor) -> None:
    """How far the scorer is from what the sampler said it did; near 0, or what is scored is not what was sampled."""
    mask = rollout.tensors["mask"]
    gap = torch.where(mask, (old - rollout.tensors["log_prob"]).abs(), 0.0)
    tally.add(f"{name}.sampler_gap", gap.sum(), mask.sum())
    tally.extremes(gap, high=f"{name}.worst_sampler_gap")
