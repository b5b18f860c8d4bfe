"""Renderer ``sdxl``: Stable Diffusion XL (arXiv 2307.01952) with noisy DDIM steps. The plan's boxes steer its cross-attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gotr1_core.chain import SCALE, Chain
from gotr1_core.config.models import LoraConfig
from gotr1_core.policies.lora import check_lora_targets
from gotr1_core.samples import Prompt, Sampling
from gotr1_diffusers import checkpoint
from gotr1_diffusers.module import Condition, DiffusionModule
from gotr1_diffusers.options import SdxlOptions
from gotr1_diffusers.policy import DiffusionPolicy, Noised
from gotr1_diffusers.regions import Keys, Regions, attention_sizes, install_processors
from gotr1_diffusers.schedulers import ddim_scheduler, preflight_scheduler, sdxl_steps
from gotr1_diffusers.steps import Steps
from gotr1_diffusers.text import ClipTexts, encode_texts, full_text
from gotr1_diffusers.windows import check_trained_steps


@dataclass(frozen=True)
class SdxlCondition(Condition):
    """Text states and their mask, the pooled state, and the regions."""

    text: Tensor  # [B, L, D]
    text_mask: Tensor  # [B, L] booleans: false where a row has fewer pieces of text than others
    pooled: Tensor  # [B, D']
    phrases: Tensor  # [B, R, 77, D]
    boxes: Tensor  # [B, R, 4] in shares of width and height; zeros where a row has fewer regions


class SdxlModule(DiffusionModule[SdxlCondition]):
    """UNet, two CLIP text encoders and VAE of SDXL. ``size`` is height and width of the pictures in pixels."""

    def __init__(self, pipeline: Any, options: SdxlOptions, size: tuple[int, int]) -> None:
        super().__init__(pipeline.unet, [pipeline.text_encoder, pipeline.text_encoder_2], pipeline.vae)
        install_processors(pipeline.unet)
        self.options, self.size = options, size
        self.zero_unconditional = bool(pipeline.config.force_zeros_for_empty_prompt)
        self.scheduler = ddim_scheduler(pipeline.scheduler, options)
        self.texts = ClipTexts([pipeline.tokenizer, pipeline.tokenizer_2], list(self.text_encoders))
        factor = pipeline.vae_scale_factor
        self.resolutions = attention_sizes(pipeline.unet, size[0] // factor, size[1] // factor)

    def steps(self, sampling: Sampling) -> Steps:
        """The steps of DDIM. The options give their spacing, or else the checkpoint's scheduler."""
        return sdxl_steps(self.scheduler, self.options, sampling)

    def encode(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """States ``[..., 77, D]`` and pooled states ``[..., D']`` of pieces ``[..., 2, 77]``. Gradients flow if the text encoders train."""
        trains = self.options.train_text and torch.is_grad_enabled()
        with torch.set_grad_enabled(trains):
            states, pooled = encode_texts(list(self.text_encoders), ids.flatten(0, -3))
        return states.unflatten(0, ids.shape[:-2]), pooled.unflatten(0, ids.shape[:-2])

    def condition(self, inputs: Mapping[str, Tensor]) -> SdxlCondition:
        """Encodes ``text [B, P, 2, 77]``, of which row b has ``pieces [B]``, and ``phrases [B, R, 2, 77]`` with ``boxes [B, R, 4]``."""
        ids, phrases = inputs["text"], inputs["phrases"]
        pieces, length = ids.shape[1], ids.shape[-1]
        states, pooled = self.encode(torch.cat([ids, phrases], 1))
        mask = torch.arange(pieces, device=ids.device) < inputs["pieces"].unsqueeze(1)
        mask = mask.repeat_interleave(length, 1)
        return SdxlCondition(states[:, :pieces].flatten(1, 2), mask, pooled[:, 0], states[:, pieces:], inputs["boxes"])

    def unconditional(self, condition: SdxlCondition) -> SdxlCondition:
        """Zeros if the checkpoint's ``force_zeros_for_empty_prompt`` says so, else the empty text. Without regions."""
        mask = torch.zeros_like(condition.text_mask)
        mask[:, : self.texts.length] = True
        text, pooled = torch.zeros_like(condition.text), torch.zeros_like(condition.pooled)
        if not self.zero_unconditional:
            states, pooled_states = self.encode(self.texts.pieces("").unsqueeze(0).to(self.device))
            text[:, : self.texts.length] = states[0, 0]
            pooled[:] = pooled_states[0, 0]
        return SdxlCondition(text, mask, pooled, torch.zeros_like(condition.phrases), torch.zeros_like(condition.boxes))

    def output(
        self,
        latents: Tensor,
        timesteps: Tensor,
        conditional: SdxlCondition,
        unconditional: SdxlCondition | None,
        keys: Keys | None = None,
    ) -> Tensor:
        """The UNet's output for latents ``[B, C, h, w]`` at ``timesteps [B]``: noise, velocity or picture, by the checkpoint's kind.

        Of shape ``[B, C, h, w]``, or ``[2B, C, h, w]`` with an unconditional condition.
        """
        conditions = [conditional] if unconditional is None else [conditional, unconditional]
        text, mask, pooled = (torch.cat([getattr(c, name) for c in conditions]) for name in ("text", "text_mask", "pooled"))
        x, t = latents.to(self.dtype).repeat(len(conditions), 1, 1, 1), timesteps.repeat(len(conditions))
        height, width = self.size
        time_ids = torch.tensor([height, width, 0, 0, height, width], dtype=self.dtype, device=x.device).expand(len(x), 6)
        output: Tensor = self.model(
            x,
            t,
            encoder_hidden_states=text.to(self.dtype),
            # diffusers adds -10,000 to the attention logits of masked positions, so their weight is exactly 0.
            encoder_attention_mask=None if mask.all() else mask,
            added_cond_kwargs={"text_embeds": pooled.to(self.dtype), "time_ids": time_ids},
            cross_attention_kwargs={"regions": self._regions(conditional, timesteps), "keys": keys},
            return_dict=False,
        )[0]
        return output

    def _regions(self, condition: SdxlCondition, timesteps: Tensor) -> Regions | None:
        """The regions of the conditional rows, in the first ``regional_share`` of the denoising; strength 0 later."""
        total = self.scheduler.config.num_train_timesteps
        early = timesteps >= (1 - self.options.regional_share) * total
        strength = self.options.strength * early.to(condition.boxes.dtype)
        return Regions.of(condition.phrases.to(self.dtype), condition.boxes, strength, self.resolutions)


def _preflight_steps(options: SdxlOptions, sampling: Sampling) -> Steps | None:
    """The denoising steps of a checkpoint that is not loaded yet; None before a download. Raises `UsageError` as :func:`sdxl_steps`."""
    scheduler = preflight_scheduler(options, SdxlPolicy.pipeline_class)
    return None if scheduler is None else sdxl_steps(ddim_scheduler(scheduler, options), options, sampling)


class SdxlPolicy(DiffusionPolicy[SdxlOptions]):
    """Draws plans with SDXL. ``options.layout`` says how boxes are used.

    To add a layout that paints boxes, join them to the latents in :meth:`SdxlModule.output`, and add its tensors to
    :meth:`condition_inputs`.
    """

    pipeline_class = "StableDiffusionXLPipeline"
    denoiser = "unet"
    module: SdxlModule

    @staticmethod
    def preflight(options: SdxlOptions, *, key: str = "renderer") -> dict[str, int]:
        """Checks the pipeline and returns its sizes; see :func:`gotr1_diffusers.checkpoint.preflight`."""
        return checkpoint.preflight(options, key, SdxlPolicy.pipeline_class)

    @staticmethod
    def preflight_lora(options: SdxlOptions, config: LoraConfig) -> None:
        """Raises `UsageError` if a checkpoint on disk has no layer that `lora.targets` names."""
        check_lora_targets(options.model, config, "unet")

    @staticmethod
    def preflight_prompts(options: SdxlOptions, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        """Raises `UsageError` if the checkpoint's scheduler does not go with DDIM, or with so many steps. Any prompt can be drawn."""
        del prompts
        _preflight_steps(options, sampling)

    @staticmethod
    def preflight_training(options: SdxlOptions, sampling: Sampling, *, key: str = "renderer") -> None:
        """Raises `UsageError` if too few denoising steps have noise, and so none can train. ``key`` is for messages."""
        checkpoint.check_noise(options.eta, f"{key}.eta")
        if (steps := _preflight_steps(options, sampling)) is not None:
            check_trained_steps(steps.std, options, sampling)

    def make_module(self, pipeline: Any) -> SdxlModule:
        """The trainable module, made of the pipeline's parts."""
        return SdxlModule(pipeline, self.options, self.size)

    def condition_inputs(self, prompts: Sequence[Prompt], chains: Sequence[Chain]) -> dict[str, Tensor]:
        """Token ids ``text [B, P, 2, 77]`` of prompt and chain in pieces, and how many ``pieces [B]`` a row has.

        Also ``phrases [B, R, 2, 77]`` of the regions and their ``boxes [B, R, 4]``, in shares of width and height.
        """
        texts = self.module.texts
        pieces = [list(texts.pieces(full_text(prompt, chain))) for prompt, chain in zip(prompts, chains, strict=True)]
        text, piece_counts = texts.stack(pieces)
        regions = [chain.regions if self.options.layout == "regional" else () for chain in chains]
        phrases, _ = texts.stack([[texts.first_piece(region.phrase) for region in row] for row in regions])
        boxes = torch.zeros(*phrases.shape[:2], 4)
        for row, row_regions in enumerate(regions):
            for column, region in enumerate(row_regions):
                boxes[row, column] = torch.tensor(region.box) / SCALE
        return {"text": text, "pieces": piece_counts, "phrases": phrases, "boxes": boxes}

    def add_noise(self, latents: Tensor, noise: Tensor, uniform: Tensor) -> Noised:
        """Mixes latents and noise, each ``[B, C, h, w]``, at timesteps from ``uniform [B]`` in [0, 1). All timesteps are equally likely.

        With ``snr_gamma`` γ the loss is weighted by min(SNR, γ) (arXiv 2303.09556), else by 1.
        """
        scheduler, gamma = self.module.scheduler, self.options.snr_gamma
        alphas = scheduler.alphas_cumprod.to(latents.device)
        timesteps = (uniform * len(alphas)).long().clamp_max(len(alphas) - 1)  # float32 may round up to len(alphas)
        alpha = alphas[timesteps][:, None, None, None]
        signal, rest = alpha.sqrt(), (1 - alpha).sqrt()
        kind = scheduler.config.prediction_type
        target = {"epsilon": noise, "v_prediction": signal * noise - rest * latents, "sample": latents}[kind]
        ratio = alphas[timesteps] / (1 - alphas[timesteps])
        # min(SNR, γ) weights the squared error in x₀. The error in ε is SNR times as large, that in v SNR + 1 times.
        scale = {"epsilon": ratio, "v_prediction": ratio + 1, "sample": torch.ones_like(ratio)}[kind]
        weight = torch.ones_like(ratio) if gamma is None else ratio.clamp_max(gamma) / scale
        return Noised(signal * latents + rest * noise, timesteps, target, weight)
