"""Rolls out one step's tree of samples: P prompts x N plans x M images are planned, scored, pruned, drawn and scored again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from gotr1_core.batch import Batch, join_batches
from gotr1_core.judges import Judges
from gotr1_core.protocols import Planner, Policy, Renderer, RLAlgorithm
from gotr1_core.samples import IMAGE, PLAN, Prompt, Rollout, Sample, Sampling, SegmentName
from gotr1_core.sampling import seed_for

SEGMENTS: dict[str, tuple[SegmentName, ...]] = {"planner": (PLAN,), "renderer": (IMAGE,), "both": (PLAN, IMAGE)}
"""The segments that train, by a config's ``train``."""


@dataclass(frozen=True)
class RolloutSettings:
    """How a tree of samples is drawn.

    Attributes:
        sampling: temperatures, guidance and lengths.
        seed: the beginning of every sample's lineage, such as (run seed, step). A sample's own seed is made of it and the sample's place.
        plans, images: plans of a prompt (N), images of a plan (M).
        chunk: prompt groups that are drawn together. Memory depends on it, samples do not.
        prune: does not draw a picture whose reward is 0 whatever the picture.
        pictures_unused: no score needs a picture and no renderer learns from one; with ``prune`` no picture is drawn.
        offload: a device. Of planner and renderer, the one that is not at work waits in main memory.
    """

    sampling: Sampling
    seed: tuple[int | str, ...]
    plans: int = 1
    images: int = 1
    chunk: int = 8
    prune: bool = True
    pictures_unused: bool = False
    offload: torch.device | None = None


@dataclass(frozen=True)
class Parts:
    """The components of a run. Planner and renderer are one object where one policy has both roles (a unified policy)."""

    planner: Planner
    renderer: Renderer
    judges: Judges
    algorithm: RLAlgorithm

    @property
    def unified(self) -> bool:
        """True if planner and renderer are one policy."""
        return self.planner is self.renderer  # type: ignore[comparison-overlap]

    def policies(self) -> dict[str, Policy]:
        """Planner and renderer by role; only the planner where it is both."""
        return {"planner": self.planner} if self.unified else {"planner": self.planner, "renderer": self.renderer}

    def trained(self, train: str) -> dict[str, tuple[Policy, tuple[SegmentName, ...]]]:
        """By role, the policies that train with their segments that train, under a config's ``train``."""
        if self.unified:
            return {"planner": (self.planner, SEGMENTS[train])}
        return {role: (policy, SEGMENTS[role]) for role, policy in self.policies().items() if train in (role, "both")}


def swap(device: torch.device, working: Policy, *, idle: Policy) -> None:
    """Moves the idle policy to main memory, then the working one to the device."""
    idle.module.to("cpu")
    working.module.to(device)


def roll_out(
    planner: Planner, renderer: Renderer, judges: Judges, prompts: Sequence[Prompt], settings: RolloutSettings, *, first: int = 0
) -> Batch:
    """Draws, prunes and scores the tree of some prompts, ``settings.chunk`` whole groups at a time.

    ``first`` is the number of the first prompt in the step, over all processes. Together with ``settings.seed`` it fixes every sample's
    own seed, so neither chunks nor processes change what is drawn.
    """
    chunks = range(0, len(prompts), settings.chunk)
    return join_batches(
        [_one_chunk(planner, renderer, judges, prompts[start : start + settings.chunk], settings, first + start) for start in chunks]
    )


def _one_chunk(
    planner: Planner, renderer: Renderer, judges: Judges, prompts: Sequence[Prompt], settings: RolloutSettings, first: int
) -> Batch:
    seed, plans, images = settings.seed, settings.plans, settings.images
    if settings.offload is not None:
        swap(settings.offload, planner, idle=renderer)
    lineage = [(i, j) for i in range(len(prompts)) for j in range(plans)]
    planned = planner.plan(
        [prompts[i] for i, _ in lineage], seeds=[seed_for(*seed, first + i, j, "plan") for i, j in lineage], sampling=settings.sampling
    )
    drafts = [Sample(prompts[i], planned.chains[row], None, (first + i, j, 0)) for row, (i, j) in enumerate(lineage)]
    plan_scores = judges.score(drafts, PLAN)
    pruned = judges.settled(plan_scores) | settings.pictures_unused if settings.prune else torch.zeros(len(drafts), dtype=torch.bool)
    rows = [row for row in range(len(drafts)) if not pruned[row] for _ in range(images)]
    place = [row * images + k for row in range(len(drafts)) if not pruned[row] for k in range(images)]
    drawn = None
    if rows:
        if settings.offload is not None:
            swap(settings.offload, renderer, idle=planner)
        drawn = renderer.render(
            [drafts[row].prompt for row in rows],
            [drafts[row].chain for row in rows],
            seeds=[seed_for(*seed, *drafts[at // images].lineage[:2], at % images, "image") for at in place],
            sampling=settings.sampling,
            plans=planned.rows(torch.tensor(rows)) if renderer is planner else None,  # type: ignore[comparison-overlap]
            groups=[seed_for(*seed, drafts[row].lineage[0], "group") for row in rows],
        )
        parent = torch.tensor(rows, device=drawn.tensors["mask"].device)
        drawn = replace(drawn, tensors={**drawn.tensors, "parent": parent})
    samples = _rewarded(judges, drafts, plan_scores, drawn, place, images)
    rewards = torch.tensor([s.reward for s in samples], dtype=torch.float64).view(len(prompts), plans, images)
    return Batch(tuple(prompts), planned, drawn, torch.tensor(place, dtype=torch.long), tuple(samples), rewards)


def _rewarded(
    judges: Judges,
    drafts: Sequence[Sample],
    plan_scores: Sequence[Mapping[str, float]],
    drawn: Rollout | None,
    place: Sequence[int],
    images: int,
) -> list[Sample]:
    """Every sample of the tree with its scores and reward. A pruned one has no image, and the reward that it would have had."""
    pairs = zip(drafts, plan_scores, strict=True)
    samples = [replace(d, lineage=(*d.lineage[:2], k), scores=dict(scores)) for d, scores in pairs for k in range(images)]
    if drawn is not None:
        for row, at in enumerate(place):
            samples[at] = replace(samples[at], image=drawn.images[row])
        for at, image_scores in zip(place, judges.score([samples[at] for at in place], IMAGE), strict=True):
            samples[at] = replace(samples[at], scores={**samples[at].scores, **image_scores})
    unknown = dict.fromkeys(judges.expression.names, math.nan)  # image scores of samples without an image
    rewards = judges.total_rewards([{**unknown, **s.scores} for s in samples])
    return [replace(s, reward=float(reward)) for s, reward in zip(samples, rewards, strict=True)]
