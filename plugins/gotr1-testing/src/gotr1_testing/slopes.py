"""Compares gradients with directional finite differences, module by module.

A central difference (f(x + h) - f(x - h)) / 2h has two errors. Rounding is about e / h, where e is the noise of f. Curvature is a multiple
of h squared, and two steps, one of them half the other, remove most of it (Richardson). Both errors are measured, not assumed:

- e by Hamming's difference table over eight points, so close together that f is a straight line (Moré & Wild, "Estimating computational
  noise", 2011);
- the rest of curvature by halving the step again.

The check takes the step for which the sum of both is smallest, and that sum is the tolerance. So the tolerance does not depend on the
gradient that it judges.

Weights are converted to float64 if the code supports it. Where everything is computed in float64, e is 1e-15 of f and gradients agree to
1e-9. Stock RMSNorm, softmax and logits go through float32: there e is 1e-7 of f and they agree to about 1e-4. A gradient that cannot be
determined to five percent fails. For adapters of a float32 model of some millions of parameters it can, to one to three percent; only half
precision is noisier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import comb, sqrt

import torch
from torch import Tensor, nn

from gotr1_core import gaussian
from gotr1_testing.check import Check, Measured, worst
from gotr1_testing.subject import Drawn, Subject

MAX_TOLERANCE, SMALL_TOLERANCE = 0.05, 1e-3
"""Relative. A tolerance above the first says nothing; one below the second is not improved further."""
LOG_RATIOS = (-0.35, -0.1, 0.1, 0.35)
"""Log-ratios to the old policy and to the reference: inside and outside a clip of 0.2."""

Function = Callable[[], Tensor]


def clipped_objective(subject: Subject, drawn: Drawn) -> Function:
    """The clipped objective of PPO (arXiv 1707.06347, eq. 7), summed over actions, a scalar.

    It has kinks, which no finite difference may cross. So which actions the clip holds back is decided once and does not change.
    """
    old, advantage = _shifted_log_probs(subject, drawn, LOG_RATIOS), _alternating(drawn, (1.0, -0.6, 0.4))
    with torch.no_grad():
        ratio = (_masked_log_probs(subject, drawn) - old).exp()
        clipped = ratio.clamp(0.8, 1.2) * advantage < ratio * advantage

    def value() -> Tensor:
        ratio = (_masked_log_probs(subject, drawn) - old).exp()
        return (ratio * advantage)[drawn.mask & ~clipped].sum()

    return value


def reference_divergence(subject: Subject, drawn: Drawn) -> Function:
    """The divergence from a reference, summed over actions, a scalar: its estimator k3, or the exact one for Gaussian actions."""
    with torch.no_grad():
        first = subject.action_stats(drawn)
    if first.mean is not None and first.std is not None:
        return _gaussian_divergence(subject, drawn, first.mean, first.std)
    reference = _shifted_log_probs(subject, drawn, LOG_RATIOS[1:])

    def value() -> Tensor:
        gap = reference - _masked_log_probs(subject, drawn)
        return (gap.exp() - 1 - gap)[drawn.mask].sum()

    return value


def _gaussian_divergence(subject: Subject, drawn: Drawn, mean: Tensor, std: Tensor) -> Function:
    """From a reference whose means are up to a third of a std away."""
    offset = (_alternating(drawn, LOG_RATIOS) * std).view(*std.shape, *[1] * (mean.dim() - 2))
    reference = (mean + offset).double()

    def value() -> Tensor:
        stats = subject.action_stats(drawn)
        assert stats.mean is not None and stats.std is not None
        return gaussian.divergence(stats.mean.double(), reference, stats.std.double())[drawn.mask].sum()

    return value


def _masked_log_probs(subject: Subject, drawn: Drawn) -> Tensor:
    return torch.where(drawn.mask, subject.action_stats(drawn).log_prob.double(), 0.0)


def _alternating(drawn: Drawn, values: Sequence[float]) -> Tensor:
    """The values in turn, one per action ``[B, T]``."""
    index = torch.arange(drawn.mask.numel(), device=drawn.mask.device).view(drawn.mask.shape) % len(values)
    return torch.tensor(values, dtype=torch.float64, device=drawn.mask.device)[index]


def _shifted_log_probs(subject: Subject, drawn: Drawn, by: Sequence[float]) -> Tensor:
    with torch.no_grad():
        return _masked_log_probs(subject, drawn) + _alternating(drawn, by)


@dataclass(frozen=True)
class Slope:
    """The slope for one module's parameters along one direction.

    Attributes:
        name: of the module.
        gradient: the slope by the backward pass.
        difference: the slope by finite differences.
        tolerance: how far they may differ, absolute.
    """

    name: str
    gradient: float
    difference: float
    tolerance: float


def gradient_is_the_slope(subject: Subject, function: Callable[[Subject, Drawn], Function]) -> Measured:
    """Compares gradient and slope for every module that trains, along a direction that is half gradient, half random.

    ``function`` gives the scalar function of the parameters, from the subject and what it drew.
    """
    subject.require_trainable()
    subject.require_small()
    drawn = _draw_one_per_prompt(subject)
    _raise_precision(subject, drawn)
    value = function(subject, drawn)
    modules = list(_trained_modules(subject.module))
    gradients = _gradients(subject, value)
    with torch.no_grad():
        noise = _noise(subject, value)
        size = abs(value().item())
        slopes = [_slope(name, module, gradients, value, noise, int(drawn.mask.sum())) for name, module in modules]
    scale = max(abs(s.gradient) for s in slopes)
    # Modules with little effect are compared on the scale of those with much.
    measurements = [_measured(s, max(abs(s.gradient), 1e-2 * scale)) for s in slopes]
    precision = "float64 throughout" if noise <= 1e-12 * max(size, 1.0) else f"noise {noise:.0e} of {size:.3g}"
    chosen = worst(measurements)
    return Measured(chosen.value, chosen.limit, f"relative, worst of {len(slopes)} modules: {chosen.note}; {precision}")


def _measured(slope: Slope, scale: float) -> Measured:
    if scale == 0:
        return Measured(float("nan"), MAX_TOLERANCE, f"{slope.name}, where nothing has a gradient")
    tolerance = slope.tolerance / scale
    if tolerance > MAX_TOLERANCE:
        return Measured(float("inf"), MAX_TOLERANCE, f"{slope.name}, too noisy to measure (to {tolerance:.0%}): half precision?")
    return Measured(abs(slope.gradient - slope.difference) / scale, tolerance, slope.name)


def _draw_one_per_prompt(subject: Subject) -> Drawn:
    """A sample of every prompt, at the largest guidance scale."""
    rows = subject.rows[:: subject.case.samples_per_prompt]
    return subject.draw(subject.sampling(guidance_scale=max(subject.case.guidance)), rows)


def _raise_precision(subject: Subject, drawn: Drawn) -> None:
    """Converts weights to float64 if the module's code supports it, else to float32. Conversion from a coarser type and back is exact.

    Some code raises on mixed types. Some loses its mask: the lowest float64 number becomes minus infinity in float32, and then a row of
    padding that may attend to nothing is NaN.
    """
    tensors = [*subject.module.parameters(), *subject.module.buffers()]
    types = [t.dtype for t in tensors]
    for dtype in (torch.float64, torch.float32):
        subject.module.to(dtype)
        try:
            if subject.log_prob(drawn).isfinite().all():
                return
        except RuntimeError:
            pass
    for tensor, before in zip(tensors, types, strict=True):
        tensor.data = tensor.data.to(before)


def _trained_modules(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The submodules with parameters of their own that train, by name."""
    for name, submodule in module.named_modules():
        if any(p.requires_grad for p in submodule.parameters(recurse=False)):
            yield name or "the module", submodule


