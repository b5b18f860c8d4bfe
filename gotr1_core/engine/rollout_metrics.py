"""Metrics of a step's rollouts, as sums and weights that can be added over processes."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

from torch import Tensor

from gotr1_core.batch import Batch
from gotr1_core.engine.metrics import MetricSums
from gotr1_core.samples import IMAGE, PLAN, Sample

COUNTED = ("judge.", "planning.")
"""How the names of metrics begin that judges and planners count themselves."""


def rollout_metrics(batch: Batch, constant: Tensor, *, idle: bool) -> MetricSums:
    """Returns metrics of rewards, their spread and the chains. ``constant``, bool ``[P]``, marks groups whose rewards are all equal."""
    sums, rewards = MetricSums(), batch.rewards
    known = ~rewards.isnan()
    sums.add("reward", rewards.nansum(), known.sum())
    stds = [group[~group.isnan()].std() for group in rewards.flatten(1) if (~group.isnan()).sum() > 1]
    sums.add("group_std", sum(float(s) for s in stds), len(stds))
    if rewards.shape[1:].numel() > 1:  # in a group of one sample there is nothing to compare
        sums.add("constant_groups", constant.sum(), len(constant))
    sums.add("idle", idle)
    sums.add("nan", (~known).sum(), known.numel())
    plans, count = batch.plans, len(batch.plans)
    sums.add("malformed", sum(not c.well_formed for c in plans.chains), count)
    sums.add("truncated", plans.tensors["truncated"].sum(), count)
    sums.add("chain_tokens", plans.tensors["mask"].sum(), count)
    sums.add("regions", sum(len(c.regions) for c in plans.chains), count)
    lost = {name: sum(s.not_finite == name for s in batch.samples) for name in (PLAN, IMAGE)}
    undrawn = len(batch.samples) - (len(batch.images) if batch.images is not None else 0)
    sums.add("pruned", undrawn - sum(lost.values()), len(batch.samples))
    for name, number in lost.items():
        sums.add(f"not_finite.{name}", number, len(batch.samples))
    _add_scores(sums, batch.samples)
    _add_duplicates(sums, batch)
    return sums


def _add_scores(sums: MetricSums, samples: Sequence[Sample]) -> None:
    """Adds the mean of every judge's known scores, and the fraction of samples whose score is NaN."""
    for name in sorted({n for s in samples for n in s.scores}):
        values = [s.scores[name] for s in samples if name in s.scores]
        known = [v for v in values if not math.isnan(v)]
        sums.add(f"reward.{name}", sum(known), len(known))
        sums.add(f"nan.{name}", len(values) - len(known), len(values))


def _add_duplicates(sums: MetricSums, batch: Batch) -> None:
    """Adds the fraction of a prompt's plans, and of its pictures, that repeat another one of it. 0: all differ; 1: all are equal."""
    size = len(batch.samples) // max(1, len(batch.prompts))
    sampled = bool(batch.plans.tensors["mask"].any())  # chains that come from a file repeat by design
    for start in range(0, len(batch.samples), max(1, size)):
        group = batch.samples[start : start + size]
        plans = {s.lineage[1]: s.chain.raw for s in group}
        if sampled:
            _add_repeated(sums, "duplicates.plan", list(plans.values()))
        _add_repeated(sums, "duplicates.image", [s.image.tobytes() for s in group if s.image is not None])


def _add_repeated(sums: MetricSums, name: str, items: Sequence[Hashable]) -> None:
    if len(items) > 1:
        sums.add(name, len(items) - len(set(items)), len(items) - 1)


def nan_fractions(samples: Sequence[Sample]) -> dict[str, float]:
    """Returns the fractions of samples without a reward, ``nan``, and without a judge's score, ``nan.NAME``; zeros are left out.

    Also of those whose plan or picture is not finite, ``not_finite.plan`` and ``not_finite.image``.
    """
    fractions = {"nan": sum(math.isnan(s.reward) for s in samples) / len(samples)}
    fractions |= {f"not_finite.{name}": sum(s.not_finite == name for s in samples) / len(samples) for name in (PLAN, IMAGE)}
    for name in sorted({n for s in samples for n in s.scores}):
        values = [s.scores[name] for s in samples if name in s.scores]
        fractions[f"nan.{name}"] = sum(map(math.isnan, values)) / len(values)
    return {name: fraction for name, fraction in fractions.items() if fraction}
