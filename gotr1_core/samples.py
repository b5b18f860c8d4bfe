"""The data that flows through a run: prompts, what policies did, what judges said. Frozen, and free of behaviour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from gotr1_core.chain import Chain

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

SegmentName = Literal["plan", "image"]
PLAN: SegmentName = "plan"
"""The segment of the chain's tokens."""
IMAGE: SegmentName = "image"
"""The segment of the picture's tokens."""


@dataclass(frozen=True)
class Prompt:
    """What the user asks for. ``metadata`` is JSON-ready and means something to the source and the judges that share it."""

    text: str
    id: str = ""
    category: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Example:
    """One supervised example: a prompt, the chain to write and the picture to draw."""

    prompt: Prompt
    chain: Chain
    image: Image | None = None


@dataclass(frozen=True)
class Sampling:
    """How to sample; training, evaluation and generation each have theirs, and a checkpoint carries those to generate with.

    ``temperature`` is the plan's, ``image_temperature`` the picture's; 0 decodes greedily. ``guidance_scale`` w gives
    ``u + w * (c - u)`` (classifier-free guidance, Ho & Salimans, arXiv 2207.12598); 1 is none. A chain that has not ended
    after ``max_chain_tokens`` is cut. ``log_prob`` says which distribution of guided images is scored: the ``guided`` one
    that was sampled from, or the ``conditional`` one, which repeats papers that did so and is biased. A diffusion model draws in
    ``denoising_steps``, whose noise ``image_temperature`` multiplies.
    """

    temperature: float = 1.0
    image_temperature: float = 1.0
    guidance_scale: float = 5.0
    max_chain_tokens: int = 600
    log_prob: Literal["guided", "conditional"] = "guided"
    denoising_steps: int = 20


@dataclass(frozen=True)
class Rollout:
    """What one policy did for B samples, enough to score it again.

    ``tensors`` are rows first. Always there: ``log_prob [B, T]``, the sampler's own, and ``mask [B, T]``, true where an action was
    sampled (an appended token is none). ``truncated [B]``: chains that were cut. The rest is the policy's own. For images,
    ``parent [B]`` is the row of the plan rollout an image was drawn from. Where actions are denoising steps, ``step [B, T]`` says which
    ones, from 0; they are reported one by one.
    """

    segment: SegmentName
    sampling: Sampling
    tensors: Mapping[str, Tensor]
    chains: tuple[Chain, ...] = ()
    images: tuple[Image, ...] = ()

    def __len__(self) -> int:
        return len(self.tensors["mask"])

    def rows(self, index: Tensor) -> Rollout:
        """The rollout of some rows, ``index [K]`` integers."""
        pick = index.tolist()
        return replace(
            self,
            tensors={name: tensor[index.to(tensor.device)] for name, tensor in self.tensors.items()},
            chains=tuple(self.chains[i] for i in pick) if self.chains else (),
            images=tuple(self.images[i] for i in pick) if self.images else (),
        )


@dataclass(frozen=True)
class ActionStats:
    """A policy's answer about actions: ``log_prob``, ``entropy`` ``[B, T]`` in nats, ``features [B, T, H]`` where it has them.

    Of Gaussian actions, denoising steps, it says ``mean [B, T, ...]`` and ``std [B, T]`` too; their log-probabilities and entropies
    are means over latent dimensions. The update then adds divergences in closed form, ``[B, T]`` and means over latent dimensions:
    ``kl`` from the reference, where there is one, and ``moved`` from the policy as it was when it drew.
    """

    log_prob: Tensor
    entropy: Tensor
    features: Tensor | None = None
    mean: Tensor | None = None
    std: Tensor | None = None
    kl: Tensor | None = None
    moved: Tensor | None = None


@dataclass(frozen=True)
class Sample:
    """One picture and how it came about: prompt, plan j of prompt i, image k of that plan, scores, reward."""

    prompt: Prompt
    chain: Chain
    image: Image | None
    lineage: tuple[int, int, int] = (0, 0, 0)
    scores: Mapping[str, float] = field(default_factory=dict)
    reward: float = float("nan")


def join(rollouts: Sequence[Rollout]) -> Rollout:
    """Rollouts of one policy as one; tensors are padded at the right of dimension 1 to the longest."""
    import torch

    first = rollouts[0]
    if len(rollouts) == 1:
        return first

    def together(name: str) -> Tensor:
        parts = [r.tensors[name] for r in rollouts]
        if parts[0].dim() > 1:
            width = max(p.shape[1] for p in parts)
            parts = [torch.cat([p, p.new_zeros(len(p), width - p.shape[1], *p.shape[2:])], 1) for p in parts]
        return torch.cat(parts)

    return replace(
        first,
        tensors={name: together(name) for name in first.tensors},
        chains=tuple(c for r in rollouts for c in r.chains),
        images=tuple(i for r in rollouts for i in r.images),
    )
