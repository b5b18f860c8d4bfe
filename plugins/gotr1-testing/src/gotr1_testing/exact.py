"""An algorithm on the enumerable policy: the gradient of its update, and the exact expectation of that gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gotr1_core.batch import Batch
from gotr1_core.border.algorithm_calls import call_advantages, call_count
from gotr1_core.border.calls import call_plan, call_render
from gotr1_core.chain import parse
from gotr1_core.config.models import OptimizerConfig, SegmentConfig
from gotr1_core.engine.collectives import make_accelerator
from gotr1_core.engine.critic import make_critic
from gotr1_core.engine.metrics import Clock
from gotr1_core.protocols import RLAlgorithm, Stateful
from gotr1_core.reference import Reference
from gotr1_core.samples import IMAGE, PLAN, Prompt, Rollout, Sample, Sampling, SegmentName
from gotr1_core.sampling import seed_for
from gotr1_core.update import Learner, update
from gotr1_testing.enumerable import TinyPolicy, all_groups, exact_sample
from gotr1_testing.subject import PROMPTS
from gotr1_testing.updates import update_config

Gradient = dict[str, Tensor]
PICTURES = 2  # of each plan, so that algorithms that compare siblings have some


def update_gradient(
    algorithm: RLAlgorithm,
    policy: TinyPolicy,
    batch: Batch,
    segments: Mapping[SegmentName, SegmentConfig],
    *,
    reference: Reference | None = None,
    **config: Any,
) -> tuple[Gradient, dict[str, float]]:
    """What one update subtracts from each parameter at learning rate 1, and the update's statistics.

    The policy stays as it was, and so does the state of a stateful algorithm.

    Args:
        algorithm: computes advantages and loss.
        policy: its parameters are restored afterwards.
        batch: plans and pictures with their rewards.
        segments: the segments that train.
        reference: by default the policy itself, if the algorithm needs one.
        config: changes of the run's config.
    """
    with unchanged_state(algorithm):
        return one_update(algorithm, policy, batch, segments, reference=reference, **config)


@contextmanager
def unchanged_state(algorithm: RLAlgorithm) -> Iterator[None]:
    """Puts the state of a stateful algorithm back at the end of the block."""
    state = deepcopy(dict(algorithm.state_dict())) if isinstance(algorithm, Stateful) else {}
    yield
    if isinstance(algorithm, Stateful):
        algorithm.load_state_dict(state)


def one_update(
    algorithm: RLAlgorithm,
    policy: TinyPolicy,
    batch: Batch,
    segments: Mapping[SegmentName, SegmentConfig],
    *,
    reference: Reference | None = None,
    **config: Any,
) -> tuple[Gradient, dict[str, float]]:
    """The same as :func:`update_gradient`, but an algorithm that keeps state has changed afterwards."""
    module, accelerator = policy.module, make_accelerator("no", cpu=True)
    learning: Any = policy  # its module has a class of its own, which the mutable attribute of the protocol does not allow
    settings = OptimizerConfig(learning_rate=1.0, schedule="constant", max_grad_norm=1e30)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    torch.manual_seed(0)  # for a critic's weights
    critic = make_critic(torch.device("cpu"), algorithm, "planner", learning, optimizer, settings)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    reference = reference or (Reference(module) if getattr(algorithm, "needs_reference", False) else None)
    learner = Learner(learning, module, optimizer, settings, segments, reference, critic=critic)
    learner.updates = critic.warmup if critic else 0  # past a warm-up in which the policy does not learn
    advantages = call_advantages(algorithm, batch.rewards)
    statistics = update(accelerator, learner, algorithm, batch, advantages, update_config(**config), Clock())
    with torch.no_grad():
        gradient = {name: before[name] - p for name, p in module.named_parameters()}
        for name, parameter in module.named_parameters():
            parameter.copy_(before[name])
    return gradient, statistics


def flatten_gradient(gradient: Mapping[str, Tensor]) -> Tensor:
    """A gradient as one vector ``[number of parameters]``."""
    return torch.cat([g.flatten() for g in gradient.values()])


def relative_distance(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """The distance of two gradients, relative to the larger one; 0 if both are 0. Tensors have the same shapes in both."""
    size = max(flatten_gradient(first).norm().item(), flatten_gradient(second).norm().item())
    return (flatten_gradient(first) - flatten_gradient(second)).norm().item() / size if size else 0.0


def make_tree(policy: Any, *, prompts: int = 3, plans: int = 4) -> Batch:
    """Plans of several prompts with two pictures each. All rewards are 0; see :func:`with_rewards`."""
    repeated = [p for p in PROMPTS[:prompts] for _ in range(plans)]
    sampling = Sampling(guidance_scale=3.0, max_chain_tokens=2)
    planned = call_plan(policy, repeated, seeds=[seed_for("plan", i) for i in range(len(repeated))], sampling=sampling)
    rows = torch.arange(len(repeated)).repeat_interleave(PICTURES)
    seeds = [seed_for("image", i) for i in range(len(rows))]
    images = call_render(policy, [repeated[r] for r in rows], [planned.chains[r] for r in rows], seeds=seeds, sampling=sampling)
    images = Rollout(IMAGE, sampling, {**images.tensors, "parent": rows}, images=images.images)
    return _make_batch(planned, images, torch.zeros(prompts, plans, PICTURES))


def with_rewards(batch: Batch, rewards: Tensor) -> Batch:
    """The batch with other rewards ``[P, N, M]``."""
    return _make_batch(batch.plans, batch.images, rewards)


def _make_batch(plans: Rollout, images: Rollout | None, rewards: Tensor) -> Batch:
    prompt, chain = Prompt(""), parse("")
    samples = tuple(Sample(prompt, chain, None, reward=t) for t in rewards.flatten().tolist())
    place = torch.arange(rewards.numel() if images is not None else 0)
    return Batch((prompt,) * len(rewards), plans, images, place, samples, rewards.double())


def example_rewards(prompts: int = 3, plans: int = 4) -> Tensor:
    """Rewards ``[prompts, plans, PICTURES]`` in [0,1], all different."""
    return torch.rand(prompts, plans, PICTURES, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


# -- expectations -----------------------------------------------------------------------------------------------------------

REWARDS = torch.tensor([[0.2, 0.1, 0.4], [1.0, 0.3, 0.0], [0.6, 0.2, 0.5]], dtype=torch.float64)
"""The reward of a sequence by its two symbols. If it ended after the first, the second is 0."""


@dataclass(frozen=True)
class ExpectedGradient:
    """The mean of an estimator, compared with the gradient of the expected reward.

    Attributes:
        factor: its length along the exact gradient, relative to the exact gradient.
        direction_error: 1 - cosine of the two.
    """

    factor: float
    direction_error: float


def expected_gradient(algorithm: RLAlgorithm, size: int, *, ends: bool) -> ExpectedGradient:
    """The expectation over groups of ``size``, without statistical error, compared with the exact gradient of E[reward]."""
    policy, plans = exact_sample(ends=ends)
    rows = all_groups(plans, size)
    tokens = plans.tensors["tokens"][rows.flatten()]
    rewards = REWARDS[tokens[:, 0], tokens[:, 1]].view(-1, size, 1).expand(-1, -1, PICTURES)
    batch = _make_batch(plans.rows(rows.flatten()), None, rewards)
    gradient, _ = update_gradient(algorithm, policy, batch, {PLAN: SegmentConfig()})
    count = call_count(algorithm, batch.plans.tensors["mask"]) / rows.numel()  # actions per sequence, or 1
    estimate, exact = -flatten_gradient(gradient) * count, flatten_gradient(expected_reward_gradient(policy, plans))
    inner, length = (estimate @ exact).item(), exact.norm().item()
    norm = estimate.norm().item()
    return ExpectedGradient(inner / length**2, 1 - inner / (length * norm) if norm else float("nan"))


def expected_reward_gradient(policy: TinyPolicy, plans: Rollout) -> Gradient:
    """The gradient of the expected reward: the sum over sequences of reward times the gradient of the probability."""
    tokens, mask = plans.tensors["tokens"], plans.tensors["mask"]

    def value() -> Tensor:
        log_prob = torch.where(mask, policy.module.action_stats(plans).log_prob, 0.0).sum(1)
        # Each of the sixteen rows has probability 1/16 at the current parameters.
        return ((log_prob - log_prob.detach()).exp() * REWARDS[tokens[:, 0], tokens[:, 1]]).mean()

    return _gradient(policy, value)


def kl_gradients(policy: TinyPolicy, plans: Rollout, reference: Reference) -> dict[str, Gradient]:
    """The gradient of the KL divergence of each action's distribution, summed over the actions of the plans, in either direction."""
    with reference.active():
        reference_log_probs = _all_log_probs(policy, plans)

    def policy_to_reference() -> Tensor:
        log_probs = _all_log_probs(policy, plans)
        return (log_probs.exp() * (log_probs - reference_log_probs)).sum(-1)[plans.tensors["mask"]].sum()

    def reference_to_policy() -> Tensor:
        gaps = reference_log_probs - _all_log_probs(policy, plans)
        return (reference_log_probs.exp() * gaps).sum(-1)[plans.tensors["mask"]].sum()

    return {
        "KL(policy, reference)": _gradient(policy, policy_to_reference),
        "KL(reference, policy)": _gradient(policy, reference_to_policy),
    }


def _all_log_probs(policy: TinyPolicy, plans: Rollout) -> Tensor:
    """Log-probabilities ``[B, 2, 3]`` of every symbol."""
    by_symbol = []
    for symbol in range(REWARDS.shape[0]):
        tensors = {**plans.tensors, "tokens": torch.stack([plans.tensors["tokens"][:, 0], torch.full((len(plans),), symbol)], 1)}
        second = policy.module.action_stats(Rollout(PLAN, plans.sampling, tensors)).log_prob[:, 1]
        tensors = {**plans.tensors, "tokens": torch.full((len(plans), 2), symbol)}
        first = policy.module.action_stats(Rollout(PLAN, plans.sampling, tensors)).log_prob[:, 0]
        by_symbol.append(torch.stack([first, second], 1))
    return torch.stack(by_symbol, -1)


def _gradient(policy: TinyPolicy, value: Callable[[], Tensor]) -> Gradient:
    named = dict(policy.module.named_parameters())
    gradients = torch.autograd.grad(value(), list(named.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(named, gradients, strict=True))
