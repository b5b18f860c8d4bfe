"""Tolerances for numbers that are the same in exact arithmetic, per data type of the weights, and why."""

from __future__ import annotations

import torch

STANDARD_ERRORS = 4.5
"""Limit of a statistical check. Seeds are fixed, so a check always gives the same verdict. A correct component fails for one choice of
seeds in 150,000 per number compared."""

EXACT = 1e-9
"""Relative, for float64 sums of up to some 10,000 terms of size one. Their rounding error is 1e-13, and no mistake is as small."""


def log_prob_limit(dtype: torch.dtype, guidance_scale: float, temperature: float) -> tuple[float, bool]:
    """The largest allowed difference between log-probabilities of the same actions that were computed in batches of other shapes.

    A matrix product rounds differently in another batch shape. Logits of size 30 are off by about 30 units of rounding, and the layers
    of a network add to that. Guidance w multiplies the error by up to 2w - 1, a temperature divides it.

    - float32: the unit is 6e-8, so 2e-6 per logit and 4e-6 with its normaliser. The limit is five times that, for depth.
    - float64: the core's sampler computes its log-probabilities in float32, whatever the weights are.
    - Half types are compared by the mean: the largest of thousands says nothing at their units (bfloat16 4e-3, float16 5e-4). A sampler
      that runs outside autocast is 0.03 off per token (facts of the project), and a wrong distribution tenths of a nat.

    Args:
        dtype: of the weights.
        guidance_scale: w.
        temperature: of the sampler.

    Returns:
        The limit in nats, and true if it limits the mean difference, false if the largest.
    """
    factor = max(1.0, 2 * guidance_scale - 1) / min(1.0, temperature)
    if dtype == torch.bfloat16:
        return 0.02 * factor, True
    if dtype == torch.float16:
        return 0.003 * factor, True
    return (1e-6 if dtype == torch.float64 else 2e-5) * factor, False


def gradient_tolerance(dtype: torch.dtype) -> float:
    """The largest allowed difference of gradient entries that were summed in another order, relative to the largest entry."""
    return {torch.float64: 1e-9, torch.float16: 2e-2, torch.bfloat16: 1e-1}.get(dtype, 1e-4)
