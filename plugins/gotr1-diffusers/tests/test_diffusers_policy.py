"""Sampling and log-probabilities: pictures are those of diffusers, depend only on their own seed, and rollouts keep what training needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from gotr1_core.chain import Chain, Region
from gotr1_core.errors import UsageError
from gotr1_core.protocols import Planner, Renderer
from gotr1_core.samples import IMAGE, Example, Prompt, Rollout, Sampling, join
from gotr1_testing.subject import CHAINS, PROMPTS

SAMPLING = Sampling(guidance_scale=3.0, denoising_steps=5)
QUIET = replace(SAMPLING, image_temperature=0.0)
SEEDS = [1, 2, 3]
both = pytest.mark.parametrize("name", ["sdxl", "flow"])


@pytest.fixture
def make(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return lambda name, **options: request.getfixturevalue(name)(**options)


def drawn(policy: Any, sampling: Sampling = SAMPLING, rows: slice = slice(3), **more: Any) -> Rollout:
    found: Rollout = policy.render(PROMPTS[:3][rows], CHAINS[rows], seeds=SEEDS[rows], sampling=sampling, **more)
    return found


def first_noise(policy: Any, seeds: list[int]) -> torch.Tensor:
    return torch.stack([torch.randn(policy.latent_shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


@both
def test_it_is_a_renderer(make: Callable[..., Any], name: str) -> None:
    policy = make(name)
    assert isinstance(policy, Renderer)
    assert not isinstance(policy, Planner)
    assert not any(p.requires_grad for part in (policy.module.vae, policy.module.text_encoders) for p in part.parameters())


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_without_noise_sdxl_draws_what_diffusers_draws(sdxl: Callable[..., Any], scale: float) -> None:
    """With text that fits into one piece and no regions, compared with diffusers' pipeline with its own DDIM, from the same noise."""
    from diffusers import DDIMScheduler

    policy = sdxl(spacing="leading")
    sampling = replace(QUIET, guidance_scale=scale)
    mine = policy.render([Prompt("a cat")], [Chain.of([])], seeds=[5], sampling=sampling)
    pipeline = policy.pipeline
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="leading", clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline("a cat", latents=first_noise(policy, [5]), num_inference_steps=5, guidance_scale=scale).images[0]
    # Rounding of float32 through five steps: a level, now and then.
    assert np.abs(np.asarray(mine.images[0], int) - np.asarray(theirs, int)).max() <= 1
    assert np.asarray(theirs).std() > 5  # or any two pictures would be alike


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_without_noise_flow_draws_what_diffusers_draws(flow: Callable[..., Any], scale: float) -> None:
    policy = flow()
    sampling = replace(QUIET, guidance_scale=scale)
    mine = policy.render([Prompt("a cat")], [Chain.of([])], seeds=[5], sampling=sampling)
    policy.pipeline.set_progress_bar_config(disable=True)
    how = {"num_inference_steps": 5, "guidance_scale": scale, "max_sequence_length": 20}
    theirs = policy.pipeline("a cat", latents=first_noise(policy, [5]), **how).images[0]
    assert np.abs(np.asarray(mine.images[0], int) - np.asarray(theirs, int)).max() <= 1
    assert np.asarray(theirs).std() > 5


def test_flow_shifts_with_the_size_as_diffusers_does(flow_in_memory: Callable[..., Any]) -> None:
    from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift

    from gotr1_diffusers.flow import FlowPolicy
    from gotr1_diffusers.options import FlowOptions

    pipeline = flow_in_memory(use_dynamic_shifting=True)
    policy = FlowPolicy.from_pipeline(pipeline, FlowOptions(text_tokens=20))
    steps = policy.module.steps(SAMPLING)
    pipeline.scheduler.set_timesteps(5, mu=calculate_shift(16, 256, 4096, 0.5, 1.15))
    torch.testing.assert_close(steps.timesteps, pipeline.scheduler.timesteps)


