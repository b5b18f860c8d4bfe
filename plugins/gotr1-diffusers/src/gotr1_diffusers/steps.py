"""Denoising steps as Gaussian actions: DDIM with noise, and Flow-SDE.

Both are affine in the latents x and the model's output o, with one standard deviation for all latent dimensions:

    x' = keep x + push o + σ z,    z ~ N(0, 1)

So a table of three numbers per step suffices to sample a step and to compute its log-probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from gotr1_core import gaussian
from gotr1_core.errors import UsageError

Prediction = Literal["epsilon", "v_prediction", "sample"]
PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)


@dataclass(frozen=True)
class Step:
    """One denoising step of B pictures. A step without noise (``std`` 0) has no density: its ``log_prob`` is infinite or NaN."""

    after: Tensor  # [B, C, h, w] latents after the step
    mean: Tensor  # [B, C, h, w] their mean
    std: Tensor  # [B]
    log_prob: Tensor  # [B] mean over latent dimensions, in nats


@dataclass(frozen=True)
class Steps:
    """The N steps of a sampler, first to last, as a table."""

    timesteps: Tensor  # [N] as the model takes them
    keep: Tensor  # [N] float64, as push and std
    push: Tensor  # [N]
    std: Tensor  # [N]

    def __len__(self) -> int:
        return len(self.timesteps)

    def step(self, output: Tensor, t: Tensor, x: Tensor, prev: Tensor | None = None, *, noise: Tensor | None = None) -> Step:
        """Takes latents ``x [B, C, h, w]`` one step further, given the model's ``output`` for them, of the same shape.

        Computes in float32, or in float64 if ``output`` is.

        Args:
            output: the model's output for ``x``.
            t: numbers ``[B]`` of the steps, from 0.
            x: latents before the step.
            prev: latents after the step, if its log-probability is asked for. None samples them.
            noise: ``[B, C, h, w]``, to sample with. None takes the mean.
        """
        dtype = torch.promote_types(output.dtype, torch.float32)
        keep, push, std = (table.to(x.device)[t].to(dtype) for table in (self.keep, self.push, self.std))
        mean = _per_picture(keep) * x.to(dtype) + _per_picture(push) * output.to(dtype)
        after = prev if prev is not None else mean if noise is None else mean + _per_picture(std) * noise.to(dtype)
        return Step(after, mean, std, gaussian.log_prob(after.to(dtype), mean, std))


def _per_picture(numbers: Tensor) -> Tensor:
    """Numbers ``[B]`` as ``[B, 1, 1, 1]``."""
    return numbers[:, None, None, None]


def ddim(timesteps: Sequence[int], alphas: Tensor, last: float, *, prediction: Prediction, eta: float) -> Steps:
    """The steps of DDIM (arXiv 2010.02502, eq. 12 and 16) over N ``timesteps``.

        x' = √ᾱ' x₀ + √(1 − ᾱ' − σ²) ε + σ z,    σ² = η² (1 − ᾱ') / (1 − ᾱ) · (1 − ᾱ / ᾱ')

    ᾱ' is that of the next timestep in the list, whatever their spacing. η = 1 gives the variance of DDPM's posterior. A larger η is limited
    to σ² = 1 − ᾱ', where all of the noise is new. x₀ is not clipped, as latents have no range.

    Args:
        timesteps: from most noise to least.
        alphas: ᾱ ``[T]`` of every timestep of training.
        last: ᾱ' after the last step.
        prediction: what the model outputs: ε, v, or x₀ (``sample``).
        eta: η.

    Raises:
        UsageError: the model predicts ε and a timestep has ᾱ = 0. From pure noise ε does not give x₀.
    """
    now = alphas.double()[list(timesteps)]
    then = torch.cat([now[1:], torch.tensor([last], dtype=torch.float64)])
    if prediction == "epsilon" and bool((now == 0).any()):
        raise UsageError(
            "a model that predicts noise cannot start at zero signal (rescale_betas_zero_snr)", hint="use a v-prediction model"
        )
    variance = eta**2 * (1 - then) / (1 - now) * (1 - now / then)
    variance = torch.minimum(variance, 1 - then)
    start, noise = {
        "epsilon": ((1 / now.sqrt(), -((1 - now) / now).sqrt()), (torch.zeros_like(now), torch.ones_like(now))),
        "v_prediction": ((now.sqrt(), -(1 - now).sqrt()), ((1 - now).sqrt(), now.sqrt())),
        "sample": ((torch.zeros_like(now), torch.ones_like(now)), (1 / (1 - now).sqrt(), -(now / (1 - now)).sqrt())),
    }[prediction]  # x₀ and ε, each as a factor of x and a factor of o
    signal, direction = then.sqrt(), (1 - then - variance).sqrt()
    keep, push = (signal * of_start + direction * of_noise for of_start, of_noise in zip(start, noise, strict=True))
    return Steps(torch.tensor(list(timesteps)), keep, push, variance.sqrt())


def flow_sde(timesteps: Tensor, sigmas: Tensor, *, level: float) -> Steps:
    """The steps of Flow-SDE (Flow-GRPO, arXiv 2505.05470, eq. 9), for models that predict velocity.

        x' = x + (v + s² / 2t (x + (1 − t) v)) Δ + s √−Δ z,    s² = a² t / (1 − t),    Δ = t' − t < 0

    At t = 1, where s would be infinite, s uses the next step's t. The last step has no noise, which would stay in the picture.

    Args:
        timesteps: ``[N]`` as the model takes them.
        sigmas: noise shares t ``[N + 1]``, from 1 to 0.
        level: a, the amount of noise; 0 is Euler's method.
    """
    t = sigmas.double()[:-1]
    change = sigmas.double().diff()
    inner = torch.where(t < 1, t, sigmas.double()[1])
    square = level**2 * t / (1 - inner)
    square[-1] = 0
    keep = 1 + square * change / (2 * t)
    push = (1 + square * (1 - t) / (2 * t)) * change
    return Steps(timesteps, keep, push, (square * -change).sqrt())
