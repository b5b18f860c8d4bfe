"""What all diffusion renderers share: drawing with trained steps kept, stage one, and what is on disk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from gotr1_core.chain import Chain
from gotr1_core.errors import UsageError
from gotr1_core.policies.lora import adapter
from gotr1_core.protocols import Loss
from gotr1_core.samples import IMAGE, Example, Prompt, Rollout, Sampling
from gotr1_core.sampling import seed_for
from gotr1_diffusers import checkpoint
from gotr1_diffusers.module import SEEN, DiffusionModule, seen
from gotr1_diffusers.options import DiffusionOptions
from gotr1_diffusers.vae import decode, encode
from gotr1_diffusers.windows import chosen, eligible

OptionsT = TypeVar("OptionsT", bound=DiffusionOptions)


@dataclass(frozen=True)
class Noised:
    """Latents with noise, the time that stands for how much, what the model shall say of them, and how much its error counts ``[B]``."""

    latents: Tensor
    timestep: Tensor
    target: Tensor
    weight: Tensor


class DiffusionPolicy(ABC, Generic[OptionsT]):
    """Draws plans in denoising steps, some of which train. An action is one of these: it takes latents x to x'."""

    lora_prefix = "model"
    pipeline_class: ClassVar[str]
    denoiser: ClassVar[str]  # what the pipeline calls it
    module: Any  # a DiffusionModule, of a class of its own

    def __init__(self, options: OptionsT, *, device: torch.device | str = "cpu") -> None:
        self._set_up(checkpoint.load(options, self.pipeline_class), options, device)

    @classmethod
    def around(cls, pipeline: Any, options: OptionsT, *, device: torch.device | str = "cpu") -> DiffusionPolicy[OptionsT]:
        """A policy of a pipeline that is in memory, as it is; ``options.model`` says no more than where it came from."""
        made = cls.__new__(cls)
        made._set_up(pipeline, options, device)
        return made

    def _set_up(self, pipeline: Any, options: OptionsT, device: torch.device | str) -> None:
        self.pipeline, self.options, self.base = pipeline, options, options.model  # type: ignore[attr-defined]
        checkpoint.check(pipeline, getattr(pipeline, self.denoiser), self.base)
        self.size = self._size()
        self.module = self.make_module(pipeline)
        self.module.to(device)
        self.module.eval()  # no dropout, in sampling as in scoring
        self.module.vae.requires_grad_(False)
        self.module.text_encoders.requires_grad_(options.train_text)

    def _size(self) -> tuple[int, int]:
        """Height and width of the pictures.

        Raises:
            UsageError: they are no whole number of latents.
        """
        factor = self.pipeline.vae_scale_factor
        usual = self.pipeline.default_sample_size * factor
        size = self.options.height or usual, self.options.width or usual
        for name, side in zip(("height", "width"), size, strict=True):
            unit = factor * self.patch
            if side % unit:
                raise UsageError(f"{name}={side} is no multiple of {unit}", hint=f"nearest: {name}={max(1, round(side / unit)) * unit}")
        return size

    @property
    def patch(self) -> int:
        """Latents that the denoiser takes together, along a side."""
        return 1

    # -- what a model is ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def make_module(self, pipeline: Any) -> DiffusionModule[Any]:
        """The module around the pipeline's parts."""

    @abstractmethod
    def see(self, prompts: Sequence[Prompt], chains: Sequence[Chain]) -> dict[str, Tensor]:
        """What of prompts and chains the module's ``condition`` needs, rows first, on the CPU."""

    @abstractmethod
    def noised(self, latents: Tensor, noise: Tensor, uniform: Tensor) -> Noised:
        """Latents with noise for stage one; ``uniform [B]`` in [0, 1) says how much."""

    # -- drawing ------------------------------------------------------------------------------------------------------------

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
        """One picture per prompt, chain and seed, with what its group's trained steps T did: ``step``, ``log_prob``, ``mask`` ``[B, T]``,
        ``latents`` before and ``after`` them ``[B, T, C, h, w]`` in float32. Other steps are not kept."""
        del plans  # the chains say it all
        module, device = self.module, self.module.device
        steps, plain = module.steps(sampling), module.steps(replace(sampling, image_temperature=0.0))
        train = chosen(groups or [0] * len(seeds), eligible(steps.std, self.options), self.options).to(device)
        tensors = {SEEN + name: tensor.to(device) for name, tensor in self.see(prompts, chains).items()}
        condition = module.condition(seen(tensors))
        unconditional = module.unconditional(condition) if sampling.guidance_scale != 1 else None
        noise = Noise(seeds, self.latent_shape, device)
        x = noise.next()
        latents = x.new_zeros(*train.shape, *self.latent_shape)
        kept = {"latents": latents, "after": latents.clone(), "log_prob": x.new_zeros(train.shape)}
        for number, timestep in enumerate(steps.timesteps.to(device)):
            t = torch.full((len(seeds),), number, device=device)
            output = module.predict(x, timestep.expand(len(seeds)), condition, unconditional, sampling.guidance_scale)
            done = steps.step(output, t, x, noise=noise.next())
            hit = train == number
            after = done.after
            if self.options.noise == "trained":
                after = torch.where(hit.any(1)[:, None, None, None], after, plain.step(output, t, x).after)
            rows, at = hit.nonzero(as_tuple=True)
            for name, values in (("latents", x), ("after", after), ("log_prob", done.log_prob)):
                kept[name][rows, at] = values[rows].float()
            x = after.float()
        tensors |= kept | {"step": train, "mask": torch.ones_like(train, dtype=torch.bool)}
        tensors["parent"] = torch.arange(len(seeds), device=device)
        return Rollout(IMAGE, sampling, tensors, images=decode(module.vae, x))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of latents."""
        factor = self.pipeline.vae_scale_factor
        return self.pipeline.vae.config.latent_channels, self.size[0] // factor, self.size[1] // factor

    # -- stage one ----------------------------------------------------------------------------------------------------------

    def supervised_loss(self, module: nn.Module, examples: Sequence[Example], *, seed: int) -> Loss:
        """The diffusion loss: how far the model's output is from what was added to pictures, a mean over latent dimensions.

        In a share of the samples text and regions are dropped, so that guidance is possible.
        """
        images = [e.image for e in examples if e.image is not None]
        if len(images) != len(examples):
            raise ValueError("a diffusion model learns from prompt, plan and picture; an example has no picture")
        latents, count = encode(self.module.vae, images, self.size), len(images)
        device = latents.device
        generator = torch.Generator().manual_seed(seed_for(seed, "noise"))
        noise = torch.randn(latents.shape, generator=generator).to(device)
        # Times spread evenly over the batch, in no order: so many independent ones would leave gaps.
        even = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
        noised = self.noised(latents, noise, even.to(device))
        dropped = torch.rand(count, generator=generator) < self.options.drop_conditions
        told = self.see([e.prompt for e in examples], [e.chain for e in examples])
        tensors = {SEEN + name: tensor.to(device) for name, tensor in told.items()} | vars(noised) | {"dropped": dropped.to(device)}
        scored = module({IMAGE: Rollout(IMAGE, Sampling(guidance_scale=1.0), tensors)})[IMAGE]
        return Loss({IMAGE: -scored.log_prob.sum()}, {IMAGE: torch.tensor(count, device=device)})

    def enable_gradient_checkpointing(self) -> None:
        """In the denoiser, while gradients are taken."""
        model: Any = self.module.model
        model.enable_gradient_checkpointing()

    # -- on disk ------------------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """The whole pipeline as diffusers loads it, adapters merged."""
        whole = checkpoint.merged(self.module.model)
        trained = getattr(self.pipeline, self.denoiser)
        try:
            setattr(self.pipeline, self.denoiser, whole)
            self.pipeline.save_pretrained(folder)
        finally:
            setattr(self.pipeline, self.denoiser, trained)

    def save_adapter(self, folder: Path) -> None:
        """The adapters alone, for the pipeline's ``load_lora_weights``."""
        config, state = adapter(self.module, "model")
        names = {f"{self.denoiser}_lora_layers": state, f"{self.denoiser}_lora_adapter_metadata": config.to_dict()}
        self.pipeline.save_lora_weights(folder, **names)


class Noise:
    """Noise of every step and row, in float32 on the CPU, each row from a generator of its own seed."""

    def __init__(self, seeds: Sequence[int], shape: tuple[int, int, int], device: torch.device) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.shape, self.device = shape, device

    def next(self) -> Tensor:
        """Of the next step, ``[B, C, h, w]``."""
        rows = [torch.randn(self.shape, generator=generator) for generator in self.generators]
        return (torch.stack(rows) if rows else torch.zeros(0, *self.shape)).to(self.device)
