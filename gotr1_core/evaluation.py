"""Evaluation: held-out prompts are drawn and judged, and two models are compared prompt by prompt."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from gotr1_core.border.calls import call_measure, call_plan, call_render
from gotr1_core.config.models import JUDGE_REMINDER
from gotr1_core.engine.intervals import Estimate, estimate_change, known_mean
from gotr1_core.engine.reminders import remind
from gotr1_core.judges import Judges, judge_reward
from gotr1_core.protocols import Benchmark, Planner, Renderer, RewardJudge
from gotr1_core.reward import Expression
from gotr1_core.rollout import RolloutSettings, roll_out
from gotr1_core.samples import IMAGE, PLAN, Prompt, Sample, Sampling, make_samples
from gotr1_core.sampling import seed_for

EVALUATION = "evaluation"  # the beginning of the lineage of held-out samples
ON_THE_WAY, AFTER = "held-out", "after"  # the names of evaluations during training, and of that after it
REWARD = "reward"
PROMPTS = "prompts"  # beside the scores in held-out.json; no score can have this name


@dataclass(frozen=True)
class HeldOut(Mapping[str, Sequence[float]]):
    """The scores of one evaluation: a mapping from a score's name to one number per prompt (unknown: NaN).

    ``prompts`` are the id and text of each prompt, in the order of the numbers. Evaluations are compared by them, never by position.
    ``categories`` are the prompts' categories; empty if none is known.
    """

    prompts: Sequence[tuple[str, str]]
    scores: Mapping[str, Sequence[float]]
    categories: Sequence[str] = ()

    def __getitem__(self, name: str) -> Sequence[float]:
        return self.scores[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.scores)

    def __len__(self) -> int:
        return len(self.scores)

    def column(self, name: str) -> Sequence[float]:
        """The numbers of a score; NaN for every prompt if this evaluation does not have it, because other judges made it."""
        return self.scores.get(name, [math.nan] * len(self.prompts))

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> HeldOut:
        """Reads what :meth:`as_json` returned.

        Raises:
            AttributeError, KeyError, TypeError, ValueError: it is something else, or a score has not one number per prompt.
        """
        prompts = [(str(name), str(text)) for name, text, *_ in row[PROMPTS]]
        categories = [str(category[0]) if category else "" for _, _, *category in row[PROMPTS]]
        try:
            scores = {name: [math.nan if v is None else float(v) for v in values] for name, values in row.items() if name != PROMPTS}
        except OverflowError:
            raise ValueError("a score is beyond all numbers") from None
        if any(len(values) != len(prompts) for values in scores.values()):
            raise ValueError("a score has not one number per prompt")
        return cls(prompts, scores, categories if any(categories) else ())

    def as_json(self) -> dict[str, Any]:
        """The scores and, under ``prompts``, each prompt's id, text and category. NaN becomes None, because JSON has no NaN."""
        prompts = [(*p, c) for p, c in zip(self.prompts, self.categories, strict=True)] if self.categories else self.prompts
        return {PROMPTS: prompts, **{n: [None if math.isnan(v) else v for v in values] for n, values in self.scores.items()}}

    def rows(self) -> dict[tuple[str, str, int], int]:
        """The row of each prompt: its id, its text and, for a repeated prompt, its number among its like."""
        seen: Counter[tuple[str, str]] = Counter()
        rows = {}
        for row, prompt in enumerate(self.prompts):
            rows[(*prompt, seen[prompt])] = row
            seen[prompt] += 1
        return rows


def paired(before: HeldOut, after: HeldOut, score: str, *, category: str | None = None) -> Estimate:
    """The mean difference after - before of a score, prompt by prompt: over the prompts of both, where both numbers are known.

    With ``category`` only the prompts that ``before`` has in that category count.
    """
    rows = after.rows()
    pairs = [(row, rows[key]) for key, row in before.rows().items() if key in rows]
    if category is not None:
        pairs = [pair for pair in pairs if before.categories and before.categories[pair[0]] == category]
    return estimate_change([before.column(score)[row] for row, _ in pairs], [after.column(score)[row] for _, row in pairs])


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


