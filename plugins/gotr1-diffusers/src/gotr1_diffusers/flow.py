"""Renderer ``flow``: Stable Diffusion 3 (arXiv 2403.03206) with Flow-SDE (Flow-GRPO, arXiv 2505.05470). It ignores boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gotr1_core.chain import Chain
from gotr1_core.config.models import LoraConfig
from gotr1_core.policies.lora import check_lora_targets
from gotr1_core.samples import Prompt, Sampling
from gotr1_diffusers import checkpoint
from gotr1_diffusers.module import Condition, DiffusionModule
from gotr1_diffusers.options import FlowOptions
from gotr1_diffusers.policy import DiffusionPolicy, Noised
from gotr1_diffusers.regions import Keys
from gotr1_diffusers.schedulers import flow_scheduler, flow_steps, preflight_scheduler
from gotr1_diffusers.steps import Steps
from gotr1_diffusers.text import ClipTexts, encode_texts, full_text, spell_out
from gotr1_diffusers.windows import check_trained_steps


@dataclass(frozen=True)
class FlowCondition(Condition):
    """Text states of the two CLIP encoders and then of T5, along the length L, and CLIP's pooled states."""

    text: Tensor  # [B, L, D]
    pooled: Tensor  # [B, D']


class FlowModule(DiffusionModule[FlowCondition]):
    """Transformer, text encoders and VAE of SD3. As in diffusers, T5 may be missing. ``size`` is height and width in pixels."""

    def __init__(self, pipeline: Any, options: FlowOptions, size: tuple[int, int]) -> None:
        encoders = [pipeline.text_encoder, pipeline.text_encoder_2, pipeline.text_encoder_3]
        super().__init__(pipeline.transformer, [encoder for encoder in encoders if encoder is not None], pipeline.vae)
        self.options, self.t5 = options, pipeline.tokenizer_3 if pipeline.text_encoder_3 is not None else None
        self.texts = ClipTexts([pipeline.tokenizer, pipeline.tokenizer_2], encoders[:2])
        self.scheduler = flow_scheduler(pipeline.scheduler, options)
        factor = pipeline.vae_scale_factor
        self.tokens = (size[0] // factor // pipeline.patch_size) * (size[1] // factor // pipeline.patch_size)

    def steps(self, sampling: Sampling) -> Steps:
        """The steps of Flow-SDE, over the noise shares of the checkpoint's scheduler."""
        return flow_steps(self.scheduler, self.options, sampling, self.tokens)

    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Token ids ``clip [B, 2, 77]`` and, if there is a T5, ``t5 [B, text_tokens]``. Longer texts are cut."""
        ids = {"clip": torch.stack([self.texts.first_piece(text) for text in texts])}
        if self.t5 is not None:
            settings = {"padding": "max_length", "max_length": self.options.text_tokens, "truncation": True, "return_tensors": "pt"}
            ids["t5"] = self.t5([spell_out(self.t5, text) for text in texts], **settings).input_ids
        return ids

    def condition(self, inputs: Mapping[str, Tensor]) -> FlowCondition:
        """Encodes ids ``clip [B, 2, 77]`` and ``t5 [B, text_tokens]``. Gradients flow if the text encoders train."""
        with torch.set_grad_enabled(self.options.train_text and torch.is_grad_enabled()):
            clip, pooled = encode_texts(list(self.text_encoders[:2]), inputs["clip"])
            width = int(self.model.config.joint_attention_dim)  # type: ignore[union-attr, arg-type]
            clip = F.pad(clip, (0, width - clip.shape[-1]))
            # Without a T5 diffusers puts zeros in its place.
            t5 = self.text_encoders[2](inputs["t5"])[0] if "t5" in inputs else clip.new_zeros(len(clip), self.options.text_tokens, width)
        return FlowCondition(torch.cat([clip, t5], 1), pooled)

    def unconditional(self, condition: FlowCondition) -> FlowCondition:
        """The condition of the empty text, for as many rows."""
        empty = self.condition({name: ids.to(self.device) for name, ids in self.tokenize([""]).items()})
        return empty.take(torch.zeros(len(condition.text), dtype=torch.long, device=self.device))

    def output(
        self,
        latents: Tensor,
        timesteps: Tensor,
        conditional: FlowCondition,
        unconditional: FlowCondition | None,
        keys: Keys | None = None,
    ) -> Tensor:
        """The velocity ``[B, C, h, w]`` of latents ``[B, C, h, w]`` at ``timesteps [B]``; with an unconditional row ``[2B, C, h, w]``."""
        del keys  # here the text's keys depend on the time
        conditions = [conditional] if unconditional is None else [conditional, unconditional]
        velocity: Tensor = self.model(
            hidden_states=latents.to(self.dtype).repeat(len(conditions), 1, 1, 1),
            timestep=timesteps.repeat(len(conditions)),
            encoder_hidden_states=torch.cat([condition.text for condition in conditions]).to(self.dtype),
            pooled_projections=torch.cat([condition.pooled for condition in conditions]).to(self.dtype),
            return_dict=False,
        )[0]
        return velocity


def _preflight_steps(options: FlowOptions, sampling: Sampling) -> Steps | None:
    """The denoising steps of a checkpoint that is not loaded yet; None before a download. Raises `UsageError` as :func:`flow_steps`."""
    scheduler = preflight_scheduler(options, FlowPolicy.pipeline_class)
    if scheduler is None:
        return None
    scheduler = flow_scheduler(scheduler, options)
    return flow_steps(scheduler, options, sampling, tokens=scheduler.config.base_image_seq_len)  # any picture's steps have noise alike


class FlowPolicy(DiffusionPolicy[FlowOptions]):
    """Draws prompt and plan with SD3, without the plan's boxes."""

    pipeline_class = "StableDiffusion3Pipeline"
    denoiser = "transformer"
    module: FlowModule

    @staticmethod
    def preflight(options: FlowOptions, *, key: str = "renderer") -> dict[str, int]:
        """Checks the pipeline and returns its sizes; see :func:`gotr1_diffusers.checkpoint.preflight`."""
        return checkpoint.preflight(options, key, FlowPolicy.pipeline_class)

    @staticmethod
    def preflight_lora(options: FlowOptions, config: LoraConfig) -> None:
        """Raises `UsageError` if a checkpoint on disk has no layer that `lora.targets` names."""
        check_lora_targets(options.model, config, "transformer")

    @staticmethod
    def preflight_prompts(options: FlowOptions, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        """Raises `UsageError` if the checkpoint's scheduler does not go with Flow-SDE, or with so many steps. Any prompt can be drawn."""
        del prompts
        _preflight_steps(options, sampling)

    @staticmethod
    def preflight_training(options: FlowOptions, sampling: Sampling, *, key: str = "renderer") -> None:
        """Raises `UsageError` if too few denoising steps have noise, and so none can train. ``key`` is for messages."""
        checkpoint.check_noise(options.noise_level, f"{key}.noise_level")
        if (steps := _preflight_steps(options, sampling)) is not None:
            check_trained_steps(steps.std, options, sampling)

    def make_module(self, pipeline: Any) -> FlowModule:
        """The trainable module, made of the pipeline's parts."""
        return FlowModule(pipeline, self.options, self.size)

    @property
    def patch(self) -> int:
        """Side of the transformer's patches, in latents."""
        return int(self.pipeline.patch_size)

    def condition_inputs(self, prompts: Sequence[Prompt], chains: Sequence[Chain]) -> dict[str, Tensor]:
        """Token ids of prompt and chain, ``clip [B, 2, 77]`` and ``t5 [B, text_tokens]``, cut to what the encoders read."""
        return self.module.tokenize([full_text(prompt, chain) for prompt, chain in zip(prompts, chains, strict=True)])

    def add_noise(self, latents: Tensor, noise: Tensor, uniform: Tensor) -> Noised:
        """Mixes latents and noise, each ``[B, C, h, w]``. The target is the velocity.

        The noise share t of a row has a logit-normal density (arXiv 2403.03206, section 3.1), shifted as by the scheduler. It is computed
        from ``uniform [B]`` in [0, 1).
        """
        shift, total = self.module.scheduler.config.shift, self.module.scheduler.config.num_train_timesteps
        t = torch.special.ndtri(uniform.clamp(1e-4, 1 - 1e-4)).sigmoid()
        t = shift * t / (1 + (shift - 1) * t)
        share = t[:, None, None, None]
        return Noised((1 - share) * latents + share * noise, t * total, noise - latents, torch.ones_like(t))
