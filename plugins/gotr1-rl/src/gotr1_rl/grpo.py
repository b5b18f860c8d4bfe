"""GRPO and its relatives: group-normalised advantages and a clipped surrogate, no value model.

Group relative policy optimization is from DeepSeekMath (arXiv 2402.03300). What differs from that paper, each by an option: the
deviation can be left out (Dr. GRPO, arXiv 2503.20783), ratios can be per sequence (GSPO, arXiv 2507.18071), clipping can be
asymmetric (DAPO, arXiv 2503.14476; ``segments.*.clip_high``). The loss is a mean over all tokens of a segment, as in DAPO, not a
mean of per-sample means; with sequence ratios it is a mean over sequences, each with the mean of its tokens' divergence and entropy.
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
    """Each option names its paper."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    advantages: Literal["joint", "split"] = Field("joint", description="How a tree's rewards become advantages: GoT-R1's, or per level.")
    scale: bool = Field(True, description="Divide advantages by the group's deviation (arXiv 2402.03300), or not (arXiv 2503.20783).")
    ratio: Literal["token", "sequence"] = Field(
        "token", description="Importance ratios per token, or per sequence (GSPO, arXiv 2507.18071)."
    )
    kl: Literal["k3", "k2"] = Field(
        "k3", description="Estimator of the divergence from the reference (GRPO's k3, or half the squared log-ratio)."
    )
    normalise: bool = Field(
        False, description="Log-ratios of denoising steps freed of their step's noise level and bias (GRPO-Guard, arXiv 2510.22319)."
    )


def surrogate(log_ratio: Tensor, advantages: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """PPO's clipped objective (arXiv 1707.06347, eq. 7) per action, to maximise, and whether the clip held the gradient back."""
    ratio = log_ratio.exp()
    free, clipped = ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages
    return torch.minimum(free, clipped), clipped < free


def divergence(log_prob: Tensor, reference: Tensor, estimator: str) -> Tensor:
    """Per-token estimates of KL(policy, reference): k3 = r - 1 - log r with r = reference / policy, or k2 = (log r)^2 / 2.

    As a loss, k3's gradient is in expectation that of the reverse direction KL(reference, policy), and k2's that of
    KL(policy, reference) (Schulman, "Approximating KL Divergence"; Tang & Munos, arXiv 2506.09477). Gaussian actions need no
    estimate: their divergence is known, ``Scored.kl``.
    """
    gap = reference - log_prob
    return 0.5 * gap.square() if estimator == "k2" else gap.exp() - 1 - gap


def normalised(scored: ActionStats, log_ratio: Tensor) -> Tensor | None:
    """σ (log ρ + |Δμ|² / 2σ²), which is Δμ·z for the noise z that was drawn (RatioNorm of GRPO-Guard, arXiv 2510.22319).

    log ρ itself has mean -|Δμ|² / 2σ² and deviation |Δμ| / σ: one clip width for all denoising steps holds back those of little noise
    alone, and more often below 1 than above. None where actions are not Gaussian.
    """
    if scored.moved is None or scored.std is None:
        return None
    return scored.std * (log_ratio + scored.moved)


class Grpo:
    """Group relative policy optimization."""

    def __init__(self, options: GrpoOptions) -> None:
        self.options = options

    def advantages(self, rewards: Tensor) -> Advantages:
        """Advantages from rewards ``[P, N, M]``."""
        return (split if self.options.advantages == "split" else joint)(rewards, scale=self.options.scale)

    def count(self, mask: Tensor) -> Tensor:
        """What the loss's sums are divided by: tokens, or sequences with sequence ratios."""
        return mask.sum() if self.options.ratio == "token" else mask.any(1).sum()

    def loss(
        self,
        segment: SegmentName,
        scored: ActionStats,
        old: Tensor,
        reference: Tensor | None,
        advantages: Tensor,
        mask: Tensor,
        settings: SegmentConfig,
    ) -> Loss:
        """To minimise: -(surrogate) + kl * divergence - entropy * bonus, summed over the masked actions ``[B, T]``."""
        log_ratio = raw = torch.where(mask, scored.log_prob - old, 0.0)
        even = normalised(scored, raw)
        if even is not None and self.options.normalise:
            log_ratio = torch.where(mask, even, 0.0)
        weight = (advantages if advantages.dim() > 1 else advantages.unsqueeze(1)).to(log_ratio.dtype)
        lengths = mask.sum(1, keepdim=True).clamp_min(1).to(log_ratio.dtype)
        if self.options.ratio == "sequence":
            mean = log_ratio.sum(1, keepdim=True) / lengths
            gain, held = surrogate(mean, weight, settings.clip_low, settings.clip_high)
            counted = mask.any(1, keepdim=True)
        else:
            gain, held = surrogate(log_ratio, weight, settings.clip_low, settings.clip_high)
            counted = mask
        actions = mask.sum()
        # A sum over tokens, or over sequences of their means: never a share of this micro-batch, or slicing would change the gradient.
        share = torch.ones_like(lengths) if self.options.ratio == "token" else 1 / lengths
        total = -torch.where(counted, gain, 0.0).sum()
        statistics = {
            "ratio": (torch.where(mask, raw.detach().exp(), 0.0).sum(), actions),
            "clipped": ((held & counted).sum(), counted.sum()),
            "entropy": (torch.where(mask, scored.entropy.detach(), 0.0).sum(), actions),
        }
        if reference is not None:
            # Masked before the exponential: after it, an infinite ratio of a position that does not count makes its gradient 0 * inf.
            apart = divergence(torch.where(mask, scored.log_prob, 0.0), torch.where(mask, reference, 0.0), self.options.kl)
            apart = apart if scored.kl is None else torch.where(mask, scored.kl, 0.0)
            total = total + settings.kl * (share * apart).sum()
            statistics["kl"] = (apart.detach().sum(), actions)
        if settings.entropy:
            total = total - settings.entropy * (share * torch.where(mask, scored.entropy, 0.0)).sum()
        each = {"ratio": raw.detach().exp(), "clipped": held.expand_as(mask)}
        if even is not None:
            each["normalised_ratio"] = even.detach().exp()
        return Loss({segment: total}, {segment: self.count(mask)}, statistics, each)