def _own_parameters(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters(recurse=False) if p.requires_grad]


def _gradients(subject: Subject, value: Function) -> dict[int, Tensor]:
    subject.module.zero_grad()
    value().backward()
    gradients = {id(p): torch.zeros_like(p) if p.grad is None else p.grad.detach().clone() for p in subject.trained.values()}
    subject.module.zero_grad()
    return gradients


def _noise(subject: Subject, value: Function, points: int = 8) -> float:
    """The standard deviation of the function's rounding error: the largest estimate of the difference table's columns 4 to 6."""
    generator = torch.Generator().manual_seed(1)
    parameters = list(subject.trained.values())
    direction = [_random(p, generator) * p.double().norm() / p.numel() ** 0.5 for p in parameters]
    values = []
    for k in range(points):
        saved = [p.clone() for p in parameters]
        for p, d in zip(parameters, direction, strict=True):
            p.add_(d.to(p.dtype), alpha=1e-6 * (k - points / 2))
        values.append(value().item())
        for p, before in zip(parameters, saved, strict=True):
            p.copy_(before)
    column = torch.tensor(values, dtype=torch.float64)
    estimates = []
    for order in range(1, 7):
        column = column.diff()
        estimates.append(sqrt(column.square().mean().item() / comb(2 * order, order)))
    return max(*estimates[3:], 1e-16 * max(abs(v) for v in values))


