"""PPO: a clipped surrogate with advantages from learnt values (arXiv 1707.06347), by generalized advantage estimation (1506.02438).

An action is one token. The reward is paid at the end of an episode. With `joint` advantages an episode runs from the first token of the
plan to the last of the picture. A plan with M pictures is then in M episodes, and its tokens get the mean. With `split` the plan's
episode ends with the plan, where the mean of its pictures' rewards is paid. What differs from the papers: values come from a head on the
policy's features that no gradient flows back through; advantages are whitened over a step by segment, as losses are means by segment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from gotr1_core.advantages import Advantages
from gotr1_core.config.models import SegmentConfig
from gotr1_core.protocols import Critic, Estimates, Experience, Loss
from gotr1_core.samples import IMAGE, PLAN, ActionStats, SegmentName
from gotr1_rl.grpo import Grpo, GrpoOptions
from gotr1_rl.value import EPS, After, ValueHead, end, gae, log_ratios, moments, value_loss, whiten

STEP: Final = 0.1
"""How fast the adaptive penalty follows: in one step by at most 0.2 * STEP of itself (arXiv 1909.08593, section 2.2)."""


class PpoOptions(BaseModel):
    """Each option names its paper."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    advantages: Literal["joint", "split"] = Field("joint", description="One episode of plan and picture, or one for each.")
    discount: float = Field(1.0, gt=0, le=1, description="γ: how much a reward one action later counts; 1 as the reward is terminal.")
    decay: float = Field(1.0, ge=0, le=1, description="λ of advantage estimation (arXiv 1506.02438); below 1 it trusts the values more.")
    whiten: bool = Field(True, description="Advantages of a segment get mean 0 and deviation 1 over the step and all processes.")
    kl: Literal["k3", "k2"] = Field("k3", description="Estimator of the divergence in the loss, weighted by segments.*.kl.")
    reward_kl: float = Field(0.0, ge=0, description="Weight of the divergence inside the reward, paid at every action (arXiv 1909.08593).")
    reward_kl_target: float | None = Field(
        None, gt=0, description="Nats per sample that the weight is adapted to keep; without it the weight is fixed."
    )
    value_learning_rate: float = Field(1e-3, gt=0, description="Peak learning rate of the value head; its schedule is the policy's.")
    value_width: int = Field(256, ge=0, description="Hidden units of the value head; 0 makes it linear.")
    value_start: float = Field(0.5, description="Every value before anything is learnt; the middle of what a reward can be.")
    value_clip: float | None = Field(0.2, gt=0, description="How far a value may move in a step's updates; null does not limit it.")
    value_max_grad_norm: float = Field(1.0, gt=0, description="Limit of the value head's gradient norm.")
    value_warmup: int = Field(0, ge=0, description="First steps, in which the value head learns and the policy does not.")

    @model_validator(mode="after")
    def _adapts_something(self) -> Self:
        if self.reward_kl_target is not None and not self.reward_kl:
            raise ValueError("reward_kl_target multiplies reward_kl, which has to begin above 0")
        return self


