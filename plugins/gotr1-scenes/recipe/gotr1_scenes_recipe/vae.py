"""Trains the VAE of the small SDXL (pictures of 64 x 64 pixels to latents of 8 x 8 and back) from scratch.

    python -m gotr1_scenes_recipe.vae --out build/sdxl/vae

The class is diffusers' ``AutoencoderKL``. The loss is the reconstruction error plus a divergence from N(0, 1) (arXiv 1312.6114). The
divergence has so small a weight that pictures stay sharp. It makes the decoder robust to a little noise, which a denoiser leaves. At the
end the latents get mean 0 and std 1 in every channel, by changing the 1 x 1 convolutions before and after them. So ``scaling_factor`` is 1.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from gotr1_scenes.painter import BACKGROUND, paint_array
from gotr1_scenes.reader import read_things
from gotr1_scenes_recipe.pictures import random_scene
from gotr1_scenes_recipe.state import resume, save

SIDE, CHANNELS = 64, 8
LEVELS = (16, 16, 32, 96)
DIVERGENCE = 2e-3  # weight of the divergence
STEPS, EVERY = 3000, 250  # training steps; steps between saves


def make_vae() -> AutoencoderKL:
    """Returns an untrained VAE with four levels, so that eight pixels along a side become one latent."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(LEVELS),
        up_block_types=("UpDecoderBlock2D",) * len(LEVELS),
        block_out_channels=LEVELS,
        latent_channels=CHANNELS,
        norm_num_groups=8,
        sample_size=SIDE,
        scaling_factor=1.0,
        force_upcast=False,
    )


def pixels_of(pictures: np.ndarray) -> Tensor:
    """Converts ``uint8 [B, H, W, 3]`` to ``float32 [B, 3, H, W]`` in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(127.5).sub_(1).contiguous()


def batch(step: int, size: int, seed: int) -> np.ndarray:
    """Returns pictures ``uint8 [B, H, W, 3]`` of one step. They depend on seed and step alone, so a resumed run sees the same."""
    return np.stack([paint_array(random_scene(f"vae/{seed}/{step}/{i}"), SIDE) for i in range(size)])


def update(model: AutoencoderKL, optimizer: torch.optim.Optimizer, pictures: np.ndarray) -> dict[str, float]:
    """Takes one optimizer step on pictures ``uint8 [B, H, W, 3]``; returns the values to log."""
    pixels, foreground = pixels_of(pictures), torch.from_numpy((pictures != BACKGROUND).any(-1)).unsqueeze(1)
    posterior = model.encode(pixels).latent_dist
    mean, logvar = posterior.mean, posterior.logvar
    difference = model.decode(mean + posterior.std * torch.randn_like(mean)).sample - pixels
    rebuilt = ((1 + 3 * foreground) * (difference.abs() + difference.square())).mean()
    divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    optimizer.zero_grad(set_to_none=True)
    (rebuilt + DIVERGENCE * divergence).backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    noise = posterior.std.mean() / mean.std()
    row = {"rebuilt": rebuilt, "l1": difference.abs().mean(), "kl": divergence, "noise": noise, "gradient_norm": norm}
    return {name: round(float(value.detach()), 5) for name, value in row.items()}


def train(out: Path, *, steps: int = STEPS, size: int = 16, rate: float = 2e-3, seed: int = 0) -> None:
    """Trains until ``steps`` and writes the model. It saves on the way, so that an interrupted run continues."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = make_vae().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    first = resume(out, model, optimizer)
    begun = time.time()
    with (out / "log.jsonl").open("a") as log:
        for step in range(first, steps):
            torch.manual_seed(seed * 1_000_003 + step)  # for the noise, so that a resumed run draws the same
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
            row: dict[str, float] = update(model, optimizer, batch(step, size, seed))
            if step % 50 == 0 or step + 1 == steps:
                if step % 500 == 0 or step + 1 == steps:
                    row["read_right"] = read_right(model, 100)
                line = json.dumps({"step": step, **row, "seconds": round(time.time() - begun, 1)})
                print(line, file=log, flush=True)
                print(line, flush=True)
            if (step + 1) % EVERY == 0 or step + 1 == steps:
                save(out, model, optimizer, step + 1)
    normalise(model.eval(), 500)
    model.save_pretrained(out)


@torch.no_grad()
def rebuild(model: AutoencoderKL, pictures: np.ndarray) -> np.ndarray:
    """Returns pictures after encoding and decoding; both are ``uint8 [B, H, W, 3]``."""
    drawn = model.decode(model.encode(pixels_of(pictures)).latent_dist.mode()).sample
    return ((drawn.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def read_right(model: AutoencoderKL, count: int) -> float:
    """Returns the share of ``count`` pictures that are read as the same scene after the VAE."""
    scenes = [random_scene(f"vae/check/{i}") for i in range(count)]
    pictures = np.stack([paint_array(scene, SIDE) for scene in scenes])
    same = [
        read_things(Image.fromarray(a)) == read_things(Image.fromarray(b)) for a, b in zip(pictures, rebuild(model, pictures), strict=True)
    ]
    return sum(same) / count


@torch.no_grad()
def normalise(model: AutoencoderKL, count: int) -> None:
    """Gives the latents mean 0 and std 1 in every channel, and changes the decoder to match. Reconstructions stay the same."""
    pictures = np.stack([paint_array(random_scene(f"vae/scale/{i}"), SIDE) for i in range(count)])
    latents = torch.cat([model.encode(chunk).latent_dist.mode() for chunk in pixels_of(pictures).split(50)])
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    before, after = model.quant_conv, model.post_quant_conv
    before.bias[:CHANNELS] = (before.bias[:CHANNELS] - mean) / std
    before.weight[:CHANNELS] /= std[:, None, None, None]
    before.bias[CHANNELS:] -= 2 * std.log()  # these channels are logarithms of variances
    after.bias += after.weight[:, :, 0, 0] @ mean
    after.weight *= std[None, :, None, None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    train(args.out, steps=args.steps, seed=args.seed)


if __name__ == "__main__":
    main()
