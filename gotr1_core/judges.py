"""Several judges, one reward: which scores they offer together, how their scores are averaged, and the total reward of a sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache, partial

import torch
from torch import Tensor

from gotr1_core.border.calls import call_counts, call_judge, offered_rewards
from gotr1_core.config.models import JUDGE_REMINDER
from gotr1_core.engine.background import Submit, background
from gotr1_core.engine.reminders import remind
from gotr1_core.engine.score_tally import ScoreTally
from gotr1_core.errors import UsageError
from gotr1_core.protocols import RewardJudge
from gotr1_core.reward import Expression
from gotr1_core.samples import IMAGE, PLAN, Sample, SegmentName, Words


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
class Judgement:
    """What judges say about one sample in one stage: scores by name, and words by name where they say any."""

    scores: dict[str, float]
    words: dict[str, Words] = field(default_factory=dict)


Answers = tuple[dict[str, list[float]], dict[str, list[Words]]]
"""A judge's scores and words by name."""


def _no_answers(names: Sequence[str]) -> Answers:
    return {name: [] for name in names}, {name: [] for name in names}


def _same(answers: Answers) -> Answers:
    return answers


@dataclass(frozen=True)
class Judges:
    """The judges of a run by name, the expression that makes a reward of their scores, and other scores that are wanted (``also``).

    A judge that takes longer than ``reminder`` seconds is named on stderr, and again each time as many have passed. It is not stopped.
    ``tally`` counts the scores of judges that are required or optional.

    Raises:
        UsageError: a name that no judge offers.
    """

    judges: Mapping[str, RewardJudge]
    expression: Expression
    also: frozenset[str] = frozenset()
    reminder: float = JUDGE_REMINDER
    tally: ScoreTally = field(default_factory=ScoreTally)

    def __post_init__(self) -> None:
        offered = check_rewards(self.expression, {name: offered_rewards(judge) for name, judge in self.judges.items()})
        if unknown := self.also - offered.keys():
            raise UsageError(f"no judge scores {sorted(unknown)[0]!r}", hint=f"offered: {', '.join(sorted(offered))}")

    def offered(self) -> dict[str, SegmentName]:
        """The rewards that can be had, with the stage of each."""
        return offers({name: judge.rewards for name, judge in self.judges.items()})

    def score(self, samples: Sequence[Sample], stage: SegmentName) -> list[dict[str, float]]:
        """The scores of :meth:`judge` alone."""
        return [judgement.scores for judgement in self.judge(samples, stage)]

    def judge(self, samples: Sequence[Sample], stage: SegmentName) -> list[Judgement]:
        """The wanted scores of one stage with the judges' words, for every sample; no others are computed. ``samples`` are whole groups.

        A reward that several judges offer is their mean, see :func:`averaged`. Each judge's own score, with its words, is beside it.
        Scores that need what is not finite are NaN; no judge sees such a sample, and no other sample's scores change because of it.
        """
        return self.start(samples, stage, {})()

    def start(self, samples: Sequence[Sample], stage: SegmentName, threads: Mapping[str, Submit]) -> Callable[[], list[Judgement]]:
        """Begins what :meth:`judge` does, and returns a function that waits for its end. Judges without a thread answer at once."""
        wanted = self.expression.names | self.also
        finite = [s.not_finite is None or (s.not_finite, stage) == (IMAGE, PLAN) for s in samples]
        samples = [sample for sample, is_finite in zip(samples, finite, strict=True) if is_finite]
        pending: dict[str, Callable[[], Answers]] = {}
        for label, judge in self.judges.items():
            names = [n for n, s in judge.rewards.items() if s == stage and wanted & {n, judge_reward(label, n)}]
            if names and finite:
                ask = partial(call_judge, judge, samples, names) if samples else partial(_no_answers, names)
                pending[label] = threads[label](ask).result if label in threads else partial(_same, self._wait(label, ask))
        return cache(lambda: self._judgements({label: self._wait(label, end) for label, end in pending.items()}, samples, finite))

    def _wait(self, label: str, ask: Callable[[], Answers]) -> Answers:
        with remind(partial("waiting for the judge {!r}".format, label), every=self.reminder):
            return ask()

    @property
    def thread_safe(self) -> list[str]:
        """The labels of the judges that another thread may ask, such as those behind a server."""
        return [label for label, judge in self.judges.items() if getattr(judge, "thread_safe", False)]

    @contextmanager
    def threads(self) -> Iterator[dict[str, Submit]]:
        """By label, a thread for each judge that says it is ``thread_safe``, for :meth:`start`. It asks one call after another."""
        with ExitStack() as stack:
            yield {label: stack.enter_context(background(f"judge {label}")) for label in self.thread_safe}

    def _judgements(self, answers: Mapping[str, Answers], samples: Sequence[Sample], finite: Sequence[bool]) -> list[Judgement]:
        """Each sample's scores and words, from the judges' answers about the finite ones."""
        wanted = self.expression.names | self.also
        by_reward: dict[str, dict[str, tuple[list[float], list[Words]]]] = {}
        for label, (scores, words) in answers.items():
            for name in scores:
                by_reward.setdefault(name, {})[label] = self.tally.count(label, name, scores[name], samples), words[name]
        columns: dict[str, list[float]] = {}
        said: dict[str, list[Words]] = {}
        for name, by_judge in by_reward.items():
            if name in wanted:
                columns[name] = averaged([own for own, _ in by_judge.values()], [sample.lineage[0] for sample in samples])
            for label, (own_scores, own_words) in by_judge.items():
                if is_own := len(by_judge) > 1 or judge_reward(label, name) in wanted:
                    columns[judge_reward(label, name)] = own_scores
                said[judge_reward(label, name) if is_own else name] = own_words
        scored = range(len(samples))
        spoken = [{name: column[i] for name, column in said.items() if column[i] != Words()} for i in scored]
        rows = iter([Judgement({name: column[i] for name, column in columns.items()}, spoken[i]) for i in scored])
        return [next(rows) if is_finite else Judgement(dict.fromkeys(columns, math.nan)) for is_finite in finite]

    def counts(self) -> dict[str, float]:
        """What judges have counted in this process so far, as ``judge.LABEL.NAME``."""
        own = {f"judge.{label}.{n}": c for label, judge in self.judges.items() for n, c in call_counts("judge", judge).items()}
        return own | self.tally.dropped_groups()

    @property
    def blind(self) -> bool:
        """True if every wanted score needs only the plan."""
        offered = self.offered()
        return all(offered[name] == PLAN for name in self.expression.names | self.also)

    def total_rewards(self, scores: Sequence[Mapping[str, float]]) -> Tensor:
        """The reward of each row of scores, float64 ``[B]``, NaN where it could not be had."""
        return self.expression.evaluate(self._columns(scores)).expand(len(scores))  # a reward without names is one number

    @property
    def prunes(self) -> bool:
        """True if the reward depends on scores of the plan, so that these can settle it."""
        offered = self.offered()
        return any(offered.get(name, PLAN) == PLAN for name in self.expression.names)

    def settled(self, scores: Sequence[Mapping[str, float]]) -> Tensor:
        """True where the reward is 0 whatever the scores that are still unknown, bool ``[B]``."""
        return self.expression.settled(self._columns(scores), (len(scores),))

    def _columns(self, scores: Sequence[Mapping[str, float]]) -> dict[str, Tensor]:
        names = [n for n in self.expression.names if all(n in row for row in scores)]
        return {n: torch.tensor([row[n] for row in scores], dtype=torch.float64) for n in names}
