"""The four words of the project: Planner, Renderer, RewardJudge, RLAlgorithm; and Policy, what trains.

Structural: a component need not inherit from anything here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from gotr1_core.chain import Chain
from gotr1_core.samples import Example, Prompt, Rollout, Sample, Sampling, Scored, SegmentName

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gotr1_core.config import SegmentConfig
    from gotr1_core.credit import Credit


@dataclass(frozen=True)
class Loss:
    """Sums over actions, not means, with the counts to divide by; so neither micro-batches nor processes change a gradient.

    ``sums`` and ``counts`` have the same keys (segments). ``statistics`` are sums too, of ``(value, weight)`` pairs.
    """

    sums: Mapping[SegmentName, Tensor]
    counts: Mapping[SegmentName, Tensor]
    statistics: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


class Policy(Protocol):
    """A trainable module whose sampled actions have log-probabilities.

    ``module(segments)`` scores: ``{"plan": rollout, "image": rollout}`` (either or both) to ``{segment: Scored}``. The
    wrapped module is what the loop calls, so that the hooks of DDP and FSDP fire. ``lora_prefix`` names the part that LoRA adapts.
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
    ) -> Rollout:
        """One picture per prompt, chain and seed. ``plans`` is given where the renderer wrote the chains itself (one unified policy)."""
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
    """Turns credit into a loss on scored actions."""

    def credit(self, totals: Tensor) -> Credit:
        """Advantages from total rewards ``[P, N, M]``, NaN where there is none."""
        ...

    def count(self, mask: Tensor) -> Tensor:
        """What the sums of a segment's loss are divided by, from its mask ``[B, T]``: tokens, or sequences."""
        ...

    def loss(
        self,
        segment: SegmentName,
        scored: Scored,
        old: Tensor,
        reference: Tensor | None,
        advantages: Tensor,
        mask: Tensor,
        settings: SegmentConfig,
    ) -> Loss:
        """The loss to minimise on one segment, summed over actions.

        ``old``, ``reference``: log-probabilities ``[B, T]``; ``advantages [B]``.
        """
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


__all__ = ["Benchmark", "Loss", "Planner", "Policy", "Preflight", "PromptSource", "RLAlgorithm", "Renderer", "RewardJudge"]
