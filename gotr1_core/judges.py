"""judges"""

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
    """What judges offer together, by judge and reward. What several offer is also there as ``judge.reward``, told apart.

    Raises:
        UsageError: a reward that one judge needs the picture for and another does not; their mean would be of neither stage.
    """
    judges: dict[str, list[str]] = {}
    stages: dict[str, SegmentName] = {}
    for judge, names in rewards.items():
        for name, stage in names.items():
            judges.setdefault(name, []).append(judge)
            if stages.setdefault(name, stage) != stage:
                raise UsageError(
                    f"the judges {judges[name][0]!r} and {judge!r} both offer the reward {name!r}, one of the plan and one of the picture",
                    hint="use one of them",
                )
    return stages | {judge_reward(judge, name): stages[name] for name, mine in judges.items() if len(mine) > 1 for judge in mine}


def judge_reward(judge: str, reward: str) -> str:
    """A judge's own reward in an expression: ``internvl.pi``. Of a judge named ``distribution:name`` the name is enough."""
    return f"{judge.rpartition(':')[2]}.{reward}"


def check_rewards(expression: Expression, rewards: Mapping[str, Mapping[str, SegmentName]]) -> None:
    """Refuses an expression with a name that these judges do not offer. ``judge.reward`` may be said where only one offers it, too."""
    own = {judge_reward(judge, name) for judge, names in rewards.items() for name in names}
    expression.check([*offers(rewards), *(own & expression.names)])


def averaged(scores: Sequence[Sequence[float]], groups: Sequence[int]) -> list[float]:
    """The mean over judges of their scores of a reward, ``scores[judge][sample]``: within a group always of the same judges.

    A judge that lacks a score for one sample drops out for the whole group; for one sample against its siblings, what the judges differ
    in would pass for a difference of the samples. Where every judge lacks some, the one that lacks fewest stands alone, with NaN.
    """
    means = [math.nan] * len(groups)
    for group in dict.fromkeys(groups):
        rows = [i for i, other in enumerate(groups) if other == group]
        lacking = [sum(not math.isfinite(mine[i]) for i in rows) for mine in scores]
        kept = [mine for mine, lacks in zip(scores, lacking, strict=True) if not lacks] or [scores[lacking.index(min(lacking))]]
        for i in rows:
            means[i] = sum(mine[i] for mine in kept) / len(kept)
    return means


@dataclass(frozen=True)
class Judges:
    """The judges of a run and the reward made of their scores."""

    judges: Mapping[str, RewardJudge]
    expression: Expression
    also: frozenset[str] = frozenset()  # scores wanted beside those that the reward needs

    def __post_init__(self) -> None:
        check_rewards(self.expression, {name: judge.rewards for name, judge in self.judges.items()})
        unknown = self.also - self.offered().keys()
        if unknown:
            raise UsageError(f"no judge scores {sorted(unknown)[0]!r}", hint=f"offered: {', '.join(sorted(self.offered()))}")

    def offered(self) -> dict[str, SegmentName]:
        """What can be scored, and what a judge must see for it."""
        return offers({name: judge.rewards for name, judge in self.judges.items()})

    def score(self, samples: Sequence[Sample], stage: SegmentName) -> list[dict[str, float]]:
        """The wanted scores of one stage for every sample; only what is wanted is computed. ``samples`` are whole groups.

        What several judges score is their mean, see :func:`averaged`, and each judge's own score is beside it.
        """
        wanted = self.expression.names | self.also
        found: dict[str, dict[str, list[float]]] = {}  # by reward and judge
        for judge, one in self.judges.items():
            names = [n for n, s in one.rewards.items() if s == stage and wanted & {n, judge_reward(judge, n)}]
            if names and samples:
                for name, values in one.score(samples, names).items():
                    found.setdefault(name, {})[judge] = [float(value) for value in values]
        columns: dict[str, list[float]] = {}
        for name, mine in found.items():
            if name in wanted:
                columns[name] = averaged(list(mine.values()), [sample.lineage[0] for sample in samples])
            columns |= {judge_reward(j, name): values for j, values in mine.items() if len(mine) > 1 or judge_reward(j, name) in wanted}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)] or [{} for _ in samples]

    @property
    def blind(self) -> bool:
        """No score that is wanted needs the picture."""
        offered = self.offered()
        return all(offered[name] == PLAN for name in self.expression.names | self.also)

    def total_rewards(self, scores: Sequence[Mapping[str, float]]) -> Tensor:
        """Total rewards ``[B]``, float64, NaN where there is none."""
        return self.expression.evaluate(self._columns(scores)).expand(len(scores))  # a reward without names is one number

    def settled(self, scores: Sequence[Mapping[str, float]]) -> Tensor:
        """Which rewards are 0 whatever the scores that are not known yet, ``[B]``."""
        return self.expression.settled(self._columns(scores), (len(scores),))

    def _columns(self, scores: Sequence[Mapping[str, float]]) -> dict[str, Tensor]:
        names = [n for n in self.expression.names if all(n in row for row in scores)]
        return {n: torch.tensor([row[n] for row in scores], dtype=torch.float64) for n in names}
