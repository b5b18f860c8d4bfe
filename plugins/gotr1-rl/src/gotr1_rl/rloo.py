"""RLOO: REINFORCE, each sample compared with the mean of the prompt's others (arXiv 2402.14740, eq. 7), the divergence in the reward.

With `joint` credit a picture is compared with all other pictures of its prompt, with `split` with its siblings; a plan, by its mean, always
with the other plans, as what its own pictures earned is no baseline for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from gotr1_core.credit import Credit
from gotr1_core.protocols import Experience, Targets
from gotr1_core.samples import IMAGE, PLAN
from gotr1_rl.grpo import Grpo, GrpoOptions
from gotr1_rl.value import log_ratios


class RlooOptions(BaseModel):
    """Besides these, the segments' settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    credit: Literal["joint", "split"] = Field("joint", description="Pictures are compared with all of the prompt's, or with siblings.")
    reward_kl: float = Field(0.0, ge=0, description="Weight of a sample's divergence from the reference inside its reward.")
    kl: Literal["k3", "k2"] = Field("k3", description="Estimator of the divergence in the loss, weighted by segments.*.kl.")


class Rloo(Grpo):
    """REINFORCE leave-one-out; with more than one update its ratios are clipped as GRPO's are."""

    def __init__(self, options: RlooOptions) -> None:
        super().__init__(GrpoOptions(credit=options.credit, kl=options.kl))
        self.penalty = options.reward_kl
        self.needs_reference = options.reward_kl > 0

    def credit(self, totals: Tensor) -> Credit:
        """Advantages: less the mean of the others, 0 where there are no others; from totals ``[P, N, M]``."""
        totals = torch.where(totals.isfinite(), totals.detach().double(), torch.nan)
        flat = totals.flatten(1) if self.options.credit == "joint" else totals
        return Credit(plan=left_out(totals.nanmean(-1)), image=left_out(flat).view_as(totals))

    def assess(self, seen: Experience, critic: nn.Module | None, total: Callable[[Tensor], Tensor]) -> Targets:
        """The credit of totals less what each sample's divergence from the reference costs."""
        totals = seen.totals.double()
        if self.needs_reference:
            nats = {name: apart.sum(1) for name, apart in log_ratios(seen).items()}
            cost = torch.zeros(totals.numel(), dtype=torch.float64)
            cost[seen.place] += nats.get(IMAGE, torch.zeros(len(seen.place)))
            totals = totals - self.penalty * cost.view(totals.shape)
            totals = totals - self.penalty * nats[PLAN].view(*totals.shape[:2], 1) if PLAN in nats else totals
        credit = self.credit(totals)
        return Targets({PLAN: credit.plan.flatten(), IMAGE: credit.image.flatten()[seen.place]})


def left_out(rewards: Tensor) -> Tensor:
    """Each reward of ``[..., S]`` less the mean of the others that are known; 0 where it is unknown or alone."""
    known = rewards.isfinite()
    others = (known.sum(-1, keepdim=True) - 1).clamp_min(1)
    filled = rewards.nan_to_num()
    gap = filled - (filled.sum(-1, keepdim=True) - filled) / others
    return torch.where(known & (known.sum(-1, keepdim=True) > 1), gap, 0.0)
