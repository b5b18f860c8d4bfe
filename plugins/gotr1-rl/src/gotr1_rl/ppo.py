"""PPO: a clipped surrogate (arXiv 1707.06347) with advantages from learnt values by generalized advantage estimation (1506.02438).

An action is one token. The reward is paid at the end of an episode. With `joint` advantages an episode runs from the first token of the
plan to the last of the picture. A plan with M pictures is then in M episodes, and its tokens get the mean. With `split` the plan's
episode ends with the plan, where the mean of its pictures' rewards is paid.

Two things differ from the papers. Values come from a head on the policy's features, and no gradient flows back through these features.
Advantages are whitened over a step by segment, as losses are means by segment.
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
from gotr1_rl.value import EPS, RowEnd, ValueHead, episode_end, gae, log_ratios_to_reference, moments, value_loss, whiten

STEP: Final = 0.1
"""How fast the adaptive penalty follows: one step changes it by at most 0.2 * STEP of itself (arXiv 1909.08593, section 2.2)."""


class PpoOptions(BaseModel):
    """Options of `ppo`. Those of a paper name it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    advantages: Literal["joint", "split"] = Field("joint", description="One episode of plan and picture, or one for each.")
    discount: float = Field(
        1.0, gt=0, le=1, description="γ: factor of a reward that comes one action later; 1 because the reward is terminal."
    )
    decay: float = Field(
        1.0, ge=0, le=1, description="λ of advantage estimation (arXiv 1506.02438); lower values trust the value head more."
    )
    whiten: bool = Field(
        True, description="Give the advantages of a segment mean 0 and standard deviation 1, over the step and all processes."
    )
    kl: Literal["k3", "k2"] = Field("k3", description="Estimator of the divergence in the loss, weighted by segments.*.kl.")
    reward_kl: float = Field(0.0, ge=0, description="Weight of the divergence inside the reward, paid at every action (arXiv 1909.08593).")
    reward_kl_target: float | None = Field(
        None, gt=0, description="Divergence in nats per sample that the weight is adapted to keep; without it the weight is fixed."
    )
    value_learning_rate: float = Field(1e-3, gt=0, description="Peak learning rate of the value head; its schedule is the policy's.")
    value_width: int = Field(256, ge=0, description="Hidden units of the value head; 0 makes it linear.")
    value_start: float = Field(0.5, description="Every value before anything is learnt; 0.5 is the middle of the possible rewards.")
    value_clip: float | None = Field(0.2, gt=0, description="How far a value may move in one step's updates; null sets no limit.")
    value_max_grad_norm: float = Field(1.0, gt=0, allow_inf_nan=True, description="Limit of the value head's gradient norm.")
    value_warmup: int = Field(0, ge=0, description="Number of first steps in which the value head learns and the policy does not.")

    @model_validator(mode="after")
    def _check_target(self) -> Self:
        if self.reward_kl_target is not None and not self.reward_kl:
            raise ValueError("reward_kl_target adapts reward_kl by factors, so reward_kl must start above 0")
        return self


