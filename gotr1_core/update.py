"""One policy's update on a rollout: score, compare with the rollout, take the gradient of the algorithm's loss."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gotr1_core.average import Average
from gotr1_core.config import OptimizerConfig, RunConfig, SegmentConfig
from gotr1_core.credit import Credit
from gotr1_core.critic import assess, values
from gotr1_core.distributed import anywhere, gathered, sum_gradients, summed
from gotr1_core.gaussian import divergence
from gotr1_core.memory import explained
from gotr1_core.optim import clip, rate_at, set_rate
from gotr1_core.protocols import ActorCritic, Assessor, Critic, Policy, RLAlgorithm
from gotr1_core.reference import Reference
from gotr1_core.rollout import Batch
from gotr1_core.samples import IMAGE, PLAN, Rollout, Scored, SegmentName
from gotr1_core.sharding import in_step, is_sharded


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
    average: Average | None = None


@dataclass(frozen=True)
class Slice:
    """Some plans with their images, ready to be scored, and what is known about them before the update, by segment.

    ``advantages`` are ``[B]`` or ``[B, T]``, the rest ``[B, T]``: ``masks``; log-probabilities ``old`` and ``reference`` and a critic's
    ``values``, where they were asked for; the ``returns`` that values learn. Of Gaussian actions there are means too, ``[B, T, ...]``.
    What is ``idle`` is scored because other processes score something, and adds nothing.
    """

    segments: Mapping[SegmentName, Rollout]
    advantages: Mapping[SegmentName, Tensor]
    masks: Mapping[SegmentName, Tensor]
    old: Mapping[SegmentName, Tensor] = field(default_factory=dict)
    reference: Mapping[SegmentName, Tensor] = field(default_factory=dict)
    values: Mapping[SegmentName, Tensor] = field(default_factory=dict)
    returns: Mapping[SegmentName, Tensor] = field(default_factory=dict)
    old_means: Mapping[SegmentName, Tensor] = field(default_factory=dict)
    reference_means: Mapping[SegmentName, Tensor] = field(default_factory=dict)
    idle: bool = False


@dataclass
class Clock:
    """Seconds of a step by phase."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begun


@dataclass
class Tally:
    """Sums and weights of statistics, and their extremes; ``numbers`` puts those of all processes together."""

    sums: dict[str, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0.0]))
    largest: dict[str, float] = field(default_factory=dict)
    smallest: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, value: Tensor | float, weight: Tensor | float = 1.0) -> None:
        self.sums[name][0] += float(value)
        self.sums[name][1] += float(weight)

    def extend(self, statistics: Mapping[str, tuple[Tensor, Tensor]], prefix: str = "") -> None:
        for name, (value, weight) in statistics.items():
            self.add(prefix + name, value, weight)

    def extremes(self, values: Tensor, *, low: str | None = None, high: str | None = None) -> None:
        if values.numel() and low:
            self.smallest[low] = min(self.smallest.get(low, float("inf")), float(values.min()))
        if values.numel() and high:
            self.largest[high] = max(self.largest.get(high, -float("inf")), float(values.max()))

    def numbers(self, accelerator: Accelerator) -> dict[str, float]:
        """Means, and extremes, over all processes."""
        every = gathered(accelerator, (dict(self.sums), self.largest, self.smallest))
        total = Tally()
        for sums, largest, smallest in every:
            for name, (value, weight) in sums.items():
                total.add(name, value, weight)
            total.largest |= {k: max(v, total.largest.get(k, v)) for k, v in largest.items()}
            total.smallest |= {k: min(v, total.smallest.get(k, v)) for k, v in smallest.items()}
        return {name: value / weight for name, (value, weight) in total.sums.items() if weight} | total.largest | total.smallest


def slices(batch: Batch, credit: Credit, learner: Learner, config: RunConfig, *, every: bool = False) -> list[Slice]:
    """Micro-batches of the plans whose gradient is not known to be zero, or of ``every`` plan."""
    *_, images = batch.totals.shape
    flat = {PLAN: credit.plan.flatten(), IMAGE: credit.image.flatten()}
    work = torch.full((len(batch.plans),), every)
    for name, settings in learner.segments.items():
        moves = flat[name].ne(0) if name == PLAN else flat[name].view(-1, images).ne(0).any(1)
        work |= moves | bool(settings.kl or settings.entropy)
    rows = work.nonzero().flatten()
    found = []
    for part in rows.split(config.micro_batch) if len(rows) else ():  # nothing would be split into one empty slice
        segments, drawn = batch.segments(part)
        chosen = {name: segments[name] for name in learner.segments if name in segments}
        advantages = {PLAN: flat[PLAN][part], IMAGE: flat[IMAGE][batch.place[drawn]]}
        masks = {name: _mask(rollout, config) for name, rollout in chosen.items()}
        if chosen:
            found.append(Slice(chosen, {n: advantages[n].to(masks[n].device) for n in chosen}, masks))
    return found