@both
def test_noise_is_added_where_it_is_asked_for(make: Callable[..., Any], name: str) -> None:
    """Two samplings from one seed have one mean of the first step. Their noise is in proportion to the temperature."""
    policy = make(name, trained="all")
    cold, warm, hot = (drawn(policy, replace(SAMPLING, image_temperature=t)) for t in (0.0, 0.5, 1.0))
    assert cold.tensors["step"].shape == (3, 0)
    assert warm.tensors["step"].shape == hot.tensors["step"].shape
    table = policy.module.steps(SAMPLING).std
    half = policy.module.steps(replace(SAMPLING, image_temperature=0.5)).std
    assert torch.allclose(half[:-1] / table[:-1], torch.full((4,), 0.5).double())
    assert not torch.equal(warm.tensors["after"], hot.tensors["after"])


@both
def test_what_was_not_sampled_cannot_be_scored(make: Callable[..., Any], name: str) -> None:
    policy = make(name)
    with pytest.raises(UsageError, match="too few of the 5 denoising steps have noise"):
        policy.module({IMAGE: drawn(policy, QUIET)})
    quiet = make(name, **({"eta": 0.0} if name == "sdxl" else {"noise_level": 0.0}))
    assert len(drawn(quiet).images) == 3  # to draw is no mistake
    assert len(drawn(policy, replace(SAMPLING, denoising_steps=1)).images) == 3
    with pytest.raises(UsageError, match=r"too few of the \d+ denoising steps have noise"):
        quiet.module({IMAGE: drawn(quiet)})


@both
@pytest.mark.parametrize("trained", ["window", "subset", "all"])
def test_only_trained_steps_are_kept(make: Callable[..., Any], name: str, trained: str) -> None:
    policy = make(name, trained=trained)
    found = drawn(policy, groups=[4, 4, 9]).tensors
    every = drawn(make(name, trained="all")).tensors
    # The last step of flow has no noise; of SDXL as released it has.
    count = 2 if trained != "all" else {"sdxl": 5, "flow": 4}[name]
    assert {key: tuple(t.shape) for key, t in found.items() if not key.startswith("input_")} == {
        "latents": (3, count, 4, 8, 8),
        "after": (3, count, 4, 8, 8),
        "log_prob": (3, count),
        "step": (3, count),
        "mask": (3, count),
        "parent": (3,),
    }
    assert torch.equal(found["step"][0], found["step"][1])
    # What is drawn does not depend on what trains.
    for row, steps in enumerate(found["step"].tolist()):
        at = [every["step"][row].tolist().index(step) for step in steps]
        for key in ("latents", "after", "log_prob"):
            torch.testing.assert_close(found[key][row], every[key][row, at], rtol=0, atol=0)


def test_noise_of_trained_steps_alone(sdxl: Callable[..., Any]) -> None:
    """Other steps are DDIM's: before the window, latents are those of a sampling without noise."""
    policy = sdxl(noise="trained", trained_range=(0.4, 1.0), trained_steps=1)
    found, quiet = drawn(policy).tensors, drawn(sdxl(trained="all", eta=1.0), SAMPLING).tensors
    first = found["step"][:, 0].tolist()
    assert set(first) <= {2, 3, 4}
    plain = sdxl(noise="trained", trained_range=(0.4, 1.0), trained_steps=1, eta=1e-6)  # as good as none, and yet kept
    torch.testing.assert_close(drawn(plain).tensors["latents"], found["latents"], rtol=0, atol=1e-4)  # of the noise that η leaves
    row = first.index(first[0])
    assert not torch.allclose(quiet["latents"][row, first[row]], found["latents"][row, 0], atol=1e-2)


