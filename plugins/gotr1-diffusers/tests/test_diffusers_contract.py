"""The renderers `sdxl` and `flow` pass the conformance suite: with and without guidance, in every spacing, in bfloat16. Mistakes are
caught."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gotr1_core import gaussian
from gotr1_core.samples import IMAGE, Rollout
from gotr1_diffusers.steps import Step, Steps
from gotr1_testing import Case, CheckResult, RendererContract, Subject
from gotr1_testing.runner import checks_of
from gotr1_testing.subject import PROMPTS

CASE = Case(prompts=PROMPTS[:3], temperatures=(0.7, 1.3), statistical_samples=64, denoising_steps=4)
BRIEF = Case(prompts=PROMPTS[:3], temperatures=(1.0,), guidance=(3.0,), statistical_samples=64, denoising_steps=5)


class TestSdxl(RendererContract):
    case = CASE

    @pytest.fixture
    def renderer(self, sdxl: Callable[..., Any]) -> Any:
        return sdxl()


class TestFlow(RendererContract):
    case = CASE

    @pytest.fixture
    def renderer(self, flow: Callable[..., Any]) -> Any:
        return flow()


def checked(policy: Any, name: str, case: Case = BRIEF) -> CheckResult:
    (check,) = checks_of("renderer", [name])
    return check.run(Subject(policy, IMAGE, case))


@pytest.mark.parametrize("name", ["log-probs-match-sampler", "surprise-is-entropy", "log-probs-are-float32"])
@pytest.mark.parametrize(
    "options",
    [
        {"spacing": "leading", "trained": "all"},
        {"spacing": "trailing", "trained": "all"},
        {"spacing": "linspace", "trained": "all"},
        {"trained": "subset", "trained_steps": 3},
        {"noise": "trained"},
        {"eta": 0.4},
        {"layout": "none"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_checks_pass_with_other_options(sdxl: Callable[..., Any], options: dict[str, Any], name: str) -> None:
    found = checked(sdxl(**options), name)
    assert found.passed, found


@pytest.mark.parametrize(
    "name", ["log-probs-match-sampler", "same-log-probs-alone-and-in-batch", "log-probs-are-float32", "log-probs-match-sampler-lora"]
)
@pytest.mark.parametrize("renderer", ["sdxl", "flow"])
def test_in_bfloat16(renderer: str, name: str, request: pytest.FixtureRequest) -> None:
    policy = request.getfixturevalue(renderer)(dtype="bfloat16")
    assert policy.module.dtype == torch.bfloat16
    found = checked(policy, name)
    assert found.passed, found


def test_under_autocast(sdxl: Callable[..., Any]) -> None:
    """A run with mixed_precision=bf16 samples and computes log-probabilities under autocast."""
    with torch.autocast("cpu", torch.bfloat16):
        subject = Subject(sdxl(), IMAGE, BRIEF)
        drawn = subject.draw(subject.sampling(guidance_scale=3.0))
        inside = subject.log_prob(drawn)
    gap = (inside - drawn.log_prob[drawn.mask]).abs()
    assert drawn.rollout.tensors["latents"].dtype == torch.float32
    assert gap.mean() < 0.02 * 5  # bfloat16, magnified by guidance
    outside = (subject.log_prob(drawn) - drawn.log_prob[drawn.mask]).abs()
    assert outside.mean() > 0  # in float32 the same steps are told apart, so the numbers above are not those of float32


# -- mistakes in the real thing ---------------------------------------------------------------------------------------------


class WrongLast(Steps):
    """The scorer takes ᾱ' of the last step from the wrong branch."""

    def step(self, output: Tensor, t: Tensor, x: Tensor, prev: Tensor | None = None, *, noise: Tensor | None = None) -> Step:
        if prev is not None:
            push = self.push.clone()
            push[-1] *= 1.5
            return Steps(self.timesteps, self.keep, push, self.std).step(output, t, x, prev)
        return super().step(output, t, x, noise=noise)


def broken(policy: Any, steps: type[Steps]) -> Any:
    honest = policy.module.steps
    policy.module.steps = lambda sampling: steps(**vars(honest(sampling)))
    return policy


def per_sample(policy: Any) -> Any:
    """Gives each sample a window of its own."""
    honest = policy.render
    policy.render = lambda *a, seeds, groups=None, **more: honest(*a, seeds=seeds, groups=list(seeds), **more)
    return policy


def conditional(policy: Any) -> Any:
    """Computes log-probabilities of guided steps from the conditional output alone."""
    honest = policy.module.action_stats

    def score(rollout: Rollout) -> Any:
        from dataclasses import replace

        return honest(replace(rollout, sampling=replace(rollout.sampling, log_prob="conditional")))

    policy.module.action_stats = score
    return policy


MISTAKES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "wrong last step": (lambda p: broken(p, WrongLast), "log-probs-match-sampler"),
    "per-sample windows": (per_sample, "groups-have-one-window"),
    "conditional scoring of guided steps": (conditional, "log-probs-match-sampler"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_caught(sdxl: Callable[..., Any], name: str) -> None:
    break_it, check = MISTAKES[name]
    options = {"trained": "window" if "window" in name else "all", "spacing": "leading"}
    found = checked(break_it(sdxl(**options)), check)
    assert found.passed is False, found


# -- the divergence ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("renderer", ["sdxl", "flow"])
def test_the_divergence_is_what_sampling_estimates(renderer: str, request: pytest.FixtureRequest) -> None:
    """The mean of log p - log q over draws from p, with a model q close to p. It equals the closed form within 4.5 standard errors."""
    subject = Subject(request.getfixturevalue(renderer)(trained="all"), IMAGE, Case(denoising_steps=4, statistical_samples=200))
    drawn = subject.draw(subject.sampling(guidance_scale=2.0), subject.make_rows(200))
    with torch.no_grad():
        mine = subject.action_stats(drawn)
        for parameter in subject.trained.values():
            parameter.mul_(1.1)
        other = subject.action_stats(drawn)
    assert mine.mean is not None
    assert other.mean is not None
    assert mine.std is not None
    gap = (mine.log_prob - other.log_prob)[drawn.mask].double()
    exact = gaussian.divergence(mine.mean, other.mean, mine.std)[drawn.mask].double()
    error = (gap - exact).std() / len(gap) ** 0.5
    assert exact.mean() > 10 * error  # or the test could not fail
    assert (gap - exact).mean().abs() < 4.5 * error