def draw_samples(
    planner: Planner,
    renderer: Renderer,
    prompts: Sequence[Prompt],
    *,
    sampling: Sampling,
    seed: int,
    batch: int = 64,
    report: Callable[[int], None] = lambda _: None,
) -> list[Sample]:
    """One sample per prompt, not judged: the samples that :func:`evaluate` draws with this seed.

    After each ``batch`` prompts ``report`` is called with the number of samples so far.
    """
    samples: list[Sample] = []
    for start in range(0, len(prompts), batch):
        samples += draw_batch(planner, renderer, prompts[start : start + batch], sampling=sampling, seed=seed, first=start)
        report(len(samples))
    return samples


@torch.no_grad()
def draw_batch(
    planner: Planner, renderer: Renderer, prompts: Sequence[Prompt], *, sampling: Sampling, seed: int, first: int
) -> list[Sample]:
    """The samples of :func:`draw_samples` for some of its prompts, drawn together. ``first`` is the number of the first of them."""
    numbers = range(first, first + len(prompts))
    plans = call_plan(planner, prompts, seeds=[seed_for(EVALUATION, seed, i, 0, "plan") for i in numbers], sampling=sampling)
    seeds = [seed_for(EVALUATION, seed, i, 0, 0, "image") for i in numbers]
    own_plans = plans if planner is renderer else None  # type: ignore[comparison-overlap]
    images = call_render(renderer, prompts, plans.chains, seeds=seeds, sampling=sampling, plans=own_plans)
    return make_samples(prompts, plans.chains, plans, images, [(i, 0, 0) for i in numbers])


def judge_scores(judges: Mapping[str, RewardJudge], samples: Sequence[Sample], reminder: float = JUDGE_REMINDER) -> dict[str, list[float]]:
    """Everything that judges can score of samples with plans, by name one number per sample; NaN where it could not be had."""
    everyone = Judges(judges, Expression.parse("0"), reminder=reminder)
    everyone = replace(everyone, also=frozenset(everyone.offered()))
    rows = [plan | image for plan, image in zip(*(everyone.score(samples, stage) for stage in (PLAN, IMAGE)), strict=True)]
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}


def measure(benchmark: Benchmark, samples: Sequence[Sample], reminder: float = JUDGE_REMINDER) -> dict[str, list[float]]:
    """What a benchmark measures, by name one number per sample: NaN for those whose plan or picture is not finite."""
    finite = [sample for sample in samples if sample.not_finite is None]
    with remind(lambda: f"waiting for the benchmark {type(benchmark).__name__}", every=reminder):
        columns = {name: iter(values) for name, values in call_measure(benchmark, finite).items()} if finite else {}
    return {name: [math.nan if s.not_finite else next(values) for s in samples] for name, values in columns.items()}


def measured(
    suite: Benchmark, judges: Mapping[str, RewardJudge], samples: Sequence[Sample], reminder: float = JUDGE_REMINDER
) -> list[Sample]:
    """The samples, whose scores are now what the benchmark and the judges measure; none if no sample is finite.

    A judge's score of a name that is taken is called ``JUDGE.NAME``. ``reminder`` is that of :class:`Judges`.
    """
    table = measure(suite, samples, reminder)
    for label, judge in judges.items() if table else ():
        for name, values in judge_scores({label: judge}, samples, reminder).items():
            table[judge_reward(label, name) if name in table else name] = values
    rows = zip(*table.values(), strict=True) if table else ((),) * len(samples)
    return [replace(sample, scores=dict(zip(table, row, strict=True))) for sample, row in zip(samples, rows, strict=True)]


def columns(samples: Sequence[Sample]) -> HeldOut:
    """The reward and every score, each as a list over samples, with the samples' prompts."""
    scores = {REWARD: [s.reward for s in samples]} | {n: [s.scores[n] for s in samples] for n in samples[0].scores}
    categories = [s.prompt.category for s in samples]
    return HeldOut([(s.prompt.id, s.prompt.text) for s in samples], scores, categories if any(categories) else ())


def summary(samples: Sequence[Sample]) -> Mapping[str, float]:
    """The mean of the reward and of every score; NaN if none is known."""
    return {name: known_mean(values) for name, values in columns(samples).items()}
