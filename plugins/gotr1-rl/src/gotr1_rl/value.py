"""Values of states: the head that estimates them, generalized advantage estimation, the clipped loss; and numbers over a whole step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from gotr1_core.protocols import Experience
from gotr1_core.samples import SegmentName

EPS: Final = 1e-8
"""Added to the deviation that whitening divides by: it matters where all advantages are equal, and then they are 0."""


class ValueHead(nn.Module):
    """Features ``[K, H]`` to values ``[K]``, in float32 whatever the policy computes in.

    Features are normalised first: their size differs by orders of magnitude between models, and a learning rate should not. The last
    layer begins at zero but for its bias: before anything is learnt every value is ``start``. ``adapted`` is by how much the KL penalty's
    weight has changed; it is here so that a checkpoint has it.
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
        with torch.autocast(features.device.type, enabled=False):
            values: Tensor = self.layers(features.to(next(self.parameters()).dtype)).squeeze(-1)
        return values


@dataclass(frozen=True)
class After:
    """What comes after the last action of a row: reward still to be paid for it, and value and advantage of the next action; ``[B]``."""

    reward: Tensor
    value: Tensor
    advantage: Tensor


def end(reward: Tensor) -> After:
    """An episode's end, where ``reward [B]`` is paid."""
    return After(reward, torch.zeros_like(reward), torch.zeros_like(reward))


def gae(rewards: Tensor, values: Tensor, mask: Tensor, after: After, discount: float, decay: float) -> tuple[Tensor, After]:
    """Generalized advantage estimation (arXiv 1506.02438, eq. 16) over the masked actions of ``[B, T]``, from the last to the first.

    A_t = d_t + discount * decay * A_(t+1) with d_t = r_t + discount * V_(t+1) - V_t, t counting masked actions only. Returns the
    advantages, 0 where there is no action, and what comes before the rows: the ``after`` of whatever precedes them in its episode.
    """
    advantages = torch.zeros_like(values)
    for t in reversed(range(values.shape[1])):
        acts, value = mask[:, t], values[:, t]
        surprise = rewards[:, t] + after.reward + discount * after.value - value
        advantage = surprise + discount * decay * after.advantage
        advantages[:, t] = torch.where(acts, advantage, 0.0)
        paid = torch.zeros_like(after.reward)
        after = After(*(torch.where(acts, new, old) for new, old in zip((paid, value, advantage), vars(after).values(), strict=True)))
    return advantages, after


def value_loss(values: Tensor, old: Tensor, returns: Tensor, clip: float | None) -> tuple[Tensor, Tensor]:
    """Half the squared error per value, and whether the clip held its gradient back.

    Clipped as in PPO's own implementation (github.com/openai/baselines, ppo2): the larger of the errors of the value and of the value
    kept within ``clip`` of what it was before the update.
    """
    free = (values - returns).square()
    if clip is None:
        return free / 2, torch.zeros_like(free, dtype=torch.bool)
    kept = (old + (values - old).clamp(-clip, clip) - returns).square()
    return torch.maximum(free, kept) / 2, kept > free


def log_ratios(seen: Experience) -> dict[SegmentName, Tensor]:
    """log p - log p_ref of every action ``[B, T]``, 0 where none counts: summed over a sample, an estimate of its divergence in nats."""
    assert seen.reference is not None
    return {name: torch.where(mask, seen.old[name] - seen.reference[name], 0.0) for name, mask in seen.masks.items()}


def whiten(advantages: Tensor, counted: Tensor, total: Callable[[Tensor], Tensor]) -> Tensor:
    """Mean 0 and deviation 1 over the counted entries of all processes."""
    number, mean, std = moments(advantages, counted, total)
    return (advantages - mean) / (std + EPS) if number else advantages


def moments(x: Tensor, counted: Tensor, total: Callable[[Tensor], Tensor]) -> tuple[float, float, float]:
    """Number, mean and deviation (of the population) of the counted entries of all processes; two passes, so that nothing cancels."""
    mine = x[counted].double()
    number, summed = total(torch.stack([torch.tensor(float(len(mine)), dtype=torch.float64), mine.sum()])).tolist()
    mean = summed / max(1.0, number)
    variance = total((mine - mean).square().sum()).item() / max(1.0, number)
    return number, mean, variance**0.5
