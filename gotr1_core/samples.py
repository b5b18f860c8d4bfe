"""The data of a run: prompts, what policies did, what judges gave. Frozen, with next to no behaviour."""

from __future__ import annotations

import unicodedata
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
    """What the user asks for. ``metadata`` is plain JSON, for the source that gives it and the judges that read it."""

    text: str
    id: str = ""
    category: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The text by which prompts are compared: in Unicode's composed form (NFC), without spaces around it."""
        return unicodedata.normalize("NFC", self.text.strip())


@dataclass(frozen=True)
class Example:
    """One supervised example: a prompt, the chain to write and the picture to draw."""

    prompt: Prompt
    chain: Chain
    image: Image | None = None


@dataclass(frozen=True)
class Sampling:
    """How to sample. Training, evaluation and generation each have theirs; a checkpoint keeps those to generate with.

    Attributes:
        temperature: of the plan's tokens; 0 decodes greedily.
        image_temperature: of the picture's tokens; 0 decodes greedily. It multiplies the noise of denoising steps.
        guidance_scale: w in ``u + w * (c - u)`` (classifier-free guidance, Ho & Salimans, arXiv 2207.12598); 1 is none.
        max_chain_tokens: a chain that has not ended by then is cut.
        log_prob: the distribution whose log-probabilities guided images get. ``guided`` is the one that was sampled from;
            ``conditional`` repeats papers that used it, and is biased.
        denoising_steps: in how many steps a diffusion model draws.
    """

    temperature: float = 1.0
    image_temperature: float = 1.0
    guidance_scale: float = 5.0
    max_chain_tokens: int = 600
    log_prob: Literal["guided", "conditional"] = "guided"
    denoising_steps: int = 20


@dataclass(frozen=True)
class Rollout:
    """What one policy did for B samples: enough to compute its log-probabilities again.

    Attributes:
        segment: ``plan`` or ``image``.
        sampling: how it was sampled.
        tensors: rows first. Always there: ``log_prob [B, T]``, the sampler's own, and bool ``mask [B, T]``, true where an action was
            sampled (an appended token is none). Plans have bool ``truncated [B]``, chains that were cut. Images have ``parent [B]``, the
            row of each one's plan. Denoising steps have ``step [B, T]``, their numbers from 0. The rest is the policy's own.
        chains, images: one per row, in a rollout of plans or of images.
    """

    segment: SegmentName
    sampling: Sampling
    tensors: Mapping[str, Tensor]
    chains: tuple[Chain, ...] = ()
    images: tuple[Image, ...] = ()

    def __len__(self) -> int:
        return len(self.tensors["mask"])

    def rows(self, index: Tensor) -> Rollout:
        """The rollout of the rows ``index [K]``, integers."""
        rows = index.tolist()
        return replace(
            self,
            tensors={name: tensor[index.to(tensor.device)] for name, tensor in self.tensors.items()},
            chains=tuple(self.chains[i] for i in rows) if self.chains else (),
            images=tuple(self.images[i] for i in rows) if self.images else (),
        )


@dataclass(frozen=True)
class ActionStats:
    """What a policy computes about actions that were sampled. Of Gaussian actions all numbers are means over latent dimensions.

    Attributes:
        log_prob, entropy: ``[B, T]``, nats.
        features: ``[B, T, H]``, the states before the actions, where the policy has them.
        mean: ``[B, T, ...]``, of Gaussian actions such as denoising steps.
        std: ``[B, T]``, of Gaussian actions.
        kl, moved: ``[B, T]``, closed-form divergences of Gaussian actions from the reference and from the policy that sampled. The update
            adds them.
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
    """One picture and how it came about. ``lineage`` is (prompt, plan of the prompt, image of the plan); an unknown ``reward`` is NaN."""

    prompt: Prompt
    chain: Chain
    image: Image | None
    lineage: tuple[int, int, int] = (0, 0, 0)
    scores: Mapping[str, float] = field(default_factory=dict)
    reward: float = float("nan")


def join(rollouts: Sequence[Rollout]) -> Rollout:
    """Rollouts of one policy as one. Tensors ``[B, T, ...]`` are padded at the right of dimension 1 to the longest."""
    import torch

    first = rollouts[0]
    if len(rollouts) == 1:
        return first

    def joined(name: str) -> Tensor:
        tensors = [r.tensors[name] for r in rollouts]
        if tensors[0].dim() > 1:
            width = max(t.shape[1] for t in tensors)
            tensors = [torch.cat([t, t.new_zeros(len(t), width - t.shape[1], *t.shape[2:])], 1) for t in tensors]
        return torch.cat(tensors)

    return replace(
        first,
        tensors={name: joined(name) for name in first.tensors},
        chains=tuple(c for r in rollouts for c in r.chains),
        images=tuple(i for r in rollouts for i in r.images),
    )
