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
        return prompt_key(self.text)


def prompt_key(text: str) -> str:
    """The :attr:`Prompt.key` of a prompt with this text."""
    return unicodedata.normalize("NFC", text.strip())


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
        tensors: rows first. Always there: ``log_prob [B, T]``, the sampler's own, NaN where the model's output was not finite, and bool
            ``mask [B, T]``, true where an action was sampled (an appended token is none). Plans have bool ``truncated [B]``, chains that
            were cut. Images have ``parent [B]``, the row of each one's plan. Denoising steps have ``step [B, T]``, their numbers from 0.
            The rest is the policy's own.
        chains, images: one per row, in a rollout of plans or of images. An image is None where its pixels are not finite.
        memory: of plans, what a unified policy goes on from to draw them, once, with the same weights. Its ``rows(index)`` chooses rows.
    """

    segment: SegmentName
    sampling: Sampling
    tensors: Mapping[str, Tensor]
    chains: tuple[Chain, ...] = ()
    images: tuple[Image | None, ...] = ()
    memory: Any = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.tensors["mask"])

    def finite(self) -> list[bool]:
        """False for each row with an action whose log-probability is not finite, or with a picture that is None."""
        rows: list[bool] = (self.tensors["log_prob"].isfinite() | ~self.tensors["mask"]).all(1).tolist()
        return [row and self.images[i] is not None for i, row in enumerate(rows)] if self.images else rows

    def rows(self, index: Tensor) -> Rollout:
        """The rollout of the rows ``index [K]``, integers."""
        rows = index.tolist()
        return replace(
            self,
            tensors={name: tensor[index.to(tensor.device)] for name, tensor in self.tensors.items()},
            chains=tuple(self.chains[i] for i in rows) if self.chains else (),
            images=tuple(self.images[i] for i in rows) if self.images else (),
            memory=self.memory.rows(index) if self.memory is not None else None,
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
class Words:
    """What a judge said beside one number. Nobody computes with it; it is for people who read samples.

    Attributes:
        verdict: the answer that the number was read from, as the model wrote it.
        reason: why the number is what it is.
        boxes: what the judge found in the picture: by phrase, boxes (x1, y1, x2, y2) in fractions of the picture, from 0 to 1.
        problem: why there is no number, such as ``unreadable``; empty where there is one.
    """

    verdict: str = ""
    reason: str = ""
    boxes: Mapping[str, Sequence[tuple[float, float, float, float]]] = field(default_factory=dict)
    problem: str = ""

    def as_json(self) -> dict[str, Any]:
        """What was said, as plain JSON, without what is empty. Boxes are rounded to four digits."""
        boxes = {phrase: [[round(edge, 4) for edge in box] for box in found] for phrase, found in self.boxes.items()}
        values = {"verdict": self.verdict, "reason": self.reason, "boxes": boxes, "problem": self.problem}
        return {name: value for name, value in values.items() if value}


@dataclass(frozen=True)
class Sample:
    """One picture and how it came about. ``lineage`` is (prompt, plan of the prompt, image of the plan); an unknown ``reward`` is NaN.

    ``not_finite`` names the segment whose numbers were not finite. Such a sample has no picture; its reward, and its scores from there on,
    are NaN. A pruned sample has no picture either, but a reward. ``plan_known`` is False for a picture from elsewhere whose plan nobody
    gave: its chain is empty, and a score that compares the picture with its plan is NaN. ``words`` are what judges said beside their
    scores, by the score's name, where they say something.
    """

    prompt: Prompt
    chain: Chain
    image: Image | None
    lineage: tuple[int, int, int] = (0, 0, 0)
    scores: Mapping[str, float] = field(default_factory=dict)
    reward: float = float("nan")
    not_finite: SegmentName | None = None
    plan_known: bool = True
    words: Mapping[str, Words] = field(default_factory=dict)


def make_samples(
    prompts: Sequence[Prompt], chains: Sequence[Chain], plans: Rollout | None, drawn: Rollout, lineages: Sequence[tuple[int, int, int]]
) -> list[Sample]:
    """Samples that are not judged: of each prompt, its chain and its picture. ``plans`` is None for chains that nobody sampled."""
    planned = plans.finite() if plans is not None else [True] * len(chains)
    lost = [None if p and d else PLAN if not p else IMAGE for p, d in zip(planned, drawn.finite(), strict=True)]
    rows = zip(prompts, chains, drawn.images, lineages, lost, strict=True)
    return [Sample(p, chain, None if bad else image, lineage, not_finite=bad) for p, chain, image, lineage, bad in rows]


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
        memory=None,
    )
