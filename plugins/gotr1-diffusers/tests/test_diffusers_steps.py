"""The mathematics of both step rules in float64, compared with their definitions, and with diffusers where it is right."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from gotr1_core.errors import UsageError
from gotr1_diffusers.steps import Prediction, Steps, ddim, flow_sde

EXACT = {"rtol": 0.0, "atol": 1e-12}  # rounding of float64 in a dozen operations on numbers of size one
FLOAT32 = {"rtol": 2e-5, "atol": 2e-6}  # of a scheduler that computes in it
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
SPACINGS = ("leading", "trailing", "linspace")
PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "v_prediction", "sample")


def scheduler(spacing: str, prediction: str = "epsilon", **more: object) -> DDIMScheduler:
    return DDIMScheduler(**BETAS, timestep_spacing=spacing, prediction_type=prediction, **more)


def made(of: DDIMScheduler, steps: int, eta: float) -> tuple[Steps, Tensor, Tensor]:
    """Our steps, with ᾱ before and after each of them by the list of timesteps."""
    of.set_timesteps(steps)
    timesteps = [int(t) for t in of.timesteps]
    last = float(of.final_alpha_cumprod)
    found = ddim(timesteps, of.alphas_cumprod, last, prediction=of.config.prediction_type, eta=eta)
    alphas = of.alphas_cumprod.double()
    now = alphas[timesteps]
    return found, now, torch.cat([now[1:], torch.tensor([last], dtype=torch.float64)])


def outputs(prediction: str, now: Tensor, start: Tensor, noise: Tensor) -> Tensor:
    """The output of a perfect model for x = √ᾱ x₀ + √(1 − ᾱ) ε."""
    v = now.sqrt() * noise - (1 - now).sqrt() * start
    return {"epsilon": noise, "v_prediction": v, "sample": start}[prediction]


@pytest.mark.parametrize("last_is_one", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 30])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_ddim_step_keeps_the_marginal(spacing: str, prediction: str, steps: int, last_is_one: bool) -> None:
    """The definition of DDIM: with a perfect model x' = √ᾱ' x₀ + noise of variance 1 − ᾱ', for every η, every spacing and the last step."""
    start, zero, one = torch.tensor(0.7).double(), torch.zeros(1).double(), torch.ones(1).double()
    for eta in (0.0, 0.3, 1.0, 1.6):
        found, now, then = made(scheduler(spacing, prediction, set_alpha_to_one=last_is_one), steps, eta)
        assert len(found) == steps
        # The mean is affine: its value without ε, and how it grows with ε.
        without = found.keep * now.sqrt() * start + found.push * outputs(prediction, now, start, zero)
        growth = found.keep * (now.sqrt() * start + (1 - now).sqrt()) + found.push * outputs(prediction, now, start, one) - without
        torch.testing.assert_close(without, then.sqrt() * start, **EXACT)
        torch.testing.assert_close(growth.square() + found.std.square(), 1 - then, **EXACT)
        assert found.std.isfinite().all()


