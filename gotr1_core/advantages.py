"""Credit over the tree of samples: P prompts x N plans x M images, from rewards to advantages.

A total that is NaN (or infinite) could not be had: its advantage is 0, and every mean and deviation is what it
would be had the sample not existed. Advantages are float64 and carry no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from gotr1_core.errors import UsageError

EPS: Final = 1e-6
"""Added to a standard deviation before dividing, in units of the total. Small against any spread that means
something (rewards are in [0, 1]), large against rounding, which it keeps from being blown up into advantages."""

TOLERANCE: Final = 1e-9
"""A spread (largest minus smallest) up to this is no difference: such a group's advantages are exactly 0."""


@dataclass(frozen=True)
class Advantages:
    """Advantages. `plan` is [P, N], `image` is [P, N, M]; float64, 0 where there was nothing to learn from."""

    plan: Tensor
    image: Tensor


def joint(rewards: Tensor, *, scale: bool = True) -> Advantages:
    """Normalise over all N x M samples of a prompt; a plan's advantage is the mean over its images (GoT-R1).

    An image's advantage is (total - mean) / (std + EPS). The deviation is the sample standard deviation
    (divisor n - 1) of the prompt's samples, as in GRPO implementations (arXiv 2402.03300).

    Args:
        rewards: [P, N, M], NaN where a total could not be had.
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
    """Compare plans with plans, and images with the siblings that share their plan.

    A plan's value is the mean of its images' rewards, normalised over the prompt's plans as in `joint`. An image
    is centred on its siblings and divided by the prompt's pooled within-plan deviation (+ EPS): the squares of
    all plans over the sum of their n - 1, so that a plan with close images does not magnify their differences.

    Args:
        rewards: [P, N, M] with M >= 2, NaN where a total could not be had.
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
    """Which prompts teach nothing: bool [P], true where all rewards that could be had are equal, or fewer than two are.

    Args:
        rewards: [P, N, M], NaN where a total could not be had.
        tolerance: the largest spread (largest minus smallest total) that counts as equal.

    Raises:
        ValueError: rewards of another rank, or without samples.
    """
    return _constant(_checked(rewards).flatten(1), tolerance).squeeze(-1)


def _checked(rewards: Tensor) -> Tensor:
    """Totals as float64 without gradient, infinities made NaN."""
    if rewards.ndim != 3 or 0 in rewards.shape[1:]:
        raise ValueError(f"rewards must be [P, N, M] with at least one plan and image, not {tuple(rewards.shape)}")
    rewards = rewards.detach().to(torch.float64)
    return rewards.where(rewards.isfinite(), torch.nan)


def _normalise(rewards: Tensor, *, scale: bool) -> Tensor:
    """Centre the rows of [..., S], and divide by their sample standard deviation where `scale`."""
    centred = _centred(rewards)
    if not scale:
        return centred
    count = (~rewards.isnan()).sum(-1, keepdim=True)
    std = (centred.square().sum(-1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    return centred / (std + EPS)


def _centred(rewards: Tensor) -> Tensor:
    """Each row of [..., S] minus its mean; exactly 0 where a value is NaN and in constant rows."""
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
    """Bool [..., 1]: rows of [..., S] whose spread is within the tolerance, or that have fewer than two values."""
    highest = rewards.where(rewards.isfinite(), -torch.inf).amax(-1, keepdim=True)
    # Without any value the spread is -inf, which is within every tolerance.
    return highest - _lowest(rewards) <= tolerance
