"""The protocols of the project: Planner, Renderer, RewardJudge, RLAlgorithm, and Policy, which is what trains.

They are structural: a component need not inherit from anything here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from gotr1_core.chain import Chain
from gotr1_core.samples import ActionStats, Example, Prompt, Rollout, Sample, Sampling, SegmentName, Words

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gotr1_core.advantages import Advantages
    from gotr1_core.config.models import SegmentConfig


@dataclass(frozen=True)
class Loss:
    """Sums over actions, not means, with the counts to divide by. So neither micro-batches nor processes change a gradient.

    Attributes:
        sums, counts: scalars by segment, and what to divide each by.
        statistics: ``(value, weight)`` pairs, scalars, which are sums too.
        actions: numbers ``[B, T]`` of every action, detached. Where actions are denoising steps, each step is reported alone.
    """

    sums: Mapping[SegmentName, Tensor]
    counts: Mapping[SegmentName, Tensor]
    statistics: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    actions: Mapping[str, Tensor] = field(default_factory=dict)


class Policy(Protocol):
    """A trainable module whose sampled actions have log-probabilities.

    ``module(segments)`` takes ``{"plan": rollout, "image": rollout}`` (either or both) and returns ``{segment: ActionStats}``. The module
    itself is called, never one of its methods, so that wrappers such as FSDP take part. Which of its parts run, and how often, may depend
    on which segments there are, but not on their content: processes that share the weights would wait for each other.

    ``lora_prefix`` names the part of ``module`` that LoRA adapts. If its :class:`ActionStats` have features, an attribute ``features`` says
    how wide they are; algorithms with a critic (``ppo``) need them.
    """

    module: nn.Module
    lora_prefix: str

    def supervised_loss(self, module: nn.Module, examples: Sequence[Example], *, seed: int) -> Loss:
        """The loss of stage one (SFT): -log p, or a diffusion model's own loss. ``module`` is the wrapped module to call."""

    def enable_gradient_checkpointing(self) -> None:
        """Recomputes activations in the backward pass instead of keeping them."""

    def save(self, folder: Path) -> None:
        """Writes the whole model, adapters merged, where its library can load it from."""

    def save_adapter(self, folder: Path) -> None:
        """Writes the trained adapters alone, in the format of the library that loads them onto the same base model."""


class Preflight(Protocol):
    """An optional part of a component's class: checks that take at most seconds, before any weights are loaded."""

    @staticmethod
    def preflight(options: Any, *, key: str) -> Mapping[str, int]:
        """Refuses what cannot work. Returns the sizes it knows: ``image_tokens`` of a picture, ``context`` in positions, ``parameters``.

        ``options`` are the component's; ``key`` is its place in the config, such as ``planner``.

        Raises:
            UsageError: the component could not be made.
        """


@runtime_checkable
class Planner(Policy, Protocol):
    """Writes chains."""

    def plan(self, prompts: Sequence[Prompt], *, seeds: Sequence[int], sampling: Sampling) -> Rollout:
        """One chain per prompt and seed (repeat a prompt for its group), in ``.chains`` of the result, malformed ones included."""


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
        """One picture per prompt, chain and seed.

        Args:
            prompts, chains, seeds: one per picture.
            sampling: temperature, guidance, steps.
            plans: the rollout of the chains, where the renderer wrote them itself (one unified policy).
            groups: seeds too, one per picture and equal within a prompt's group. What is drawn for a group as a whole, such as which
                denoising steps train, comes from them. Without them all pictures are one group.
        """


@runtime_checkable
class RewardJudge(Protocol):
    """Scores samples. ``rewards`` says what it can score, and whether it must see the plan or the image for it.

    An attribute ``thread_safe`` that is True says that another thread may ask it while models draw, as one that asks a server. It is
    asked one call at a time.
    """

    rewards: Mapping[str, SegmentName]

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> Mapping[str, Sequence[float]]:
        """For each name one number in [0, 1] per sample; NaN where it could not be had."""


@runtime_checkable
class ExplainingJudge(RewardJudge, Protocol):
    """An optional part of a judge: it says words beside its numbers (:class:`~gotr1_core.samples.Words`)."""

    def score_with_words(
        self, samples: Sequence[Sample], names: Sequence[str]
    ) -> tuple[Mapping[str, Sequence[float]], Mapping[str, Sequence[Words | None]]]:
        """What :meth:`score` returns, and for each name the words of every sample, None where the judge says nothing.

        It is called in place of :meth:`score`. A name without any words may be missing from the second mapping.
        """


@runtime_checkable
class Metered(Protocol):
    """An optional part of a judge or planner: it counts what it did, such as requests, tokens or answers that came from a cache."""

    def counts(self) -> Mapping[str, float]:
        """What this process's component has counted so far, by name: sums, which are added over processes.

        They go to ``metrics.jsonl`` as ``judge.LABEL.NAME`` or ``planning.NAME``, and to the live view.
        """


@runtime_checkable
class RunMember(Protocol):
    """An optional part of a judge or planner: it keeps something in the folder of the run that it works for, such as what was spent."""

    def join_run(self, folder: Path, *, name: str) -> None:
        """Called once on each process before any work. ``name`` is the component's in the run: a judge's label, or ``planner``."""


@runtime_checkable
class CacheableJudge(RewardJudge, Protocol):
    """An optional part of a judge: it says whether its scores may be kept on disk, and what they depend on."""

    cached: bool
    """True: they are kept unless the user says ``cache=off``. False: only where the user names a folder, ``cache=DIR``."""

    def cache_key(self) -> Mapping[str, Any] | None:
        """What scores depend on besides sample, options and files, as JSON: rubrics, the revision that a server names.

        None: they must not be kept, for example because answers are sampled.
        """


