"""Evaluation: held-out prompts are drawn and judged, and two models are compared prompt by prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from gotr1_core.judges import Judges
from gotr1_core.protocols import Planner, Renderer
from gotr1_core.rollout import RolloutSettings, roll_out
from gotr1_core.samples import Prompt, Sample, Sampling
from gotr1_core.sampling import seed_for

EVALUATION = "evaluation"  # the beginning of the lineage of held-out samples
ON_THE_WAY = "held-out"  # the name of evaluations during training
REWARD = "reward"


@dataclass(frozen=True)
class Estimate:
    """A mean of ``count`` numbers, and the half width of its 95 % interval."""

    mean: float
    half_width: float
    count: int


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of the values that are not NaN, with a normal interval."""
    numbers = [v for v in values if not math.isnan(v)]
    if not numbers:
        return Estimate(math.nan, math.nan, 0)
    mean = sum(numbers) / len(numbers)
    if len(numbers) == 1:
        return Estimate(mean, math.nan, 1)
    variance = sum((v - mean) ** 2 for v in numbers) / (len(numbers) - 1)
    return Estimate(mean, 1.96 * math.sqrt(variance / len(numbers)), len(numbers))


def paired(before: Sequence[float], after: Sequence[float]) -> Estimate:
    """The mean difference after - before, prompt by prompt, where both are known."""
    return estimate([b - a for a, b in zip(before, after, strict=True)])


def evaluate(
    planner: Planner, renderer: Renderer, judges: Judges, prompts: Sequence[Prompt], settings: RolloutSettings, *, first: int = 0
) -> list[Sample]:
    """One sample per prompt: of its ``settings.plans`` samples the one with the largest reward. The same seeds draw the same samples.

    Every judge is asked for all it can score, so nothing is pruned. ``first`` is the number of the first prompt: seeds depend on it.
    """
    everything = replace(judges, also=frozenset(judges.offered()))
    settings = replace(settings, seed=(EVALUATION, *settings.seed), images=1, prune=False)
    with torch.no_grad():
        batch = roll_out(planner, renderer, everything, prompts, settings, first=first)
    groups = [batch.samples[i : i + settings.plans] for i in range(0, len(batch.samples), settings.plans)]
    return [max(group, key=lambda s: -math.inf if math.isnan(s.reward) else s.reward) for group in groups]


@torch.no_grad()
def draw_samples(
    planner: Planner, renderer: Renderer, prompts: Sequence[Prompt], *, sampling: Sampling, seed: int, batch: int = 64
) -> list[Sample]:
    """One sample per prompt, not judged: the samples that :func:`evaluate` draws with this seed."""
    samples = []
    for start in range(0, len(prompts), batch):
        chunk = prompts[start : start + batch]
        numbers = range(start, start + len(chunk))
        plans = planner.plan(chunk, seeds=[seed_for(EVALUATION, seed, i, 0, "plan") for i in numbers], sampling=sampling)
        seeds = [seed_for(EVALUATION, seed, i, 0, 0, "image") for i in numbers]
        own_plans = plans if planner is renderer else None  # type: ignore[comparison-overlap]
        images = renderer.render(chunk, plans.chains, seeds=seeds, sampling=sampling, plans=own_plans)
        rows = zip(chunk, plans.chains, images.images, numbers, strict=True)
        samples += [Sample(prompt, chain, image, (i, 0, 0)) for prompt, chain, image, i in rows]
    return samples


def columns(samples: Sequence[Sample]) -> dict[str, list[float]]:
    """The reward and every score, each as a list over samples."""
    names = list(samples[0].scores)
    return {REWARD: [s.reward for s in samples]} | {n: [s.scores[n] for s in samples] for n in names}


def summary(samples: Sequence[Sample]) -> Mapping[str, Estimate]:
    """The mean of the reward and of every score."""
    return {name: estimate(values) for name, values in columns(samples).items()}
