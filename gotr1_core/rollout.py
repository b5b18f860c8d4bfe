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


@dataclass(frozen=True)
class RolloutSettings:
    """How a tree of samples is drawn.

    Attributes:
        sampling: temperatures, guidance and lengths.
        seed: the beginning of every sample's lineage, such as (run seed, step). A sample's own seed is made of it and the sample's place.
        plans: plans of a prompt (N).
        images: images of a plan (M).
        chunk: prompt groups that are drawn together. Memory depends on it, samples do not.
        prune: does not draw a picture whose reward is 0 whatever the picture.
        needless: no score needs a picture and no renderer learns from one; with ``prune`` no picture is drawn.
        offload: a device. Of planner and renderer, the one that is not at work waits in main memory.
    """

    sampling: Sampling
    seed: tuple[int | str, ...]
    plans: int = 1
    images: int = 1
    chunk: int = 8
    prune: bool = True
    needless: bool = False
    offload: torch.device | None = None


@dataclass(frozen=True)
class Parts:
    """The components of a run. Planner and renderer are one object where one policy has both roles."""

    planner: Planner
    renderer: Renderer
    judges: Judges
    algorithm: RLAlgorithm

    @property
    def unified(self) -> bool:
        return self.planner is self.renderer  # type: ignore[comparison-overlap]

    def policies(self) -> dict[str, Policy]:
        """Planner and renderer by role; the planner alone where it is both."""
        return {"planner": self.planner} if self.unified else {"planner": self.planner, "renderer": self.renderer}

    def trained(self, train: str) -> dict[str, tuple[Policy, tuple[SegmentName, ...]]]:
        """The policies that train, by role, and their segments that do."""
        wanted: dict[str, tuple[SegmentName, ...]] = {"planner": (PLAN,), "renderer": (IMAGE,), "both": (PLAN, IMAGE)}
        if self.unified:
            return {"planner": (self.planner, wanted[train])}
        roles: dict[str, tuple[Policy, tuple[SegmentName, ...]]] = {
            "planner": (self.planner, (PLAN,)),
            "renderer": (self.renderer, (IMAGE,)),
        }
        return {role: pair for role, pair in roles.items() if train in (role, "both")}


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
    drafts = [Sample(prompts[i], planned.chains[r], None, (first + i, j, 0)) for r, (i, j) in enumerate(lineage)]
    known = judges.score(drafts, PLAN)
    settled = judges.settled(known) | settings.needless if settings.prune else torch.zeros(len(known), dtype=torch.bool)
    rows = [r for r in range(len(lineage)) if not settled[r] for _ in range(images)]
    place = [r * images + k for r in range(len(lineage)) if not settled[r] for k in range(images)]
    drawn = None
    if rows:
        if settings.offload is not None:
            swap(settings.offload, renderer, idle=planner)
        drawn = renderer.render(
            [drafts[r].prompt for r in rows],
            [drafts[r].chain for r in rows],
            seeds=[seed_for(*seed, *drafts[p // images].lineage[:2], p % images, "image") for p in place],
            sampling=settings.sampling,
            plans=planned.rows(torch.tensor(rows)) if renderer is planner else None,  # type: ignore[comparison-overlap]
            groups=[seed_for(*seed, drafts[r].lineage[0], "group") for r in rows],
        )
        parent = torch.tensor(rows, device=drawn.tensors["mask"].device)
        drawn = replace(drawn, tensors={**drawn.tensors, "parent": parent})
    samples = _scored(judges, drafts, known, drawn, place, images)
    rewards = torch.tensor([s.reward for s in samples], dtype=torch.float64).view(len(prompts), plans, images)
    return Batch(tuple(prompts), planned, drawn, torch.tensor(place, dtype=torch.long), tuple(samples), rewards)


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
    return [replace(s, reward=float(t)) for s, t in zip(samples, judges.total_rewards(columns), strict=True)]
