"""The four words of the project: Planner, Renderer, RewardJudge, RLAlgorithm; and Policy, what trains.

Structural: a component need not inherit from anything here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from gotr1_core.chain import Chain
from gotr1_core.samples import ActionStats, Example, Prompt, Rollout, Sample, Sampling, SegmentName

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gotr1_core.advantages import Advantages
    from gotr1_core.config.models import SegmentConfig


@dataclass(frozen=True)
class Loss:
    """Sums over actions, not means, with the counts to divide by; so neither micro-batches nor processes change a gradient.

    ``sums`` and ``counts`` have the same keys (segments). ``statistics`` are sums too, of ``(value, weight)`` pairs. ``actions`` are
    numbers ``[B, T]`` of every action, detached: where actions are denoising steps they are reported for each step.
    """

    sums: Mapping[SegmentName, Tensor]
    counts: Mapping[SegmentName, Tensor]
    statistics: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    actions: Mapping[str, Tensor] = field(default_factory=dict)


class Policy(Protocol):
    """A trainable module whose sampled actions have log-probabilities.

    ``module(segments)`` scores: ``{"plan": rollout, "image": rollout}`` (either or both) to ``{segment: Scored}``. It is called, and never
    a method of it, so that whatever may be wrapped around it takes part. Which of its parts it calls, and how often, depends on the
    segments that there are and not on what is in them: processes that share the weights would wait for each other. ``lora_prefix`` names
    the part that LoRA adapts. A policy whose `Scored` has features says in ``features`` how wide they are; algorithms with a critic
    (`ppo`) need them.
    """

    module: nn.Module
    lora_prefix: str

    def supervised_loss(self, module: nn.Module, examples: Sequence[Example], *, seed: int) -> Loss:
        """Stage one: -log p, or a diffusion model's own loss. ``module`` is the wrapped module to call."""
        ...

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        ...

    def save(self, folder: Path) -> None:
        """Writes the whole model, adapters merged, where its library can load it from."""
        ...

    def save_adapter(self, folder: Path) -> None:
        """Writes the trained adapters alone, as what loads them onto the same base model expects."""
        ...


class Preflight(Protocol):
    """What a component's class may have besides: checks that cost no more than seconds, before any weights are loaded."""

    @staticmethod
    def preflight(options: Any, *, key: str) -> Mapping[str, int]:
        """Refuses what cannot work with a `UsageError`, and returns the sizes it knows, none of which must be there.

        ``key`` is the component's place in the config, such as ``planner``. Sizes: ``image_tokens`` of a picture, ``context`` in
        positions, ``parameters`` in numbers.
        """
        ...


@runtime_checkable
class Planner(Policy, Protocol):
    """Writes chains."""

    def plan(self, prompts: Sequence[Prompt], *, seeds: Sequence[int], sampling: Sampling) -> Rollout:
        """One chain per prompt and seed (repeat a prompt for its group); ``.chains`` of the result, malformed ones included."""
        ...


@runtime_checkable
class Renderer(Policy, Protocol):
    """Draws pictures of chains."""

    def render(
        self,
        prompts: Sequence[Prompt],
        chains: Sequence[Chain],
        *,
        seeds: Sequence[int],
        sampling: Sampling,
        plans: Rollout | None = None,
        groups: Sequence[int] | None = None,
    ) -> Rollout:
        """One picture per prompt, chain and seed. ``plans`` is given where the renderer wrote the chains itself (one unified policy).

        ``groups`` are seeds too, one per picture and equal within a prompt's group: what is drawn for a group as a whole, such as which
        denoising steps train, comes from them. Without them all pictures are one group.
        """
        ...


@runtime_checkable
class RewardJudge(Protocol):
    """Scores samples. ``rewards`` says what it can score and what it must see for it: the plan or the image."""

    rewards: Mapping[str, SegmentName]

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> Mapping[str, Sequence[float]]:
        """One number in [0,1] per name and sample; NaN where it could not be had."""
        ...


@runtime_checkable
class RLAlgorithm(Protocol):
    """Turns advantages into a loss on scored actions."""

    def advantages(self, rewards: Tensor) -> Advantages:
        """Advantages from total rewards ``[P, N, M]``, NaN where there is none."""
        ...

    def count(self, mask: Tensor) -> Tensor:
        """What the sums of a segment's loss are divided by, from its mask ``[B, T]``: tokens, or sequences."""
        ...

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
        """The loss to minimise on one segment, summed over actions.

        ``old``, ``reference``: log-probabilities ``[B, T]``; ``advantages [B]``, or ``[B, T]`` from an :class:`AdvantageEstimator`.
        """
        ...