def test_eta_is_limited_where_all_noise_is_new() -> None:
    """With a larger η the formula has a root of a negative number."""
    found, _, then = made(scheduler("trailing"), 10, 100.0)
    torch.testing.assert_close(found.std.square(), 1 - then, **EXACT)
    assert found.keep.isfinite().all()


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("steps", [4, 10, 50])
def test_leading_steps_are_diffusers(steps: int, prediction: str, eta: float) -> None:
    """With this spacing, if the number of steps divides 1000, diffusers' previous timestep is right, also for the last step."""
    theirs = scheduler("leading", prediction, steps_offset=1, set_alpha_to_one=False)
    theirs.alphas_cumprod, theirs.final_alpha_cumprod = theirs.alphas_cumprod.double(), theirs.final_alpha_cumprod.double()
    found, *_ = made(theirs, steps, eta)
    generator = torch.Generator().manual_seed(0)
    for number in range(steps):
        x, output, noise = torch.randn(3, 2, 3, 4, 4, generator=generator, dtype=torch.float64)
        expected = theirs.step(output, theirs.timesteps[number], x, eta=eta, variance_noise=noise, return_dict=False)[0]
        done = found.step(output, torch.full((2,), number), x, noise=noise)
        torch.testing.assert_close(done.after, expected, rtol=1e-9, atol=1e-9)  # rounding of float64, magnified near ᾱ = 1


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_other_spacings_are_not_diffusers(spacing: str) -> None:
    """Its integer division misses the next timestep there. That is why the step is our own."""
    theirs = scheduler(spacing)
    found, *_ = made(theirs, 7, 0.0)
    x, output = torch.randn(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = theirs.step(output, theirs.timesteps[2], x, return_dict=False)[0]
    assert (found.step(output, torch.tensor([2]), x).after - expected).abs().max() > 1e-4


def test_eta_1_has_the_variance_of_ddpm() -> None:
    """σ² is the variance of q(x' | x, x₀), DDPM's smaller choice."""
    found, *_ = made(scheduler("leading"), 1000, 1.0)
    theirs = DDPMScheduler(**BETAS, variance_type="fixed_small")
    for t in (1, 5, 500, 999):
        assert found.std[999 - t].item() ** 2 == pytest.approx(float(theirs._get_variance(t)), rel=1e-3)  # float32 of 1 − ᾱ/ᾱ'


def test_velocity_may_begin_at_no_signal_and_noise_may_not() -> None:
    none = scheduler("trailing", "v_prediction", rescale_betas_zero_snr=True)
    found, now, _ = made(none, 8, 1.0)
    assert now[0] == 0
    assert found.keep.isfinite().all()
    with pytest.raises(UsageError, match="zero signal"):
        made(scheduler("trailing", "epsilon", rescale_betas_zero_snr=True), 8, 1.0)


# -- Flow-SDE ---------------------------------------------------------------------------------------------------------------


def flow(steps: int, level: float, shift: float = 3.0) -> tuple[Steps, Tensor]:
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(steps)
    return flow_sde(theirs.timesteps, theirs.sigmas, level=level), theirs.sigmas.double()


def test_without_noise_it_is_eulers_method() -> None:
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.set_timesteps(10)
    found, _ = flow(10, 0.0)
    assert (found.std == 0).all()
    x, output = torch.randn(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for number, t in enumerate(theirs.timesteps):
        expected = theirs.step(output, t, x, return_dict=False)[0]
        torch.testing.assert_close(found.step(output, torch.tensor([number]), x).after, expected, **FLOAT32)


def test_the_last_step_has_no_noise_and_the_first_a_finite_one() -> None:
    found, sigmas = flow(10, 0.7)
    assert sigmas[0] == 1
    assert (found.std[:-1] > 0).all()
    assert found.std[-1] == 0
    assert found.std.isfinite().all()
    # Flow-GRPO's s at t = 1 takes 1 − t of the next step.
    assert found.std[0].item() == pytest.approx(0.7 * math.sqrt(1 / (1 - sigmas[1]) * (1 - sigmas[1])), abs=1e-12)


def moments(steps: int, level: float, mean: float, spread: float) -> tuple[float, float]:
    """Mean and variance of the draws in closed form, for data of N(mean, spread²). The velocity E[ε − x₀ | x] is affine in x then."""
    found, sigmas = flow(steps, level, shift=1.0)
    m, variance = 0.0, 1.0
    for t, keep, push, std in zip(sigmas[:-1], found.keep, found.push, found.std, strict=True):
        total = (1 - t) ** 2 * spread**2 + t**2
        slope = (t - (1 - t) * spread**2) / total  # cov(ε − x₀, x) / var(x)
        offset = -mean - slope * (1 - t) * mean
        m = float(keep * m + push * (slope * m + offset))
        variance = float((keep + push * slope) ** 2 * variance + std**2)
    return m, math.sqrt(variance)


@pytest.mark.parametrize("level", [0.0, 0.4, 0.7, 1.0])
def test_flow_sde_draws_the_data_whatever_the_noise(level: float) -> None:
    """The noise changes paths but not the distribution of the draws. Without a correction of the drift, level 0.7 would be 0.43 off.

    Euler's method errs by 7e-4 in 1600 steps. With noise the first step adds a smaller error: another number replaces 1 − t there.
    """
    m, spread = moments(1600, level, 0.8, 0.3)
    assert m == pytest.approx(0.8, abs=1e-9)
    assert spread == pytest.approx(0.3, abs=1.5e-3)


def test_eulers_error_halves_with_twice_the_steps() -> None:
    errors = [abs(moments(steps, 0.0, 0.8, 0.3)[1] - 0.3) for steps in (400, 800, 1600)]
    assert all(later == pytest.approx(before / 2, rel=0.02) for before, later in pairwise(errors))


def test_the_drift_is_velocity_and_score() -> None:
    """x + (v − s²/2 ∇log p) Δ, with the gradient of a Gaussian's log-density, which x + (1 − t) v gives."""
    found, sigmas = flow(8, 0.7, shift=1.0)
    x, mean, spread = torch.tensor(0.37).double(), 0.8, 0.3
    for number in range(1, 7):
        t, change = sigmas[number], sigmas[number + 1] - sigmas[number]
        total = (1 - t) ** 2 * spread**2 + t**2
        velocity = -mean + (t - (1 - t) * spread**2) / total * (x - (1 - t) * mean)
        score = -(x - (1 - t) * mean) / total
        square = 0.49 * t / (1 - t)
        expected = x + (velocity - square / 2 * score) * change
        torch.testing.assert_close(found.keep[number] * x + found.push[number] * velocity, expected, **EXACT)
        torch.testing.assert_close(found.std[number], (square * -change).sqrt(), **EXACT)


# -- sampling and scoring ---------------------------------------------------------------------------------------------------


def test_what_is_sampled_is_what_is_scored() -> None:
    """Several timesteps in one batch, one per row. The log-probability is the density's, averaged over latent dimensions."""
    found, *_ = made(scheduler("trailing"), 10, 1.0)
    x, output, noise = torch.randn(3, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 8, 3, 3])
    done = found.step(output, t, x, noise=noise)
    again = found.step(output, t, x, done.after)
    assert torch.equal(done.log_prob, again.log_prob)
    normal = torch.distributions.Normal(done.mean.double(), found.std[t][:, None, None, None].expand(4, 2, 3, 3))
    torch.testing.assert_close(
        done.log_prob.double(), normal.log_prob(done.after.double()).mean((1, 2, 3)), rtol=0, atol=1e-5
    )  # of float32
    for row in range(4):
        alone = found.step(output[row : row + 1], t[row : row + 1], x[row : row + 1], noise=noise[row : row + 1])
        assert torch.equal(alone.after, done.after[row : row + 1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_steps_are_computed_in_float32(dtype: torch.dtype) -> None:
    found, *_ = made(scheduler("trailing"), 10, 1.0)
    x = torch.randn(1, 2, 3, 3)
    done = found.step(torch.randn(1, 2, 3, 3).to(dtype), torch.tensor([4]), x, noise=x)
    assert {part.dtype for part in (done.after, done.mean, done.std, done.log_prob)} == {torch.float32}