class Ppo:
    """Proximal policy optimization with a value head on the policy's features."""

    def __init__(self, options: PpoOptions) -> None:
        self.options = options
        self.needs_reference = options.reward_kl > 0
        self._actor = Grpo(GrpoOptions(kl=options.kl))

    def advantages(self, rewards: Tensor) -> Advantages:
        """What plans and pictures earn, 0 where unknown: their advantages were all values 0. A group needs no second sample."""
        return Advantages(plan=_known_mean(rewards).nan_to_num(), image=_known(rewards).nan_to_num())

    def count(self, mask: Tensor) -> Tensor:
        """Actions."""
        return mask.sum()

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
        """GRPO's with token ratios, which is PPO's; advantages ``[B, T]``."""
        return self._actor.loss(segment, scored, old, reference, advantages, mask, settings)

    # -- values -------------------------------------------------------------------------------------------------------------

    def critic(self, width: int) -> Critic:
        """A value head for features of ``width`` numbers."""
        o = self.options
        return Critic(ValueHead(width, o.value_width, o.value_start), o.value_learning_rate, o.value_max_grad_norm, o.value_warmup)

    def value_loss(self, values: Tensor, old: Tensor, returns: Tensor) -> tuple[Tensor, Mapping[str, tuple[Tensor, Tensor]]]:
        """Half the squared error, clipped, summed over values ``[K]``."""
        errors, held = value_loss(values, old, returns, self.options.value_clip)
        number = torch.tensor(len(values))
        return errors.sum(), {"value_loss": (errors.detach().sum(), number), "value_clipped": (held.sum(), number)}

    def estimate(self, seen: Experience, critic: nn.Module | None, total: Callable[[Tensor], Tensor]) -> Estimates:
        """Advantages and returns ``[B, T]`` of every action of the step."""
        assert isinstance(critic, ValueHead)
        assert seen.values is not None
        advantages = self._advantages(seen, self._rewards(seen, self.options.reward_kl * critic.adapted.item()))
        known = {PLAN: _known_mean(seen.rewards).flatten().isfinite(), IMAGE: _known(seen.rewards).flatten().isfinite()[seen.place]}
        counted = {name: mask & known[name].unsqueeze(1) for name, mask in seen.masks.items()}
        returns = {name: torch.where(counted[name], a + seen.values[name], torch.nan) for name, a in advantages.items()}
        statistics = self._penalty(seen, critic, total)
        for name, values in seen.values.items():
            statistics |= {f"{name}.{key}": pair for key, pair in _fit(returns[name], values, counted[name], total).items()}
        if self.options.whiten:
            advantages = {name: whiten(a, counted[name], total) for name, a in advantages.items()}
        return Estimates({name: torch.where(counted[name], a, 0.0) for name, a in advantages.items()}, returns, statistics)

    def _rewards(self, seen: Experience, penalty: float) -> dict[SegmentName, Tensor]:
        """What is paid at every action: minus the penalty, by the log-ratio to the reference."""
        if not penalty:
            return {name: torch.zeros_like(old) for name, old in seen.old.items()}
        return {name: -penalty * apart for name, apart in log_ratios(seen).items()}

    def _advantages(self, seen: Experience, paid: Mapping[SegmentName, Tensor]) -> dict[SegmentName, Tensor]:
        """Pictures first: what they are worth at their first action comes after the last action of the plan, with `joint` advantages."""
        assert seen.values is not None
        found: dict[SegmentName, Tensor] = {}
        rewards = _known(seen.rewards)
        after = end(_known_mean(rewards).flatten().nan_to_num())
        how = self.options.discount, self.options.decay
        if len(seen.masks.get(IMAGE, ())):
            image = rewards.flatten()[seen.place]
            found[IMAGE], start = gae(paid[IMAGE], seen.values[IMAGE], seen.masks[IMAGE], end(image.nan_to_num()), *how)
            if self.options.advantages == "joint":
                after = _mean_over_pictures(start, seen.place // rewards.shape[2], image.isfinite(), after)
        if len(seen.masks.get(PLAN, ())):
            found[PLAN], _ = gae(paid[PLAN], seen.values[PLAN], seen.masks[PLAN], after, *how)
        return {name: found.get(name, torch.zeros_like(values)) for name, values in seen.values.items()}

    def _penalty(self, seen: Experience, critic: ValueHead, total: Callable[[Tensor], Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """Adapts the penalty's weight to what the divergence was, for the next step (arXiv 1909.08593, section 2.2)."""
        if not self.needs_reference:
            return {}
        apart = log_ratios(seen)
        parts = total(torch.tensor([n for name in seen.masks for n in (apart[name].sum().item(), len(apart[name]))], dtype=torch.float64))
        nats = (parts[0::2] / parts[1::2].clamp_min(1)).sum()
        used = torch.tensor(self.options.reward_kl * critic.adapted.item(), dtype=torch.float64)
        if self.options.reward_kl_target is not None:
            critic.adapted.mul_(1 + STEP * (nats / self.options.reward_kl_target - 1).clamp(-0.2, 0.2).item())
        one = torch.ones(())
        return {"reward_kl": (nats, one), "reward_kl_weight": (used, one)}


def _fit(returns: Tensor, values: Tensor, counted: Tensor, total: Callable[[Tensor], Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """How good the values were: 1 is perfect, 0 as good as one constant."""
    number, mean, spread = moments(returns, counted, total)
    _, value, _ = moments(values, counted, total)
    *_, error = moments(returns - values, counted, total)
    found = {"return": mean, "value": value} if number else {}
    found |= {"explained_variance": 1 - (error / spread) ** 2} if spread > EPS else {}
    return {name: (torch.tensor(x, dtype=torch.float64), torch.ones(())) for name, x in found.items()}


def _known(rewards: Tensor) -> Tensor:
    """Totals in float64, those that could not be had NaN."""
    rewards = rewards.detach().double()
    return rewards.where(rewards.isfinite(), torch.nan)


def _known_mean(rewards: Tensor) -> Tensor:
    """A plan's mean over its pictures, ``[P, N]``; NaN where none is known."""
    return _known(rewards).nanmean(-1)


def _mean_over_pictures(start: After, parent: Tensor, known: Tensor, without: After) -> After:
    """The mean over each plan's known pictures; ``without`` for plans that have none (pruned: their reward is settled)."""
    plans = len(without.reward)
    count = torch.zeros(plans, dtype=torch.float64).index_add(0, parent, known.double())

    def mean(of: Tensor, other: Tensor) -> Tensor:
        summed = torch.zeros(plans, dtype=torch.float64).index_add(0, parent, torch.where(known, of, 0.0))
        return torch.where(count > 0, summed / count.clamp_min(1), other)

    return After(*(mean(a, b) for a, b in zip(vars(start).values(), vars(without).values(), strict=True)))
