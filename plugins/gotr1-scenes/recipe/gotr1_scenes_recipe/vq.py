"""Trains the miniature's VQ model (pictures to tokens and back) from scratch.

    python -m gotr1_scenes_recipe.vq --out build/vq

The class is transformers' ``JanusVQVAE``. Its ``decode`` uses L2-normalised codes. So latents and codebook are normalised here too, and
the nearest code is the one with the largest cosine. Gradients of the reconstruction pass straight through the
quantiser (van den Oord et al., 2017, arXiv 1711.00937).

The embedded world has few distinct patches, and they can be listed. So every patch has its own code, and a cross-entropy over the cosines
teaches encoder and codebook to distinguish them. Without it the encoder spreads its information about a patch over the codes of
neighbouring patches. A trial had 3.4 nats of entropy in the code of a given patch. The language model would have to learn it all as noise.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import JanusVQVAE, JanusVQVAEConfig

from gotr1_scenes.painter import paint_array, patch_numbers, patch_table
from gotr1_scenes.world import CANVAS, CELL
from gotr1_scenes_recipe.pictures import random_scene
from gotr1_scenes_recipe.state import resume, save

TEMPERATURE = 0.1
CONFIG = JanusVQVAEConfig(
    embed_dim=8,
    num_embeddings=len(patch_table()),
    latent_channels=64,
    base_channels=32,
    channel_multiplier=[1, 1, 2, 2],
    num_res_blocks=1,
    num_patches=CANVAS // CELL,
    projection_dim=64,
    image_token_embed_dim=64,
)


def to_pixels(pictures: np.ndarray) -> Tensor:
    """Converts ``uint8 [B, H, W, 3]`` to ``float32 [B, 3, H, W]`` in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(127.5).sub_(1).contiguous()


def batch(step: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Returns pictures ``[B, 3, H, W]`` of one step and their patch numbers ``[B, h, w]``.

    They depend on seed and step alone, so a resumed run sees the same.
    """
    pictures = [paint_array(random_scene(f"vq/{seed}/{step}/{i}")) for i in range(size)]
    side = CANVAS // CELL
    return to_pixels(np.stack(pictures)), torch.tensor([patch_numbers(p) for p in pictures]).view(size, side, side)


def latents(model: JanusVQVAE, pixels: Tensor) -> Tensor:
    """Returns latents ``[B, h, w, embed_dim]`` of length 1."""
    return F.normalize(model.quant_conv(model.encoder(pixels)).float().permute(0, 2, 3, 1), dim=-1)


def decode(model: JanusVQVAE, codes: Tensor) -> Tensor:
    """Returns pixels ``[B, 3, H, W]`` of codes ``[B, h, w, embed_dim]``, which have length 1."""
    return model.decoder(model.post_quant_conv(codes.permute(0, 3, 1, 2)))


def train(out: Path, *, steps: int, size: int, rate: float, seed: int, threads: int) -> None:
    """Trains until ``steps``. It saves every 250 steps, so that an interrupted run continues."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    model = JanusVQVAE(CONFIG).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    first = resume(out, model, optimizer)
    begun = time.time()
    with (out / "log.jsonl").open("a") as log:
        for step in range(first, steps):
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
            row = update(model, optimizer, *batch(step, size, seed))
            if step % 50 == 0 or step + 1 == steps:
                line = json.dumps({"step": step, **row, "seconds": round(time.time() - begun, 1)})
                print(line, file=log, flush=True)
                print(line, flush=True)
            if (step + 1) % 250 == 0 or step + 1 == steps:
                save(out, model, optimizer, step + 1)
    model.save_pretrained(out)


def update(model: JanusVQVAE, optimizer: torch.optim.Optimizer, pixels: Tensor, numbers: Tensor) -> dict[str, float]:
    """Takes one optimizer step on pictures ``[B, 3, H, W]`` with patch numbers ``[B, h, w]``; returns the values to log."""
    codebook = F.normalize(model.quantize.embedding.weight, dim=-1)
    with torch.autocast("cpu", torch.bfloat16):
        z = latents(model, pixels)
        e = codebook[numbers]
        drawn = decode(model, z + (e - z).detach() + (e - e.detach())).float()
    cosines = z.flatten(0, 2) @ codebook.T
    weight = torch.where(numbers == 0, 0.05, 1.0).flatten()  # most patches are empty
    code_loss = F.cross_entropy(cosines / TEMPERATURE, numbers.flatten(), reduction="none")
    code_loss = (weight * code_loss).sum() / weight.sum()
    difference = drawn - pixels
    pixel_weight = 1 + 3 * (numbers > 0).float().repeat_interleave(CELL, 1).repeat_interleave(CELL, 2).unsqueeze(1)
    rebuilt = (pixel_weight * (difference.abs() + difference.square())).mean()
    optimizer.zero_grad(set_to_none=True)
    (rebuilt + 0.1 * code_loss).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    right = (cosines.argmax(-1) == numbers.flatten())[numbers.flatten() > 0].float().mean()
    return {
        name: round(float(value.detach()), 5)
        for name, value in {"rebuilt": rebuilt, "apart": code_loss, "l1": difference.abs().mean(), "codes_right": right}.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    train(args.out, steps=args.steps, size=args.batch, rate=args.rate, seed=args.seed, threads=args.threads)


if __name__ == "__main__":
    main()
