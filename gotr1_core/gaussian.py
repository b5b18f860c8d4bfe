"""Gaussian actions, such as denoising steps: log-probability, entropy and divergence in closed form.

All are means over latent dimensions, not sums. A sum over the 65,536 numbers of a picture's latents would make any ratio 0 or infinite
after one update. So the unit is nats per dimension, and the ratio of a step is the geometric mean of its dimensions' ratios.
"""

from __future__ import annotations

import math

from torch import Tensor


def log_prob(action: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log-probability ``[*S]`` of actions ``[*S, ...]`` under N(mean, std²); ``std [*S]`` is the same in every dimension."""
    rank = std.dim()
    distance = (action - mean).flatten(rank).square().mean(rank) / std.square()
    return -0.5 * distance - std.log() - 0.5 * math.log(2 * math.pi)


def entropy(std: Tensor) -> Tensor:
    """Entropy ``[*S]`` of N(·, std²)."""
    return std.log() + 0.5 * math.log(2 * math.pi * math.e)


def divergence(mean: Tensor, other: Tensor, std: Tensor) -> Tensor:
    """KL divergence ``[*S]`` of N(mean, std²) and N(other, std²), the same in both directions: (mean − other)² / 2 std²."""
    rank = std.dim()
    return (mean - other).flatten(rank).square().mean(rank) / (2 * std.square())
