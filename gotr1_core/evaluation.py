"""Draws held-out prompts, has them judged, and compares two models prompt by prompt."""

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

EVALUATION = "evaluation"
REWARD = "reward"


@dataclass(frozen=True)
class Estimate:
    """A mean and the half width of its 95 % interval."""

    mean: float
    half_width: float
    count: int


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of what is not NaN, with a normal interval."""
    kept = [v for v in values if not math.isnan(v)]
    if not kept:
        return Estimate(math.nan, math.nan, 0)
    mean = sum(kept) / len(kept)
    if len(kept) == 1:
        return Estimate(mean, math.nan, 1)
    variance = sum((v - mean) ** 2 for v in kept) / (len(kept) - 1)
    return Estimate(mean, 1.96 * math.sqrt(variance / len(kept)), len(kept))


def paired(before: Sequence[float], after: Sequence[float]) -> Estimate:
    """The mean difference after - before, prompt by prompt, where both are known."""
    return estimate([b - a for a, b in zip(before, after, strict=True)])


def evaluate(
    planner: Planner, renderer: Renderer, judges: Judges, prompts: Sequence[Prompt], settings: RolloutSettings, *, first: int = 0
) -> list[Sample]:
    """One sample per prompt: of its ``settings.plans`` the one with the largest reward. The same seeds draw the same whenever it is called.

    Every judge is asked for all it can score, so nothing is pruned. ``first`` is the number of the first prompt: seeds go by number.
    """
    everything = replace(judges, also=frozenset(judges.offered()))
    settings = replace(settings, seed=(EVALUATION, *settings.seed), images=1, prune=False)
    with torch.no_grad():
        drawn = roll_out(planner, renderer, everything, prompts, settings, first=first)
    groups = [drawn.samples[i : i + settings.plans] for i in range(0, len(drawn.samples), settings.plans)]
    return [max(group, key=lambda s: -math.inf if math.isnan(s.reward) else s.reward) for group in groups]


@torch.no_grad()
def draw_samples(
    planner: Planner, renderer: Renderer, prompts: Sequence[Prompt], *, sampling: Sampling, seed: int, batch: int = 64
) -> list[Sample]:
    """One sample per prompt, not judged; the same that :func:`evaluate` draws with this seed."""
    samples = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        numbers = range(start, start + len(part))
        plans = planner.plan(part, seeds=[seed_for(EVALUATION, seed, i, 0, "plan") for i in numbers], sampling=sampling)
        seeds = [seed_for(EVALUATION, seed, i, 0, 0, "image") for i in numbers]
        own = plans if planner is renderer else None  # type: ignore[comparison-overlap]
        drawn = renderer.render(part, plans.chains, seeds=seeds, sampling=sampling, plans=own)
        rows = zip(part, plans.chains, drawn.images, numbers, strict=True)
        samples += [Sample(prompt, chain, image, (i, 0, 0)) for prompt, chain, image, i in rows]
    return samples


def columns(samples: Sequence[Sample]) -> dict[str, list[float]]:
    """Every score and the reward, a list over samples each."""
    names = list(samples[0].scores)
    return {REWARD: [s.reward for s in samples]} | {n: [s.scores[n] for s in samples] for n in names}


def summary(samples: Sequence[Sample]) -> Mapping[str, Estimate]:
    """Means of every score and the reward."""
    return {name: estimate(values) for name, values in columns(samples).items()}


ON_THE_WAY = "held-out"
