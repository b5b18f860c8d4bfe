"""The smallest algorithm: each reward is compared with the mean of its prompt's rewards; ratios are clipped as in PPO."""

from collections.abc import Iterator

import torch
from torch import Tensor

from gotr1_core import ActionStats, Advantages, Component, Loss, hookimpl
from gotr1_core.advantages import joint
from gotr1_core.config.models import SegmentConfig as Settings


class Smallest:
    def __init__(self, options: None) -> None:
        pass

    def advantages(self, rewards: Tensor) -> Advantages:
        return joint(rewards, scale=False)

    def count(self, mask: Tensor) -> Tensor:
        return mask.sum()

    def loss(
        self, segment: str, stats: ActionStats, old: Tensor, reference: Tensor | None, advantages: Tensor, mask: Tensor, settings: Settings
    ) -> Loss:
        ratio = torch.where(mask, stats.log_prob - old, 0.0).exp()
        weight = advantages.unsqueeze(1).to(ratio.dtype)
        gain = torch.minimum(ratio * weight, ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high) * weight)
        gain = gain + settings.entropy * stats.entropy
        if reference is not None:
            gain = gain - settings.kl * torch.where(mask, stats.log_prob - reference, 0.0).square() / 2
        return Loss({segment: -torch.where(mask, gain, 0.0).sum()}, {segment: self.count(mask)})


@hookimpl
def gotr1_components() -> Iterator[Component]:
    yield Component("algorithm", "smallest", f"{__name__}:Smallest", summary="a clipped policy gradient against the group's mean")
