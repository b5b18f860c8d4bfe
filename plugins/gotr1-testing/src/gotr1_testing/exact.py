"""An algorithm on the policy that can be enumerated: its update's gradient, and what that gradient is expected to be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from gotr1_core.batch import Batch
from gotr1_core.chain import parse
from gotr1_core.config.models import OptimizerConfig, SegmentConfig
from gotr1_core.engine.critic import make_critic
from gotr1_core.engine.metrics import Clock
from gotr1_core.protocols import RLAlgorithm
from gotr1_core.reference import Reference
from gotr1_core.samples import IMAGE, PLAN, Prompt, Rollout, Sample, Sampling, SegmentName
from gotr1_core.sampling import seed_for
from gotr1_core.update import Learner, update
from gotr1_testing.enumerable import TinyPolicy, groups, perfect
from gotr1_testing.subject import PROMPTS
from gotr1_testing.updates import run_config

Gradient = dict[str, Tensor]
PICTURES = 2  # of a plan, so that algorithms that compare siblings have some


def gradient(
    algorithm: RLAlgorithm,
    policy: TinyPolicy,
    batch: Batch,
    segments: Mapping[SegmentName, SegmentConfig],
    *,
    reference: Reference | None = None,
    **config: Any,
) -> tuple[Gradient, dict[str, float]]:
    """What one update would subtract from each parameter at rate 1, and its statistics. The policy is left as it was."""
    module, accelerator = policy.module, Accelerator(cpu=True)
    taught: Any = policy  # whose module is of a class of its own, which a mutable attribute of a protocol may not be
    settings = OptimizerConfig(learning_rate=1.0, schedule="constant", max_grad_norm=1e30)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    torch.manual_seed(0)  # of a critic's weights
    critic = make_critic(torch.device("cpu"), algorithm, "planner", taught, optimizer, settings)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    reference = reference or (Reference(module) if getattr(algorithm, "needs_reference", False) else None)
    learner = Learner(taught, module, optimizer, settings, segments, reference, critic=critic)
    learner.updates = critic.warmup if critic else 0  # past a warm-up in which the policy does not learn
    statistics = update(accelerator, learner, algorithm, batch, algorithm.advantages(batch.rewards), run_config(**config), Clock())
    with torch.no_grad():
        found = {name: before[name] - p for name, p in module.named_parameters()}
        for name, parameter in module.named_parameters():
            parameter.copy_(before[name])
    return found, statistics


def flat(found: Mapping[str, Tensor]) -> Tensor:
    """A gradient as one vector."""
    return torch.cat([g.flatten() for g in found.values()])


def apart(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """The distance of two gradients, as a share of the larger one; 0 where both are 0."""
    size = max(flat(one).norm().item(), flat(other).norm().item())
    return (flat(one) - flat(other)).norm().item() / size if size else 0.0


def tree(policy: TinyPolicy, *, prompts: int = 3, plans: int = 4) -> Batch:
    """Plans of several prompts with two pictures each; rewards are to be given."""
    asked = [p for p in PROMPTS[:prompts] for _ in range(plans)]
    sampling = Sampling(guidance_scale=3.0, max_chain_tokens=2)
    planned = policy.plan(asked, seeds=[seed_for("plan", i) for i in range(len(asked))], sampling=sampling)
    rows = torch.arange(len(asked)).repeat_interleave(PICTURES)
    seeds = [seed_for("image", i) for i in range(len(rows))]
    drawn = policy.render([asked[r] for r in rows], [planned.chains[r] for r in rows], seeds=seeds, sampling=sampling)
    drawn = Rollout(IMAGE, sampling, {**drawn.tensors, "parent": rows}, images=drawn.images)
    return _batch(planned, drawn, torch.zeros(prompts, plans, PICTURES))


def rewarded(batch: Batch, rewards: Tensor) -> Batch:
    """The batch with other total rewards ``[P, N, M]``."""
    return _batch(batch.plans, batch.images, rewards)


def _batch(plans: Rollout, images: Rollout | None, rewards: Tensor) -> Batch:
    prompt, chain = Prompt(""), parse("")
    samples = tuple(Sample(prompt, chain, None, reward=t) for t in rewards.flatten().tolist())
    place = torch.arange(rewards.numel() if images is not None else 0)
    return Batch((prompt,) * len(rewards), plans, images, place, samples, rewards.double())


def some_totals(prompts: int = 3, plans: int = 4) -> Tensor:
    """Rewards in [0,1] that differ, also between pictures of a plan."""
    return torch.rand(prompts, plans, PICTURES, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


# -- expectations -----------------------------------------------------------------------------------------------------------

REWARDS = torch.tensor([[0.2, 0.1, 0.4], [1.0, 0.3, 0.0], [0.6, 0.2, 0.5]], dtype=torch.float64)
"""Of a sequence by its two symbols; one that has ended after the first has the second 0."""


@dataclass(frozen=True)
class Expectation:
    """What an estimator gives on average beside the gradient of the expected reward: ``factor`` times it, ``turn`` = 1 - cosine."""

    factor: float
    turn: float
    size: float


def expected(algorithm: RLAlgorithm, size: int, *, ends: bool) -> Expectation:
    """The expectation over groups of ``size``, without any error of chance, against the exact gradient of E[reward]."""
    policy, plans = perfect(ends=ends)
    rows = groups(plans, size)
    tokens = plans.tensors["tokens"][rows.flatten()]
    rewards = REWARDS[tokens[:, 0], tokens[:, 1]].view(-1, size, 1).expand(-1, -1, PICTURES)
    batch = _batch(plans.rows(rows.flatten()), None, rewards)
    found, _ = gradient(algorithm, policy, batch, {PLAN: SegmentConfig()})
    count = float(algorithm.count(batch.plans.tensors["mask"])) / rows.numel()  # actions of a sequence, or one
    estimate, exact = -flat(found) * count, flat(exact_gradient(policy, plans))
    inner, length = (estimate @ exact).item(), exact.norm().item()
    norm = estimate.norm().item()
    return Expectation(inner / length**2, 1 - inner / (length * norm) if norm else float("nan"), norm / length)


def exact_gradient(policy: TinyPolicy, plans: Rollout) -> Gradient:
    """Of the expected reward: the sum over sequences of reward times the gradient of the probability."""
    tokens, mask = plans.tensors["tokens"], plans.tensors["mask"]

    def value() -> Tensor:
        log_prob = torch.where(mask, policy.module.score(plans).log_prob, 0.0).sum(1)
        # Each of the sixteen rows stands for a sixteenth at the start, whatever it is now.
        return ((log_prob - log_prob.detach()).exp() * REWARDS[tokens[:, 0], tokens[:, 1]]).mean()

    return _gradient(policy, value)


def divergence_gradients(policy: TinyPolicy, plans: Rollout, reference: Reference) -> dict[str, Gradient]:
    """Of the divergence of each action's distribution, summed over actions of the plans, in either direction."""
    with reference.active():
        there = _distributions(policy, plans)

    def forward() -> Tensor:
        here = _distributions(policy, plans)
        return (here.exp() * (here - there)).sum(-1)[plans.tensors["mask"]].sum()

    def backward() -> Tensor:
        return (there.exp() * (there - _distributions(policy, plans))).sum(-1)[plans.tensors["mask"]].sum()

    return {"KL(policy, reference)": _gradient(policy, forward), "KL(reference, policy)": _gradient(policy, backward)}


def _distributions(policy: TinyPolicy, plans: Rollout) -> Tensor:
    """Log-probabilities ``[B, 2, 3]`` of every symbol."""
    every = []
    for symbol in range(REWARDS.shape[0]):
        tensors = {**plans.tensors, "tokens": torch.stack([plans.tensors["tokens"][:, 0], torch.full((len(plans),), symbol)], 1)}
        second = policy.module.score(Rollout(PLAN, plans.sampling, tensors)).log_prob[:, 1]
        tensors = {**plans.tensors, "tokens": torch.full((len(plans), 2), symbol)}
        every.append(torch.stack([policy.module.score(Rollout(PLAN, plans.sampling, tensors)).log_prob[:, 0], second], 1))
    return torch.stack(every, -1)


def _gradient(policy: TinyPolicy, value: Callable[[], Tensor]) -> Gradient:
    named = dict(policy.module.named_parameters())
    found = torch.autograd.grad(value(), list(named.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(named, found, strict=True))
