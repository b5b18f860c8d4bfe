"""Gaussian actions, such as denoising steps: log-probability, entropy and divergence in closed form.

All are means over latent dimensions, not sums: a sum over the 65,536 numbers of a picture's latents would make any ratio 0 or infinite
after one update. So they are nats per dimension, and the ratio of a step is the geometric mean of its dimensions' ratios.
"""

from __future__ import annotations

import math

from torch import Tensor


def log_prob(action: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Of actions ``[*S, ...]`` under N(mean, deviation²), std ``[*S]`` the same in every dimension; ``[*S]``."""
    kept = std.dim()
    apart = (action - mean).flatten(kept).square().mean(kept) / std.square()
    return -0.5 * apart - std.log() - 0.5 * math.log(2 * math.pi)


def entropy(std: Tensor) -> Tensor:
    """Of N(·, deviation²), ``[*S]``."""
    return std.log() + 0.5 * math.log(2 * math.pi * math.e)


def divergence(mean: Tensor, other: Tensor, std: Tensor) -> Tensor:
    """KL(N(mean, deviation²), N(other, deviation²)) in either direction: (mean − other)² / 2 deviation², ``[*S]``."""
    kept = std.dim()
    return (mean - other).flatten(kept).square().mean(kept) / (2 * std.square())
