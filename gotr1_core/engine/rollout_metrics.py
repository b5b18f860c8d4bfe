"""Numbers about what a step drew, as sums and weights, so that those of several processes can be put together."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

from torch import Tensor

from gotr1_core.batch import Batch
from gotr1_core.engine.metrics import MetricSums
from gotr1_core.samples import Sample


def rollout_metrics(batch: Batch, constant: Tensor, *, idle: bool) -> MetricSums:
    """What was drawn: rewards, how they differ, and what the chains are like; ``constant [P]`` are the groups without a difference."""
    tally, rewards = MetricSums(), batch.rewards
    known = ~rewards.isnan()
    tally.add("reward", rewards.nansum(), known.sum())
    spread = [group[~group.isnan()].std() for group in rewards.flatten(1) if (~group.isnan()).sum() > 1]
    tally.add("group_std", sum(float(s) for s in spread), len(spread))
    if rewards.shape[1:].numel() > 1:  # a group of one sample has nothing to differ from
        tally.add("constant_groups", constant.sum(), len(constant))
    tally.add("idle", idle)
    tally.add("nan", (~known).sum(), known.numel())
    plans, count = batch.plans, len(batch.plans)
    tally.add("malformed", sum(not c.well_formed for c in plans.chains), count)
    tally.add("truncated", plans.tensors["truncated"].sum(), count)
    tally.add("chain_tokens", plans.tensors["mask"].sum(), count)
    tally.add("regions", sum(len(c.regions) for c in plans.chains), count)
    tally.add("pruned", len(batch.samples) - (len(batch.images) if batch.images is not None else 0), len(batch.samples))
    _scores(tally, batch.samples)
    _duplicates(tally, batch)
    return tally


def _scores(tally: MetricSums, samples: Sequence[Sample]) -> None:
    """The mean of every reward where it is known, and the share of samples where it is not."""
    for name in sorted({n for s in samples for n in s.scores}):
        values = [s.scores[name] for s in samples if name in s.scores]
        known = [v for v in values if not math.isnan(v)]
        tally.add(f"reward.{name}", sum(known), len(known))
        tally.add(f"nan.{name}", len(values) - len(known), len(values))


def _duplicates(tally: MetricSums, batch: Batch) -> None:
    """The share of a prompt's plans, and of its pictures, that repeat another one of the same prompt: 0 all differ, 1 all are alike."""
    size = len(batch.samples) // max(1, len(batch.prompts))
    sampled = bool(batch.plans.tensors["mask"].any())  # chains of a file repeat by design
    for start in range(0, len(batch.samples), max(1, size)):
        group = batch.samples[start : start + size]
        plans = {s.lineage[1]: s.chain.raw for s in group}
        if sampled:
            _repeated(tally, "duplicates.plan", list(plans.values()))
        _repeated(tally, "duplicates.image", [s.image.tobytes() for s in group if s.image is not None])


def _repeated(tally: MetricSums, name: str, things: Sequence[Hashable]) -> None:
    if len(things) > 1:
        tally.add(name, len(things) - len(set(things)), len(things) - 1)


def missing_shares(samples: Sequence[Sample]) -> dict[str, float]:
    """Shares of samples without a total, ``nan``, and without a score, ``nan.NAME``, as far as there are any."""
    found = {"nan": sum(math.isnan(s.reward) for s in samples) / len(samples)}
    for name in sorted({n for s in samples for n in s.scores}):
        values = [s.scores[name] for s in samples if name in s.scores]
        found[f"nan.{name}"] = sum(map(math.isnan, values)) / len(values)
    return {name: share for name, share in found.items() if share}
