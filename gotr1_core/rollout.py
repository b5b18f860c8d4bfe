"""The tree of samples of a step: P prompts x N plans x M images, drawn, pruned and scored."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gotr1_core.errors import UsageError
from gotr1_core.protocols import Planner, Policy, Renderer, RewardJudge
from gotr1_core.reward import Expression
from gotr1_core.samples import IMAGE, PLAN, Prompt, Rollout, Sample, Sampling, SegmentName, join
from gotr1_core.sampling import seed_for

Seed = Callable[[int, int, int | str], int]


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
    return stages | {apart(judge, name): stages[name] for name, mine in judges.items() if len(mine) > 1 for judge in mine}


def apart(judge: str, reward: str) -> str:
    """A judge's own reward in an expression: ``internvl.pi``. Of a judge named ``distribution:name`` the name is enough."""
    return f"{judge.rpartition(':')[2]}.{reward}"


def check_rewards(expression: Expression, rewards: Mapping[str, Mapping[str, SegmentName]]) -> None:
    """Refuses an expression with a name that these judges do not offer. ``judge.reward`` may be said where only one offers it, too."""
    own = {apart(judge, name) for judge, names in rewards.items() for name in names}
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
            names = [n for n, s in one.rewards.items() if s == stage and wanted & {n, apart(judge, n)}]
            if names and samples:
                for name, values in one.score(samples, names).items():
                    found.setdefault(name, {})[judge] = [float(value) for value in values]
        columns: dict[str, list[float]] = {}
        for name, mine in found.items():
            if name in wanted:
                columns[name] = averaged(list(mine.values()), [sample.lineage[0] for sample in samples])
            columns |= {apart(j, name): values for j, values in mine.items() if len(mine) > 1 or apart(j, name) in wanted}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)] or [{} for _ in samples]

    @property
    def blind(self) -> bool:
        """No score that is wanted needs the picture."""
        offered = self.offered()
        return all(offered[name] == PLAN for name in self.expression.names | self.also)

    def totals(self, scores: Sequence[Mapping[str, float]]) -> Tensor:
        """Total rewards ``[B]``, float64, NaN where there is none."""
        return self.expression.evaluate(self._columns(scores)).expand(len(scores))  # a reward without names is one number

    def settled(self, scores: Sequence[Mapping[str, float]]) -> Tensor:
        """Which totals are 0 whatever the scores that are not known yet, ``[B]``."""
        return self.expression.settled(self._columns(scores), (len(scores),))

    def _columns(self, scores: Sequence[Mapping[str, float]]) -> dict[str, Tensor]:
        names = [n for n in self.expression.names if all(n in row for row in scores)]
        return {n: torch.tensor([row[n] for row in scores], dtype=torch.float64) for n in names}