@both
def test_a_sample_depends_on_its_own_seed_only(make: Callable[..., Any], name: str) -> None:
    """Alone, in another order and with other samples. The text of other rows changes the padding."""
    policy = make(name)
    whole = drawn(policy, groups=[4, 4, 9])
    alone = drawn(policy, rows=slice(2, 3), groups=[9])
    for key in ("latents", "after", "log_prob"):
        torch.testing.assert_close(alone.tensors[key][0], whole.tensors[key][2], rtol=0, atol=1e-4)  # rounding in other batch shapes
    assert torch.equal(alone.tensors["step"][0], whole.tensors["step"][2])
    other = policy.render(PROMPTS[:3], CHAINS, seeds=[1, 2, 4], sampling=SAMPLING, groups=[4, 4, 9])
    assert (other.tensors["latents"][2] - whole.tensors["latents"][2]).abs().max() > 0.1


@both
def test_joined_rollouts_are_scored_as_they_were(make: Callable[..., Any], name: str) -> None:
    policy = make(name)
    parts = [drawn(policy, rows=slice(k, k + 1), groups=[k]) for k in range(3)]
    with torch.no_grad():
        apart = torch.cat([policy.module({IMAGE: part})[IMAGE].log_prob for part in parts])
        whole = policy.module({IMAGE: join(parts)})[IMAGE].log_prob
    torch.testing.assert_close(whole, apart, rtol=0, atol=2e-4)  # float32, magnified by guidance and small deviations


@both
def test_sizes_that_are_no_multiple_of_a_latent_are_refused(make: Callable[..., Any], name: str) -> None:
    with pytest.raises(UsageError, match=r"height=\d+ is not a multiple of") as caught:
        make(name, height=17)
    assert "nearest: height=" in caught.value.hint
    policy = make(name, height=24, width=16)
    assert drawn(policy).images[0].size == (16, 24)


def test_the_vae_keeps_its_precision(sdxl: Callable[..., Any], flow: Callable[..., Any]) -> None:
    assert sdxl(dtype="bfloat16").module.vae.dtype == torch.float32  # its config says force_upcast
    assert flow(dtype="bfloat16").module.vae.dtype == torch.bfloat16
    assert not sdxl().module.vae.use_tiling


