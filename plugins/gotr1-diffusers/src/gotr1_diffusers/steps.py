"""Denoising steps as Gaussian actions: DDIM with noise, and Flow-SDE.

Both are affine in the latents x and the model's output o, with one std for all latent dimensions:

    x' = keep x + push o + σ z,    z ~ N(0, 1)

so one table of three numbers per step is all that samples and scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gotr1_core import gaussian
from gotr1_core.errors import UsageError

Prediction = Literal["epsilon", "v_prediction", "sample"]


@dataclass(frozen=True)
class Step:
    """One denoising step of B pictures: latents ``after`` it and their ``mean``, ``[B, C, h, w]``, ``std`` and ``log_prob`` ``[B]``.

    Log-probabilities are means over latent dimensions. Where the std is 0 there is none: it is infinite or NaN.
    """

    after: Tensor
    mean: Tensor
    std: Tensor
    log_prob: Tensor


@dataclass(frozen=True)
class Steps:
    """The steps of a sampler, first to last: ``timesteps [N]`` as the model is told them, and ``keep``, ``push``, ``std`` ``[N]`` in
    float64."""

    timesteps: Tensor
    keep: Tensor
    push: Tensor
    std: Tensor

    def __len__(self) -> int:
        return len(self.timesteps)

    def step(self, output: Tensor, t: Tensor, x: Tensor, prev: Tensor | None = None, *, noise: Tensor | None = None) -> Step:
        """Steps number ``t [B]`` from latents ``x [B, C, h, w]``, given the model's ``output`` for them.

        Samples if ``prev`` is None, with ``noise`` (none: the mean), else scores ``prev``. Computes in float32, or in float64 if the model
        did.
        """
        dtype = torch.promote_types(output.dtype, torch.float32)
        keep, push, std = (table.to(x.device)[t].to(dtype) for table in (self.keep, self.push, self.std))
        mean = _wide(keep) * x.to(dtype) + _wide(push) * output.to(dtype)
        after = prev if prev is not None else mean if noise is None else mean + _wide(std) * noise.to(dtype)
        return Step(after, mean, std, gaussian.log_prob(after.to(dtype), mean, std))


def _wide(numbers: Tensor) -> Tensor:
    return numbers[:, None, None, None]


def ddim(timesteps: Sequence[int], alphas: Tensor, last: float, *, prediction: Prediction, eta: float) -> Steps:
    """DDIM (arXiv 2010.02502, eq. 12 and 16) over ``timesteps``, ``alphas`` being ᾱ of every timestep that was trained.

        x' = √ᾱ' x₀ + √(1 − ᾱ' − σ²) ε + σ z,    σ² = η² (1 − ᾱ') / (1 − ᾱ) · (1 − ᾱ / ᾱ')

    ᾱ' is that of the next timestep of the list, whatever their spacing, and ``last`` after the last one. η = 1 has the variance of
    DDPM's posterior; a larger η counts up to where all of the noise is new, σ² = 1 − ᾱ'. x₀ is not clipped: latents have no range.

    Raises:
        UsageError: ε is predicted where ᾱ = 0: pure noise says nothing of x₀.
    """
    now = alphas.double()[list(timesteps)]
    then = torch.cat([now[1:], torch.tensor([last], dtype=torch.float64)])
    if prediction == "epsilon" and bool((now == 0).any()):
        raise UsageError(
            "a model that predicts noise cannot begin at zero signal (rescale_betas_zero_snr)", hint="use a v-prediction model"
        )
    variance = eta**2 * (1 - then) / (1 - now) * (1 - now / then)
    variance = torch.minimum(variance, 1 - then)
    start, noise = {
        "epsilon": ((1 / now.sqrt(), -((1 - now) / now).sqrt()), (torch.zeros_like(now), torch.ones_like(now))),
        "v_prediction": ((now.sqrt(), -(1 - now).sqrt()), ((1 - now).sqrt(), now.sqrt())),
        "sample": ((torch.zeros_like(now), torch.ones_like(now)), (1 / (1 - now).sqrt(), -(now / (1 - now)).sqrt())),
    }[prediction]  # x₀ and ε, each as what it takes of x and of o
    signal, direction = then.sqrt(), (1 - then - variance).sqrt()
    keep, push = (signal * of_start + direction * of_noise for of_start, of_noise in zip(start, noise, strict=True))
    return Steps(torch.tensor(list(timesteps)), keep, push, variance.sqrt())


def flow_sde(timesteps: Tensor, sigmas: Tensor, *, level: float) -> Steps:
    """Flow-SDE (Flow-GRPO, arXiv 2505.05470, eq. 9) over noise shares ``sigmas [N + 1]`` from 1 to 0, for models that predict velocity.

        x' = x + (v + s² / 2t (x + (1 − t) v)) Δ + s √−Δ z,    s² = a² t / (1 − t),    Δ = t' − t < 0

    with a the noise ``level``; 0 is Euler's method. At t = 1, where s would be infinite, 1 − t is the next step's. The last step has no
    noise: it would stay in the picture.
    """
    t = sigmas.double()[:-1]
    change = sigmas.double().diff()
    inner = torch.where(t < 1, t, sigmas.double()[1])
    square = level**2 * t / (1 - inner)
    square[-1] = 0
    keep = 1 + square * change / (2 * t)
    push = (1 + square * (1 - t) / (2 * t)) * change
    return Steps(timesteps, keep, push, (square * -change).sqrt())