@dataclass(frozen=True)
class Experience:
    """What one policy did in a step, as it is known before the policy learns from it. On the CPU, without gradient.

    ``rewards [P, N, M]``, NaN where there is none. Plans lie in the order of ``rewards``; ``place [K]`` is where in the flattened rewards
    the sample of an image row is (pruned images have no row). The rest is ``[B, T]`` by segment that trains, ``[0, 0]`` where nothing of
    it was drawn: ``masks`` of the actions that count, and in float64 log-probabilities ``old`` and, where the run has a reference,
    ``reference``, and ``values`` of the states before the actions, where the algorithm has a critic.
    """

    rewards: Tensor
    place: Tensor
    masks: Mapping[SegmentName, Tensor]
    old: Mapping[SegmentName, Tensor]
    reference: Mapping[SegmentName, Tensor] | None = None
    values: Mapping[SegmentName, Tensor] | None = None


@dataclass(frozen=True)
class Estimates:
    """What an algorithm makes of an experience, by segment: ``advantages`` ``[B]`` or ``[B, T]``, and ``returns [B, T]`` for values to
    learn, NaN where there is nothing to learn. ``statistics`` are ``(value, weight)`` pairs over all processes."""

    advantages: Mapping[SegmentName, Tensor]
    returns: Mapping[SegmentName, Tensor] = field(default_factory=dict)
    statistics: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


@runtime_checkable
class AdvantageEstimator(RLAlgorithm, Protocol):
    """An algorithm that needs to know more than rewards before it learns: what the policy did is scored first, and shown to it whole.

    ``advantages`` then only tells whether there is anything to compare. ``needs_reference``: it uses the reference's log-probabilities.
    """

    needs_reference: bool

    def estimate(self, seen: Experience, critic: nn.Module | None, total: Callable[[Tensor], Tensor]) -> Estimates:
        """Advantages of the whole step. ``total`` sums over processes, each of which must call it equally often."""
        ...


@dataclass(frozen=True)
class Critic:
    """Estimates values ``[K]`` from features ``[K, H]`` of states. Its whole state goes into checkpoints.

    Attributes:
        module: the network.
        learning_rate: at its peak; the schedule is the policy's.
        max_grad_norm: limit of its gradient norm.
        warmup: in so many first steps the critic learns and the policy does not.
    """

    module: nn.Module
    learning_rate: float
    max_grad_norm: float = 1.0
    warmup: int = 0


@runtime_checkable
class ActorCritic(AdvantageEstimator, Protocol):
    """An advantage estimator with a critic for each policy that trains.

    The policy's attribute ``features`` says how wide :attr:`ActionStats.features` are.
    """

    def critic(self, width: int) -> Critic:
        """A new critic for features of ``width`` numbers."""
        ...

    def value_loss(self, values: Tensor, old: Tensor, returns: Tensor) -> tuple[Tensor, Mapping[str, tuple[Tensor, Tensor]]]:
        """The loss of values ``[K]``, summed, against their returns, with the values ``old`` before the update; and its statistics."""
        ...


@runtime_checkable
class PromptSource(Protocol):
    """Gives prompts; a source for stage one gives examples as well."""

    def prompts(self, split: str, count: int, seed: int, start: int = 0) -> Sequence[Prompt]:
        """``count`` prompts of a split, ``train`` or ``validation``, from number ``start`` on."""
        ...

    def examples(self, split: str, start: int, count: int, seed: int) -> Sequence[Example]:
        """Supervised examples ``start`` to ``start + count`` of a split."""
        ...


@runtime_checkable
class Benchmark(Protocol):
    """Prompts, and numbers about what was drawn for them."""

    def prompts(self, count: int | None) -> Sequence[Prompt]:
        """The benchmark's prompts, or the first ``count``."""
        ...

    def measure(self, samples: Sequence[Sample]) -> Mapping[str, Sequence[float]]:
        """Per-sample numbers by name."""
        ...


__all__ = [
    "ActorCritic",
    "AdvantageEstimator",
    "Benchmark",
    "Critic",
    "Estimates",
    "Experience",
    "Loss",
    "Planner",
    "Policy",
    "Preflight",
    "PromptSource",
    "RLAlgorithm",
    "Renderer",
    "RewardJudge",
]
