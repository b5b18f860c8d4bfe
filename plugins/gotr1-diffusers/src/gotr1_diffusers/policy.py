"""What all diffusion renderers share: drawing, where the trained steps are recorded; stage one; saving."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from gotr1_core.chain import Chain
from gotr1_core.policies.lora import peft_adapter
from gotr1_core.protocols import Loss
from gotr1_core.samples import IMAGE, Example, Prompt, Rollout, Sampling
from gotr1_core.sampling import seed_for
from gotr1_diffusers import checkpoint
from gotr1_diffusers.module import INPUT_PREFIX, DiffusionModule, condition_inputs_of
from gotr1_diffusers.options import DiffusionOptions
from gotr1_diffusers.regions import Keys
from gotr1_diffusers.vae import decode_latents, encode_pictures
from gotr1_diffusers.windows import choose_steps, eligible_steps

OptionsT = TypeVar("OptionsT", bound=DiffusionOptions)


@dataclass(frozen=True)
class Noised:
    """Latents with noise, for stage one, and what the model must output for them."""

    latents: Tensor  # [B, C, h, w]
    timestep: Tensor  # [B] as the model takes it; says how much noise there is
    target: Tensor  # [B, C, h, w]
    weight: Tensor  # [B] of the squared error in the loss


class DiffusionPolicy(ABC, Generic[OptionsT]):
    """Draws plans in denoising steps, some of which train. One of these is an action: it takes latents x to x'."""

    lora_prefix = "model"
    features: ClassVar[int | None] = None  # a denoiser has no state of a step to estimate its value from
    pipeline_class: ClassVar[str]
    denoiser: ClassVar[str]  # its name in the pipeline
    module: Any  # a subclass of DiffusionModule

    def __init__(self, options: OptionsT, *, device: torch.device | str = "cpu") -> None:
        self._set_up(checkpoint.load_pipeline(options, self.pipeline_class), options, device)

    @classmethod
    def from_pipeline(cls, pipeline: Any, options: OptionsT, *, device: torch.device | str = "cpu") -> DiffusionPolicy[OptionsT]:
        """A policy of a ``pipeline`` in memory, which is not copied. ``options.model`` is only recorded as where it came from."""
        policy = cls.__new__(cls)
        policy._set_up(pipeline, options, device)
        return policy

    def _set_up(self, pipeline: Any, options: OptionsT, device: torch.device | str) -> None:
        self.pipeline, self.options, self.base = pipeline, options, options.model  # type: ignore[attr-defined]
        checkpoint.check_pipeline(pipeline, getattr(pipeline, self.denoiser), self.base)
        self.size = self._size()
        self.module = self.make_module(pipeline)
        self.module.to(device)
        self.module.eval()  # no dropout, neither in sampling nor in the training pass
        self.module.vae.requires_grad_(False)
        self.module.text_encoders.requires_grad_(options.train_text)

    def _size(self) -> tuple[int, int]:
        """Height and width of the pictures in pixels.

        Raises:
            UsageError: one is not a multiple of the pixels that a latent, or a patch of latents, covers.
        """
        factor = self.pipeline.vae_scale_factor
        default = self.pipeline.default_sample_size * factor
        size = self.options.height or default, self.options.width or default
        checkpoint.check_sides({"height": size[0], "width": size[1]}, factor * self.patch)
        return size

    @property
    def patch(self) -> int:
        """Side of the denoiser's patches, in latents."""
        return 1

    # -- what a subclass defines --------------------------------------------------------------------------------------------

    @abstractmethod
    def make_module(self, pipeline: Any) -> DiffusionModule[Any]:
        """The trainable module, made of the pipeline's parts."""

    @abstractmethod
    def condition_inputs(self, prompts: Sequence[Prompt], chains: Sequence[Chain]) -> dict[str, Tensor]:
        """Tensors ``[B, ...]`` on the CPU from which the module's ``condition`` is computed, such as token ids, by name."""

    @abstractmethod
    def add_noise(self, latents: Tensor, noise: Tensor, uniform: Tensor) -> Noised:
        """Latents ``[B, C, h, w]`` with ``noise`` of the same shape, for stage one. ``uniform [B]`` in [0, 1) says how much."""

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
        """Draws one picture per prompt, chain and seed, and records its trained steps T. All samples of a group have the same steps.

        Tensors of the rollout: numbers ``step``, ``log_prob`` and ``mask`` of these steps ``[B, T]``, and ``latents`` before and ``after``
        them ``[B, T, C, h, w]`` in float32. Other steps are not recorded.
        """
        del plans  # the renderer reads chains as text, not as tokens of a planner
        module, device = self.module, self.module.device
        steps, noiseless = module.steps(sampling), module.steps(replace(sampling, image_temperature=0.0))
        trained = choose_steps(groups or [0] * len(seeds), eligible_steps(steps.std, self.options), self.options).to(device)
        tensors = {INPUT_PREFIX + name: tensor.to(device) for name, tensor in self.condition_inputs(prompts, chains).items()}
        condition = module.condition(condition_inputs_of(tensors))
        unconditional = module.unconditional(condition) if sampling.guidance_scale != 1 else None
        noise, keys = Noise(seeds, self.latent_shape, device), Keys()
        x = noise.next()
        latents = x.new_zeros(*trained.shape, *self.latent_shape)
        recorded = {"latents": latents, "after": latents.clone(), "log_prob": x.new_zeros(trained.shape)}
        for number, timestep in enumerate(steps.timesteps.to(device)):
            t = torch.full((len(seeds),), number, device=device)
            output = module.predict(x, timestep.expand(len(seeds)), condition, unconditional, sampling.guidance_scale, keys)
            step = steps.step(output, t, x, noise=noise.next())
            trains = trained == number
            after = step.after
            if self.options.noise == "trained":
                after = torch.where(trains.any(1)[:, None, None, None], after, noiseless.step(output, t, x).after)
            rows, columns = trains.nonzero(as_tuple=True)
            for name, values in (("latents", x), ("after", after), ("log_prob", step.log_prob)):
                recorded[name][rows, columns] = values[rows].float()
            x = after.float()
        del keys  # not needed for decoding, which takes the most memory
        tensors |= recorded | {"step": trained, "mask": torch.ones_like(trained, dtype=torch.bool)}
        tensors["parent"] = torch.arange(len(seeds), device=device)
        return Rollout(IMAGE, sampling, tensors, images=decode_latents(module.vae, x))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a picture's latents."""
        factor = self.pipeline.vae_scale_factor
        return self.pipeline.vae.config.latent_channels, self.size[0] // factor, self.size[1] // factor

    # -- stage one ----------------------------------------------------------------------------------------------------------

    def supervised_loss(self, module: nn.Module, examples: Sequence[Example], *, seed: int) -> Loss:
        """The diffusion loss: the model's squared error at random noise levels, a mean over latent dimensions, summed over examples.

        A share ``drop_conditions`` of the examples has no text and no regions, so that guidance works.
        """
        images = [e.image for e in examples if e.image is not None]
        if len(images) != len(examples):
            raise ValueError("a diffusion model learns from prompt, plan and picture, but an example has no picture")
        latents, count = encode_pictures(self.module.vae, images, self.size), len(images)
        device = latents.device
        generator = torch.Generator().manual_seed(seed_for(seed, "noise"))
        noise = torch.randn(latents.shape, generator=generator).to(device)
        # Spread evenly over the batch, in random order. Independent numbers would leave gaps.
        uniform = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
        noised = self.add_noise(latents, noise, uniform.to(device))
        dropped = torch.rand(count, generator=generator) < self.options.drop_conditions
        inputs = self.condition_inputs([e.prompt for e in examples], [e.chain for e in examples])
        tensors = {INPUT_PREFIX + name: tensor.to(device) for name, tensor in inputs.items()}
        tensors |= vars(noised) | {"dropped": dropped.to(device)}
        stats = module({IMAGE: Rollout(IMAGE, Sampling(guidance_scale=1.0), tensors)})[IMAGE]
        return Loss({IMAGE: -stats.log_prob.sum()}, {IMAGE: torch.tensor(count, device=device)})

    def enable_gradient_checkpointing(self) -> None:
        """Recomputes the denoiser's activations in the backward pass."""
        model: Any = self.module.model
        model.enable_gradient_checkpointing()

    # -- on disk ------------------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Writes the full pipeline as diffusers loads it, with adapters merged."""
        merged = checkpoint.merge_adapters(self.module.model)
        trained = getattr(self.pipeline, self.denoiser)
        try:
            setattr(self.pipeline, self.denoiser, merged)
            self.pipeline.save_pretrained(folder)
        finally:
            setattr(self.pipeline, self.denoiser, trained)

    def save_adapter(self, folder: Path) -> None:
        """Writes the adapters alone. The pipeline's ``load_lora_weights`` loads them."""
        config, state = peft_adapter(self.module, "model")
        names = {f"{self.denoiser}_lora_layers": state, f"{self.denoiser}_lora_adapter_metadata": config.to_dict()}
        self.pipeline.save_lora_weights(folder, **names)


class Noise:
    """Draws the noise of every step, in float32 on the CPU. Each row has a generator of its own, from its seed in ``seeds``."""

    def __init__(self, seeds: Sequence[int], shape: tuple[int, int, int], device: torch.device) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.shape, self.device = shape, device

    def next(self) -> Tensor:
        """The noise ``[B, C, h, w]`` of the next step, on the device."""
        rows = [torch.randn(self.shape, generator=generator) for generator in self.generators]
        return (torch.stack(rows) if rows else torch.zeros(0, *self.shape)).to(self.device)
