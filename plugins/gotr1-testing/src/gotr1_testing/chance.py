"""Statistical checks: samples come from the distribution that is scored. They need no knowledge of what an action is.

A sampler and a scorer that make the same mistake agree with each other: a truncated sampler that reports the probabilities of the
whole distribution, a forced token that is scored. What then still fails are two identities of every distribution p,
E[-log p] = H and E[grad log p] = 0. Both are sums over actions of terms whose expectation is 0 given what came before, so
their standard error is known without any model of the dependence.

Only actions whose entropy is above a limit count. Elsewhere nearly everything hangs on what happens once in a thousand actions, and as
long as it does not happen the standard error is too small. Entropy is known before the action is, so leaving actions out by it
biases nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gotr1_core.samples import IMAGE, ActionStats, Sampling
from gotr1_testing.finding import Check, Measured, NotRun, worst
from gotr1_testing.subject import Drawn, Subject
from gotr1_testing.tolerances import STANDARD_ERRORS

LEAST = 0.3
"""Nats. The likeliest of two actions has probability 0.91 there; 200 actions see some 20 of the other."""
ENOUGH = 100


def undecided(scored: ActionStats, mask: Tensor) -> Tensor:
    """The actions ``[B, T]`` that were not all but certain. Densities, whose entropy may be any number, count all."""
    if bool((scored.entropy[mask] < 0).any()):
        return mask
    return mask & (scored.entropy > LEAST)


def surprise_is_entropy(subject: Subject) -> Measured:
    """E[-log p] = H, at every guidance scale and temperature: the mean of -log p - H over actions, in standard errors."""
    subject.needs_small()
    found = []
    rows = subject.many_rows(subject.case.many)
    for setting in subject.case.settings:
        sampling = subject.sampling(setting.guidance_scale, setting.temperature)
        drawn = subject.draw(sampling, rows)
        with torch.no_grad():
            scored = subject.score(drawn)
        mask = undecided(scored, drawn.mask)
        excess = (-scored.log_prob - scored.entropy)[mask].double()
        if len(excess) < ENOUGH:
            continue
        note = f"standard errors, {len(excess)} actions {_at(subject, sampling)}"
        found.append(Measured((excess.sum().abs() / excess.square().sum().sqrt()).item(), STANDARD_ERRORS, note))
    if not found:
        raise NotRun(f"fewer than {ENOUGH} actions of {len(rows)} samples have an entropy above {LEAST} nats")
    return worst(found)


def _at(subject: Subject, sampling: Sampling) -> str:
    guidance = f"guidance {sampling.guidance_scale:g}, " if subject.segment == IMAGE else ""
    return f"at {guidance}temperature {sampling.temperature:g}"


def mean_score_is_zero(subject: Subject) -> Measured:
    """E[grad log p] = 0, along the direction in which it would most likely not be: the mean gradient of other samples.

    Half of the samples give the direction, in one backward pass; the other half their slopes along it, sample by sample, as
    differences of two forward passes. A mistake that moves E[grad log p] away from 0 moves the direction towards itself.
    """
    subject.needs_training()
    subject.needs_small()
    sampling = subject.sampling(guidance_scale=max(subject.case.guidance))
    drawn = subject.draw(sampling, subject.many_rows(2 * subject.case.many))
    rows = range(len(drawn.mask))
    first, second = drawn.take(rows[::2]), drawn.take(rows[1::2])
    with torch.no_grad():
        masks = [undecided(subject.score(part), part.mask) for part in (first, second)]
    if min(int(mask.sum()) for mask in masks) < ENOUGH:
        raise NotRun(f"fewer than {ENOUGH} actions of {len(second.mask)} samples have an entropy above {LEAST} nats")
    slopes = slopes_along(subject, second, masks[1], mean_gradient(subject, first, masks[0]))
    error = slopes.std().item() / len(slopes) ** 0.5
    value = abs(slopes.mean().item()) / error if error else float("nan")
    return Measured(value, STANDARD_ERRORS, f"standard errors, {len(slopes)} samples {_at(subject, sampling)}")


def mean_gradient(subject: Subject, drawn: Drawn, mask: Tensor) -> dict[str, Tensor]:
    """Of log p of some actions, over samples."""
    subject.module.zero_grad()
    scored = subject.score(drawn).log_prob
    (torch.where(mask, scored, 0.0).double().sum() / len(mask)).backward()
    found = {name: p.grad.detach().clone() for name, p in subject.trained.items() if p.grad is not None}
    subject.module.zero_grad()
    return found


def slopes_along(subject: Subject, drawn: Drawn, mask: Tensor, direction: dict[str, Tensor], share: float = 1e-4) -> Tensor:
    """How fast each sample's log p changes along a direction, ``[B]``; the step is a share of the parameters' own size.

    Of a trained denoiser, whose actions are sharp, a step ten times as large is no slope any more: 5.8 standard errors instead of 0.8.
    """
    with torch.no_grad():
        trained = subject.trained
        length = torch.stack([d.double().square().sum() for d in direction.values()]).sum().sqrt()
        size = torch.stack([trained[name].double().square().sum() for name in direction]).sum().sqrt()
        step = (share * size / length).item()
        ends = []
        for sign in (1, -1):
            kept = {name: trained[name].clone() for name in direction}
            for name, d in direction.items():
                trained[name].add_(d, alpha=sign * step)
            ends.append(torch.where(mask, subject.score(drawn).log_prob, 0.0).double().sum(1))
            for name, parameter in kept.items():
                trained[name].copy_(parameter)
        return (ends[0] - ends[1]) / (2 * step)


CHANCE = (
    Check("surprise-is-entropy", "E[-log p] = H: what is drawn is drawn from what is scored", surprise_is_entropy),
    Check("mean-score-is-zero", "E[grad log p] = 0", mean_score_is_zero),
)
