"""Rolls out one step's tree of samples: P prompts x N plans x M images are planned, scored, pruned, drawn and scored again."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from gotr1_core.batch import Batch, join_batches
from gotr1_core.border.calls import call_plan, call_render, check_joinable
from gotr1_core.engine.background import Submit
from gotr1_core.judges import Judgement, Judges
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
    with judges.threads() as threads:
        # While a judge in another thread looks at a chunk's plans, the next chunk is planned. While it looks at pictures, others are drawn.
        ahead = 1 if threads and settings.prune else 0
        planned: deque[_Planned] = deque()
        drawn: list[Callable[[], Batch]] = []
        for start in range(0, len(prompts), settings.chunk):
            chunk = prompts[start : start + settings.chunk]
            planned.append(_plan_chunk(planner, renderer, judges, chunk, settings, first + start, threads))
            if len(planned) > ahead:
                drawn.append(_draw_chunk(planner, renderer, judges, planned.popleft(), settings, threads))
        drawn += [_draw_chunk(planner, renderer, judges, chunk, settings, threads) for chunk in planned]
        return join_checked(planner, renderer, [end() for end in drawn])


def join_checked(planner: Planner, renderer: Renderer, batches: Sequence[Batch]) -> Batch:
    """Batches that planner and renderer drew as one, as :func:`join_batches`. Says which of the two drew what cannot be joined."""
    check_joinable(planner, renderer, [b.plans for b in batches], [b.images for b in batches if b.images is not None])
    return join_batches(batches)


@dataclass(frozen=True)
class _Planned:
    """The plans of a chunk: a draft without a picture of each, and what waits for their scores."""

    prompts: Sequence[Prompt]
    rollout: Rollout
    drafts: Sequence[Sample]
    judged: Callable[[], list[Judgement]]


def _plan_chunk(
    planner: Planner,
    renderer: Renderer,
    judges: Judges,
    prompts: Sequence[Prompt],
    settings: RolloutSettings,
    first: int,
    threads: Mapping[str, Submit],
) -> _Planned:
    """Plans a chunk, and begins to judge its plans."""
    seed = settings.seed
    if settings.offload is not None:
        swap(settings.offload, planner, idle=renderer)
    lineage = [(i, j) for i in range(len(prompts)) for j in range(settings.plans)]
    planned = call_plan(
        planner,
        [prompts[i] for i, _ in lineage],
        seeds=[seed_for(*seed, first + i, j, "plan") for i, j in lineage],
        sampling=settings.sampling,
    )
    lost = ~torch.tensor(planned.finite(), dtype=torch.bool)
    if lost.any():  # what was sampled there has no probability: nobody learns from it
        hidden = lost.to(planned.tensors["mask"].device).unsqueeze(1)
        mask, log_prob = planned.tensors["mask"] & ~hidden, planned.tensors["log_prob"].masked_fill(hidden, 0.0)
        planned = replace(planned, tensors={**planned.tensors, "mask": mask, "log_prob": log_prob})
    drafts = [
        Sample(prompts[i], planned.chains[row], None, (first + i, j, 0), not_finite=PLAN if lost[row] else None)
        for row, (i, j) in enumerate(lineage)
    ]
    return _Planned(prompts, planned, drafts, judges.start(drafts, PLAN, threads))


def _draw_chunk(
    planner: Planner, renderer: Renderer, judges: Judges, planned: _Planned, settings: RolloutSettings, threads: Mapping[str, Submit]
) -> Callable[[], Batch]:
    """Draws a chunk, and begins to judge its pictures. Returns a function that waits for the scores and gives the chunk's tree."""
    drafts, images = planned.drafts, settings.images
    pruned = torch.tensor([draft.not_finite is not None for draft in drafts])
    if settings.prune:
        pruned |= judges.settled([j.scores for j in planned.judged()] if judges.prunes else [{} for _ in drafts]) | settings.pictures_unused
    rows = [row for row in range(len(drafts)) if not pruned[row] for _ in range(images)]
    place = [row * images + k for row in range(len(drafts)) if not pruned[row] for k in range(images)]
    drawn = None
    if rows:
        if settings.offload is not None:
            swap(settings.offload, renderer, idle=planner)
        drawn = call_render(
            renderer,
            [drafts[row].prompt for row in rows],
            [drafts[row].chain for row in rows],
            seeds=[seed_for(*settings.seed, *drafts[at // images].lineage[:2], at % images, "image") for at in place],
            sampling=settings.sampling,
            plans=planned.rollout.rows(torch.tensor(rows)) if renderer is planner else None,  # type: ignore[comparison-overlap]
            groups=[seed_for(*settings.seed, drafts[row].lineage[0], "group") for row in rows],
        )
        parent = torch.tensor(rows, device=drawn.tensors["mask"].device)
        drawn = replace(drawn, tensors={**drawn.tensors, "parent": parent})
    known = [{} for _ in drafts] if threads else [j.scores for j in planned.judged()]  # a thread does not wait for another stage
    samples = [replace(d, lineage=(*d.lineage[:2], k), scores=s) for d, s in zip(drafts, known, strict=True) for k in range(images)]
    if drawn is not None:
        for at, image, finite in zip(place, drawn.images, drawn.finite(), strict=True):
            samples[at] = replace(samples[at], image=image) if finite else replace(samples[at], not_finite=IMAGE)
    scored = sorted({*place, *(at for at, sample in enumerate(samples) if sample.not_finite)})
    judged = judges.start([samples[at] for at in scored], IMAGE, threads)
    kept = [row for row, at in enumerate(place) if samples[at].not_finite is None]
    if drawn is not None and len(kept) < len(place):
        drawn, place = drawn.rows(torch.tensor(kept)) if kept else None, [place[row] for row in kept]

    def end() -> Batch:
        rewarded = _rewarded(judges, samples, planned.judged(), dict(zip(scored, judged(), strict=True)))
        rewards = torch.tensor([s.reward for s in rewarded], dtype=torch.float64).view(len(planned.prompts), -1, images)
        plans, at = replace(planned.rollout, memory=None), torch.tensor(place, dtype=torch.long)
        return Batch(tuple(planned.prompts), plans, drawn, at, tuple(rewarded), rewards)

    return end


def _rewarded(judges: Judges, samples: Sequence[Sample], of_plans: Sequence[Judgement], of_images: Mapping[int, Judgement]) -> list[Sample]:
    """Every sample of the tree with its scores and reward. A pruned one has no image, and the reward that it would have had.

    One whose plan or picture is not finite has neither: image scores and reward are NaN. ``of_images`` are by the sample's number.
    """
    images = len(samples) // max(1, len(of_plans))
    judged = []
    for at, sample in enumerate(samples):
        plan, image = of_plans[at // images], of_images.get(at, Judgement({}))
        judged.append(replace(sample, scores={**plan.scores, **image.scores}, words={**plan.words, **image.words}))
    unknown = dict.fromkeys(judges.expression.names, math.nan)  # image scores of samples without an image
    rewards = judges.total_rewards([{**unknown, **s.scores} for s in judged])
    return [replace(s, reward=math.nan if s.not_finite else float(reward)) for s, reward in zip(judged, rewards, strict=True)]
