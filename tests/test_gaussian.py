"""Gaussian actions: their densities, their divergence in closed form, and what an update reports of each denoising step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from gaussian import STEPS, WINDOW, GaussianModule, GaussianRenderer
from torch.distributions import Normal, kl_divergence

from gotr1_core import gaussian
from gotr1_core.config.models import SegmentConfig
from gotr1_core.judges import Judges
from gotr1_core.reward import Expression
from gotr1_core.rollout import RolloutSettings, roll_out
from gotr1_core.samples import IMAGE, ActionStats, Prompt, Sampling
from gotr1_rl.grpo import Grpo, GrpoOptions, normalised_log_ratio
from gotr1_testing.enumerable import TinyPolicy
from gotr1_testing.subject import Subject
from gotr1_testing.updates import UpdateSetup

SHAPE = (3, 2, 4, 5)  # rows, actions, and two latent dimensions


def some() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Actions, means, other means and stds, in float64."""
    torch.manual_seed(0)
    action, mean, other = torch.randn(3, *SHAPE, dtype=torch.float64)
    return action, mean, other, torch.rand(SHAPE[:2], dtype=torch.float64) + 0.5


def test_densities_are_torchs_averaged_over_latent_dimensions() -> None:
    action, mean, other, std = some()
    one, two = (Normal(m, std[..., None, None].expand_as(m)) for m in (mean, other))
    # The same formula summed in another order: rounding of float64.
    torch.testing.assert_close(gaussian.log_prob(action, mean, std), one.log_prob(action).mean((2, 3)), rtol=1e-12, atol=0)
    torch.testing.assert_close(gaussian.entropy(std), one.entropy().mean((2, 3)), rtol=1e-12, atol=0)
    torch.testing.assert_close(gaussian.divergence(mean, other, std), kl_divergence(one, two).mean((2, 3)), rtol=1e-12, atol=0)


def test_the_divergence_is_what_sampling_estimates() -> None:
    """The mean of log p - log q over ten thousand draws from p, within 4.5 standard errors."""
    _, mean, other, std = some()
    torch.manual_seed(1)
    drawn = mean + std[..., None, None] * torch.randn(10_000, *SHAPE, dtype=torch.float64)
    gap = torch.stack([gaussian.log_prob(x, mean, std) - gaussian.log_prob(x, other, std) for x in drawn])
    error = gap.std(0) / len(gap) ** 0.5
    assert ((gap.mean(0) - gaussian.divergence(mean, other, std)).abs() < 4.5 * error).all()


def test_a_normalised_log_ratio_is_the_shift_along_the_noise() -> None:
    """GRPO-Guard's point: σ (log ρ + |Δμ|² / 2σ²) is the mean of Δμ·z over latent dimensions, without σ and without bias."""
    noise, before, now, std = some()
    action = before + std[..., None, None] * noise
    ratio = gaussian.log_prob(action, now, std) - gaussian.log_prob(action, before, std)
    scored = ActionStats(ratio, ratio, mean=now, std=std, moved=gaussian.divergence(now, before, std))
    found = normalised_log_ratio(scored, ratio)
    assert found is not None
    torch.testing.assert_close(found, ((now - before) * noise).mean((2, 3)), rtol=0, atol=1e-12)  # rounding of float64
    assert normalised_log_ratio(ActionStats(ratio, ratio), ratio) is None


def student(algorithm: Grpo, kl: float = 0.0, updates: int = 1) -> UpdateSetup:
    subject = Subject(GaussianRenderer(GaussianModule()), IMAGE)
    drawn = subject.draw(subject.sampling(guidance_scale=3.0))
    made = UpdateSetup.of(
        subject, drawn, {IMAGE: SegmentConfig(kl=kl, clip_low=1e-3, clip_high=1e-3)}, algorithm=algorithm, learning_rate=1e-2
    )
    return replace(made, config=made.config.model_copy(update={"updates": updates}))


