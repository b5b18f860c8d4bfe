"""Planner and renderer ``janus``: one autoregressive policy in both roles (Janus-Pro, arXiv 2501.17811; GoT-R1, 2505.17022)."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from gotr1_core.chain import Chain
from gotr1_core.config.models import LoraConfig
from gotr1_core.data.prompts import prompt_texts
from gotr1_core.errors import UsageError
from gotr1_core.policies.continuation import Memory
from gotr1_core.policies.decoder import checkpoint_activations, generate_plans, plans_from_chains
from gotr1_core.policies.lora import check_lora_targets, merged_state, save_adapter
from gotr1_core.policies.pretrained import load_checkpoint
from gotr1_core.protocols import Loss
from gotr1_core.samples import IMAGE, PLAN, Example, Prompt, Rollout, Sampling
from gotr1_core.sampling import Tokens, seed_for, uniforms
from gotr1_janus import checkpoint
from gotr1_janus.convert import KEPT
from gotr1_janus.module import JanusModule
from gotr1_janus.options import JanusOptions
from gotr1_janus.sampler import sample_image, sample_text
from gotr1_janus.text import JanusText

if TYPE_CHECKING:
    from transformers import JanusForConditionalGeneration


class JanusPolicy:
    """Samples the chain and then the image tokens in one sequence. ``module`` computes both log-probabilities in one forward pass."""

    lora_prefix = "model.model.language_model"  # not the vision tower, the aligners or the heads

    def __init__(self, options: JanusOptions, *, device: torch.device | str = "cpu") -> None:
        # Repeats the preflight's checks for callers without one. It is cheap: it reads headers only.
        source, imported = checkpoint.find_janus(options.model)
        from transformers import JanusForConditionalGeneration  # takes seconds, so only after the checks
        from transformers.utils import logging

        if not sys.stderr.isatty():  # no progress bars in log files
            logging.disable_progress_bar()

        tokenizer = checkpoint.load_tokenizer(source)
        JanusText(tokenizer, options.instruction)  # checks the template before the weights are read
        model, info = load_checkpoint(JanusForConditionalGeneration, source, dtype=getattr(torch, options.dtype))
        if info["missing_keys"]:  # transformers would use random weights in their place
            missing = sorted(info["missing_keys"])
            raise UsageError(
                f"{options.model} is not a complete Janus checkpoint: {missing[0]} and {len(missing) - 1} more weights are missing",
                hint="give a checkpoint that transformers' JanusForConditionalGeneration saved",
            )
        self._set_up(model, tokenizer, options, str(source) if imported else options.model, device)

    @classmethod
    def from_model(cls, model: JanusForConditionalGeneration, tokenizer: Any, options: JanusOptions, *, device: str = "cpu") -> JanusPolicy:
        """A policy of a ``model`` in memory, which is not copied. ``options.model`` is only recorded as where it came from."""
        policy = cls.__new__(cls)
        policy._set_up(model, tokenizer, options, options.model, device)
        return policy

    def _set_up(
        self, model: JanusForConditionalGeneration, tokenizer: Any, options: JanusOptions, base: str, device: torch.device | str
    ) -> None:
        self.options, self.tokenizer, self.base = options, tokenizer, base
        self.text = JanusText(tokenizer, options.instruction)
        model.to(device)
        model.model.language_model.set_attn_implementation(options.attention)
        model.eval()  # no dropout, neither in sampling nor in the training pass
        boi = tokenizer.convert_tokens_to_ids(tokenizer.boi_token)
        self.module = JanusModule(model, boi=boi, pad=tokenizer.pad_token_id, chunk=options.chunk)
        # The VQ codes are fixed, and text-to-image does not use the path that reads pictures.
        for frozen in (model.model.vqmodel, model.model.vision_model, model.model.aligner, model.model.generation_embeddings):
            frozen.requires_grad_(False)
        self.image_tokens = model.model.vqmodel.config.num_patches**2
        self.fixed = options.cache == "static"
        self.features = model.config.text_config.hidden_size
        self.window = checkpoint.context_window(self.text, model.config)

    @staticmethod
    def preflight(options: JanusOptions, *, key: str = "planner") -> dict[str, int]:
        """Checks the checkpoint and returns its sizes; see :func:`gotr1_janus.checkpoint.preflight`."""
        return checkpoint.preflight(options, key)

    @staticmethod
    def preflight_lora(options: JanusOptions, config: LoraConfig) -> None:
        """Raises `UsageError` if a checkpoint on disk has no layer that `lora.targets` names."""
        check_lora_targets(options.model, config)

    @staticmethod
    def preflight_prompts(options: JanusOptions, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        """The same as `check_prompts`, before weights are loaded. Checks nothing before a download."""
        if (window := checkpoint.janus_window(options)) is not None:
            window.check(prompt_texts(prompts), sampling.max_chain_tokens)

    # -- text ---------------------------------------------------------------------------------------------------------------

    def encode_prompt(self, prompt: Prompt) -> Tensor:
        """Token ids ``[P]`` of the conversation up to where the model's answer begins, int64."""
        return torch.tensor(self.text.encode_prompt(prompt.text))

    def encode_chain(self, chain: Chain) -> Tensor:
        """Token ids ``[T]`` of a chain, without begin-of-image, int64."""
        return torch.tensor(self.text.encode_chain(chain.raw), dtype=torch.long)

    def decode_chain(self, ids: Tensor) -> Chain:
        """The chain that token ids ``[T]`` spell."""
        return self.text.decode_chain(ids)

    def check_prompts(self, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        """Checks that every prompt can be planned and drawn. Raises `UsageError` if one is blank or too long for the model's context."""
        self.window.check(prompt_texts(prompts), sampling.max_chain_tokens)

    # -- pictures -----------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """VQ codes ``[B, I]`` of pictures, int64. Takes the code with the largest cosine, as the decoder normalises its codes."""
        vq = self.module.model.model.vqmodel
        side = vq.config.num_patches * 2 ** (len(vq.config.channel_multiplier) - 1)
        resized = np.stack([np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)) for image in images])
        pixels = torch.from_numpy(resized).to(self.module.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        dtype = vq.quantize.embedding.weight.dtype
        with torch.autocast(self.module.device.type, enabled=False):
            latents = F.normalize(vq.quant_conv(vq.encoder(pixels.to(dtype))).float().permute(0, 2, 3, 1), dim=-1)
            codes = F.normalize(vq.quantize.embedding.weight.float(), dim=-1)
            return (latents @ codes.T).argmax(-1).flatten(1)

    @torch.no_grad()
    def decode_images(self, tokens: Tensor) -> tuple[Image.Image | None, ...]:
        """RGB pictures of VQ codes ``[B, I]``; None where a pixel is not finite."""
        if not len(tokens):
            return ()
        vq = self.module.model.model.vqmodel
        with torch.autocast(self.module.device.type, enabled=False):
            pixels = torch.cat([vq.decode(batch) for batch in tokens.split(32)])
        finite = pixels.isfinite().flatten(1).all(1).tolist()
        pixels = (pixels.float().clamp(-1, 1) + 1) * 127.5
        levels = pixels.round().byte().permute(0, 2, 3, 1).cpu().numpy()
        return tuple(Image.fromarray(picture) if ok else None for picture, ok in zip(levels, finite, strict=True))

    # -- the two roles ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def plan(self, prompts: Sequence[Prompt], *, seeds: Sequence[int], sampling: Sampling) -> Rollout:
        """Samples one chain per prompt and seed. Neighbouring equal prompts share one prefill."""
        encoded = [self.window.encode(p.text, sampling.max_chain_tokens)[0].to(self.module.device) for p in prompts]

        def write(context: Tensor, lengths: Tensor, uniform: Tensor) -> tuple[Tokens, Memory]:
            return sample_text(self.module, context, lengths, uniform, sampling.temperature, fixed=self.fixed)

        return generate_plans(encoded, write, self.decode_chain, seeds=seeds, sampling=sampling)

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
        """Draws one picture per prompt, chain and seed. ``plans`` has the chains as tokens if this policy sampled them itself."""
        del groups  # every token is an action, so nothing is drawn per group
        if plans is None:
            plans = self._encode_plans(prompts, chains, sampling)
        t = plans.tensors
        device = self.module.device
        plan_rows = zip(t["prompt"], t["prompt_length"].tolist(), t["tokens"], t["length"].tolist(), strict=True)
        boi = torch.tensor([self.module.boi], device=device)
        contexts = [torch.cat([prompt[:n].to(device), chain[:m].to(device), boi]) for prompt, n, chain, m in plan_rows]
        scale = sampling.guidance_scale if sampling.guidance_scale != 1 else None
        memory = plans.memory if isinstance(plans.memory, Memory) and plans.memory.holds(self.module.language) else None
        drawn = sample_image(
            self.module, contexts, uniforms(seeds, self.image_tokens), sampling.image_temperature, scale, memory=memory, fixed=self.fixed
        )
        tensors = {"prompt": t["prompt"], "prompt_length": t["prompt_length"], "plan": t["tokens"], "plan_length": t["length"]}
        tensors |= {
            "tokens": drawn.tokens,
            "mask": drawn.mask,
            "log_prob": drawn.log_prob,
            "parent": torch.arange(len(seeds), device=device),
        }
        sampled = drawn.log_prob.isfinite().all(1).tolist()  # not where logits were not finite
        images = [image if ok else None for image, ok in zip(self.decode_images(drawn.tokens), sampled, strict=True)]
        return Rollout(IMAGE, sampling, tensors, images=tuple(images))

    def _encode_plans(self, prompts: Sequence[Prompt], chains: Sequence[Chain], sampling: Sampling) -> Rollout:
        """Chains from elsewhere as a plan rollout. Each ends with begin-of-image."""
        encoded = [self.window.encode(p.text, c) for p, c in zip(prompts, chains, strict=True)]
        return plans_from_chains(encoded, self.module.boi, chains, sampling=sampling, device=self.module.device)

    # -- stage one ----------------------------------------------------------------------------------------------------------

    def supervised_loss(self, module: nn.Module, examples: Sequence[Example], *, seed: int) -> Loss:
        """-log p of chains and image tokens, summed over tokens.

        A share ``drop_conditions`` of the examples has no prompt and chain and trains the picture alone, so that guidance works.
        """
        sampling = Sampling(guidance_scale=1.0)
        prompts = [e.prompt for e in examples]
        images = [e.image for e in examples if e.image is not None]
        if len(images) != len(examples):
            raise ValueError("janus learns from prompt, chain and picture, but an example has no picture")
        plan = self._encode_plans(prompts, [e.chain for e in examples], sampling)
        device = self.module.device
        dropped = uniforms([seed_for(seed, "drop")], len(examples))[0].to(device) < self.options.drop_conditions
        tokens = self.encode_images(images)
        t = plan.tensors
        tensors = {"prompt": t["prompt"], "prompt_length": t["prompt_length"], "plan": t["tokens"], "plan_length": t["length"]}
        tensors |= {"tokens": tokens, "mask": torch.ones_like(tokens, dtype=torch.bool), "dropped": dropped}
        tensors["parent"] = torch.arange(len(examples), device=device)
        plan.tensors["mask"].masked_fill_(dropped.unsqueeze(1), False)
        image = Rollout(IMAGE, sampling, tensors)
        stats = module({PLAN: plan, IMAGE: image})
        masks = {PLAN: plan.tensors["mask"], IMAGE: image.tensors["mask"]}
        sums = {name: -(stats[name].log_prob * masks[name]).sum() for name in masks}
        return Loss(sums, {name: mask.sum() for name, mask in masks.items()})

    def enable_gradient_checkpointing(self) -> None:
        """Recomputes the language model's activations in the backward pass. Raises `UsageError` if it has dropout: that would be on."""
        checkpoint_activations(self.module.model.model.language_model)
        self.module.checkpointing = True

    # -- on disk ------------------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Writes the full model as a transformers checkpoint, with adapters merged, and its tokenizer."""
        self.module.model.save_pretrained(folder, state_dict=merged_state(self.module.model))
        self.tokenizer.save_pretrained(folder)
        kept = Path(self.base).expanduser() / KEPT
        if kept.is_dir():  # `gotr1 import --export` needs it
            shutil.copytree(kept, folder / KEPT)

    def save_adapter(self, folder: Path) -> None:
        """Writes the adapters alone. peft loads them onto the checkpoint that the options name."""
        save_adapter(self.module, "model", folder, base=self.base)
