"""The trainable module of a diffusion renderer. Its forward is the training pass, so that a wrapper such as FSDP takes part."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from gotr1_core import gaussian
from gotr1_core.samples import IMAGE, ActionStats, Rollout, Sampling, SegmentName
from gotr1_core.sampling import apply_guidance
from gotr1_diffusers.regions import Keys
from gotr1_diffusers.steps import Steps
from gotr1_diffusers.windows import too_few_steps

INPUT_PREFIX = "input_"
"""Begins the names of those tensors of a rollout from which the module's ``condition`` is computed again."""


@dataclass(frozen=True)
class Condition:
    """The model's inputs beside latents and time: encoded text, and more. Every field is a tensor ``[B, ...]``."""

    def take(self, index: Tensor) -> Any:
        """The condition of rows ``index [K]``."""
        return type(self)(**{field.name: getattr(self, field.name)[index] for field in fields(self)})


C = TypeVar("C", bound=Condition)


class DiffusionModule(nn.Module, ABC, Generic[C]):
    """A pipeline's denoiser ``model`` with its text encoders and its VAE, which are frozen."""

    def __init__(self, model: nn.Module, text_encoders: Sequence[nn.Module], vae: nn.Module) -> None:
        super().__init__()
        self.model, self.text_encoders, self.vae = model, nn.ModuleList(text_encoders), vae

    @property
    def device(self) -> torch.device:
        """The device of the denoiser's weights."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the denoiser's weights, not of its adapters."""
        dtype: torch.dtype = self.model.dtype  # type: ignore[assignment]
        return dtype

    # -- what a subclass defines --------------------------------------------------------------------------------------------

    @abstractmethod
    def steps(self, sampling: Sampling) -> Steps:
        """The denoising steps with these settings, first to last."""

    @abstractmethod
    def condition(self, inputs: Mapping[str, Tensor]) -> C:
        """Encodes the text whose token ids ``[B, ...]`` are in ``inputs``. See :meth:`DiffusionPolicy.condition_inputs`."""

    @abstractmethod
    def unconditional(self, condition: C) -> C:
        """The condition without prompt and plan, for as many rows. Guidance moves away from its output."""

    @abstractmethod
    def output(self, latents: Tensor, timesteps: Tensor, conditional: C, unconditional: C | None, keys: Keys | None = None) -> Tensor:
        """The model's output for latents ``[B, C, h, w]`` at ``timesteps [B]``, in one call of the model.

        Calls with the same conditions and weights, without gradient, can share ``keys``.
        Returns ``[B, C, h, w]`` under the condition, or ``[2B, C, h, w]``: the rows under ``conditional``, then under ``unconditional``.
        """

    # -- what all share ------------------------------------------------------------------------------------------------------

    def predict(
        self, latents: Tensor, timesteps: Tensor, conditional: C, unconditional: C | None, scale: float, keys: Keys | None = None
    ) -> Tensor:
        """The model's output ``[B, C, h, w]`` at ``timesteps [B]``, guided by ``scale`` if there is an unconditional condition."""
        output = self.output(latents, timesteps, conditional, unconditional, keys)
        if unconditional is None:
            return output
        # In float32 or wider, as guidance magnifies rounding errors.
        outputs = output.to(torch.promote_types(output.dtype, torch.float32)).chunk(2)
        return apply_guidance(outputs[0], outputs[1], scale)

    def forward(self, segments: Mapping[SegmentName, Rollout]) -> dict[SegmentName, ActionStats]:
        """Log-probabilities ``[B, T]`` of an image rollout's denoising steps. With a ``target``, minus the diffusion loss ``[B, 1]``."""
        return {
            name: self._minus_diffusion_loss(rollout) if "target" in rollout.tensors else self.action_stats(rollout)
            for name, rollout in segments.items()
        }

    def action_stats(self, rollout: Rollout) -> ActionStats:
        """Log-probabilities and entropies ``[B, T]`` of all steps of a rollout, in one batch, under the sampler's distribution.

        Raises:
            UsageError: the rollout has no steps that can train.
        """
        t, sampling = rollout.tensors, rollout.sampling
        rows, count = t["step"].shape
        if rollout.segment != IMAGE:
            raise ValueError("a diffusion model takes image rollouts only")
        if count == 0:
            raise too_few_steps(sampling)
        scale = sampling.guidance_scale if sampling.log_prob == "guided" else 1.0
        row_of_step = torch.arange(rows, device=self.device).repeat_interleave(count)
        condition = self.condition(condition_inputs_of(t)).take(row_of_step)
        unconditional = self.unconditional(condition) if scale != 1 else None
        steps, number, latents = self.steps(sampling), t["step"].flatten(), t["latents"].flatten(0, 1)
        output = self.predict(latents, steps.timesteps.to(number.device)[number], condition, unconditional, scale)
        step = steps.step(output, number, latents, t["after"].flatten(0, 1))
        std = step.std.view(rows, count)
        mean = step.mean.unflatten(0, (rows, count))
        return ActionStats(step.log_prob.view(rows, count), gaussian.entropy(std), mean=mean, std=std)

    def _minus_diffusion_loss(self, rollout: Rollout) -> ActionStats:
        """Minus the weighted squared error of the model's output, a mean over latent dimensions, as log-probability ``[B, 1]``."""
        t = rollout.tensors
        full = self.condition(condition_inputs_of(t))
        condition = _replace_rows(full, self.unconditional(full), t["dropped"])
        output = self.predict(t["latents"], t["timestep"], condition, None, 1.0)
        error = (output.float() - t["target"]).square().flatten(1).mean(1)
        log_prob = -(t["weight"] * error).unsqueeze(1)
        return ActionStats(log_prob, torch.zeros_like(log_prob))


def condition_inputs_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of a rollout's tensors ``[B, ...]`` that the module's ``condition`` needs, without their prefix."""
    return {name.removeprefix(INPUT_PREFIX): tensor for name, tensor in tensors.items() if name.startswith(INPUT_PREFIX)}


def _replace_rows(condition: C, replacement: C, flags: Tensor) -> C:
    """The condition with the rows of ``replacement`` where ``flags [B]`` is true."""
    columns = []
    for field in fields(condition):
        values = getattr(condition, field.name)
        columns.append(torch.where(flags.view(-1, *[1] * (values.dim() - 1)), getattr(replacement, field.name), values))
    return type(condition)(*columns)
