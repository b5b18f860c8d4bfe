"""RLOO: REINFORCE with a leave-one-out baseline (arXiv 2402.14740, eq. 7), and the divergence inside the reward.

Each sample is compared with the mean of the prompt's other samples. With `joint` advantages a picture is compared with all other
pictures of its prompt, with `split` only with those of its own plan. A plan is always compared with the other plans, by the mean of its
pictures: rewards of its own pictures are no baseline for it.
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
from gotr1_rl.value import log_ratios_to_reference


class RlooOptions(BaseModel):
    """Options of `rloo`. The segments' settings apply too."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    advantages: Literal["joint", "split"] = Field(
        "joint", description="Compare a picture with all pictures of its prompt, or with those of its plan."
    )
    reward_kl: float = Field(0.0, ge=0, description="Weight of a sample's divergence from the reference inside its reward.")
    kl: Literal["k3", "k2"] = Field("k3", description="Estimator of the divergence in the loss, weighted by segments.*.kl.")


class Rloo(Grpo):
    """REINFORCE leave-one-out. With more than one update per step its ratios are clipped like GRPO's."""

    def __init__(self, options: RlooOptions) -> None:
        super().__init__(GrpoOptions(advantages=options.advantages, kl=options.kl))
        self.penalty = options.reward_kl
        self.needs_reference = options.reward_kl > 0

    def advantages(self, rewards: Tensor) -> Advantages:
        """Rewards ``[P, N, M]`` minus the mean of the others; 0 where there are no others."""
        rewards = torch.where(rewards.isfinite(), rewards.detach().double(), torch.nan)
        flat = rewards.flatten(1) if self.options.advantages == "joint" else rewards
        return Advantages(plan=leave_one_out(rewards.nanmean(-1)), image=leave_one_out(flat).view_as(rewards))

    def estimate(self, experience: Experience, critic: nn.Module | None, total: Callable[[Tensor], Tensor]) -> Estimates:
        """Advantages ``[B]`` of rewards minus ``reward_kl`` times each sample's divergence from the reference, in nats."""
        rewards = experience.rewards.double()
        if self.needs_reference:
            nats = {name: log_ratio.sum(1) for name, log_ratio in log_ratios_to_reference(experience).items()}
            cost = torch.zeros(rewards.numel(), dtype=torch.float64)
            cost[experience.place] += nats.get(IMAGE, torch.zeros(len(experience.place)))
            rewards = rewards - self.penalty * cost.view(rewards.shape)
            rewards = rewards - self.penalty * nats[PLAN].view(*rewards.shape[:2], 1) if PLAN in nats else rewards
        advantages = self.advantages(rewards)
        return Estimates({PLAN: advantages.plan.flatten(), IMAGE: advantages.image.flatten()[experience.place]})


def leave_one_out(rewards: Tensor) -> Tensor:
    """Each reward of ``[..., S]`` minus the mean of the other known ones; 0 where it is unknown or the only one."""
    known = rewards.isfinite()
    others = (known.sum(-1, keepdim=True) - 1).clamp_min(1)
    filled = rewards.nan_to_num()
    gap = filled - (filled.sum(-1, keepdim=True) - filled) / others
    return torch.where(known & (known.sum(-1, keepdim=True) > 1), gap, 0.0)
