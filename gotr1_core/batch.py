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
    """One step's tree: P prompts, N plans each, M images each.

    Attributes:
        prompts: the P prompts.
        plans: P x N rows, prompt by prompt.
        images: rows of the images that were drawn; None where none was.
        place: ``[K]``, the sample that row k of ``images`` belongs to. Pruned samples have no row.
        samples: P x N x M samples in the order of their lineage.
        rewards: float64 ``[P, N, M]``, NaN where a reward could not be had.
    """

    prompts: tuple[Prompt, ...]
    plans: Rollout
    images: Rollout | None
    place: Tensor
    samples: tuple[Sample, ...]
    rewards: Tensor

    def segments(self, plan_rows: Tensor) -> tuple[dict[SegmentName, Rollout], Tensor]:
        """The plans ``plan_rows [R]`` with their images, as a module takes them, and the rows ``[K]`` of these images."""
        rollouts: dict[SegmentName, Rollout] = {PLAN: self.plans.rows(plan_rows)}
        if self.images is None:
            return rollouts, plan_rows[:0]
        parent = self.images.tensors["parent"].cpu()
        new_row = torch.full((len(self.plans),), -1)
        new_row[plan_rows] = torch.arange(len(plan_rows))
        image_rows = (new_row[parent] >= 0).nonzero().flatten()
        if len(image_rows):
            images = self.images.rows(image_rows)
            new_parent = new_row[parent[image_rows]].to(images.tensors["parent"].device)
            rollouts[IMAGE] = replace(images, tensors={**images.tensors, "parent": new_parent})
        return rollouts, image_rows

    def keep(self, groups: Sequence[int]) -> Batch:
        """The batch of some of its prompts, given by their numbers."""
        _, plans, images = self.rewards.shape
        chosen = torch.tensor(list(groups), dtype=torch.long)
        rows = (chosen.unsqueeze(1) * plans + torch.arange(plans)).flatten()
        segments, image_rows = self.segments(rows)
        new_row = torch.full((len(self.plans),), -1)
        new_row[rows] = torch.arange(len(rows))
        place = new_row[self.place[image_rows] // images] * images + self.place[image_rows] % images
        samples = tuple(self.samples[r * images + k] for r in rows.tolist() for k in range(images))
        prompts = tuple(self.prompts[g] for g in groups)
        return Batch(prompts, segments[PLAN], segments.get(IMAGE), place, samples, self.rewards[chosen])


def join_batches(batches: Sequence[Batch]) -> Batch:
    """Batches of the same N and M as one."""
    if len(batches) == 1:
        return batches[0]
    plans = join([b.plans for b in batches])
    images, places, plans_before, samples_before = [], [], 0, 0
    for b in batches:
        if b.images is not None:
            images.append(replace(b.images, tensors={**b.images.tensors, "parent": b.images.tensors["parent"] + plans_before}))
            places.append(b.place + samples_before)
        plans_before += len(b.plans)
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
    """Some plans with their images for one forward and backward pass, and what is known of them before the update, by segment.

    Attributes:
        segments: the rollouts.
        advantages: ``[B]``, or ``[B, T]`` from an advantage estimator.
        masks: bool ``[B, T]``, the actions that count.
        rows: ``[B]``, the rows of the batch's plans and images that these are. They are not in the batch's order.
        old, reference: log-probabilities ``[B, T]`` before the update and of the reference, where they are used.
        values, returns: a critic's values ``[B, T]`` before the update, and what they learn ``[B, T]``.
        old_means, reference_means: means ``[B, T, ...]`` of Gaussian actions, likewise.
        idle: passes through the module only because other processes do, and adds nothing.
    """

    segments: Mapping[SegmentName, Rollout]
    advantages: Mapping[SegmentName, Tensor]
    masks: Mapping[SegmentName, Tensor]
    rows: Mapping[SegmentName, Tensor]
    old: Mapping[SegmentName, Tensor] = field(default_factory=dict)
    reference: Mapping[SegmentName, Tensor] = field(default_factory=dict)
    values: Mapping[SegmentName, Tensor] = field(default_factory=dict)
    returns: Mapping[SegmentName, Tensor] = field(default_factory=dict)
    old_means: Mapping[SegmentName, Tensor] = field(default_factory=dict)
    reference_means: Mapping[SegmentName, Tensor] = field(default_factory=dict)
    idle: bool = False


def split_batch(
    batch: Batch, advantages: Advantages, training: Mapping[SegmentName, SegmentConfig], config: RunConfig, *, every: bool = False
) -> list[MicroBatch]:
    """Splits plans, with their images, into micro-batches of about equal size. Plans with zero gradient are dropped unless ``every``.

    ``training`` are the segments that train, with their settings. Plans of like length are together, the longest first.
    """
    _, per_group, images = batch.rewards.shape
    flat = {PLAN: advantages.plan.flatten(), IMAGE: advantages.image.flatten()}
    has_gradient = torch.full((len(batch.plans),), every)
    for name, settings in training.items():
        moves = flat[name].ne(0) if name == PLAN else flat[name].view(-1, images).ne(0).any(1)
        has_gradient |= moves | bool(settings.kl or settings.entropy)
    for row, sample in enumerate(batch.samples[::images]):
        if sample.not_finite == PLAN:  # the model's output for it is not finite, and a gradient of 0 times NaN is NaN
            has_gradient[row] = every
    rows = _longest_first(batch.plans, has_gradient.nonzero().flatten(), per_group, config.rollout_groups)
    micro_batches = []
    for plan_rows in rows.tensor_split(-(-len(rows) // config.micro_batch)) if len(rows) else ():
        segments, image_rows = batch.segments(plan_rows)
        rollouts = {name: segments[name] for name in training if name in segments}
        row_advantages = {PLAN: flat[PLAN][plan_rows], IMAGE: flat[IMAGE][batch.place[image_rows]]}
        masks = {name: action_mask(rollout, config) for name, rollout in rollouts.items()}
        if rollouts:
            numbers = {PLAN: plan_rows, IMAGE: image_rows}
            own_advantages = {n: row_advantages[n].to(masks[n].device) for n in rollouts}
            micro_batches.append(MicroBatch(rollouts, own_advantages, masks, {n: numbers[n] for n in rollouts}))
    return micro_batches


def _longest_first(plans: Rollout, rows: Tensor, per_group: int, chunk: int) -> Tensor:
    """Sorts ``rows [R]`` of plans by the mean length of their group, of ``per_group`` plans, within ``chunk`` groups drawn together."""
    lengths = plans.tensors["mask"].sum(1) + plans.tensors.get("prompt_length", 0)
    means = lengths.double().cpu().view(-1, per_group).mean(1)
    rows = rows[means[rows // per_group].argsort(descending=True, stable=True)]
    return rows[(rows // (per_group * chunk)).argsort(stable=True)]


def action_mask(rollout: Rollout, config: RunConfig) -> Tensor:
    """The actions of a rollout that count in the loss, bool ``[B, T]``; none of a truncated chain where ``mask_truncated`` is set."""
    mask = rollout.tensors["mask"]
    if rollout.segment == PLAN and config.mask_truncated:
        mask = mask & ~rollout.tensors["truncated"].unsqueeze(1)
    return mask