class Ppo:
    """Proximal policy optimization with a value head on the policy's features."""

    def __init__(self, options: PpoOptions) -> None:
        self.options = options
        self.needs_reference = options.reward_kl > 0
        self._actor = Grpo(GrpoOptions(kl=options.kl))

    def advantages(self, rewards: Tensor) -> Advantages:
        """Rewards ``[P, N, M]`` themselves, 0 where unknown: the advantages if all values were 0. A group needs no second sample."""
        return Advantages(plan=_plan_means(rewards).nan_to_num(), image=_finite_or_nan(rewards).nan_to_num())

    def count(self, mask: Tensor) -> Tensor:
        """The number of actions, a scalar, from the mask ``[B, T]``."""
        return mask.sum()

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
        """GRPO's loss with token ratios, which is PPO's; advantages are ``[B, T]``."""
        return self._actor.loss(segment, stats, old, reference, advantages, mask, settings)

    # -- values -------------------------------------------------------------------------------------------------------------

    def critic(self, width: int) -> Critic:
        """A value head for features of ``width`` numbers."""
        o = self.options
        return Critic(ValueHead(width, o.value_width, o.value_start), o.value_learning_rate, o.value_max_grad_norm, o.value_warmup)

    def value_loss(self, values: Tensor, old: Tensor, returns: Tensor) -> tuple[Tensor, Mapping[str, tuple[Tensor, Tensor]]]:
        """Half the squared error, clipped, summed over values ``[K]``."""
        errors, clipped = value_loss(values, old, returns, self.options.value_clip)
        number = torch.tensor(len(values))
        return errors.sum(), {"value_loss": (errors.detach().sum(), number), "value_clipped": (clipped.sum(), number)}

    def estimate(self, experience: Experience, critic: nn.Module | None, total: Callable[[Tensor], Tensor]) -> Estimates:
        """Advantages and returns ``[B, T]`` of every action of the step."""
        assert isinstance(critic, ValueHead)
        assert experience.values is not None
        paid = self._rewards_of_actions(experience, self.options.reward_kl * critic.adapted.item())
        advantages = self._advantages_of_actions(experience, paid)
        known = {
            PLAN: _plan_means(experience.rewards).flatten().isfinite(),
            IMAGE: _finite_or_nan(experience.rewards).flatten().isfinite()[experience.place],
        }
        counted = {name: mask & known[name].unsqueeze(1) for name, mask in experience.masks.items()}
        returns = {name: torch.where(counted[name], a + experience.values[name], torch.nan) for name, a in advantages.items()}
        statistics = self._adapt_penalty(experience, critic, total)
        for name, values in experience.values.items():
            fit = _value_fit(returns[name], values, counted[name], total)
            statistics |= {f"{name}.{key}": pair for key, pair in fit.items()}
        if self.options.whiten:
            advantages = {name: whiten(a, counted[name], total) for name, a in advantages.items()}
        return Estimates({name: torch.where(counted[name], a, 0.0) for name, a in advantages.items()}, returns, statistics)

    def _rewards_of_actions(self, experience: Experience, penalty: float) -> dict[SegmentName, Tensor]:
        """What is paid at every action ``[B, T]``: minus ``penalty`` times the log-ratio to the reference."""
        if not penalty:
            return {name: torch.zeros_like(old) for name, old in experience.old.items()}
        return {name: -penalty * log_ratio for name, log_ratio in log_ratios_to_reference(experience).items()}

    def _advantages_of_actions(self, experience: Experience, paid: Mapping[SegmentName, Tensor]) -> dict[SegmentName, Tensor]:
        """Advantages ``[B, T]``, pictures first: with `joint` advantages the first action of a picture follows the last of its plan."""
        assert experience.values is not None
        advantages: dict[SegmentName, Tensor] = {}
        rewards = _finite_or_nan(experience.rewards)
        after_plan = episode_end(_plan_means(rewards).flatten().nan_to_num())
        factors = self.options.discount, self.options.decay
        masks, values = experience.masks, experience.values
        if len(masks.get(IMAGE, ())):
            image = rewards.flatten()[experience.place]
            advantages[IMAGE], start = gae(paid[IMAGE], values[IMAGE], masks[IMAGE], episode_end(image.nan_to_num()), *factors)
            if self.options.advantages == "joint":
                after_plan = _mean_over_pictures(start, experience.place // rewards.shape[2], image.isfinite(), after_plan)
        if len(masks.get(PLAN, ())):
            advantages[PLAN], _ = gae(paid[PLAN], values[PLAN], masks[PLAN], after_plan, *factors)
        return {name: advantages.get(name, torch.zeros_like(v)) for name, v in values.items()}

    def _adapt_penalty(
        self, experience: Experience, critic: ValueHead, total: Callable[[Tensor], Tensor]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Adapts the penalty's weight for the next step to this step's divergence (arXiv 1909.08593, section 2.2)."""
        if not self.needs_reference:
            return {}
        log_ratios = log_ratios_to_reference(experience)
        local = [n for name in experience.masks for n in (log_ratios[name].sum().item(), len(log_ratios[name]))]
        summed = total(torch.tensor(local, dtype=torch.float64))  # by segment: nats, rows
        nats = (summed[0::2] / summed[1::2].clamp_min(1)).sum()
        weight = torch.tensor(self.options.reward_kl * critic.adapted.item(), dtype=torch.float64)
        if self.options.reward_kl_target is not None and nats.isfinite():
            critic.adapted.mul_(1 + STEP * (nats / self.options.reward_kl_target - 1).clamp(-0.2, 0.2).item())
        once = torch.ones(())
        return {"reward_kl": (nats, once), "reward_kl_weight": (weight, once)}


def _value_fit(returns: Tensor, values: Tensor, counted: Tensor, total: Callable[[Tensor], Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """How well the values predict the returns: explained variance 1 is perfect, 0 is as good as the best constant."""
    number, mean_return, std = moments(returns, counted, total)
    _, mean_value, _ = moments(values, counted, total)
    *_, error = moments(returns - values, counted, total)
    metrics = {"return": mean_return, "value": mean_value} if number else {}
    metrics |= {"explained_variance": 1 - (error / std) ** 2} if std > EPS else {}
    return {name: (torch.tensor(x, dtype=torch.float64), torch.ones(())) for name, x in metrics.items()}


def _finite_or_nan(rewards: Tensor) -> Tensor:
    """Rewards in float64, NaN where they are not finite."""
    rewards = rewards.detach().double()
    return rewards.where(rewards.isfinite(), torch.nan)


def _plan_means(rewards: Tensor) -> Tensor:
    """The mean of each plan's known rewards, ``[P, N]``; NaN where none is known."""
    return _finite_or_nan(rewards).nanmean(-1)


def _mean_over_pictures(start: RowEnd, plan_of: Tensor, known: Tensor, without: RowEnd) -> RowEnd:
    """The mean over each plan's pictures of known reward.

    ``plan_of [K]`` is the plan of each picture. ``without`` is for plans without such pictures (pruned: their reward is settled).
    """
    plans = len(without.reward)
    count = torch.zeros(plans, dtype=torch.float64).index_add(0, plan_of, known.double())

    def mean(of_pictures: Tensor, of_plans: Tensor) -> Tensor:
        summed = torch.zeros(plans, dtype=torch.float64).index_add(0, plan_of, torch.where(known, of_pictures, 0.0))
        return torch.where(count > 0, summed / count.clamp_min(1), of_plans)

    return RowEnd(*(mean(a, b) for a, b in zip(vars(start).values(), vars(without).values(), strict=True)))