def _random(parameter: nn.Parameter, generator: torch.Generator) -> Tensor:
    return torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.device)


def _slope(name: str, module: nn.Module, gradients: dict[int, Tensor], value: Function, noise: float, actions: int) -> Slope:
    """Tries smaller and smaller steps, and keeps the one with the smallest tolerance. Steps are relative to the module's norm.

    The first step is where noise and curvature should be about equal.
    """
    parameters = _own_parameters(module)
    gradient = [gradients[id(p)].double() for p in parameters]
    generator = torch.Generator().manual_seed(0)
    random = [_random(p, generator) for p in parameters]
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        random[0][module.padding_idx] = 0  # torch gives this row no gradient, even where it is looked up as content
    # A random direction alone is nearly orthogonal to the gradient, and would say little about it.
    direction = [g / _norm(gradient) + r / _norm(random) for g, r in zip(gradient, random, strict=True)]
    length = _norm(direction)
    direction = [d / length for d in direction]
    expected = sum((g * d).sum().item() for g, d in zip(gradient, direction, strict=True))
    size = max(_norm([p.double() for p in parameters]), 1e-3)
    # A step that changes each action's log-probability by about a twentieth; with the low noise of float64, by a thousandth.
    first = (0.05 if noise > 1e-10 else 1e-3) * actions**0.5 / max(abs(expected), 1e-30)
    best = Slope(name, expected, float("nan"), float("inf"))
    differences: list[float] = []
    for k in range(7):
        h = min(first, 0.02 * size) / 2**k
        differences.append(_difference(parameters, direction, value, h))
        improved = [(4 * fine - rough) / 3 for rough, fine in pairwise(differences)]  # without the square of h
        if len(improved) < 2:
            continue
        # Rounding: four standard deviations of the error of two values over 2h, magnified by the line above. Curvature: the rest falls by
        # 16 with each step, so the last two differ by fifteen times the error of the last one.
        tolerance = 4 * noise / (sqrt(2) * h) * 5 / 3 + abs(improved[-2] - improved[-1]) + 1e-10 * abs(expected)
        if tolerance < best.tolerance:
            best = Slope(name, expected, improved[-1], tolerance)
        if best.tolerance < SMALL_TOLERANCE * abs(expected):
            break
    return best


def _norm(tensors: Sequence[Tensor]) -> float:
    return max(torch.stack([t.square().sum() for t in tensors]).sum().sqrt().item(), 1e-30)


def _difference(parameters: Sequence[nn.Parameter], direction: Sequence[Tensor], value: Function, h: float) -> float:
    """The central difference with step ``h``. The parameters are restored."""
    saved = [p.clone() for p in parameters]
    ends = []
    for sign in (1, -1):
        for p, before, d in zip(parameters, saved, direction, strict=True):
            p.copy_(before.double() + sign * h * d)
        ends.append(value().item())
    for p, before in zip(parameters, saved, strict=True):
        p.copy_(before)
    return (ends[0] - ends[1]) / (2 * h)


def surrogate_gradient_is_the_slope(subject: Subject) -> Measured:
    """The gradient of the clipped objective, in every module that trains."""
    return gradient_is_the_slope(subject, clipped_objective)


def surrogate_gradient_is_the_slope_with_lora(subject: Subject) -> Measured:
    """The same for adapters that are not zero."""
    return gradient_is_the_slope(subject.with_lora(), clipped_objective)


def kl_gradient_is_the_slope(subject: Subject) -> Measured:
    """The gradient of the divergence from a reference, in every module that trains."""
    return gradient_is_the_slope(subject, reference_divergence)


SLOPES = (
    Check(
        "surrogate-gradient-is-the-slope",
        "the gradient of the clipped surrogate is its slope",
        surrogate_gradient_is_the_slope,
        changes=True,
    ),
    Check(
        "surrogate-gradient-is-the-slope-lora",
        "the same for adapters that are not zero",
        surrogate_gradient_is_the_slope_with_lora,
        changes=True,
    ),
    Check("kl-gradient-is-the-slope", "the gradient of the divergence is its slope", kl_gradient_is_the_slope, changes=True),
)
