"""How far numbers may be apart that are the same in exact arithmetic, per type of the weights, and why."""

from __future__ import annotations

import torch

STANDARD_ERRORS = 4.5
"""Limit of a statistical check. Seeds are fixed, so it passes or fails for good; a sound component fails one choice of seeds in
150,000 per number compared."""

EXACT = 1e-9
"""Relative, for sums in float64 of up to some 10,000 terms of size one, which err by 1e-13; no mistake is as small."""


def gap_limit(dtype: torch.dtype, guidance_scale: float, temperature: float) -> tuple[float, bool]:
    """How far log-probabilities of the same actions may be apart when computed in batches of other shapes.

    Returns the limit in nats, and whether it is one for the mean instead of for the largest.

    A product of matrices rounds differently in another batch shape: logits of size 30 are off by about 30 units of rounding, times
    what a network of some layers adds. Guidance multiplies that by up to 2w - 1, a temperature divides it. float32: unit
    6e-8, so 2e-6 per logit, 4e-6 with its normaliser; five times that for depth. float64: the core's sampler computes its
    log-probabilities in float32, whatever the weights are. Half types are compared by the mean, as the largest of thousands says
    nothing at their units (bfloat16 4e-3, float16 5e-4); a sampler that runs outside autocast is 0.03 off per token (facts of the
    project), and a wrong distribution tenths of a nat.
    """
    magnified = max(1.0, 2 * guidance_scale - 1) / min(1.0, temperature)
    if dtype == torch.bfloat16:
        return 0.02 * magnified, True
    if dtype == torch.float16:
        return 0.003 * magnified, True
    return (1e-6 if dtype == torch.float64 else 2e-5) * magnified, False


def gradient_share(dtype: torch.dtype) -> float:
    """How far entries of a gradient may be apart that was summed in another order, as a share of its largest entry."""
    return {torch.float64: 1e-9, torch.float16: 2e-2, torch.bfloat16: 1e-1}.get(dtype, 1e-4)
