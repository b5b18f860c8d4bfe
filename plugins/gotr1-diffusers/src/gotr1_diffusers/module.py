"""The trainable module of a diffusion renderer. Its forward scores denoising steps, so that whatever wraps it takes part."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from gotr1_core import gaussian
from gotr1_core.errors import UsageError
from gotr1_core.samples import IMAGE, ActionStats, Rollout, Sampling, SegmentName
from gotr1_core.sampling import apply_guidance
from gotr1_diffusers.steps import Steps

SEEN = "seen_"
"""What a model needs to encode a rollout's text again stands among the rollout's tensors under names that begin so."""


@dataclass(frozen=True)
class Condition:
    """What the model is told beside latents and time; every field has rows ``[B, ...]``."""

    def take(self, index: Tensor) -> Any:
        """The condition of some rows, ``index [K]``."""
        return type(self)(**{field.name: getattr(self, field.name)[index] for field in fields(self)})


C = TypeVar("C", bound=Condition)


class DiffusionModule(nn.Module, ABC, Generic[C]):
    """A pipeline's denoiser ``model`` with the text encoders and the VAE that it needs, which are frozen."""

    def __init__(self, model: nn.Module, text_encoders: Sequence[nn.Module], vae: nn.Module) -> None:
        super().__init__()
        self.model, self.text_encoders, self.vae = model, nn.ModuleList(text_encoders), vae

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the denoiser's weights, adapters aside."""
        dtype: torch.dtype = self.model.dtype  # type: ignore[assignment]
        return dtype

    # -- what a model is ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def steps(self, sampling: Sampling) -> Steps:
        """The denoising steps with these settings."""

    @abstractmethod
    def condition(self, seen: Mapping[str, Tensor]) -> C:
        """Encodes text that ``seen`` holds as ids, row by row."""

    @abstractmethod
    def unconditional(self, condition: C) -> C:
        """The condition of as many rows that nothing is asked of."""

    @abstractmethod
    def output(self, latents: Tensor, timesteps: Tensor, conditional: C, unconditional: C | None) -> Tensor:
        """The model's output, in one call: for latents ``[B, C, h, w]`` under the first condition, then the same ones under the second."""

    # -- what all do alike ---------------------------------------------------------------------------------------------------

    def predict(self, latents: Tensor, timesteps: Tensor, conditional: C, unconditional: C | None, scale: float) -> Tensor:
        """The model's output ``[B, C, h, w]``, guided where there is an unconditional row."""
        output = self.output(latents, timesteps, conditional, unconditional)
        if unconditional is None:
            return output
        # In float32 at least: guidance magnifies rounding.
        both = output.to(torch.promote_types(output.dtype, torch.float32)).chunk(2)
        return apply_guidance(both[0], both[1], scale)

    def forward(self, segments: Mapping[SegmentName, Rollout]) -> dict[SegmentName, ActionStats]:
        """Scores an image rollout: its denoising steps, or, where it has a ``target``, how well the model hits that."""
        return {name: self._missed(rollout) if "target" in rollout.tensors else self.score(rollout) for name, rollout in segments.items()}

    def score(self, rollout: Rollout) -> ActionStats:
        """All steps ``[B, T]`` of a rollout in one batch, under what they were sampled from."""
        t, sampling = rollout.tensors, rollout.sampling
        rows, count = t["step"].shape
        if rollout.segment != IMAGE:
            raise ValueError("a diffusion model scores pictures")
        if count == 0:
            raise UsageError(
                f"of {sampling.denoising_steps} denoising steps too few have noise to train on",
                hint="set sampling.image_temperature and the renderer's eta or noise_level to more than 0, and trained_steps to at most "
                "as many steps as have noise within trained_range",
            )
        scale = sampling.guidance_scale if sampling.log_prob == "guided" else 1.0
        each = torch.arange(rows, device=self.device).repeat_interleave(count)
        condition = self.condition(seen(t)).take(each)
        unconditional = self.unconditional(condition) if scale != 1 else None
        steps, number, latents = self.steps(sampling), t["step"].flatten(), t["latents"].flatten(0, 1)
        output = self.predict(latents, steps.timesteps.to(number.device)[number], condition, unconditional, scale)
        done = steps.step(output, number, latents, t["after"].flatten(0, 1))
        std = done.std.view(rows, count)
        mean = done.mean.unflatten(0, (rows, count))
        return ActionStats(done.log_prob.view(rows, count), gaussian.entropy(std), mean=mean, std=std)

    def _missed(self, rollout: Rollout) -> ActionStats:
        """Minus the weighted squared error of the model's output, a mean over latent dimensions, as log-probability ``[B, 1]``."""
        t = rollout.tensors
        condition = self.condition(seen(t))
        both = [torch.where(_like(t["dropped"], a), b, a) for a, b in _pairs(condition, self.unconditional(condition))]
        kept = type(condition)(*both)
        output = self.predict(t["latents"], t["timestep"], kept, None, 1.0)
        error = (output.float() - t["target"]).square().flatten(1).mean(1)
        log_prob = -(t["weight"] * error).unsqueeze(1)
        return ActionStats(log_prob, torch.zeros_like(log_prob))


def seen(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What of a rollout's tensors the model sees, under the model's own names."""
    return {name.removeprefix(SEEN): tensor for name, tensor in tensors.items() if name.startswith(SEEN)}


def _pairs(one: Condition, other: Condition) -> list[tuple[Tensor, Tensor]]:
    return [(getattr(one, field.name), getattr(other, field.name)) for field in fields(one)]


def _like(flags: Tensor, other: Tensor) -> Tensor:
    return flags.view(-1, *[1] * (other.dim() - 1))