def _mask(rollout: Rollout, config: RunConfig) -> Tensor:
    mask = rollout.tensors["mask"]
    if rollout.segment == PLAN and config.mask_truncated:
        mask = mask & ~rollout.tensors["truncated"].unsqueeze(1)
    return mask


def counts(batch: Batch, learner: Learner, algorithm: RLAlgorithm, config: RunConfig) -> dict[SegmentName, tuple[float, int, int]]:
    """For what each segment's sums are divided by, on this process: how much was sampled, and of how many rows how many were drawn."""
    found: dict[SegmentName, tuple[float, int, int]] = {}
    for name in learner.segments:
        rollout, rows = (batch.plans, len(batch.plans)) if name == PLAN else (batch.images, len(batch.samples))
        sampled = float(algorithm.count(_mask(rollout, config))) if rollout is not None else 0.0
        found[name] = sampled, rows, len(rollout) if rollout is not None else 0
    return found


def score_slices(accelerator: Accelerator, learner: Learner, parts: Sequence[Slice], *, critic: Critic | None = None) -> list[Slice]:
    """The slices with log-probabilities, and values where there is a critic, without gradient: on what the update will score again."""
    found = []
    with torch.no_grad(), accelerator.autocast():
        for part in parts:
            scored = learner.module(part.segments)
            estimates = values(critic.module, scored, part.masks) if critic else {}
            old, means = {n: s.log_prob for n, s in scored.items()}, {n: s.mean for n, s in scored.items() if s.mean is not None}
            found.append(replace(part, old=old, old_means=means, values=estimates))
    return found


def update(
    accelerator: Accelerator, learner: Learner, algorithm: RLAlgorithm, batch: Batch, credit: Credit, config: RunConfig, clock: Clock
) -> dict[str, float]:
    """``config.updates`` optimizer updates of one policy on one batch; returns means of the statistics.

    Losses are sums, divided by counts over the whole update and all processes: neither micro-batches nor processes change the
    gradient. With one update ``old`` is the scoring pass itself, so the ratio is 1 and its gradient that of log p.
    """
    total_updates = config.steps * config.updates
    tally = Tally()
    scale = _shares(accelerator, counts(batch, learner, algorithm, config))
    with clock.phase("scoring"), explained("scoring", config):
        parts = _known(accelerator, learner, algorithm, batch, credit, config, tally)
    value_scale = _shares(accelerator, _learnt(learner, parts)) if learner.critic else {}
    working = anywhere(accelerator, bool(parts))  # then every process takes part, with whatever it has
    alone = learner.critic is not None and learner.updates < learner.critic.alone * config.updates
    for number in range(config.updates if working else 0):
        set_rate(learner.optimizer, rate_at(learner.settings, learner.updates, total_updates))
        for part in parts:
            with accelerator.autocast():
                with clock.phase("scoring"), torch.set_grad_enabled(not alone):
                    scored = learner.module(part.segments)
                losses = [0 * scored[name].log_prob[mask].sum() for name, mask in part.masks.items() if part.idle]
                for name, rollout in part.segments.items() if not part.idle else ():
                    old = part.old[name] if config.updates > 1 else scored[name].log_prob.detach()
                    if number == 0:
                        _deviation(tally, name, rollout, old)
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
        if learner.average is not None:
            learner.average.follow(learner.updates)
    if not working:
        learner.updates += config.updates  # the schedule goes by steps, also by those with nothing to learn from
    return tally.numbers(accelerator) | {"rate": rate_at(learner.settings, max(0, learner.updates - 1), total_updates)}


