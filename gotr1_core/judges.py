"""Several judges, one reward: which scores they offer together, how their scores are averaged, and the total reward of a sample."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gotr1_core.errors import UsageError
from gotr1_core.protocols import RewardJudge
from gotr1_core.reward import Expression
from gotr1_core.samples import PLAN, Sample, SegmentName


def offers(rewards: Mapping[str, Mapping[str, SegmentName]]) -> dict[str, SegmentName]:
    """The rewards that judges offer together, with the stage of each: does it need the plan or the image?

    A reward that several judges offer is listed under its own name, and once more for each judge as ``judge.reward``.

    Args:
        rewards: by judge, what it offers, as :attr:`RewardJudge.rewards` says it.

    Raises:
        UsageError: one judge needs the picture for a reward and another only the plan; their mean would belong to neither stage. Or a
            reward is called ``prompts``.
    """
    judges_of: dict[str, list[str]] = {}
    stages: dict[str, SegmentName] = {}
    for judge, names in rewards.items():
        for name, stage in names.items():
            if name == "prompts":
                raise UsageError(
                    f"the judge {judge!r} offers a reward 'prompts', a name that held-out.json uses", hint="give it another name"
                )
            judges_of.setdefault(name, []).append(judge)
            if stages.setdefault(name, stage) != stage:
                first = judges_of[name][0]
                raise UsageError(
                    f"the judges {first!r} and {judge!r} both offer the reward {name!r}, one of the plan and one of the picture",
                    hint="use one of them",
                )
    return stages | {judge_reward(judge, name): stages[name] for name, judges in judges_of.items() if len(judges) > 1 for judge in judges}


def judge_reward(judge: str, reward: str) -> str:
    """The name of one judge's own reward in an expression: ``internvl.pi``. The distribution in ``distribution:name`` is left out."""
    return f"{judge.rpartition(':')[2]}.{reward}"


def check_rewards(expression: Expression, rewards: Mapping[str, Mapping[str, SegmentName]]) -> dict[str, SegmentName]:
    """Returns :func:`offers`. Refuses an expression with another name; ``judge.reward`` is allowed even if one judge alone offers it."""
    offered = offers(rewards)
    own_names = {judge_reward(judge, name) for judge, names in rewards.items() for name in names}
    expression.check([*offered, *(own_names & expression.names)])
    return offered


def averaged(scores: Sequence[Sequence[float]], groups: Sequence[int]) -> list[float]:
    """The mean over judges of their scores of one reward. Within a group it is always of the same judges.

    A judge that lacks a score for one sample drops out for the whole group. If it dropped out for one sample alone, the difference
    between judges would look like one between samples. If every judge lacks some scores, the one that lacks fewest is used alone.

    Args:
        scores: ``scores[judge][sample]``, NaN where a judge has none.
        groups: the group of each sample.
    """
    means = [math.nan] * len(groups)
    for group in dict.fromkeys(groups):
        rows = [i for i, number in enumerate(groups) if number == group]
        missing = [sum(not math.isfinite(judge_scores[i]) for i in rows) for judge_scores in scores]
        complete = [judge_scores for judge_scores, count in zip(scores, missing, strict=True) if not count]
        used = complete or [scores[missing.index(min(missing))]]
        for i in rows:
            means[i] = sum(judge_scores[i] for judge_scores in used) / len(used)
    return means


@dataclass(frozen=True)
class Judges:
    """The judges of a run by name, the expression that makes a reward of their scores, and other scores that are wanted (``also``).

    Raises:
        UsageError: a name that no judge offers.
    """

    judges: Mapping[str, RewardJudge]
    expression: Expression
    also: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        offered = check_rewards(self.expression, {name: judge.rewards for name, judge in self.judges.items()})
        if unknown := self.also - offered.keys():
            raise UsageError(f"no judge scores {sorted(unknown)[0]!r}", hint=f"offered: {', '.join(sorted(offered))}")

    def offered(self) -> dict[str, SegmentName]:
        """The rewards that can be had, with the stage of each."""
        return offers({name: judge.rewards for name, judge in self.judges.items()})

    def score(self, samples: Sequence[Sample], stage: SegmentName) -> list[dict[str, float]]:
        """The wanted scores of one stage, for every sample; no others are computed. ``samples`` are whole groups.

        A reward that several judges offer is their mean, see :func:`averaged`. Each judge's own score is beside it.
        """
        wanted = self.expression.names | self.also
        by_reward: dict[str, dict[str, list[float]]] = {}
        for label, judge in self.judges.items():
            names = [n for n, s in judge.rewards.items() if s == stage and wanted & {n, judge_reward(label, n)}]
            if names and samples:
                for name, scores in judge.score(samples, names).items():
                    by_reward.setdefault(name, {})[label] = [float(score) for score in scores]
        columns: dict[str, list[float]] = {}
        for name, by_judge in by_reward.items():
            if name in wanted:
                columns[name] = averaged(list(by_judge.values()), [sample.lineage[0] for sample in samples])
            for label, scores in by_judge.items():
                if len(by_judge) > 1 or judge_reward(label, name) in wanted:
                    columns[judge_reward(label, name)] = scores
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)] or [{} for _ in samples]

    @property
    def blind(self) -> bool:
        """True if every wanted score needs only the plan."""
        offered = self.offered()
        return all(offered[name] == PLAN for name in self.expression.names | self.also)

    def total_rewards(self, scores: Sequence[Mapping[str, float]]) -> Tensor:
        """The reward of each row of scores, float64 ``[B]``, NaN where it could not be had."""
        return self.expression.evaluate(self._columns(scores)).expand(len(scores))  # a reward without names is one number

    def settled(self, scores: Sequence[Mapping[str, float]]) -> Tensor:
        """True where the reward is 0 whatever the scores that are still unknown, bool ``[B]``."""
        return self.expression.settled(self._columns(scores), (len(scores),))

    def _columns(self, scores: Sequence[Mapping[str, float]]) -> dict[str, Tensor]:
        names = [n for n in self.expression.names if all(n in row for row in scores)]
        return {n: torch.tensor([row[n] for row in scores], dtype=torch.float64) for n in names}
