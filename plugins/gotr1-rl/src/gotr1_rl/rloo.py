"""RLOO: REINFORCE, each sample compared with the mean of the prompt's others (arXiv 2402.14740, eq. 7), the divergence in the reward.

With `joint` advantages a picture is compared with all other pictures of its prompt, with `split` with its siblings. A plan is always
compared with the other plans, by its mean: what its own pictures earned is no baseline for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from gotr1_core.advantages import Advantages
from gotr1_core.protocols import Estimates, Experience
from gotr1_core.samples import IMAGE, PLAN
from gotr1_rl.grpo import Grpo, GrpoOptions
from gotr1_rl.value import log_ratios


class RlooOptions(BaseModel):
    """Besides these, the segments' settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    advantages: Literal["joint", "split"] = Field("joint", description="Pictures are compared with all of the prompt's, or with siblings.")
    reward_kl: float = Field(0.0, ge=0, description="Weight of a sample's divergence from the reference inside its reward.")
    kl: Literal["k3", "k2"] = Field("k3", description="Estimator of the divergence in the loss, weighted by segments.*.kl.")


class Rloo(Grpo):
    """REINFORCE leave-one-out; with more than one update its ratios are clipped as GRPO's are."""

    def __init__(self, options: RlooOptions) -> None:
        super().__init__(GrpoOptions(advantages=options.advantages, kl=options.kl))
        self.penalty = options.reward_kl
        self.needs_reference = options.reward_kl > 0

    def advantages(self, rewards: Tensor) -> Advantages:
        """Advantages: less the mean of the others, 0 where there are no others; from rewards ``[P, N, M]``."""
        rewards = torch.where(rewards.isfinite(), rewards.detach().double(), torch.nan)
        flat = rewards.flatten(1) if self.options.advantages == "joint" else rewards
        return Advantages(plan=left_out(rewards.nanmean(-1)), image=left_out(flat).view_as(rewards))

    def estimate(self, seen: Experience, critic: nn.Module | None, total: Callable[[Tensor], Tensor]) -> Estimates:
        """The advantages of rewards less what each sample's divergence from the reference costs."""
        rewards = seen.rewards.double()
        if self.needs_reference:
            nats = {name: apart.sum(1) for name, apart in log_ratios(seen).items()}
            cost = torch.zeros(rewards.numel(), dtype=torch.float64)
            cost[seen.place] += nats.get(IMAGE, torch.zeros(len(seen.place)))
            rewards = rewards - self.penalty * cost.view(rewards.shape)
            rewards = rewards - self.penalty * nats[PLAN].view(*rewards.shape[:2], 1) if PLAN in nats else rewards
        advantages = self.advantages(rewards)
        return Estimates({PLAN: advantages.plan.flatten(), IMAGE: advantages.image.flatten()[seen.place]})


def left_out(rewards: Tensor) -> Tensor:
    """Each reward of ``[..., S]`` less the mean of the others that are known; 0 where it is unknown or alone."""
    known = rewards.isfinite()
    others = (known.sum(-1, keepdim=True) - 1).clamp_min(1)
    filled = rewards.nan_to_num()
    gap = filled - (filled.sum(-1, keepdim=True) - filled) / others
    return torch.where(known & (known.sum(-1, keepdim=True) > 1), gap, 0.0)
