"""GRPO and its relatives: group-normalised advantages and a clipped surrogate, no value model.

Group relative policy optimization is from DeepSeekMath (arXiv 2402.03300). Options add three variants of other papers:

- no division by the group's standard deviation (Dr. GRPO, arXiv 2503.20783);
- ratios per sequence (GSPO, arXiv 2507.18071);
- asymmetric clipping (DAPO, arXiv 2503.14476; ``segments.*.clip_high``).

The loss is a mean over all tokens of a segment, as in DAPO, not a mean of per-sample means. With sequence ratios it is a mean over
sequences; each has the mean of its tokens' divergence and entropy.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from gotr1_core.advantages import Advantages, joint, split
from gotr1_core.config.models import SegmentConfig
from gotr1_core.protocols import Loss
from gotr1_core.samples import ActionStats, SegmentName


class GrpoOptions(BaseModel):
    """Options of `grpo`. Each names its paper."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    advantages: Literal["joint", "split"] = Field(
        "joint", description="How rewards of the tree become advantages: over the whole prompt as in GoT-R1, or level by level."
    )
    scale: bool = Field(
        True, description="Divide advantages by the group's standard deviation (arXiv 2402.03300), or not (arXiv 2503.20783)."
    )
    ratio: Literal["token", "sequence"] = Field(
        "token", description="Importance ratios per token, or per sequence (GSPO, arXiv 2507.18071)."
    )
    kl: Literal["k3", "k2"] = Field(
        "k3", description="Estimator of the KL divergence from the reference: GRPO's k3, or k2, half the squared log-ratio."
    )
    normalise: bool = Field(
        False, description="Remove each denoising step's noise level and bias from its log-ratios (GRPO-Guard, arXiv 2510.22319)."
    )


def surrogate(log_ratio: Tensor, advantages: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """PPO's clipped objective per action, to maximise (arXiv 1707.06347, eq. 7): min(ρ A, clip(ρ, 1 - low, 1 + high) A).

    Args:
        log_ratio: log ρ ``[B, T]``, or ``[B, 1]`` per sequence.
        advantages: A, ``[B, 1]`` or ``[B, T]``.
        low, high: how far ρ may be below and above 1.

    Returns:
        The objective ``[B, T]``, and bool ``[B, T]``, true where the clip holds the gradient back.
    """
    ratio = log_ratio.exp()
    free, clipped = ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages
    return torch.minimum(free, clipped), clipped < free


def kl_estimate(log_prob: Tensor, reference: Tensor, estimator: str) -> Tensor:
    """Per-token estimates of KL(policy, reference): k3 = r - 1 - log r with r = reference / policy, or k2 = (log r)^2 / 2.

    As a loss, k3's gradient is in expectation that of the reverse direction KL(reference, policy), and k2's that of
    KL(policy, reference) (Schulman, "Approximating KL Divergence"; Tang & Munos, arXiv 2506.09477). Gaussian actions need no
    estimate: their divergence has a closed form, :attr:`ActionStats.kl`.

    Args:
        log_prob, reference: log-probabilities ``[B, T]``.
        estimator: ``k3`` or ``k2``.
    """
    log_ratio = reference - log_prob
    return 0.5 * log_ratio.square() if estimator == "k2" else log_ratio.exp() - 1 - log_ratio


def normalised_log_ratio(stats: ActionStats, log_ratio: Tensor) -> Tensor | None:
    """σ (log ρ + |Δμ|² / 2σ²) from log ρ ``[B, T]``, the RatioNorm of GRPO-Guard (arXiv 2510.22319). None if actions are not Gaussian.

    It equals Δμ·z for the noise z that was drawn. log ρ itself has mean -|Δμ|² / 2σ² and standard deviation |Δμ| / σ. With one clip
    width for all denoising steps, only steps of little noise would be held back, and more often below 1 than above.
    """
    if stats.moved is None or stats.std is None:
        return None
    return stats.std * (log_ratio + stats.moved)


class Grpo:
    """Group relative policy optimization."""

    def __init__(self, options: GrpoOptions) -> None:
        self.options = options

    def advantages(self, rewards: Tensor) -> Advantages:
        """Advantages from rewards ``[P, N, M]``."""
        return (split if self.options.advantages == "split" else joint)(rewards, scale=self.options.scale)

    def count(self, mask: Tensor) -> Tensor:
        """What the loss's sums are divided by, a scalar, from the mask ``[B, T]``: tokens, or sequences with sequence ratios."""
        return mask.sum() if self.options.ratio == "token" else mask.any(1).sum()

    def loss(
        self,
        segment: SegmentName,
        stats: ActionStats,
        old: Tensor,
        reference: Tensor | None,
        advantages: Tensor,
        mask: Tensor,
        settings: SegmentConfig,
    ) -> Loss:
        """To minimise: -(surrogate) + kl * divergence - entropy * bonus, summed over the masked actions ``[B, T]``."""
        log_ratio = raw = torch.where(mask, stats.log_prob - old, 0.0)
        normalised = normalised_log_ratio(stats, raw)
        if normalised is not None and self.options.normalise:
            log_ratio = torch.where(mask, normalised, 0.0)
        weight = (advantages if advantages.dim() > 1 else advantages.unsqueeze(1)).to(log_ratio.dtype)
        lengths = mask.sum(1, keepdim=True).clamp_min(1).to(log_ratio.dtype)
        if self.options.ratio == "sequence":
            mean = log_ratio.sum(1, keepdim=True) / lengths
            gain, clipped = surrogate(mean, weight, settings.clip_low, settings.clip_high)
            counted = mask.any(1, keepdim=True)
        else:
            gain, clipped = surrogate(log_ratio, weight, settings.clip_low, settings.clip_high)
            counted = mask
        actions = mask.sum()
        # A sum over tokens, or over the means of sequences. It is never divided by the size of this micro-batch: then the size of
        # micro-batches would change the gradient.
        factor = torch.ones_like(lengths) if self.options.ratio == "token" else 1 / lengths
        total = -torch.where(counted, gain, 0.0).sum()
        statistics = {
            "ratio": (torch.where(mask, raw.detach().exp(), 0.0).sum(), actions),
            "clipped": ((clipped & counted).sum(), counted.sum()),
            "entropy": (torch.where(mask, stats.entropy.detach(), 0.0).sum(), actions),
        }
        if reference is not None:
            # Masked before the exponential. If masked after it, an infinite ratio at a masked position has the gradient 0 * inf.
            kl = kl_estimate(torch.where(mask, stats.log_prob, 0.0), torch.where(mask, reference, 0.0), self.options.kl)
            kl = kl if stats.kl is None else torch.where(mask, stats.kl, 0.0)
            total = total + settings.kl * (factor * kl).sum()
            statistics["kl"] = (kl.detach().sum(), actions)
        if settings.entropy:
            total = total - settings.entropy * (factor * torch.where(mask, stats.entropy, 0.0)).sum()
        per_action = {"ratio": raw.detach().exp(), "clipped": clipped.expand_as(mask)}
        if normalised is not None:
            per_action["normalised_ratio"] = normalised.detach().exp()
        return Loss({segment: total}, {segment: self.count(mask)}, statistics, per_action)