@both
def test_pictures_come_back_from_the_vae(make: Callable[..., Any], name: str) -> None:
    """Latents are scaled for the denoiser and back by the same numbers. Only the VAE itself is between."""
    from gotr1_diffusers.vae import decode_latents, encode_pictures

    policy = make(name)
    images = drawn(policy).images
    vae = policy.module.vae
    latents = encode_pictures(vae, images, policy.size)
    pixels = torch.from_numpy(np.stack([np.asarray(i) for i in images])).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        raw = vae.encode(pixels).latent_dist.mode()
        expected = vae.decode(raw).sample
    torch.testing.assert_close(latents, (raw - (vae.config.shift_factor or 0)) * vae.config.scaling_factor, rtol=0, atol=1e-5)
    levels = ((expected.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(np.stack([np.asarray(i) for i in decode_latents(vae, latents)]) - levels).max() <= 1


# -- stage one --------------------------------------------------------------------------------------------------------------


def examples(policy: Any) -> list[Example]:
    return [Example(p, c, i) for p, c, i in zip(PROMPTS[:3], CHAINS, drawn(policy).images, strict=True)]


@both
def test_the_loss_falls_with_training(make: Callable[..., Any], name: str) -> None:
    policy = make(name, drop_conditions=0.0)
    given = examples(policy)
    optimizer = torch.optim.Adam([p for p in policy.module.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for step in range(40):
        loss = policy.supervised_loss(policy.module, given, seed=step % 4)
        assert loss.counts[IMAGE] == 3
        (loss.sums[IMAGE] / 3).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.sums[IMAGE].item())
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_loss_is_the_squared_error_of_the_target(sdxl_in_memory: Callable[..., Any], prediction: str) -> None:
    from gotr1_diffusers.options import SdxlOptions
    from gotr1_diffusers.sdxl import SdxlPolicy

    policy = SdxlPolicy.from_pipeline(sdxl_in_memory(prediction_type=prediction), SdxlOptions(drop_conditions=0.0))
    torch.manual_seed(0)
    latents, noise = torch.randn(2, 3, 4, 8, 8)
    even = torch.tensor([0.0, 0.5, 0.9999])
    made = policy.add_noise(latents, noise, even)
    assert made.timestep.tolist() == [0, 500, 999]
    scheduler = policy.module.scheduler
    torch.testing.assert_close(made.latents, scheduler.add_noise(latents, noise, made.timestep))
    expected = noise if prediction == "epsilon" else scheduler.get_velocity(latents, noise, made.timestep)
    torch.testing.assert_close(made.target, expected)
    assert made.weight.eq(1).all()
    # With γ the error in x₀ counts min(SNR, γ) times, however it is told.
    limited = SdxlPolicy.from_pipeline(sdxl_in_memory(prediction_type=prediction), SdxlOptions(snr_gamma=5.0)).add_noise(
        latents, noise, even
    )
    alphas = scheduler.alphas_cumprod[made.timestep]
    ratio = alphas / (1 - alphas)
    of_start = {"epsilon": ratio, "v_prediction": 1 / (1 - alphas)}[prediction]  # the model's error, squared, per that in x₀
    torch.testing.assert_close(limited.weight * of_start, ratio.clamp_max(5.0))


@both
def test_dropped_conditions_do_not_matter(make: Callable[..., Any], name: str) -> None:
    """If every condition is dropped, text and boxes do not matter. If none is, they do."""
    other = [Chain.of([Region("zebra", (0, 0, 300, 999))])] * 3
    for share, same in ((1.0, True), (0.0, False)):
        policy = make(name, drop_conditions=share)
        given = examples(policy)
        changed = [Example(Prompt("quite another prompt"), c, e.image) for c, e in zip(other, given, strict=True)]
        one, two = (policy.supervised_loss(policy.module, part, seed=0).sums[IMAGE].item() for part in (given, changed))
        assert (one == pytest.approx(two, rel=1e-5)) == same


def test_text_encoders_train_if_the_options_say_so(sdxl: Callable[..., Any]) -> None:
    for trains in (False, True):
        policy = sdxl(train_text=trains)
        policy.supervised_loss(policy.module, examples(policy), seed=0).sums[IMAGE].backward()
        found = {name.split(".")[0] for name, p in policy.module.named_parameters() if p.grad is not None}
        assert found == ({"model", "text_encoders"} if trains else {"model"})


@both
def test_an_example_needs_its_picture(make: Callable[..., Any], name: str) -> None:
    policy = make(name)
    with pytest.raises(ValueError, match="an example has no picture"):
        policy.supervised_loss(policy.module, [Example(PROMPTS[0], CHAINS[0])], seed=0)


@both
def test_a_picture_that_overflows_is_no_picture(make: Callable[..., Any], name: str) -> None:
    """A VAE in float16 overflows for some latents. They were black pictures; their neighbours stay as they are, bit for bit."""
    policy = make(name)
    sound = drawn(policy).images
    decode = policy.module.vae.decode

    def overflowing(z: torch.Tensor, **more: Any) -> Any:
        pixels = decode(z, **more)[0].clone()
        pixels[1, :, 3, 3] = torch.inf - torch.inf
        return (pixels,)

    policy.module.vae.decode = overflowing
    found = drawn(policy)
    assert found.images[1] is None
    assert found.finite() == [True, False, True]
    assert all(np.array_equal(np.asarray(found.images[i]), np.asarray(sound[i])) for i in (0, 2))


@both
def test_latents_that_are_not_finite_are_no_picture(make: Callable[..., Any], name: str) -> None:
    policy = make(name)
    predict = policy.module.predict

    def lost(latents: torch.Tensor, *more: Any) -> torch.Tensor:
        output: torch.Tensor = predict(latents, *more).clone()
        output[2] = torch.nan
        return output

    policy.module.predict = lost
    found = drawn(policy)
    assert found.finite() == [True, True, False]
    assert [image is None for image in found.images] == [False, False, True]
    assert [picture is None for picture in found.rows(torch.tensor([2, 0])).images] == [True, False]
