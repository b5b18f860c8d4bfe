"""Evaluation: held-out prompts are drawn and judged, and two models are compared prompt by prompt."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from gotr1_core.judges import Judges
from gotr1_core.protocols import Planner, Renderer
from gotr1_core.rollout import RolloutSettings, roll_out
from gotr1_core.samples import Prompt, Sample, Sampling
from gotr1_core.sampling import seed_for

EVALUATION = "evaluation"  # the beginning of the lineage of held-out samples
ON_THE_WAY = "held-out"  # the name of evaluations during training
REWARD = "reward"
PROMPTS = "prompts"  # beside the scores in held-out.json; no score can have this name


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


@dataclass(frozen=True)
class HeldOut(Mapping[str, Sequence[float]]):
    """The scores of one evaluation: a mapping from a score's name to one number per prompt (unknown: NaN).

    ``prompts`` are the id and text of each prompt, in the order of the numbers. Evaluations are compared by them, never by position.
    """

    prompts: Sequence[tuple[str, str]]
    scores: Mapping[str, Sequence[float]]

    def __getitem__(self, name: str) -> Sequence[float]:
        return self.scores[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.scores)

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> HeldOut:
        """Reads what :meth:`as_json` returned.

        Raises:
            ValueError: a score has not one number per prompt.
        """
        prompts = [(str(name), str(text)) for name, text in row[PROMPTS]]
        scores = {name: [math.nan if v is None else float(v) for v in values] for name, values in row.items() if name != PROMPTS}
        if any(len(values) != len(prompts) for values in scores.values()):
            raise ValueError("a score has not one number per prompt")
        return cls(prompts, scores)

    def as_json(self) -> dict[str, Any]:
        """The scores and, under ``prompts``, the prompts. NaN becomes None, because JSON has no NaN."""
        return {PROMPTS: self.prompts, **{n: [None if math.isnan(v) else v for v in values] for n, values in self.scores.items()}}

    def rows(self) -> dict[tuple[str, str, int], int]:
        """The row of each prompt: its id, its text and, for a repeated prompt, its number among its like."""
        seen: Counter[tuple[str, str]] = Counter()
        rows = {}
        for row, prompt in enumerate(self.prompts):
            rows[(*prompt, seen[prompt])] = row
            seen[prompt] += 1
        return rows


def paired(before: HeldOut, after: HeldOut, score: str) -> Estimate:
    """The mean difference after - before of a score, prompt by prompt: over the prompts of both, where both numbers are known."""
    rows = after.rows()
    pairs = [(row, rows[key]) for key, row in before.rows().items() if key in rows]
    return estimate([after[score][b] - before[score][a] for a, b in pairs])


def change_label(before: HeldOut, after: HeldOut) -> str:
    """What to call the paired change: it says if some prompts are only in one of the two."""
    both = len(before.rows().keys() & after.rows().keys())
    return "change" if both == len(before.prompts) == len(after.prompts) else f"change of the {both} prompts in both"


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


def columns(samples: Sequence[Sample]) -> HeldOut:
    """The reward and every score, each as a list over samples, with the samples' prompts."""
    names = list(samples[0].scores)
    scores = {REWARD: [s.reward for s in samples]} | {n: [s.scores[n] for s in samples] for n in names}
    return HeldOut([(s.prompt.id, s.prompt.text) for s in samples], scores)


def summary(samples: Sequence[Sample]) -> Mapping[str, Estimate]:
    """The mean of the reward and of every score."""
    return {name: estimate(values) for name, values in columns(samples).items()}