def test_every_denoising_step_is_reported() -> None:
    made = student(Grpo(GrpoOptions(scale=False)), updates=3)
    steps, mask = made.drawn.rollout.tensors["step"], made.drawn.mask
    trained = set(steps[mask].tolist())
    assert len(trained) > WINDOW - 1  # or groups would not differ, and this would show nothing
    found = made.update()
    for what in ("ratio", "clipped", "normalised_ratio"):
        names = {f"image.step_{step + 1}.{what}" for step in range(STEPS)} & found.keys()
        assert names == {f"image.step_{step + 1}.{what}" for step in trained}
    share = [(steps[mask] == step).double().mean().item() for step in sorted(trained)]
    for what in ("ratio", "clipped"):
        each = [found[f"image.step_{step + 1}.{what}"] for step in sorted(trained)]
        # Sums of the same numbers in another order and precision.
        assert sum(s * e for s, e in zip(share, each, strict=True)) == pytest.approx(found[f"image.{what}"], abs=1e-6)
    assert 0 < found["image.clipped"] < 1


def test_the_divergence_in_the_loss_is_the_exact_one() -> None:
    made = student(Grpo(GrpoOptions(scale=False)), kl=0.1)
    subject, drawn = made.subject, made.drawn
    with torch.no_grad():
        start = subject.action_stats(drawn)
    assert made.update()["image.kl"] == 0.0
    with torch.no_grad():
        now = subject.action_stats(drawn)
    assert now.mean is not None
    assert start.mean is not None
    assert now.std is not None
    expected = ((now.mean - start.mean) ** 2).mean(-1) / (2 * now.std**2)
    # k3 of mean log-probabilities would be of the square of that: far away.
    assert made.update()["image.kl"] == pytest.approx(expected[drawn.mask].mean().item(), rel=1e-5)
    assert expected[drawn.mask].mean() > 1e-6


@pytest.mark.parametrize("normalise", [False, True])
def test_normalised_ratios_change_the_gradient_by_the_noise_alone(normalise: bool) -> None:
    """With one update the ratio is 1. The gradient is then that of log p, times σ if the ratio is normalised."""
    made = student(Grpo(GrpoOptions(scale=False, normalise=normalise)))
    subject, drawn = made.subject, made.drawn
    advantages = made.algorithm.advantages(made.batch.rewards).image.flatten()
    scored = subject.action_stats(drawn)
    assert scored.mean is not None
    assert scored.std is not None
    scored = replace(scored, moved=gaussian.divergence(scored.mean, scored.mean.detach(), scored.std))
    loss = made.algorithm.loss(IMAGE, scored, scored.log_prob.detach(), None, advantages, drawn.mask, SegmentConfig())
    weight = scored.std if normalise else torch.ones_like(scored.std)
    objective = (weight * scored.log_prob * advantages.float().unsqueeze(1))[drawn.mask].sum()
    parameters = [*subject.trained.values()]
    expected = torch.autograd.grad(objective, parameters, retain_graph=True)
    found = torch.autograd.grad(-loss.sums[IMAGE], parameters)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)  # float32, summed in another order


def test_a_run_tells_a_renderer_its_groups(letters_judge: Any) -> None:
    """All pictures of a prompt have one window, whatever the chunks, processes and pruning. Other prompts and steps have other windows."""
    prompts = [Prompt(text) for text in ("a", "a", "b", "c d", "e", "f")]  # the same text twice: two groups all the same

    def windows(*, step: int = 3, of: slice = slice(None), **more: Any) -> dict[tuple[int, ...], int]:
        judges = Judges({"letters": letters_judge}, Expression.parse("letters * bright"))
        sampling = Sampling(guidance_scale=1.0, max_chain_tokens=2)
        settings = RolloutSettings(sampling, **{"seed": (0, step), "plans": 3, "images": 2, **more})
        batch = roll_out(TinyPolicy(), GaussianRenderer(), judges, prompts[of], settings, first=20 + (of.start or 0))
        assert batch.images is not None
        first = batch.images.tensors["mask"].int().argmax(1).tolist()
        return {batch.samples[at].lineage: window for at, window in zip(batch.place.tolist(), first, strict=True)}

    whole = windows(prune=False)
    assert len(whole) == 6 * 3 * 2
    by_prompt = [{w for (i, *_), w in whole.items() if i == 20 + k} for k in range(6)]
    assert all(len(found) == 1 for found in by_prompt)
    assert len(set.union(*by_prompt)) > 1
    assert windows(prune=False, chunk=1) == whole
    assert windows(of=slice(0, 2), prune=False) | windows(of=slice(2, 6), prune=False) == whole
    pruned = windows()
    assert 0 < len(pruned) < len(whole)
    assert pruned.items() <= whole.items()
    assert windows(step=4, prune=False) != whole