@runtime_checkable
class RLAlgorithm(Protocol):
    """Turns rewards into advantages, and advantages into a loss.

    An attribute ``compares_groups`` that is False says that a sample is not compared with its group (:func:`compares_groups`). One whose
    numbers change from step to step is :class:`Stateful` too.
    """

    def advantages(self, rewards: Tensor) -> Advantages:
        """Advantages from rewards ``[P, N, M]``, NaN where there is none."""

    def count(self, mask: Tensor) -> Tensor:
        """What the sums of a segment's loss are divided by, a scalar, from its mask ``[B, T]``: tokens, or sequences."""

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
        """The loss to minimise on one segment, summed over actions.

        Args:
            segment: ``plan`` or ``image``.
            stats: log-probabilities and entropies ``[B, T]`` of the policy, with gradient.
            old, reference: log-probabilities ``[B, T]`` before the update and of the reference; None where the segment has no KL term.
            advantages: ``[B]``, or ``[B, T]`` from an :class:`AdvantageEstimator`.
            mask: bool ``[B, T]``, the actions that count.
            settings: clip widths, KL and entropy coefficients.
        """


@runtime_checkable
class Stateful(Protocol):
    """An optional part of an algorithm that keeps state from step to step, such as a running baseline.

    Every process has its own algorithm, and checkpoints hold each one's state. A critic's weights are saved in any case.
    """

    def state_dict(self) -> Mapping[str, Any]:
        """The whole state by name: tensors of any shape, numbers, texts, booleans, None, and lists and dicts of these without tensors.

        An empty mapping says that nothing needs to be saved, although attributes change, such as those that only cache something.
        """

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes a state that :meth:`state_dict` returned. Its tensors, of the same shapes, are on the CPU."""


@dataclass(frozen=True)
class Experience:
    """What one policy did in a step, before it learns from it. On the CPU, without gradient.

    Attributes:
        rewards: ``[P, N, M]``, NaN where there is none. Plans lie in the order of ``rewards``.
        place: ``[K]``, the position in the flattened rewards of each image row. Pruned images have no row.
        masks: bool ``[B, T]`` by segment that trains, ``[0, 0]`` where nothing of it was drawn; so are the following.
        old, reference: log-probabilities of policy and reference, float64; the latter where the algorithm ``needs_reference``.
        values: values of the states before the actions, float64, where the algorithm has a critic.
    """

    rewards: Tensor
    place: Tensor
    masks: Mapping[SegmentName, Tensor]
    old: Mapping[SegmentName, Tensor]
    reference: Mapping[SegmentName, Tensor] | None = None
    values: Mapping[SegmentName, Tensor] | None = None


@dataclass(frozen=True)
class Estimates:
    """What an algorithm computes from an experience, by segment.

    Attributes:
        advantages: ``[B]`` or ``[B, T]``.
        returns: ``[B, T]``, what values learn; NaN where there is nothing to learn.
        statistics: ``(value, weight)`` pairs over all processes, scalars.
    """

    advantages: Mapping[SegmentName, Tensor]
    returns: Mapping[SegmentName, Tensor] = field(default_factory=dict)
    statistics: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


@runtime_checkable
class AdvantageEstimator(RLAlgorithm, Protocol):
    """Computes advantages from per-action log-probabilities, values or the reference.

    :meth:`advantages` then only says whether there is anything to compare. ``needs_reference``: it uses the reference's log-probabilities.
    """

    needs_reference: bool

    def estimate(self, seen: Experience, critic: nn.Module | None, total: Callable[[Tensor], Tensor]) -> Estimates:
        """Advantages of the whole step. ``total`` sums a tensor of any shape over processes; each must call it equally often."""


@dataclass(frozen=True)
class Critic:
    """Estimates values ``[K]`` from features ``[K, H]`` of states. Its whole state goes into checkpoints.

    ``learning_rate`` is the peak; the schedule is the policy's. In the first ``warmup`` steps the critic learns and the policy does not.
    """

    module: nn.Module
    learning_rate: float
    max_grad_norm: float = 1.0
    warmup: int = 0


@runtime_checkable
class ActorCritic(AdvantageEstimator, Protocol):
    """An advantage estimator with a critic for each policy that trains. These policies need an attribute ``features``."""

    def critic(self, width: int) -> Critic:
        """A new critic for features of ``width`` numbers."""

    def value_loss(self, values: Tensor, old: Tensor, returns: Tensor) -> tuple[Tensor, Mapping[str, tuple[Tensor, Tensor]]]:
        """The loss of values ``[K]`` against returns ``[K]``, a scalar sum, and its statistics; ``old [K]`` are earlier values."""


def compares_groups(algorithm: RLAlgorithm) -> bool:
    """True if the algorithm compares a sample with its group, as all do that neither have a critic nor say ``compares_groups = False``."""
    return bool(getattr(algorithm, "compares_groups", not isinstance(algorithm, ActorCritic)))


@runtime_checkable
class PromptSource(Protocol):
    """Gives prompts. A source for stage one gives examples as well."""

    def prompts(self, split: str, count: int, seed: int, start: int = 0) -> Sequence[Prompt]:
        """``count`` prompts of a split, ``train`` or ``validation``, from number ``start`` on."""

    def examples(self, split: str, start: int, count: int, seed: int) -> Sequence[Example]:
        """Supervised examples ``start`` to ``start + count`` of a split."""


@runtime_checkable
class Benchmark(Protocol):
    """Prompts, and measurements of what was drawn for them."""

    def prompts(self, count: int | None) -> Sequence[Prompt]:
        """The benchmark's prompts, or the first ``count``."""

    def measure(self, samples: Sequence[Sample]) -> Mapping[str, Sequence[float]]:
        """By name, one number per sample, which depends on that sample alone: large benchmarks are measured in parts."""
