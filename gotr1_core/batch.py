"""What one step drew, as one tree, and the micro-batches in which a policy learns from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from gotr1_core.advantages import Advantages
from gotr1_core.config.models import RunConfig, SegmentConfig
from gotr1_core.samples import IMAGE, PLAN, Prompt, Rollout, Sample, SegmentName, join


@dataclass(frozen=True)
class Batch:
    """What one step drew. Samples lie in lineage order; ``place [K]`` is the sample that row k of ``images`` belongs to."""

    prompts: tuple[Prompt, ...]
    plans: Rollout
    images: Rollout | None
    place: Tensor
    samples: tuple[Sample, ...]
    rewards: Tensor  # [P, N, M]

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
        _, plans, images = self.rewards.shape
        chosen = torch.tensor(list(groups), dtype=torch.long)
        rows = (chosen.unsqueeze(1) * plans + torch.arange(plans)).flatten()
        segments, drawn = self.segments(rows)
        local = torch.full((len(self.plans),), -1)
        local[rows] = torch.arange(len(rows))
        place = local[self.place[drawn] // images] * images + self.place[drawn] % images
        samples = tuple(self.samples[r * images + k] for r in rows.tolist() for k in range(images))
        kept_prompts = tuple(self.prompts[g] for g in groups)
        return Batch(kept_prompts, segments[PLAN], segments.get(IMAGE), place, samples, self.rewards[chosen])


def join_batches(batches: Sequence[Batch]) -> Batch:
    """Batches of the same N and M as one."""
    if len(batches) == 1:
        return batches[0]
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
        torch.cat([b.rewards for b in batches]),
    )


@dataclass(frozen=True)
class MicroBatch:
    """Some plans with their images, ready to be scored, and what is known about them before the update, by segment.

    ``advantages`` are ``[B]`` or ``[B, T]``, the rest ``[B, T]``: ``masks``; log-probabilities ``old`` and ``reference`` and a critic's
    ``values``, where they were asked for; the ``returns`` that values learn. Of Gaussian actions there are means too, ``[B, T, ...]``.
    What is ``idle`` is scored because other processes score something, and adds nothing.
    """

    segments: Mapping[SegmentName, Rollout]
    advantages: Mapping[SegmentName, Tensor]
    masks: Mapping[SegmentName, Tensor]
    old: Mapping[SegmentName, Tensor] = field(default_factory=dict)
    reference: Mapping[SegmentName, Tensor] = field(default_factory=dict)
    values: Mapping[SegmentName, Tensor] = field(default_factory=dict)
    returns: Mapping[SegmentName, Tensor] = field(default_factory=dict)
    old_means: Mapping[SegmentName, Tensor] = field(default_factory=dict)
    reference_means: Mapping[SegmentName, Tensor] = field(default_factory=dict)
    idle: bool = False


def micro_batches(
    batch: Batch, advantages: Advantages, training: Mapping[SegmentName, SegmentConfig], config: RunConfig, *, every: bool = False
) -> list[MicroBatch]:
    """Splits plans, with their images, into micro-batches. Plans with zero gradient are dropped unless ``every``.

    ``training`` are the segments that train, with their settings.
    """
    *_, images = batch.rewards.shape
    flat = {PLAN: advantages.plan.flatten(), IMAGE: advantages.image.flatten()}
    work = torch.full((len(batch.plans),), every)
    for name, settings in training.items():
        moves = flat[name].ne(0) if name == PLAN else flat[name].view(-1, images).ne(0).any(1)
        work |= moves | bool(settings.kl or settings.entropy)
    rows = work.nonzero().flatten()
    found = []
    for part in rows.split(config.micro_batch) if len(rows) else ():  # nothing would be split into one empty slice
        segments, drawn = batch.segments(part)
        chosen = {name: segments[name] for name in training if name in segments}
        row_advantages = {PLAN: flat[PLAN][part], IMAGE: flat[IMAGE][batch.place[drawn]]}
        masks = {name: action_mask(rollout, config) for name, rollout in chosen.items()}
        if chosen:
            found.append(MicroBatch(chosen, {n: row_advantages[n].to(masks[n].device) for n in chosen}, masks))
    return found


def action_mask(rollout: Rollout, config: RunConfig) -> Tensor:
    """The actions of a rollout that count in the loss, bool ``[B, T]``; none of a truncated chain where ``mask_truncated`` is set."""
    mask = rollout.tensors["mask"]
    if rollout.segment == PLAN and config.mask_truncated:
        mask = mask & ~rollout.tensors["truncated"].unsqueeze(1)
    return mask
