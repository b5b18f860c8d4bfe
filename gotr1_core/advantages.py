"""Advantages over the tree of samples: P prompts x N plans x M images, computed from rewards.

A reward that could not be had is NaN (an infinite one counts as NaN). Its advantage is 0, and every mean and standard deviation is what it
would be without that sample. Advantages are float64 and carry no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from gotr1_core.errors import UsageError

EPS: Final = 1e-6
"""Added to a standard deviation before dividing, in units of the reward. It is small against any spread that means something
(rewards are in [0, 1]), and large against rounding, which would otherwise be magnified into advantages."""

TOLERANCE: Final = 1e-9
"""A spread (largest minus smallest) up to this is no difference: the advantages of such a group are exactly 0."""


@dataclass(frozen=True)
class Advantages:
    """Advantages of plans, ``plan [P, N]``, and of images, ``image [P, N, M]``; float64, 0 where there was nothing to learn from."""

    plan: Tensor
    image: Tensor


def joint(rewards: Tensor, *, scale: bool = True) -> Advantages:
    """Normalises over all N x M samples of a prompt. A plan's advantage is the mean over its images (GoT-R1, arXiv 2505.17022).

    An image's advantage is (reward - mean) / (std + EPS). std is the sample standard deviation (divisor n - 1) of the prompt's
    samples, as in implementations of GRPO (arXiv 2402.03300).

    Args:
        rewards: ``[P, N, M]``, NaN where a reward could not be had.
        scale: False only centres and does not divide (Dr. GRPO, arXiv 2503.20783).

    Raises:
        ValueError: rewards of another rank, or without samples.
    """
    rewards = _checked(rewards)
    image = _normalise(rewards.flatten(1), scale=scale).view(rewards.shape)
    valid = ~rewards.isnan()
    plan = image.sum(-1) / valid.sum(-1).clamp(min=1)  # advantages of missing samples are 0 and add nothing
    return Advantages(plan=plan, image=image)


def split(rewards: Tensor, *, scale: bool = True) -> Advantages:
    """Compares plans with plans, and images with the siblings that share their plan.

    A plan's value is the mean of its images' rewards, normalised over the prompt's plans as in :func:`joint`. An image is centred on its
    siblings and divided by the prompt's pooled standard deviation within plans (+ EPS): the squares of all plans over the sum of their
    n - 1. So a plan with similar images does not magnify their differences.

    Args:
        rewards: ``[P, N, M]`` with M >= 2, NaN where a reward could not be had.
        scale: False only centres and does not divide.

    Raises:
        UsageError: M is 1, so that no image has a sibling.
        ValueError: rewards of another rank, or without samples.
    """
    rewards = _checked(rewards)
    if rewards.shape[-1] < 2:
        raise UsageError(
            "advantages=split compares the images of one plan, and there is only one image per plan",
            hint="render two or more images per plan, or use advantages=joint",
        )
    low = _lowest(rewards)
    values = low.squeeze(-1) + _mean(rewards - low).squeeze(-1)
    centred = _centred(rewards)
    if scale:
        freedom = ((~rewards.isnan()).sum(-1) - 1).clamp(min=0).sum(-1)
        pooled = (centred.square().sum((-2, -1)) / freedom.clamp(min=1)).sqrt()
        centred = centred / (pooled[:, None, None] + EPS)
    return Advantages(plan=_normalise(values, scale=scale), image=centred)


def constant_groups(rewards: Tensor, tolerance: float = TOLERANCE) -> Tensor:
    """Prompts that teach nothing, bool ``[P]``: all their known rewards are equal, or fewer than two are known.

    Args:
        rewards: ``[P, N, M]``, NaN where a reward could not be had.
        tolerance: the largest spread (largest minus smallest reward) that counts as equal.

    Raises:
        ValueError: rewards of another rank, or without samples.
    """
    return _constant(_checked(rewards).flatten(1), tolerance).squeeze(-1)


def _checked(rewards: Tensor) -> Tensor:
    """Rewards as float64 without gradient; infinities become NaN."""
    if rewards.ndim != 3 or 0 in rewards.shape[1:]:
        raise ValueError(f"rewards must be [P, N, M] with at least one plan and image, not {tuple(rewards.shape)}")
    rewards = rewards.detach().to(torch.float64)
    return rewards.where(rewards.isfinite(), torch.nan)


def _normalise(rewards: Tensor, *, scale: bool) -> Tensor:
    """Centres the rows of ``[..., S]``, and divides by their sample standard deviation where ``scale``."""
    centred = _centred(rewards)
    if not scale:
        return centred
    count = (~rewards.isnan()).sum(-1, keepdim=True)
    std = (centred.square().sum(-1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    return centred / (std + EPS)


def _centred(rewards: Tensor) -> Tensor:
    """Each row of ``[..., S]`` minus its mean; exactly 0 where a value is NaN and in constant rows."""
    above = rewards - _lowest(rewards)  # so that values close together keep their differences
    centred = (above - _mean(above)).nan_to_num(nan=0.0)
    return centred.masked_fill(_constant(rewards, TOLERANCE), 0.0)


def _mean(rewards: Tensor) -> Tensor:
    """Mean over the last dimension, kept, of what is not NaN; NaN where all are."""
    return rewards.nanmean(-1, keepdim=True)


def _lowest(rewards: Tensor) -> Tensor:
    """The smallest value over the last dimension, kept, of what is not NaN; infinite where all are NaN."""
    return rewards.where(rewards.isfinite(), torch.inf).amin(-1, keepdim=True)


def _constant(rewards: Tensor, tolerance: float) -> Tensor:
    """Rows of ``[..., S]`` whose spread is within the tolerance, or that have fewer than two values; bool ``[..., 1]``."""
    highest = rewards.where(rewards.isfinite(), -torch.inf).amax(-1, keepdim=True)
    # Without any value the spread is -inf, which is within every tolerance.
    return highest - _lowest(rewards) <= tolerance