@dataclass(frozen=True)
class Batch:
    """What one step drew. Samples lie in lineage order; ``place [K]`` is the sample that row k of ``images`` belongs to."""

    prompts: tuple[Prompt, ...]
    plans: Rollout
    images: Rollout | None
    place: Tensor
    samples: tuple[Sample, ...]
    totals: Tensor  # [P, N, M]

    def segments(self, plan_rows: Tensor) -> tuple[dict[SegmentName, Rollout], Tensor]:
        """Plans ``plan_rows`` with their images, as a module scores them, and the rows of the images."""
        found: dict[SegmentName, Rollout] = {PLAN: self.plans.rows(plan_rows)}
        if self.images is None:
            return found, plan_rows[:0]
        parent = self.images.tensors["parent"].cpu()
        local = torch.full((len(self.plans),), -1)
        local[plan_rows] = torch.arange(len(plan_rows))
        rows = (local[parent] >= 0).nonzero().flatten()
        if len(rows):
            images = self.images.rows(rows)
            mine = local[parent[rows]].to(images.tensors["parent"].device)
            found[IMAGE] = replace(images, tensors={**images.tensors, "parent": mine})
        return found, rows

    def keep(self, groups: Sequence[int]) -> Batch:
        """The batch of some of its prompts."""
        _, plans, images = self.totals.shape
        chosen = torch.tensor(list(groups), dtype=torch.long)
        rows = (chosen.unsqueeze(1) * plans + torch.arange(plans)).flatten()
        segments, drawn = self.segments(rows)
        local = torch.full((len(self.plans),), -1)
        local[rows] = torch.arange(len(rows))
        place = local[self.place[drawn] // images] * images + self.place[drawn] % images
        samples = tuple(self.samples[r * images + k] for r in rows.tolist() for k in range(images))
        kept_prompts = tuple(self.prompts[g] for g in groups)
        return Batch(kept_prompts, segments[PLAN], segments.get(IMAGE), place, samples, self.totals[chosen])


def join_batches(batches: Sequence[Batch]) -> Batch:
    """Batches of the same N and M as one."""
    plans = join([b.plans for b in batches])
    images, places, before, samples_before = [], [], 0, 0
    for b in batches:
        if b.images is not None:
            images.append(replace(b.images, tensors={**b.images.tensors, "parent": b.images.tensors["parent"] + before}))
            places.append(b.place + samples_before)
        before += len(b.plans)
        samples_before += len(b.samples)
    return Batch(
        tuple(p for b in batches for p in b.prompts),
        plans,
        join(images) if images else None,
        torch.cat(places) if places else torch.zeros(0, dtype=torch.long),
        tuple(s for b in batches for s in b.samples),
        torch.cat([b.totals for b in batches]),
    )


def swap(device: torch.device, working: Policy, *, idle: Policy) -> None:
    """Brings a policy to the device, once the other one has made room for it."""
    idle.module.to("cpu")
    working.module.to(device)


def roll_out(
    planner: Planner,
    renderer: Renderer,
    judges: Judges,
    prompts: Sequence[Prompt],
    *,
    plans: int,
    images: int,
    sampling: Sampling,
    seed: Sequence[int | str],
    first: int = 0,
    chunk: int = 8,
    prune: bool = True,
    renderer_learns: bool = True,
    offload: torch.device | None = None,
) -> Batch:
    """Draws, prunes and scores the tree, ``chunk`` whole groups at a time.

    With ``prune`` a picture whose total is 0 whatever it is is not drawn; nor is any, if no score needs one and no renderer learns.

    ``first`` is the number of the first prompt in the step, over all processes: with ``seed`` it fixes every sample's own seed, so
    neither chunks nor processes change what is drawn. With ``offload``, a device, the one of planner and renderer that is not at work
    waits in main memory.
    """
    parts = []
    needless = judges.blind and not renderer_learns
    for start in range(0, len(prompts), chunk):
        part = prompts[start : start + chunk]
        parts.append(
            _one_chunk(planner, renderer, judges, part, plans, images, sampling, tuple(seed), first + start, prune, needless, offload)
        )
    return join_batches(parts)


def _one_chunk(
    planner: Planner,
    renderer: Renderer,
    judges: Judges,
    prompts: Sequence[Prompt],
    plans: int,
    images: int,
    sampling: Sampling,
    seed: tuple[int | str, ...],
    first: int,
    prune: bool,
    needless: bool,
    offload: torch.device | None,
) -> Batch:
    if offload is not None:
        swap(offload, planner, idle=renderer)
    lineage = [(i, j) for i in range(len(prompts)) for j in range(plans)]
    planned = planner.plan(
        [prompts[i] for i, _ in lineage], seeds=[seed_for(*seed, first + i, j, "plan") for i, j in lineage], sampling=sampling
    )
    drafts = [Sample(prompts[i], planned.chains[r], None, (first + i, j, 0)) for r, (i, j) in enumerate(lineage)]
    known = judges.score(drafts, PLAN)
    settled = judges.settled(known) | needless if prune else torch.zeros(len(known), dtype=torch.bool)
    rows = [r for r in range(len(lineage)) if not settled[r] for _ in range(images)]
    place = [r * images + k for r in range(len(lineage)) if not settled[r] for k in range(images)]
    drawn = None
    if rows:
        if offload is not None:
            swap(offload, renderer, idle=planner)
        drawn = renderer.render(
            [drafts[r].prompt for r in rows],
            [drafts[r].chain for r in rows],
            seeds=[seed_for(*seed, *drafts[p // images].lineage[:2], p % images, "image") for p in place],
            sampling=sampling,
            plans=planned.rows(torch.tensor(rows)) if renderer is planner else None,  # type: ignore[comparison-overlap]
            groups=[seed_for(*seed, drafts[r].lineage[0], "group") for r in rows],
        )
        parent = torch.tensor(rows, device=drawn.tensors["mask"].device)
        drawn = replace(drawn, tensors={**drawn.tensors, "parent": parent})
    samples = _scored(judges, drafts, known, drawn, place, images)
    totals = torch.tensor([s.reward for s in samples], dtype=torch.float64).view(len(prompts), plans, images)
    return Batch(tuple(prompts), planned, drawn, torch.tensor(place, dtype=torch.long), tuple(samples), totals)


def _scored(
    judges: Judges, drafts: Sequence[Sample], known: Sequence[Mapping[str, float]], drawn: Rollout | None, place: Sequence[int], images: int
) -> list[Sample]:
    """Every sample of the tree with its scores and reward; a pruned one has no image, and the reward it would have had."""
    samples = [replace(d, lineage=(*d.lineage[:2], k), scores=dict(s)) for d, s in zip(drafts, known, strict=True) for k in range(images)]
    if drawn is not None:
        for row, at in enumerate(place):
            samples[at] = replace(samples[at], image=drawn.images[row])
        for at, more in zip(place, judges.score([samples[at] for at in place], IMAGE), strict=True):
            samples[at] = replace(samples[at], scores={**samples[at].scores, **more})
    unknown = dict.fromkeys(judges.expression.names, math.nan)  # those of the image, where there is none
    columns = [{**unknown, **s.scores} for s in samples]
    return [replace(s, reward=float(t)) for s, t in zip(samples, judges.totals(columns), strict=True)]