def _shares(accelerator: Accelerator, local: Mapping[SegmentName, tuple[float, int, int]]) -> dict[SegmentName, float]:
    """What sums are multiplied by to become means over all processes: everything that was sampled, pruned images counted as if drawn.

    Where nothing counts there is nothing to divide, either.
    """
    shares = {}
    for name, mine in local.items():
        sampled, rows, drawn = summed(accelerator, mine)
        shares[name] = 1 / max(1.0, sampled * rows / max(1, drawn))
    return shares


def _learnt(learner: Learner, parts: Sequence[Slice]) -> dict[SegmentName, tuple[float, int, int]]:
    """How many values there are to learn on this process."""
    known = {name: sum(int(part.returns[name].isfinite().sum()) for part in parts if name in part.returns) for name in learner.segments}
    return {name: (float(count), 1, 1) for name, count in known.items()}


def _known(
    accelerator: Accelerator, learner: Learner, algorithm: RLAlgorithm, batch: Batch, credit: Credit, config: RunConfig, tally: Tally
) -> list[Slice]:
    """The slices of an update with what has to be known before it: scores of the reference, of the policy as it is, advantages."""
    assessor = algorithm if isinstance(algorithm, Assessor) else None
    parts = slices(batch, credit, learner, config, every=assessor is not None)
    if is_sharded(learner.module):
        parts = in_step(accelerator, parts)
    if learner.reference is not None:
        with learner.reference.active():
            parts = [_as_reference(part) for part in score_slices(accelerator, learner, parts)]
    if config.updates > 1 or assessor is not None:
        parts = score_slices(accelerator, learner, parts, critic=learner.critic)
    if assessor is not None:
        mine = [part for part in parts if not part.idle]
        mine, statistics = assess(accelerator, assessor, learner.critic, list(learner.segments), batch, mine)
        parts = [part if part.idle else mine.pop(0) for part in parts]
        tally.extend(statistics)
    return parts


def _as_reference(part: Slice) -> Slice:
    return replace(part, reference=part.old, reference_means=part.old_means, old={}, old_means={})


def _segment_loss(
    algorithm: RLAlgorithm, learner: Learner, part: Slice, name: SegmentName, scored: Scored, old: Tensor, tally: Tally
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


def _with_divergences(scored: Scored, part: Slice, name: SegmentName) -> Scored:
    """Gaussian actions with their divergences in closed form: from the policy as it was before the update, and from the reference."""
    if scored.mean is None or scored.deviation is None:
        return scored
    moved = divergence(scored.mean, part.old_means.get(name, scored.mean.detach()), scored.deviation)
    reference = part.reference_means.get(name)
    return replace(scored, moved=moved, kl=None if reference is None else divergence(scored.mean, reference, scored.deviation))


def _step_by_step(tally: Tally, name: SegmentName, steps: Tensor | None, actions: Mapping[str, Tensor], mask: Tensor) -> None:
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
    part: Slice,
    scored: Mapping[SegmentName, Scored],
    scale: Mapping[SegmentName, float],
    tally: Tally,
) -> list[Tensor]:
    losses = []
    for name, estimates in values(critic.module, scored, part.masks).items():
        learnt = part.returns[name].isfinite()
        returns = part.returns[name][learnt].to(estimates.dtype)
        loss, statistics = algorithm.value_loss(estimates[learnt], part.values[name][learnt], returns)
        tally.extend(statistics, f"{name}.")
        losses.append(loss * scale[name])
    return losses


def _step(accelerator: Accelerator, learner: Learner, tally: Tally) -> None:
    sum_gradients(accelerator, [p for group in learner.optimizer.param_groups for p in group["params"]])
    accelerator.unscale_gradients(learner.optimizer)  # of fp16, before they are clipped
    tally.add("gradient_norm", clip(learner.module.parameters(), learner.settings.clip))
    if learner.critic is not None:
        tally.add("value_gradient_norm", clip(learner.critic.module.parameters(), learner.critic.clip))
    learner.optimizer.step()
    learner.optimizer.zero_grad(set_to_none=True)


def _deviation(tally: Tally, name: SegmentName, rollout: Rollout, old: Tensor) -> None:
    """How far the scorer is from what the sampler said it did; near 0, or what is scored is not what was sampled."""
    mask = rollout.tensors["mask"]
    gap = torch.where(mask, (old - rollout.tensors["log_prob"]).abs(), 0.0)
    tally.add(f"{name}.deviation", gap.sum(), mask.sum())
    tally.extremes(gap, high=f"{name}.worst_deviation")
