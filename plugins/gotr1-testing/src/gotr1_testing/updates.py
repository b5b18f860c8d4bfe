"""Runs a training run's own update on what was drawn for a check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gotr1_core.advantages import Advantages
from gotr1_core.batch import Batch
from gotr1_core.border.algorithm_calls import call_advantages
from gotr1_core.chain import parse
from gotr1_core.config.models import OptimizerConfig, RunConfig, SegmentConfig
from gotr1_core.engine.collectives import make_accelerator
from gotr1_core.engine.metrics import Clock
from gotr1_core.engine.optim import make_optimizer
from gotr1_core.protocols import Loss, RLAlgorithm
from gotr1_core.reference import Reference
from gotr1_core.samples import IMAGE, PLAN, ActionStats, Prompt, Rollout, Sample, Sampling, SegmentName
from gotr1_core.update import Learner, update
from gotr1_testing.subject import Drawn, Subject


def update_config(**changes: Any) -> RunConfig:
    """A run's config for one update. Only what an update reads matters; the names of components are never looked up."""
    components = {"planner": "none", "renderer": "none", "judge": "none"}
    return RunConfig.model_validate({**components, "steps": 100, "micro_batch": 1_000_000, **changes})


class PolicyGradient:
    """The plainest algorithm that uses everything: centred rewards, importance ratios without a clip, the divergence (k3 or exact)."""

    def advantages(self, rewards: Tensor) -> Advantages:
        """Rewards ``[P, N, M]`` minus the mean of their prompt."""
        image = (rewards - rewards.flatten(1).mean(1)[:, None, None]).double()
        return Advantages(image.mean(-1), image)

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
        """-(ratio * advantage) + kl * k3, summed over the actions ``[B, T]``."""
        ratio = torch.where(mask, stats.log_prob - old, 0.0).exp()
        total = -(ratio * advantages.to(ratio.dtype).unsqueeze(1))[mask].sum()
        statistics = {}
        if reference is not None:
            gap = torch.where(mask, reference - stats.log_prob, 0.0)
            kl = gap.exp() - 1 - gap if stats.kl is None else torch.where(mask, stats.kl, 0.0)
            total = total + settings.kl * kl.sum()
            statistics["kl"] = (kl.detach().sum(), mask.sum())
        return Loss({segment: total}, {segment: mask.sum()}, statistics)


def batch_of(drawn: Drawn, rewards: Tensor) -> Batch:
    """The tree of a step from what was drawn, with ``rewards [P, N, 1]``. If pictures were drawn, there is one for each plan."""
    count = rewards.numel()
    pictures = drawn.rollout if drawn.rollout.segment == IMAGE else None
    plans = drawn.rollout if pictures is None else drawn.plans or _plans_without_actions(count, drawn)
    prompt, chain = Prompt(""), parse("")
    samples = tuple(Sample(prompt, chain, None, reward=float(t)) for t in rewards.flatten())
    place = torch.arange(count if pictures is not None else 0)
    return Batch((prompt,) * len(rewards), plans, pictures, place, samples, rewards)


def _plans_without_actions(count: int, drawn: Drawn) -> Rollout:
    """Plans that a renderer was given: nothing in them was sampled."""
    device = drawn.mask.device
    tensors = {"mask": torch.zeros(count, 1, dtype=torch.bool, device=device), "log_prob": torch.zeros(count, 1, device=device)}
    return Rollout(PLAN, Sampling(), tensors | {"truncated": torch.zeros(count, dtype=torch.bool, device=device)})


@dataclass
class UpdateSetup:
    """A policy with all that its updates need: a batch that it drew, rewards, a learner and an algorithm."""

    subject: Subject
    drawn: Drawn
    batch: Batch
    learner: Learner
    algorithm: RLAlgorithm
    config: RunConfig

    @classmethod
    def of(
        cls,
        subject: Subject,
        drawn: Drawn,
        segments: Mapping[SegmentName, SegmentConfig],
        *,
        algorithm: RLAlgorithm | None = None,
        rewards: Tensor | None = None,
        learning_rate: float = 1e-4,
    ) -> UpdateSetup:
        """Sets up updates of the subject's policy; its reference is the policy as it is now.

        Args:
            subject: the policy.
            drawn: what it drew.
            segments: the segments that train.
            algorithm: by default :class:`PolicyGradient`.
            rewards: ``[P, N, 1]``; by default 0 and 1 in turn.
            learning_rate: constant.
        """
        if rewards is None:
            rewards = (torch.arange(len(drawn.mask)) % 2).double().view(-1, subject.case.samples_per_prompt, 1)
        settings = OptimizerConfig(learning_rate=learning_rate, schedule="constant")
        optimizer = make_optimizer(subject.module, settings)
        reference = Reference(subject.module)
        learner = Learner(subject.policy, subject.module, optimizer, settings, segments, reference)
        return cls(subject, drawn, batch_of(drawn, rewards), learner, algorithm or PolicyGradient(), update_config())

    def update(self) -> dict[str, float]:
        """Makes one update and returns its statistics."""
        accelerator = make_accelerator("no", cpu=self.drawn.mask.device.type == "cpu")
        advantages = call_advantages(self.algorithm, self.batch.rewards)
        return update(accelerator, self.learner, self.algorithm, self.batch, advantages, self.config, Clock())
