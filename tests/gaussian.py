"""A small correct renderer of Gaussian steps: DDIM with noise on latents of 2 x 2, with guidance. A window of its steps trains.

DDIM with η (arXiv 2010.02502, eq. 12 and 16): x' = √ᾱ' x₀ + √(1 − ᾱ' − σ²) ε + σ z, with σ² = η² (1 − ᾱ') / (1 − ᾱ) (1 − ᾱ / ᾱ') and x₀ =
(x − √(1 − ᾱ) ε) / √ᾱ. Log-probabilities are means over latent dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from gotr1_core.chain import Chain
from gotr1_core.errors import UsageError
from gotr1_core.protocols import Loss
from gotr1_core.samples import IMAGE, ActionStats, Example, Prompt, Rollout, Sampling, SegmentName
from gotr1_core.sampling import apply_guidance

ALPHAS = (0.05, 0.2, 0.5, 0.8, 0.95)
LAST = 0.99  # ᾱ' of the last step
STEPS, DIMENSIONS, WINDOW, ASKED = len(ALPHAS), 4, 3, 3


class GaussianModule(nn.Module):
    """Predicts ε from latents, step and prompt. Gives the log-probabilities of a rollout's steps."""

    def __init__(self, eta: float = 1.0) -> None:
        super().__init__()
        self.eta = eta
        self.embed = nn.Embedding(256, ASKED)
        self.net = nn.Sequential(nn.Linear(DIMENSIONS + STEPS + ASKED, 16), nn.Tanh(), nn.Linear(16, DIMENSIONS))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))

    def prompt(self, ids: Tensor, length: Tensor) -> Tensor:
        mask = torch.arange(ids.shape[1]) < length.unsqueeze(1)
        return (self.embed(ids) * mask.unsqueeze(-1)).sum(1) / length.clamp_min(1).unsqueeze(1)

    def epsilon(self, x: Tensor, step: int, asked: Tensor, scale: float) -> Tensor:
        x = x.to(asked.dtype)
        at = nn.functional.one_hot(torch.full((len(x),), step), STEPS).to(x.dtype)
        rows = [self.net(torch.cat([x, at, condition], 1)) for condition in (asked, torch.zeros_like(asked))]
        return apply_guidance(rows[0], rows[1], scale)

    def previous(self, step: int) -> float:
        """ᾱ' of the latents that a step leads to."""
        return ALPHAS[step + 1] if step + 1 < STEPS else LAST

    def distribution(self, x: Tensor, step: int, asked: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Mean ``[B, 4]`` and standard deviation of the next latents."""
        now, then = ALPHAS[step], self.previous(step)
        epsilon = self.epsilon(x, step, asked, scale)
        start = (x - math.sqrt(1 - now) * epsilon) / math.sqrt(now)
        variance = self.eta**2 * (1 - then) / (1 - now) * (1 - now / then)
        return math.sqrt(then) * start + math.sqrt(1 - then - variance) * epsilon, torch.tensor(variance).sqrt()

    def log_prob(self, after: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Mean over latent dimensions, ``[B]``."""
        apart = ((after - mean) / std).square()
        return (-0.5 * apart - std.log() - 0.5 * math.log(2 * math.pi)).mean(1)

    def forward(self, segments: Mapping[SegmentName, Rollout]) -> dict[SegmentName, ActionStats]:
        return {name: self.action_stats(rollout) for name, rollout in segments.items()}

    def action_stats(self, rollout: Rollout) -> ActionStats:
        t, scale = rollout.tensors, rollout.sampling.guidance_scale
        asked = self.prompt(t["prompt"], t["prompt_length"])
        log_probs, entropies, means, stds = [], [], [], []
        for step in range(STEPS):
            mean, std = self.distribution(t["latents"][:, step], step, asked, scale)
            log_probs.append(self.log_prob(t["latents"][:, step + 1], mean, std))
            entropies.append((0.5 * math.log(2 * math.pi * math.e) + std.log()).expand_as(log_probs[-1]))
            means.append(mean)
            stds.append(std.expand_as(log_probs[-1]))
        return ActionStats(*(torch.stack(parts, 1) for parts in (log_probs, entropies)), None, *(torch.stack(p, 1) for p in (means, stds)))


class GaussianRenderer:
    """Draws a grey picture of four pixels."""

    lora_prefix = "net"

    def __init__(self, module: GaussianModule | None = None) -> None:
        self.module = module or GaussianModule()

    def window(self, groups: Sequence[int], seeds: Sequence[int]) -> list[int]:
        """The first step that trains, for each row. All samples of a group have the same."""
        del seeds
        return [group % (STEPS - WINDOW + 1) for group in groups]

    @torch.no_grad()
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
        rows = [torch.tensor([*p.text.encode(), 0]) for p in prompts]
        tensors = {
            "prompt": nn.utils.rnn.pad_sequence(rows, batch_first=True),
            "prompt_length": torch.tensor([len(r) - 1 for r in rows]),
            "parent": torch.arange(len(rows)),
        }
        asked = self.module.prompt(tensors["prompt"], tensors["prompt_length"])
        shape = (STEPS + 1, DIMENSIONS)
        noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        latents, log_probs = [noise[:, 0]], []
        for step in range(STEPS):
            mean, std = self.module.distribution(latents[-1], step, asked, sampling.guidance_scale)
            latents.append(mean + std * noise[:, step + 1])
            log_probs.append(self.module.log_prob(latents[-1], mean, std))
        first = torch.tensor(self.window(groups or [0] * len(seeds), seeds)).unsqueeze(1)
        steps = torch.arange(STEPS)
        tensors["step"] = steps.expand(len(seeds), STEPS)
        tensors |= {"latents": torch.stack(latents, 1), "log_prob": torch.stack(log_probs, 1)}
        tensors["mask"] = (steps >= first) & (steps < first + WINDOW)
        pixels = (latents[-1][:, :4].view(-1, 2, 2).clamp(-2, 2) * 60 + 128).byte().numpy()
        return Rollout(IMAGE, sampling, tensors, images=tuple(Image.fromarray(p) for p in pixels))

    def supervised_loss(self, module: nn.Module, examples: Sequence[Example], *, seed: int) -> Loss:
        raise NotImplementedError

    def enable_gradient_checkpointing(self) -> None:
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        raise UsageError("it is made by its code alone", hint="there is nothing to save")

    save_adapter = save
