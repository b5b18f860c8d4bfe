"""Statistical checks: samples come from the distribution of the training pass. They need not know what an action is.

A sampler and a training pass with the same mistake agree with each other. Two examples: a truncated sampler that reports the probabilities
of the full distribution, and a forced token that counts as an action. Two identities of every distribution p show such a mistake:
E[-log p] = H and E[∇ log p] = 0. Both are sums over actions of terms whose expectation is 0 given what came before. So their standard
error is known without a model of how actions depend on each other.

Only actions with an entropy above a limit count. With less entropy, nearly everything depends on what happens once in a thousand actions;
until it happens, the standard error is too small. The entropy is known before the action is, so leaving actions out by it biases nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gotr1_core.samples import IMAGE, PLAN, ActionStats, Sampling
from gotr1_testing.check import Check, Measured, NotRun, worst
from gotr1_testing.subject import Drawn, Subject
from gotr1_testing.tolerances import STANDARD_ERRORS

MIN_ENTROPY = 0.3
"""Nats. At this entropy the likelier of two actions has probability 0.91: among 200 actions some 20 are the other one."""
MIN_ACTIONS = 100
LARGE_ACTION, LARGE_ACTIONS = 64, 125
"""Of Gaussian actions with at least so many numbers each, so many actions suffice: see :func:`_samples_that_suffice`."""


def uncertain_actions(stats: ActionStats, mask: Tensor) -> Tensor:
    """The actions of ``mask [B, T]`` with an entropy above the limit. All of them if they are densities: then entropy can be negative."""
    if bool((stats.entropy[mask] < 0).any()):
        return mask
    return mask & (stats.entropy > MIN_ENTROPY)


def surprise_is_entropy(subject: Subject) -> Measured:
    """E[-log p] = H at every guidance scale and temperature: the mean of -log p - H over actions, in standard errors."""
    subject.require_small()
    measurements = []
    rows = subject.make_rows(_samples_that_suffice(subject))
    plans_only = subject.segment == PLAN  # guidance is the pictures': at the largest scale it would show in plans too
    for setting in subject.case.settings:
        if plans_only and setting.guidance_scale != max(subject.case.guidance):
            continue
        sampling = subject.sampling(setting.guidance_scale, setting.temperature)
        drawn = subject.draw(sampling, rows)
        with torch.no_grad():
            stats = subject.action_stats(drawn)
        mask = uncertain_actions(stats, drawn.mask)
        excess = (-stats.log_prob - stats.entropy)[mask].double()
        if len(excess) < MIN_ACTIONS:
            continue
        note = f"standard errors, {len(excess)} actions {_settings_note(subject, sampling)}"
        measurements.append(Measured((excess.sum().abs() / excess.square().sum().sqrt()).item(), STANDARD_ERRORS, note))
    if not measurements:
        raise NotRun(f"fewer than {MIN_ACTIONS} actions of {len(rows)} samples have an entropy above {MIN_ENTROPY} nats")
    return worst(measurements)


def _samples_that_suffice(subject: Subject) -> int:
    """The case's number of statistical samples, or fewer where actions are densities of many numbers each.

    A Gaussian action of d numbers has -log p - H = (Σz² - d) / 2, with a standard deviation of √(d/2). If the sampler's std is wrong by a
    share of ε, the mean is off by dε: over n actions by ε √(2dn) standard errors. So n = 125 actions of d = 64 show ε = 3.6 % at 4.5
    standard errors, and those of d = 512 show 1.3 %. Mistakes in code are larger. The check of the mean gradient gains nothing from
    large actions: its direction has as many dimensions as there are parameters.
    """
    most = subject.case.statistical_samples
    drawn = subject.draw(subject.sampling(), subject.make_rows(1))
    with torch.no_grad():
        stats = subject.action_stats(drawn)
    actions = int(drawn.mask.sum())
    if stats.mean is None or stats.mean[0, 0].numel() < LARGE_ACTION or not actions:
        return most
    return min(most, -(-LARGE_ACTIONS * len(drawn.mask) // actions))


def _settings_note(subject: Subject, sampling: Sampling) -> str:
    guidance = f"guidance {sampling.guidance_scale:g}, " if subject.segment == IMAGE else ""
    return f"at {guidance}temperature {sampling.temperature:g}"


def mean_log_prob_gradient_is_zero(subject: Subject) -> Measured:
    """E[∇ log p] = 0, along the direction in which a mistake is most likely: the mean gradient of other samples.

    One half of the samples gives the direction, in one backward pass. The other half gives slopes along it, sample by sample, as
    differences of two forward passes. A mistake that moves E[∇ log p] away from 0 also turns the direction towards itself.
    """
    subject.require_trainable()
    subject.require_small()
    sampling = subject.sampling(guidance_scale=max(subject.case.guidance))
    drawn = subject.draw(sampling, subject.make_rows(2 * subject.case.statistical_samples))
    rows = range(len(drawn.mask))
    first, second = drawn.take(rows[::2]), drawn.take(rows[1::2])
    with torch.no_grad():
        masks = [uncertain_actions(subject.action_stats(half), half.mask) for half in (first, second)]
    if min(int(mask.sum()) for mask in masks) < MIN_ACTIONS:
        raise NotRun(f"fewer than {MIN_ACTIONS} actions of {len(second.mask)} samples have an entropy above {MIN_ENTROPY} nats")
    slopes = directional_slopes(subject, second, masks[1], mean_gradient(subject, first, masks[0]))
    error = slopes.std().item() / len(slopes) ** 0.5
    value = abs(slopes.mean().item()) / error if error else float("nan")
    return Measured(value, STANDARD_ERRORS, f"standard errors, {len(slopes)} samples {_settings_note(subject, sampling)}")


def mean_gradient(subject: Subject, drawn: Drawn, mask: Tensor) -> dict[str, Tensor]:
    """The gradient of log p of the actions of ``mask [B, T]``, as a mean over samples; by parameter, shaped like it."""
    subject.module.zero_grad()
    log_prob = subject.action_stats(drawn).log_prob
    (torch.where(mask, log_prob, 0.0).double().sum() / len(mask)).backward()
    gradient = {name: p.grad.detach().clone() for name, p in subject.trained.items() if p.grad is not None}
    subject.module.zero_grad()
    return gradient


def directional_slopes(subject: Subject, drawn: Drawn, mask: Tensor, direction: dict[str, Tensor], relative_step: float = 1e-4) -> Tensor:
    """How fast each sample's log p changes along a direction, ``[B]``. ``relative_step`` is relative to the norm of the parameters.

    A trained denoiser has narrow distributions. With a step ten times as large, the difference is no longer its slope: 5.8 standard
    errors instead of 0.8.
    """
    with torch.no_grad():
        trained = subject.trained
        length = torch.stack([d.double().square().sum() for d in direction.values()]).sum().sqrt()
        size = torch.stack([trained[name].double().square().sum() for name in direction]).sum().sqrt()
        step = (relative_step * size / length).item()
        ends = []
        for sign in (1, -1):
            saved = {name: trained[name].clone() for name in direction}
            for name, d in direction.items():
                trained[name].add_(d, alpha=sign * step)
            ends.append(torch.where(mask, subject.action_stats(drawn).log_prob, 0.0).double().sum(1))
            for name, parameter in saved.items():
                trained[name].copy_(parameter)
        return (ends[0] - ends[1]) / (2 * step)


CHANCE = (
    Check("surprise-is-entropy", "E[-log p] = H: samples come from the distribution of the training pass", surprise_is_entropy),
    Check("mean-log-prob-gradient-is-zero", "E[∇ log p] = 0", mean_log_prob_gradient_is_zero),
)
