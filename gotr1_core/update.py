"""One policy's update on a rollout: score, compare with the rollout, take the gradient of the algorithm's loss."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gotr1_core.config import OptimizerConfig, RunConfig, SegmentConfig
from gotr1_core.credit import Credit
from gotr1_core.memory import explained
from gotr1_core.optim import clip, rate_at, set_rate
from gotr1_core.protocols import Policy, RLAlgorithm
from gotr1_core.reference import Reference
from gotr1_core.rollout import Batch
from gotr1_core.samples import IMAGE, PLAN, Rollout, Scored, SegmentName


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


@dataclass(frozen=True)
class Slice:
    """Some plans with their images, ready to be scored, and their advantages."""

    segments: Mapping[SegmentName, Rollout]
    advantages: Mapping[SegmentName, Tensor]
    masks: Mapping[SegmentName, Tensor]


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
    """Sums and weights of statistics over slices; ``means`` over all processes."""

    sums: dict[str, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0.0]))

    def add(self, name: str, value: Tensor, weight: Tensor) -> None:
        self.sums[name][0] += float(value)
        self.sums[name][1] += float(weight)

    def means(self) -> dict[str, float]:
        return {name: value / weight for name, (value, weight) in self.sums.items() if weight}


def slices(batch: Batch, credit: Credit, learner: Learner, config: RunConfig) -> list[Slice]:
    """Micro-batches of the plans whose gradient is not known to be zero."""
    *_, images = batch.totals.shape
    flat = {PLAN: credit.plan.flatten(), IMAGE: credit.image.flatten()}
    work = torch.zeros(len(batch.plans), dtype=torch.bool)
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


def counts(batch: Batch, learner: Learner, algorithm: RLAlgorithm, config: RunConfig) -> dict[SegmentName, Tensor]:
    """What each segment's sums are divided by, on this process: everything the step sampled, pruned images counted as if drawn."""
    found: dict[SegmentName, Tensor] = {}
    if PLAN in learner.segments:
        found[PLAN] = algorithm.count(_mask(batch.plans, config)).double()
    if IMAGE in learner.segments and batch.images is not None:
        drawn = algorithm.count(_mask(batch.images, config)).double()
        found[IMAGE] = drawn * (len(batch.samples) / len(batch.images))
    return found


def score_slices(accelerator: Accelerator, learner: Learner, parts: Sequence[Slice]) -> list[dict[SegmentName, Tensor]]:
    """Log-probabilities without gradient, on the same slices that the update will score."""
    with torch.no_grad(), accelerator.autocast():
        return [{name: s.log_prob for name, s in learner.module(part.segments).items()} for part in parts]


def update(
    accelerator: Accelerator, learner: Learner, algorithm: RLAlgorithm, batch: Batch, credit: Credit, config: RunConfig, clock: Clock
) -> dict[str, float]:
    """``config.updates`` optimizer updates of one policy on one batch; returns means of the statistics.

    Losses are sums, divided by counts over the whole update and all processes: neither micro-batches nor processes change the
    gradient. With one update ``old`` is the scoring pass itself, so the ratio is 1 and its gradient that of log p.
    """
    total_updates = config.steps * config.updates
    parts = slices(batch, credit, learner, config)
    local = counts(batch, learner, algorithm, config)
    # Where every action of a segment is masked there is nothing to divide, either.
    scale = {name: accelerator.num_processes / max(1.0, accelerator.reduce(n, "sum").item()) for name, n in local.items()}
    tally = Tally()
    with clock.phase("scoring"), explained("scoring", config):
        references = _reference_scores(accelerator, learner, parts)
        olds = score_slices(accelerator, learner, parts) if config.updates > 1 else [None] * len(parts)
    for number in range(config.updates if parts else 0):
        set_rate(learner.optimizer, rate_at(learner.settings, learner.updates, total_updates))
        for index, (part, old, reference) in enumerate(zip(parts, olds, references, strict=True)):
            with _sync(accelerator, learner.module, last=index + 1 == len(parts)), accelerator.autocast():
                with clock.phase("scoring"):
                    scored = learner.module(part.segments)
                losses = []
                for name, rollout in part.segments.items():
                    before = scored[name].log_prob.detach() if old is None else old[name]
                    if number == 0:
                        _deviation(tally, name, rollout, before)
                    losses.append(_segment_loss(algorithm, learner, part, name, scored[name], before, reference, tally) * scale[name])
                with clock.phase("update"):
                    accelerator.backward(torch.stack(losses).sum())
        with clock.phase("update"):
            accelerator.unscale_gradients(learner.optimizer)  # of fp16, before they are clipped
            tally.add("gradient_norm", clip(learner.module.parameters(), learner.settings.clip), torch.ones(()))
            learner.optimizer.step()
            learner.optimizer.zero_grad(set_to_none=True)
        learner.updates += 1
    if not parts:
        learner.updates += config.updates  # the schedule goes by steps, also by those with nothing to learn from
    return tally.means() | {"rate": rate_at(learner.settings, max(0, learner.updates - 1), total_updates)}


def _segment_loss(
    algorithm: RLAlgorithm,
    learner: Learner,
    part: Slice,
    name: SegmentName,
    scored: Scored,
    old: Tensor,
    reference: Mapping[SegmentName, Tensor] | None,
    tally: Tally,
) -> Tensor:
    settings = learner.segments[name]
    lent = reference[name] if reference is not None and settings.kl else None
    loss = algorithm.loss(name, scored, old, lent, part.advantages[name], part.masks[name], settings)
    for key, (value, weight) in loss.statistics.items():
        tally.add(f"{name}.{key}", value, weight)
    return settings.weight * loss.sums[name]


def _reference_scores(accelerator: Accelerator, learner: Learner, parts: Sequence[Slice]) -> Sequence[Mapping[SegmentName, Tensor] | None]:
    if learner.reference is None:
        return [None] * len(parts)
    with learner.reference.active():
        return score_slices(accelerator, learner, parts)


def _deviation(tally: Tally, name: SegmentName, rollout: Rollout, old: Tensor) -> None:
    """How far the scorer is from what the sampler said it did; near 0, or what is scored is not what was sampled."""
    mask = rollout.tensors["mask"]
    gap = torch.where(mask, (old - rollout.tensors["log_prob"]).abs(), 0.0)
    tally.add(f"{name}.deviation", gap.sum(), mask.sum())
    worst = tally.sums[f"{name}.worst_deviation"]
    worst[0], worst[1] = max(worst[0], float(gap.max()) if gap.numel() else 0.0), 1.0


def _sync(accelerator: Accelerator, module: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """Gradients travel between processes with the last slice only."""
    return nullcontext() if last else accelerator.no_sync(module)
