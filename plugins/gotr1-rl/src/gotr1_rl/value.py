"""What PPO needs for values: the head that estimates them, advantage estimation, the clipped loss, and sums over a whole step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from gotr1_core.protocols import Experience
from gotr1_core.samples import SegmentName

EPS: Final = 1e-8
"""Added to the standard deviation that whitening divides by. It matters where all advantages are equal, and then they become 0."""


class ValueHead(nn.Module):
    """Features ``[K, H]`` to values ``[K]``, in float32 whatever the policy computes in.

    Features are normalised first: their size differs by orders of magnitude between models, but the learning rate should not have to.
    The last layer starts at zero except its bias, so every value is ``start`` before anything is learnt. The buffer ``adapted`` is the
    factor by which the weight of the KL penalty has changed. It is here so that checkpoints contain it.
    """

    adapted: Tensor

    def __init__(self, features: int, width: int, start: float = 0.0) -> None:
        super().__init__()
        hidden = [nn.Linear(features, width), nn.SiLU()] if width else []
        last = nn.Linear(width or features, 1)
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, start)
        self.layers = nn.Sequential(nn.LayerNorm(features, elementwise_affine=False), *hidden, last)
        self.register_buffer("adapted", torch.ones(()))

    def forward(self, features: Tensor) -> Tensor:
        """Values ``[K]`` of states with features ``[K, H]``."""
        with torch.autocast(features.device.type, enabled=False):
            values: Tensor = self.layers(features.to(next(self.parameters()).dtype)).squeeze(-1)
        return values


@dataclass(frozen=True)
class RowEnd:
    """What follows the last action of each row.

    Attributes:
        reward: ``[B]``, reward that is still to be paid for the last action.
        value: ``[B]``, value of the state before the next action.
        advantage: ``[B]``, advantage of the next action.
    """

    reward: Tensor
    value: Tensor
    advantage: Tensor


def episode_end(reward: Tensor) -> RowEnd:
    """What follows the last action of an episode: the terminal ``reward [B]``, then nothing."""
    return RowEnd(reward, torch.zeros_like(reward), torch.zeros_like(reward))


def gae(rewards: Tensor, values: Tensor, mask: Tensor, after: RowEnd, discount: float, decay: float) -> tuple[Tensor, RowEnd]:
    """Generalized advantage estimation (arXiv 1506.02438, eq. 16) over the masked actions of ``[B, T]``, from the last to the first.

    A_t = δ_t + γ λ A_(t+1) with δ_t = r_t + γ V_(t+1) - V_t, where t counts masked actions only.

    Args:
        rewards, values: r and V, ``[B, T]``.
        mask: bool ``[B, T]``, the actions.
        after: what follows each row.
        discount, decay: γ and λ.

    Returns:
        Advantages ``[B, T]``, 0 where there is no action, and the row end of whatever precedes the rows in their episodes.
    """
    advantages = torch.zeros_like(values)
    for t in reversed(range(values.shape[1])):
        acts, value = mask[:, t], values[:, t]
        delta = rewards[:, t] + after.reward + discount * after.value - value
        advantage = delta + discount * decay * after.advantage
        advantages[:, t] = torch.where(acts, advantage, 0.0)
        paid = torch.zeros_like(after.reward)
        pairs = zip((paid, value, advantage), vars(after).values(), strict=True)
        after = RowEnd(*(torch.where(acts, new, old) for new, old in pairs))
    return advantages, after


def value_loss(values: Tensor, old: Tensor, returns: Tensor, clip: float | None) -> tuple[Tensor, Tensor]:
    """Half the squared error of each value, and true where the clip held its gradient back.

    Clipped as in the PPO implementation of its authors (github.com/openai/baselines, ppo2): the larger of two errors, of the value and of
    the value kept within ``clip`` of ``old``.

    Args:
        values, old, returns: ``[K]``; ``old`` are the values before the update.
        clip: None does not clip.
    """
    free = (values - returns).square()
    if clip is None:
        return free / 2, torch.zeros_like(free, dtype=torch.bool)
    clipped = (old + (values - old).clamp(-clip, clip) - returns).square()
    return torch.maximum(free, clipped) / 2, clipped > free


def log_ratios_to_reference(experience: Experience) -> dict[SegmentName, Tensor]:
    """log p - log p_ref of every action ``[B, T]``, 0 where the mask is false. Its sum over a sample estimates the divergence in nats."""
    reference = experience.reference
    assert reference is not None
    return {name: torch.where(mask, experience.old[name] - reference[name], 0.0) for name, mask in experience.masks.items()}


def whiten(advantages: Tensor, counted: Tensor, total: Callable[[Tensor], Tensor]) -> Tensor:
    """Advantages ``[B, T]`` with mean 0 and standard deviation 1 over the counted entries of all processes.

    ``counted`` is a bool mask of the same shape; ``total`` sums a tensor over processes.
    """
    number, mean, std = moments(advantages, counted, total)
    return (advantages - mean) / (std + EPS) if number else advantages


def moments(x: Tensor, counted: Tensor, total: Callable[[Tensor], Tensor]) -> tuple[float, float, float]:
    """Number, mean and standard deviation (of the population) of the counted entries ``[B, T]`` of all processes.

    ``total`` sums a tensor over processes. There are two passes, so that no digits cancel.
    """
    local = x[counted].double()
    number, summed = total(torch.stack([torch.tensor(float(len(local)), dtype=torch.float64), local.sum()])).tolist()
    mean = summed / max(1.0, number)
    variance = total((local - mean).square().sum()).item() / max(1.0, number)
    return number, mean, variance**0.5
